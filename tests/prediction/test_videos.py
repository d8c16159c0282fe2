"""Videos in, videos out: what is drawn and written of each frame, stops, breaks and refusals."""

import json
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

import vankit
from vankit.data.videos import Frame, VideoError, open_video
from vankit.errors import UserError, WriteError
from vankit.locks import held
from vankit.prediction.videos import predict_video, rows_beside, video_among
from vankit.tasks.results import Detections, PanopticMap, SemanticMap

WriteClip = Callable[..., Path]


class Finder:
    """In place of a `DensePredictor`: finds the red square of `write_clip`."""

    category_ids = (7, 9)
    max_pixels = 2**20

    def __init__(self, kind: str = "detect", failure: BaseException | None = None, after: int = 3) -> None:
        self.kind, self.failure, self.after = kind, failure, after
        self.results: list[Any] = []
        self.frames: list[Any] = []

    def __call__(self, image: Image.Image) -> Any:
        if self.failure is not None and len(self.results) == self.after:
            raise self.failure
        pixels = np.asarray(image).astype(int)
        red = pixels[..., 0] - pixels[..., 1] > 90
        self.results.append(self.found(red, getattr(image, "filename", "")))
        self.frames.append(weakref.ref(image))
        return self.results[-1]

    def found(self, red: Any, source: str) -> Any:
        classes = ["square", "other"]
        if self.kind == "segment":
            return SemanticMap(source, classes, np.where(red, 0, 1))
        if self.kind == "panoptic":
            segments = np.where(red, 3, 1)  # of three, one has no pixels
            return PanopticMap(
                source, classes, [True, False], segments, np.array([1, 1, 0]), np.float32([0.5, 0.6, 0.7])
            )
        y, x = np.nonzero(red)
        box = np.array([[x.min(), y.min(), x.max() + 1, y.max() + 1]], np.float32)
        return Detections(source, classes, box, np.array([0]), np.array([0.75], np.float32), red[None])


def run(source: Path, output: Path, finder: Finder) -> list[Any]:
    return list(predict_video(source, output, finder))  # type: ignore[arg-type]


def frames_of(path: Path) -> list[Frame]:
    with open_video(path, 2**20) as video:
        return list(video.frames())


def rows_of(output: Path) -> list[Any]:
    return [json.loads(line) for line in rows_beside(output).read_text().splitlines()]


@pytest.mark.parametrize("name", ["found.mp4", "found.mov", "found.mkv"])
def test_a_video_is_drawn_on_and_told(name: str, write_clip: WriteClip, tmp_path: Path) -> None:
    times = (0, 100, 150, 400, 900, 1000, 1005, 1500, 2500, 2600)
    source, output, finder = write_clip(tmp_path / "clip.mkv", times), tmp_path / name, Finder()
    results = run(source, output, finder)
    assert results == finder.results
    before, after, rows = frames_of(source), frames_of(output), rows_of(output)
    seconds = [time / 1000 for time in times]
    for each in ([frame.time for frame in after], [row["time"] for row in rows]):
        assert each == pytest.approx(seconds, abs=1e-3)
    assert [row["frame"] for row in rows] == list(range(1, 11))
    for i, (result, row, plain, drawn) in enumerate(zip(results, rows, before, after, strict=True)):
        assert row["objects"] == result.to_coco(i + 1, finder.category_ids)
        assert row["objects"][0]["bbox"] == pytest.approx([5 * i, 10, 20, 20], abs=2)
        assert result.source == f"{source} at {seconds[i]:.3f} s"
        expected = np.asarray(result.draw(plain.image)).astype(int)
        assert drawn.image.size == (128, 96)
        off, bare = (np.abs(np.asarray(each) - expected).mean() for each in (drawn.image, plain.image))
        assert off < 0.6 * bare  # chroma has half the resolution: lines of a pixel lose some of their colour
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["clip.mkv", name, "found.jsonl"])


@pytest.mark.parametrize("kind", ["segment", "panoptic"])
def test_maps_keep_the_size_of_the_video(kind: str, write_clip: WriteClip, tmp_path: Path) -> None:
    """Their pictures have a legend, higher in some frames than in others."""
    output = tmp_path / "found.mp4"
    results = run(write_clip(tmp_path / "clip.mp4"), output, Finder(kind))
    drawn = frames_of(output)
    for i, (frame, row, result) in enumerate(zip(drawn, rows_of(output), results, strict=True)):
        assert frame.image.size == (128, 96)
        masks = {each["category_id"]: mask_api.decode(each["segmentation"]) for each in row["objects"]}
        red = result.labels == 0 if kind == "segment" else result.segments == 3
        np.testing.assert_array_equal(masks[7], red)
        np.testing.assert_array_equal(masks[9], ~red)
        assert {each["image_id"] for each in row["objects"]} == {i + 1}
        if kind == "panoptic":
            assert [(each["category_id"], round(each["score"], 3)) for each in row["objects"]] == [(9, 0.5), (7, 0.7)]
            assert row["objects"][1]["bbox"] == pytest.approx([5 * i, 10, 20, 20], abs=2)


def test_odd_sizes_are_made_even(write_clip: WriteClip, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mkv", codec="ffv1", size=(127, 95))  # H.264 would have refused it
    run(source, tmp_path / "found.mp4", Finder())
    (plain, *_), (drawn, *_) = frames_of(source), frames_of(tmp_path / "found.mp4")
    assert (plain.image.size, drawn.image.size) == ((127, 95), (128, 96))
    np.testing.assert_allclose(np.asarray(drawn.image)[95, 127], np.asarray(plain.image)[94, 126], atol=8)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), None])
def test_a_stop_keeps_what_is_done(stop: BaseException | None, write_clip: WriteClip, tmp_path: Path) -> None:
    source, output = write_clip(tmp_path / "clip.mp4"), tmp_path / "found.mp4"
    output.write_text("of before")
    if stop is None:  # nobody takes more
        answers = predict_video(source, output, Finder())  # type: ignore[arg-type]
        for _ in range(3):
            next(answers)
        assert output.read_text() == "of before"
        answers.close()
    else:
        with pytest.raises(type(stop)):
            run(source, output, Finder(failure=stop))
    assert [frame.time for frame in frames_of(output)] == pytest.approx([0, 0.1, 0.2])
    assert [row["frame"] for row in rows_of(output)] == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_stop_before_the_first_frame_and_a_bug_leave_what_was_there(write_clip: WriteClip, tmp_path: Path) -> None:
    source, output = write_clip(tmp_path / "clip.mp4"), tmp_path / "found.mp4"
    output.write_text("of before")
    for failure, after in ((KeyboardInterrupt(), 0), (KeyError("bug"), 3), (UserError("not finite"), 3)):
        with pytest.raises(type(failure)):
            run(source, output, Finder(failure=failure, after=after))
        assert output.read_text() == "of before"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "found.mp4"]


def test_of_a_video_that_is_cut_off_the_beginning_is_kept(write_clip: WriteClip, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", range(0, 2000, 100), options={"movflags": "faststart"})
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 8 // 10])
    output = tmp_path / "found.mp4"
    with pytest.raises(
        VideoError, match=r"clip.mp4 is damaged or cut off: .*; .*found.mp4 has the (\d+) frames before"
    ):
        run(source, output, Finder())
    assert 3 < len(frames_of(output)) == len(rows_of(output)) < 20


def test_a_full_disk_leaves_what_was_there(
    write_clip: WriteClip, tmp_path: Path, files_up_to: Callable[[int], AbstractContextManager[None]]
) -> None:
    source, output = write_clip(tmp_path / "clip.mp4"), tmp_path / "found.mp4"
    output.write_text("of before")
    with files_up_to(1000), pytest.raises(WriteError, match="cannot write .*found.mp4: File too large"):
        run(source, output, Finder())
    assert output.read_text() == "of before"
    assert len(list(tmp_path.iterdir())) == 2


def test_frames_are_decoded_and_drawn_meanwhile_a_few_at_a_time(write_clip: WriteClip, tmp_path: Path) -> None:
    source, finder, threads, most = write_clip(tmp_path / "clip.mp4", range(0, 4000, 100)), Finder("segment"), set(), 0

    class Noting(SemanticMap):
        def draw(self, image: Image.Image) -> Image.Image:
            threads.add(threading.get_ident())
            return super().draw(image)

    def predict(image: Image.Image) -> Any:
        nonlocal most
        most = max(most, sum(each() is not None for each in finder.frames))
        found = finder(image)
        return Noting(found.source, found.classes, found.labels)

    predict.category_ids, predict.max_pixels = finder.category_ids, finder.max_pixels  # type: ignore[attr-defined]
    for _ in predict_video(source, tmp_path / "found.mp4", predict):  # type: ignore[arg-type]
        pass
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert most <= 4  # those that wait to be written, and the one that is


def test_a_video_has_one_writer(write_clip: WriteClip, tmp_path: Path) -> None:
    source, output = write_clip(tmp_path / "clip.mp4"), tmp_path / "found.mp4"
    with held(output):
        with pytest.raises(UserError, match="found.mp4 is being written by process"):
            run(source, output, Finder())
        with pytest.raises(UserError, match="found.mp4 is being written by process"):
            video_among([source], output)


def test_what_goes_together(write_clip: WriteClip, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.mp4").mkdir()
    assert video_among(clip, tmp_path / "found.MP4") == video_among([str(clip)], tmp_path / "found.mkv") == clip
    for pictures in (["photo.jpg"], [clip, "photo.jpg"], iter([clip]), [tmp_path], None, [5], "*.mp4", "missing.mp4"):
        assert video_among(pictures, "found") is video_among(pictures, None) is None  # type: ignore[arg-type]
    for inputs, output, says in (
        ([clip], None, r"clip.mp4 is a video: name the video to write as output \(--output\), such as found.mp4"),
        ([clip], "found", r"clip.mp4 is a video: name the video to write"),
        ([clip, clip], "found.mp4", "found.mp4 is a video, which is made from one video: pass that one alone"),
        (tmp_path, "found.mp4", "found.mp4 is a video, which is made from one video"),
        (clip, "found.webm", r"cannot write a video to found.webm: expected a name ending in .mp4, .m4v, .mov, .mkv"),
        (clip, tmp_path / "folder" / ".." / "clip.mp4", "is the video to read: choose another output"),
        (clip, tmp_path / "folder.mp4", "folder.mp4 is a folder"),
    ):
        with pytest.raises(UserError, match=says):
            video_among(inputs, output)


def test_vankit_predict_takes_a_video(
    dense_checkpoint: Callable[[str, str], Path], write_clip: WriteClip, tmp_path: Path
) -> None:
    source, output = write_clip(tmp_path / "clip.mp4", range(0, 300, 100)), tmp_path / "found.mp4"
    checkpoint = dense_checkpoint("retinanet", "detect")
    found = vankit.predict(source, checkpoint=checkpoint, output=output, engine="torch", score=0.0)
    predictor = vankit.DensePredictor(checkpoint, engine="torch", score=0.0)
    for frame, row, result in zip(frames_of(source), rows_of(output), found, strict=True):
        assert row["objects"] == predictor(frame.image).to_coco(row["frame"], predictor.category_ids) != []
        assert row["objects"] == result.to_coco(row["frame"], predictor.category_ids)
    with pytest.raises(UserError, match="found.mp4 is a video, which is made from one video"):
        vankit.predict([source, source], checkpoint=checkpoint, output=output, engine="torch")
    with pytest.raises(UserError, match=r"clip.mp4 is a video: name the video to write"):
        vankit.predict(source, checkpoint=checkpoint, output=tmp_path / "folder", engine="torch")
    with pytest.raises(UserError, match=r"cannot write predictions to .*found.mp4: expected a name ending in .csv"):
        vankit.predict(source, "van_b0.cifar10", output=output, engine="torch")
