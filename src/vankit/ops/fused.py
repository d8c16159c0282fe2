"""The depth-wise half of large kernel attention as one operator, `vankit::depthwise_pair`.

On CUDA it runs our Triton kernels; elsewhere, and in exported graphs, two plain convolutions.
"""

from typing import Any

import torch
from torch import Tensor

from vankit.ops import launch, plain, reference
from vankit.ops.backend import autocast, empty_channels_last, launches, like, nhwc, takes_kernels


def depthwise_pair(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dw_d_bias: Tensor | None,
    dilation: int = 3,
    stride_dilation: int = 1,
    backend: str = "auto",
) -> Tensor:
    """`dw_d(dw(x))`: a depth-wise convolution and a dilated depth-wise convolution that keep the spatial size.

    Under autocast `x` and the kernels are rounded to its dtype, as convolutions would.

    Args:
        x: input, (B, C, H, W).
        dw_weight: depth-wise kernel, (C, 1, k, k).
        dw_bias: (C,) or None.
        dw_d_weight: dilated depth-wise kernel, (C, 1, k, k).
        dw_d_bias: (C,) or None.
        dilation, stride_dilation: see `vankit.ops.large_kernel_attention`.
        backend: 'torch', 'triton' or 'auto', see `vankit.ops.backend.takes_kernels`.

    Returns:
        (B, C, H, W), channels_last if `x` is.

    Raises:
        ValueError: no such backend, or 'triton' cannot run here.
    """
    if takes_kernels(x, backend):
        return like(x, _pair(autocast(x), dw_weight, dw_bias, dw_d_weight, dw_d_bias, dilation, stride_dilation))
    y = reference.convolve(x, dw_weight, dw_bias, stride_dilation)
    return reference.convolve(y, dw_d_weight, dw_d_bias, dilation * stride_dilation)


def _plain(
    x: Tensor, dw: Tensor, dw_bias: Tensor | None, dw_d: Tensor, dw_d_bias: Tensor | None, inner: int, outer: int
) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        x, dw, dw_bias, dw_d, dw_d_bias = plain.wide(x, dw, dw_bias, dw_d, dw_d_bias)
        return plain.convolve(plain.convolve(x, dw, dw_bias, inner), dw_d, dw_d_bias, outer)


@torch.library.custom_op(
    "vankit::depthwise_pair",
    mutates_args=(),
    schema="(Tensor x, Tensor dw_weight, Tensor? dw_bias, Tensor dw_d_weight, Tensor? dw_d_bias, int dilation,"
    " int stride_dilation) -> Tensor",
)
def _pair(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dw_d_bias: Tensor | None,
    dilation: int,
    stride_dilation: int,
) -> Tensor:
    weights, dilations = (dw_weight, dw_bias, dw_d_weight, dw_d_bias), (stride_dilation, dilation * stride_dilation)
    if launches(x):
        with torch.cuda.device_of(x):
            return launch.pair_forward(nhwc(x, x.dtype), *weights, *dilations).permute(0, 3, 1, 2)
    out = empty_channels_last(x)
    return out.copy_(_plain(x, *weights, *dilations)) if x.numel() else out


@_pair.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return empty_channels_last(x)


@torch.library.custom_op(
    "vankit::depthwise_pair_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor x, Tensor dw_weight, Tensor? dw_bias, Tensor dw_d_weight, int dilation,"
    " int stride_dilation, bool need_x, bool need_weights) -> Tensor[]",
)
def _pair_backward(
    grad: Tensor,
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dilation: int,
    stride_dilation: int,
    need_x: bool,
    need_weights: bool,
) -> list[Tensor]:
    """Gradients of x if needed, and of dw_weight, dw_bias, dw_d_weight, dw_d_bias (present or not) if needed."""
    inner, outer = stride_dilation, dilation * stride_dilation
    if launches(x):
        with torch.cuda.device_of(x):
            maps = nhwc(grad, x.dtype), nhwc(x, x.dtype)
            found = launch.pair_backward(*maps, dw_weight, dw_bias, dw_d_weight, inner, outer, need_x, need_weights)
        return [found[0].permute(0, 3, 1, 2), *found[1:]] if need_x else found
    results = _empty(x, dw_weight, dw_d_weight, need_x, need_weights)
    if not x.numel():
        return [result.zero_() for result in results]
    with torch.autocast(x.device.type, enabled=False):
        x, dw, b, dw_d = plain.wide(x, dw_weight, dw_bias, dw_d_weight)
        second = plain.gradients(grad.to(x.dtype), plain.convolve(x, dw, b, inner), dw_d, outer)
        first = plain.gradients(second[0], x, dw, inner)
    for result, value in zip(results, [*first[0 if need_x else 1 :], *second[1:]], strict=False):
        result.copy_(value)
    return results


@_pair_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dilation: int,
    stride_dilation: int,
    need_x: bool,
    need_weights: bool,
) -> list[Tensor]:
    return _empty(x, dw_weight, dw_d_weight, need_x, need_weights)


def _empty(x: Tensor, dw: Tensor, dw_d: Tensor, need_x: bool, need_weights: bool) -> list[Tensor]:
    results = [empty_channels_last(x)] if need_x else []
    for weight in (dw, dw_d) if need_weights else ():
        results += [torch.empty_like(weight), weight.new_empty(len(weight))]
    return results


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, dw_weight, dw_bias, dw_d_weight, _, ctx.dilation, ctx.stride_dilation = inputs
    ctx.save_for_backward(x, dw_weight, dw_bias, dw_d_weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    need_x, *need = ctx.needs_input_grad[:5]
    options = (ctx.dilation, ctx.stride_dilation, need_x, any(need))
    found = _pair_backward(grad, *ctx.saved_tensors, *options)
    grad_x = found[0] if need_x else None
    rest = found[1 if need_x else 0 :] or [None] * 4
    return grad_x, *(g if needed else None for g, needed in zip(rest, need, strict=True)), None, None


_pair.register_autograd(_backward, setup_context=_keep)


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *tensors, ctx.dilation, ctx.stride_dilation, ctx.need_x, ctx.need_weights = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    def formula(grad: Tensor, x: Tensor, dw: Tensor, b: Tensor | None, dw_d: Tensor) -> tuple[Tensor, ...]:
        b_d = torch.zeros_like(dw_d[:, 0, 0, 0], requires_grad=True)
        b = torch.zeros_like(b_d, requires_grad=True) if b is None else b
        out = _plain(x, dw, b, dw_d, b_d, ctx.stride_dilation, ctx.dilation * ctx.stride_dilation)
        leaves = ([x] if ctx.need_x else []) + ([dw, b, dw_d, b_d] if ctx.need_weights else [])
        return torch.autograd.grad(out, leaves, grad.to(out.dtype), create_graph=True)

    return *plain.differentiated(formula, ctx.saved_tensors, grads), None, None, None, None


_pair_backward.register_autograd(_double_backward, setup_context=_keep_backward)
