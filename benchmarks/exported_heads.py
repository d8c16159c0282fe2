"""Does an exported detector or segmenter find what the network finds in PyTorch?

    python benchmarks/exported_heads.py PHOTOS CHECKPOINT ... --data DATA
    python benchmarks/exported_heads.py PHOTOS mask_rcnn-320 ...

Each network is exported in each way, which compares the model with PyTorch on PHOTOS (a folder or glob pattern; those
of DATA's split val, say) and on generated scenes. Then AP, mIoU or PQ on DATA's split val is measured with PyTorch
alone and with each folder, in float32, of one also in bf16. A name such as mask_rcnn-320 is a network for that side
with the random weights of benchmarks/dense_inference.py, which give clear answers; of it nothing is measured. A row per
network and way in benchmarks/results/exported_heads.csv, where rows of other networks are kept. The detectors of
docs/export.md were trained by benchmarks/overfit_scenes.py.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dense_inference import NETWORKS, make_checkpoint
from inference import apart, has_bf16, rounded

import vankit
from vankit.deploy.opening import open_network
from vankit.errors import UserError

RESULTS = Path(__file__).parent / "results" / "exported_heads.csv"
COLUMNS = (
    "head", "task", "data", "way", "note", "megabytes", "pictures", "objects", "same", "same_pixels",
    "score_difference", "measure", "value",
)  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "openvino": {},
    "openvino, half": {"half": True},
    "openvino, int8": {"int8": True},
    "onnx": {"format": "onnx"},
}
MEASURES = "mask AP", "box AP", "mIoU", "PQ"  # the first that there is


def rows(checkpoint: Path, name: str, data: str | None, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    description = open_network(checkpoint=checkpoint).description
    network = {"head": description.head, "task": description.task, "data": Path(data).name if data else name}
    if data:
        yield {**network, "way": "PyTorch", **measured(data, checkpoint=checkpoint, engine="torch")}
    for way in args.ways:
        if "int8" in WAYS[way] and not data:  # there is nothing to measure the ranges of values on
            continue
        options = dict(WAYS[way], calibrate=data) if "int8" in WAYS[way] else WAYS[way]
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = vankit.export(checkpoint=checkpoint, out=f"{folder}/{way}", check=args.photos, **options)
            except UserError as error:
                yield {**network, "way": way, "note": str(error)}
                continue
            size = sum(file.stat().st_size for file in found.folder.glob("model.*")) / 1e6
            row = {**network, "way": way, "megabytes": size, **compared(found.facts)}
            if not data:
                yield row
                continue
            yield row | measured(data, model=found.folder, precision="auto" if "int8" in way else "float32")
            if way == "openvino" and has_bf16():
                yield {**network, "way": "openvino, bf16", **measured(data, model=found.folder, precision="bf16")}


def compared(facts: dict[str, Any]) -> dict[str, Any]:
    """With PyTorch, in float32; of int8, what is left in float."""
    if "int8" in facts:
        return {"note": f"left in float: {', '.join(facts['int8']['left_out']) or 'nothing'}"}
    found = facts["agreement"]
    pixels = found["same_pixels"] / found["pixels"] if found["pixels"] else None
    return {"same_pixels": pixels} | {name: found[name] for name in ("pictures", "objects", "same", "score_difference")}


def measured(data: str, **network: Any) -> dict[str, Any]:
    measures = vankit.validate(data, **network).measures
    name = next(name for name in MEASURES if name in measures)
    return {"measure": name, "value": measures[name]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos")
    parser.add_argument("networks", nargs="+", metavar="NETWORK", help="checkpoint, or a name such as mask_rcnn-320")
    parser.add_argument("--data", help="labelled scenes, for checkpoints")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    args = parser.parse_args()
    heads = {name.rsplit("-", 1)[0] for name in NETWORKS}
    random = {network for network in args.networks if network.rsplit("-", 1)[0] in heads}
    if random != set(args.networks) and not args.data:
        parser.error("a checkpoint is measured on --data")
    for network in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(network)
            if network in random:
                checkpoint = Path(folder) / "random.safetensors"
                apart(make_checkpoint, network, str(checkpoint))
            for row in rows(checkpoint, network, None if network in random else args.data, args):
                print({name: rounded(value) for name, value in row.items()}, flush=True)
                write(row)


def write(row: dict[str, Any]) -> None:
    """Replace the row of this network and way, and keep the others."""
    own = ("head", "task", "data", "way")
    kept: list[dict[str, Any]] = []
    if RESULTS.exists():
        with RESULTS.open(newline="") as file:
            kept = [other for other in csv.DictReader(file) if any(other[name] != row[name] for name in own)]
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([*kept, {name: rounded(value) for name, value in row.items()}])


if __name__ == "__main__":
    main()
