"""Values from files: of the type and within the limits of a class, or said in one line."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pytest
from msgspec import Meta

from vankit.data.preprocessing import Preprocessing
from vankit.errors import UserError
from vankit.models.description import Description
from vankit.schema import Name, check, check_fields, made, shown


@dataclass(frozen=True)
class Settings:
    side: Annotated[int, Meta(ge=1, le=100, title="size", description="1 to 100 pixels")]
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    names: Sequence[Name] = ()
    flag: bool = False
    others: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


def test_values_become_what_the_class_says() -> None:
    found = made(Settings, {"side": 7, "names": ["a", "b"], "others": {"x": [1]}, "unknown": object()})
    assert found == Settings(7, 0.5, ("a", "b"), False, {"x": [1]})
    assert check({"share": 0.25, "names": ("a",), "more": 5}, Settings) == {"share": 0.25, "names": ("a",)}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("side", 0, "size is 0: expected 1 to 100 pixels"), ("side", 10**30, "expected 1 to 100 pixels"),
        ("side", True, "size is True: expected 1 to 100 pixels"), ("side", 7.0, "is 7.0"), ("side", "7", "is '7'"),
        ("side", None, "size is None"), ("share", math.nan, "share is nan: expected"), ("share", math.inf, "is inf"),
        ("share", 1, "share is 1: expected `float` < 1.0"), ("share", False, "share is False"),
        ("names", "ab", "names is 'ab'"), ("names", [1], r"names is \[1\]: expected `str`, got `int`"),
        ("names", ["x" * 2000], "names is "), ("names", {"a": 1}, "names is "),
        ("names", "\ud800", r"names is '\\ud800': expected another value, with text in UTF-8"),
        ("flag", 1, "flag is 1"), ("others", [1], "others is "), ("others", {1: 2}, "others is "),
        ("side", object(), "size is <object"),
    ],
    ids=lambda each: str(each)[:20],
)  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(name: str, value: Any, reason: str) -> None:
    for call in (lambda: made(Settings, {"side": 1, name: value}), lambda: Settings(**{"side": 1, name: value})):
        with pytest.raises(UserError, match=reason) as error:
            call()
        assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="side is missing: expected side"):
        made(Settings, {"share": 0.5})


def test_large_values_are_shown_in_few_characters() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**7, list(range(10**6)), {str(i): i for i in range(10**5)}, deep, b"x" * 10**6):
        assert len(shown(value)) < 200


def test_numbers_and_arrays_of_numpy_and_views_of_dicts() -> None:
    found = Preprocessing((3, 8, 8), np.full(3, 0.5), (np.float64(0.5),) * 3, np.float64(0.9), "bicubic")
    assert found == Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, 0.9, "bicubic")
    description = Description(classes={"a": 1, "b": 2}.keys(), thresholds=[np.float32(0.5), 0.25])  # type: ignore[arg-type]
    assert description.classes == ("a", "b") and description.thresholds == (0.5, 0.25)


def test_nested_values_are_shown_in_brief() -> None:
    value: object = "x" * 1000
    for _ in range(6):
        value = [value] * 9
    assert len(shown(value)) <= 1000
