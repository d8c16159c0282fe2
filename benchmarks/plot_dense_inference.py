"""Draw results/dense_inference.csv: python benchmarks/plot_dense_inference.py docs/dense-inference.png [CPU]

Of the machines in it the one whose CPU has that text in its name, by default the first: how many times as fast each way
is as the better of eager PyTorch's two memory layouts, with quartiles.
"""

import csv
import sys
from pathlib import Path

from dense_inference import NETWORKS
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results" / "dense_inference.csv"
WAYS = {
    "VAN on OpenVINO, head on PyTorch": "tab:gray",
    "exported, float32": "tab:red",
    "exported, bf16": "tab:orange",
    "exported, int8": "tab:purple",
}


def main(path: str, cpu: str = "") -> None:
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["times_as_fast"]]
    cpu = next(row["cpu"] for row in rows if cpu in row["cpu"])
    found = {(row["model"], row["contender"]): row for row in rows if row["cpu"] == cpu}
    measured = {model for model, _ in found}
    networks = [name for name in NETWORKS if name in measured]
    figure = Figure((10, 4.4), layout="constrained")
    axes = figure.subplots()
    for place, (way, color) in enumerate(WAYS.items()):
        bars = [(i, found[name, way]) for i, name in enumerate(networks) if (name, way) in found]
        if not bars:
            continue
        middle, low, high = (
            [float(row[key]) for _, row in bars] for key in ("times_as_fast", "times_low", "times_high")
        )
        errors = [[a - b for a, b in zip(middle, low, strict=True)], [b - a for a, b in zip(middle, high, strict=True)]]
        x = [i + 0.2 * (place - 1.5) for i, _ in bars]
        axes.bar(x, middle, 0.19, yerr=errors, color=color, label=way, error_kw={"elinewidth": 0.8})
    axes.axhline(1, color="black", linewidth=0.8)
    labels = [name.replace("_", "\n").replace("-", "\n") for name in networks]
    axes.set_xticks(range(len(networks)), labels, fontsize=7)
    axes.set_ylabel("times as fast as eager PyTorch")
    figure.legend(loc="outside upper center", ncols=len(WAYS), frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
