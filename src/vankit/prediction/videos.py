"""Videos in, videos out: frames are decoded, looked at, and drawn and encoded, at the same time."""

import json
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vankit.data.images import MAX_PIXELS
from vankit.data.videos import Frame, Video, VideoError, is_video, open_video, pyav
from vankit.errors import UserError
from vankit.files import check_file, replacing, writing
from vankit.locks import check_free, held
from vankit.tasks.results import PanopticMap

if TYPE_CHECKING:
    from vankit.prediction.scenes import DensePredictor, Result

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # FFmpeg's names
_AHEAD = 2  # frames that wait before the network, and as many behind it


def video_among(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str] | None,
    max_pixels: int = MAX_PIXELS,
) -> Path | None:
    """The video that is asked for; None where pictures are.

    Args:
        inputs: see `vankit.prediction.scenes.iter_scenes`; a video is the only one.
        output: its name ends as that of a video if it is to be one.
        max_pixels: see `vankit.data.videos.open_video`.

    Raises:
        FileNotFoundError, ValueError: the video cannot be read, it and something else are asked for together, or
            `output` cannot be written as a video.
        ImportError: PyAV is not installed.
    """
    given = inputs if isinstance(inputs, Sequence) and not isinstance(inputs, str) else [inputs]
    only = Path(given[0]) if len(given) == 1 and isinstance(given[0], str | PathLike) else None
    if output is None or not is_video(output):
        if only is not None and is_video(only) and only.is_file():
            raise UserError(f"{only} is a video: name the video to write as output (--output), such as found.mp4")
        return None
    if only is None or only.is_dir():
        raise UserError(
            f"{output} is a video, which is made from one video: pass that one alone, or name a folder as output"
        )
    if Path(output).suffix.lower() not in _FORMATS:
        raise UserError(f"cannot write a video to {output}: expected a name ending in {', '.join(_FORMATS)}")
    if os.path.realpath(only) == os.path.realpath(output):
        raise UserError(f"{output} is the video to read: choose another output")
    for path in (output, rows_beside(output)):
        check_file(path)
    check_free(output)
    with open_video(only, max_pixels):  # before an engine is made for it
        return only


def rows_beside(video: str | PathLike[str]) -> Path:
    """The file for what is found in each frame: the video's name with .jsonl."""
    return Path(video).with_suffix(".jsonl")


def predict_video(
    source: str | PathLike[str], output: str | PathLike[str], predictor: "DensePredictor"
) -> Generator["Result", None, None]:
    """Detect or segment what is in the frames of a video, and write the video with it drawn on.

    Frames keep their times, from the first one on, and become upright; sizes become even by doubling the last row or
    column. Sound is left out, and so is the legend of a segmenter's pictures. The video is H.264 (BT.709, 8 bits).
    Beside it, `rows_beside` gets a line per frame: `frame`, from 1, `time` in seconds, and `objects`, rows of COCO's
    results format whose `image_id` is the frame; a panoptic segment is a row with a mask too.

    Both files are written under other names, which they get when all is done. A stop (the iterator is closed, Ctrl-C,
    SIGTERM) or a break in the video ends them early, and whole; any other error leaves what was there before.

    Args:
        source: see `vankit.data.videos.open_video`.
        output: see `video_among`.
        predictor: its `max_pixels` is the largest frame that is decoded. Besides the one that is looked at, at most 4
            frames and their results are in memory.

    Yields:
        What is in each frame, as it is found; `source` says when.

    Raises:
        FileNotFoundError, ValueError: the video cannot be read, or not to its end (what comes before is written), or
            the files cannot be written, someone else is writing them, or see `DensePredictor`.
        ImportError: PyAV is not installed.
    """
    ended: BaseException | None = None
    with (
        held(output),
        open_video(source, predictor.max_pixels) as video,
        _writing(output, video) as written,
        closing(_ahead(video.frames(), _AHEAD)) as frames,
    ):
        try:
            for frame in frames:
                result = predictor(frame.image)
                written.put(frame, result, predictor.category_ids)
                yield result
        except (VideoError, GeneratorExit, KeyboardInterrupt, SystemExit) as stop:
            if not written.count:
                raise
            ended = stop
    if isinstance(ended, VideoError):
        raise VideoError(f"{ended}; {output} has the {written.count} frames before") from ended
    if ended is not None:
        raise ended


def _ahead(items: Iterator[Frame], count: int) -> Generator[Frame, None, None]:
    """The same frames, made in a thread of their own, so many of them ahead."""
    pool = ThreadPoolExecutor(1)
    try:
        waiting = deque(pool.submit(next, items, None) for _ in range(count))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)


class _Written:
    """A video and its rows as they are written, in a thread of their own.

    Args:
        video, rows: where to write.
        output: what the video will be called.
        like: the video whose times are kept.
    """

    def __init__(self, video: Path, rows: Path, output: Path, like: Video) -> None:
        self.output, self.like, self.files = output, like, ExitStack()
        with writing(output):
            file = self.files.enter_context(video.open("wb"))
            self.rows = self.files.enter_context(rows.open("w", encoding="utf-8"))
            self.container = pyav().open(file, "w", format=_FORMATS[output.suffix.lower()])
            self.files.enter_context(self.container)
        self.stream: Any = None
        self.count = 0
        self.pool, self.waiting = ThreadPoolExecutor(1), deque[Future[None]]()

    def put(self, frame: Frame, result: "Result", category_ids: list[int]) -> None:
        """Write a frame, once those before it are."""
        self.count += 1
        self.waiting.append(self.pool.submit(self._write, self.count, frame, result, category_ids))
        if len(self.waiting) > _AHEAD:
            self.waiting.popleft().result()

    def _write(self, number: int, frame: Frame, result: "Result", category_ids: list[int]) -> None:
        drawn = result.draw(frame.image).crop((0, 0, *frame.image.size))  # without the legend, whose size changes
        objects = result.objects() if isinstance(result, PanopticMap) else result
        line = {"frame": number, "time": frame.time, "objects": objects.to_coco(number, category_ids)}
        with writing(self.output):
            self._encode(drawn, frame.ticks)
            self.rows.write(json.dumps(line, allow_nan=False) + "\n")

    def _encode(self, image: Image.Image, ticks: int) -> None:
        pixels = np.pad(np.asarray(image), ((0, image.height % 2), (0, image.width % 2), (0, 0)), "edge")
        picture = pyav().VideoFrame.from_ndarray(pixels, "rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
        picture.pts, picture.time_base = ticks, self.like.time_base
        if self.stream is None:
            self.stream = self._begin(picture.width, picture.height)
        self.container.mux(self.stream.encode(picture))

    def _begin(self, width: int, height: int) -> Any:
        stream = self.container.add_stream("h264", rate=self.like.rate, width=width, height=height, pix_fmt="yuv420p")
        context = stream.codec_context
        context.time_base = self.like.time_base
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1  # BT.709, 16 to 235
        return stream

    def finish(self) -> None:
        """Write what is waiting to be."""
        while self.waiting:
            self.waiting.popleft().result()
        with writing(self.output):
            self.container.mux(self.stream.encode())

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        with writing(self.output):
            self.files.close()


@contextmanager
def _writing(output: str | PathLike[str], like: Video) -> Iterator[_Written]:
    """A video and its rows, which take their places at the end of the block if nothing is raised."""
    with (
        replacing(output) as video,
        replacing(rows_beside(output)) as rows,
        closing(_Written(video, rows, Path(output), like)) as written,
    ):
        yield written
        written.finish()
