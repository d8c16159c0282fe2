"""Boxes in Pascal VOC's layout, as COCO's content: an XML file per image."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vankit.data.coco_entries import Content, Flaw, refuse_outside, unlisted
from vankit.data.reading import STRICT, Reading
from vankit.data.walk import SPLITS, PassedOver, is_image, split_folder, subfolders, walk_files, walk_images
from vankit.errors import UserError
from vankit.files import open_file, read_text

_IMAGES = ("JPEGImages", "images", "Images")
_ANNOTATIONS = ("Annotations", "annotations", "xmls")
_XML = frozenset({".xml"})
_CLASSES = ("classes.txt", "labels.txt")


def find_voc(root: Path, split: str) -> tuple[Path, Path, Path | None] | None:
    """The folders of a split's images and XML files, and the list of its images where there is one.

    Known layouts: VOC's `JPEGImages`, `Annotations` and `ImageSets/Main/SPLIT.txt`, also one folder further down
    (VOCdevkit); `images/SPLIT` with `annotations/SPLIT`; `SPLIT/images` with `SPLIT/annotations`; XML files
    beside the images in `SPLIT`.

    Args:
        root: the folder.
        split: train, val, or the name of another one; '' for the whole of a set that has none.
    """
    root = _year(root)
    pair = _pair(root)
    names = SPLITS.get(split, (split,))
    if pair is not None:
        images, annotations = pair
        for name in names:
            if split and (listed := root / "ImageSets" / "Main" / f"{name}.txt").is_file():
                return images, annotations, listed
        parts = (split_folder(images, split), split_folder(annotations, split)) if split else pair
        if parts[0] is not None and parts[1] is not None and _has_xml(parts[1]):
            return parts[0], parts[1], None
    folder = split_folder(root, split) if split else root
    inner = _pair(folder) if split and folder is not None else None
    if inner is not None and _has_xml(inner[1]):
        return *inner, None
    if folder is not None and _has_xml(folder):
        return folder, folder, None
    return None


def _year(root: Path) -> Path:
    """The folder itself, or the only one of VOCdevkit."""
    inner = [root / name for name in subfolders(root) if _pair(root / name) is not None]
    return inner[0] if len(inner) == 1 and _pair(root) is None else root


def _pair(root: Path) -> tuple[Path, Path] | None:
    images = next((root / name for name in _IMAGES if (root / name).is_dir()), None)
    annotations = next((root / name for name in _ANNOTATIONS if (root / name).is_dir()), None)
    return None if images is None or annotations is None else (images, annotations)


def _has_xml(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.endswith(".xml") for entry in entries)


def read_voc(
    root: Path,
    images: Path,
    annotations: Path,
    listed: Path | None,
    train: Path | None,
    known: Sequence[str] = (),
    reading: Reading = STRICT,
) -> Content:
    """A split's images and objects as COCO's content, with what cannot be read under `flaws`.

    A box's corners are pixels counted from 1, both inside, so xmin, ymin, xmax, ymax become xmin - 1, ymin - 1, xmax,
    ymax. An object marked `difficult` is left out of training and measures, as a crowd is. Classes are those in
    classes.txt, one per line, or else all that the training XML names, sorted.

    Args:
        root: the folder of the set.
        images, annotations, listed: see `find_voc`.
        train: folder of the XML files that name the classes.
        known: classes of a network, which are taken instead if all that are found are among them.
        reading: whether XML files of images that a list names outside the folder are read.

    Raises:
        ValueError: the classes are not known.

    Source: host.robots.ox.ac.uk/pascal/VOC/voc2012, the development kit's documentation.
    """
    classes = _class_names(root, train or annotations)
    classes = list(known) if set(classes) <= set(known) else classes
    number_of = {name: number for number, name in enumerate(classes)}
    content: Content = {"images": [], "annotations": [], "categories": [], "flaws": []}
    content["categories"] = [{"id": number, "name": name} for name, number in number_of.items()]
    passed_over = PassedOver()
    for number, path in enumerate(_listed(images, listed, passed_over), 1):
        name = os.path.relpath(path, images)
        xml = annotations / Path(name).with_suffix(".xml")
        try:
            if not reading.allow_outside:
                refuse_outside(name, xml, root)
            tree = _parse(xml)
        except Flaw as flaw:
            content["flaws"].append((name, flaw))
            continue
        size = {side: int(_number(tree, f"size/{side}") or 0) for side in ("width", "height")}
        content["images"].append({"id": number, "file_name": name, **size})
        for position, entry in enumerate(tree.iter("object"), 1):
            try:
                found = _object(entry, number_of)
            except Flaw as flaw:
                content["flaws"].append((xml.name, Flaw(flaw.kind, f"object {position}: {flaw}")))
                continue
            content["annotations"].append({"id": f"{xml.name} object {position}", "image_id": number, **found})
    content["flaws"] += unlisted(passed_over)
    passed_over.counts.pop(".xml", None)  # which may lie beside the images
    passed_over.log(images)
    return content


def _class_names(root: Path, folder: Path) -> list[str]:
    if table := next((root / name for name in _CLASSES if (root / name).is_file()), None):
        return [line.strip() for line in read_text(table).splitlines() if line.strip()]
    names: set[str] = set()
    for path in walk_files(folder, _XML, skip_bad=True):
        try:
            names |= {(entry.findtext("name") or "").strip() for entry in _parse(Path(path)).iter("object")}
        except Flaw:  # met again where the images are read
            continue
    names.discard("")
    if not names:
        raise UserError(f"the XML files in {folder} name no object: expected <object><name> in them")
    return sorted(names)


def _listed(images: Path, listed: Path | None, passed_over: PassedOver) -> Iterator[str]:
    if listed is None:
        yield from walk_images(images, passed_over, skip_bad=True)
        return
    files = {_stem(os.path.relpath(path, images)): path for path in walk_images(images, passed_over, skip_bad=True)}
    names = Counter(map(os.path.basename, files))
    files |= {os.path.basename(stem): path for stem, path in files.items() if names[os.path.basename(stem)] == 1}
    for line in filter(None, map(str.strip, read_text(listed).splitlines())):
        name, _, flag = line.rpartition(" ")  # whether a class is there follows in VOC's lists by class
        spellings = (line, name.strip() if flag in ("-1", "0", "1") else line)
        stems = (stem for each in spellings for stem in (each, _stem(each), _stem(os.path.basename(each))))
        yield next((files[stem] for stem in stems if stem in files), os.path.join(images, f"{_stem(line)}.jpg"))


def _stem(name: str) -> str:
    """A name without the suffix of an image."""
    return os.path.splitext(name)[0] if is_image(name) else name


def _parse(path: Path) -> ElementTree.Element:
    try:
        with open_file(path) as file:
            return ElementTree.parse(file).getroot()
    except FileNotFoundError:
        raise Flaw("images without an XML file", f"no annotation {path}") from None
    except (ElementTree.ParseError, ValueError, LookupError, OSError) as error:  # an encoding that nobody knows
        raise Flaw("XML files that cannot be read", f"{path} is not XML: {error}") from None


def _object(entry: ElementTree.Element, number_of: dict[str, int]) -> dict[str, Any]:
    name = (entry.findtext("name") or "").strip()
    if name not in number_of:
        raise Flaw("unknown categories", f"class {name!r} is unknown; there are {', '.join(list(number_of)[:10])}")
    corners = [_number(entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if any(corner is None for corner in corners):
        raise Flaw("entries without a usable bbox", "no bndbox with the numbers xmin, ymin, xmax and ymax")
    x1, y1, x2, y2 = (float(corner or 0) for corner in corners)
    x1, x2, y1, y2 = min(x1, x2) - 1, max(x1, x2), min(y1, y2) - 1, max(y1, y2)
    difficult = (entry.findtext("difficult") or "0").strip() == "1"
    return {"category_id": number_of[name], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(difficult)}


def _number(entry: ElementTree.Element, path: str) -> float | None:
    try:
        number = float(entry.findtext(path) or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
