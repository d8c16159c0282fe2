"""timm's optimisers by name."""

import difflib
import importlib.util
from collections.abc import Iterable
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_class, get_optimizer_info, list_optimizers
from torch import nn
from torch.optim import Optimizer

from vankit.errors import MissingPackageError, UserError


def check_optimizer(name: str) -> None:
    """Refuse an optimiser that cannot train here.

    Args:
        name: one of `timm.optim.list_optimizers()`.

    Raises:
        ValueError: timm has none of this name, or it needs second derivatives or a GPU.
        ImportError: its library is missing.
    """
    known = list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, 3) or ["adamw", "sgd", "lamb"]
        raise UserError(
            f"optimizer is {name!r}, which timm does not have: expected a name such as {', '.join(near)} "
            "(all: timm.optim.list_optimizers())"
        )
    if get_optimizer_info(name).second_order:
        raise UserError(f"optimizer {name} needs second derivatives, which training does not compute: use adamw")
    if name.startswith("kron") and importlib.util.find_spec("opt_einsum") is None:  # a step takes minutes without it
        raise MissingPackageError(f"optimizer {name} needs opt_einsum: pip install opt_einsum")
    _check_gpu_library(name)


def _check_gpu_library(name: str) -> None:
    """Those of bitsandbytes and apex, which timm imports only now."""
    plain = name.removeprefix("bnb").removeprefix("fused").removesuffix("8bit")
    instead = plain if plain in list_optimizers() else "adamw"
    try:
        get_optimizer_class(name)
    except AssertionError:  # timm's way to ask for CUDA
        raise UserError(f"optimizer {name} needs a CUDA GPU, and there is none: use {instead}") from None
    except ImportError:
        package = str(get_optimizer_info(name).opt_class).partition(".")[0]
        where = "https://github.com/NVIDIA/apex" if package == "apex" else f"pip install {package}"
        raise MissingPackageError(f"optimizer {name} needs {package}: {where}, or use {instead}") from None


def build_optimizer(
    parameters: nn.Module | Iterable[dict[str, Any]], name: str, lr: float, **options: Any
) -> Optimizer:
    """An optimiser of timm.

    Args:
        parameters: a network, whose norms, biases and layer scales are not decayed; or groups of parameters, each with
            a weight decay of its own.
        name: see `check_optimizer`.
        lr: peak learning rate.
        options: `weight_decay` and `layer_decay` of a network.

    Raises:
        ValueError: the optimiser refuses a value.
    """
    try:
        return create_optimizer_v2(parameters, name, lr=lr, **options)
    except ValueError as error:
        raise UserError(f"optimizer {name} refuses its settings: {error}") from None
