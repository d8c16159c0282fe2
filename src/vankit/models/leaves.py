"""Convolutions as modules: called wherever that could make a difference, and elsewhere left to faster operators."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from vankit.ops.convolution import convolve, would_train_in_bfloat16

__all__ = ["has_hooks", "is_depthwise", "is_plain", "is_pointwise", "run"]

# one node to torch.fx: inside, sizes decide which taps are computed
torch.fx.wrap("convolve")


def has_hooks(module: nn.Module) -> bool:
    """Whether calling this very module does more than its class says: hooks (old weight norms and pruning are some) or
    a `forward` put on the instance, as accelerate does."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_plain(conv: Any) -> bool:
    """Whether `convolve` computes all that calling this module would do.

    Not so with hooks, its own or global ones, with a parametrisation or a wrapper such as LoRA (which change the type),
    or if its geometry is not that of a convolution, depth-wise or dense, that keeps a map's size.
    """
    return (
        type(conv) in (nn.Conv2d, nn.Conv1d, nn.Conv3d)
        and not has_hooks(conv)
        and not _has_any_global_hook()
        and _keeps_size(conv)
    )


def is_depthwise(conv: Any) -> bool:
    """Whether the module is plain, with a kernel per channel."""
    return is_plain(conv) and conv.groups == conv.in_channels


def is_pointwise(conv: Any) -> bool:
    """Whether the module is a plain 1x1 convolution of all channels."""
    return is_plain(conv) and conv.groups == 1 and max(conv.kernel_size) == 1


def run(conv: Any, x: Tensor) -> Tensor:
    """conv(x), by `convolve` where that is all there is to it: (B, C, …) → (B, C, …)."""
    if is_plain(conv):
        return convolve(x, conv.weight, conv.bias, conv.dilation[0], conv.groups < conv.in_channels)
    if _is_dilated(conv) and not isinstance(x, torch.fx.Proxy) and would_train_in_bfloat16(x):
        return _in_float32(conv, x)
    return conv(x)


def _keeps_size(conv: Any) -> bool:
    """Whether the geometry is that of `convolve`; asked in every call, so written to take less than a microsecond."""
    dilation, groups, padding, axes = conv.dilation[0], conv.groups, conv.padding, len(conv.kernel_size)
    if conv.padding_mode not in ("zeros", "constant"):
        return False
    if groups != 1 and not groups == conv.in_channels == conv.out_channels:
        return False
    if conv.stride.count(1) < axes or conv.dilation.count(dilation) < axes:
        return False
    if isinstance(padding, str):
        return padding == "same"
    return all(2 * padding[i] == dilation * (length - 1) for i, length in enumerate(conv.kernel_size))


def _is_dilated(conv: nn.Module) -> bool:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return any(isinstance(part, kinds) and max(part.dilation) > 1 for part in conv.modules())


def _in_float32(conv: nn.Module, x: Tensor) -> Tensor:
    """conv(x) around PyTorch's wrong gradients, as `convolve` computes it; in the dtype that conv(x) has."""
    result_type = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    wide = {name: parameter.float() for name, parameter in conv.named_parameters()}
    with torch.autocast("cpu", enabled=False):
        return torch.func.functional_call(conv, wide, (x.float(),)).to(result_type)
