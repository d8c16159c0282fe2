"""CSV files of labels as people have them, and as they should not be."""

from pathlib import Path

import pytest
from PIL import Image

from vankit.data.label_tables import LabelTable, read_labels
from vankit.errors import MissingFileError, UserError


def read(tmp_path: Path, text: str | bytes, train: LabelTable | None = None, name: str = "train.csv") -> LabelTable:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_labels(path, train)


PLANET = "image_name,tags\ntrain_0,haze primary\ntrain_1,agriculture clear primary\n"
NIH = "Image Index,Finding Labels,Follow-up #\n1.png,Cardiomegaly|No Finding,0\n2.png,No Finding,1\n"


@pytest.mark.parametrize(
    ("text", "files", "classes", "source"),
    [
        (
            PLANET,
            {"train_0": ("haze", "primary"), "train_1": ("agriculture", "clear", "primary")},
            ["agriculture", "clear", "haze", "primary"],
            "files in column image_name, labels in tags, separated by spaces",
        ),
        (
            NIH,
            {"1.png": ("Cardiomegaly", "No Finding"), "2.png": ("No Finding",)},
            ["Cardiomegaly", "No Finding"],
            "files in column Image Index, labels in Finding Labels, separated by |; not used: Follow-up #",
        ),
        (  # a name with a comma, between quotes
            'file,labels\na.jpg,"bear, brown; tree"\nb.jpg,\n',
            {"a.jpg": ("bear, brown", "tree"), "b.jpg": ()},
            ["bear, brown", "tree"],
            "files in column file, labels in labels, separated by ;",
        ),
        ('file,labels\na.jpg,"x,y z"\n', {"a.jpg": ("x", "y z")}, ["x", "y z"],
         "files in column file, labels in labels, separated by commas"),
        (  # saved by Excel where the comma is for decimals: a mark, semicolons, CRLF
            "\ufefffile;labels\r\na.jpg;cat dog\r\n\r\n".encode(),
            {"a.jpg": ("cat", "dog")},
            ["cat", "dog"],
            "files in column file, labels in labels, separated by spaces",
        ),
        (
            "filename,cat,dog,owl\nx/a.jpg,1,0,0\nx\\b.jpg,0,0,0\n./c.jpg,1.0,TRUE,0.0\n",
            {"x/a.jpg": ("cat",), "x/b.jpg": (), "c.jpg": ("cat", "dog")},
            ["cat", "dog", "owl"],
            "files in column filename, labels in a column per class, cat to owl",
        ),
        (  # CelebA's
            "image_id,Bald,Young\n1.jpg,-1,1\n2.jpg,1,-1\n",
            {"1.jpg": ("Young",), "2.jpg": ("Bald",)},
            ["Bald", "Young"],
            "files in column image_id, labels in a column per class, Bald to Young",
        ),
        (  # the index that pandas writes has no name
            ",file,b,a\n0,1.jpg,1,1\n",
            {"1.jpg": ("b", "a")},
            ["b", "a"],
            "files in column file, labels in a column per class, b to a",
        ),
    ],
    ids=["planet", "nih", "semicolons", "commas", "excel", "columns", "celeba", "pandas"],
)  # fmt: skip
def test_formats(tmp_path: Path, text: str | bytes, files: object, classes: list[str], source: str) -> None:
    found = read(tmp_path, text)
    assert found.files == files
    assert list(found.classes) == classes
    assert found.source == source


def test_rows_of_one_file_are_put_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read(tmp_path, "image,label\na.jpg,cat\nb.jpg,dog\n./a.jpg,dog\na.jpg,cat\n")
    assert found.files == {"a.jpg": ("cat", "dog"), "b.jpg": ("dog",)}
    assert "2 rows name a file again" in caplog.text
    caplog.clear()
    assert read(tmp_path, "image,cat,dog\na.jpg,1,0\na.jpg,1,0\n").files == {"a.jpg": ("cat",)}
    assert "1 rows name a file again" in caplog.text
    with pytest.raises(UserError, match=r"train\.csv, line 3: a\.jpg has other labels than in an earlier line"):
        read(tmp_path, "image,cat,dog\na.jpg,1,0\na.jpg,0,0\n")


def test_classes_and_separator_are_those_to_train_on(tmp_path: Path) -> None:
    train = read(tmp_path, "file,labels\na.jpg,red car;tree\nb.jpg,sky\n")
    val = read(tmp_path, "file,labels\nc.jpg,red car\n", train, "val.csv")
    assert val.files == {"c.jpg": ("red car",)} and list(val.classes) == ["red car", "sky", "tree"]
    plain = read(tmp_path, "file,labels\na.jpg,red\nb.jpg,sky\n")
    assert read(tmp_path, "file,labels\na.jpg,red;sky\n", plain, "val.csv").files == {"a.jpg": ("red", "sky")}
    assert list(read(tmp_path, "file,tree,sky\nc.jpg,1,0\n", train, "val.csv").classes) == ["red car", "sky", "tree"]
    with pytest.raises(
        UserError, match=r"val\.csv has 2 labels that train\.csv lacks: boat, car; add images with them"
    ):
        read(tmp_path, "file,labels\nc.jpg,car;sky;boat\n", train, "val.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"has the columns \(none\): expected one for the images' files"),
        ("name_of_picture,labels\na.jpg,x\n", r"has the columns name_of_picture, labels: expected one for the images'"),
        ("file\na.jpg\n", "has the columns file: expected"),
        ("file,labels\n", "has no row: expected one per image"),
        ("file,labels\na.jpg,x,y\n", "line 2, has 3 cells and the header 2: expected as many; put cells"),
        ("file,cat,dog\na.jpg,1,0\nb.jpg,1,\n", "line 3: dog is '': expected 0 or 1"),
        (
            "file,cat,age\na.jpg,1,31\n",
            "line 2: age is '31': expected 0 or 1 in the column of each class; remove columns",
        ),
        ("file,cat,dog\na.jpg,1,-1\nb.jpg,0,1\n", "has -1 beside 0 and 1, which may mean unknown"),
        ("file,cat,cat\na.jpg,1,0\n", "has several columns cat: expected one per class"),
        ("file,labels\na.jpg,x;y\nb.jpg,x|y\n", r"has labels with ; and labels with \| between them: expected one"),
        ("file,labels\na.jpg,\"['x', 'y']\"\n", r"line 2: the labels are \['x', 'y'\]: expected their names alone"),
        ("file,labels\n,x\n", "line 2: '' is not the name of a file in"),
        ("file,labels\n/etc/a.jpg,x\n", "line 2: '/etc/a.jpg' is not the name of a file in .*: expected one relative"),
        ("file,labels\nC:\\a.jpg,x\n", "is not the name of a file in"),
        ("file,labels\nb.jpg,x\nx/../../a.jpg,x\n", r"line 3: 'x/\.\./\.\./a\.jpg' is not the name of a file in"),
        (b"file,labels\na.jpg,caf\xe9\n", "is not text in UTF-8"),
        ('file,labels\na.jpg,"' + "x" * 140_000 + '"\n', "line 2, is not CSV: field larger than field limit"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(tmp_path, text)


@pytest.mark.parametrize("place", ["", "images/", "train/"])
@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_images_are_found(tmp_path: Path, place: str, suffix: str) -> None:
    (tmp_path / place / "a").mkdir(parents=True)
    for name in ("a/0", "1"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{place}{name}.jpg")
    table = read(tmp_path, f"file,labels\na/0{suffix},x\n1{suffix},y\n")
    assert table.paths() == [str(tmp_path / f"{place}{name}.jpg") for name in ("a/0", "1")]
    table.files["2.jpg"] = table.files["3.jpg"] = ()
    with pytest.raises(MissingFileError, match=r"names 2 files of 4 that are not there, such as .*2\.jpg.*: expected"):
        table.paths()
