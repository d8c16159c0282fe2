"""A look at a picture finds what decoding all of it finds."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vankit.data.images import load_image
from vankit.errors import UserError
from vankit.inspection.pictures import BROKEN, CUT_OFF, Contents, look_at


def smooth(path: Path, **options: object) -> bytes:
    ramp = np.linspace(0, 255, 200 * 120 * 3).reshape(120, 200, 3).astype(np.uint8)
    Image.fromarray(ramp).save(path, **options)
    return path.read_bytes()


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_lacks_any_of_its_end_is_found(tmp_path: Path, progressive: bool) -> None:
    path = tmp_path / "x.jpg"
    whole = smooth(path, progressive=progressive, quality=95)
    assert look_at(path).size == (200, 120) and look_at(path).flaw is None
    for missing in (1, 2, 3, 50, len(whole) // 2, len(whole) - 700):
        path.write_bytes(whole[:-missing])
        with pytest.raises(UserError) as full:
            load_image(path)
        look = look_at(path)
        assert look.size is None and look.flaw is not None
        assert look.flaw[0] == CUT_OFF and str(path) in look.flaw[1]
        assert "truncated" in str(full.value) and "truncated" in look.flaw[1]


def test_other_files_that_cannot_be_read(tmp_path: Path) -> None:
    png = smooth(tmp_path / "x.png")
    for name, content in (("cut.png", png[:-30]), ("empty.jpg", b""), ("text.jpg", b"text")):
        (tmp_path / name).write_bytes(content)
        flaw = look_at(tmp_path / name).flaw
        assert flaw is not None and flaw[0] == BROKEN
    flaw = look_at(tmp_path / "missing.png").flaw
    assert flaw is not None and "missing.png" in flaw[1]


def test_the_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    smooth(tmp_path / "x.jpg", exif=exif)
    assert look_at(tmp_path / "x.jpg").size == (120, 200) == load_image(tmp_path / "x.jpg").size


def test_copies_are_counted_within_splits_and_between() -> None:
    contents = Contents(["train", "val", "test"])
    for split, digests in enumerate((b"aabcd", b"abbe", b"bf")):
        for index, digest in enumerate(digests):
            contents.add(split, index, bytes([digest]))
    paths = [[f"{name}{i}" for i in range(5)] for name in ("t", "v", "s")]
    found = {each.splits: (each.count, each.examples) for each in contents.copies(paths)}
    assert found == {
        ("train", "val"): (3, (("t0", "v0"), ("t2", "v1"), ("t2", "v2"))),  # a, b, b
        ("train", "test"): (1, (("t2", "s0"),)),
        ("val", "test"): (1, (("v1", "s0"),)),
        ("train",): (1, (("t0", "t1"),)),
        ("val",): (1, (("v1", "v2"),)),
    }
    assert sorted(map(len, contents.groups)) == [3, 4]
