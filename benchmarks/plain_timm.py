"""What `vankit predict` is compared with: labels as most scripts get them from PyTorch and timm.

    python benchmarks/plain_timm.py WEIGHTS PHOTO             prints the five best labels
    python benchmarks/plain_timm.py WEIGHTS FOLDER OUT.csv    label and score of every photograph, best first

WEIGHTS are of van_b0 with ImageNet's classes.
"""

import csv
import sys
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch.utils.data import DataLoader, Dataset

import vankit  # noqa: F401  (registers van_b0)


class Photographs(Dataset):
    def __init__(self, folder, transform):
        self.paths, self.transform = sorted(Path(folder).iterdir()), transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(Image.open(self.paths[i]).convert("RGB"))


def main():
    weights, source, *output = sys.argv[1:]
    model = timm.create_model("van_b0", checkpoint_path=weights).eval()
    transform = create_transform(**resolve_model_data_config(model))
    names = ImageNetInfo("imagenet-1k").label_descriptions()
    with torch.inference_mode():
        if not output:
            x = transform(Image.open(source).convert("RGB"))[None]
            scores, labels = model(x).softmax(1)[0].topk(5)
            for score, label in zip(scores.tolist(), labels.tolist(), strict=True):
                print(f"  {score:6.1%}  {names[label]}")
            return
        photographs = Photographs(source, transform)
        best = [model(x).softmax(1).max(1) for x in DataLoader(photographs, batch_size=32, num_workers=2)]
    scores, labels = (torch.cat(found).tolist() for found in zip(*best, strict=True))
    with open(output[0], "w", newline="") as file:
        rows = zip(photographs.paths, labels, scores, strict=True)
        csv.writer(file).writerows([("image", "label", "score"), *((p, names[i], s) for p, i, s in rows)])


if __name__ == "__main__":
    main()
