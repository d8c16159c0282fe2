"""The paper's figures, recomputed: parameters and multiply-accumulates of every variant."""

from dataclasses import dataclass

import torch

from vankit.models.van import VAN, VARIANTS

# Published ImageNet-1k validation accuracy at 224 px in per cent, (top-1, top-5), of the weights that
# `pretrained=True` fetches
ACCURACY = {"van_b0": (75.41, 93.02), "van_b1": (81.01, 95.63), "van_b2": (82.80, 96.21), "van_b3": (83.86, 96.73)}


@dataclass(frozen=True)
class Complexity:
    """The cost of a variant.

    Attributes:
        params: parameters.
        macs: multiply-accumulates of convolutions and matrix products for one image.
        macs_all: with bias additions, norms (two operations an element) and the gate's products too, as the paper's
            table 2 counts.
    """

    params: int
    macs: int
    macs_all: int


def complexity(variant: str, size: int | tuple[int, int] = 224, num_classes: int = 1000) -> Complexity:
    """Parameters and multiply-accumulates of a variant.

    Args:
        variant: van_b0 to van_b6.
        size: side of a square image in pixels, or (height, width).
        num_classes: outputs of the head.

    Raises:
        ValueError: unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    table = VARIANTS[variant]
    with torch.device("meta"):
        params = sum(p.numel() for p in VAN(num_classes=num_classes, **table).parameters())
    height, width = (size, size) if isinstance(size, int) else size
    macs = extra = 0
    chans = 3
    for i, (dim, depth, ratio) in enumerate(
        zip(table["embed_dims"], table["depths"], table["mlp_ratios"], strict=True)
    ):
        kernel, stride = (7, 4) if i == 0 else (3, 2)
        height, width = -(-height // stride), -(-width // stride)
        hidden = dim * ratio
        embed = dim * chans * kernel**2
        attention = 3 * dim * dim + (5**2 + 7**2) * dim  # three 1x1 convolutions, two depth-wise ones
        mlp = 2 * dim * hidden + 3**2 * hidden
        macs += height * width * (embed + depth * (attention + mlp))
        # outputs with a bias; BatchNorm of the embedding, two a block; the LKA gate; the stage's LayerNorm
        biases = dim + depth * (6 * dim + 2 * hidden)
        norms = 2 * (dim + depth * 2 * dim + dim)
        extra += height * width * (biases + norms + depth * dim)
        chans = dim
    return Complexity(params, macs + chans * num_classes, macs + extra + chans * num_classes + num_classes)
