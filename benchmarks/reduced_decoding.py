"""Does decoding JPEGs at reduced scale change the label, and what does it save? Exact against reduced, photo by photo.

    python benchmarks/reduced_decoding.py FOLDER [FOLDER ...] [--network van_b0.cifar10 --network RUN/best.safetensors]

A margin of m keeps both sides of the decoded photograph at least m times the short side it is then resized to. For each
network and margin: how many photographs are reduced at all, how many labels change, how far the score of the exact
path's label moves on the reduced ones, and the thread's time to decode and preprocess, exact over reduced. The row with
margin "noise" gives the scale: every photograph decoded exactly, and its input moved by up to half a grey level.

Of the networks in results/reduced_decoding.csv van_b0.cifar10 has never seen such photographs, and two were trained on
a part of them, with --precision bf16-mixed:

    vankit train HYMENOPTERA --model van_b0.cifar10 --recipe finetune --img-size 96 --epochs 16 --output runs/h96
    vankit train HYMENOPTERA --model van_b0.cifar10 --recipe finetune --img-size 224 --epochs 12 --output runs/h224
"""

import argparse
import csv
import math
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import features

import vankit
from vankit.data.images import load_image
from vankit.data.preprocessing import Preprocessing
from vankit.data.walk import find_images

MARGINS = (1.0, 1.5, 2.0, 3.0, 4.0)
BATCH = 64
RESULTS = Path(__file__).parent / "results" / "reduced_decoding.csv"


def scores(predictor: vankit.Predictor, inputs: list[np.ndarray]) -> np.ndarray:
    """Softmax scores (N, classes), float64."""
    batches = [predictor.logits(np.stack(inputs[i : i + BATCH])) for i in range(0, len(inputs), BATCH)]
    exps = np.exp(np.concatenate(batches).astype(np.float64))
    return exps / exps.sum(1, keepdims=True)


def decode(
    paths: list[Path], preprocessing: Preprocessing, sides: dict[str, int | None], rounds: int
) -> tuple[dict[str, list[np.ndarray]], dict[str, np.ndarray]]:
    """By the names of sides, the exact one first: the network inputs, and the median seconds of each photograph."""
    inputs, seconds = defaultdict(list), defaultdict(list)
    names = list(sides)
    for path in paths:
        taken = defaultdict(list)
        for i in range(rounds + 1):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                start = time.thread_time()
                x = preprocessing(load_image(path, min_side=sides[name]))
                taken[name].append(time.thread_time() - start)
                if not i:
                    exact = x if name == names[0] else inputs[names[0]][-1]
                    inputs[name].append(exact if np.array_equal(x, exact) else x)  # one array where nothing changed
        for name, times in taken.items():
            seconds[name].append(statistics.median(times[1:]))  # the first round reads the file from the disk
    return inputs, {name: np.array(values) for name, values in seconds.items()}


def compare(network: str, paths: list[Path], rounds: int) -> Iterator[dict[str, Any]]:
    """A row per margin, and one for the noise."""
    options = {"checkpoint": network} if Path(network).is_file() else {"model": network}
    predictor = vankit.Predictor(**options, engine="torch")
    preprocessing = predictor.preprocessing
    margins = {str(margin): math.ceil(margin * preprocessing.min_side) for margin in MARGINS}
    inputs, seconds = decode(paths, preprocessing, {"exact": None, **margins}, rounds)
    exact = inputs.pop("exact")
    half_level = 0.5 / (255 * np.array(preprocessing.std, np.float32))[:, None, None]
    rng = np.random.default_rng(0)
    inputs["noise"] = [x + half_level * rng.uniform(-1, 1, x.shape).astype(np.float32) for x in exact]
    before = scores(predictor, exact)
    best = before.argmax(1)
    for name, altered in inputs.items():
        touched = np.array([a is not b for a, b in zip(altered, exact, strict=True)])
        after = before.copy()
        if touched.any():
            after[touched] = scores(predictor, [x for x, new in zip(altered, touched, strict=True) if new])
        moved = np.abs(after - before)[np.arange(len(best)), best][touched]
        timed = name in margins
        ratios = (seconds["exact"] / seconds[name])[touched] if timed else np.empty(0)
        yield {
            "network": Path(network).parent.name or network,
            "input": preprocessing.input_size[1],
            "resized_short_side": preprocessing.min_side,
            "margin": name,
            "photographs": len(paths),
            "reduced": int(touched.sum()) if timed else 0,
            "labels_changed": int((after.argmax(1) != best).sum()),
            "score_change_max": round(float(moved.max(initial=0)), 4),
            "score_change_mean": round(float(moved.sum()) / max(1, len(moved)), 5),
            "speedup_of_reduced": round(float(np.median(ratios)), 2) if len(ratios) else "",
            "speedup_of_all": round(float(seconds["exact"].sum() / seconds[name].sum()), 2) if timed else "",
            "exact_ms": round(1e3 * float(np.median(seconds["exact"])), 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--network", action="append", help="model name or checkpoint; may be given several times")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    paths = [path for path in find_images(args.folders) if path.suffix.lower() in (".jpg", ".jpeg")]
    machine = {
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
    }
    rows = []
    for network in args.network or ["van_b0.cifar10"]:
        for row in compare(network, paths, args.rounds):
            rows.append(row | machine)
            print(row)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
