"""The middle of VAN's MLP as one operator, `vankit::depthwise_gelu`: gelu of a depth-wise convolution.

The convolution's result is not stored for the backward pass, but computed again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.ops.convolution import convolve
from vankit.ops.kernels import launch
from vankit.ops.kernels.operator import convolution_gradients, fused


def _formula(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return F.gelu(convolve(x, weight, bias, dilation))


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> list[Tensor]:
    grad = torch.ops.aten.gelu_backward(grad, convolve(x, weight, bias, dilation))
    return convolution_gradients(grad, x, weight, dilation)


fused_gelu = fused(
    "depthwise_gelu",
    "Tensor weight, Tensor? bias",
    "int dilation",
    _formula,
    _gradients,
    launch.gelu_forward,
    launch.gelu_backward,
)
