"""The formats of pictures: which decoder reads a file, within which bounds of memory and time."""

import io
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import BinaryIO, Literal, TypeVar

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ImageFile import ImageFile

from vankit.data.budget import Budget
from vankit.errors import UserError

T = TypeVar("T")

MAX_PIXELS = 2**26  # 8192 x 8192

PNG_START = b"\x89PNG\r\n\x1a\n"

# (offset, magic bytes, decoder). The classes are called directly rather than through Image.open for two reasons:
# Image.open compares every picture with one process-wide pixel limit, and it offers unknown bytes to some forty
# plugins, one of which (EPS) starts Ghostscript. JpegImageFile also reads the first frame of an MPO file.
_FORMATS: tuple[tuple[int, bytes, type[ImageFile]], ...] = (
    (0, b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (0, PNG_START, PngImagePlugin.PngImageFile),
    (8, b"WEBP", WebPImagePlugin.WebPImageFile),
    (0, b"GIF87a", GifImagePlugin.GifImageFile),
    (0, b"GIF89a", GifImagePlugin.GifImageFile),
    *((0, magic, TiffImagePlugin.TiffImageFile) for magic in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    (0, b"BM", BmpImagePlugin.BmpImageFile),
    *((0, magic, PpmImagePlugin.PpmImageFile) for magic in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf")),
    *((4, b"ftyp" + brand, AvifImagePlugin.AvifImageFile) for brand in (b"avif", b"avis", b"mif1", b"msf1")),
    (0, b"\xff\x4f\xff\x51", Jpeg2KImagePlugin.Jpeg2KImageFile),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", Jpeg2KImagePlugin.Jpeg2KImageFile),
)
_FORMAT_NAMES = "JPEG, PNG, WebP, GIF, TIFF, BMP, PPM/PGM/PBM/PFM, AVIF, HEIC, JPEG 2000"
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis")
_PNG_REMARKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks that say nothing of the pixels as they are read here
_JPEG_END = b"\xff\xd9"
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # of a segment or the end, among a scan's data

# A pixel takes up to 25 bytes while it is decoded and converted (JPEG 2000, WebP with alpha), of a JPEG up to 10.
_DECODING = Budget()
_JPEG_SHARE = 0.4
_PIXEL_BYTES = 8  # of 16-bit RGBA; a larger file has something else in it
_ANY_BYTES = 2**24  # a small picture may have much said of it, in texts and profiles
_SLOW = frozenset({"ppm_plain", "ppm", "bmp_rle"})  # Pillow's decoders that are written in Python
_PLAIN = (b"P1", b"P2", b"P3")
_SLOW_BYTES, _SLOW_PIXELS = 2**25, 2**24  # which take them seconds
_SLOW_ADVICE = "are read of this kind (plain-text or scaled PPM, run-length BMP), which takes long: save it as PNG"
_MOST_TAGS = 2**16 - 1  # of a TIFF; a BigTIFF might say any number
_TIFF_BYTES = frozenset({1, 2, 7})  # types that stay bytes
_TIFF_NUMBERS = {3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 13: 4, 5: 8, 10: 8, 12: 8, 16: 8}  # bytes of a number of each type
_MOST_SCANS = 20  # of the largest pictures; encoders make some ten


class ImageError(UserError):
    """A file that is not an image, is broken, or is larger than allowed; the message names it and the reason."""


def with_decoder(
    file: BinaryIO, name: str, finish: Callable[[type[ImageFile], BinaryIO, bytes], T], tolerant: bool = False
) -> T:
    """What `finish` makes of a decoder, the file and its first bytes; again with what can be mended, if it fails.

    Args:
        file: whose content decides on the decoder, at its start.
        name: of the file, for messages.
        tolerant: see `vankit.data.images.load_image`.

    Raises:
        ImageError: no decoder fits, or the file is broken.
    """
    head = file.read(32)
    file.seek(0)
    decoder = _heif_decoder(name) if _is_heic(head) else _decoder(head)
    if decoder is None:
        raise ImageError(
            f"{name} is {'empty' if not head else 'not an image'}: expected one of {_FORMAT_NAMES}, found "
            f"{bytes(head[:8])!r} at the start"
        )
    try:
        try:
            return finish(decoder, file, head)
        except (OSError, ValueError, SyntaxError) as error:
            if isinstance(error, ImageError) or (mended := _mended(decoder, file, tolerant)) is None:
                raise
            return finish(decoder, mended, head)
    except ImageError:
        raise
    # Decoders fed hostile bytes raise whatever their parser trips over: OSError, SyntaxError, struct.error, KeyError...
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name} is broken or truncated ({decoder.format}): {reason}") from error


def open_decoder(
    decoder: type[ImageFile], file: BinaryIO, head: bytes, name: str, max_pixels: int = MAX_PIXELS
) -> ImageFile:
    """A picture of which no pixel is decoded yet, and of which no more was read than a header may take.

    Args:
        decoder, file, head: see `with_decoder`.
        name: of the file, for messages.
        max_pixels: that a file may have bytes for, if its header does not say more.

    Raises:
        ImageError: the file has too many bytes, or the tags of a TIFF do.
    """
    width, height = _header_size(head)
    allowed = max(max_pixels, width * height)
    most, what = max(_PIXEL_BYTES * allowed, _ANY_BYTES), f"an image of {allowed:,} pixels may have (--max-pixels)"
    if decoder is TiffImagePlugin.TiffImageFile:  # whose further pages are not read
        _check_tags(file, head, name, most, what)
    else:
        _check_bytes(file, name, most, what)
    with _pillow_limit(width * height):
        return decoder(_without_comments(file, name) if head[:2] in _PLAIN else file, "")


def load_pixels(
    decoder: type[ImageFile],
    file: BinaryIO,
    head: bytes,
    name: str,
    max_pixels: int,
    held: ExitStack,
    min_side: int | None = None,
) -> Image.Image:
    """Decode a picture, once the process has room for it.

    Args:
        decoder, file, head: see `with_decoder`.
        name: of the file, for messages.
        max_pixels: of the picture, and of all that are decoded at the same time.
        held: takes the picture's share of these, to be released once it is no longer worked on.
        min_side: see `vankit.data.images.load_image`.

    Raises:
        ImageError: the picture is too large.
    """
    _check_size(_header_size(head), name, max_pixels)
    image = open_decoder(decoder, file, head, name, max_pixels)
    pixels = max(_check_size(size, name, max_pixels) for size in (image.size, _tile_size(image)))
    _check_time(image, file, name, pixels, max_pixels)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        if min_side is not None:
            image.draft(None, (min_side, min_side))
        whole = _in_scans(image, file)  # all its coefficients are kept, whatever it is reduced to
        pixels = int(_JPEG_SHARE * (pixels if whole else image.width * image.height))
    held.enter_context(_DECODING.share(pixels, max_pixels))
    with _pillow_limit(pixels):
        image.load()
    return image


def _decoder(head: bytes) -> type[ImageFile] | None:
    return next((cls for at, magic, cls in _FORMATS if head[at : at + len(magic)] == magic), None)


def _is_heic(head: bytes) -> bool:
    brands = [head[i : i + 4] for i in (8, *range(16, min(len(head), int.from_bytes(head[:4], "big")), 4))]
    return head[4:8] == b"ftyp" and any(brand in _HEIC_BRANDS for brand in brands)


def _heif_decoder(name: str) -> type[ImageFile]:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(f'{name} is HEIC, which needs pillow-heif: pip install "vankit[heic]"') from None
    return HeifImageFile


def _mended(decoder: type[ImageFile], file: BinaryIO, tolerant: bool) -> BinaryIO | None:
    """The file without what Pillow stumbles over, though the picture is sound; None if there is nothing to mend."""
    if decoder is PngImagePlugin.PngImageFile:
        return _without_remarks(file)
    if decoder is JpegImagePlugin.JpegImageFile and tolerant:
        file.seek(0)
        return io.BytesIO(file.read() + _JPEG_END)
    return None


def _without_remarks(file: BinaryIO) -> BinaryIO | None:
    """A PNG without texts and colour profiles, which Pillow refuses above 1 MB; they are passed over unread."""
    file.seek(0)
    kept, dropped = io.BytesIO(file.read(8)), False
    kept.seek(8)
    while len(header := file.read(8)) == 8:
        length = int.from_bytes(header[:4], "big") + 4  # with its checksum
        if header[4:] in _PNG_REMARKS:
            file.seek(length, os.SEEK_CUR)
            dropped = True
        else:
            kept.write(header + file.read(length))
        if header[4:] == b"IEND":
            break
    kept.seek(0)
    return kept if dropped else None


def _without_comments(file: BinaryIO, name: str) -> BinaryIO:
    """A PPM in plain text without its comments, for each of which Pillow copies what follows."""
    _check_bytes(file, name, _SLOW_BYTES, _SLOW_ADVICE)
    file.seek(0)
    return io.BytesIO(re.sub(rb"#[^\r\n]*", b"", file.read()))


def _header_size(head: bytes) -> tuple[int, int]:
    """(width, height) of the two formats whose constructor allocates or checks the canvas; (0, 0) of all others."""
    if head[:3] == b"GIF":
        return int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    if head[8:16] == b"WEBPVP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[8:16] == b"WEBPVP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if head[8:16] == b"WEBPVP8 ":
        return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF
    return 0, 0


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> int:
    pixels = size[0] * size[1]
    if pixels > max_pixels:
        raise ImageError(
            f"{name} has {size[0]} x {size[1]} = {pixels:,} pixels, more than the {max_pixels:,} allowed; if you trust "
            f"the file, raise the limit with max_pixels={pixels} (--max-pixels {pixels})"
        )
    return pixels


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the tiles of a TIFF, which are decoded whole though the picture may be smaller."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0, 0
    sides = (image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH))
    width, height = (max(side) if isinstance(side, tuple) else side for side in sides)
    return width, height


def _check_bytes(file: BinaryIO, name: str, most: int, what: str) -> None:
    place = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(place)
    if size > most:
        raise ImageError(f"{name} has {size:,} bytes, more than the {most:,} that {what}")


def _check_tags(file: BinaryIO, head: bytes, name: str, most: int, what: str) -> None:
    """Refuse a TIFF whose tags take much: Pillow reads all of them, and makes objects of the numbers in them."""
    order: Literal["little", "big"] = "little" if head[:1] == b"I" else "big"
    wide = 8 if b"+" in head[2:4] else 4  # BigTIFF
    file.seek(int.from_bytes(head[wide : 2 * wide], order))
    entries = int.from_bytes(file.read(8 if wide == 8 else 2), order)
    sizes = dict.fromkeys((True, False), 0)
    for _ in range(min(entries, _MOST_TAGS)):
        entry = file.read(4 + 2 * wide)
        kind, count = int.from_bytes(entry[2:4], order), int.from_bytes(entry[4 : 4 + wide], order)
        sizes[kind in _TIFF_BYTES] += count * _TIFF_NUMBERS.get(kind, 1)
    file.seek(0)
    if entries > _MOST_TAGS or sizes[False] > _ANY_BYTES:
        raise ImageError(
            f"{name} has {entries:,} tags with {sizes[False]:,} bytes of numbers, more than the {_MOST_TAGS:,} tags or "
            f"{_ANY_BYTES:,} bytes that are read: save it as PNG"
        )
    if sum(sizes.values()) > most:
        raise ImageError(f"{name} has {sum(sizes.values()):,} bytes of tags, more than the {most:,} that {what}")


def _check_time(image: ImageFile, file: BinaryIO, name: str, pixels: int, max_pixels: int) -> None:
    """Refuse what a small file could keep a decoder busy with for minutes."""
    if _SLOW & {tile[0] for tile in image.tile}:
        _check_bytes(file, name, _SLOW_BYTES, _SLOW_ADVICE)
        if pixels > _SLOW_PIXELS:
            raise ImageError(f"{name} has {pixels:,} pixels, more than the {_SLOW_PIXELS:,} that {_SLOW_ADVICE}")
    jpeg = isinstance(image, JpegImagePlugin.JpegImageFile) and _in_scans(image, file)
    if jpeg and (scans := _scans(file)) * pixels > _MOST_SCANS * max_pixels:
        raise ImageError(f"{name} has {pixels:,} pixels in {scans:,} scans, which would take minutes: save it as PNG")


def _in_scans(image: JpegImagePlugin.JpegImageFile, file: BinaryIO) -> bool:
    """Whether a JPEG has several scans, as one has whose first lacks a component; also if that cannot be told."""
    if "progressive" in image.info:
        return True
    place = file.tell()
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[1:2] != b"\xda":
        file.seek(int.from_bytes(head[2:], "big") - 2, os.SEEK_CUR)
    components = file.read(1)
    file.seek(place)
    return components != bytes([image.layers])


def _scans(file: BinaryIO) -> int:
    """The scans of a JPEG, each of which passes over the whole picture."""
    place = file.tell()
    file.seek(0)
    data, at, scans = file.read(), 2, 0
    file.seek(place)
    while (marker := _JPEG_MARKER.search(data, at)) and (kind := marker[0][1:]) != _JPEG_END[1:]:
        scans += kind == b"\xda"
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


class _RaisedLimit:
    """How many of our threads hold Pillow's global limit up, and what it was before the first of them."""

    lock = threading.Lock()
    holders = 0
    before: int | None = None
    ours: int | None = None


def _pillow_limit(pixels: int) -> AbstractContextManager[None]:
    """Keep Pillow's own pixel check quiet for an image that has passed ours.

    Only the GIF, TIFF and WebP decoders still consult the process-wide `Image.MAX_IMAGE_PIXELS`, and only images above
    it need anything done: then it is raised for the length of one decode, by a count of holders so that threads neither
    undo one another nor leave it raised. Another thread's Pillow calls see the higher limit for that long.
    """
    with _RaisedLimit.lock:
        limit = _RaisedLimit.before if _RaisedLimit.holders else Image.MAX_IMAGE_PIXELS
    return nullcontext() if limit is None or pixels <= limit else _raised(pixels)


@contextmanager
def _raised(pixels: int) -> Iterator[None]:
    state = _RaisedLimit
    with state.lock:
        if state.holders == 0:
            state.before = state.ours = Image.MAX_IMAGE_PIXELS
        state.holders += 1
        state.ours = Image.MAX_IMAGE_PIXELS = max(pixels, state.ours or 0)
    try:
        yield
    finally:
        with state.lock:
            state.holders -= 1
            # A value set by someone else in between is theirs to keep.
            if state.holders == 0 and state.ours == Image.MAX_IMAGE_PIXELS:
                Image.MAX_IMAGE_PIXELS = state.before
