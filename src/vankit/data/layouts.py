"""Where the annotations of a folder are: COCO's JSON, YOLO's text files or Pascal VOC's XML."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from vankit.data.coco import read_coco
from vankit.data.coco_entries import Content
from vankit.data.voc import find_voc, read_voc
from vankit.data.walk import SPLITS, split_folder
from vankit.data.yolo import find_yolo, is_plain, read_yolo
from vankit.errors import MissingFileError, UserError

_ROBOFLOW = "_annotations.coco.json"


@dataclass(frozen=True)
class Source:
    """A split's annotations.

    Attributes:
        images: folder of the pictures.
        annotations: the file or folder that says what is in them.
        read: from `annotations` to COCO's content.
        plain: they are the whole set, which has no splits.
    """

    images: Path
    annotations: Path
    read: Callable[[Path], Content] = read_coco
    plain: bool = False


def find_source(root: Path, split: str, kind: Literal["instances", "panoptic"]) -> Source | None:
    """One split of a folder of annotated images, or the whole of it where it has no splits.

    Raises:
        FileNotFoundError: there are annotations without a folder of pictures.
        ValueError: several files fit.
    """
    if found := find_coco(root, split, kind):
        return found
    if kind == "panoptic":
        return None
    return _yolo(root, split) or _voc(root, split)


def find_coco(root: Path, split: str, kind: Literal["instances", "panoptic"]) -> Source | None:
    """One split of a COCO folder.

    Known layouts: `annotations/KIND_train2017.json` (instances also as `train.json`, both also in the folder itself)
    with the pictures in `train2017`, `images/train2017`, `train`, `images/train` or `images`; Roboflow's
    `train/_annotations.coco.json` with the pictures beside it, instances only; and, for a set without splits,
    `KIND.json` or `KIND_default.json` with `images`. A validation set may be called val, valid or validation.
    """
    found = sorted({path for path in _json_files(root) if _is_split(path.stem.lower(), split, kind)})
    if len(found) > 1:
        raise UserError(f"{root} has several {split} sets, expected one: {', '.join(path.name for path in found)}")
    if found:
        rest = found[0].stem.removeprefix(f"{kind}_")
        names = dict.fromkeys((rest, *SPLITS.get(split, (split,))))
        folders = [base / name for name in names for base in (root, root / "images")]
        return Source(_image_folder(found[0], [*folders, root / "images"]), found[0])
    folder = split_folder(root, split)
    if kind == "instances" and folder is not None and (folder / _ROBOFLOW).is_file():
        return Source(folder, folder / _ROBOFLOW)
    whole = [path for path in _json_files(root) if path.stem in (kind, f"{kind}_default")]
    splits = any(_is_split(path.stem.lower(), name, kind) for path in _json_files(root) for name in (*SPLITS, "test"))
    if whole and not splits:
        return Source(_image_folder(whole[0], [root / "images"]), whole[0], plain=True)
    return None


def _json_files(root: Path) -> Iterator[Path]:
    for folder in (root / "annotations", root):
        yield from sorted(folder.glob("*.json"))


def _is_split(stem: str, split: str, kind: str) -> bool:
    return stem.startswith(f"{kind}_{split}") or (kind == "instances" and stem in SPLITS.get(split, (split,)))


def _image_folder(annotations: Path, candidates: list[Path]) -> Path:
    folder = next((folder for folder in candidates if folder.is_dir()), None)
    if folder is None:
        looked = ", ".join(map(str, candidates))
        raise MissingFileError(f"no pictures for {annotations}: looked for the folders {looked}")
    return folder


def _yolo(root: Path, split: str) -> Source | None:
    if images := find_yolo(root, split):
        folder = images if images.is_dir() else root
        return Source(folder, root, lambda _: read_yolo(root, images))
    if is_plain(root):
        return Source(root / "images", root, lambda _: read_yolo(root, root / "images"), plain=True)
    return None


def _voc(root: Path, split: str) -> Source | None:
    plain = not any(find_voc(root, name) for name in (*SPLITS, "test"))
    found = find_voc(root, "" if plain else split)
    if found is None:
        return None
    images, annotations, listed = found
    train = None if plain else find_voc(root, "train")
    read = partial(read_voc, root, images, annotations, listed, train and train[1])
    return Source(images, annotations, lambda _: read(), plain)


def explain_missing(root: Path, split: str, kind: str) -> MissingFileError:
    """The error that says what was looked for."""
    names = " or ".join(SPLITS.get(split, (split,)))
    others = (
        f", {names}/{_ROBOFLOW}, YOLO's data.yaml with images and labels, or Pascal VOC's XML files"
        if kind == "instances"
        else ""
    )
    return MissingFileError(
        f"no {kind} of split {split} in {root}: looked for annotations/{kind}_{split}*.json, "
        f"annotations/{kind}.json{others}"
    )
