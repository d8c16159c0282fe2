"""Large kernel attention in plain PyTorch: the definition every faster implementation is tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1, dense: bool = False) -> Tensor:
    """Convolution that keeps the spatial size, over one to three axes.

    Args:
        x: input, (B, C, L), (B, C, H, W) or (B, C, D, H, W).
        weight: (C, 1, k…), or where `dense` (C, C, k…), k of any size. Of the padding dilation·(k-1) the smaller half
            is at the map's start, as PyTorch's `padding="same"` has it.
        bias: (C,) or None.
        dilation: distance between kernel taps in pixels.
        dense: sum over the channels, rather than depth-wise.

    Returns:
        (B, C, …), of the size of `x`.
    """
    groups = 1 if dense else weight.shape[0]
    if torch.jit.is_tracing():  # where sizes cannot be compared
        return _traced(x, weight, bias, dilation, groups)
    if not torch.jit.is_scripting() and not dense and dilation > 1 and _would_train_in_bfloat16(x):
        result_type = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            wide_bias = None if bias is None else bias.float()
            return convolve(x.float(), weight.float(), wide_bias, dilation).to(result_type)
    before = [dilation * (k - 1) // 2 for k in weight.shape[2:]]
    if not torch.jit.is_scripting() and _sizes_are_known(x):
        weight, before = _reachable_taps(x, weight, before, dilation)
    uneven = False
    around: list[int] = []  # as F.pad takes it: the last axis first
    for i in range(len(before) - 1, -1, -1):
        after = dilation * (weight.shape[2 + i] - 1) - before[i]
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
def _traced(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Tensor:
    conv = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    return conv(x, weight, bias, padding="same", dilation=dilation, groups=groups)


@torch.jit.unused
def _would_train_in_bfloat16(x: Tensor) -> bool:
    """PyTorch 2.15's weight gradient of this convolution is wrong on CPUs in bfloat16 (NHWC, maps of 32 px and more:
    off by its own size, or NaN), and float32 takes no longer."""
    if x.device.type != "cpu" or not torch.is_grad_enabled():
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.dtype == torch.bfloat16


@torch.jit.unused
def _sizes_are_known(x: Tensor) -> bool:
    """Whether the taps may be chosen by the map's size: not where the graph made here must serve other sizes."""
    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():  # where symbols pass for int
        return all(type(size) is int for size in x.shape[1:])
    return not torch.compiler.is_compiling()


@torch.jit.unused
def _reachable_taps(x: Tensor, weight: Tensor, before: list[int], dilation: int) -> tuple[Tensor, list[int]]:
    """The kernel without the outer taps that meet nothing but padding on a map of this size, and the padding at the
    map's start that is left: exact, and far cheaper.

    On 4x4 maps a 7x7 kernel with dilation 3 has 9 taps that can touch the map, on 2x2 maps one. Left out where a size
    may be symbolic, since the choice depends on it.
    """
    before = list(before)
    for i, start in enumerate(before):
        reach = max(x.shape[i - len(before)] - 1, 0)
        first = max(-((reach - start) // dilation), 0)
        last = min((start + reach) // dilation, weight.shape[2 + i] - 1)
        if first <= last:  # else, of an even kernel, no tap touches a map this narrow
            weight = weight.narrow(2 + i, first, last - first + 1)
            before[i] = start - first * dilation
    return weight, before


def gated(x: Tensor, attn: Tensor, gate: str = "multiply", sigmoid: bool = False) -> Tensor:
    """What attention does to its input.

    Args:
        x: input, (B, C, …).
        attn: attention, of the same shape.
        gate: multiply (x · attn), add (x + attn) or none (attn alone).
        sigmoid: put the attention through a sigmoid first.
    """
    if sigmoid:
        attn = torch.sigmoid(attn)
    if gate == "multiply":
        return torch.mul(x, attn)
    return attn if gate == "none" else x + attn


def large_kernel_attention(
    x: Tensor,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor | None,
    dw_d_bias: Tensor | None,
    pw_weight: Tensor | None,
    pw_bias: Tensor | None,
    dilation: int = 3,
    stride_dilation: int = 1,
    gate: str = "multiply",
    sigmoid: bool = False,
) -> Tensor:
    """See `vankit.ops.large_kernel_attention`."""
    attn = x
    if dw_weight is not None:
        attn = convolve(attn, dw_weight, dw_bias, stride_dilation)
    if dw_d_weight is not None:
        attn = convolve(attn, dw_d_weight, dw_d_bias, dilation * stride_dilation)
    if pw_weight is not None:
        attn = convolve(attn, pw_weight, pw_bias, dense=True)
    return gated(x, attn, gate, sigmoid)
