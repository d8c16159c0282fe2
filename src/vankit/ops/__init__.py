"""Operators of the Visual Attention Network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.ops import fused, gelu, reference

__all__ = ["depthwise_gelu", "large_kernel_attention"]


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
    backend: str = "auto",
) -> Tensor:
    """Large kernel attention (VAN, arXiv 2202.09741, section 3.1, equations 1 and 2).

    `x * conv1x1(dw_d(dw(x)))`: a K x K convolution decomposed into a (2d-1) x (2d-1) depth-wise convolution, a
    ceil(K/d) x ceil(K/d) depth-wise convolution with dilation d, and a 1x1 convolution. K = 21 and d = 3 in VAN.

    Args:
        x: input, (B, C, H, W), any float dtype and memory format.
        dw_weight: depth-wise kernel, (C, 1, k, k), k odd.
        dw_bias: (C,) or None.
        dw_d_weight: dilated depth-wise kernel, (C, 1, k, k), k odd.
        dw_d_bias: (C,) or None.
        pw_weight: 1x1 kernel, (C, C, 1, 1).
        pw_bias: (C,) or None.
        dilation: d, the dilation of the second convolution.
        stride_dilation: factor on the dilation of both depth-wise convolutions, above 1 where a stage's stride was
            traded for dilation (`output_stride`).
        backend: 'torch' for PyTorch's convolutions, 'triton' for our kernels on CUDA, 'auto' for whichever runs.

    Returns:
        (B, C, H, W), dtype of `x`.

    Raises:
        ValueError: no such backend, or 'triton' cannot run here.
    """
    if not torch.jit.is_scripting():
        attn = fused.depthwise_pair(x, dw_weight, dw_bias, dw_d_weight, dw_d_bias, dilation, stride_dilation, backend)
        return torch.mul(x, F.conv2d(attn, pw_weight, pw_bias))
    return reference.large_kernel_attention(
        x, dw_weight, dw_bias, dw_d_weight, dw_d_bias, pw_weight, pw_bias, dilation, stride_dilation
    )


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1, backend: str = "auto") -> Tensor:
    """See `vankit.ops.gelu.depthwise_gelu`."""
    if not torch.jit.is_scripting():
        return gelu.depthwise_gelu(x, weight, bias, dilation, backend)
    return F.gelu(reference.depthwise(x, weight, bias, dilation))
