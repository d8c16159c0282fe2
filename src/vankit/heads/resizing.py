"""Resizing in networks that are traced once for images of every size: torchvision's preparation, and maps."""

from fractions import Fraction
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vankit.heads.backbone import AsTheyCome, normalise

_LONGEST = 65535  # pixels: JPEG's limit; longer sides may come out a pixel off


class Resize(nn.Module):
    """`vankit.heads.backbone.input_transform` in eval mode for one image, from operations that tracing can follow.

    torchvision rounds sizes down from a float64 product, which no inference engine computes: side/length as float64 may
    be smaller than the fraction, and a length that should be met exactly then is a pixel shorter (385 x 800/385 → 799).
    Here it is computed in whole numbers, and a table says by how much a fraction fell short.

    Args:
        transform: its last short side and its long side are taken; `AsTheyCome` resizes nothing.
    """

    shortfall: Tensor
    step: Tensor

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.divisor = transform.size_divisible
        self.resizes = not isinstance(transform, AsTheyCome)
        if self.resizes:
            self.short, self.long = int(transform.min_size[-1]), int(transform.max_size)
            self.register_buffer("shortfall", torch.stack([_shortfalls(self.short), _shortfalls(self.long)]))
            self.register_buffer("step", _steps(max(self.short, self.long)))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 3, H, W), 0 to 1 → the normalised, resized and padded image, and its (2,) height and width before
        padding."""
        x = normalise(image)
        size = torch._shape_as_tensor(image)[2:]
        if self.resizes:
            size = self.size(size)
            x = F.interpolate(x, (size[0], size[1]), mode="bilinear")  # type: ignore[arg-type]
        below = -size % self.divisor
        return F.pad(x, (0, below[1], 0, below[0])), size

    def size(self, size: Tensor) -> Tensor:
        """⌊size · min(short / the shorter side, long / the longer)⌋ as float64 has it, (2,) int64."""
        shorter, longer = size.min(), size.max()
        by_short = (self.short * longer <= self.long * shorter).long()
        side = self.short * by_short + self.long * (1 - by_short)
        length = shorter * by_short + longer * (1 - by_short)  # which becomes `side`
        product = size * side
        whole = product.div(length, rounding_mode="floor")
        exact = product == whole * length
        short = self.shortfall[1 - by_short, length.clamp(max=_LONGEST)] * whole > self.step[whole]
        return whole - exact.long() * short.long()  # OpenVINO does not fold BitwiseAnd


@lru_cache
def _shortfalls(side: int) -> Tensor:
    """By how much, relatively and in 2⁻⁵³, side / length falls short as a float64, for lengths up to the longest; 0
    where it does not."""
    lengths = range(1, _LONGEST + 1)
    relative = [float((1 - Fraction(side / length) * length / side) * 2**53) for length in lengths]
    return torch.tensor([0.0, *relative]).clamp(min=0)


def _steps(last: int) -> Tensor:
    """What shortfall · n has to exceed for the product to be the float64 before n, for n up to `last`: half the
    distance between the two, in 2⁻⁵³."""
    floors = [2.0 ** (n.bit_length() - 1) for n in range(1, last + 1)]
    return torch.tensor([1.0, *(f / 2 if f == n else f for n, f in enumerate(floors, 1))])


def bilinear(given: Any, made: Any, antialias: bool = False) -> Tensor:
    """F.interpolate(mode="bilinear") along one side as a matrix, (made, given) float32.

    Args:
        given, made: length before and after, int or what it is in a trace; their product must be below 2³⁰, since
            OpenVINO computes int64 as int32 on CPUs.
        antialias: see F.interpolate; it matters only where the side becomes shorter.
    """
    given, made = torch.as_tensor(given), torch.as_tensor(made)
    # in whole numbers: place j lies n / (2 made) places from the middle of new place i
    n = (2 * torch.arange(given) + 1) * made - (2 * torch.arange(made)[:, None] + 1) * given
    reach = torch.maximum(given, made) if antialias else made
    weights = (1 - n.abs() / (2 * reach)).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)
