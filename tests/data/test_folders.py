"""Labelled image sets of every kind, made on the spot."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_reader import Report
from PIL import Image
from timm.data import ImageNetInfo

from vankit.data.folders import class_index, open_dataset
from vankit.data.held_out import HeldOut
from vankit.data.images import ImageError
from vankit.data.reading import Reading
from vankit.errors import MissingFileError, UserError
from vankit.training.recipes import short
from vankit.training.run import train


def make(root: Path, classes: dict[str, int], side: int = 8) -> None:
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (side, side), (i, 0, 0)).save(root / name / f"{i}.png")


def test_folder(tmp_path: Path) -> None:
    make(tmp_path / "train", {"b": 2, "a": 1})
    make(tmp_path / "validation", {"a": 1, "b": 1})
    train = open_dataset(tmp_path, "train", lambda image: image.size)
    assert train.classes == ["a", "b"]
    assert list(train) == [((8, 8), 0), ((8, 8), 1), ((8, 8), 1)]
    assert len(open_dataset(tmp_path, "val", np.asarray)) == 2


def test_exif_rotation_holds_in_training_too(tmp_path: Path) -> None:
    (tmp_path / "train" / "a").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "train" / "a" / "0.jpg", exif=exif)
    assert open_dataset(tmp_path, "train", lambda image: image.size)[0] == ((4, 8), 0)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    make(tmp_path / "train", {"a": 1})
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"no")
    with pytest.raises(ImageError, match=r"0\.png is not an image"):
        open_dataset(tmp_path, "train", np.asarray)[0]


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no dataset at .*nowhere: expected a directory with train/CLASS"):
        open_dataset(tmp_path / "nowhere", "train", np.asarray)
    with pytest.raises(MissingFileError, match=r"no train split in .*: expected a folder train or training in it"):
        open_dataset(tmp_path, "train", np.asarray)
    with pytest.raises(MissingFileError, match=r"no val split in .*: expected a folder val or validation or valid"):
        open_dataset(tmp_path, "val", np.asarray)
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"is not an ImageFolder: expected .*train/CLASS/\*\.jpg"):
        open_dataset(tmp_path, "train", np.asarray)


DEFAULT = HeldOut()


def files(data: Path, split: str, held_out: HeldOut | None = DEFAULT) -> set[str]:
    dataset = open_dataset(data, split, np.asarray, held_out=held_out)
    assert [dataset.classes[label] for _, label in dataset.samples] == [Path(p).parent.name for p, _ in dataset.samples]
    assert dataset.targets == [label for _, label in dataset.samples] and len(dataset) == len(dataset.samples)
    return {Path(path).relative_to(data).as_posix() for path, _ in dataset.samples}


@given(
    st.dictionaries(st.text("abc-é", min_size=1, max_size=6), st.integers(1, 40), min_size=1, max_size=5),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
    st.randoms(),
)
def test_each_class_gives_its_share_whatever_the_order(
    counts: dict[str, int], share: float, seed: int, random: Random
) -> None:
    images = [(f"{name}/{i}", name) for name, count in counts.items() for i in range(count)]
    held_out = HeldOut(share, seed)
    chosen = dict(zip(images, held_out.choose(*zip(*images, strict=True)), strict=True))
    for name, count in counts.items():
        found = sum(out for (_, group), out in chosen.items() if group == name)
        assert found == (0 if count == 1 else min(max(1, round(share * count)), count - 1))
    shuffled = random.sample(images, len(images))
    assert chosen == dict(zip(shuffled, held_out.choose(*zip(*shuffled, strict=True)), strict=True))


def test_the_choice_stays_the_same_for_ever() -> None:
    """A checkpoint names its share and seed alone, and other versions have to find the same images.

    printf "7 cat/12.jpg" | sha256sum gives the lowest sum of all.
    """
    names = [f"cat/{i:02d}.jpg" for i in range(20)]
    chosen = HeldOut(0.2, 7).choose(names, ["cat"] * 20)
    assert [i for i, out in enumerate(chosen) if out] == [6, 7, 10, 12]


@given(st.sets(st.integers(0, 999), min_size=20, max_size=60), st.integers(1, 5), st.integers(0, 9))
def test_images_that_are_added_hardly_move_others(old: set[int], added: int, seed: int) -> None:
    held_out = HeldOut(0.2, seed)
    before, after = (
        {name for name, out in zip(names, held_out.choose(names, ["cat"] * len(names)), strict=True) if out}
        for names in (sorted(old), sorted(old | set(range(1000, 1000 + added))))
    )
    assert len((after & old) - before) <= 1  # one more is held out of the larger set
    assert len(before - after) <= added


def test_without_val_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    make(tmp_path / "train", {"a": 20, "b": 11, "c": 1})
    make(tmp_path / "test", {"a": 2, "b": 2, "c": 1})
    everything = {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "train").rglob("*.png")}
    val, train = files(tmp_path, "val"), files(tmp_path, "train")
    assert val | train == everything and not val & train
    assert sorted(name.split("/")[1] for name in val) == ["a", "a", "b"]
    assert files(tmp_path, "val", HeldOut(0.1, 0)) == val != files(tmp_path, "val", HeldOut(0.1, 1))
    assert len(files(tmp_path, "val", HeldOut(0.5))) == 10 + 6
    assert len(files(tmp_path, "test")) == 5
    make(tmp_path / "val", {"a": 1, "b": 1, "c": 1})
    assert files(tmp_path, "val") == {"val/a/0.png", "val/b/0.png", "val/c/0.png"}
    assert files(tmp_path, "train") == everything


def test_a_folder_without_splits_is_divided_where_asked(tmp_path: Path) -> None:
    make(tmp_path, {"a": 10, "b": 10})
    whole = files(tmp_path, "val")
    assert len(whole) == 20 and files(tmp_path, "train") == whole == files(tmp_path, "val", None)
    held_out = HeldOut(0.2, plain=True)
    val, train = files(tmp_path, "val", held_out), files(tmp_path, "train", held_out)
    assert len(val) == 4 and val | train == whole and not val & train


def test_test_images_are_never_val(tmp_path: Path) -> None:
    make(tmp_path / "test", {"a": 2})
    for split in ("train", "val"):
        with pytest.raises(MissingFileError, match=f"no {split} split in"):
            open_dataset(tmp_path, split, np.asarray, held_out=HeldOut(plain=True))
    make(tmp_path / "train", {"a": 2})
    with pytest.raises(MissingFileError, match="no val split in"):
        open_dataset(tmp_path, "val", np.asarray)


@pytest.mark.parametrize(
    ("share", "seed", "says"), [(0.0, 0, "val_share is 0.0"), (1.0, 0, "val_share"), (0.1, -1, "seed is -1")]
)
def test_shares_and_seeds_out_of_range(share: float, seed: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        HeldOut(share, seed)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def test_what_cannot_be_read_is_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "train", {"a": 3})
    spoil(tmp_path / "train" / "a" / "1.png")
    data = open_dataset(tmp_path, "train", np.asarray, reading=Reading(skip_bad=True))
    assert [item is None for item in data] == [False, True, False]
    assert [Path(name).name for name, _ in data.skipped] == ["1.png"] and len(caplog.records) == 1


def test_a_jpeg_without_its_end_is_read_on_request(tmp_path: Path) -> None:
    make(tmp_path / "train", {"a": 1})
    path = tmp_path / "train" / "a" / "0.png"
    Image.new("RGB", (8, 8), (1, 200, 3)).save(path, "jpeg")
    whole = np.asarray(Image.open(path))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError, match="truncated.*; --tolerant reads what there is of it; --skip-bad leaves such"):
        open_dataset(tmp_path, "train", np.asarray)[0]
    image, _ = open_dataset(tmp_path, "train", np.asarray, reading=Reading(tolerant=True))[0]
    np.testing.assert_array_equal(image, whole)


def test_junk_is_no_class_and_no_image(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "train", {"a": 2, "b": 1, ".ipynb_checkpoints": 1, "__MACOSX": 1})
    (tmp_path / "train" / "a" / "._0.png").write_bytes(b"junk")
    (tmp_path / "train" / "Thumbs.db").touch()
    (tmp_path / "train" / "empty").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "beside.png")
    (tmp_path / "train" / "a" / "again").symlink_to(tmp_path / "train", target_is_directory=True)
    data = open_dataset(tmp_path, "train", np.asarray)
    assert data.classes == ["a", "b"] and data.targets == [0, 0, 1] and data.empty == ["empty"]
    assert "class folders without images (1): empty" in caplog.text
    assert "images outside the class folders (1, such as beside.png)" in caplog.text
    assert "links into the same folder (1, such as again)" in caplog.text


def test_a_class_may_be_a_link_to_elsewhere(tmp_path: Path) -> None:
    make(tmp_path / "all", {"a": 2})
    make(tmp_path / "set" / "train", {"b": 1})
    (tmp_path / "set" / "train" / "c").symlink_to(tmp_path / "all" / "a", target_is_directory=True)
    data = open_dataset(tmp_path / "set", "train", np.asarray)
    assert data.classes == ["b", "c"] and data.targets == [0, 1, 1]


def test_val_takes_the_classes_that_are_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    make(tmp_path / "val", {"c": 2, "a": 1})
    val = open_dataset(tmp_path, "val", np.asarray)
    val.relabel(["a", "b", "c"])
    assert val.classes == ["a", "b", "c"] and val.targets == [0, 2, 2]
    assert "val: classes without images to validate (1): b" in caplog.text
    with pytest.raises(UserError, match=r"val: classes without images to train on \(2\): b, c; add some, or take the"):
        val.relabel(["a"])


def test_splits_in_capitals(tmp_path: Path) -> None:
    make(tmp_path / "Train", {"a": 2})
    make(tmp_path / "Val", {"a": 1})
    assert len(open_dataset(tmp_path, "train", np.asarray)) == 2
    assert len(open_dataset(tmp_path, "val", np.asarray, held_out=HeldOut())) == 1


def test_a_class_named_train_is_no_split(tmp_path: Path) -> None:
    make(tmp_path, {"Bus": 1, "Train": 2})
    assert open_dataset(tmp_path, "train", np.asarray).classes == ["Bus", "Train"]


def test_a_byte_order_mark_is_no_part_of_a_class(shards: Path) -> None:
    (shards / "classes.txt").write_text("cat\r\ndog\r\n", encoding="utf-8-sig")
    assert open_dataset(f"wds/{shards}", "val", np.asarray).classes == ["cat", "dog"]


WANTED = {"class_only_in_train": ["ants", "bees", "wasps"]}  # which has a training image


@pytest.mark.slow
@pytest.mark.data
def test_folders_that_users_reported(tmp_path: Path, cases: Callable[[str, Path], None]) -> None:
    cases("folders", tmp_path)
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 9
    for folder in folders:
        parts = {}
        for split in ("train", "val"):
            reading = Reading(skip_bad=True)
            parts[split] = open_dataset(folder, split, np.asarray, held_out=HeldOut(plain=True), reading=reading)
        parts["val"].relabel(parts["train"].classes)
        counts = {
            split: Counter(data.classes[label] for _, label in filter(None, data)) for split, data in parts.items()
        }
        assert parts["train"].classes == WANTED.get(folder.name, ["ants", "bees"])
        extra = {"wasps": 1} if folder.name in WANTED else {}
        if folder.name == "only_test":  # whose images are never val: some are held out
            assert counts == {"train": {"ants": 3, "bees": 3}, "val": {"ants": 1, "bees": 1}}
        else:
            assert counts == {"train": {"ants": 4, "bees": 4, **extra}, "val": {"ants": 2, "bees": 2}}, folder


def test_shapes() -> None:
    data = open_dataset("shapes", "val", np.asarray, size=32, seed=4)
    assert len(data) == 1000
    assert len(data.classes) == 10
    image, label = data[13]
    assert image.shape == (32, 32, 3)
    assert label == 3


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    pytest.importorskip("webdataset")
    splits = {}
    for split, count in (("train", 6), ("validation", 4)):
        with tarfile.open(tmp_path / f"{split}-0000.tar", "w") as tar:
            for i in range(count):
                for suffix, content in (("png", png()), ("cls", str(i % 2).encode())):
                    info = tarfile.TarInfo(f"{i:04d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        splits[split] = {
            "name": split,
            "num_samples": count,
            "filenames": [f"{split}-0000.tar"],
            "shard_lengths": [count],
        }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    (tmp_path / "classes.txt").write_text("cat\ndog")
    return tmp_path


def test_webdataset_shards(shards: Path) -> None:
    data = open_dataset(f"wds/{shards}", "val", np.asarray)
    assert data.classes == ["cat", "dog"]
    rows = list(data)
    assert sorted(int(label) for _, label in rows) == [0, 0, 1, 1]
    assert rows[0][0].shape == (8, 8, 3)
    (shards / "classes.txt").unlink()
    with pytest.raises(MissingFileError, match=r"no classes\.txt in"):
        open_dataset(f"wds/{shards}", "val", np.asarray)


def test_training_from_shards(shards: Path, tmp_path: Path) -> None:
    config = replace(short("van_b0"), epochs=1, warmup_epochs=0, batch_size=2, img_size=32, workers=0)
    result = train(f"wds/{shards}", "van_b0", config, tmp_path / "run")
    assert 0 <= result.score <= 1
    assert result.best.exists()
    page = Report(tmp_path / "run" / "report.html")
    assert sum(int(row["images"]) for row in page.rows("Classes")) == 4
    for caption in page.captions.get("Surest mistakes", []):
        assert "→" in caption and "\n" not in caption  # no name in a stream


def test_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    make(tmp_path / "train", {"cat": 2, "dog": 1})
    make(tmp_path / "validation", {"cat": 1, "dog": 1})
    assert datasets.config  # the folder is read by the library's own imagefolder builder
    data = open_dataset(f"hfds/{tmp_path}", "train", np.asarray)
    assert data.classes == ["cat", "dog"]
    assert [label for _, label in data] == [0, 0, 1]


def test_a_hugging_face_dataset_without_val_is_divided(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        make(tmp_path / split, {"cat": 10, "dog": 5})
    val, train = (open_dataset(f"hfds/{tmp_path}", split, np.asarray, held_out=HeldOut()) for split in ("val", "train"))
    assert (len(val), len(train)) == (2, 13) == (val.division.count, val.division.held_out.total - 2)
    assert sorted(label for _, label in val) == [0, 1]
    rows = [{row["image"]["path"] for row in part.reader.dataset} for part in (val, train)]
    assert len(rows[0] | rows[1]) == 15 and all("/train/" in path for path in rows[0])


def test_shards_without_val_are_refused(shards: Path) -> None:
    info = json.loads((shards / "_info.json").read_text())
    info["splits"]["test"] = info["splits"].pop("validation")
    (shards / "_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="cannot read a val split of wds/.*; tried val: .*; validation: .*; valid: "):
        open_dataset(f"wds/{shards}", "val", np.asarray)


def test_classes_are_matched_by_name_id_or_order() -> None:
    assert class_index(["b", "a"], ["a", "b", "c"]).tolist() == [1, 0]
    imagenet = ImageNetInfo("imagenet-1k").label_descriptions()
    ids = ImageNetInfo("imagenet-1k").label_names()
    assert class_index(["n01443537", "n01440764"], imagenet).tolist() == [1, 0]
    assert class_index(ids[::-1], imagenet).tolist() == list(range(1000))[::-1]
    assert class_index(["0", "1", "10"], ["0", "1", "2"], named=False).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match=r"does not know 1 of the data's 2 classes \(z\)"):
        class_index(["a", "z"], ["a", "b"])
