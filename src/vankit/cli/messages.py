"""Messages of the Python API, and of cyclopts, as the command line says them."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence

from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

_OTHER_NAMES = {"out": "--output", "picture": "--plot"}  # parameters that the API calls otherwise
_PARAMETER = re.compile(r"^(\w+)(?= is )|`(\w+)`")


def with_options(message: str, app: App, words: Sequence[str]) -> str:
    """A message with options in place of parameters, as the user typed them: "--img-size is 0, expected …".

    A message of the API on a value begins with its parameter, as "img_size is 0, expected …", and has others in
    backquotes. What is not an option of the command stays as it is.

    Args:
        message: of one line.
        app: all commands.
        words: that were typed.
    """
    if not _PARAMETER.search(message):
        return message
    options = _options(app, words)
    values = {
        word.partition("=")[2] if word.startswith("--") else word for word in words
    }  # a file may have such a name
    names = {name: option for name, option in options.items() if name not in values}
    return _PARAMETER.sub(lambda found: names.get(found[1] or found[2], found[0]), message)


def _options(app: App, words: Sequence[str]) -> dict[str, str]:
    """The options of the command that was typed, by parameter."""
    found = {}
    command = app.parse_commands(words)[1][-1]
    for argument in command.assemble_argument_collection() if command.default_command else ():
        if argument.name.startswith("--"):
            found[argument.name.removeprefix("--").rpartition(".")[2].replace("-", "_")] = argument.name
    return found | {name: option for name, option in _OTHER_NAMES.items() if option in found.values()}


def mistake(error: CycloptsError) -> str:
    """What is wrong with a command that cannot be read, and where to look."""
    help_page = " ".join(("vankit", *(error.command_chain or ()), "--help"))
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{error.unused_tokens[0]!r} is one word too many. See {help_page}"
    if isinstance(error, CoercionError) and error.token is not None and not error.token.value:
        name = error.token.keyword or (error.argument.name if error.argument is not None else "a value")
        return f"{name} is empty: expected a value; a variable of the shell may not be set. See {help_page}"
    if isinstance(error, UnknownOptionError) and error.token is not None and os.path.exists(error.token.value):
        return f"{str(error).strip()} The file of that name is ./{error.token.value}. See {help_page}"
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        word = error.unused_tokens[0]
        if near := difflib.get_close_matches(word, ("--help", "--version"), 1):
            return f'Unknown option "{word}". Did you mean "{near[0]}"? See {help_page}'
    return f"{str(error).strip()} See {help_page}"


def typed(options: Mapping[str, bool]) -> str:
    """Those options that were typed, for a message: `--score and --test`.

    Args:
        options: by name, whether each was.
    """
    return " and ".join(name for name, given in options.items() if given)
