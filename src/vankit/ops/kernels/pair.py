"""The depth-wise half of large kernel attention as one operator, `vankit::depthwise_pair`: dw_d(dw(x))."""

from torch import Tensor

from vankit.ops.convolution import convolve
from vankit.ops.kernels import launch
from vankit.ops.kernels.operator import convolution_gradients, fused


def _formula(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dw_d_bias: Tensor | None,
    dw_dilation: int,
    dw_d_dilation: int,
) -> Tensor:
    return convolve(convolve(x, dw_weight, dw_bias, dw_dilation), dw_d_weight, dw_d_bias, dw_d_dilation)


def _gradients(
    grad: Tensor,
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dw_d_bias: Tensor | None,
    dw_dilation: int,
    dw_d_dilation: int,
) -> list[Tensor]:
    middle = convolve(x, dw_weight, dw_bias, dw_dilation)
    grad_middle, *of_dw_d = convolution_gradients(grad, middle, dw_d_weight, dw_d_dilation)
    return [*convolution_gradients(grad_middle, x, dw_weight, dw_dilation), *of_dw_d]


fused_pair = fused(
    "depthwise_pair",
    "Tensor dw_weight, Tensor? dw_bias, Tensor dw_d_weight, Tensor? dw_d_bias",
    "int dw_dilation, int dw_d_dilation",
    _formula,
    _gradients,
    launch.pair_forward,
    launch.pair_backward,
)
