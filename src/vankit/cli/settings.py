"""The settings of a config as options of a command."""

import dataclasses
import re
from collections.abc import Collection
from functools import cache
from typing import Annotated, Any

from cyclopts import Group, Parameter

from vankit.cli.help import reflow
from vankit.cli.values import read_value
from vankit.training import recipes


def settings(headings: dict[str, type[recipes.Config]], without: Collection[str] = ()) -> Any:
    """A dataclass with every setting of some configs, each None unless given, so that the recipe's value stays.

    Args:
        headings: the configs by their headings on the help page; a setting stands under the first config that has it.
        without: names of settings to leave out.
    """
    fields: dict[str, Any] = {}
    for heading, config in headings.items():
        group, texts = Group.create_ordered(heading), _descriptions(config)
        for field in dataclasses.fields(config):
            if field.name not in fields and field.name not in without:
                negative = "no-" if _may_be_on(field.name) else ()
                text = texts.get(field.name)
                option = Parameter(
                    group=group, help=text, consume_multiple=1, negative_bool=negative, converter=read_value
                )
                fields[field.name] = Annotated[field.type | None, option]  # type: ignore[operator]
    return dataclasses.make_dataclass(
        "Settings",
        [(name, annotation, dataclasses.field(default=None)) for name, annotation in fields.items()],
        namespace={"__module__": __name__},  # cyclopts does not look into classes of unknown modules
    )


def _descriptions(config: type[recipes.Config]) -> dict[str, str]:
    """The settings' texts in the docstrings of a config and its bases; settings that they name become options."""
    names = {field.name for field in dataclasses.fields(config)}
    found = {}
    for base in reversed(config.__mro__):
        for name, text in re.findall(r"^ {4}(\w+): (.*)$", reflow(base.__doc__ or ""), re.M):
            found[name] = re.sub(r"`(\w+)`", lambda m: _option(m[1]) if m[1] in names else m[1], text)
    return found


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _may_be_on(name: str) -> bool:
    """Whether any recipe switches a setting on, so that there is something to switch off."""
    return any(getattr(config, name, None) is True for config in _configs())


@cache
def _configs() -> list[recipes.Config]:
    return [recipe("van_b0") for known in recipes.RECIPES.values() for recipe in known.values()]


def given(settings: Any) -> dict[str, Any]:
    """The settings that were named on the command line, by name.

    Args:
        settings: an instance of what `settings` made, or None.
    """
    fields = dataclasses.fields(settings) if settings is not None else ()
    return {field.name: value for field in fields if (value := getattr(settings, field.name)) is not None}
