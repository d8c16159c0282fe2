"""Convolutions and inputs that operators are compared with."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def shifted_sum(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Depth-wise convolution by its definition: every tap times the map shifted by it, zeros outside."""
    k, (height, width) = weight.shape[-1], x.shape[-2:]
    r = dilation * (k // 2)
    padded = F.pad(x, (r, r, r, r))
    out = torch.zeros_like(x) if bias is None else bias[:, None, None].expand_as(x)
    for i, j in itertools.product(range(k), range(k)):
        top, left = i * dilation, j * dilation
        out = out + weight[:, 0, i, j, None, None] * padded[..., top : top + height, left : left + width]
    return out


def untrimmed(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return F.conv2d(x, weight, bias, 1, dilation * (weight.shape[-1] // 2), dilation, x.shape[1])


def arguments(
    height: int, width: int, k: int = 5, k_d: int = 7, dim: int = 3, bias: bool = True
) -> list[Tensor | None]:
    """x and the six weights in float64, requiring gradients."""
    generator = torch.Generator().manual_seed(100 * height + width)
    shapes = [(2, dim, height, width), (dim, 1, k, k), (dim,), (dim, 1, k_d, k_d), (dim,), (dim, dim, 1, 1), (dim,)]
    return [
        None if len(shape) == 1 and not bias else torch.randn(shape, generator=generator).double().requires_grad_()
        for shape in shapes
    ]


def output_and_gradients(function, arguments, *options) -> list[Tensor]:
    out = function(*arguments, *options)
    direction = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, [a for a in arguments if a is not None], direction)]


def integers(*shape: int) -> Tensor:
    """Small whole numbers, on which any order of summation is exact."""
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(0)).double()


class ConvWeights(TorchFunctionMode):
    """Records the kernel sizes that conv2d is called with."""

    def __init__(self):
        self.sizes = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            self.sizes.append(tuple(args[1].shape[-2:]))
        return func(*args, **(kwargs or {}))
