"""Values as they are typed: a number is read as it stands, or not at all."""

from collections.abc import Sequence
from typing import Any, get_args, is_typeddict

import cyclopts
from cyclopts import CoercionError, Token

_NUMBERS = {int: "a whole number", float: "a number"}


def read_value(kind: Any, tokens: Sequence[Token]) -> Any:
    """What was typed as a value of a type; cyclopts itself would round 1.5 to 2 where a whole number is expected, and
    take the word none for no value.

    Args:
        kind: the type, without None.
        tokens: what was typed.
    """
    if is_typeddict(kind):
        message = f"{tokens[0].value!r}, expected its parts one by one, such as {tokens[0].keyword}.{_first(kind)}."
        raise CoercionError(msg=message, token=tokens[0], target_type=kind)
    for token in tokens:
        if not token.value:  # pathlib would take it for the current folder
            raise CoercionError(msg="it is empty.", token=token, target_type=kind)
    for number, words in _NUMBERS.items():
        if number in (kind, *get_args(kind)):
            for token in tokens:
                _check_number(token, number, words)
    return cyclopts.convert(kind, tokens)


def _check_number(token: Token, number: type, words: str) -> None:
    try:
        number(token.value)
    except ValueError:
        message = f"{token.value!r}, expected {words}."
        raise CoercionError(msg=message, token=token, target_type=number) from None


def _first(kind: Any) -> str:
    return next(iter(kind.__annotations__)).replace("_", "-")
