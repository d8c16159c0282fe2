"""The paper's figures, recomputed: what the network and its operator cost, and what each part of them is for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import nn

from vankit.models.lka import LargeKernelAttention
from vankit.models.lka_settings import LkaSettings
from vankit.models.van import VAN, VARIANTS, Stage

# Published ImageNet-1k validation accuracy at 224 px in per cent, (top-1, top-5), of the weights that
# `pretrained=True` fetches
ACCURACY = {"van_b0": (75.41, 93.02), "van_b1": (81.01, 95.63), "van_b2": (82.80, 96.21), "van_b3": (83.86, 96.73)}


@dataclass(frozen=True)
class Complexity:
    """The cost of a network or of a part of it.

    Attributes:
        params: parameters.
        macs: multiply-accumulates of convolutions and matrix products for one image.
        macs_all: with bias additions, norms (two operations an element) and the gate's products too, as the paper's
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
        variant: van_b0 to van_b6.
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
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: expected one of {', '.join(VARIANTS)}")
    with torch.device("meta"):
        network = VAN(num_classes=num_classes, lka=lka, **VARIANTS[variant])
    height, width = (size, size) if isinstance(size, int) else size
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


@dataclass(frozen=True)
class Decomposition:
    """Parameters of a K x K convolution of C channels, biases aside (paper section 3.1, table 1).

    Attributes:
        channels: C.
        standard: one undivided convolution, K²C².
        mobilenet: a depth-wise K x K and a 1x1 convolution.
        lka: (2d-1)²C + ⌈K/d⌉²C + C².
    """

    channels: int
    standard: int
    mobilenet: int
    lka: int


def decomposition(
    kernel_size: int = 21, dilation: int | None = None, channels: Sequence[int] = (32, 64, 128, 256, 512)
) -> list[Decomposition]:
    """What the paper's decomposition of a large convolution saves.

    Args:
        kernel_size: K.
        dilation: d; the one with the fewest parameters if None.
        channels: C of each row.

    Raises:
        ValueError: a number is not positive.
    """
    if min(kernel_size, 1 if dilation is None else dilation, *channels) < 1:
        raise ValueError(f"kernel_size {kernel_size}, dilation {dilation}, channels {channels}: expected 1 or more")
    d, area = dilation or best_dilation(kernel_size), kernel_size**2
    return [
        Decomposition(c, area * c * c, area * c + c * c, depthwise_params(kernel_size, d) * c + c * c) for c in channels
    ]


def depthwise_params(kernel_size: int, dilation: int) -> int:
    """Parameters a channel of the two depth-wise kernels: (2d-1)² + ⌈K/d⌉²."""
    return (2 * dilation - 1) ** 2 + (-(-kernel_size // dilation)) ** 2


def best_dilation(kernel_size: int) -> int:
    """The d for which LKA has the fewest parameters; 3 for K = 21."""
    return min(range(1, kernel_size + 1), key=lambda d: depthwise_params(kernel_size, d))


def plot_decomposition(kernel_size: int, rows: Sequence[Decomposition], path: str | PathLike[str]) -> None:
    """Draw parameters by channels (left), and those of the two depth-wise kernels by dilation (right).

    Args:
        kernel_size: K.
        rows: see `decomposition`.
        path: image file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    channels = [row.channels for row in rows]
    for name, values in (
        (f"standard {kernel_size}x{kernel_size}", [row.standard for row in rows]),
        ("MobileNet", [row.mobilenet for row in rows]),
        ("LKA", [row.lka for row in rows]),
    ):
        left.loglog(channels, values, "o-", label=name)
    left.set(xlabel="channels", ylabel="parameters, biases aside")
    left.set_xticks(channels, [str(c) for c in channels])
    left.minorticks_off()
    left.legend()
    dilations = range(1, 11)
    for k in dict.fromkeys((7, 14, 21, 28, kernel_size)):
        right.plot(dilations, [depthwise_params(k, d) for d in dilations], "o-", markersize=4, label=f"K = {k}")
        right.plot(best_dilation(k), depthwise_params(k, best_dilation(k)), "*", color="black", zorder=3)
    right.set(xlabel="dilation d", ylabel="depth-wise parameters a channel", yscale="log", xticks=list(dilations))
    right.set_yticks([25, 50, 100, 200, 400, 800], ["25", "50", "100", "200", "400", "800"])
    right.minorticks_off()
    right.legend(title="★ fewest")
    figure.savefig(path, dpi=110)


@dataclass(frozen=True)
class Ablation:
    """A row of the paper's ablations on VAN-B0 (tables 3 and 4), as published.

    Attributes:
        name: what is changed.
        lka: the settings that change it; two rows are VAN as it is.
        params: published parameters in millions, with the digits printed.
        gmacs: published GMACs at 224 px.
        top1: published ImageNet-1k top-1 accuracy in per cent.
    """

    name: str
    lka: LkaSettings
    params: str
    gmacs: str
    top1: float


ABLATIONS = (
    Ablation("without DW", {"without": ("dw",)}, "4.1", "0.9", 74.9),
    Ablation("without DW-D", {"without": ("dw_d",)}, "4.0", "0.9", 74.1),
    Ablation("without attention", {"gate": "none"}, "4.1", "0.9", 74.3),
    Ablation("add instead of multiply", {"gate": "add"}, "4.1", "0.9", 74.6),
    Ablation("without 1x1", {"without": ("pw",)}, "3.8", "0.8", 74.6),
    Ablation("sigmoid", {"sigmoid": True}, "4.1", "0.9", 75.2),
    Ablation("dense 21x21", {"form": "dense"}, "124.7", "23.2", 76.0),
    Ablation("full", {}, "4.1", "0.9", 75.4),
    Ablation("K 7, d 2", {"kernel_size": (7,), "dilation": (2,)}, "4.03", "0.85", 74.8),
    Ablation("K 14, d 3", {"kernel_size": (14,), "dilation": (3,)}, "4.07", "0.87", 75.3),
    Ablation("K 21, d 3", {}, "4.11", "0.88", 75.4),
    Ablation("K 28, d 4", {"kernel_size": (28,), "dilation": (4,)}, "4.14", "0.90", 75.4),
)
