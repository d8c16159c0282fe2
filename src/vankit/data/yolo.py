"""Boxes and polygons in YOLO's layout, as COCO's content: `images/`, `labels/` with a text file each, data.yaml."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from vankit.data.coco_entries import Content, Flaw, finite, refuse_outside, unlisted
from vankit.data.images import read_size
from vankit.data.reading import STRICT, Reading
from vankit.data.walk import SPLITS, PassedOver, is_image, split_folder, walk_images
from vankit.errors import UserError
from vankit.files import read_text

_CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LONGEST_PATH = 4096
_LISTS = ("classes.txt", "labels/classes.txt", "obj.names")


def find_yolo(root: Path, split: str) -> list[Path] | None:
    """The folders of a split's images, or the text files that list them.

    Known layouts: what data.yaml says of `train` and `val`; `images/SPLIT` with `labels/SPLIT`; `SPLIT/images` with
    `SPLIT/labels`; `SPLIT` with images and text files side by side; `SPLIT.txt` beside obj.names. For a set without
    splits see `whole_yolo`.

    Args:
        root: the folder, with data.yaml or classes.txt.
        split: train, val, or the name of another folder.

    Raises:
        ValueError: data.yaml cannot be read, or names what is not in the folder.
    """
    if not is_yolo(root):
        return None
    config, names = _config(root), SPLITS.get(split, (split,))
    entries = next((entry for name in names if (entry := _entries(config.get(name)))), [])
    if entries and all(found := [_named(root, config, entry) for entry in entries]):
        return [path for path in found if path is not None]
    if folder := _by_name(root, split):
        return [folder]
    if (root / "obj.names").is_file() and (
        lists := [root / f"{n}.txt" for n in names if (root / f"{n}.txt").is_file()]
    ):
        return lists
    if entries:
        raise UserError(
            f"{_config_file(root)} says that {split} is {', '.join(entries)}, which is not in {root}: expected a "
            "folder or a text file in it"
        )
    return None


def _entries(value: Any) -> list[str]:
    entries = [each for each in (value if isinstance(value, list) else [value]) if each not in (None, "", ".", "null")]
    if not all(isinstance(each, str) for each in entries):
        raise UserError(
            f"data.yaml has {str(value)[:200]} for a split: expected a folder, a text file or a list of these"
        )
    return entries


def _by_name(root: Path, split: str) -> Path | None:
    if (folder := split_folder(root / "images", split)) is not None:
        return folder
    folder = split_folder(root, split)
    return folder / "images" if folder is not None and (folder / "images").is_dir() else folder


def is_yolo(root: Path) -> bool:
    """Whether a folder is in YOLO's layout: it says which classes there are."""
    return _config_file(root) is not None or any((root / name).is_file() for name in _LISTS)


def whole_yolo(root: Path) -> Path | None:
    """The images of a folder in YOLO's layout without splits: in `images`, or beside their text files."""
    if not is_yolo(root) or any(find_yolo(root, split) for split in (*SPLITS, "test")):
        return None
    if (root / "images").is_dir():
        return root / "images"
    return root if next((path for path in root.iterdir() if is_image(path.name)), None) else None


def _config_file(root: Path) -> Path | None:
    known = next((root / name for name in _CONFIGS if (root / name).is_file()), None)
    others = sorted(root.glob("*.yaml")) if known is None and root.is_dir() else []
    return others[0] if len(others) == 1 else known


def _config(root: Path) -> dict[str, Any]:
    path = _config_file(root)
    if path is None:
        return {}
    try:
        content = yaml.load(read_text(path), _Plain)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a YOLO configuration: expected train, val and names")
    return content


class _Plain(yaml.BaseLoader):
    """Text alone, in lists and dicts, so that a class may be called no; without aliases, of which a few lines can stand
    for gigabytes once they are printed."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*), which are not read: write out what they stand for")
        return super().compose_node(parent, index)


def _named(root: Path, config: dict[str, Any], entry: str) -> Path | None:
    """What data.yaml names; exporters write paths of their own machine, of which the end is right."""
    if len(entry) > _LONGEST_PATH:
        return None
    base = config.get("path")
    inside = [part for part in Path(entry).parts if part not in ("..", ".", os.sep)]
    tails = [
        root / Path(*inside[i:]) for i in range(max(1, len(inside) - 1))
    ]  # two parts, of which one names the split
    candidates = (root / (base if isinstance(base, str) else "") / entry, root / entry, *tails)
    lexical = (Path(os.path.abspath(path)) for path in candidates)
    return next((path for path in lexical if path.is_relative_to(os.path.abspath(root)) and os.path.exists(path)), None)


def read_yolo(root: Path, images: Sequence[Path], base: Path, reading: Reading = STRICT) -> Content:
    """A split's images and objects as COCO's content, with what cannot be read under `flaws`.

    A line is `class x y width height`, the box's centre and size, or `class x y x y x y …`, a polygon, all as parts of
    the image's width and height; with `kpt_shape` in data.yaml keypoints follow the box. An image without a text file,
    or with an empty one, has no objects.

    Args:
        root: the folder of the set.
        images: see `find_yolo`.
        base: folder that the names of the images are relative to.
        reading: whether images that a list names outside the folder are read.

    Raises:
        ValueError: the class names cannot be read, or no image has labels.

    Source: docs.ultralytics.com/datasets/detect, /segment and /pose.
    """
    config = _config(root)
    keypoints = _keypoints(config)
    content: Content = {"images": [], "annotations": [], "categories": [], "flaws": [], "notes": []}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(_class_names(root, config))]
    passed_over, unlabelled, path = PassedOver(), 0, root
    for number, path in enumerate(_listed(root, images, passed_over), 1):
        name = os.path.relpath(path, base)
        try:
            width, height = _size(name, path, root, reading)
        except Flaw as flaw:
            content["flaws"].append((name, flaw))
            continue
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        if (labels := label_file(path)).exists():
            _add_objects(content, number, labels, (width, height), keypoints)
        else:
            unlabelled += 1
    content["flaws"] += unlisted(passed_over)
    if content["images"] and unlabelled == len(content["images"]):
        raise UserError(
            f"no image in {', '.join(map(str, images))} has labels: expected text files such as {label_file(path)}"
        )
    if unlabelled:
        content["notes"].append(f"images without a label file, taken as empty ({unlabelled:,})")
    passed_over.counts.pop(".txt", None)  # labels may lie beside the images
    passed_over.log(root)
    return content


def _size(name: str, path: Path, root: Path, reading: Reading) -> tuple[int, int]:
    """(width, height) of an image, which is opened only where it may be."""
    if not reading.allow_outside:
        refuse_outside(name, path, root)
    try:
        return read_size(path)
    except (OSError, ValueError) as error:
        raise Flaw("images that cannot be read", str(error)) from error


def _keypoints(config: dict[str, Any]) -> int:
    """Numbers that follow a box in a set of poses."""
    shape = config.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or len(shape) != 2 or not all(re.fullmatch("[0-9]{1,4}", str(n)) for n in shape):
        raise UserError(f"data.yaml has kpt_shape {shape}: expected two whole numbers, such as [17, 3]")
    return int(shape[0]) * int(shape[1])


def _class_names(root: Path, config: dict[str, Any]) -> list[str]:
    names = config.get("names")
    if isinstance(names, dict):
        if sorted(names) != sorted(map(str, range(len(names)))):
            raise UserError(f"data.yaml in {root} has names {', '.join(names)}: expected one for each number from 0")
        names = [names[str(i)] for i in range(len(names))]
    if names is None and (table := next((root / name for name in _LISTS if (root / name).is_file()), None)):
        names = [line.strip() for line in read_text(table).rstrip().splitlines()]
    if not isinstance(names, list) or not names or "" in names:
        raise UserError(f"no class names in {root}: expected names in data.yaml, or classes.txt with one per line")
    if config.get("nc") not in (None, str(len(names))):
        raise UserError(f"data.yaml in {root} has nc {config['nc']} and {len(names)} names: expected as many")
    return list(map(str, names))


def _listed(root: Path, images: Sequence[Path], passed_over: PassedOver) -> Iterator[Path]:
    for source in images:
        if source.is_dir():
            yield from map(Path, walk_images(source, passed_over, skip_bad=True))
            continue
        for line in filter(is_image, map(str.strip, read_text(source).splitlines())):
            yield _named(root, {}, line) or root / line


def label_file(image: Path) -> Path:
    """Where an image's labels are: in `labels` where it is in `images`, else beside it."""
    parts = list(image.with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] in ("images", "Images"):
            parts[i] = {"images": "labels", "Images": "Labels"}[parts[i]]
            break
    return Path(*parts)


def _add_objects(content: Content, image: int, labels: Path, size: tuple[int, int], keypoints: int) -> None:
    try:
        lines = read_text(labels).splitlines()
    except (UserError, OSError) as error:
        content["flaws"].append((labels.name, Flaw("label files that cannot be read", str(error))))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = _entry(line, *size, keypoints)
        except Flaw as flaw:
            content["flaws"].append((labels.name, Flaw(flaw.kind, f"line {number}: {flaw}")))
            continue
        content["annotations"].append({"id": f"{labels.name} line {number}", "image_id": image, **entry})


def _entry(line: str, width: int, height: int, keypoints: int) -> dict[str, Any]:
    try:
        label, *values = map(float, line.split())
    except ValueError:
        raise Flaw("lines that are not numbers", f"{line!r} is not a list of numbers") from None
    if not label.is_integer() or not finite(values):
        raise Flaw("lines that are not numbers", f"{line!r} has no whole number first, or one that is not finite")
    if keypoints and len(values) == 4 + keypoints:
        values = values[:4]
    if any(abs(value) > 2 for value in values):
        raise Flaw("lines in pixels", f"{line!r} has values beyond the image: expected parts of its sides, from 0 to 1")
    if len(values) in (4, 5):  # a fifth is the confidence of a prediction
        x, y, w, h = values[:4]
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return {"category_id": int(label), "bbox": box}
    if len(values) < 6 or len(values) % 2 or keypoints:
        raise Flaw(
            "lines of another length",
            f"{len(values) + 1} numbers: expected class x y width height, or class and at least 3 points x y",
        )
    polygon = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    return {"category_id": int(label), "segmentation": [polygon]}
