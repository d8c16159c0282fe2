"""What label PNGs mean: palettes, mapped values, numbers of any kind, against what was written into them."""

import contextlib
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from vankit.data.label_maps import Coding, find_palette, parse_map, read_labels
from vankit.errors import UserError

COLOURS = {"road": (128, 64, 128), "sky": (70, 130, 180), "car": (0, 0, 142), "void": (0, 0, 0)}
PALETTES = {
    "palette.txt": "# colours\n128 64 128 road\n70 130 180 sky\n\n0 0 142 car\n0 0 0 void\n",
    "label_colors.txt": "128 64 128\troad\r\n70 130 180\t\tsky\r\n0 0 142\tcar\r\n0 0 0\tVoid\r\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nroad:128,64,128::\nsky:70,130,180::\ncar:0,0,142::\nvoid:0,0,0::",
    "class_dict.csv": "\ufeffname,r,g,b\nroad,128,64,128\nsky,70,130,180\ncar,0,0,142\nunlabelled,0,0,0\n",
}


@pytest.mark.parametrize(("name", "text"), PALETTES.items(), ids=PALETTES)
def test_palettes_of_several_tools(tmp_path: Path, name: str, text: str) -> None:
    assert find_palette(tmp_path) is None
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    palette = find_palette(tmp_path)
    assert palette is not None and palette.classes == ["road", "sky", "car"]
    picture = np.array([[COLOURS["sky"], COLOURS["void"]], [COLOURS["car"], COLOURS["road"]]], np.uint8)
    for image in (
        Image.fromarray(picture),
        Image.fromarray(picture).convert("RGBA"),
        Image.fromarray(picture).quantize(),
    ):
        image.save(tmp_path / "a.png")  # of the last one the PNG's own indices say nothing
        assert Coding(palette.classes, palette=palette).read(tmp_path / "a.png").tolist() == [[1, 255], [2, 0]]


def test_a_class_may_have_several_colours_and_a_name_of_several_words(tmp_path: Path) -> None:
    (tmp_path / "palette.txt").write_text("1 2 3 traffic light\n4 5 6 tree\n7 8 9 traffic light")
    palette = find_palette(tmp_path)
    assert palette is not None and palette.classes == ["traffic light", "tree"]
    Image.fromarray(np.array([[(1, 2, 3), (4, 5, 6), (7, 8, 9)]], np.uint8)).save(tmp_path / "a.png")
    assert read_labels(tmp_path / "a.png", palette).tolist() == [[0, 1, 0]]


def test_a_table_with_a_number_before_the_name_and_one_without_colours(tmp_path: Path) -> None:
    (tmp_path / "class_dict.csv").write_text("id,name,r,g,b\n0,sky,1,2,3\n1,road,4,5,6\n")
    palette = find_palette(tmp_path)
    assert palette is not None and palette.classes == ["sky", "road"]
    (tmp_path / "class_dict.csv").unlink()
    (tmp_path / "labelmap.txt").write_text("sky\nroad\n")
    assert find_palette(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 2 3 a\n1 2 3 b", r"palette\.txt, line 2: the colour of b is given twice"),
        ("1 2 3 a\n1 2 b", r"line 2 is '1 2 b': expected R G B name"),
        ("1 2 256 a", r"line 1 is '1 2 256 a': expected numbers from 0 to 255"),
        (f"1 2 {'3' * 5000} a", "line 1 is '1 2 3.*a': expected R G B name"),
    ],
)
def test_palettes_that_cannot_be_read(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "palette.txt").write_text(text)
    with pytest.raises(UserError, match=reason):
        find_palette(tmp_path)


@pytest.mark.parametrize("line", ["a" + " " * 60_000 + "b", "1," * 60_000, "1" * 60_000, "a" + " ," * 60_000])
def test_no_line_takes_long(tmp_path: Path, line: str) -> None:
    started = time.process_time()
    for name in ("palette.txt", "labelmap.txt"):
        (tmp_path / name).write_text(f"{line}\n")
        with contextlib.suppress(UserError):
            find_palette(tmp_path)
        (tmp_path / name).unlink()
    assert time.process_time() - started < 2  # it took 20 s and more


def test_colours_that_the_palette_does_not_name(tmp_path: Path) -> None:
    (tmp_path / "palette.txt").write_text("1 2 3 a")
    Image.fromarray(np.array([[(1, 2, 3), (9, 8, 7), (9, 8, 6)]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png has 2 colours that .*palette\.txt does not name, such as 9 8 6: add"):
        read_labels(tmp_path / "a.png", find_palette(tmp_path))


def test_colours_without_a_palette_are_grey_or_refused(tmp_path: Path) -> None:
    grey = np.array([[0, 1, 7]], np.uint8)
    for mode in ("RGB", "RGBA"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "a.png")
        assert read_labels(tmp_path / "a.png").tolist() == [[0, 1, 7]]
    Image.fromarray(np.array([[(0, 0, 0), (0, 1, 0)]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"in colour \(RGB\): expected one class index per pixel, or a file palette"):
        read_labels(tmp_path / "a.png")


def test_pairs_of_values() -> None:
    assert parse_map(["255:1", "0:0", "40000:255"]) == {255: 1, 0: 0, 40000: 255} and parse_map([]) == {}


@pytest.mark.parametrize(
    "pair", ["255", "255:", "a:1", "255=1", "-1:1", "1:256", "65536:0", "1:2:3", "1:" + "2" * 5000]
)
def test_what_is_no_pair(pair: str) -> None:
    with pytest.raises(UserError, match=f"map_labels has '{pair}': expected OLD:NEW, such as 255:1"):
        parse_map([pair])


def test_a_value_is_mapped_once() -> None:
    with pytest.raises(UserError, match="map_labels maps 3 to 1 and to 2"):
        parse_map(["3:1", "3:2"])


@given(
    arrays(np.uint8, (3, 4)),
    st.dictionaries(st.integers(0, 255), st.integers(0, 255), max_size=4),
    st.integers(0, 255),
    st.booleans(),
)
def test_mapping_comes_before_all_else(
    tmp_path_factory: pytest.TempPathFactory, labels: np.ndarray, mapping: dict[int, int], ignored: int, zero: bool
) -> None:
    path = tmp_path_factory.mktemp("maps") / "a.png"
    Image.fromarray(labels).save(path)
    coding = Coding([str(i) for i in range(255)], ignored, zero, mapping)
    mapped = [[mapping.get(value, value) for value in row] for row in labels.tolist()]
    unlabelled = {255, ignored} | ({0} if zero else set())
    assert coding.read(path).tolist() == [[255 if v in unlabelled else v - zero for v in row] for row in mapped]
