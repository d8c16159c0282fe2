"""What a way to look at networks gives: a figure, the arrays behind it, and a line that sums it up."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray
from PIL import Image

from vankit.files import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a network looks at, in one image or, for receptive fields and statistics, in all of them.

    Attributes:
        source: the image's path or description, or what was averaged over.
        summary: one line.
        figure: a matplotlib figure; a notebook shows it for the explanation.
        maps: by name, the arrays drawn, at the resolution they were computed at; as they are, before any scaling.
        rows: the numbers in the figure as a table.
        path: the picture's file, where one was written.
    """

    source: str
    summary: str
    figure: "Figure" = field(repr=False)
    maps: dict[str, NDArray[Any]] = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)
    path: Path | None = None

    def save(self, path: str | PathLike[str]) -> None:
        """Write the figure; the suffix decides the format, as matplotlib knows them."""
        save_figure(self.figure, path, dpi=_DPI, bbox_inches="tight")

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight")
        return buffer.getvalue()


class Method(Protocol):
    """A way to look at one picture after the other."""

    def one(self, source: str, image: Image.Image) -> Explanation | None:
        """Look at a picture."""

    def all(self) -> Iterator[Explanation]:
        """What there is to say of all of them."""
