"""Whether our Triton kernels or PyTorch's convolutions run."""

import importlib.util
import os
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vankit.errors import UserError

BACKENDS = ("auto", "torch", "triton")
# What `auto` is; if that is auto itself, PyTorch's convolutions until the kernels are measured, see docs/kernels.md
default = os.environ.get("VANKIT_BACKEND") or "auto"
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton runs kernels on CPU tensors, for tests
_LARGEST_IMAGE = 2**31 - 1  # elements, which the kernels count in int32; a batch may have more


@torch.jit.unused
def takes_kernels(x: Tensor, backend: str) -> bool:
    """Whether the fused operator is to run, rather than plain convolutions.

    Args:
        x: input of the operator; its sizes are not asked for, since they may be symbolic.
        backend: 'torch' for convolutions, 'triton' for the kernels, 'auto' for `default`, and convolutions wherever the
            kernels do not run. With all of them, what is exported, traced or transformed by torch.func is convolutions.

    Raises:
        ValueError: no such backend, or 'triton' cannot run here.
    """
    for name, value in (("backend", backend), ("the environment variable VANKIT_BACKEND", default)):
        if value not in BACKENDS:
            raise UserError(f"{name} is {value!r}: expected one of {', '.join(BACKENDS)}")
    if (default if backend == "auto" else backend) != "triton":
        return False
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or _transformed():
        return False
    obstacle = _obstacle(x)
    if backend == "triton" and obstacle is not None:
        raise UserError(f"backend 'triton' cannot run here: {obstacle}; expected backend='auto' or 'torch'")
    return obstacle is None


@torch.jit.unused
def refuse_kernels(backend: str) -> None:
    """For an attention that lacks one of its depth-wise convolutions, for which there are no kernels.

    Raises:
        ValueError: they are asked for, or there is no such backend.
    """
    if backend not in ("auto", "torch"):
        raise UserError(f"backend is {backend!r}: expected auto or torch where a depth-wise convolution is left out")


def _transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which operators with a formula do not support."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _obstacle(x: Tensor) -> str | None:
    if x.dim() != 4:
        return f"x has {x.dim()} axes, not 4"
    if x.dtype not in _DTYPES:
        return f"x is {x.dtype}, not float32, float16 or bfloat16"
    if not x.is_cuda:
        return None if _INTERPRETED else f"x is on {x.device.type}, not on a CUDA device"
    if torch.version.hip is not None:
        return "PyTorch is built for ROCm"
    if not _HAS_TRITON:
        return "triton is not installed"
    if not torch.compiler.is_compiling() and not _is_recent(x.device):  # compiled, the operator itself asks
        return "the GPU is older than compute capability 8.0"
    return None


@lru_cache(maxsize=64)
def _is_recent(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def launches(x: Tensor) -> bool:
    """Whether the operator launches kernels for `x`: asked inside it, where sizes are numbers."""
    runs = _is_recent(x.device) if x.is_cuda else _INTERPRETED
    return runs and 0 < x[:1].numel() <= _LARGEST_IMAGE


def autocast(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast would give to a convolution's input."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
