"""Large kernel attention: the definition that every faster implementation is tested against."""

import torch
from torch import Tensor

from vankit.ops.backend import refuse_kernels, takes_kernels
from vankit.ops.convolution import convolve
from vankit.ops.kernels.pair import fused_pair


def large_kernel_attention(
    x: Tensor,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor | None,
    dw_d_bias: Tensor | None,
    pw_weight: Tensor | None,
    pw_bias: Tensor | None,
    dw_dilation: int = 1,
    dw_d_dilation: int = 3,
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
        dw_dilation: of the first convolution, in pixels; above 1 where a stage's stride was traded for dilation
            (`output_stride`).
        dw_d_dilation: d, of the second.
        gate: multiply, add (x + attention) or none (the attention alone).
        sigmoid: apply a sigmoid to the attention before the gate.
        backend: of the two depth-wise convolutions: torch, triton (our kernels, on CUDA) or auto, see
            `vankit.ops.backend.takes_kernels`.

    Returns:
        (B, C, H, W), dtype of `x`; under autocast without a gate, autocast's.

    Raises:
        ValueError: no such backend, or triton cannot run here.
    """
    attn = x
    if dw_weight is not None and dw_d_weight is not None:
        attn = depthwise_pair(x, dw_weight, dw_bias, dw_d_weight, dw_d_bias, dw_dilation, dw_d_dilation, backend)
    else:
        if not torch.jit.is_scripting():
            refuse_kernels(backend)
        if dw_weight is not None:
            attn = convolve(attn, dw_weight, dw_bias, dw_dilation)
        if dw_d_weight is not None:
            attn = convolve(attn, dw_d_weight, dw_d_bias, dw_d_dilation)
    if pw_weight is not None:
        attn = convolve(attn, pw_weight, pw_bias, dense=True)
    return gated(x, attn, gate, sigmoid)


def depthwise_pair(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dw_d_bias: Tensor | None,
    dw_dilation: int = 1,
    dw_d_dilation: int = 3,
    backend: str = "auto",
) -> Tensor:
    """`dw_d(dw(x))`, the depth-wise half of `large_kernel_attention`, which has the arguments."""
    if not torch.jit.is_scripting() and takes_kernels(x, backend):
        return fused_pair(x, dw_weight, dw_bias, dw_d_weight, dw_d_bias, dw_dilation, dw_d_dilation)
    return convolve(convolve(x, dw_weight, dw_bias, dw_dilation), dw_d_weight, dw_d_bias, dw_d_dilation)


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
