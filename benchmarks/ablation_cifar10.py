"""The ablations of LKA on part of CIFAR-10, with a budget that two CPU cores allow.

    python benchmarks/ablation_cifar10.py CIFAR10 [--per-class 400 100] [--epochs 3] [--size 32] [--seeds 3]

Takes the first images of each class, by name: 400 of train to train on, 100 of val to measure. Stop it and start it
again at will. Writes results/ablation_cifar10.csv beside this file and docs/study-ablation.png.
"""

import argparse
import csv
from dataclasses import asdict, replace
from pathlib import Path

from vankit.study.ablation import ABLATIONS, ablate, plot, summary
from vankit.training.recipes import short

HERE = Path(__file__).parent
RESULTS, PICTURE = HERE / "results" / "ablation_cifar10.csv", HERE.parent / "docs" / "study-ablation.png"
# all but the dense one, which has thirty times the parameters
ROWS = [row.name for row in ABLATIONS if row.name not in ("dense 21x21", "K 21, d 3")]


def subset(source: Path, target: Path, per_class: tuple[int, int]) -> Path:
    """A folder of links to the first images of each class, so many of train and of val."""
    if not target.exists():
        for split, count in zip(("train", "val"), per_class, strict=True):
            for folder in sorted((source / split).iterdir()):
                (target / split / folder.name).mkdir(parents=True)
                for path in sorted(folder.iterdir())[:count]:
                    (target / split / folder.name / path.name).symlink_to(path.resolve())
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cifar10", type=Path, help="folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--per-class", type=int, nargs=2, default=(400, 100))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=[row.name for row in ABLATIONS])
    parser.add_argument("--output", type=Path, default=Path("runs/ablation-cifar10"))
    args = parser.parse_args()
    data = subset(args.cifar10, args.output / "cifar10", args.per_class)
    config = replace(
        short("van_b0"), epochs=args.epochs, img_size=args.size, batch_size=32, lr_batch=32, lr=1e-3, workers=0
    )
    runs = []
    for run in ablate(data, config, args.seeds, args.output, args.rows):
        runs.append(run)
        print(f"{run.row}, seed {run.seed}: {run.top1:.2%}", flush=True)
    images = len(list(data.glob("train/*/*")))
    budget = {"train_images": images, "epochs": args.epochs, "size": args.size, "batch_size": config.batch_size}
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["row", "seed", "top1", *budget])
        writer.writeheader()
        writer.writerows({**asdict(run), **budget} for run in runs)
    for row, (mean, deviation, count) in summary(runs).items():
        print(f"{row:25} {100 * mean:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}") + f"  {count}")
    plot(runs, PICTURE, f"{images:,} images of CIFAR-10 at {args.size} px, {args.epochs} epochs")


if __name__ == "__main__":
    main()
