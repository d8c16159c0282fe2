"""The middle of VAN's MLP as one operator, `vankit::depthwise_gelu`: gelu of a depth-wise convolution.

The convolution's result is not stored for the backward pass, but computed again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.ops import launch, plain, reference
from vankit.ops.backend import autocast, empty_channels_last, launches, like, nhwc, takes_kernels


def depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1, backend: str = "auto") -> Tensor:
    """gelu(dw(x)), with GELU by the error function and a depth-wise convolution that keeps the spatial size.

    Args:
        x: input, (B, C, H, W).
        weight: depth-wise kernel, (C, 1, k, k).
        bias: (C,) or None.
        dilation: pixels between taps.
        backend: 'torch', 'triton' or 'auto', see `vankit.ops.backend.takes_kernels`.

    Returns:
        (B, C, H, W), channels_last if `x` is.

    Raises:
        ValueError: no such backend, or 'triton' cannot run here.
    """
    if takes_kernels(x, backend):
        return like(x, _gelu(autocast(x), weight, bias, dilation))
    return F.gelu(reference.convolve(x, weight, bias, dilation))


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        x, weight, bias = plain.wide(x, weight, bias)
        return F.gelu(plain.convolve(x, weight, bias, dilation))


@torch.library.custom_op(
    "vankit::depthwise_gelu", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias, int dilation) -> Tensor"
)
def _gelu(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    if launches(x):
        with torch.cuda.device_of(x):
            return launch.gelu_forward(nhwc(x, x.dtype), weight, bias, dilation).permute(0, 3, 1, 2)
    out = empty_channels_last(x)
    return out.copy_(_plain(x, weight, bias, dilation)) if x.numel() else out


@_gelu.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return empty_channels_last(x)


@torch.library.custom_op(
    "vankit::depthwise_gelu_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor weight, Tensor? bias, int dilation, bool need_x, bool need_weights)"
    " -> Tensor[]",
)
def _gelu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    need_x: bool,
    need_weights: bool,
) -> list[Tensor]:
    """Gradients of x if needed, and of weight and bias (present or not) if needed."""
    if launches(x):
        with torch.cuda.device_of(x):
            maps = nhwc(grad, x.dtype), nhwc(x, x.dtype)
            found = launch.gelu_backward(*maps, weight, bias, dilation, need_x, need_weights)
        return [found[0].permute(0, 3, 1, 2), *found[1:]] if need_x else found
    results = _empty(x, weight, need_x, need_weights)
    if not x.numel():
        return [result.zero_() for result in results]
    with torch.autocast(x.device.type, enabled=False):
        x, w, b = plain.wide(x, weight, bias)
        middle = torch.ops.aten.gelu_backward(grad.to(x.dtype), plain.convolve(x, w, b, dilation))
        exact = plain.gradients(middle, x, w, dilation)
    for result, value in zip(results, exact[0 if need_x else 1 :], strict=False):
        result.copy_(value)
    return results


@_gelu_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    need_x: bool,
    need_weights: bool,
) -> list[Tensor]:
    return _empty(x, weight, need_x, need_weights)


def _empty(x: Tensor, weight: Tensor, need_x: bool, need_weights: bool) -> list[Tensor]:
    results = [empty_channels_last(x)] if need_x else []
    if need_weights:
        results += [torch.empty_like(weight), weight.new_empty(len(weight))]
    return results


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.dilation = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need_x, *need = ctx.needs_input_grad[:3]
    found = _gelu_backward(grad, *ctx.saved_tensors, ctx.dilation, need_x, any(need))
    grad_x = found[0] if need_x else None
    rest = found[1 if need_x else 0 :] or [None] * 2
    return grad_x, *(g if needed else None for g, needed in zip(rest, need, strict=True)), None


_gelu.register_autograd(_backward, setup_context=_keep)


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.dilation, ctx.need_x, ctx.need_weights = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    def formula(grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        ghost = torch.zeros_like(weight[:, 0, 0, 0], requires_grad=True) if bias is None else bias
        out = _plain(x, weight, ghost, ctx.dilation)
        leaves = ([x] if ctx.need_x else []) + ([weight, ghost] if ctx.need_weights else [])
        return torch.autograd.grad(out, leaves, grad.to(out.dtype), create_graph=True)

    return *plain.differentiated(formula, ctx.saved_tensors, grads), None, None, None


_gelu_backward.register_autograd(_double_backward, setup_context=_keep_backward)
