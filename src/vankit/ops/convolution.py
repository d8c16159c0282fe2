"""Convolutions that keep a map's size, depth-wise or dense: their padding, and the taps that can meet the map."""

import warnings
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def same_padding(length: int, dilation: int) -> tuple[int, int]:
    """Pixels before and after a map that keep its size, the smaller half before, as PyTorch's `padding="same"` has it.

    Args:
        length: taps of the kernel along the axis.
        dilation: pixels between taps.
    """
    total = dilation * (length - 1)
    return total // 2, total - total // 2


class Taps(NamedTuple):
    """The taps of one kernel axis that can meet the map: `length` from `first`, `before` pixels of padding."""

    first: int
    length: int
    before: int


@lru_cache(maxsize=1024)
def reachable(length: int, dilation: int, size: int) -> Taps:
    """The taps that can meet a map of `size` pixels, and always those around the pixel itself.

    The others meet nothing but padding, so to leave them out is exact, and far cheaper: on 4x4 maps a 7x7 kernel with
    dilation 3 has 9 taps that can touch the map, on 2x2 maps one.
    """
    before, _ = same_padding(length, dilation)
    offsets = [dilation * i - before for i in range(length)]
    useful = [i for i, offset in enumerate(offsets) if abs(offset) < size]
    first = min([max(i for i in range(length) if offsets[i] <= 0), *useful])
    last = max([min(i for i in range(length) if offsets[i] >= 0), *useful])
    return Taps(first, last - first + 1, -offsets[first])


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1, dense: bool = False) -> Tensor:
    """Convolution that keeps the spatial size, over one to three axes.

    Args:
        x: input, (B, C, L), (B, C, H, W) or (B, C, D, H, W).
        weight: (C, 1, k…), or where `dense` (C, C, k…), k of any size; padded as `same_padding` says.
        bias: (C,) or None.
        dilation: distance between kernel taps in pixels.
        dense: sum over the channels, rather than depth-wise.

    Returns:
        (B, C, …), of the size of `x`.
    """
    groups = 1 if dense else weight.shape[0]
    if not torch.jit.is_scripting() and not dense and dilation > 1 and would_train_in_bfloat16(x):
        result_type = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            wide_bias = None if bias is None else bias.float()
            return convolve(x.float(), weight.float(), wide_bias, dilation).to(result_type)
    lengths = _traced_lengths(weight) if torch.jit.is_tracing() else weight.shape[2:]
    before = [same_padding(k, dilation)[0] for k in lengths]
    if not torch.jit.is_scripting() and _sizes_are_known(x):
        weight, before = _trimmed(x, weight, dilation)
        lengths = weight.shape[2:]
    uneven = False
    around: list[int] = []  # as F.pad takes it: the last axis first
    for i in range(len(before) - 1, -1, -1):
        after = dilation * (lengths[i] - 1) - before[i]
        around += [before[i], after]
        uneven = uneven or before[i] != after
    if uneven:
        x = F.pad(x, around)
        before = [0 for _ in before]
    if len(before) == 1:
        return F.conv1d(x, weight, bias, padding=before, dilation=dilation, groups=groups)
    if len(before) == 3:
        return F.conv3d(x, weight, bias, padding=before, dilation=dilation, groups=groups)
    return F.conv2d(x, weight, bias, padding=before, dilation=dilation, groups=groups)


@torch.jit.unused
def _traced_lengths(weight: Tensor) -> list[int]:
    """The kernel's size as numbers: a trace would record sums of sizes, and with `padding="same"` instead ONNX Runtime
    refuses dilations and fvcore counts nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of sizes that might change
        return [int(length) for length in weight.shape[2:]]


@torch.jit.unused
def would_train_in_bfloat16(x: Tensor) -> bool:
    """PyTorch 2.15's weight gradient of this convolution is wrong on CPUs in bfloat16 (NHWC, maps of 32 px and more:
    off by its own size, or NaN), and float32 takes no longer."""
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.jit.is_tracing():
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


@torch.jit.unused
def _sizes_are_known(x: Tensor) -> bool:
    """Whether the taps may be chosen by the map's size: not where the graph made here must serve other sizes."""
    if torch.jit.is_tracing():
        return False
    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():  # where symbols pass for int
        return all(type(size) is int for size in x.shape[1:])
    return not torch.compiler.is_compiling()


@torch.jit.unused
def _trimmed(x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, list[int]]:
    """The kernel without the taps that cannot meet this map, and the padding before the map that is left."""
    before = []
    for axis in range(2, weight.ndim):
        taps = reachable(weight.shape[axis], dilation, x.shape[axis - weight.ndim])
        if taps.length < weight.shape[axis]:
            weight = weight.narrow(axis, taps.first, taps.length)
        before.append(taps.before)
    return weight, before
