"""Label PNGs in folders: found, read, refused, and left out where asked."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vankit.data.held_out import HeldOut
from vankit.data.label_maps import Coding, read_labels
from vankit.data.reading import Reading
from vankit.data.semantic import SemanticFolder, open_semantic
from vankit.data.walk import SPLITS
from vankit.errors import MissingFileError, UserError

HEADER = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"


def write(root: Path, split: str, name: str, labels: Any, folder: str = "annotations", size: Any = None) -> Path:
    """An image and its label PNG; the image is all 10 * (first label)."""
    array = np.asarray(labels, np.uint8)
    image, label = root / "images" / split / f"{name}.jpg", root / folder / split / f"{name}.png"
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    value = 10 * int(array.flat[0])
    Image.new("RGB", size or array.shape[::-1], (value, value, value)).save(image, quality=95)
    Image.fromarray(array).save(label)
    return label


def opened(root: Path, split: str = "train", ignore_label: int = 255, skip_bad: bool = False) -> SemanticFolder:
    return open_semantic(root, split, None, ignore_label, Reading(skip_bad))


def semantic(dataset: SemanticFolder, index: int = 0) -> Any:
    return dataset[index][1]["semantic"].tolist()


def test_pairs_are_found_at_any_depth(tmp_path: Path) -> None:
    write(tmp_path, "train/city/a", "2", [[2, 255], [0, 1], [1, 1]])
    write(tmp_path, "train", "1", [[1, 0]])
    (tmp_path / "images" / "train" / "notes.txt").write_text("no image")
    (tmp_path / "classes.txt").write_text("road\nsky\ntree\n")
    dataset = opened(tmp_path)
    assert dataset.classes == ["road", "sky", "tree"]
    assert [Path(name).relative_to(tmp_path).as_posix() for name in dataset.names] == [
        "images/train/1.jpg",
        "images/train/city/a/2.jpg",
    ]
    image, target = dataset[1]
    assert (image.mode, image.size) == ("RGB", (2, 3)) and abs(image.getpixel((0, 0))[0] - 20) <= 2
    assert type(target["semantic"]) is np.ndarray and target["semantic"].dtype == np.uint8
    assert target["semantic"].tolist() == [[2, 255], [0, 1], [1, 1]]
    assert target["image_id"] == 1
    assert semantic(dataset, -1) == target["semantic"].tolist()
    with pytest.raises(IndexError):
        dataset[2]
    assert [target["image_id"] for _, target in dataset] == [0, 1]  # iteration ends


def test_the_transform_takes_image_and_target(tmp_path: Path) -> None:
    write(tmp_path, "train", "1", [[1, 0]])
    dataset = open_semantic(tmp_path, "train", lambda image, target: (image.size, target["image_id"]), 255, Reading())
    assert dataset[0] == ((2, 1), 0)


def test_ade20k_counts_from_1_and_0_is_unlabelled(tmp_path: Path) -> None:
    table = HEADER + "1\t0.1576\t11664\t1172\t1\twall\n2\t0.1072\t6046\t612\t1\tbuilding, edifice\n"
    (tmp_path / "objectInfo150.txt").write_text(table + "3\t0.0878\t8265\t796\t1\tsky\n\n")
    (tmp_path / "classes.txt").write_text("not\nthese")
    write(tmp_path, "training", "ADE_train_00000001", [[0, 1, 2, 3, 255]])
    dataset = opened(tmp_path)
    assert dataset.classes == ["wall", "building", "sky"]
    assert semantic(dataset) == [[255, 0, 1, 2, 255]]
    write(tmp_path, "training", "ADE_train_00000001", [[0, 4]])
    with pytest.raises(UserError, match=r"00000001\.png has label 4 and there are 3 classes"):
        opened(tmp_path)[0]
    assert semantic(opened(tmp_path, ignore_label=4)) == [[255, 255]]


def test_without_a_table_classes_are_the_numbers_in_the_training_labels(tmp_path: Path) -> None:
    write(tmp_path, "train", "1", [[1, 0, 11]])
    write(tmp_path, "train/more", "2", [[3, 255, 11]])
    write(tmp_path, "val", "1", [[2, 1]])
    for split in ("train", "val"):
        assert opened(tmp_path, split, ignore_label=11).classes == ["0", "1", "2", "3"]
    assert semantic(opened(tmp_path, ignore_label=11), 1) == [[3, 255, 255]]
    with pytest.raises(
        UserError, match=r"classes are the numbers 0 to 11, and most never occur; .* 11 \(.*name the cla"
    ):
        opened(tmp_path).check_labels()
    write(tmp_path, "val", "1", [[4, 1]])
    with pytest.raises(UserError, match=r"1\.png has label 4 and there are 4 classes: name it in classes\.txt, or"):
        opened(tmp_path, "val", ignore_label=11)[0]


def test_training_labels_have_to_name_a_class(tmp_path: Path) -> None:
    write(tmp_path, "train", "1", [[255, 7]])
    with pytest.raises(UserError, match=r"no class indices from 0 to 254: highest is -1"):
        opened(tmp_path, ignore_label=7)


@pytest.mark.parametrize(
    ("split", "folder"),
    [("train", "training"), ("val", "validation"), ("val", "valid"), ("test", "test"), ("x", "x")],
)
def test_splits_have_several_names(tmp_path: Path, split: str, folder: str) -> None:
    write(tmp_path, folder, "1", [[1, 0]])
    assert len(opened(tmp_path, split)) == 1


def test_the_test_images_are_not_for_choosing_the_best_weights(tmp_path: Path) -> None:
    write(tmp_path, "test", "1", [[1, 0]])
    with pytest.raises(MissingFileError, match="no val split"):
        opened(tmp_path, "val")


def test_without_val_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path, "train/street" if i % 2 else "train", str(i), [[1, 0]])
    write(tmp_path, "test", "1", [[1, 0]])
    val, train, other = (
        set(open_semantic(tmp_path, split, None, 255, Reading(), HeldOut(0.3, seed)).names)
        for split, seed in (("val", 4), ("train", 4), ("val", 5))
    )
    assert len(val) == 3 and val | train == set(opened(tmp_path).names) and not val & train
    assert other != val


@pytest.mark.parametrize("folder", ["annotations", "labels", "masks"])
def test_label_folders_have_several_names(tmp_path: Path, folder: str) -> None:
    (tmp_path / "annotations").mkdir()  # of something else, such as boxes
    write(tmp_path, "train", "1", [[1, 0]], folder=folder)
    assert opened(tmp_path).classes == ["0", "1"]


def test_palette_png_gives_indices(tmp_path: Path) -> None:
    label = write(tmp_path, "train", "1", [[1, 0, 2]])
    picture = Image.fromarray(np.array([[1, 0, 2]], np.uint8), "P")
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.save(label)
    with Image.open(label) as saved:
        assert saved.mode == "P"
    assert semantic(opened(tmp_path)) == [[1, 0, 2]]


def test_two_level_and_16_bit_pngs_give_their_numbers(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "1.png")
    assert read_labels(tmp_path / "1.png").tolist() == [[1, 0]]
    Image.fromarray(np.array([[300, 7]], np.uint16)).save(tmp_path / "16.png")
    assert read_labels(tmp_path / "16.png").tolist() == [[300, 7]]


@settings(max_examples=40)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.integers(0, 255), st.booleans())
def test_any_label_map_comes_back(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray, ignored: int, zero: bool
) -> None:
    root = tmp_path_factory.mktemp("maps")
    write(root, "train", "1", labels)
    classes = [str(i) for i in range(255)]
    dataset = SemanticFolder(root / "images", root / "annotations", Coding(classes, ignored, zero))
    found = dataset[0][1]["semantic"]
    unlabelled = {255, ignored} | ({0} if zero else set())
    expected = [[255 if v in unlabelled else v - zero for v in row] for row in labels.tolist()]
    assert found.tolist() == expected


@pytest.fixture(scope="module")
def sound_png(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("png") / "sound.png"
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path, dpi=(72, 72))
    return path.read_bytes()


@settings(max_examples=80)
@given(at=st.integers(0, 400), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_pngs_are_refused_by_name_or_read(
    tmp_path_factory: pytest.TempPathFactory, sound_png: bytes, at: int, value: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("png") / "damaged.png"
    at %= len(sound_png)
    path.write_bytes(sound_png[:at] + (b"" if cut else bytes([value]) + sound_png[at + 1 :]))
    try:
        assert read_labels(path).ndim == 2
    except ValueError as error:
        assert "damaged.png is " in str(error)


def other_size(root: Path) -> None:
    write(root, "train", "0", [[1, 0]], size=(3, 2))


def in_colour(root: Path) -> None:
    Image.new("RGB", (2, 1), (200, 0, 0)).save(write(root, "train", "0", [[1, 0]]))


def broken_png(root: Path) -> None:
    label = write(root, "train", "0", [[1, 0]])
    label.write_bytes(label.read_bytes()[:-30])


def jpeg_as_png(root: Path) -> None:
    Image.new("L", (2, 1)).save(write(root, "train", "0", [[1, 0]]), "jpeg")


def beyond_classes(root: Path) -> None:
    write(root, "train", "0", [[2, 0]])


def broken_image(root: Path) -> None:
    write(root, "train", "0", [[1, 0]])
    (root / "images" / "train" / "0.jpg").write_bytes(b"no")


BAD: list[tuple[Callable[[Path], None], str]] = [
    (other_size, r"0\.png is 2x1 pixels and .*0\.jpg 3x2: expected the same size"),
    (in_colour, r"0\.png is in colour \(RGB\): expected one class index per pixel"),
    (broken_png, r"0\.png is broken or truncated \(PNG\): "),
    (jpeg_as_png, r"0\.png is not a readable PNG: "),
    (beyond_classes, r"0\.png has label 2 and there are 2 classes: name it in classes\.txt, or pass --ignore-label"),
    (broken_image, r"0\.jpg is not an image"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD, ids=[spoil.__name__ for spoil, _ in BAD])
def test_what_cannot_be_used_is_named_or_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb")
    with pytest.raises(UserError, match=message):
        opened(tmp_path)[0]
    alone = opened(tmp_path, skip_bad=True)
    assert alone[0] is None and re.search(message, alone.skipped[0][1])
    write(tmp_path, "train", "1", [[1, 1]])
    dataset = opened(tmp_path, skip_bad=True)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            bad, (_, target) = dataset
            assert bad is None and (target["image_id"], target["semantic"].tolist()) == (1, [[1, 1]])
    assert [name for name, _ in dataset.skipped] == [str(tmp_path / "images" / "train" / "0.jpg")]
    assert len(caplog.records) == 1 and "(1 so far)" in caplog.text


def test_a_broken_png_does_not_hinder_the_count_of_classes(tmp_path: Path) -> None:
    write(tmp_path, "train", "a", [[1, 0]])
    write(tmp_path, "train", "b", [[1, 0]]).write_bytes(b"")
    with pytest.raises(UserError, match=r"b\.png is not a readable PNG"):
        opened(tmp_path)
    assert opened(tmp_path, skip_bad=True).classes == ["0", "1"]


def test_an_image_without_labels_is_named_or_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "train", "0", [[1, 0]]).unlink()
    write(tmp_path, "train", "1", [[1, 0]])
    with pytest.raises(MissingFileError, match=r"0\.jpg has no label PNG: expected .*/train/0\.png; --skip-bad"):
        opened(tmp_path)
    with caplog.at_level(logging.WARNING):
        dataset = opened(tmp_path, skip_bad=True)
    assert [Path(name).name for name in dataset.names] == ["1.jpg"]
    assert [Path(name).name for name, _ in dataset.skipped] == ["0.jpg"]
    assert "left out 1 images without label PNGs, such as" in caplog.text


def test_missing_folders_and_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no train split in .*: expected images/NAME and annotations/NAME"):
        opened(tmp_path)
    (tmp_path / "images" / "train").mkdir(parents=True)
    with pytest.raises(MissingFileError, match=r"NAME one of train, training"):
        opened(tmp_path)
    with pytest.raises(MissingFileError, match=r"no folder .*nowhere: expected images and label PNGs"):
        SemanticFolder(tmp_path, tmp_path / "nowhere", Coding(["a"]))
    with pytest.raises(MissingFileError, match=r"no images with label PNGs in"):
        SemanticFolder(tmp_path, tmp_path, Coding(["a"]))


def test_more_classes_than_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="256 classes: expected at most 255, because 255 means unlabelled"):
        SemanticFolder(tmp_path, tmp_path, Coding(["a"] * 256))


# Labels that would train on nothing


def masks(root: Path, *values: int, classes: str | None = "background\nobject\n") -> SemanticFolder:
    for split in ("train", "val"):
        for i in range(3):
            write(root, split, str(i), [[0, values[0], values[-1]]])
    if classes is not None:
        (root / "classes.txt").write_text(classes, encoding="utf-8-sig")
    return opened(root)


def test_masks_of_0_and_255_are_refused_with_the_values_found(tmp_path: Path) -> None:
    message = (
        r"annotations/train: no pixel is of class object; the labels hold the values 0 \(33\.3%\), 255 \(66\.7%\): "
        r"read a value as another with --map-labels 255:1, or correct the class names"
    )
    with pytest.raises(UserError, match=message):
        masks(tmp_path, 255).check_labels()
    mapped = open_semantic(tmp_path, "train", None, 255, Reading(), map_labels=["255:1"])
    mapped.check_labels()
    assert mapped.classes == ["background", "object"] and semantic(mapped) == [[0, 1, 1]]


def test_without_names_255_alone_is_refused_too(tmp_path: Path) -> None:
    for reading in (Reading(), Reading(skip_bad=True)):
        masks(tmp_path, 255, classes=None)
        dataset = open_semantic(tmp_path, "train", None, 255, reading)
        with pytest.raises(UserError, match=r"255 means unlabelled.* 0 \(33\.3%\), 255 \(66\.7%\): .*255:1"):
            dataset.check_labels()
    mapped = open_semantic(tmp_path, "train", None, 255, Reading(), map_labels=["255:1"])
    mapped.check_labels()
    assert mapped.classes == ["0", "1"]


def test_another_value_than_the_class_has_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"values 0 \(33\.3%\), 128 \(66\.7%\): .*--map-labels 128:1"):
        masks(tmp_path, 128).check_labels()


def test_a_class_that_never_occurs_is_a_warning_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound = masks(tmp_path, 1)
    sound.check_labels()
    (tmp_path / "classes.txt").write_text("background\nobject\nother\n")
    with pytest.raises(UserError, match=r"no pixel is of class other; .*; --skip-bad goes on without the class"):
        opened(tmp_path).check_labels()
    opened(tmp_path, skip_bad=True).check_labels()
    assert "no pixel is of class other" in caplog.text


def test_labels_are_read_until_all_classes_were_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = masks(tmp_path, 1)
    read: list[Path] = []
    monkeypatch.setattr(
        "vankit.data.semantic.read_labels", lambda path, *rest: read.append(path) or read_labels(path, *rest)
    )
    dataset.check_labels()
    assert len(read) == 1
    assert dataset.count_values() == {0: 3, 1: 6}


@pytest.mark.parametrize("values", [(1, 2), (0, 1)])
def test_a_mapping_is_suggested_only_where_it_can_be_meant(tmp_path: Path, values: tuple[int, int]) -> None:
    """Numbers that start at 1 are no reason to read one of them as another."""
    (tmp_path / "classes.txt").write_text("a\nb\nc\n" if values == (0, 1) else "a\nb\n")
    write(tmp_path, "train", "1", [values])
    with pytest.raises(UserError, match=r"no pixel is of class [ac]; .*--map-labels OLD:NEW|--map-labels 2:0"):
        opened(tmp_path).check_labels()


def test_a_class_may_be_in_the_images_held_out_alone(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path, "train", str(i), [[0, i == 4]])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    dataset = open_semantic(tmp_path, "train", None, 255, Reading(), HeldOut(0.9))
    dataset.check_labels()


def test_labels_that_cannot_be_read_are_no_missing_classes(tmp_path: Path) -> None:
    write(tmp_path, "train", "1", [[1, 0]]).write_bytes(b"no")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"1\.png is not a readable PNG"):
        opened(tmp_path).check_labels()


def test_a_palette_beside_numbers_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "train", "1", [[1, 0]])
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "label_colors.txt").write_text("9 0 0 roof\n0 9 0 grass\n0 0 9 sky\n")
    assert opened(tmp_path).classes == ["a", "b"] and semantic(opened(tmp_path)) == [[1, 0]]


@pytest.mark.parametrize(
    "name", ["{}/images/1.jpg {}/masks/1.png", "images/{}/1.jpg masks/{}/1_mask.png", "images/{}/1.jpg masks/{}/1.PNG"]
)
def test_layouts_of_other_tools(tmp_path: Path, name: str) -> None:
    for split in ("train", "val"):
        label = write(tmp_path / "x", split, "1", [[1, 0]])
        image = tmp_path / "x" / "images" / split / "1.jpg"
        for source, place in zip((image, label), name.format(split, split).split(), strict=True):
            target = tmp_path / "set" / place
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    (tmp_path / "set" / "labels" / "train").mkdir(parents=True)  # of boxes
    for split in ("train", "val"):
        assert semantic(opened(tmp_path / "set", split)) == [[1, 0]]


def test_ade20k_suggests_its_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "objectInfo150.txt").write_text(HEADER + "1\t0\t0\t0\t1\twall\n2\t0\t0\t0\t1\tsky\n")
    write(tmp_path, "training", "1", [[0, 1, 9]])
    with pytest.raises(UserError, match=r"no pixel is of class sky; .*--map-labels 9:2"):
        opened(tmp_path).check_labels()


def test_a_folder_without_splits_is_divided_where_asked(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path, ".", str(i), [[1, 0]], folder="masks")
    assert len(opened(tmp_path)) == len(opened(tmp_path, "val")) == 10
    parts = [set(open_semantic(tmp_path, s, None, 255, Reading(), HeldOut(0.2, plain=True)).names) for s in SPLITS]
    assert [len(part) for part in parts] == [8, 2] and not parts[0] & parts[1]
    with pytest.raises(MissingFileError, match="no test split"):
        opened(tmp_path, "test")


def test_splits_in_capitals(tmp_path: Path) -> None:
    for split in ("Train", "Val"):
        write(tmp_path, split, "1", [[1, 0]])
    assert len(opened(tmp_path)) == len(opened(tmp_path, "val")) == 1


def test_palette_files_name_the_classes(tmp_path: Path) -> None:
    label = write(tmp_path, "train", "1", [[1, 0]])
    Image.fromarray(np.array([[(9, 0, 0), (0, 9, 0)]], np.uint8)).save(label)
    (tmp_path / "palette.txt").write_text("0 9 0 grass\n9 0 0 roof\n")
    dataset = opened(tmp_path)
    dataset.check_labels()
    assert dataset.classes == ["grass", "roof"] and semantic(dataset) == [[1, 0]]


@pytest.mark.parametrize(("text", "names"), [("\ufeffa\r\nb\r\n", ["a", "b"]), (" a \nb\n\n\n", ["a", "b"])])
def test_classes_txt_of_other_editors(tmp_path: Path, text: str, names: list[str]) -> None:
    write(tmp_path, "train", "1", [[1, 0]])
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert opened(tmp_path).classes == names
    (tmp_path / "classes.txt").write_text("a\n\nb")
    with pytest.raises(UserError, match=r"classes\.txt: line 2 is empty, expected the name of class 1"):
        opened(tmp_path)


def test_junk_beside_the_images(tmp_path: Path) -> None:
    write(tmp_path, "train", "1", [[1, 0]])
    for name in (".ipynb_checkpoints/1.jpg", "._1.jpg", "Thumbs.db"):
        path = tmp_path / "images" / "train" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    dataset = opened(tmp_path)
    assert len(dataset) == 1 and dataset.passed_over.counts.total() == 3


def test_a_label_png_with_long_text(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("tool", "x" * 3_000_000, zip=True)
    label = write(tmp_path, "train", "1", [[1, 0]])
    Image.fromarray(np.array([[1, 0]], np.uint8)).save(label, pnginfo=info)
    assert semantic(opened(tmp_path)) == [[1, 0]]


@pytest.mark.data
def test_camvid(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("camvid")
    dataset = opened(root, "val", ignore_label=11)
    assert dataset.classes == [str(i) for i in range(11)]  # read off the training labels
    assert len(dataset) == 101 and not dataset.skipped
    image, target = dataset[0]
    assert image.size == (480, 360)
    with Image.open(Path(dataset.names[0].replace("images", "annotations")).with_suffix(".png")) as png:
        raw = np.asarray(png)
    found = target["semantic"]
    assert (raw == 11).any()
    assert np.array_equal(found, np.where(raw == 11, 255, raw))
    for split, count in (("train", 367), ("test", 233)):
        folders = (root / name / split for name in ("images", "annotations"))
        assert len(SemanticFolder(*folders, Coding(dataset.classes, ignore_label=11))) == count


@pytest.mark.slow
@pytest.mark.data
def test_masks_that_users_reported(tmp_path: Path, cases: Callable[[str, Path], None]) -> None:
    cases("masks", tmp_path)
    for name, pairs in (("0_1", []), ("0_255", ["255:1"]), ("0_128", ["128:1"])):
        if pairs:
            value = pairs[0].split(":")[0]
            with pytest.raises(UserError, match=rf"no pixel is of class object; .*, {value} \(.* {pairs[0]}"):
                opened(tmp_path / name).check_labels()
        dataset = open_semantic(tmp_path / name, "train", None, 255, Reading(), map_labels=pairs)
        dataset.check_labels()
        # build.py pastes 32 rows, from column 20 + i to 70
        assert [int((item[1]["semantic"] == 1).sum()) for item in dataset] == [32 * (50 - i) for i in range(4)]
