"""How help pages look: docstrings as paragraphs, defaults as they are typed."""

import inspect
import re
from typing import Any

from cyclopts import App, Parameter

from vankit.cli.values import read_value

# flags have no --no- form: those of settings that a recipe may switch on ask for one, see settings.py
PARAMETERS = Parameter(
    negative_iterable=(), negative_bool=(), show_default=lambda value: _default(value), converter=read_value
)


def _default(value: Any) -> str | None:
    if value is None or value is False or value == ():
        return None
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def reflow(docstring: str) -> str:
    """Each paragraph and each argument's text on one line, for the terminal to wrap; lines indented by four stay."""
    return re.sub(r"(?<=\S)\n(?: {8,})?(?=\S)", " ", inspect.cleandoc(docstring))


def reflow_commands(app: App) -> None:
    """Reflow the docstrings of an app's commands."""
    for name in app:
        if not name.startswith("-"):
            command = app[name]
            reflow_commands(command)
            if function := command.default_command:
                function.__doc__ = reflow(function.__doc__ or "")
