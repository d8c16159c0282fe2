"""Every setting of every recipe as an option."""

import dataclasses
import inspect
from typing import Annotated, Any

from cyclopts import Parameter

from vankit.training import recipes

_CONFIGS = (recipes.Config, recipes.TrainConfig, recipes.DenseConfig)

# None unless given, so that the recipe's value stays
Settings = dataclasses.make_dataclass(
    "Settings",
    [
        (name, Annotated[field.type | None, Parameter(consume_multiple=True)], dataclasses.field(default=None))  # type: ignore[operator]
        for name, field in {f.name: f for config in _CONFIGS for f in dataclasses.fields(config)}.items()
    ],
    namespace={"__module__": __name__},  # cyclopts does not look into classes of unknown modules
)
Settings.__doc__ = "Settings.\n\nAttributes:\n" + "".join(
    inspect.cleandoc(config.__doc__ or "").partition("Attributes:\n")[2] + "\n" for config in _CONFIGS
)


def given(settings: Any) -> dict[str, Any]:
    """The settings that were named on the command line, by name.

    Args:
        settings: a `Settings`, or None.
    """
    fields = dataclasses.fields(settings) if settings is not None else ()
    return {field.name: value for field in fields if (value := getattr(settings, field.name)) is not None}
