"""Image files in, RGB pictures out: decoding that neither trusts the file nor guesses silently."""

import glob
import io
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

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

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any]

MAX_PIXELS = 100_000_000
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in "avif bmp gif j2k jfif jp2 jpeg jpg pbm pfm pgm png pnm ppm tif tiff webp".split()  # noqa: SIM905
)

# (offset, magic bytes, decoder). The classes are called directly rather than through Image.open for two reasons:
# Image.open compares every picture with one process-wide pixel limit, and it offers unknown bytes to some forty
# plugins, one of which (EPS) starts Ghostscript. JpegImageFile also reads the first frame of an MPO file.
_FORMATS: tuple[tuple[int, bytes, type[ImageFile]], ...] = (
    (0, b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (0, b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
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
_FORMAT_NAMES = "JPEG, PNG, WebP, GIF, TIFF, BMP, PPM/PGM/PBM/PFM, AVIF, JPEG 2000"

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
    source: str | os.PathLike[str] | bytes | BinaryIO, max_pixels: int = MAX_PIXELS, min_side: int | None = None
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
        return _decode(io.BytesIO(source), f"image of {len(source)} bytes", max_pixels, min_side)
    if not isinstance(source, str | os.PathLike):
        stream = source if source.seekable() else io.BytesIO(source.read())
        stream.seek(0)
        return _decode(stream, str(getattr(source, "name", "image stream")), max_pixels, min_side)
    name = os.fspath(source)
    if os.path.isdir(name):
        raise ImageError(f"{name} is a folder, expected an image file; find_images() lists the images of a folder")
    if not os.path.exists(name):
        raise MissingFileError(f"no such image file: {name} (looked from {os.getcwd()})")
    with open(name, "rb") as file:
        return _decode(file, name, max_pixels, min_side)


def _decode(file: BinaryIO, name: str, max_pixels: int, min_side: int | None) -> Image.Image:
    head = file.read(32)
    file.seek(0)
    decoder = next((cls for at, magic, cls in _FORMATS if head[at : at + len(magic)] == magic), None)
    if decoder is None:
        raise ImageError(
            f"{name} is {'empty' if not head else 'not an image'}: expected one of {_FORMAT_NAMES}, found "
            f"{bytes(head[:8])!r} at the start"
        )
    try:
        with _pillow_limit(_check_size(_header_size(head), name, max_pixels)):
            image = decoder(file, "")
        with _pillow_limit(_check_size(image.size, name, max_pixels)):
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            image.load()
        return to_rgb(image)
    except ImageError:
        raise
    # Decoders fed hostile bytes raise whatever their parser trips over: OSError, SyntaxError, struct.error, KeyError...
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ImageError(f"{name} is broken or truncated ({decoder.format}): {reason}") from error


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
    try:
        orientation = original.getexif().get(_ORIENTATION_TAG)
    # Damaged metadata is no reason to refuse a sound picture.
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, struct.error):
        return rgb
    transpose = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return rgb if transpose is None else rgb.transpose(transpose)


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


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """The image files that files, folders and glob patterns name, lazily, argument by argument.

    A file is yielded whatever its suffix, and also if it does not exist, so that whoever opens it reports it without
    losing the rest. A folder is walked recursively in name order, a pattern (`**` crosses folders) matches files in
    name order; both keep `IMAGE_SUFFIXES` only and skip hidden names. Symbolic links are followed, loops cut.

    Args:
        paths: one path or pattern, or several.

    Raises:
        FileNotFoundError: a folder or pattern held no image; raised once, after all other images, naming each.
    """
    barren = []
    for path in [paths] if isinstance(paths, str | os.PathLike) else paths:
        name = os.fspath(path)
        if os.path.isdir(name):
            found = _walk(Path(name), ())
        elif not os.path.exists(name) and glob.has_magic(name):
            found = (Path(match) for match in sorted(set(glob.iglob(name, recursive=True))) if _is_image_file(match))
        else:
            yield Path(name)
            continue
        first = next(found, None)
        if first is None:
            barren.append(name)
            continue
        yield first
        yield from found
    if barren:
        raise MissingFileError(
            f"no images in {', '.join(barren)}: expected a folder or pattern (such as 'photos/**/*.jpg') that holds "
            f"files ending in {' '.join(sorted(IMAGE_SUFFIXES))}"
        )


def find_inputs(
    paths: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None
) -> Iterator[Path]:
    """`find_images` for a run that writes into a folder: what the folder holds is not an input.

    Args:
        paths: several, see `find_images`.
        output: the folder; None for none.

    Raises:
        ValueError: one of the paths lies in the folder; raised at once, unlike the errors of `find_images`.
    """
    given = list(paths)
    if output is None:
        return find_images(given)
    folder = Path(output).resolve()
    if inside := [path for path in given if folder in (Path(path).resolve(), *Path(path).resolve().parents)]:
        raise UserError(
            f"{inside[0]} lies in the output folder {output}, where it could be overwritten: choose another"
        )
    return (path for path in find_images(given) if folder not in path.resolve().parents)


def _is_image_file(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES and os.path.isfile(path)


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for name in sorted(name for name in os.listdir(folder) if not name.startswith(".")):
        path = folder / name
        if path.is_dir():
            yield from _walk(path, (*above, here))
        elif _is_image_file(str(path)):
            yield path
