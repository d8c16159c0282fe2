"""Video files in, upright RGB frames out: decoding that opens one file, within bounds, and says if it is broken."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any

from PIL import Image

from vankit.errors import MissingPackageError, UserError
from vankit.files import open_file

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in "3gp avi m2ts m4v mkv mov mp4 mpeg mpg mts ts webm".split()  # noqa: SIM905
)
# FFmpeg's names of the formats. Others may be lists of files, which FFmpeg would open by itself
_FORMATS = "mov,matroska,avi,mpegts,mpeg"
_FORMAT_NAMES = "MP4, MOV, MKV, WebM, AVI or MPEG"
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
_LATE = 1.0  # seconds by which a video may be shorter than its header says, where that counts no frames


class VideoError(UserError):
    """A video that cannot be read, or not to its end; the message names it and the reason."""


def is_video(path: str | PathLike[str]) -> bool:
    """Whether a file of this name is a video, by its suffix."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def pyav() -> Any:
    """The library that reads and writes videos.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise MissingPackageError('videos need PyAV: pip install "vankit[video]"') from None
    return av


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame of a video.

    Attributes:
        image: upright RGB.
        ticks: its time from the first frame on, in the video's time base.
        time: the same in seconds.
    """

    image: Image.Image
    ticks: int
    time: float


class Video:
    """A video that is open.

    Attributes:
        size: (width, height) of its frames as they are stored, with square pixels.
        rate: frames per second, on average.
    """

    def __init__(self, path: Path, container: Any, max_pixels: int) -> None:
        self.path, self.container = path, container
        self.stream = stream = container.streams.best("video")
        if stream is None or "attached_pic" in (stream.disposition.name or ""):  # the cover of a song
            raise VideoError(f"{path} has no pictures in it: expected a video")
        self.time_base = stream.time_base
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        width = round(stream.width * (stream.sample_aspect_ratio or 1))
        if (pixels := width * stream.height) > max_pixels:
            raise VideoError(
                f"{path} has frames of {width} x {stream.height} = {pixels:,} pixels, more than the {max_pixels:,} "
                f"allowed; if you trust the file, raise the limit with max_pixels={pixels} (--max-pixels {pixels})"
            )
        self.size = width, stream.height
        stream.codec_context.options = {"max_pixels": str(2 * max_pixels)}  # codecs round sizes up

    def frames(self) -> Iterator[Frame]:
        """The frames in the order in which they are shown.

        Raises:
            ValueError: the video is damaged, or ends too early.
        """
        start = last = turn = None
        step = max(1, round(1 / (self.rate * self.time_base)))
        for decoded in self._decoded():
            ticks = decoded.pts
            if last is None:
                start = last = ticks = ticks or 0
                turn = _TURNS.get(round(decoded.rotation / 90) * 90 % 360)
            else:  # a damaged video may say a time twice
                last = ticks = max(last + 1, last + step if ticks is None else ticks)
            image = decoded.to_image(width=self.size[0], height=self.size[1])
            image = image if turn is None else image.transpose(turn)
            time = float((ticks - start) * self.time_base)
            image.filename = f"{self.path} at {time:.3f} s"  # what a result calls it
            yield Frame(image, ticks - start, time)
        if last is None:
            raise VideoError(f"{self.path} has no frames")

    def _decoded(self) -> Iterator[Any]:
        packets, until = 0, 0.0
        try:
            for packet in self.container.demux():
                if packet.size and packet.pts is not None:
                    until = max(until, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream_index == self.stream.index:
                    packets += packet.size > 0
                    yield from packet.decode()
        except (pyav().FFmpegError, OSError) as error:
            raise VideoError(f"{self.path} is damaged or cut off: {error.strerror or error}") from error
        self._check_end(packets, until)

    def _check_end(self, packets: int, until: float) -> None:
        """FFmpeg takes the end of a file for that of the video, so compare it with what the header says."""
        kind, promised = self.container.format.name, 0.0  # seconds
        if "matroska" in kind:
            promised = (self.container.duration or 0) / 1e6
        elif kind == "avi":
            promised = float(self.stream.frames / self.rate)
        expected = len(self.stream.index_entries) if "mov" in kind else 0
        if packets < expected or until < promised - _LATE:
            raise VideoError(f"{self.path} is cut off")


@contextmanager
def open_video(path: str | PathLike[str], max_pixels: int) -> Iterator[Video]:
    """Open a video file for the length of a block: that file alone, whatever it refers to.

    Args:
        path: MP4, MOV, MKV, WebM, AVI or MPEG.
        max_pixels: largest width * height of a frame, checked before any is decoded.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a video, or its frames are larger.
        ImportError: PyAV is not installed.
    """
    av = pyav()
    with ExitStack() as opened:
        file = opened.enter_context(open_file(path))
        try:
            container = av.open(file, container_options={"format_whitelist": _FORMATS}, metadata_errors="ignore")
            video = Video(Path(path), opened.enter_context(container), max_pixels)
        except (av.FFmpegError, OSError) as error:
            reason = error.strerror or error
            raise VideoError(f"{path} is not a video that can be read: expected {_FORMAT_NAMES} ({reason})") from error
        yield video
