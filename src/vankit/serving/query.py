"""The parameters of a request, each known and within its range."""

import math

from starlette.requests import Request

from vankit.serving.errors import BadRequestError

LONGEST = 1000  # characters of a class's name


class Query:
    """The parameters after the address's question mark, of which each is known.

    Raises:
        BadRequestError: one is unknown, or is not what is expected of it.
    """

    def __init__(self, request: Request, *known: str) -> None:
        self._given = request.query_params
        if unknown := [name for name in self._given if name not in known]:
            raise BadRequestError(f"there is no parameter {unknown[0][:100]!r}: expected some of {', '.join(known)}")

    def _one(self, name: str) -> str | None:
        values = self._given.getlist(name)
        if len(values) > 1:
            raise BadRequestError(f"{name} is given {len(values)} times: expected it once")
        return values[0] if values else None

    def count(self, name: str) -> int | None:
        text = self._one(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdecimal() or not int(text[:9]) >= 1 or len(text) > 9:
            raise BadRequestError(f"{name} is {text[:20]!r}: expected a whole number, 1 or more")
        return int(text)

    def number(self, name: str, low: float, high: float, default: float) -> float:
        text = self._one(name)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise BadRequestError(f"{name} is {str(text)[:20]!r}: expected {low:g} to {high:g}")
        return value

    def flag(self, name: str) -> bool:
        text = self._one(name)
        if text not in (None, "true", "false"):
            raise BadRequestError(f"{name} is {text[:20]!r}: expected true or false")
        return text == "true"

    def several(self, name: str, most: int) -> list[str]:
        values = self._given.getlist(name)
        if len(values) > most:
            raise BadRequestError(f"{name} is given {len(values)} times: expected at most {most}")
        if wrong := [value for value in values if not 0 < len(value) <= LONGEST]:
            raise BadRequestError(f"{name} has {len(wrong[0])} characters: expected a class, 1 to {LONGEST}")
        return values
