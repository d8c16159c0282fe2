"""What fused operators share: their registration with PyTorch, forward, backward and double backward.

On CUDA they run our Triton kernels; elsewhere, and in exported graphs, plain convolutions. On CPUs these compute in
float32 at least, since PyTorch's bfloat16 gradients are wrong there (docs/architecture.md).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.ops.backend import autocast, launches
from vankit.ops.convolution import same_padding


def fused(
    name: str,
    weights: str,
    dilations: str,
    formula: Callable[..., Tensor],
    gradients: Callable[..., list[Tensor]],
    launch_forward: Callable[..., Tensor],
    launch_backward: Callable[..., list[Tensor]],
) -> Callable[..., Tensor]:
    """Register an operator `vankit::name` and its derivatives; maps are (B, C, H, W), weights (C, 1, k, k).

    Args:
        name: of the operator.
        weights: its weights and biases in turn, as PyTorch's schemas have them: "Tensor weight, Tensor? bias".
        dilations: its dilations likewise: "int dilation".
        formula: (x, *weights, *dilations) → output, by PyTorch.
        gradients: (grad, x, *weights, *dilations) → those of x and of each weight and bias, present or not, by
            operators that autograd does not record.
        launch_forward: `formula` by kernels, on contiguous, non-empty (B, H, W, C).
        launch_backward: `gradients` likewise, with need_x and need_weights as further arguments, which leave out the
            first or the others.

    Returns:
        (x, *weights, *dilations) → output, channels_last if `x` is. Under autocast `x` and the kernels are rounded to
        its dtype, as convolutions would.
    """
    count = 1 + len(weights.split(","))  # tensors
    no_dilations = (None,) * len(dilations.split(","))

    def plain(x: Tensor, *rest: Any) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x, *tensors = _wide(x, *rest[: count - 1])
            return formula(x, *tensors, *rest[count - 1 :])

    @torch.library.custom_op(f"vankit::{name}", mutates_args=(), schema=f"(Tensor x, {weights}, {dilations}) -> Tensor")
    def forward(x: Tensor, *rest: Any) -> Tensor:
        if launches(x):
            with torch.cuda.device_of(x):
                return launch_forward(_nhwc(x, x.dtype), *rest).permute(0, 3, 1, 2)
        out = _empty_channels_last(x)
        return out.copy_(plain(x, *rest)) if x.numel() else out

    @torch.library.custom_op(
        f"vankit::{name}_backward",
        mutates_args=(),
        schema=f"(Tensor grad, Tensor x, {weights}, {dilations}, bool need_x, bool need_weights) -> Tensor[]",
    )
    def backward(grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
        """Gradients of x if needed, and of the weights and biases (present or not) if needed."""
        *args, need_x, need_weights = rest
        if launches(x):
            with torch.cuda.device_of(x):
                found = launch_backward(_nhwc(grad, x.dtype), _nhwc(x, x.dtype), *args, need_x, need_weights)
            return [found[0].permute(0, 3, 1, 2), *found[1:]] if need_x else found
        results = empty(grad, x, *rest)
        if not x.numel():
            return [result.zero_() for result in results]
        with torch.autocast(x.device.type, enabled=False):
            x, *tensors = _wide(x, *args[: count - 1])
            exact = gradients(grad.to(x.dtype), x, *tensors, *args[count - 1 :])
        for result, value in zip(results, exact[0 if need_x else 1 :], strict=False):
            result.copy_(value)
        return results

    def empty(grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
        *args, need_x, need_weights = rest
        results = [_empty_channels_last(x)] if need_x else []
        for weight in args[: count - 1 : 2] if need_weights else ():
            results += [torch.empty_like(weight), weight.new_empty(len(weight))]
        return results

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:count])
        ctx.dilations = inputs[count:]

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        need_x, *need = ctx.needs_input_grad[:count]
        found = backward(grad, *ctx.saved_tensors, *ctx.dilations, need_x, any(need))
        grad_x = found[0] if need_x else None
        others = found[1 if need_x else 0 :] or [None] * len(need)
        return grad_x, *(g if needed else None for g, needed in zip(others, need, strict=True)), *no_dilations

    def keep_again(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
        ctx.save_for_backward(*inputs[: count + 1])
        *ctx.dilations, ctx.need_x, ctx.need_weights = inputs[count + 1 :]

    def differentiate_again(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
        def first(grad: Tensor, x: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
            present: list[Any] = list(tensors)
            for i in range(1, len(present), 2):  # a bias that is not there has a gradient all the same
                if present[i] is None:
                    present[i] = torch.zeros_like(present[i - 1][:, 0, 0, 0], requires_grad=True)
            out = plain(x, *present, *ctx.dilations)
            leaves = ([x] if ctx.need_x else []) + (present if ctx.need_weights else [])
            return torch.autograd.grad(out, leaves, grad.to(out.dtype), create_graph=True)

        return *_differentiated(first, ctx.saved_tensors, grads), *no_dilations, None, None

    forward.register_fake(lambda x, *_: _empty_channels_last(x))
    forward.register_autograd(differentiate, setup_context=keep)
    backward.register_fake(empty)
    backward.register_autograd(differentiate_again, setup_context=keep_again)

    def call(x: Tensor, *rest: Any) -> Tensor:
        out = forward(autocast(x), *rest)
        return out if x.is_contiguous(memory_format=torch.channels_last) else out.contiguous()

    return call


def convolution_gradients(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> list[Tensor]:
    """Of x, weight and bias of a depth-wise `convolve` of (B, C, H, W), where autograd does not record."""
    (top, bottom), (left, right) = (same_padding(k, dilation) for k in weight.shape[-2:])
    padded, zeros, twice, groups = F.pad(x, (left, right, top, bottom)), [0, 0], [dilation, dilation], len(weight)
    found = torch.ops.aten.convolution_backward(
        grad, padded, weight, [groups], [1, 1], zeros, twice, False, zeros, groups, [True] * 3
    )
    return [found[0][..., top : top + x.shape[-2], left : left + x.shape[-1]], found[1], found[2]]


def _differentiated(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of `inputs`, given those of what `function` computes of them.

    Rare enough to go through PyTorch's convolutions.
    """
    tensors = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in inputs]
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        pairs = zip(function(*tensors), grads, strict=True)
        linked = [(out, g.to(out.dtype)) for out, g in pairs if out.requires_grad and g is not None]
        outs, directions = zip(*linked, strict=True)
        wanted = [t for t in tensors if t is not None]
        found = iter(torch.autograd.grad(outs, wanted, directions, allow_unused=True, create_graph=keep))
    return [None if t is None else next(found) for t in tensors]


def _wide(x: Tensor, *weights: Tensor | None) -> list[Any]:
    """`x` and the weights rounded to its dtype; on CPUs then widened to float32."""
    narrow = x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if narrow else x.dtype
    return [x.to(dtype), *(None if w is None else w.to(x.dtype).to(dtype) for w in weights)]


def _nhwc(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) as contiguous (B, H, W, C), a view where x is channels_last."""
    return x.to(dtype).permute(0, 2, 3, 1).contiguous()


def _empty_channels_last(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)
