"""Operators of the Visual Attention Network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.ops import fused, gelu, reference
from vankit.ops.backend import refuse_kernels

__all__ = ["depthwise_gelu", "large_kernel_attention"]


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
    backend: str = "auto",
) -> Tensor:
    """Large kernel attention (VAN, arXiv 2202.09741, section 3.1, equations 1 and 2).

    `x * conv1x1(dw_d(dw(x)))`: a K x K convolution decomposed into a (2d-1) x (2d-1) depth-wise convolution, a
    ceil(K/d) x ceil(K/d) depth-wise convolution with dilation d, and a 1x1 convolution. K = 21 and d = 3 in VAN. A
    kernel that is None leaves its convolution out, as the paper's ablation does (table 3).

    Args:
        x: input, (B, C, H, W), any float dtype and memory format; or (B, C, L) or (B, C, D, H, W), with kernels of as
            many axes.
        dw_weight: depth-wise kernel, (C, 1, k, k), or None.
        dw_bias: (C,) or None.
        dw_d_weight: dilated depth-wise kernel, (C, 1, k, k), or None. The output has the size of `x` for even k too.
        dw_d_bias: (C,) or None.
        pw_weight: 1x1 kernel, (C, C, 1, 1), or None.
        pw_bias: (C,) or None.
        dilation: d, the dilation of the second convolution.
        stride_dilation: factor on the dilation of both depth-wise convolutions, above 1 where a stage's stride was
            traded for dilation (`output_stride`).
        gate: multiply, add (x + attention) or none (the attention alone).
        sigmoid: put the attention through a sigmoid before the gate.
        backend: of the two depth-wise convolutions: torch, triton (our kernels, on CUDA) or auto, see
            `vankit.ops.backend.takes_kernels`.

    Returns:
        (B, C, H, W), dtype of `x`; under autocast without a gate, autocast's.

    Raises:
        ValueError: no such backend, or triton cannot run here.
    """
    if not torch.jit.is_scripting():
        if dw_weight is not None and dw_d_weight is not None and x.dim() == dw_weight.dim() == 4:
            pair = dw_weight, dw_bias, dw_d_weight, dw_d_bias
            attn = fused.depthwise_pair(x, *pair, dilation, stride_dilation, backend)
            attn = attn if pw_weight is None else reference.convolve(attn, pw_weight, pw_bias, dense=True)
            return reference.gated(x, attn, gate, sigmoid)
        refuse_kernels(backend)
    return reference.large_kernel_attention(
        x, dw_weight, dw_bias, dw_d_weight, dw_d_bias, pw_weight, pw_bias, dilation, stride_dilation, gate, sigmoid
    )


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1, backend: str = "auto") -> Tensor:
    """See `vankit.ops.gelu.depthwise_gelu`."""
    if not torch.jit.is_scripting():
        return gelu.depthwise_gelu(x, weight, bias, dilation, backend)
    return F.gelu(reference.convolve(x, weight, bias, dilation))
