"""Where the annotations of a folder are: COCO's JSON, YOLO's text files or Pascal VOC's XML."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vankit.data.coco import Read, read_coco
from vankit.data.voc import find_voc, read_voc
from vankit.data.walk import SPLITS, split_folder
from vankit.data.yolo import find_yolo, read_yolo, whole_yolo
from vankit.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)

_ROBOFLOW = "_annotations.coco.json"


@dataclass(frozen=True)
class Source:
    """A split's annotations.

    Attributes:
        images: folder of the pictures.
        annotations: the file or folder that says what is in them.
        read: from `annotations`, the classes of a network, if any, and how forgiving to be, to COCO's content.
        plain: they are the whole set, which has no splits.
    """

    images: Path
    annotations: Path
    read: Read = read_coco
    plain: bool = False


def find_source(root: Path, split: str, kind: Literal["instances", "panoptic"]) -> Source | None:
    """One split of a folder of annotated images; for train and val the whole of it, where it has no splits.

    Raises:
        ValueError: several files fit.
    """
    found = find_coco(root, split, kind)
    if found is None and kind == "instances":
        found = _voc(root, split) or _yolo(root, split)
    return None if found is not None and found.plain and split not in SPLITS else found


def find_coco(root: Path, split: str, kind: Literal["instances", "panoptic"]) -> Source | None:
    """One split of a COCO folder.

    Known layouts: `annotations/KIND_train2017.json` (instances also as `train.json`, both also in the folder itself)
    with the pictures in `train2017`, `images/train2017`, `train`, `images/train`, `images` or where the JSON says;
    Roboflow's `train/_annotations.coco.json` with the pictures beside it, instances only; and, for a set without
    splits, `KIND.json`, `KIND_default.json`, `result.json`, `labels.json` or `_annotations.coco.json`. A validation set
    may be called val, valid or validation.
    """
    found = sorted({path for path in _json_files(root) if _is_split(path.stem.lower(), split, kind)})
    if len(found) > 1:
        raise UserError(f"{root} has several {split} sets, expected one: {', '.join(path.name for path in found)}")
    if found:
        rest = found[0].stem.removeprefix(f"{kind}_")
        names = dict.fromkeys((rest, *SPLITS.get(split, (split,))))
        folders = [base / name for name in names for base in (root, root / "images")]
        return Source(_image_folder(root, [*folders, root / "images"]), found[0])
    folder = split_folder(root, split)
    if kind == "instances" and folder is not None and (folder / _ROBOFLOW).is_file():
        return Source(folder, folder / _ROBOFLOW)
    stems = [kind, f"{kind}_default", *["result", "labels", Path(_ROBOFLOW).stem] * (kind == "instances")]
    whole = [path for path in _json_files(root) if path.stem in stems]
    splits = any(_is_split(path.stem.lower(), name, kind) for path in _json_files(root) for name in (*SPLITS, "test"))
    if whole and not splits:
        return Source(
            _image_folder(root, [root / "images" / "default", root / "images", root / "data"]), whole[0], plain=True
        )
    return None


def _json_files(root: Path) -> Iterator[Path]:
    for folder in (root / "annotations", root):
        yield from sorted(folder.glob("*.json"))


def _is_split(stem: str, split: str, kind: str) -> bool:
    names = SPLITS.get(split, (split,))
    if kind == "instances" and stem in names:
        return True
    rest = stem.removeprefix(f"{kind}_")
    # train2017, but not trainval
    return rest != stem and any(rest.startswith(name) and not rest[len(name) :][:1].isalpha() for name in names)


def _image_folder(root: Path, candidates: list[Path]) -> Path:
    return next((folder for folder in candidates if folder.is_dir()), root)


def _yolo(root: Path, split: str) -> Source | None:
    images = find_yolo(root, split)
    plain = images is None
    if images is None:
        whole = whole_yolo(root)
        images = [] if whole is None else [whole]
    if not images:
        return None
    base = images[0] if len(images) == 1 and images[0].is_dir() else root
    if split == "val" and not plain and images == find_yolo(root, "train"):
        logger.warning("%s: train and val are the same images", root)
    return Source(base, root, lambda _, known, reading: read_yolo(root, images, base, reading), plain)


def _voc(root: Path, split: str) -> Source | None:
    plain = not any(find_voc(root, name) for name in (*SPLITS, "test"))
    found = find_voc(root, "" if plain else split)
    if found is None:
        return None
    images, annotations, listed = found
    train = None if plain else find_voc(root, "train")
    folders = (root, images, annotations, listed, train and train[1])
    return Source(images, annotations, lambda _, known, reading: read_voc(*folders, known, reading), plain)


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
