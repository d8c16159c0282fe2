"""Multi-label sets: their splits, what is held out, and what is not taken for one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vankit.data.folders import ClassFolder, open_dataset
from vankit.data.held_out import HeldOut
from vankit.data.images import ImageError
from vankit.data.multilabel import MultiLabelImages, announce_labels, check_kind
from vankit.errors import MissingFileError, UserError


def make(root: Path, table: str, labels: Sequence[str], start: int = 0) -> None:
    """A CSV and its images; each of these has its number as its red."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    names = [f"{start + i}.png" for i in range(len(labels))]
    for i, name in enumerate(names, start):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / "images" / name)
    rows = [f"{name},{each}" for name, each in zip(names, labels, strict=True)]
    (root / table).write_text("\n".join(["file,labels", *rows, ""]))


def files(data: Path, split: str, held_out: HeldOut | None = None) -> set[str]:
    return {Path(path).name for path, _ in open_dataset(data, split, np.asarray, held_out=held_out).samples}


def test_items_are_samples_and_their_labels(tmp_path: Path) -> None:
    make(tmp_path, "train.csv", ["dog;cat", "", "owl"])
    make(tmp_path, "valid.csv", ["cat"], start=9)
    train = open_dataset(tmp_path, "train", lambda image: image.getpixel((0, 0))[0])
    assert train.classes == ["cat", "dog", "owl"] and train.division is None
    assert [(red, target.tolist()) for red, target in train] == [(0, [1, 1, 0]), (1, [0, 0, 0]), (2, [0, 0, 1])]
    assert train[0][1].dtype == np.float32 and train.counts().tolist() == [1, 1, 1]
    val = open_dataset(tmp_path, "val", lambda image: image.getpixel((0, 0))[0])
    assert val.classes == train.classes and [(red, target.tolist()) for red, target in val] == [(9, [1, 0, 0])]
    (tmp_path / "images" / "0.png").write_bytes(b"no")
    with pytest.raises(ImageError, match=r"0\.png is not an image"):
        train[0]


def test_splits(tmp_path: Path) -> None:
    make(tmp_path, "train.csv", ["a", "b"])
    make(tmp_path, "test.csv", ["a", "b;a"], start=5)
    assert files(tmp_path, "test") == {"5.png", "6.png"}
    for split in ("val", "holiday"):
        with pytest.raises(
            MissingFileError, match=rf"no {split} split in .*: expected a file {split}\.csv in its folder"
        ):
            open_dataset(tmp_path, split, np.asarray)
    make(tmp_path, "val.csv", ["a"], start=8)
    for data in (tmp_path, tmp_path / "train.csv"):
        assert files(data, "train", HeldOut()) == {"0.png", "1.png"} and files(data, "val", HeldOut()) == {"8.png"}
    assert files(tmp_path / "val.csv", "val", HeldOut()) == {"8.png"}  # any other CSV is a set by itself
    (tmp_path / "train.csv").unlink()
    assert open_dataset(tmp_path, "val", np.asarray).classes == ["a"]
    with pytest.raises(MissingFileError, match="no train split in"):
        open_dataset(tmp_path, "train", np.asarray)


def test_images_in_both_splits_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "train.csv", ["a", "b"])
    make(tmp_path, "val.csv", ["a"], start=1)
    assert len(open_dataset(tmp_path, "val", np.asarray)) == 1
    assert "1 files, such as 1.png, are in " in caplog.text and "validated with and trained on" in caplog.text


@pytest.mark.parametrize("table", ["train.csv", "labels.csv"])
def test_without_val_a_part_is_held_out(table: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = ["common"] * 30 + ["common;rare"] * 10 + ["once"] + [""] * 5
    make(tmp_path, table, labels)
    held_out = HeldOut(0.2, plain=True)
    val, train = (open_dataset(tmp_path, split, np.asarray, held_out=held_out) for split in ("val", "train"))
    everything = {f"{i}.png" for i in range(46)}
    names = [{Path(path).name for path, _ in part.samples} for part in (val, train)]
    assert names[0] | names[1] == everything and not names[0] & names[1]
    assert val.counts().tolist() == [6 + 2, 0, 2]  # common, once, rare: a fifth of those by the rarest label
    assert sum(not labels for _, labels in val.samples) == 1
    assert (val.division.held_out.total, val.division.count) == (46, 9)
    assert val.division.held_out.plain == (table == "labels.csv")
    assert files(tmp_path, "val", HeldOut(0.2, seed=1, plain=True)) != names[0]
    if table == "labels.csv":
        for data in (tmp_path, tmp_path / table):
            assert files(data, "val", HeldOut()) == everything
        assert files(tmp_path, "val", HeldOut(0.2, plain=True, total=46)) == names[0]
        assert files(tmp_path, "val", HeldOut(0.2, plain=True, total=40)) == everything
        assert "has 46 images, the set that the network was trained on had 40: taken for another one" in caplog.text


def test_folders_of_classes_go_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "labels.csv", ["a"])
    (tmp_path / "runs" / "tensorboard").mkdir(parents=True)
    (tmp_path / "explained").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "explained" / "0.png")
    assert isinstance(open_dataset(tmp_path, "train", np.asarray), MultiLabelImages)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name / "deep").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / "deep" / "0.png")
    assert not caplog.messages
    found = open_dataset(tmp_path, "train", np.asarray)
    assert isinstance(found, ClassFolder) and found.classes == ["cat", "dog"]
    assert "has folders for classes, so labels.csv is not read: for multi-label pass the CSV" in caplog.text
    assert isinstance(open_dataset(tmp_path / "labels.csv", "train", np.asarray), MultiLabelImages)


def images(*labels: tuple[int, ...]) -> MultiLabelImages:
    return MultiLabelImages(
        [("x", each) for each in labels], ["a", "b", "c"], np.asarray, "by hand", [str(i) for i in range(len(labels))]
    )


def test_what_was_recognised_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    announce_labels(images((0, 1), (0,), ()), images((0,), (2,)), "pets")
    assert [record.message for record in caplog.records] == [
        "pets: multi-label, 3 classes, 5 images, 1.0 labels per image (by hand)",
        "no image to train on has the label c: these will not be learnt",
        "no image to validate has the label b: these have no part in mAP, and 0.5 as their threshold",
    ]
    caplog.clear()
    announce_labels(images((0,), (1,), (2,)), images((0,), (1,), (2,)), "pets")
    assert "every image has one label: if that is always so, put them into folders" in caplog.text
    caplog.clear()
    announce_labels(images((0, 1, 2)), images((0, 1, 2)), "pets", log=False)
    assert not caplog.messages
    with pytest.raises(UserError, match="pets: no image to validate has a label: expected some that have"):
        announce_labels(images((0,)), images(()), "pets", log=False)


def test_kinds_that_do_not_go_together() -> None:
    check_kind(images((0,)), True, "pets")
    with pytest.raises(UserError, match="pets has any number of labels per image, and the network gives one class per"):
        check_kind(images((0,)), False, "pets")
    with pytest.raises(UserError, match="shapes has one class per image, and the network gives any number of labels"):
        check_kind(object(), True, "shapes")
