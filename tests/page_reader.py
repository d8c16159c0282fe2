"""What a report says, read back from its HTML."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

_READ = ("h1", "h2", "p", "pre", "th", "td", "figcaption", "text")


class Report(HTMLParser):
    """
    Attributes:
        title: of the page.
        tables: by heading, the rows of its tables as cells; those of the page's own facts under its title.
        captions: by heading, those of the pictures.
        pictures: by heading.
        texts: by heading, paragraphs and commands.
        figures: headings with a figure, in order.
        drawn: texts in the figures.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.size = path.stat().st_size
        self.text = path.read_text(encoding="utf-8")
        self.title = self.heading = ""
        self.tables: dict[str, list[list[str]]] = {}
        self.captions: dict[str, list[str]] = {}
        self.pictures: dict[str, list[Image.Image]] = {}
        self.texts: dict[str, list[str]] = {}
        self.figures: list[str] = []
        self.drawn: set[str] = set()
        self.words: list[str] | None = None
        self.references: list[str] = []
        self.feed(self.text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [
            value or "" for name, value in attributes if name in ("src", "srcset", "href", "xlink:href")
        ]
        if tag in _READ:
            self.words = []
        elif tag == "tr":
            self.tables.setdefault(self.heading, []).append([])
        elif tag == "svg":
            self.figures.append(self.heading)
        elif tag == "img":
            content = base64.b64decode((dict(attributes)["src"] or "").partition("base64,")[2])
            self.pictures.setdefault(self.heading, []).append(Image.open(io.BytesIO(content)).convert("RGB"))

    def handle_data(self, data: str) -> None:
        if self.words is not None:
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if self.words is None or tag not in _READ:
            return
        text, self.words = "".join(self.words), None
        if tag in ("h1", "h2"):
            self.heading = text
            self.title = text if tag == "h1" else self.title
        elif tag in ("th", "td"):
            self.tables[self.heading][-1].append(text)
        elif tag == "text":
            self.drawn.add(text)
        else:
            kind = self.captions if tag == "figcaption" else self.texts
            kind.setdefault(self.heading, []).append(text)

    def facts(self, heading: str) -> dict[str, str]:
        return dict(self.tables[heading])

    def rows(self, heading: str) -> list[dict[str, str]]:
        """Of a table with column heads."""
        heads, *rows = self.tables[heading]
        return [dict(zip(heads, row, strict=True)) for row in rows]

    def opens_offline(self) -> bool:
        """Nothing is fetched: not by an attribute, nor by a style."""
        styles = re.findall(r"url\(['\"]?([^)]*)\)|@import", self.text)
        loaded = [each for each in (*self.references, *styles) if not each.startswith(("data:", "#"))]
        return not loaded and "<script" not in self.text and "<link" not in self.text
