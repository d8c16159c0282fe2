"""Values that come from files: of the types, and within the limits, that the annotations of a class state."""

from collections.abc import KeysView, Mapping, ValuesView
from dataclasses import MISSING, Field, fields
from functools import cache
from reprlib import Repr
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta

from vankit.errors import UserError

T = TypeVar("T")

Name = Annotated[str, Meta(max_length=1000)]
_LARGEST = 2**53  # whole numbers that every reader of JSON has exactly
Count = Annotated[int, Meta(ge=0, le=_LARGEST)]
Index = Annotated[int, Meta(ge=-_LARGEST, le=_LARGEST)]

_short = Repr()
_short.maxstring = _short.maxother = 80
_short.maxlist = _short.maxtuple = 6
_short.maxlevel = 3


def check(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Those of some values that a class has fields for; sequences become tuples.

    Args:
        values: by name.
        kind: a dataclass or TypedDict. An annotation's `Meta` has the limits; its `description` is what is expected, in
            words, and its `title` the name that a user knows the value by, where that is another.

    Raises:
        ValueError: a value is of another type (a bool is not a number, NaN not within any limits), or out of range.
    """
    hints = _hints(kind)
    return {name: _checked(name, value, hints[name]) for name, value in values.items() if name in hints}


def check_fields(instance: Any) -> None:
    """`check` a dataclass's own fields, frozen as they may be: for its `__post_init__`."""
    values = {f.name: _plain(getattr(instance, f.name)) for f in fields(instance)}
    for name, value in check(values, type(instance)).items():
        object.__setattr__(instance, name, value)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, and views of a dict as lists."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if not isinstance(value, list | tuple | KeysView | ValuesView):
        return value
    return (tuple if isinstance(value, tuple) else list)(map(_plain, value))


def made(kind: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass of values from a file, which may have others too.

    Raises:
        ValueError: one is missing, or what the class itself says against them.
    """
    own: tuple[Field[Any], ...] = fields(kind)  # type: ignore[arg-type]
    needed = [f.name for f in own if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{missing[0]} is missing: expected {', '.join(needed)}")
    return kind(**{f.name: values[f.name] for f in own if f.name in values})


def shown(value: Any) -> str:
    """A value for a message, however large it is."""
    return _short.repr(value)[:1000]


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _checked(name: str, value: Any, hint: Any) -> Any:
    try:
        found = msgspec.convert(value, hint)
    except (msgspec.ValidationError, UnicodeError) as error:
        said = [limit for limit in get_args(hint) if isinstance(limit, Meta)]
        expected = next((limit.description for limit in said if limit.description), _in_words(error))
        title = next((limit.title for limit in said if limit.title), name)
        raise UserError(f"{title} is {shown(value)}: expected {expected}") from None
    return tuple(found) if isinstance(found, list) else found


def _in_words(error: Exception) -> str:
    """Such as "`int` <= 100 - at `$[2]`"."""
    if isinstance(error, UnicodeError):
        return "another value, with text in UTF-8"
    return str(error).removeprefix("Expected ").replace("$", "…")
