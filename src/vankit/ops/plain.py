"""Depth-wise convolutions and their gradients by PyTorch: what the fused operators compute where no kernel runs.

On CPUs in float32 at least, since PyTorch's bfloat16 gradients are wrong there (docs/architecture.md).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(x: Tensor, *weights: Tensor | None) -> list[Any]:
    """`x` and the weights rounded to its dtype; on CPUs then widened to float32."""
    narrow = x.device.type == "cpu" and x.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if narrow else x.dtype
    return [x.to(dtype), *(None if w is None else w.to(x.dtype).to(dtype) for w in weights)]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """(B, C, H, W) → (B, C, H, W) with a kernel (C, 1, k, l), padded as PyTorch's padding="same"."""
    return F.conv2d(_padded(x, weight, dilation), weight, bias, dilation=dilation, groups=len(weight))


def gradients(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> list[Tensor]:
    """Of x, weight and bias of `convolve`, where autograd does not record: inside an operator."""
    zeros, twice, groups = [0, 0], [dilation, dilation], len(weight)
    found = torch.ops.aten.convolution_backward(
        grad, _padded(x, weight, dilation), weight, [groups], [1, 1], zeros, twice, False, zeros, groups, [True] * 3
    )
    top, left = (dilation * (k - 1) // 2 for k in weight.shape[-2:])
    return [found[0][..., top : top + x.shape[-2], left : left + x.shape[-1]], found[1], found[2]]


def differentiated(
    formula: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradients of `inputs`, given those of what `formula` computes of them: an operator's double backward.

    Rare enough to go through PyTorch's convolutions.
    """
    tensors = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in inputs]
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        pairs = zip(formula(*tensors), grads, strict=True)
        linked = [(out, g.to(out.dtype)) for out, g in pairs if out.requires_grad and g is not None]
        outs, directions = zip(*linked, strict=True)
        wanted = [t for t in tensors if t is not None]
        found = iter(torch.autograd.grad(outs, wanted, directions, allow_unused=True, create_graph=keep))
    return [None if t is None else next(found) for t in tensors]


def _padded(x: Tensor, weight: Tensor, dilation: int) -> Tensor:
    rows, cols = (dilation * (k - 1) for k in weight.shape[-2:])
    return F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
