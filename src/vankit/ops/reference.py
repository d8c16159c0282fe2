"""Large kernel attention in plain PyTorch: the definition every faster implementation is tested against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """Depth-wise convolution that keeps the spatial size.

    Args:
        x: input, (B, C, H, W).
        weight: (C, 1, k, k), k odd.
        bias: (C,) or None.
        dilation: distance between kernel taps in pixels.

    Returns:
        (B, C, H, W).
    """
    if not torch.jit.is_scripting() and dilation > 1 and _would_train_in_bfloat16(x):
        result_type = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            wide_bias = None if bias is None else bias.float()
            return depthwise(x.float(), weight.float(), wide_bias, dilation).to(result_type)
    if not torch.jit.is_scripting() and _sizes_are_known(x):
        weight = _reachable_taps(weight, x.shape[-2], x.shape[-1], dilation)
    padding = [dilation * (weight.shape[-2] // 2), dilation * (weight.shape[-1] // 2)]
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])


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
        return type(x.shape[-2]) is int and type(x.shape[-1]) is int
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling())


def _reachable_taps(weight: Tensor, height: int, width: int, dilation: int) -> Tensor:
    """The kernel without the outer taps that meet nothing but padding on a map of this size: exact, and far cheaper.

    On 4x4 maps a 7x7 kernel with dilation 3 has 9 taps that can touch the map, on 2x2 maps one. Left out where a size
    may be symbolic, since the choice depends on it.
    """
    for axis, size in ((-2, height), (-1, width)):
        k = weight.shape[axis]
        reach = min(k // 2, max(size - 1, 0) // dilation)
        weight = weight.narrow(axis, k // 2 - reach, 2 * reach + 1)
    return weight


def large_kernel_attention(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dw_d_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor | None,
    dilation: int = 3,
    stride_dilation: int = 1,
) -> Tensor:
    """See `vankit.ops.large_kernel_attention`."""
    attn = depthwise(x, dw_weight, dw_bias, stride_dilation)
    attn = depthwise(attn, dw_d_weight, dw_d_bias, dilation * stride_dilation)
    attn = F.conv2d(attn, pw_weight, pw_bias)
    return torch.mul(x, attn)
