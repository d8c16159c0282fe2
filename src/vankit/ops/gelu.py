"""The middle of VAN's MLP: GELU of a depth-wise convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.ops.backend import takes_kernels
from vankit.ops.convolution import convolve
from vankit.ops.kernels.gelu import fused_gelu


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1, backend: str = "auto") -> Tensor:
    """gelu(dw(x)), with GELU by the error function and a depth-wise convolution that keeps the spatial size.

    Args:
        x: input, (B, C, H, W).
        weight: depth-wise kernel, (C, 1, k, k).
        bias: (C,) or None.
        dilation: pixels between taps.
        backend: torch, triton or auto, see `vankit.ops.backend.takes_kernels`.

    Returns:
        (B, C, H, W), dtype of `x`, or autocast's.

    Raises:
        ValueError: no such backend, or triton cannot run here.
    """
    if not torch.jit.is_scripting() and takes_kernels(x, backend):
        return fused_gelu(x, weight, bias, dilation)
    return F.gelu(convolve(x, weight, bias, dilation))
