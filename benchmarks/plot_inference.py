"""Draw results/inference_latency.csv: python benchmarks/plot_inference.py docs/inference.png [CPU]

Of the machines in it the one whose CPU has that text in its name, by default the first.
Left, ImageNet-1k top-1 at 224 px against milliseconds. The accuracies are published ones: of VAN see vankit.study, of
ConvNeXt-T arXiv 2201.03545, of Swin-T 2103.14030, of PVTv2-B2 2106.13797, of ResNet-50 2110.00476 (recipe A1). Right,
how many times faster than plain PyTorch, with quartiles.
"""

import csv
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vankit.study.complexity import ACCURACY

RESULTS = Path(__file__).parent / "results" / "inference_latency.csv"
OTHERS = {
    "convnext_tiny": ("ConvNeXt-T", 82.1),
    "swin_tiny_patch4_window7_224": ("Swin-T", 81.3),
    "pvt_v2_b2": ("PVTv2-B2", 82.0),
    "resnet50": ("ResNet-50", 80.4),
}
VANS = {model: (model.upper().replace("_", "-"), top1) for model, (top1, _) in ACCURACY.items()}
FILLING = {"vankit float32": "full", "vankit bf16": "none"}


def accuracy(axes: Axes, rows: list[dict[str, str]]) -> None:
    ms = {(row["model"], row["contender"]): float(row["ms"]) for row in rows}
    for way, filling in FILLING.items():
        for networks, color in ((VANS, "tab:red"), (OTHERS, "tab:gray")):
            points = [(ms[model, way], top1) for model, (_, top1) in networks.items() if (model, way) in ms]
            line = "-" if networks is VANS else ""
            label = ("VAN, " if networks is VANS else "others, ") + way.removeprefix("vankit ")
            axes.plot(*zip(*points, strict=True), f"o{line}", color=color, fillstyle=filling, label=label)
    for model, (name, top1) in (VANS | OTHERS).items():
        if (model, "vankit float32") in ms:
            offset = (6, 1 if model == "convnext_tiny" else -6)  # a little above PVTv2-B2
            axes.annotate(name, (ms[model, "vankit float32"], top1), offset, textcoords="offset points", fontsize=8)
    axes.set(xlabel="ms for one image, vankit's engine", ylabel="ImageNet-1k top-1 %, published")
    axes.margins(x=0.16)
    axes.legend(loc="lower right", fontsize=8)


def speed(axes: Axes, rows: list[dict[str, str]]) -> None:
    rows = [row for row in rows if row["speedup"]][::-1]
    values, low, high = ([float(row[key]) for row in rows] for key in ("speedup", "speedup_low", "speedup_high"))
    spread = [[v - a for v, a in zip(values, low, strict=True)], [b - v for v, b in zip(values, high, strict=True)]]
    colors = ["tab:red" if row["contender"].startswith("vankit") else "tab:gray" for row in rows]
    axes.barh(range(len(rows)), values, xerr=spread, color=colors, ecolor="black")
    axes.set_yticks(range(len(rows)), [f"{row['model']}  {row['contender']}" for row in rows], fontsize=8)
    for y, (value, end) in enumerate(zip(values, high, strict=True)):
        axes.annotate(f"{value:.1f}", (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlabel("times as fast as plain PyTorch")
    axes.margins(x=0.08, y=0.02)


def main() -> None:
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = sys.argv[2] if len(sys.argv) > 2 else rows[0]["cpu"]
    rows = [row for row in rows if wanted in row["cpu"] and not row["note"]]
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    accuracy(left, [row for row in rows if row["part"] == "networks"])
    speed(right, [row for row in rows if row["part"] == "engines"])
    figure.suptitle(f"one image at a time, 224 px, {rows[0]['cores']} cores of {rows[0]['cpu']}")
    figure.savefig(sys.argv[1], dpi=110)


if __name__ == "__main__":
    main()
