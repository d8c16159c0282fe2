"""What small files can ask of a decoder: no more memory or time than the pixels that are allowed take."""

import io
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from vankit.data import decoders
from vankit.data.images import ImageError, load_image, open_image, read_size

GREY = np.random.default_rng(0).integers(0, 256, (64, 96), np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def tiled_tiff(side: int, tile: int, compression: int) -> bytes:
    """A picture of so many pixels a side in one tile that is damaged."""
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, compression), (262, 3, 1), (277, 3, 1),
            (322, 4, tile), (323, 4, tile), (324, 4, 134), (325, 4, 100)]  # fmt: skip
    entries = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHLH", b"II", 42, 8, len(tags)) + entries + bytes(4) + bytes(100)


@pytest.mark.parametrize("compression", [5, 8, 7])
def test_a_tile_counts_as_large_as_it_is(compression: int) -> None:
    """libtiff makes room for the whole tile, 1.6 GB of a file of 234 bytes."""
    with pytest.raises(ImageError, match=r"40000 x 40000 = 1,600,000,000 pixels, more than the 67,108,864"):
        load_image(tiled_tiff(16, 40_000, compression))
    with pytest.raises(ImageError, match=r"broken or truncated \(TIFF\)"):
        load_image(tiled_tiff(16, 16, compression))


def with_scans(data: bytes, times: int) -> bytes:
    """A progressive JPEG whose last scan is there so many times."""
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (times - 1) + data[-2:]


def test_scans_of_a_jpeg_are_counted_up_to_its_end() -> None:
    data = encoded(Image.fromarray(GREY), "JPEG", progressive=True)
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data  # a picture in its metadata
    for found, extra in ((data, 0), (data[:2] + thumbnail + data[2:], 0), (data + data, 0), (with_scans(data, 50), 49)):
        file = io.BytesIO(found)
        file.seek(7)
        assert decoders._scans(file) == data.count(b"\xff\xda") + extra
        assert file.tell() == 7


def test_a_large_jpeg_of_very_many_scans_is_refused() -> None:
    data = encoded(Image.fromarray(GREY), "JPEG", progressive=True)
    many = with_scans(data, 400)
    assert load_image(many).size == load_image(data, max_pixels=100_000).size == (96, 64)
    with pytest.raises(ImageError, match=r"6,144 pixels in 4\d\d scans, which would take minutes"):
        load_image(many, max_pixels=100_000)  # of which it is a large part


def in_sequence(image: Image.Image, times: int = 1) -> bytes:
    """A JPEG that is not progressive, with a scan for a component; the last one is there so many times."""
    data = encoded(image.convert("L"), "JPEG")
    start, end = data.index(b"\xff\xc0"), data.index(b"\xff\xc0") + 13
    frame = b"\xff\xc0\x00\x11" + data[start + 4 : start + 9] + b"\x03\x01\x11\x00\x02\x11\x00\x03\x11\x00"
    at = data.index(b"\xff\xda")
    scans = [data[at : at + 5] + bytes([number]) + data[at + 6 : -2] for number in (1, 2, 3)]
    return data[:start] + frame + data[end:at] + b"".join([*scans[:2], *scans[2:] * times]) + data[-2:]


def test_scans_that_are_not_progressive_count_too() -> None:
    grey = Image.fromarray(GREY)
    assert load_image(in_sequence(grey)).size == (96, 64)
    with pytest.raises(ImageError, match="6,144 pixels in 402 scans, which would take minutes"):
        load_image(in_sequence(grey, 400), max_pixels=100_000)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"exif": b"Exif\0\0" + bytes(5000)}, {"restart_marker_blocks": 1}])
def test_an_ordinary_jpeg_has_one_scan(mode: str, options: dict[str, Any]) -> None:
    file = io.BytesIO(encoded(Image.fromarray(GREY).convert(mode), "JPEG", **options))
    image = JpegImagePlugin.JpegImageFile(file, "")
    place = file.tell()
    assert not decoders._in_scans(image, file) and file.tell() == place


def run_length_bmp(width: int, height: int) -> bytes:
    """Empty lines: two bytes each, which Pillow fills pixel by pixel."""
    rows = b"\1\0\0\0" * height
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(rows), 0, 0, 1078) + header + bytes(1024) + rows


def test_decoders_in_python_get_little_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_image(run_length_bmp(32, 8)).size == (32, 8)
    with pytest.raises(ImageError, match=r"25,000,000 pixels, more than the 16,777,216 that are read of this kind"):
        load_image(run_length_bmp(5000, 5000))
    monkeypatch.setattr(decoders, "_SLOW_BYTES", 2000)
    rows = " ".join(map(str, GREY[:4].ravel()))
    np.testing.assert_array_equal(np.asarray(load_image(f"P2\n96 4\n255\n{rows}\n".encode()))[..., 0], GREY[:4])
    with pytest.raises(ImageError, match=r"bytes, more than the 2,000 that are read of this kind.*as PNG"):
        load_image(f"P2 # {'x' * 2000}\n96 4 255\n{rows}".encode())
    with pytest.raises(ImageError, match=r"3,015 bytes, more than the 2,000"):
        load_image(b"P6\n100 10\n100\n" + bytes(3001))
    assert load_image(b"P6\n100 10\n255\n" + bytes(3000)).size == (100, 10)  # binary, and fast


def test_comments_in_a_plain_ppm_cost_nothing() -> None:
    """Each made Pillow copy all that follows it: a megabyte of them took eleven seconds."""
    body = " ".join(map(str, GREY.ravel())).replace(" ", "\n#\n", 5)
    start = time.perf_counter()
    data = (
        f"P2\n# made by hand\n96 64\n#\n255\n{'#' + chr(10)}{'#x' + chr(10)}".encode() + b"#\n" * 2**19 + body.encode()
    )
    np.testing.assert_array_equal(np.asarray(load_image(data))[..., 0], GREY)
    assert time.perf_counter() - start < 5


def test_a_file_with_more_bytes_than_its_pixels_can_have(tmp_path: Path) -> None:
    path = tmp_path / "sparse.webp"
    path.write_bytes(encoded(Image.fromarray(GREY), "WEBP"))
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(ImageError, match=r"1,099,511,627,776 bytes, more than the 536,870,912 that .*--max-pixels"):
        load_image(path)
    with pytest.raises(ImageError, match="1,099,511,627,776 bytes"):
        read_size(path)


@pytest.mark.parametrize("read", [load_image, read_size])
@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [
        (7, 2**31, "2,147,483,[0-9]+ bytes of tags, more than the (536,870,912|2,147,483,648) that .*--max-pixels"),
        (3, 2**30, "10 tags with 2,147,483,[0-9]+ bytes of numbers, more than the 65,535 tags or 16,777,216 bytes"),
    ],
)
def test_tags_of_a_tiff_are_not_read_however_long(
    kind: int, count: int, said: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    path, data = tmp_path / "x.tiff", bytearray(encoded(Image.fromarray(GREY), "TIFF"))
    (at,) = struct.unpack_from("<L", data, 4)
    (entries,) = struct.unpack_from("<H", data, at)
    data += struct.pack("<H", entries + 1) + data[at + 2 : at + 2 + 12 * entries]
    data[4:8] = struct.pack("<L", len(data) - 2 - 12 * entries)
    path.write_bytes(data + struct.pack("<HHLL", 65000, kind, count, 4096) + bytes(4))
    with path.open("r+b") as file:
        file.truncate(2**32)
    with pytest.raises(ImageError, match=said):
        read(path)


def test_a_bigtiff_may_not_have_any_number_of_tags(tmp_path: Path) -> None:
    path = tmp_path / "x.tiff"
    path.write_bytes(struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**40))
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(ImageError, match="1,099,511,627,776 tags"):
        read_size(path)


@pytest.mark.parametrize(
    "options", [{"big_tiff": True}, {"tiffinfo": {37724: bytes(2**25)}}, {"compression": "tiff_lzw"}]
)
def test_a_tiff_of_many_bytes_is_read(options: dict[str, Any]) -> None:
    """Some programs write their layers into a tag."""
    data = encoded(Image.fromarray(GREY), "TIFF", **options)
    assert np.array_equal(np.asarray(load_image(data))[..., 0], GREY)


def test_a_png_ends_at_its_end() -> None:
    """What follows is not searched through for texts to drop."""
    data = encoded(Image.fromarray(GREY), "PNG", icc_profile=bytes(3_000_000)) + bytes(12) * 2_000_000
    start = time.perf_counter()
    np.testing.assert_array_equal(np.asarray(load_image(data))[..., 0], GREY)
    assert time.perf_counter() - start < 2


def test_pictures_wait_until_there_is_room() -> None:
    """Two that together exceed the limit are not decoded at the same time; a reduced JPEG takes little of it."""
    data = encoded(Image.fromarray(GREY), "PNG")
    with ThreadPoolExecutor(1) as pool, open_image(data, max_pixels=10_000):
        other = pool.submit(load_image, data, 10_000)
        time.sleep(0.2)
        assert not other.done()
    assert other.result(10).size == (96, 64)
    large = encoded(Image.fromarray(np.tile(GREY, (8, 8))), "JPEG")
    with ThreadPoolExecutor(1) as pool, open_image(data, max_pixels=400_000):
        assert pool.submit(load_image, large, 400_000, 32).result(10).size == (96, 64)


def test_an_image_that_fails_gives_its_share_back() -> None:
    broken = encoded(Image.fromarray(GREY), "PNG")[:-300]
    for _ in range(3):
        with pytest.raises(ImageError):
            load_image(broken, max_pixels=GREY.size)
    alone = threading.Thread(target=load_image, args=(encoded(Image.fromarray(GREY), "PNG"), GREY.size))
    alone.start()
    alone.join(10)
    assert not alone.is_alive()


PEAK = """
import sys, threading
from pathlib import Path
from vankit.data.images import load_image
def most():  # not of getrusage, which begins with the parent's
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
files = [Path(name).read_bytes() for name in sys.argv[1:]]
before = most()
threads = [threading.Thread(target=load_image, args=(data,)) for data in files]
for thread in threads: thread.start()
for thread in threads: thread.join()
print((most() - before) // 1024)
"""


def peak(paths: list[Path]) -> int:
    """MiB that a process takes to decode files in as many threads."""
    answer = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, paths)], capture_output=True, text=True, timeout=300, check=True
    )
    return int(answer.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of /proc")
@pytest.mark.parametrize(("kind", "files"), [("WEBP", 3), ("JPEG2000", 2), ("JPEG", 6)])
def test_memory_of_many_threads_is_that_of_one_image(kind: str, files: int, tmp_path: Path) -> None:
    """Small files that unfold to 49 million pixels, each in a thread: 25 bytes per pixel that is allowed."""
    options = {"WEBP": {"lossless": True, "method": 0, "quality": 0}, "JPEG2000": {"quality_layers": [1000]}}
    mode, side = ("RGBA" if kind == "WEBP" else "RGB"), 7000
    data = encoded(Image.new(mode, (side, side), (10, 20, 30, 40)[: len(mode)]), kind, **options.get(kind, {}))
    paths = [tmp_path / str(i) for i in range(files)]
    for path in paths:
        path.write_bytes(data)
    assert peak(paths) < 25 * decoders.MAX_PIXELS / 2**20 + side**2 * 4 / 2**20  # and a result on its way out
