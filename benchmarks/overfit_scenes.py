"""Can each head learn real scenes? Trains on four photographs of coco_panoptic_200 and measures on the same four.

    python benchmarks/overfit_scenes.py COCO_FOLDER HEAD... [--images 64] [--output runs/overfit]

COCO_FOLDER is the unpacked coco_panoptic_200. Appends a line per head to benchmarks/results/overfit_scenes.csv.
The checkpoints serve benchmarks/exported_heads.py.
"""

import argparse
import csv
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

import vankit

COLUMNS = (
    "head",
    "task",
    "model",
    "images",
    "epochs",
    "short_side",
    "lr",
    "precision",
    "threads",
    "seconds",
    "measures",
)
RESULTS = Path(__file__).parent / "results" / "overfit_scenes.csv"

# in random pairs: four at a time would always be padded to the same size, unlike the single pictures measured
BATCH = 2

QUERIES = {"clip_grad": 0.1, "weight_decay": 0.05, "schedule": "step", "steps": (), "batch_size": 4, "lr_batch": 4}

# head → (task, epochs, peak learning rate, further settings)
SETTINGS: dict[str, tuple[str, int, float, dict[str, Any]]] = {
    "retinanet": ("detect", 60, 3e-4, {}),
    "faster_rcnn": ("detect", 40, 3e-4, {}),
    "mask_rcnn": ("detect", 40, 3e-4, {}),
    "cascade_mask_rcnn": ("detect", 40, 3e-4, {}),
    "sparse_rcnn": ("detect", 250, 2.5e-4, {}),
    "mask2former": ("panoptic", 120, 3e-4, QUERIES | {"queries": 40}),
    "rt_detr": ("detect", 120, 3e-4, QUERIES),
    "d_fine": ("detect", 120, 3e-4, QUERIES),
    "deformable_detr": ("detect", 120, 3e-4, QUERIES),
}


def subset(root: Path, out: Path, images: int) -> Path:
    """A COCO folder of training photographs, those with three to eight objects first, as both of its splits."""
    folder = root / "annotations"
    instances, panoptic = (
        json.loads((folder / f"{kind}_train2017.json").read_text()) for kind in ("instances", "panoptic")
    )
    count = {image["id"]: 0 for image in instances["images"]}
    for annotation in instances["annotations"]:
        count[annotation["image_id"]] += 1
    some = [image for image in instances["images"] if count[image["id"]]]
    chosen = sorted(some, key=lambda image: (not 3 <= count[image["id"]] <= 8, image["id"]))[:images]
    ids = {image["id"] for image in chosen}
    (out / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (out / f"{split}2017").mkdir(exist_ok=True)
        for image in chosen:
            shutil.copy(root / "train2017" / image["file_name"], out / f"{split}2017")
        for kind, content in (("instances", instances), ("panoptic", panoptic)):
            annotations = [a for a in content["annotations"] if a["image_id"] in ids]
            kept = {**content, "images": chosen, "annotations": annotations}
            (out / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(kept))
        segments = out / "annotations" / f"panoptic_{split}2017"
        segments.mkdir(exist_ok=True)
        for annotation in panoptic["annotations"]:
            if annotation["image_id"] in ids:
                shutil.copy(root / "annotations" / "panoptic_train2017" / annotation["file_name"], segments)
    return out


def overfit(data: Path, head: str, args: argparse.Namespace) -> dict[str, object]:
    task, epochs, lr, further = SETTINGS[head]
    epochs, lr = args.epochs or epochs, args.lr or lr
    config = dataclasses.replace(
        vankit.recipe("short", args.model, task),
        epochs=epochs,
        validate_every=epochs,
        lr=lr,
        flip=0.0,
        short_sides=(args.short_side,),
        long_side=2 * args.short_side,
        warmup_iterations=20,
        precision=args.precision,
        workers=0,
        **{"weight_decay": 0.0, "batch_size": BATCH, "lr_batch": BATCH, **further},
    )
    start = time.perf_counter()
    result = vankit.train(data, args.model, config, args.output / head, task=task, head=head)
    seconds = time.perf_counter() - start
    measures = vankit.validate(data, checkpoint=result.last).measures
    return {
        "head": head, "task": task, "model": args.model, "images": args.images, "epochs": epochs,
        "short_side": args.short_side, "lr": lr, "precision": args.precision, "threads": torch.get_num_threads(),
        "seconds": round(seconds),
        "measures": json.dumps({name: round(value, 3) for name, value in measures.items() if value == value}),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("heads", nargs="+", choices=SETTINGS)
    parser.add_argument("--model", default="van_b0.cifar10")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--short-side", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=0, help="instead of the head's own")
    parser.add_argument("--lr", type=float, default=0.0, help="instead of the head's own")
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/overfit"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = subset(args.data, args.output / "data", args.images)
    for head in args.heads:
        row = overfit(data, head, args)
        print(row)
        new = not RESULTS.exists()
        with RESULTS.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
