"""What the network costs: parameters and multiply-accumulates, by stage and kind of layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vankit.errors import UserError
from vankit.models.lka import LargeKernelAttention
from vankit.models.van import VAN, VARIANTS, Stage, architecture

# Published ImageNet-1k validation accuracy at 224 px in per cent, (top-1, top-5), of the public weights `in1k`
ACCURACY = {
    "van_b0": (75.41, 93.02), "van_b1": (81.01, 95.63), "van_b2": (82.80, 96.21), "van_b3": (83.86, 96.73),
    "van_b4": (84.13, 96.86),
}  # fmt: skip


@dataclass(frozen=True)
class Complexity:
    """The cost of a network or of a part of it.

    Attributes:
        params: parameters.
        macs: multiply-accumulates of convolutions and matrix products for one image.
        macs_all: with bias additions, norms (two operations per element) and the gate's products too, as the paper's
            table 2 counts.
    """

    params: int = 0
    macs: int = 0
    macs_all: int = 0

    def __add__(self, other: "Complexity") -> "Complexity":
        return Complexity(self.params + other.params, self.macs + other.macs, self.macs_all + other.macs_all)


def complexity(
    variant: str,
    size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    lka: Mapping[str, Any] | None = None,
) -> Complexity:
    """Parameters and multiply-accumulates of a variant.

    Args:
        variant: van_b0 to van_b6, also with a tag or by another name of theirs.
        size: side of a square image in pixels, or (height, width).
        num_classes: outputs of the head.
        lka: settings of its attention, see `vankit.VAN`.

    Raises:
        ValueError: unknown variant or setting.
    """
    return sum(layers(variant, size, num_classes, lka).values(), Complexity())


def layers(
    variant: str,
    size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    lka: Mapping[str, Any] | None = None,
) -> dict[tuple[str, str], Complexity]:
    """As `complexity`, by stage and kind of layer.

    Returns:
        Costs by (stage, kind): stage1 to stage4 with patch embedding, 1x1, depth-wise, dilated depth-wise, dense, MLP
        depth-wise, norm, layer scale and gate, as far as there are any; head with linear.
    """
    if architecture(variant) not in VARIANTS:
        raise UserError(f"unknown variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    with torch.device("meta"):
        network = VAN(num_classes=num_classes, lka=lka, **VARIANTS[architecture(variant)])
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise UserError(f"size is {size}, expected 1 pixel or more")
    found: dict[tuple[str, str], Complexity] = {}
    for name, stage in network.named_children():
        if isinstance(stage, Stage):
            stride = stage.patch_embed.proj.stride[0]
            height, width = -(-height // stride), -(-width // stride)
            for module_name, module in stage.named_modules():
                for kind, cost in _layer(module_name, module, height * width):
                    found[name, kind] = found.get((name, kind), Complexity()) + cost
    products = network.num_features * num_classes
    found["head", "linear"] = Complexity(products + num_classes, products, products + num_classes)
    return found


def _layer(name: str, module: nn.Module, pixels: int) -> list[tuple[str, Complexity]]:
    """What a module of a stage adds by itself, on maps of so many pixels."""
    params = sum(p.numel() for p in module.parameters(recurse=False))
    if isinstance(module, nn.Conv2d):
        macs = module.weight.numel() * pixels
        return [(_kind(name, module), Complexity(params, macs, macs + module.out_channels * pixels))]
    if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        return [("norm", Complexity(params, 0, 2 * len(module.weight) * pixels))]
    if isinstance(module, LargeKernelAttention) and module.gate != "none":
        return [("gate", Complexity(0, 0, module.dim * pixels))]
    return [("layer scale", Complexity(params))] if params else []


def _kind(name: str, conv: nn.Conv2d) -> str:
    if name.startswith("patch_embed"):
        return "patch embedding"
    if conv.groups == 1:
        return "1x1" if conv.kernel_size == (1, 1) else "dense"
    if name.endswith("mlp.dw"):
        return "MLP depth-wise"
    return "dilated depth-wise" if conv.dilation[0] > 1 else "depth-wise"
