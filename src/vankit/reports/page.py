"""What every report begins and ends with."""

import platform
import shlex
import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from vankit.engines.cache import versions
from vankit.errors import UserError
from vankit.files import check_file, check_named
from vankit.pages import Page

_PACKAGES = ("vankit", "torch", "torchvision", "timm", "lightning", "transformers", "openvino", "numpy", "pillow")
_ELSEWHERE = ("classes", "things", "category_ids")  # which the table of classes shows


def check_page(path: str | PathLike[str] | None) -> None:
    """Refuse, before the work is done, a name that is not that of a page.

    Args:
        path: of the report; None is none.

    Raises:
        ValueError: it does not end in .html, or see `vankit.files.check_file`.
    """
    check_named(output=path)
    if path is not None and Path(path).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{path} is not the name of a page: expected one that ends in .html")
    check_file(path)


def write_measures(page: Page, heading: str, measures: Mapping[str, float]) -> None:
    """Add figures by name, 0 to 1, if there are any."""
    if measures:
        page.heading(heading)
        page.table([measures])


def finish(page: Page, settings: Mapping[str, Any], path: str | PathLike[str]) -> None:
    """Add the settings, the versions and the command, and write the page.

    Args:
        page: the report.
        settings: by name.
        path: file to write.

    Raises:
        OSError: it cannot be written.
    """
    page.heading("Settings")
    page.facts({name: _text(value) for name, value in settings.items() if name not in _ELSEWHERE})
    page.heading("Versions")
    page.facts({"python": platform.python_version(), **versions(*_PACKAGES), "platform": platform.platform()})
    if command := _command():
        page.heading("Command")
        page.command(command)
    page.save(path)


def _text(value: Any) -> str:
    return "none" if value is None or value in ((), [], {}, "") else str(value)


def _command() -> str:
    """The command line, where it is vankit's."""
    program = Path(sys.argv[0])
    if program.stem != "vankit" and program.parts[-2:] != ("vankit", "__main__.py"):
        return ""
    return shlex.join(["vankit", *sys.argv[1:]])
