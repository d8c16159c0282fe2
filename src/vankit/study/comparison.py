"""VAN beside other networks of timm: what they cost, how long they take here, how accurate they are."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vankit.errors import UserError
from vankit.files import save_figure
from vankit.models.van import VARIANTS, check_name, create_model
from vankit.study.complexity import ACCURACY, complexity
from vankit.study.timing import Contender, compare, eager, input_size, own, pictures, random_network, save_weights

logger = logging.getLogger(__name__)

# ImageNet-1k top-1 in per cent at 224 px, trained on it alone, as the papers publish it: ResNet arXiv 2110.00476 (A1),
# PVTv2 2106.13797, Swin 2103.14030, ConvNeXt 2201.03545. VAN's is that of the public weights. timm's own tables of
# results are not in its package.
PUBLISHED = {
    **{name: top1 for name, (top1, _) in ACCURACY.items()},
    "resnet18": 71.5, "resnet50": 80.4, "resnet101": 81.5,
    "pvt_v2_b0": 70.5, "pvt_v2_b1": 78.7, "pvt_v2_b2": 82.0, "pvt_v2_b3": 83.1,
    "swin_tiny_patch4_window7_224": 81.3, "swin_small_patch4_window7_224": 83.0,
    "convnext_tiny": 82.1, "convnext_small": 83.1,
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A network's row.

    Attributes:
        model: timm's name.
        params: parameters.
        macs: multiply-accumulates of convolutions and matrix products for one image of the network's own size.
        top1: published top-1 in per cent; None where `PUBLISHED` has none.
        ms: milliseconds for one image on this machine, median; None if not measured.
        ms_low, ms_high: quartiles.
    """

    model: str
    params: int
    macs: int
    top1: float | None
    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None


def comparison(models: Sequence[str] = (), seconds: float = 60) -> list[Comparison]:
    """Cost, speed and published accuracy of VAN and of other networks.

    Args:
        models: timm's names; those of `PUBLISHED` if empty.
        seconds: to time all networks for, with vankit's own engine and random weights, after minutes in which they are
            compiled; 0 leaves the times out. Processes are started, so a script that calls this needs
            `if __name__ == "__main__":`.

    Raises:
        ValueError: timm knows no such model, or the networks take images of different sizes and are timed.
    """
    if not 0 <= seconds < math.inf:
        raise UserError(f"seconds is {seconds}, expected 0 or more, and an end")
    for model in models:
        check_name(model)
    rows = [cost(name) for name in dict.fromkeys(models or PUBLISHED)]
    if not seconds:
        return rows
    expected, contenders = {}, []
    sizes = {row.model: input_size(create_model(row.model)) for row in rows}
    if len(set(sizes.values())) > 1:
        raise UserError(f"the networks take images of different sizes, {sizes}: compare some of one size")
    images = pictures(sizes[rows[0].model])
    with TemporaryDirectory() as folder:
        for row in rows:
            network = random_network(row.model)
            expected[row.model] = eager(network)(images)
            (Path(folder) / row.model).mkdir()
            weights = save_weights(network, Path(folder) / row.model)
            contenders.append(Contender(row.model, "vankit", partial(own, row.model, weights, "auto", "auto")))
        timings = compare(contenders, images, expected, seconds)
    for timing in timings:
        if timing.note:
            logger.warning("%s was not timed: %s", timing.model, timing.note)
    return [
        Comparison(row.model, row.params, row.macs, row.top1, timing.ms, timing.ms_low, timing.ms_high)
        for row, timing in zip(rows, timings, strict=True)
    ]


def cost(model: str) -> Comparison:
    """A network's row without its times.

    Args:
        model: timm's name.

    Raises:
        ValueError: timm knows no such model.
    """
    if model in VARIANTS:  # by the definition: PyTorch's counter sees kernels trimmed to small maps
        own_cost = complexity(model)
        return Comparison(model, own_cost.params, own_cost.macs, PUBLISHED.get(model))
    with torch.device("meta"):
        network = create_model(model).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, *input_size(network)))
    params = sum(p.numel() for p in network.parameters())
    return Comparison(model, params, counter.get_total_flops() // 2, PUBLISHED.get(model))


def plot(rows: Sequence[Comparison], path: str | PathLike[str]) -> None:
    """Draw accuracy against parameters, multiply-accumulates and, where measured, milliseconds.

    Args:
        rows: see `comparison`; those without a published accuracy are left out.
        path: image file to write.
    """
    from matplotlib.figure import Figure

    panels = {"parameters, millions": lambda row: row.params / 1e6, "GMACs for one image": lambda row: row.macs / 1e9}
    if all(row.ms is not None for row in rows):
        panels["ms for one image, here"] = lambda row: row.ms
    figure = Figure(figsize=(4.5 * len(panels), 4.2), layout="constrained")
    families: dict[str, list[Comparison]] = {}
    for row in rows:
        if row.top1 is not None:
            families.setdefault(row.model.partition("_")[0].rstrip("0123456789"), []).append(row)
    colors = cycle(("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink"))
    styles: dict[str, dict[str, Any]] = {
        name: {"color": "tab:red", "linewidth": 2, "zorder": 3} if name == "van" else {"color": next(colors)}
        for name in families
    }
    for axes, (label, value) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for name, members in families.items():
            members = sorted(members, key=value)
            axes.plot([value(row) for row in members], [row.top1 for row in members], "o-", label=name, **styles[name])
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("ImageNet-1k top-1 %, published")
    figure.axes[0].legend()
    save_figure(figure, path, dpi=110)
