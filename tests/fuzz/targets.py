"""The readers of vankit that are given what others wrote: per target the files that vary, and the calls that read them.

A call may return, or raise a `vankit.errors.UserError`; `watch` says what else is a finding.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from vankit.data.held_out import HeldOut
from vankit.data.images import is_turned, load_image, load_png, read_size
from vankit.data.label_maps import parse_map
from vankit.data.multilabel import open_multilabel
from vankit.data.reading import Reading
from vankit.data.scenes import open_scenes
from vankit.deploy.folder import Exported, read_exported
from vankit.deploy.opening import open_network
from vankit.files import read_json
from vankit.heads.build import build_network
from vankit.models.description import Description
from vankit.models.weights import read_checkpoint, read_metadata, read_tensors
from vankit.prediction.tables import open_table

MAX_PIXELS = 1_000_000
_LARGEST_INPUT = 4096  # pixels of a side; above, a test of preprocessing only allocates
SEPARATOR = b"\n\0--\n"
_PREPROCESSING = {
    "input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic",
}  # fmt: skip
_READINGS = (Reading(), Reading(skip_bad=True, tolerant=True))

Case = dict[str, bytes]


@dataclass(frozen=True)
class Target:
    """A reader.

    Attributes:
        name: of the reader.
        files: that vary, relative to the folder; of several, one that is empty is not there.
        steps: calls on the folder, each of which may end in an answer.
    """

    name: str
    files: Sequence[str]
    steps: Sequence[Callable[[Path], object]]

    def join(self, case: Case) -> bytes:
        """A case as the bytes that a fuzzer changes."""
        return SEPARATOR.join(case.get(name, b"") for name in self.files)

    def split(self, data: bytes) -> Case:
        """The case in any bytes."""
        return dict(zip(self.files, data.split(SEPARATOR, len(self.files) - 1), strict=False))

    def write(self, case: Case, folder: Path) -> None:
        """Put the files of a case into a folder in place of those of the last one."""
        for name in self.files:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if case.get(name) or len(self.files) == 1:
                path.write_bytes(case[name])


def _decode(folder: Path) -> None:
    image = load_image(folder / "image", MAX_PIXELS)
    assert image.mode == "RGB" and image.width * image.height <= MAX_PIXELS


def _open(task: str, masks: bool = True) -> Sequence[Callable[[Path], object]]:
    def opened(reading: Reading) -> Callable[[Path], object]:
        return lambda folder: _use(open_scenes(folder, task, "train", masks=masks, reading=reading))

    return [opened(reading) for reading in _READINGS]


def _use(dataset: Any) -> None:
    """Everything that a run asks of a set."""
    assert len(dataset.names) == len(dataset) and all(isinstance(name, str) for name in dataset.classes)
    for item in map(dataset.__getitem__, range(len(dataset))):
        for value in () if item is None else item[1].values():
            assert np.isfinite(np.asarray(value, np.float64)).all()
    dataset.check_labels()


def _labels(reading: Reading) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        dataset = open_multilabel(folder, "train", np.asarray, HeldOut(plain=True), reading)
        for item in map(dataset.__getitem__, range(len(dataset))):
            assert item is None or set(item[1].tolist()) <= {0, 1}

    return read


def _describe(folder: Path) -> None:
    _describes(Description.from_metadata(read_json(folder / "metadata.json"), Description()))


def _describe_whole(folder: Path) -> None:
    _describes(Description.from_metadata(read_json(folder / "metadata.json")))


def _build(folder: Path) -> None:
    build_network(Description.from_metadata(read_json(folder / "metadata.json")))


def _describes(description: Description) -> None:
    """What a description is used for, whatever it says."""
    assert hash(description) == hash(description)
    again = Description.from_metadata(json.loads(json.dumps(description.to_metadata())), Description())
    assert again.to_metadata() == description.to_metadata()
    if (settings := description.preprocessing) is not None and max(settings.input_size) <= _LARGEST_INPUT:
        from PIL import Image

        assert np.isfinite(settings(Image.new("RGB", (8, 6)))).all()


def _exported(folder: Path) -> None:
    found = read_exported(folder)
    _describes(found.description)
    assert found.path.is_file() and found.precision in ("float32", "int8") and isinstance(found.dynamic, bool)
    found._verify()


def _load_program(folder: Path) -> None:
    """What passed has operators alone, on tensors that are in it; `watch` sees what is run meanwhile."""
    content = {"task": "classify", "classes": ["a", "b"], "preprocessing": _PREPROCESSING}
    description = Description.from_metadata(content, Description())
    engine: Any = Exported(folder, "pt2", "float32", True, description)._torch_engine("float32")
    for node in engine._eager.graph.nodes:
        assert node.op != "call_module" or node.target == "_guards_fn", node.target  # PyTorch's own, of the sizes
        assert node.op != "call_function" or _is_operator(node.target), node.target


def _is_operator(target: Any) -> bool:
    import torch

    return isinstance(target, torch._ops.OpOverload) or target.__module__ in ("_operator", "math", "torch")


def _resume(name: str) -> Callable[[Path], object]:
    row = {"image": "new.png", "labels": ["a", "b"], "indices": [0, 1], "scores": [0.5, 0.25], "error": None}

    def read(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(folder / f"{name}.parts", ignore_errors=True)
        with open_table(path, 2, resume=True) as table:
            kept, new = len(table.done), table.done.take("new.png")
            table.write(row)
        with open_table(path, 2, resume=True) as table:
            assert len(table.done) == kept + 1, "a row was lost, or one was added"
            assert [table.done.take("new.png") for _ in range(1 + new)] == [True] * (1 + new), "it is another row"

    return read


def _by_name(*targets: Target) -> dict[str, Target]:
    return {target.name: target for target in targets}


TARGETS = _by_name(
    Target(
        "image",
        ("image",),
        (
            _decode,
            lambda folder: load_image((folder / "image").read_bytes(), MAX_PIXELS, min_side=4, tolerant=True),
            lambda folder: read_size(folder / "image"),
            lambda folder: is_turned(folder / "image"),
            lambda folder: load_png(folder / "image", MAX_PIXELS),
        ),
    ),
    Target(
        "checkpoint",
        ("weights",),
        (lambda folder: read_checkpoint(folder / "weights"), lambda folder: read_metadata(folder / "weights")),
    ),
    Target("network", ("weights",), (lambda folder: open_network(checkpoint=folder / "weights"),)),
    Target("head", ("metadata.json",), (_build,)),
    Target(
        "beside",
        ("hf/config.json", "hf/preprocessor_config.json", "timm/config.json"),
        (
            lambda folder: open_network(checkpoint=folder / "hf" / "model.safetensors"),
            lambda folder: open_network(checkpoint=folder / "timm" / "model.safetensors"),
        ),
    ),
    Target(
        "run",
        ("run/config.json",),
        (
            lambda folder: _describes(
                Description.from_metadata(read_tensors(folder / "run" / "resume.ckpt").metadata, Description())
            ),
        ),
    ),
    Target("coco", ("annotations/instances_train.json",), (*_open("detect"), *_open("detect", masks=False))),
    Target(
        "panoptic",
        ("annotations/panoptic_train.json", "annotations/panoptic_train/a.png"),
        _open("panoptic"),
    ),
    Target(
        "yolo",
        ("data.yaml", "labels/train/a.txt", "train.txt", "classes.txt", "obj.names"),
        (*_open("detect"), *_open("detect", masks=False)),
    ),
    Target(
        "voc",
        ("Annotations/a.xml", "ImageSets/Main/train.txt", "classes.txt", "Annotations/b.xml"),
        _open("detect", masks=False),
    ),
    Target(
        "semantic",
        ("palette.txt", "class_dict.csv", "labelmap.txt", "classes.txt", "annotations/train/a.png"),
        _open("segment"),
    ),
    Target(
        "map_labels",
        ("pairs.txt",),
        (lambda folder: parse_map((folder / "pairs.txt").read_text(errors="surrogateescape").splitlines()),),
    ),
    Target("multilabel", ("train.csv", "val.csv"), tuple(map(_labels, _READINGS))),
    Target("exported", ("export.json", "preprocessing.json", "labels.txt"), (_exported,)),
    Target("program", ("model.pt2",), (_load_program,)),
    Target("metadata", ("metadata.json",), (_describe, _describe_whole)),
    *(Target(f"table-{kind}", (f"rows.{kind}",), (_resume(f"rows.{kind}"),)) for kind in ("csv", "jsonl", "parquet")),
)


def find(name: str) -> Target:
    """A target by its name, or another one as module:name."""
    module, _, attribute = name.rpartition(":")
    return getattr(import_module(module), attribute) if module else TARGETS[name]
