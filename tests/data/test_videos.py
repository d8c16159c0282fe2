"""Video files, made up, damaged and disguised: the frames that come out of them, and what is said against them."""

import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vankit.data.videos import Frame, VideoError, is_video, open_video
from vankit.errors import MissingFileError, MissingPackageError, ReadError

WriteClip = Callable[..., Path]
UNEVEN = (0, 100, 150, 400, 900, 1000, 1005, 1500, 2500, 2600)  # ms


def frames_of(path: Path, max_pixels: int = 2**20) -> list[Frame]:
    with open_video(path, max_pixels) as video:
        return list(video.frames())


def left_of_square(image: Image.Image) -> int:
    pixels = np.asarray(image).astype(int)
    return int(np.flatnonzero((pixels[15:25, :, 0] - pixels[15:25, :, 1] > 100).all(0))[0])


@pytest.mark.parametrize(
    ("name", "codec", "times"),
    [
        ("clip.mp4", "h264", UNEVEN),
        ("clip.mov", "h264", range(500, 1500, 100)),
        ("clip.mkv", "h264", UNEVEN),
        ("clip.webm", "vp9", UNEVEN),
        ("clip.avi", "mpeg4", range(0, 1000, 100)),
        ("clip.ts", "h264", UNEVEN),
    ],
)
def test_frames_come_in_order_with_their_times(
    name: str, codec: str, times: tuple[int, ...], write_clip: WriteClip, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / name, times, codec=codec)
    assert is_video(path)
    frames = frames_of(path)
    assert [frame.time for frame in frames] == pytest.approx([(t - times[0]) / 1000 for t in times], abs=5e-4)
    assert [frame.image.size for frame in frames] == [(128, 96)] * 10
    assert [left_of_square(frame.image) for frame in frames] == pytest.approx([5 * i for i in range(10)], abs=1)
    np.testing.assert_allclose(np.asarray(frames[0].image)[80, 100], (30, 150, 60), atol=6)
    assert getattr(frames[1].image, "filename", "") == f"{path} at {frames[1].time:.3f} s"


# the matrices of QuickTime's track header, (a, b, c, d) of x' = ax + cy, y' = bx + dy with y down
@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),  # a quarter clockwise, as phones held upright write it
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
    ],
)
def test_a_video_that_is_stored_on_its_side_is_turned_upright(
    matrix: tuple[int, int, int, int], turn: Image.Transpose, write_clip: WriteClip, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / "clip.mp4", range(0, 200, 100))
    plain = frames_of(path)[1].image
    data = bytearray(path.read_bytes())
    a, b, c, d = (value * 2**16 for value in matrix)
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix is 40 bytes into it
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30)
    path.write_bytes(data)
    np.testing.assert_array_equal(np.asarray(frames_of(path)[1].image), np.asarray(plain.transpose(turn)))


def test_a_video_of_gaps_is_whole(write_clip: WriteClip, tmp_path: Path) -> None:
    """In the header of an AVI a gap counts as frames."""
    for name, codec in (("clip.avi", "mpeg4"), ("clip.mkv", "h264"), ("clip.mp4", "h264")):
        frames = frames_of(write_clip(tmp_path / name, (0, 300, 2900, 3000), codec=codec))
        assert [frame.time for frame in frames] == pytest.approx([0, 0.3, 2.9, 3])


def test_pixels_become_square(write_clip: WriteClip, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", [0], aspect=Fraction(3, 2))
    assert frames_of(path)[0].image.size == (192, 96)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "h264", {"movflags": "faststart"}),
        ("clip.mp4", "h264", {"movflags": "frag_keyframe+empty_moov"}),
        ("clip.mkv", "h264", {}),
        ("clip.avi", "mpeg4", {}),
    ],
)
def test_a_video_that_is_cut_off_says_so_after_what_there_is(
    name: str, codec: str, options: dict[str, str], write_clip: WriteClip, tmp_path: Path
) -> None:
    path = write_clip(tmp_path / name, range(0, 4000, 100), (160, 96), codec, options)
    assert len(frames_of(path)) == 40
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    frames: list[Frame] = []
    with open_video(path, 2**20) as video, pytest.raises(VideoError, match=f"{name} is (damaged or )?cut off"):
        frames.extend(video.frames())
    assert 3 < len(frames) < 40
    shown = frames[:28]  # then the square leaves the picture
    assert [left_of_square(frame.image) for frame in shown] == pytest.approx([5 * i for i in range(len(shown))], abs=1)


def test_frames_are_bounded(write_clip: WriteClip, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", [0])
    assert len(frames_of(path, 128 * 96)) == 1
    with pytest.raises(VideoError, match=r"has frames of 128 x 96 = 12,288 pixels, more than the 12,287 allowed"):
        frames_of(path, 128 * 96 - 1)


def test_what_is_no_video_is_refused(write_clip: WriteClip, tmp_path: Path) -> None:
    """Lists of files above all: FFmpeg would open what they name, on the network too."""
    import av

    clip = write_clip(tmp_path / "clip.ts", [0])
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile {clip}\n")
    (tmp_path / "stream.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n")
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_text("")
    Image.new("RGB", (64, 64)).save(tmp_path / "picture.mp4", "PNG")
    Image.new("RGB", (64, 64)).save(tmp_path / "moving.mp4", "GIF")
    for name in ("list", "stream", "text", "empty", "picture", "moving"):
        with pytest.raises(VideoError, match=f"{name}.mp4 is not a video that can be read: expected MP4, MOV"):
            frames_of(tmp_path / f"{name}.mp4")
    with av.open(tmp_path / "song.mp4", "w") as song:
        stream = song.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        song.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(VideoError, match="song.mp4 has no pictures in it"):
        frames_of(tmp_path / "song.mp4")
    with pytest.raises(MissingFileError, match="no file http://127.0.0.1:9/x.mp4"):
        open_video("http://127.0.0.1:9/x.mp4", 1).__enter__()
    with pytest.raises(ReadError, match="is a folder"):
        frames_of(tmp_path)


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r'pip install "vankit\[video\]"'):
        frames_of(tmp_path / "clip.mp4")
