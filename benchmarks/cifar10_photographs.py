"""How does van_b0.cifar10 do on objects of ordinary photographs? Crops of a COCO set's annotated boxes.

    python benchmarks/cifar10_photographs.py FOLDER     # with {train,val}2017/ and annotations/instances_*.json

Each object of a category that CIFAR-10 has too is cut out with a square of 1.2 times its longer side and classified.
"""

import csv
import json
import sys
from collections import Counter
from pathlib import Path

from PIL import Image

import vankit
from vankit.data.images import load_image

CLASSES = {
    "airplane": "airplane", "bird": "bird", "boat": "ship", "car": "automobile", "cat": "cat", "dog": "dog",
    "horse": "horse", "truck": "truck",
}  # fmt: skip
SMALLEST = 32  # pixels of the longer side: CIFAR-10's own size
RESULTS = Path(__file__).parent / "results" / "cifar10_photographs.csv"


def objects(folder: Path) -> list[tuple[Image.Image, str]]:
    """(crop, CIFAR-10 class) of every usable object."""
    found = []
    for split in ("train2017", "val2017"):
        content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        files = {i["id"]: i["file_name"] for i in content["images"]}
        for annotation in content["annotations"]:
            name = CLASSES.get(names[annotation["category_id"]])
            x, y, w, h = annotation["bbox"]
            if name is None or annotation["iscrowd"] or max(w, h) < SMALLEST:
                continue
            side, cx, cy = 0.6 * max(w, h), x + w / 2, y + h / 2
            image = load_image(folder / split / files[annotation["image_id"]])
            box = (max(cx - side, 0), max(cy - side, 0), min(cx + side, image.width), min(cy + side, image.height))
            found.append((image.crop(tuple(round(v) for v in box)), name))
    return found


def main() -> None:
    pairs = objects(Path(sys.argv[1]))
    predictor = vankit.Predictor("van_b0.cifar10")
    answers = [answer.labels[0].name for answer in predictor([crop for crop, _ in pairs])]
    total, right = Counter(name for _, name in pairs), Counter()
    right.update(name for (_, name), answer in zip(pairs, answers, strict=True) if name == answer)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "objects", "right"])
        writer.writerows((name, total[name], right[name]) for name in sorted(total))
        writer.writerow(["all", total.total(), right.total()])
    print(RESULTS.read_text())
    print(f"top-1 {right.total() / total.total():.1%} of {total.total()} objects")


if __name__ == "__main__":
    main()
