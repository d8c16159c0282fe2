"""Draw the curve of a training run: python benchmarks/plot_run.py RUN/metrics.csv curve.png"""

import csv
import sys

from matplotlib.figure import Figure


def main() -> None:
    source, target = sys.argv[1:3]
    with open(source, newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    loss = figure.subplots()
    loss.plot(
        *zip(*[(int(r["step"]), float(r["train_loss_step"])) for r in rows if r["train_loss_step"]], strict=True),
        color="tab:blue", linewidth=0.7, alpha=0.7,
    )  # fmt: skip
    loss.set(xlabel="step", ylabel="training loss (a batch)")
    loss.yaxis.label.set_color("tab:blue")
    top1 = loss.twinx()
    top1.plot(
        *zip(*[(int(r["step"]), 100 * float(r["val_top1"])) for r in rows if r["val_top1"]], strict=True),
        color="tab:orange", marker="o",
    )  # fmt: skip
    top1.set_ylabel("validation top-1 %")
    top1.yaxis.label.set_color("tab:orange")
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main()
