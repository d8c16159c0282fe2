"""Image files in, RGB pictures out: decoding that neither trusts the file nor guesses silently."""

import io
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
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

from vankit.errors import MissingFileError, UserError

T = TypeVar("T")
ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any]

MAX_PIXELS = 100_000_000

_PNG_START = b"\x89PNG\r\n\x1a\n"

# (offset, magic bytes, decoder). The classes are called directly rather than through Image.open for two reasons:
# Image.open compares every picture with one process-wide pixel limit, and it offers unknown bytes to some forty
# plugins, one of which (EPS) starts Ghostscript. JpegImageFile also reads the first frame of an MPO file.
_FORMATS: tuple[tuple[int, bytes, type[ImageFile]], ...] = (
    (0, b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (0, _PNG_START, PngImagePlugin.PngImageFile),
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

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """A file that is not an image, is broken, or is larger than allowed; the message names it and the reason."""


def load_image(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    max_pixels: int = MAX_PIXELS,
    min_side: int | None = None,
    tolerant: bool = False,
) -> Image.Image:
    """Decode one image file to upright RGB, 8 bits per channel.

    The first frame of an animation or multi-page file is taken, EXIF orientation is applied, transparency is laid over
    white, and CMYK, YCbCr, LAB and HSV become RGB. Grey levels outside 8 bits are scaled, never wrapped: 16-bit by
    1/257; 32-bit integers by 1/257 if their maximum exceeds 255, else not at all; floats by 255 if all lie within 0..1,
    else not at all; then clipped to 0..255, NaN as 0. ICC profiles are not applied.

    Args:
        source: path, encoded bytes, or a binary stream (read from its start, left open).
        max_pixels: largest width * height accepted, checked from the header before anything is decoded. Pillow's own
            `Image.MAX_IMAGE_PIXELS` plays no part.
        min_side: decode a JPEG at 1/2, 1/4 or 1/8 of its size, the smallest at which both sides keep this many pixels:
            sooner, for a picture that is made smaller anyway, and not pixel by pixel the same. None decodes exactly.
        tolerant: read a JPEG that lacks its end, with grey for what is missing, instead of raising.

    Returns:
        An image of mode "RGB", loaded, without a reference to the file.

    Raises:
        FileNotFoundError: no file has that path.
        ImageError: a folder, not an image, truncated or broken, or more than `max_pixels` pixels.
        ValueError: `min_side` is below 1.
    """
    if min_side is not None and min_side < 1:
        raise UserError(f"min_side is {min_side}: expected at least 1 pixel, or None to decode exactly")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"image of {len(source)} bytes", max_pixels, min_side, tolerant)
    if not isinstance(source, str | os.PathLike):
        stream = source if source.seekable() else io.BytesIO(source.read())
        stream.seek(0)
        return _decode(stream, str(getattr(source, "name", "image stream")), max_pixels, min_side, tolerant)
    name = os.fspath(source)
    if os.path.isdir(name):
        raise ImageError(f"{name} is a folder, expected an image file; find_images() lists the images of a folder")
    if not os.path.exists(name):
        raise MissingFileError(f"no such image file: {name} (looked from {os.getcwd()})")
    with open(name, "rb") as file:
        return _decode(file, name, max_pixels, min_side, tolerant)


def _decode(file: BinaryIO, name: str, max_pixels: int, min_side: int | None, tolerant: bool) -> Image.Image:
    return _read(
        file, name, lambda cls, data, head: to_rgb(_loaded(cls, data, head, name, max_pixels, min_side)), tolerant
    )


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) in pixels of an image file once it is upright, from its header.

    Raises:
        FileNotFoundError, ImageError: see `load_image`.
    """
    with open(path, "rb") as file:
        return _read(file, os.fspath(path), lambda cls, data, _: _upright_size(cls(data, "")))


def is_turned(path: str | os.PathLike[str]) -> bool:
    """Whether an image file is stored on its side, with an EXIF rotation that makes it upright.

    Raises:
        FileNotFoundError, ImageError: see `load_image`.
    """
    with open(path, "rb") as file:
        return _read(file, os.fspath(path), lambda cls, data, _: _orientation(cls(data, "")) != 1)


def load_png(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a PNG whose values are numbers rather than colours, as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: it is not a PNG, is broken, or has more than `max_pixels` pixels.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        if (start := file.read(len(_PNG_START))) != _PNG_START:
            raise ImageError(f"{name} is not a readable PNG: found {start!r} at its start")
        file.seek(0)
        return _read(file, name, lambda cls, data, head: _loaded(cls, data, head, name, max_pixels))


def _read(
    file: BinaryIO, name: str, finish: Callable[[type[ImageFile], BinaryIO, bytes], T], tolerant: bool = False
) -> T:
    """What `finish` makes of a decoder, the file and its first bytes; again with what can be mended, if it fails."""
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


def _loaded(
    decoder: type[ImageFile], file: BinaryIO, head: bytes, name: str, max_pixels: int, min_side: int | None = None
) -> Image.Image:
    with _pillow_limit(_check_size(_header_size(head), name, max_pixels)):
        image = decoder(file, "")
    with _pillow_limit(_check_size(image.size, name, max_pixels)):
        if min_side is not None and decoder is JpegImagePlugin.JpegImageFile:
            image.draft(None, (min_side, min_side))
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
    kept.seek(0)
    return kept if dropped else None


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


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened PIL image as `load_image` returns it: upright, 8-bit RGB, laid over white."""
    rgb = _upright(_flat_rgb(image), image)
    rgb.info.pop("exif", None)  # its orientation is applied, and must not be again
    return rgb


def _flat_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_grey8(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, "white")
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _grey8(image: Image.Image) -> NDArray[np.uint8]:
    """(H, W) uint8 of an image of mode I;16*, I or F, scaled as `load_image` says."""
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf)
        if values.min() >= 0 and values.max() <= 1:
            values = values * 255
        return np.asarray(np.rint(values.clip(0, 255)), np.uint8)
    if image.mode == "I":
        if values.max() <= 255:
            return np.asarray(values.clip(0, 255), np.uint8)
        values = values.clip(0, 65535)
    grey = np.asarray((values.astype(np.uint32) + 128) // 257, np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey


def _upright(rgb: Image.Image, original: Image.Image) -> Image.Image:
    transpose = _UPRIGHT.get(_orientation(original))
    return rgb if transpose is None else rgb.transpose(transpose)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    # a TIFF's size is upright already, while its tag is still there
    turned = not isinstance(image, TiffImagePlugin.TiffImageFile) and _orientation(image) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    # Damaged metadata is no reason to refuse a sound picture.
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, struct.error):
        return 1
    return orientation if isinstance(orientation, int) else 1


def to_image(image: ImageLike, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> Image.Image:
    """An upright RGB picture from whatever a predictor is given.

    Args:
        image: a path, a PIL image, or a uint8 array (H, W, 3) in RGB order or (H, W) grey.
        max_pixels: largest image that is decoded, in pixels.
        min_side: of a path, see `load_image`.

    Raises:
        FileNotFoundError, ValueError: the image cannot be used; `ImageError` if it is broken.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise UserError(
                f"the array is {image.dtype} of shape {image.shape}: expected uint8 (H, W, 3) in RGB order or (H, W)"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        return load_image(image, max_pixels, min_side)
    try:
        return to_rgb(image)
    except Exception as error:  # it may have been opened but not decoded yet, see `_decode`
        raise ImageError(
            f"{source_name(image)} is broken or truncated: {str(error) or type(error).__name__}"
        ) from error


def source_name(image: ImageLike) -> str:
    """What a result calls its image: the path, or a description of one passed in memory."""
    if isinstance(image, np.ndarray):
        return f"array {image.shape}"
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or f"image {image.size[0]}x{image.size[1]}"
    return str(image)
