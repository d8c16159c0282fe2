"""load_image against pixels computed by hand."""

import io
import os
import pickle
import struct
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from vankit.data.images import ImageError, is_one_image, is_turned, load_image, load_png, read_size, several, to_image
from vankit.data.walk import find_images
from vankit.errors import MissingFileError, UserError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 9, 3), np.uint8)
GREYS16 = RNG.integers(0, 65536, (6, 9), np.uint16)
ROWS, COLUMNS = np.mgrid[:96, :160]
SLOPES = np.stack([COLUMNS * 1.5, ROWS * 2.5, 250 - COLUMNS], -1).astype(np.uint8)  # no level appears twice by symmetry


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def pixels(source: object, **options: int) -> np.ndarray:
    image = load_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_rgb_is_unchanged(file_format: str, tmp_path: Path) -> None:
    path = tmp_path / "picture"
    Image.fromarray(COLOURS).save(path, file_format)
    for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        np.testing.assert_array_equal(pixels(source), COLOURS)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("JPEG2000", {}),
        ("GIF", {}),
    ],
)
def test_every_other_format_is_recognised(file_format: str, options: dict[str, object]) -> None:
    smooth = np.zeros((16, 24, 3), np.uint8)
    smooth[...] = np.linspace(40, 200, 24)[None, :, None]
    np.testing.assert_allclose(pixels(encoded(Image.fromarray(smooth), file_format, **options)), smooth, atol=8)


def test_a_stream_is_read_from_its_start_and_left_open() -> None:
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, "PNG")
    np.testing.assert_array_equal(pixels(file), COLOURS)
    assert not file.closed


def test_a_stream_that_cannot_seek(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as out:
        out.write(encoded(Image.fromarray(COLOURS), "PNG"))
    with os.fdopen(read_end, "rb") as file:
        np.testing.assert_array_equal(pixels(file), COLOURS)


def test_the_file_is_closed_and_the_image_picklable(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    image = load_image(path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(pickle.loads(pickle.dumps(image))), COLOURS)


# What a picture must be turned by to stand upright, in array terms (EXIF 2.32, tag 0x0112).
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
    9: lambda a: a,
}


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    data = encoded(Image.fromarray(COLOURS), file_format, exif=exif, **options)
    np.testing.assert_array_equal(pixels(data), UPRIGHT[orientation](COLOURS))


def test_exif_orientation_of_a_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    halves = np.zeros((16, 32, 3), np.uint8)
    halves[:, :16] = 255
    data = encoded(Image.fromarray(halves), "JPEG", exif=exif, quality=100)
    np.testing.assert_allclose(pixels(data), np.rot90(halves, -1), atol=3)


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_does_not_lose_the_picture() -> None:
    data = encoded(Image.fromarray(COLOURS), "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    np.testing.assert_array_equal(pixels(data), COLOURS)


def test_rgba_and_la_lie_over_white() -> None:
    alpha = RNG.integers(0, 256, (6, 9), np.uint8)
    rgba = np.dstack([COLOURS, alpha])
    np.testing.assert_allclose(pixels(encoded(Image.fromarray(rgba), "PNG")), over_white(COLOURS, alpha), atol=1)
    grey = COLOURS[..., 0]
    la = encoded(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)]), "PNG")
    np.testing.assert_allclose(pixels(la), over_white(np.stack([grey] * 3, -1), alpha), atol=1)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
def test_palette_with_transparency_lies_over_white(transparency: int | bytes) -> None:
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 200]])
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(indices, "L").convert("L")
    image.putpalette(palette.astype(np.uint8).tobytes())
    alphas = np.array([255, 0, 255] if transparency == 1 else [255, 0, 128])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pixels(encoded(image, "PNG", transparency=transparency))
    np.testing.assert_allclose(found, over_white(palette[indices], alphas[indices]), atol=1)


def test_one_transparent_grey_or_colour_becomes_white() -> None:
    grey = raw_png(3, 1, 8, 0, b"\0\x0a\x14\x1e", png_chunk(b"tRNS", b"\0\x14"))
    assert pixels(grey)[0, :, 0].tolist() == [10, 255, 30]
    colour = raw_png(2, 1, 8, 2, b"\0" + bytes([1, 2, 3, 4, 5, 6]), png_chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    assert pixels(colour).tolist() == [[[255, 255, 255], [4, 5, 6]]]
    grey16 = raw_png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 1000, 257), png_chunk(b"tRNS", struct.pack(">H", 1000)))
    assert pixels(grey16)[0, :, 0].tolist() == [255, 1]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_bilevel_and_palette(mode: str) -> None:
    image = Image.fromarray(COLOURS).convert(mode)
    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg() -> None:
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 0] = 255
    found = pixels(encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=100))
    np.testing.assert_allclose(found, np.broadcast_to([0, 255, 255], (16, 16, 3)), atol=3)


def test_lab_tiff() -> None:
    image = Image.new("LAB", (4, 4), (137, 128, 128))  # L* = 53.7, a* = b* = 0: sRGB grey 128
    np.testing.assert_allclose(pixels(encoded(image, "TIFF")), 128, atol=3)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_is_scaled(file_format: str) -> None:
    found = pixels(encoded(Image.fromarray(GREYS16), file_format))
    np.testing.assert_array_equal(found, np.stack([np.rint(GREYS16 / 257)] * 3, -1))


def test_16_bit_big_endian_tiff_is_scaled() -> None:
    image = Image.frombytes("I;16B", (9, 6), GREYS16.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(encoded(image, "TIFF"))[..., 0], np.rint(GREYS16 / 257))


def test_16_bit_rgb_png() -> None:
    deep = RNG.integers(0, 65536, (6, 9, 3), np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    np.testing.assert_allclose(pixels(raw_png(9, 6, 16, 2, rows)), deep / 257, atol=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 7, 255], [0, 7, 255]),
        ([-5, 7, 200], [0, 7, 200]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-9, 2570, 1_000_000], [0, 10, 255]),
    ],
)
def test_32_bit_integers(values: list[int], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.int32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0.5, 1], [0, 128, 255]),
        ([0.2, np.nan, 1], [51, 0, 255]),
        ([0, 1.5, 254.6], [0, 2, 255]),
        ([-4, 30, 1e9], [0, 30, 255]),
        ([-np.inf, 30, np.inf], [0, 30, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
)
def test_floats(values: list[float], expected: list[int]) -> None:
    data = encoded(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert pixels(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_first_frame_of_many(file_format: str) -> None:
    red, blue = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    data = encoded(red, file_format, save_all=True, append_images=[blue])
    np.testing.assert_allclose(pixels(data), np.broadcast_to([250, 0, 0], (16, 16, 3)), atol=12)


@settings(max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), min_side=st.integers(1, 150))
def test_a_jpeg_is_reduced_as_far_as_both_sides_allow(width: int, height: int, min_side: int) -> None:
    scale = max(s for s in (1, 2, 4, 8) if s == 1 or min(width, height) / s >= min_side)
    found = load_image(encoded(Image.new("RGB", (width, height)), "JPEG"), min_side=min_side)
    assert found.size == (-(-width // scale), -(-height // scale))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_reduced_jpeg_is_the_picture_made_smaller(scale: int, options: dict[str, Any], mode: str) -> None:
    data = encoded(Image.fromarray(SLOPES).convert(mode), "JPEG", quality=95, **options)
    exact = load_image(data)
    np.testing.assert_allclose(pixels(data, min_side=96 // scale), exact.reduce(scale), atol=4 * (scale > 1))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_reduced_jpeg_stands_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(SLOPES), "JPEG", exif=exif, quality=95)
    expected = UPRIGHT[orientation](np.asarray(Image.fromarray(SLOPES).reduce(4)))
    np.testing.assert_allclose(pixels(data, min_side=24), expected, atol=6)


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "GIF", "JPEG2000", "AVIF"])
def test_other_formats_are_not_reduced(file_format: str) -> None:
    data = encoded(Image.fromarray(SLOPES), file_format)
    np.testing.assert_array_equal(pixels(data, min_side=1), pixels(data))


def test_the_limit_counts_the_pixels_of_the_file_not_of_the_reduced_picture() -> None:
    data = encoded(Image.fromarray(SLOPES), "JPEG")
    assert load_image(data, max_pixels=160 * 96, min_side=12).size == (20, 12)
    with pytest.raises(ImageError, match="160 x 96"):
        load_image(data, max_pixels=160 * 96 - 1, min_side=12)


def test_min_side_of_every_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(SLOPES).save(path)
    with path.open("rb") as file:
        assert load_image(file, min_side=48).size == (80, 48)
    assert load_image(path, min_side=48).size == to_image(path, min_side=48).size == (80, 48)
    with Image.open(path) as opened:
        assert to_image(opened, min_side=48).size == to_image(SLOPES, min_side=48).size == (160, 96)
    with pytest.raises(UserError, match="min_side is 0"):
        load_image(path, min_side=0)


@settings(max_examples=60)
@given(
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    file_format=st.sampled_from(["PNG", "TIFF"]),
)
def test_any_mode_and_size_gives_rgb_of_that_size(mode: str, width: int, height: int, file_format: str) -> None:
    image = load_image(encoded(Image.new(mode, (width, height)), file_format))
    assert (image.mode, image.size) == ("RGB", (width, height))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"]), st.floats(0, 0.9), st.sampled_from([None, 1])
)
def test_truncated_files_raise(file_format: str, share: float, min_side: int | None) -> None:
    data = encoded(Image.fromarray(np.tile(COLOURS, (5, 5, 1))), file_format)
    with pytest.raises(ImageError, match=r"image of \d+ bytes"):
        load_image(data[: int(share * len(data))], min_side=min_side)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100)
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
    st.sampled_from([None, 2]),
)
def test_altered_bytes_give_an_image_or_an_image_error(
    file_format: str, changes: list[tuple[float, int]], min_side: int | None
) -> None:
    data = bytearray(encoded(Image.fromarray(COLOURS), file_format))
    for at, value in changes:
        data[int(at * len(data))] = value
    try:
        image = load_image(bytes(data), max_pixels=1_000_000, min_side=min_side)
    except ImageError:
        return
    assert image.mode == "RGB" and image.width * image.height <= 1_000_000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello, I am a text file, honestly", "is not an image.*expected one of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not an image"),
        (b"\x89PNG\r\n\x1a\n", "broken or truncated .PNG."),
        (encoded(Image.fromarray(np.tile(COLOURS, (9, 9, 1))), "JPEG")[:-700], "broken or truncated .JPEG.*truncated"),
    ],
)
def test_broken_files_are_named_with_the_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=f"holiday.jpg .*{reason}"):
        load_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no such image file: .*nowhere.png"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)


def headers(width: int, height: int) -> dict[str, bytes]:
    """Files that only claim their size: their pixels are missing."""
    return {
        "PNG": raw_png(width, height, 8, 2, b""),
        "GIF": b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6),
        "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0),
        "PPM": b"P6\n%d %d\n255\n" % (width, height),
        "VP8X": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0"
        + (width - 1).to_bytes(3, "little")
        + (height - 1).to_bytes(3, "little"),
        "VP8L": b"RIFF\x16\0\0\0WEBPVP8L\x0a\0\0\0\x2f" + struct.pack("<I", (height - 1) << 14 | width - 1) + bytes(5),
        "VP8": b"RIFF\x16\0\0\0WEBPVP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height),
    }


@pytest.mark.parametrize("kind", headers(1, 1))
def test_the_limit_is_read_from_the_header(kind: str) -> None:
    with pytest.raises(ImageError, match=r"16000 x 16000 = 256,000,000 pixels.*max_pixels=256000000 .--max-pixels"):
        load_image(headers(16000, 16000)[kind])


def test_the_limit_is_inclusive_and_can_be_raised() -> None:
    data = encoded(Image.new("L", (30, 20)), "PNG")
    assert load_image(data, max_pixels=600).size == (30, 20)
    with pytest.raises(ImageError, match="30 x 20"):
        load_image(data, max_pixels=599)


@pytest.mark.parametrize("limit", [10, 400])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "MPO", "PPM", "AVIF", "JPEG2000"])
def test_pillows_own_limit_plays_no_part_and_is_left_as_it_was(
    file_format: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    many = {"save_all": True, "append_images": frames[1:]} if file_format in ("GIF", "MPO", "WEBP", "AVIF") else {}
    data = encoded(frames[0], file_format, **many)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(data).size == (30, 20)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_threads_leave_pillows_limit_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [encoded(Image.new("RGB", (20 + i, 20)), "TIFF") for i in range(8)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    failures: list[ImageError] = []

    def work(data: bytes) -> None:
        try:
            for _ in range(25):
                load_image(data)
        except ImageError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(data,)) for data in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert Image.MAX_IMAGE_PIXELS == 10


# What other readers stumble over


def noise(size: tuple[int, int] = (96, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("cut", [1, 2, 3, 500, 3000])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_is_read_on_request_as_pillow_would(
    cut: int, progressive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoded(noise(), "jpeg", progressive=progressive)
    short = whole[:-cut]
    with pytest.raises(ImageError, match="broken or truncated"):
        load_image(short)
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with Image.open(io.BytesIO(short)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    monkeypatch.undo()
    found = np.asarray(load_image(short, tolerant=True))
    np.testing.assert_array_equal(found, expected)
    if cut <= 2:  # the marker of the end alone
        np.testing.assert_array_equal(found, np.asarray(load_image(whole)))


def test_tolerance_ends_where_nothing_is_left() -> None:
    with pytest.raises(ImageError, match="broken or truncated"):
        load_image(encoded(noise(), "jpeg")[:100], tolerant=True)
    with pytest.raises(ImageError, match="broken or truncated"):
        load_image(encoded(noise(), "png")[:-400], tolerant=True)


LONG = "x" * 3_000_000


def text_chunk(compressed: bool) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", LONG, zip=compressed)
    return info


def many_texts() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for i in range(70):
        info.add_text(str(i), LONG[:1_000_000])
    return info


REMARKS = {
    "zTXt": {"pnginfo": text_chunk(True)},
    "many": {"pnginfo": many_texts()},
    "iCCP": {"icc_profile": bytes(3_000_000)},
}


@pytest.mark.parametrize("remarks", REMARKS.values(), ids=REMARKS)
def test_long_texts_and_profiles_in_a_png_are_passed_over(remarks: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise((6, 4)), "png", **remarks))
    with pytest.raises(ValueError, match="MAX_TEXT"), Image.open(path) as opened:
        opened.load()
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(noise((6, 4))))
    np.testing.assert_array_equal(np.asarray(load_png(path)), np.asarray(noise((6, 4))))
    assert read_size(path) == (6, 4)


def test_a_png_that_is_broken_beside_its_text_stays_broken() -> None:
    with pytest.raises(ImageError, match="broken or truncated"):
        load_image(encoded(noise(), "png", pnginfo=text_chunk(True))[:-500])


def test_heic(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    picture = Image.fromarray(SLOPES)
    pillow_heif.from_pillow(picture).save(tmp_path / "a.heic", quality=95)
    found = load_image(tmp_path / "a.heic")
    assert found.mode == "RGB" and found.size == (160, 96) == read_size(tmp_path / "a.heic")
    assert np.abs(np.asarray(found, float) - np.asarray(picture, float)).mean() < 6
    assert list(find_images(tmp_path)) == [tmp_path / "a.heic"]
    (tmp_path / "b.heic").write_bytes((tmp_path / "a.heic").read_bytes()[:300])
    with pytest.raises(ImageError, match=r"b\.heic is broken or truncated \(HEIF\)"):
        load_image(tmp_path / "b.heic")


def test_heic_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for head in (b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"):
        with pytest.raises(ImageError, match=r'is HEIC, which needs pillow-heif: pip install "vankit\[heic\]"'):
            load_image(head + bytes(64))


def test_of_an_mpo_the_first_picture(tmp_path: Path) -> None:
    first, second = noise((32, 16)), Image.new("RGB", (32, 16), "red")
    first.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[second], quality=95)
    with Image.open(tmp_path / "a.mpo") as opened:
        assert opened.n_frames == 2  # type: ignore[attr-defined]
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.mpo")), expected)
    assert list(find_images(tmp_path)) == [tmp_path / "a.mpo"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_picture(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        noise((8, 4)).save(tmp_path / name, exif=exif)
        assert read_size(tmp_path / name) == load_image(tmp_path / name).size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_of_a_png_may_come_after_its_pixels(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(content)) + b"eXIf" + content + struct.pack(">I", zlib.crc32(b"eXIf" + content))
    plain = encoded(noise((8, 4)), "png")
    (tmp_path / "a.png").write_bytes(plain[:-12] + chunk + plain[-12:])
    assert read_size(tmp_path / "a.png") == load_image(tmp_path / "a.png").size
    assert is_turned(tmp_path / "a.png") == (orientation != 1)
    with Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(to_image(opened), load_image(tmp_path / "a.png"))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_an_orientation_in_xmp_is_applied_once(name: str, tmp_path: Path) -> None:
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    options: dict[str, Any] = {"pnginfo": info} if name == "a.png" else {"xmp": xmp.encode()}
    noise((8, 4)).save(tmp_path / name, **options)
    upright = load_image(tmp_path / name)
    assert upright.size == (4, 8)
    np.testing.assert_array_equal(to_image(upright), upright)


def test_the_size_of_a_png_is_told_without_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise((8, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("it is decoded"))
    assert read_size(tmp_path / "a.png") == (8, 4)
    assert not is_turned(tmp_path / "a.png")


@pytest.mark.parametrize("content", [b"", b"no", encoded(noise(), "jpeg")[:30]])
def test_the_size_of_what_is_no_image(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jpg is "):
        read_size(tmp_path / "a.jpg")


@pytest.mark.parametrize("image", [np.zeros((0, 0, 3), np.uint8), np.zeros((4, 0), np.uint8), Image.new("RGB", (0, 3))])
def test_a_picture_without_pixels_is_refused(image: Any) -> None:
    with pytest.raises(ImageError, match=r"^(array|image) .* has no pixels$"):
        to_image(image)


def test_the_bytes_of_a_file_are_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), "red").save(tmp_path / "a.png")
    assert to_image((tmp_path / "a.png").read_bytes()).size == (5, 4)
    with pytest.raises(ImageError, match="^image of 3 bytes is not an image: "):
        to_image(b"abc")


@pytest.mark.parametrize("image", [None, 5, ["a.png"], {}])
def test_what_is_no_picture_is_refused(image: Any) -> None:
    with pytest.raises(UserError, match="^the image is .*: expected a path, the bytes of an image file, "):
        to_image(image)


@pytest.mark.parametrize("images", [None, 5, "a.png", b"abc", Path("a.png")])
def test_what_is_not_several_pictures_is_refused(images: Any) -> None:
    with pytest.raises(UserError, match=r"^images is .*: expected a path, .*, several of them in a list$"):
        several(images)


def test_a_file_that_is_wrapped_is_a_picture() -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(encoded(Image.new("RGB", (3, 2)), "PNG"))
        file.flush()
        assert is_one_image(file) and to_image(file).size == (3, 2)


def test_a_large_file_may_be_looked_at(tmp_path: Path) -> None:
    """Whose pixels are decoded with a larger --max-pixels alone."""
    path = tmp_path / "x.png"
    path.write_bytes(encoded(Image.new("RGB", (3, 2)), "PNG"))
    os.truncate(path, 600 * 2**20)
    assert read_size(path) == (3, 2)
    with pytest.raises(ImageError, match="629,145,600 bytes, more than the 536,870,912"):
        load_image(path)
    assert load_image(path, 2**27).size == (3, 2)
