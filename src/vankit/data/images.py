"""Image files in, RGB pictures out: decoding that neither trusts the file nor guesses silently."""

import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from PIL.ImageFile import ImageFile

from vankit.data.decoders import MAX_PIXELS, PNG_START, ImageError, load_pixels, open_decoder, with_decoder
from vankit.errors import MissingFileError, ReadError, UserError
from vankit.files import open_file
from vankit.schema import shown

T = TypeVar("T")
ImageLike = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]

_EXPECTED = "a path, the bytes of an image file, a PIL image or a uint8 array (H, W, 3) or (H, W)"

_LARGEST = 2**28  # pixels of what is only looked at, however many may be decoded
_ORIENTATION_TAG = 0x0112
_WITH_ORIENTATION = ("exif", "xmp", "XML:com.adobe.xmp")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    with open_image(source, max_pixels, min_side, tolerant) as image:
        return image


@contextmanager
def open_image(
    source: str | os.PathLike[str] | bytes | BinaryIO,
    max_pixels: int = MAX_PIXELS,
    min_side: int | None = None,
    tolerant: bool = False,
) -> Iterator[Image.Image]:
    """`load_image` for the length of a block, in which the picture keeps its share of the pixels at the same time."""
    if min_side is not None and min_side < 1:
        raise UserError(f"min_side is {min_side}: expected at least 1 pixel, or None to decode exactly")
    with ExitStack() as held:
        file, name = _stream(source, held)

        def finish(decoder: type[ImageFile], data: BinaryIO, head: bytes) -> Image.Image:
            return _own_rgb(load_pixels(decoder, data, head, name, max_pixels, held, min_side))

        yield with_decoder(file, name, finish, tolerant)


def _stream(source: str | os.PathLike[str] | bytes | BinaryIO, held: ExitStack) -> tuple[BinaryIO, str]:
    """The bytes of an image from their start, and its name."""
    if isinstance(source, bytes):
        return io.BytesIO(source), source_name(source)
    if isinstance(source, str | os.PathLike):
        return held.enter_context(_open(source)), os.fspath(source)
    stream = source if source.seekable() else io.BytesIO(source.read())
    stream.seek(0)
    return stream, str(getattr(source, "name", "image stream"))


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    """Open an image file; of a folder that `vankit.data.walk.find_images` could not list, say why."""
    try:
        return open_file(path)
    except MissingFileError:
        raise MissingFileError(f"no such image file: {os.fspath(path)} (looked from {os.getcwd()})") from None
    except ReadError as error:
        if os.path.isdir(path):
            raise ImageError(f"{os.fspath(path)} is a folder {_why_not_listed(path)}") from None
        raise ImageError(str(error)) from None


def _why_not_listed(folder: str | os.PathLike[str]) -> str:
    try:
        os.scandir(folder).close()
    except OSError as error:
        return f"that cannot be listed: {error.strerror or error}"
    return "and not an image file; find_images() lists the images of a folder"


def _from_file(path: str | os.PathLike[str], look: Callable[[ImageFile], T]) -> T:
    """What is seen of an image file before its pixels are decoded."""

    def finish(decoder: type[ImageFile], data: BinaryIO, head: bytes) -> T:
        image = open_decoder(decoder, data, head, os.fspath(path), _LARGEST)
        if decoder is PngImagePlugin.PngImageFile:
            _read_late_exif(image, data)
        return look(image)

    with _open(path) as file:
        return with_decoder(file, os.fspath(path), finish)


_MOST_CHUNKS = 2**20  # of a PNG: half a second


def _read_late_exif(image: ImageFile, file: BinaryIO) -> None:
    """EXIF that comes after the pixels of a PNG; Pillow would decode all of them in search of it."""
    file.seek(len(PNG_START))
    for _ in range(_MOST_CHUNKS):
        length, kind = int.from_bytes((header := file.read(8))[:4], "big"), header[4:]
        if not kind.isalpha() or kind == b"IEND":
            return
        if kind == b"eXIf":
            image.info.setdefault("exif", b"Exif\0\0" + file.read(min(length, 2**24)))
            return
        file.seek(length + 4, os.SEEK_CUR)


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) in pixels of an image file once it is upright, from its header.

    Raises:
        FileNotFoundError, ImageError: see `load_image`.
    """
    return _from_file(path, _upright_size)


def is_turned(path: str | os.PathLike[str]) -> bool:
    """Whether an image file is stored on its side, with an EXIF rotation that makes it upright.

    Raises:
        FileNotFoundError, ImageError: see `load_image`.
    """
    return _from_file(path, lambda image: _orientation(image) != 1)


def load_png(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a PNG whose values are numbers rather than colours, as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: it is not a PNG, is broken, or has more than `max_pixels` pixels.
    """
    name = os.fspath(path)
    with _open(path) as file, ExitStack() as held:
        if (start := file.read(len(PNG_START))) != PNG_START:
            raise ImageError(f"{name} is not a readable PNG: found {start!r} at its start")
        file.seek(0)
        return with_decoder(file, name, lambda cls, data, head: load_pixels(cls, data, head, name, max_pixels, held))


def _own_rgb(image: Image.Image) -> Image.Image:
    """What a decoder made as `load_image` returns it: of most JPEGs itself, as a copy would double the memory."""
    return to_rgb(image, copy=not isinstance(image, JpegImagePlugin.JpegImageFile))  # others keep their file


def to_rgb(image: Image.Image, copy: bool = True) -> Image.Image:
    """An opened PIL image as `load_image` returns it: upright, 8-bit RGB, laid over white.

    Args:
        image: of any mode.
        copy: return another image also where there is nothing to change.
    """
    image.load()  # EXIF may come after the pixels
    rgb = _upright(_flat_rgb(image), image)
    if rgb is image and copy:
        rgb = image.copy()
    for name in _WITH_ORIENTATION:  # which is applied, and must not be again
        rgb.info.pop(name, None)
    return rgb


def _flat_rgb(image: Image.Image) -> Image.Image:
    """Opaque RGB, as it is stored; the picture itself if it is that already."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_grey8(image)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
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
        # not the method of PNGs, which decodes them
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG)
    # Damaged metadata is no reason to refuse a sound picture.
    except (OSError, ValueError, TypeError, KeyError, SyntaxError, struct.error):
        return 1
    return orientation if isinstance(orientation, int) else 1


def to_image(image: ImageLike, max_pixels: int = MAX_PIXELS, min_side: int | None = None) -> Image.Image:
    """An upright RGB picture from whatever a predictor is given.

    Args:
        image: a path, the bytes of an image file, a PIL image, or a uint8 array (H, W, 3) in RGB order or (H, W) grey.
        max_pixels: largest image that is decoded, in pixels.
        min_side: of a file, see `load_image`.

    Raises:
        FileNotFoundError, ValueError: the image cannot be used; `ImageError` if it is broken.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
            raise UserError(
                f"the array is {image.dtype} of shape {image.shape}: expected uint8 (H, W, 3) in RGB order or (H, W)"
            )
        _check_pixels(image, image.shape)
        image = Image.fromarray(image)
    if is_encoded(image):
        return load_image(image, max_pixels, min_side)
    if not isinstance(image, Image.Image):
        raise UserError(f"the image is {shown(image)}: expected {_EXPECTED}")
    _check_pixels(image, image.size)
    try:
        return to_rgb(image)
    except Exception as error:  # it may have been opened but not decoded yet, see `_decode`
        raise ImageError(
            f"{source_name(image)} is broken or truncated: {str(error) or type(error).__name__}"
        ) from error


def _check_pixels(image: ImageLike, lengths: tuple[int, ...]) -> None:
    if 0 in lengths:
        raise ImageError(f"{source_name(image)} has no pixels")


def is_encoded(image: object) -> TypeGuard[str | os.PathLike[str] | bytes | BinaryIO]:
    """Whether it is a path, the bytes of an image file, or an open one, also of a kind that wraps another."""
    return isinstance(image, str | os.PathLike | bytes) or (hasattr(image, "read") and hasattr(image, "seekable"))


def is_one_image(images: object) -> TypeGuard[ImageLike]:
    """Whether it is one image as `to_image` takes it, rather than several."""
    return is_encoded(images) or isinstance(images, Image.Image | np.ndarray)


def several(images: object, name: str = "images") -> Iterator[ImageLike]:
    """The images one by one.

    Args:
        images: not a single path, whose letters would be taken for paths.
        name: what the caller calls them.

    Raises:
        ValueError: it is a single image, or nothing that has images.
    """
    if is_encoded(images) or not isinstance(images, Iterable):
        raise UserError(f"{name} is {shown(images)}: expected {_EXPECTED}, several of them in a list")
    return iter(images)


def source_name(image: ImageLike) -> str:
    """What a result calls its image: the path, or a description of one passed in memory."""
    if isinstance(image, np.ndarray):
        return f"array {image.shape}"
    if isinstance(image, Image.Image):
        return getattr(image, "filename", "") or f"image {image.size[0]}x{image.size[1]}"
    if isinstance(image, bytes):
        return f"image of {len(image)} bytes"
    return os.fspath(image) if isinstance(image, str | os.PathLike) else shown(image)
