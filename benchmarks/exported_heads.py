"""Does an exported detector or segmenter find what the trained network finds? On the scenes that it was trained for.

    python benchmarks/exported_heads.py DATA PHOTOS CHECKPOINT [CHECKPOINT ...]

Each network is exported in each way, which compares the model with PyTorch on PHOTOS (a folder or glob pattern; those
of DATA's split val, say) and on generated scenes. Then AP, mIoU or PQ on DATA's split val is measured with PyTorch
alone and with each folder, in float32, of one also in bf16. A row per network and way in
benchmarks/results/exported_heads.csv, where rows of other networks are kept. The detectors of docs/export.md were
trained by benchmarks/overfit_scenes.py.
"""

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inference import has_bf16, rounded

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


def rows(checkpoint: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    description = open_network(checkpoint=checkpoint).description
    network = {"head": description.head, "task": description.task, "data": Path(args.data).name}
    yield {**network, "way": "PyTorch", **measured(args.data, checkpoint=checkpoint, engine="torch")}
    for way in args.ways:
        options = dict(WAYS[way], calibrate=args.data) if "int8" in WAYS[way] else WAYS[way]
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = vankit.export(checkpoint=checkpoint, out=f"{folder}/{way}", check=args.photos, **options)
            except UserError as error:
                yield {**network, "way": way, "note": str(error)}
                continue
            size = sum(file.stat().st_size for file in found.folder.glob("model.*")) / 1e6
            value = measured(args.data, model=found.folder, precision="auto" if "int8" in way else "float32")
            yield {**network, "way": way, "megabytes": size, **compared(found.facts), **value}
            if way == "openvino" and has_bf16():
                yield {**network, "way": "openvino, bf16", **measured(args.data, model=found.folder, precision="bf16")}


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
    parser.add_argument("data")
    parser.add_argument("photos")
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    args = parser.parse_args()
    for checkpoint in args.checkpoints:
        for row in rows(checkpoint, args):
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
