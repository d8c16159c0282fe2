"""Reports as one HTML file that opens offline: nothing in it is fetched."""

import base64
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from os import PathLike
from typing import Any

from PIL import Image

from vankit.files import write_text

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .5rem 0; }
th, td { text-align: left; padding: .15rem .9rem .15rem 0; border-bottom: 1px solid #8883; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { max-height: 30rem; overflow: auto; }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; } figcaption { font-size: .8rem; overflow-wrap: anywhere; white-space: pre-line; }
.pictures img { max-width: 100%; display: block; }
.figure { background: white; display: inline-block; max-width: 100%; }
.figure svg { max-width: 100%; height: auto; }
code, pre { font-family: ui-monospace, monospace; background: #8882; padding: .1rem .3rem; overflow-x: auto; }
pre { padding: .6rem; white-space: pre-wrap; }
"""


class Page:
    """A report, written part by part.

    Args:
        title: its heading; all text that is given is escaped.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        self._parts.append(f"<p>{escape(text)}</p>")

    def command(self, text: str) -> None:
        """A line to be typed."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Names with their values."""
        rows = (f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items())
        self._parts.append(f"<table>{''.join(rows)}</table>")

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with the same keys, which head the columns; shares from 0 to 1 are floats, None and NaN stay empty."""
        if not rows:
            return
        heads = "".join(f"<th>{escape(str(name))}</th>" for name in rows[0])
        body = "".join(f"<tr>{''.join(_cell(row[name]) for name in rows[0])}</tr>" for row in rows)
        self._parts.append(f'<div class="scroll"><table><tr>{heads}</tr>{body}</table></div>')

    def figure(self, figure: Any) -> None:
        """A figure of matplotlib; its text is written in the reader's fonts."""
        from matplotlib import rc_context

        drawn = io.StringIO()
        with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # which the reader's may have
            figure.savefig(drawn, format="svg", bbox_inches="tight")
        svg = drawn.getvalue()
        self._parts.append(f'<div class="figure">{svg[svg.index("<svg") :]}</div>')

    def pictures(self, pictures: Iterable[tuple[Image.Image, str]], side: int = 256) -> None:
        """RGB pictures with captions, shown at `side` pixels or less."""
        shown = (
            f'<figure style="max-width: {side}px"><img src="{_inline(picture, side * 5 // 4)}" alt="">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
            for picture, caption in pictures
        )
        self._parts.append(f'<div class="pictures">{"".join(shown)}</div>')

    def save(self, path: str | PathLike[str]) -> None:
        """Write the page, whole or not at all."""
        head = f'<meta charset="utf-8"><title>{escape(self._title)}</title><style>{_STYLE}</style>'
        parts = "\n".join(self._parts)
        write_text(path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{parts}\n</body></html>\n')


def plain(name: str) -> str:
    """A name as a figure of matplotlib shows it as it is, though there are dollar signs in it."""
    return name.replace("$", r"\$")


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "<td></td>"
    if isinstance(value, str):
        return f"<td>{escape(value)}</td>"
    return f'<td class="number">{f"{value:.1%}" if isinstance(value, float) else f"{value:,}"}</td>'


def _inline(picture: Image.Image, side: int) -> str:
    small = picture.copy()
    small.thumbnail((side, side))
    data = io.BytesIO()
    small.convert("RGB").save(data, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
