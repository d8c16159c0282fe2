"""The image sets of ../shared/data, against counts that plain Python works out."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vankit
from vankit.inspection.report import Inspection

pytestmark = [pytest.mark.slow, pytest.mark.data]

CASES = Path(__file__).parents[3] / "shared" / "cases" / "build.py"


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def check_sizes(inspection: Inspection, split: str, files: list[Path]) -> None:
    sizes = np.array([size_of(path) for path in files])
    found = next(each for each in inspection.splits if each.name == split)
    assert found.images == len(files) and found.sizes is not None
    assert found.sizes.median == tuple(np.median(sizes, axis=0).round())
    areas = [w * h for w, h in (found.sizes.smallest, found.sizes.largest)]
    assert areas == [sizes.prod(1).min(), sizes.prod(1).max()]


def check_copies(inspection: Inspection, files: dict[str, list[Path]]) -> None:
    seen = {split: Counter(sha256(path.read_bytes()).digest() for path in paths) for split, paths in files.items()}
    wanted = {(split,): sum(found.values()) - len(found) for split, found in seen.items()}
    for one, two in (("train", "val"), ("train", "test"), ("val", "test")):
        if one in seen and two in seen:
            wanted[one, two] = sum(number for digest, number in seen[two].items() if digest in seen[one])
    assert {each.splits: each.count for each in inspection.copies} == {key: n for key, n in wanted.items() if n}


@pytest.mark.parametrize("name", ["hymenoptera", "cifar10"])
def test_folders(shared_data: Callable[..., Path], name: str) -> None:
    root = shared_data(name, r"[05]\.jpg$" if name == "cifar10" else "")  # a fifth of 60,000 pictures
    result = vankit.inspect(root)
    files: dict[str, list[Path]] = defaultdict(list)
    for split in ("train", "val"):
        wanted = {kind: len(os.listdir(root / split / kind)) for kind in sorted(os.listdir(root / split))}
        found = next(each for each in result.splits if each.name == split)
        assert {each.name: each.images for each in found.classes} == wanted
        files[split] = [root / split / kind / file for kind in wanted for file in os.listdir(root / split / kind)]
        check_sizes(result, split, files[split])
    check_copies(result, files)
    assert not result.findings and (result.task, result.held_out) == ("classify", None)
    assert result.command == f"vankit train {root}" + " --recipe short --img-size 32" * (name == "cifar10")


def test_camvid(shared_data: Callable[..., Path]) -> None:
    root = shared_data("camvid")
    result = vankit.inspect(root)
    assert [(each.name, each.images) for each in result.splits] == [("train", 367), ("val", 101), ("test", 233)]
    files = {}
    for split in result.splits:
        labels = [np.asarray(Image.open(path)) for path in sorted((root / "annotations" / split.name).iterdir())]
        for label, each in enumerate(split.classes):
            maps = [values == label for values in labels]
            assert each.images == sum(found.any() for found in maps)
            assert each.pixels == pytest.approx(sum(found.mean() for found in maps) / len(maps))
        assert split.unlabelled == 0 and len(split.classes) == 12
        files[split.name] = sorted((root / "images" / split.name).iterdir())
        check_sizes(result, split.name, files[split.name])
    check_copies(result, files)
    assert not result.of("stops")


def test_coco_instances(shared_data: Callable[..., Path]) -> None:
    root = shared_data("coco_instances_128")
    result = vankit.inspect(root)
    content = json.loads((root / "annotations" / "instances.json").read_text())
    (train,) = result.splits
    images = {image["id"]: image for image in content["images"]}
    counts = Counter(each["category_id"] for each in content["annotations"] if not each["iscrowd"])
    showing = defaultdict(set)
    small: Counter[int] = Counter()
    for each in content["annotations"]:
        if not each["iscrowd"]:
            image = images[each["image_id"]]
            showing[each["category_id"]].add(each["image_id"])
            sides = image["width"], image["height"]
            factor = min(416 / min(sides), 694 / max(sides))
            small[each["category_id"]] += min(each["bbox"][2:]) * factor < 4
    assert "--short-sides 416 --long-side 694" in result.command and "mask_rcnn" in result.command
    assert [(each.name, each.images, each.objects, each.small) for each in train.classes] == [
        (kind["name"], len(showing[kind["id"]]), counts[kind["id"]], small[kind["id"]])
        for kind in sorted(content["categories"], key=lambda kind: kind["id"])
    ]
    annotated = {each["image_id"] for each in content["annotations"]}
    assert (train.crowds, train.empty) == (13, len(images) - len(annotated))
    check_sizes(result, "train", list((root / "images").iterdir()))
    never = [kind for kind in content["categories"] if not counts[kind["id"]]]
    assert next(each.count for each in result.of("note") if "never occur" in each.what) == len(never)
    assert result.held_out == (13, 128) and not result.of("stops") and not result.copies


def test_coco_panoptic(shared_data: Callable[..., Path]) -> None:
    root = shared_data("coco_panoptic_200")
    result = vankit.inspect(root)
    assert result.tasks == ("panoptic", "detect")
    for split in result.splits:
        content = json.loads((root / "annotations" / f"panoptic_{split.name}2017.json").read_text())
        pixels: Counter[int] = Counter()
        void = whole = 0
        for each in content["annotations"]:
            png = np.asarray(Image.open(root / "annotations" / f"panoptic_{split.name}2017" / each["file_name"]), int)
            ids = png @ [1, 256, 65536]
            void, whole = void + int((ids == 0).sum()), whole + ids.size
            for segment in each["segments_info"]:
                pixels[segment["category_id"]] += int((ids == segment["id"]).sum())
        segments = Counter(
            s["category_id"] for a in content["annotations"] for s in a["segments_info"] if not s["iscrowd"]
        )
        for kind, found in zip(sorted(content["categories"], key=lambda kind: kind["id"]), split.classes, strict=True):
            assert (found.name, found.thing, found.objects) == (
                kind["name"],
                bool(kind["isthing"]),
                segments[kind["id"]],
            )
            assert found.pixels == pytest.approx(pixels[kind["id"]] / pixels.total())
        assert split.unlabelled == pytest.approx(void / whole)
    assert not result.of("stops")
    detect = vankit.inspect(root, "detect")
    assert [sum(each.objects or 0 for each in split.classes) + (split.crowds or 0) for split in detect.splits] == [
        746,
        712,
    ]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not CASES.is_file():
        pytest.skip(f"no {CASES}")
    out = tmp_path_factory.mktemp("cases")
    for kind in ("folders", "coco", "masks"):
        subprocess.run([sys.executable, CASES, kind, out / kind], check=True)
    return out


def test_cases_of_folders(cases: Path) -> None:
    """Ants and bees, four and two images each; what else is there is passed over and counted."""
    effects = {}
    for root in sorted((cases / "folders").iterdir()):
        result = vankit.inspect(root, workers=0)
        train, second = result.splits
        assert [(each.name, each.images) for each in train.classes[:2]] == [("ants", 4), ("bees", 4)]
        assert [(each.name, each.images) for each in second.classes[:2]] == [("ants", 2), ("bees", 2)]
        effects[root.name] = [
            (each.effect, each.split, each.count) for each in result.findings if each.effect != "note"
        ]
    assert effects == {
        "capitals": [],
        "checkpoints_folder": [("passed over", "train", 1)],
        "class_only_in_train": [],
        "empty_class": [("passed over", "val", 1)],
        "heic_beside": effects["heic_beside"],
        "link_loop": [("passed over", "train", 1)],
        "macosx": [("passed over", "train", 3), ("passed over", "val", 3)],
        "only_test": [],
        "truncated": [("stops", "train", 1), ("stops", "val", 1)],
    }
    assert effects["heic_beside"] in (
        [("stops", "train", 1)],
        [("passed over", "train", 1)],
    )  # with pillow-heif or without


def test_cases_of_coco(cases: Path) -> None:
    """Seven objects in four pictures, without --skip-bad."""
    refused = {}
    for root in sorted((cases / "coco").iterdir()):
        try:
            result = vankit.inspect(root, workers=0)
        except vankit.UserError as problem:
            refused[root.name] = str(problem)
            continue
        if result.of("stops"):
            refused[root.name] = result.of("stops")[0].what
            continue
        assert [(each.name, each.objects) for each in result.splits[0].classes] == [("cat", 4), ("dog", 3)]
        assert result.splits[0].images == 4 and not any("--skip-bad" in option for option, _ in result.options)
    assert refused.keys() == {"outside_folder", "exif_raw"}
    assert "--allow-outside" in refused["outside_folder"] and "another size" in refused["exif_raw"]


def test_cases_of_masks(cases: Path) -> None:
    for name, option in (("0_1", ""), ("0_255", "--map-labels 255:1"), ("0_128", "--map-labels 128:1")):
        root = cases / "masks" / name
        result = vankit.inspect(root, workers=0)
        labels = [np.asarray(Image.open(path)) > 0 for path in (root / "annotations" / "train").iterdir()]
        shares = [1 - np.mean(labels), np.mean(labels)]
        assert [each.pixels for each in result.splits[0].classes] == pytest.approx(shares)
        assert [each.option for each in result.of("stops")] == [option] * bool(option)


def test_a_set_outside_the_folder(cases: Path, tmp_path: Path) -> None:
    """Images outside the folder are read with --allow-outside."""
    shutil.copytree(cases / "coco" / "plain", tmp_path / "set")
    (tmp_path / "set" / "images" / "3.jpg").rename(tmp_path / "3.jpg")
    for split in ("train", "val"):
        path = tmp_path / "set" / "annotations" / f"instances_{split}.json"
        path.write_text(path.read_text().replace('"3.jpg"', '"../../3.jpg"'))
    result = vankit.inspect(tmp_path / "set", workers=0)
    assert result.splits[0].images == 3 and "--allow-outside" in result.command and "--skip-bad" not in result.command
