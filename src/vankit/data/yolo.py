"""Boxes and polygons in YOLO's layout, as COCO's content: `images/`, `labels/` with a text file each, data.yaml."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from vankit.data.coco_entries import Content, Flaw, finite
from vankit.data.images import read_size
from vankit.data.walk import SPLITS, is_image, split_folder, walk_images
from vankit.errors import UserError
from vankit.files import read_text

_CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LISTS = ("classes.txt", "labels/classes.txt", "obj.names")


def find_yolo(root: Path, split: str) -> Path | None:
    """The folder of a split's images, or the text file that lists them.

    Known layouts: what data.yaml says of `train` and `val`; `images/SPLIT` with `labels/SPLIT`; `SPLIT/images` with
    `SPLIT/labels`. For a set without splits, `images` with `labels`: see `is_plain`.

    Args:
        root: the folder, with data.yaml or classes.txt.
        split: train, val, or the name of another folder.

    Raises:
        ValueError: data.yaml cannot be read.
    """
    if not is_yolo(root):
        return None
    config = _config(root)
    for name in SPLITS.get(split, (split,)):
        if found := _named(root, config, config.get(name)):
            return found
    if (folder := split_folder(root / "images", split)) is not None:
        return folder
    if (folder := split_folder(root, split)) is not None and (folder / "images").is_dir():
        return folder / "images"
    return None


def is_yolo(root: Path) -> bool:
    """Whether a folder is in YOLO's layout: it says which classes there are."""
    return any((root / name).is_file() for name in (*_CONFIGS, *_LISTS))


def is_plain(root: Path) -> bool:
    """Whether a folder in YOLO's layout has no splits, and `images` with `labels`."""
    known = any(find_yolo(root, split) for split in (*SPLITS, "test"))
    return is_yolo(root) and not known and (root / "images").is_dir() and (root / "labels").is_dir()


def _config(root: Path) -> dict[str, Any]:
    path = next((root / name for name in _CONFIGS if (root / name).is_file()), None)
    if path is None:
        return {}
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a YOLO configuration: expected train, val and names")
    return content


def _named(root: Path, config: dict[str, Any], entry: Any) -> Path | None:
    """What data.yaml names; exporters write paths of their own machine, of which the end is right."""
    if not isinstance(entry, str):
        return None
    base = config.get("path") if isinstance(config.get("path"), str) else ""
    inside = [part for part in Path(entry).parts if part not in ("..", ".", os.sep)]
    tails = [Path(*inside[i:]) for i in range(len(inside))]
    candidates = (root / str(base) / entry, root / entry, *(root / tail for tail in tails))
    return next((path for path in candidates if path.exists() and path.resolve().is_relative_to(root.resolve())), None)


def read_yolo(root: Path, images: Path) -> Content:
    """A split's images and objects as COCO's content, with what cannot be read under `flaws`.

    A line is `class x y width height`, the box's centre and size, or `class x y x y x y …`, a polygon, all as parts of
    the image's width and height. An image without a text file, or with an empty one, has no objects.

    Args:
        root: the folder of the set.
        images: see `find_yolo`.

    Raises:
        ValueError: the class names cannot be read, or no image has labels.

    Source: docs.ultralytics.com/datasets/detect and /segment.
    """
    content: Content = {"images": [], "annotations": [], "categories": [], "flaws": []}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(_class_names(root))]
    labelled = 0
    for number, path in enumerate(_listed(root, images), 1):
        name = os.path.relpath(path, images if images.is_dir() else root)
        try:
            width, height = read_size(path)
        except (OSError, ValueError) as error:
            content["flaws"].append((name, Flaw("images that cannot be read", str(error))))
            continue
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        if (labels := label_file(path)).is_file():
            labelled += 1
            _add_objects(content, number, labels, width, height)
    if content["images"] and not labelled:
        raise UserError(f"no image in {images} has labels: expected text files such as {label_file(path)}")
    return content


def _class_names(root: Path) -> list[str]:
    config = _config(root)
    names = config.get("names")
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"data.yaml in {root} has names {sorted(names)}: expected one for each number from 0")
        names = [names[i] for i in range(len(names))]
    if names is None and (table := next((root / name for name in _LISTS if (root / name).is_file()), None)):
        names = [line.strip() for line in read_text(table).rstrip().splitlines()]
    if not isinstance(names, list) or not names or "" in names:
        raise UserError(f"no class names in {root}: expected names in data.yaml, or classes.txt with one per line")
    return list(map(str, names))


def _listed(root: Path, images: Path) -> Iterator[Path]:
    if images.is_dir():
        yield from map(Path, walk_images(images))
        return
    for line in read_text(images).splitlines():
        if line.strip() and is_image(line.strip()):
            yield _named(root, {}, line.strip()) or root / line.strip()


def label_file(image: Path) -> Path:
    """Where an image's labels are: in `labels` where it is in `images`, else beside it."""
    parts = list(image.with_suffix(".txt").parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i].lower() == "images":
            parts[i] = "labels"
            break
    return Path(*parts)


def _add_objects(content: Content, image: int, labels: Path, width: int, height: int) -> None:
    try:
        lines = read_text(labels).splitlines()
    except UserError as error:
        content["flaws"].append((labels.name, Flaw("label files that cannot be read", str(error))))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = _entry(line, width, height)
        except Flaw as flaw:
            content["flaws"].append((labels.name, Flaw(flaw.kind, f"line {number}: {flaw}")))
            continue
        content["annotations"].append({"id": len(content["annotations"]) + 1, "image_id": image, **entry})


def _entry(line: str, width: int, height: int) -> dict[str, Any]:
    try:
        label, *values = map(float, line.split())
    except ValueError:
        raise Flaw("lines that are not numbers", f"{line!r} is not a list of numbers") from None
    if not label.is_integer() or not finite(values):
        raise Flaw("lines that are not numbers", f"{line!r} has no whole number first, or one that is not finite")
    if any(abs(value) > 2 for value in values[:4]):
        raise Flaw("lines in pixels", f"{line!r} has values beyond the image: expected parts of its sides, from 0 to 1")
    if len(values) in (4, 5):  # a fifth is the confidence of a prediction
        x, y, w, h = values[:4]
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return {"category_id": int(label), "bbox": box}
    if len(values) < 6 or len(values) % 2:
        raise Flaw(
            "lines of another length",
            f"{len(values) + 1} numbers: expected class x y width height, or class and at least 3 points x y",
        )
    polygon = [value * (height if i % 2 else width) for i, value in enumerate(values)]
    return {"category_id": int(label), "segmentation": [polygon]}
