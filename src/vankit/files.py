"""Files that vankit writes."""

from os import PathLike
from pathlib import Path

from vankit.errors import UserError


def check_picture(path: str | PathLike[str] | None) -> None:
    """Refuse, before the work is done, a name that matplotlib could not write a picture to.

    Args:
        path: of the picture; None is none.

    Raises:
        ValueError: the suffix is not that of a picture.
    """
    if path is None:
        return
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.filetypes
    if Path(path).suffix.lower().removeprefix(".") not in known:
        raise UserError(f"{path} is not the name of a picture: expected one that ends in .{', .'.join(sorted(known))}")
