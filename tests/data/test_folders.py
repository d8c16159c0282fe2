"""Labelled image sets of every kind, made on the spot."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vankit.data.folders import open_dataset
from vankit.data.images import ImageError
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
    with pytest.raises(FileNotFoundError, match=r"no dataset at .*nowhere: expected a directory with train/CLASS"):
        open_dataset(tmp_path / "nowhere", "train", np.asarray)
    with pytest.raises(FileNotFoundError, match=r"no train split in .*: expected one of train, training"):
        open_dataset(tmp_path, "train", np.asarray)
    (tmp_path / "train").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no val split in .*: expected one of val, validation"):
        open_dataset(tmp_path, "val", np.asarray)
    with pytest.raises(ValueError, match=r"is not an ImageFolder: expected .*train/CLASS/\*\.jpg"):
        open_dataset(tmp_path, "train", np.asarray)


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
    with pytest.raises(FileNotFoundError, match=r"no classes\.txt in"):
        open_dataset(f"wds/{shards}", "val", np.asarray)


def test_training_from_shards(shards: Path, tmp_path: Path) -> None:
    config = replace(short("van_b0"), epochs=1, warmup_epochs=0, batch_size=2, img_size=32, workers=0)
    result = train(f"wds/{shards}", "van_b0", config, tmp_path / "run")
    assert 0 <= result.score <= 1
    assert result.best.exists()


def test_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    make(tmp_path / "train", {"cat": 2, "dog": 1})
    make(tmp_path / "validation", {"cat": 1, "dog": 1})
    assert datasets.config  # the folder is read by the library's own imagefolder builder
    data = open_dataset(f"hfds/{tmp_path}", "train", np.asarray)
    assert data.classes == ["cat", "dog"]
    assert [label for _, label in data] == [0, 0, 1]
