"""How soon is what is in a picture there? Detectors and segmenters over van_b0, from a picture's bytes to the answers.

    python benchmarks/dense_inference.py [--only mask_rcnn-640 ...] [--seconds 60] [--starts 0]

Each network, with random weights that find 100 objects, as eager PyTorch runs it in both memory layouts (and with
--compile by torch.compile), as `vankit.DensePredictor` runs a checkpoint at first, with the VAN on OpenVINO, and
exported whole by `vankit export`, also in bf16 and int8; beside them torchvision's own maskrcnn_resnet50_fpn, and
D-FINE over HGNetV2. Each contender is a process of its own, bound to the same cores. They take turns in a random order,
and are timed only if they find what eager PyTorch finds, by the rule of `vankit export`; of bf16 and int8, and of other
networks, the CSV says how much is the same. With --starts N, how long `vankit predict` takes for one picture instead,
start and drawing included, and its memory. Run this on a machine that does nothing else. Results:
benchmarks/results/dense_inference.csv and dense_start.csv, where rows of other CPUs are kept.
"""

import argparse
import copy
import csv
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from inference import VANKIT, apart, in_turns, machine, rounded, wait_until_quiet
from PIL import Image

from vankit.data.shapes import render_scene
from vankit.deploy.agreement import Agreement
from vankit.deploy.folder import read_exported
from vankit.errors import UserError
from vankit.study.timing import Contender, Timing, compare, finding, scenes

RESULTS = Path(__file__).parent / "results"
CLASSES = [f"class {i}" for i in range(80)]
SCENES = 2
TASKS = {"semantic_fpn": "segment", "upernet": "segment", "mask2former": "panoptic"}
NETWORKS = (
    "retinanet-640", "faster_rcnn-640", "mask_rcnn-640", "cascade_mask_rcnn-640", "sparse_rcnn-640", "rt_detr-640",
    "d_fine-640", "deformable_detr-640", "retinanet-800", "mask_rcnn-800", "cascade_mask_rcnn-800", "rt_detr-800",
    "semantic_fpn-512", "upernet-512", "mask2former-512",
)  # fmt: skip
Find = Callable[[Any], Any]


def make_checkpoint(name: str, path: str) -> None:
    """A network such as mask_rcnn-640 with random weights, the same each time."""
    import torch

    from vankit.heads.build import build_network
    from vankit.models.description import Description
    from vankit.models.weights import write_tensors

    head, side = name.rsplit("-", 1)
    task = TASKS.get(head, "detect")
    description = Description(
        task, head, "van_b0", CLASSES, things=[i < 40 for i in range(len(CLASSES))] if task == "panoptic" else (),
        short_sides=(int(side),), long_side=int(side) * 5 // 3, queries=100 if head == "mask2former" else 300,
    )  # fmt: skip
    torch.manual_seed(0)
    network = build_network(description).eval()
    spread(network, description)
    for module_name, module in network.named_modules():
        if module_name.endswith("mask_fcn_logits"):
            module.bias.data.fill_(4)  # mostly whole masks: those of noise are all edges, which rounding moves
    write_tensors(network.state_dict(), path, description.to_metadata())


def spread(network: Any, description: Any) -> None:
    """Scale what gives scores so that logits have a standard deviation of 2, as a trained network's would, in the first
    map that it takes: those of new layers are so much alike that nothing is found, or that rounding decides what is."""
    from torch import Tensor, nn

    def scale(module: Any, _: Any, logits: Tensor) -> Tensor:
        bias = module.bias.view(-1, *[1] * (logits.ndim - 2)) if isinstance(module, nn.Conv2d) else module.bias
        factor = 2 / (logits - bias).std()
        module.weight.data *= factor
        hooks.pop(module).remove()
        return (logits - bias) * factor + bias

    scoring = len(CLASSES), len(CLASSES) + 1, 9 * len(CLASSES)  # the last is RetinaNet's, of nine anchors
    hooks = {
        module: module.register_forward_hook(scale)
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
        and (len(module.weight) in scoring or name.endswith("rpn.head.cls_logits"))
    }
    eager(network, description)(scenes(description)[:1])


def opened(path: str) -> tuple[Any, Any]:
    from vankit.deploy.opening import open_network

    found = open_network(checkpoint=path)
    return copy.deepcopy(found.module), found.description


def eager(network: Any, description: Any) -> Find:
    import torch

    from vankit.tasks.inference import arrays, infer

    def run(pictures: Any) -> Any:
        with torch.inference_mode():
            image = torch.from_numpy(pictures[0]).permute(2, 0, 1) / 255
            return boxed(arrays(infer(network, [image], description)[0]))

    return run


def boxed(found: Any) -> Any:
    """As what a contender gives for one picture."""
    result = np.empty(1, object)
    result[0] = found
    return result


def plain(path: str, *, channels_last: bool = False, compiled: bool = False) -> Find:
    import torch

    network, description = opened(path)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True
        network.compile(dynamic=False)
    return eager(network, description)


def torchvision_resnet50(path: str) -> Find:
    """Of the same sizes, classes and objects as the network in a file."""
    import torch
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    from vankit.heads.rcnn import TorchvisionDetector

    _, description = opened(path)
    torch.manual_seed(0)
    sides = {"min_size": description.short_sides[-1], "max_size": description.long_side}
    detector = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=len(CLASSES) + 1, **sides)
    network = TorchvisionDetector(detector, background=True).eval()
    spread(network, description)
    return eager(network.to(memory_format=torch.channels_last), description)


def d_fine_hgnetv2(path: str) -> Find:
    """D-FINE over the backbone of its authors' small version, of the same sizes, classes and queries as in a file."""
    import timm
    import torch

    from vankit.heads.from_transformers import d_fine

    _, description = opened(path)
    torch.manual_seed(0)
    features = timm.create_model("hgnetv2_b0", features_only=True, out_indices=(0, 1, 2, 3))
    sides = {"short_sides": description.short_sides, "long_side": description.long_side}
    network = d_fine(features, len(CLASSES), model="hgnetv2_b0", queries=description.queries, **sides).eval()
    spread(network, description)
    return eager(network, description)


RIVALS: dict[str, tuple[str, Callable[[str], Find]]] = {
    "mask_rcnn": ("torchvision's maskrcnn_resnet50_fpn", torchvision_resnet50),
    "d_fine": ("D-FINE over hgnetv2_b0", d_fine_hgnetv2),
}


def predictor(path: str) -> Find:
    from vankit.prediction.scenes import DensePredictor

    find = DensePredictor(checkpoint=path, score=0.05)
    return lambda pictures: boxed(find.results(pictures[0]))


def export(checkpoint: str, out: str, labelled: str | None = None) -> None:
    import vankit

    options: Any = {"int8": True, "calibrate": labelled, "max_drop": 1.0} if labelled else {}
    vankit.export(checkpoint=checkpoint, out=out, **options)


def label_scenes(root: Path, segment: bool, side: int) -> None:
    """Write generated scenes as training data, to measure ranges of values on."""
    found = [render_scene(i, size=(side, side * 4 // 3), objects=8) for i in range(SCENES)]
    sizes = {"width": side * 4 // 3, "height": side}
    for split in ("train", "val"):
        images = root / "images" / split if segment else root / f"{split}2017"
        labels = root / "annotations" / split if segment else root / "annotations"
        images.mkdir(parents=True)
        labels.mkdir(parents=True, exist_ok=True)
        for i, scene in enumerate(found):
            Image.fromarray(scene.image).save(images / f"{i}.png")
            if segment:
                Image.fromarray((scene.masks * scene.labels[:, None, None]).sum(0).astype(np.uint8)).save(
                    labels / f"{i}.png"
                )
        if segment:
            (root / "classes.txt").write_text("\n".join(CLASSES))
            continue
        objects = [
            {"image_id": i, "category_id": int(label), "iscrowd": 0, "area": float((x1 - x0) * (y1 - y0)),
             "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]]}
            for i, scene in enumerate(found)
            for label, (x0, y0, x1, y1) in zip(scene.labels, scene.boxes.tolist(), strict=True)
        ]  # fmt: skip
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", **sizes} for i in range(SCENES)],
            "annotations": [{"id": i + 1, **each} for i, each in enumerate(objects)],
            "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
        }
        (labels / f"instances_{split}2017.json").write_text(json.dumps(content))


def check(contender: Contender, found: Any, expected: Any) -> Timing:
    """By the rule of `vankit export`."""
    row = Timing(contender.model, contender.name)
    if isinstance(found, str):
        return replace(row, note=found)
    result, objects = Agreement(), sum(len(each.get("labels", ())) for each in found)
    for one, other in zip(expected, found, strict=True):
        if one.keys() != other.keys():
            return replace(row, note=f"refused: it gives {', '.join(other) or 'nothing'} in place of {', '.join(one)}")
        result.add(one, other)
    row = replace(row, difference=float(objects), agreement=result.share)
    try:
        if contender.exact:
            result.check()
    except UserError as error:
        return replace(row, note=str(error))
    return row


def measure(name: str, folder_of: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    checkpoint, whole, int8 = (str(folder_of / f"{name}{end}") for end in (".safetensors", "", "-int8"))
    apart(make_checkpoint, name, checkpoint)
    apart(export, checkpoint, whole)
    contenders = [
        Contender(name, "PyTorch", partial(plain, checkpoint)),
        Contender(name, "PyTorch channels_last", partial(plain, checkpoint, channels_last=True)),
        Contender(name, "VAN on OpenVINO, head on PyTorch", partial(predictor, checkpoint)),
        Contender(name, "exported, float32", partial(finding, read_exported(whole), precision="float32")),
        Contender(name, "exported, bf16", partial(finding, read_exported(whole), precision="bf16"), exact=False),
    ]
    if args.compile:
        contenders.append(Contender(name, "torch.compile", partial(plain, checkpoint, compiled=True)))
    task = read_exported(whole).description.task
    if task != "panoptic":  # whose labels are two files each
        labelled = folder_of / "labelled"
        label_scenes(labelled, task == "segment", int(name.rsplit("-", 1)[1]))
        try:
            apart(export, checkpoint, int8, str(labelled))
        except RuntimeError as error:  # refused; the others are timed all the same
            print(f"{name}: no int8: {error}", flush=True)
        else:
            contenders.append(Contender(name, "exported, int8", partial(finding, read_exported(int8)), exact=False))
    if rival := RIVALS.get(name.rsplit("-", 1)[0]):
        contenders.append(Contender(name, rival[0], partial(rival[1], checkpoint), exact=False))
    network, description = opened(checkpoint)
    find, pictures = eager(network, description), scenes(description)
    expected = np.concatenate([find(picture[None]) for picture in pictures])
    timed = {"seconds": args.seconds, "calls": 2, "cores": sorted(os.sched_getaffinity(0))}
    found = compare(contenders, pictures, {name: expected}, **timed, check=check)
    best = min((row for row in found[:2] if row.ms is not None), key=lambda row: row.ms or 0.0)
    return [as_row(row, best) for row in found]


def keep(checkpoint: str) -> None:
    """What a command leaves at a terminal for the next start."""
    from vankit.deploy.kept import keep_whole
    from vankit.deploy.opening import open_network

    keep_whole(open_network(checkpoint=checkpoint))


def starts(name: str, folder_of: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    checkpoint, whole, photo, out = (str(folder_of / f"{name}{end}") for end in (".safetensors", "", ".jpg", "-out"))
    apart(make_checkpoint, name, checkpoint)
    apart(export, checkpoint, whole)
    apart(keep, checkpoint)
    Image.fromarray(scenes(read_exported(whole).description)[0]).save(photo)
    predict = ["predict", photo, "--output", out]
    commands = {
        "exported folder": [VANKIT, *predict, "--model", whole],
        "checkpoint, second start": [VANKIT, *predict, "--checkpoint", checkpoint],
        "checkpoint, head on PyTorch": [
            "env", f"VANKIT_CACHE={folder_of}/other", VANKIT, *predict, "--checkpoint", checkpoint
        ],
    }  # fmt: skip
    return [
        {
            "model": name,
            "contender": contender,
            "seconds": statistics.median(run.seconds for run in runs),
            "seconds_min": min(run.seconds for run in runs),
            "seconds_max": max(run.seconds for run in runs),
            "cpu_seconds": statistics.median(run.cpu for run in runs),
            "peak_mb": statistics.median(run.peak for run in runs),
            "runs": len(runs),
        }
        for contender, runs in in_turns(commands, args.starts).items()
    ]


def as_row(row: Timing, best: Timing) -> dict[str, Any]:
    """With how many times as fast it is as the better one of eager PyTorch's layouts, round by round."""
    values = {field.name: getattr(row, field.name) for field in fields(row) if not field.name.startswith("speedup")}
    ratios = [other / own for own, other in zip(row.rounds, best.rounds, strict=False)]
    low, middle, high = np.percentile(ratios, (25, 50, 75)) if ratios else (None, None, None)
    values |= {"rounds": len(row.rounds), "times_as_fast": middle, "times_low": low, "times_high": high}
    values["objects"] = values.pop("difference")
    return values


def write(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Replace the rows of this CPU and these networks, and keep the others."""
    new = {(facts["cpu"], row["model"]) for row in rows}
    kept: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if (row["cpu"], row["model"]) not in new]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        writer.writerows(kept)
        writer.writerows({key: rounded(value) for key, value in (row | facts).items()} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=NETWORKS, metavar="HEAD-SIDE", help="such as mask_rcnn-640")
    parser.add_argument("--seconds", type=float, default=60, help="of timing, for each network")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes minutes")
    parser.add_argument("--starts", type=int, default=0, metavar="N", help="start N times instead, such as 9")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for a quiet machine")
    args = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder_of:
            os.environ["VANKIT_CACHE"] = f"{folder_of}/cache"
            facts = machine(wait_until_quiet(args.patience))
            rows = (starts if args.starts else measure)(name, Path(folder_of), args)
        for row in rows:
            print({key: rounded(value) for key, value in row.items() if value is not None}, flush=True)
        write(RESULTS / ("dense_start.csv" if args.starts else "dense_inference.csv"), rows, facts)


if __name__ == "__main__":
    main()
