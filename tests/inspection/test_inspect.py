"""Folders of labelled images: what is in them by hand is what the inspection says."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vankit
from vankit.errors import MissingFileError, UserError
from vankit.inspection.report import Inspection


def photo(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> Path:
    """A picture of noise, whose content only the same seed and size repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def insects(tmp_path: Path) -> Path:
    """Three ants and two bees to train on, a bee and a wasp to validate with, and much else."""
    root = tmp_path / "insects"
    for i in range(3):
        photo(root / "train" / "ants" / f"{i}.jpg", i, (40 + 20 * i, 30))
    for i in range(2):
        photo(root / "train" / "bees" / f"{i}.png", 10 + i, (40, 90))
    photo(root / "val" / "bees" / "0.jpg", 20)
    photo(root / "val" / "bees" / "leak.jpg", 0, (40, 30))  # ants/0
    (root / "val" / "bees" / "again.jpg").write_bytes((root / "val" / "bees" / "0.jpg").read_bytes())
    (root / "train" / "bees" / "broken.jpg").write_bytes(b"not a picture")
    cut = photo(root / "train" / "ants" / "cut.jpg", 30)
    cut.write_bytes(cut.read_bytes()[:-1])
    (root / "train" / "wasps").mkdir()
    (root / "train" / "notes.txt").write_text("")
    (root / "train" / "ants" / ".hidden.jpg").write_bytes(b"")
    return root


def counts(inspection: Inspection) -> dict[str, dict[str, int]]:
    return {split.name: {each.name: each.images for each in split.classes} for split in inspection.splits}


def findings(inspection: Inspection, effect: str) -> set[tuple[str, str, int | None, str]]:
    return {(each.split, each.what, each.count, each.option) for each in inspection.of(effect)}  # type: ignore[arg-type]


def test_a_folder_per_class(insects: Path) -> None:
    result = vankit.inspect(insects, workers=0)
    assert (result.task, result.tasks, result.classes) == ("classify", ("classify",), ["ants", "bees"])
    assert counts(result) == {"train": {"ants": 3, "bees": 2}, "val": {"ants": 0, "bees": 3}}
    train, val = result.splits
    assert (train.images, val.images) == (5, 3)
    assert train.sizes is not None
    assert (train.sizes.smallest, train.sizes.median, train.sizes.largest) == ((40, 30), (40, 30), (40, 90))
    assert findings(result, "stops") == {
        ("train", "images that cannot be read", 1, "--skip-bad"),
        ("train", "JPEGs without their end", 1, "--skip-bad"),
    }
    assert findings(result, "passed over") == {
        ("train", ".txt", 1, ""),
        ("train", "hidden and system files", 1, ""),
        ("train", "class folders without images", 1, ""),
    }
    assert findings(result, "note") == {
        ("val", "classes of train without images", 1, ""),
        ("", "pictures that are in several classes", 1, ""),
    }
    between, within = result.copies
    assert (between.splits, between.count) == (("train", "val"), 1)
    assert between.examples == ((str(insects / "train/ants/0.jpg"), str(insects / "val/bees/leak.jpg")),)
    assert (within.splits, within.count) == (("val",), 1)


def test_the_command_has_what_is_needed(insects: Path) -> None:
    result = vankit.inspect(insects, workers=0)
    assert result.command == f"vankit train {insects} --recipe short --img-size 32 --batch-size 4 --skip-bad"
    assert dict(result.options)["--batch-size 4"] == "5 images to train on are not a batch of 128"
    assert result.side == 32 and result.splits[0].sizes is not None
    assert result.splits[0].sizes.below == 3 / 5  # sides of 30, 30, 30, 40 and 40
    (insects / "train" / "bees" / "broken.jpg").unlink()
    assert vankit.inspect(insects, workers=0).command.endswith(" --tolerant")  # which loses no picture
    (insects / "train" / "ants" / "cut.jpg").unlink()
    assert vankit.inspect(insects, workers=0).command.endswith(" --batch-size 4")


def test_without_val_a_part_is_held_out(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(20):
            photo(tmp_path / "train" / name / f"{i}.png", 100 * (name == "dog") + i)
        photo(tmp_path / "test" / name / "0.png", 300 + (name == "dog"))
    result = vankit.inspect(tmp_path, workers=0)
    assert counts(result) == {"train": {"cat": 20, "dog": 20}, "test": {"cat": 1, "dog": 1}}
    assert result.held_out == (4, 40)
    assert dict(result.options)["--batch-size 32"] == "36 images to train on are not a batch of 128"


def test_a_folder_without_splits(tmp_path: Path) -> None:
    for i in range(20):
        photo(tmp_path / f"class{i % 2}" / f"{i}.png", i)
    result = vankit.inspect(tmp_path, workers=0)
    assert counts(result) == {"train": {"class0": 10, "class1": 10}}
    assert result.held_out == (2, 20) and not result.copies


def test_what_no_option_leaves_out(tmp_path: Path) -> None:
    for i in range(45):
        photo(tmp_path / "train" / ("few" if i < 2 else "many") / f"{i}.png", i)
    photo(tmp_path / "val" / "unknown" / "0.png", 50)
    result = vankit.inspect(tmp_path, workers=0)
    (unknown,) = result.in_the_way
    assert (unknown.split, unknown.count, unknown.example) == ("val", 1, "unknown")
    assert [each.name for each in result.splits[1].classes] == ["few", "many", "unknown"]
    assert any(each.example == "many (43) beside few (2)" for each in result.of("note"))
    (tmp_path / "val" / "unknown").rename(tmp_path / "val" / "few")
    (tmp_path / "train" / "few").rename(tmp_path / "few")
    assert any("one class" in each.what for each in vankit.inspect(tmp_path, workers=0).in_the_way)


def test_too_little_is_in_the_way(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        photo(tmp_path / name / "0.jpg", 1).write_bytes(b"")
    result = vankit.inspect(tmp_path, output=tmp_path / "report.html", workers=0)
    nothing, too_few = result.in_the_way
    assert "shows any class" in nothing.what and "too few images" in too_few.what
    assert result.splits[0].sizes is None and (tmp_path / "report.html").is_file()


def test_processes_see_the_same(tmp_path: Path) -> None:
    for i in range(300):  # enough for processes
        photo(tmp_path / f"class{i % 3}" / f"{i}.png", i % 290, (8, 8))
    (tmp_path / "class0" / "0.png").write_bytes(b"")
    alone, together = (vankit.inspect(tmp_path, workers=workers).to_dict() for workers in (0, 2))
    assert alone == together
    assert alone["copies"][0]["count"] == 9 and alone["splits"][0]["images"] == 299


def test_the_dictionary_is_json(insects: Path) -> None:
    content = json.loads(json.dumps(vankit.inspect(insects, workers=0).to_dict(), allow_nan=False))
    assert content["splits"][0]["classes"][0] == {
        "name": "ants", "images": 3, "objects": None, "small": None, "pixels": None, "thing": None
    }  # fmt: skip
    assert content["command"].startswith("vankit train ")


def test_the_readers_do_not_log_what_is_reported(insects: Path, caplog: pytest.LogCaptureFixture) -> None:
    vankit.inspect(insects, workers=0)
    assert not caplog.records


def test_what_cannot_be_inspected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shapes is not a folder of files"):
        vankit.inspect("shapes")
    with pytest.raises(MissingFileError, match="no folder"):
        vankit.inspect(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="nothing in .* that could be trained on"):
        vankit.inspect(tmp_path)
    with pytest.raises(UserError, match="unknown task 'paint'"):
        vankit.inspect(tmp_path, "paint")
    with pytest.raises(UserError, match=r"expected one that ends in \.html"):
        vankit.inspect(tmp_path, output=tmp_path / "report.pdf")
    with pytest.raises(UserError, match="workers is -1"):
        vankit.inspect(tmp_path, workers=-1)
    with pytest.raises(MissingFileError, match="no instances of split train"):
        vankit.inspect(tmp_path, "detect")


def test_several_labels_per_image(tmp_path: Path) -> None:
    pytest.importorskip("vankit.data.multilabel")
    rows = {"train": ("0,dune;palm", "1,dune", "2,", "3,palm", "4,dune"), "val": ("5,palm", "6,dune")}
    for split, lines in rows.items():
        (tmp_path / f"{split}.csv").write_text("\n".join(["file,labels", *lines]))
        for line in lines:
            photo(tmp_path / "images" / f"{line[0]}.jpg", int(line[0]) % 5)  # 5 and 6 repeat 0 and 1
    (tmp_path / "images" / "4.jpg").write_bytes(b"")
    for data in (tmp_path, tmp_path / "train.csv"):
        result = vankit.inspect(data, output=tmp_path / "report.html", workers=0)
        assert counts(result) == {"train": {"dune": 2, "palm": 2}, "val": {"dune": 1, "palm": 1}}
        assert [(each.images, each.empty) for each in result.splits] == [(4, 1), (2, 0)]
        assert result.copies[0].count == 2 and result.command.endswith("--skip-bad")
        assert [each.count for each in result.of("note")] == [1]  # one image has other labels in val
