"""Detectors and segmenters that run whole from the second start on: the same answers, and only of the same network."""

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino
import pytest
import torch
from PIL import Image

import vankit
from vankit.data.shapes import render_scene
from vankit.deploy import kept, whole
from vankit.deploy.agreement import Agreement
from vankit.deploy.kept import collecting, keep_whole, kept_whole
from vankit.deploy.opening import Network, open_network
from vankit.engines.cache import _place
from vankit.engines.openvino import _MODEL
from vankit.errors import UserError
from vankit.models.weights import read_tensors, write_tensors

Checkpoint = Callable[[str, str], Path]

PICTURE = render_scene(7, size=(90, 130), objects=3).image


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VANKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Path(os.environ["VANKIT_CACHE"])


@pytest.fixture(scope="module")
def segmenter(dense_checkpoint: Checkpoint, cache: Path) -> Path:
    """A checkpoint whose whole network is kept."""
    path = dense_checkpoint("semantic_fpn", "segment")
    keep_whole(start(path))
    return path


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache in which nothing is yet."""
    monkeypatch.setenv("VANKIT_CACHE", str(tmp_path / "empty"))


@pytest.fixture
def pytorch(monkeypatch: pytest.MonkeyPatch) -> object:
    """What stands for a network on PyTorch."""
    network = SimpleNamespace(masks=False)
    monkeypatch.setattr("vankit.prediction.scenes._on_pytorch", lambda *args, **options: network)
    return network


def start(path: Path) -> Network:
    return open_network(checkpoint=path, engine="openvino")


def agree(one: vankit.DensePredictor, other: vankit.DensePredictor) -> None:
    found = Agreement()
    found.add(one.results(PICTURE), other.results(PICTURE))
    found.check()
    assert not found.is_empty


def runs_whole(path: Path, **options: Any) -> bool:
    return vankit.DensePredictor(path, **options)._on_pytorch is not None


WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchvision", "timm", "transformers"]))
from vankit.cli import main
from vankit.data import scenes
scenes._SHAPES_LENGTH = {"train": 2, "val": 2}
try:
    main(["predict", "photo.png", "--checkpoint", sys.argv[1], "--output", "out"])
except SystemExit as end:
    assert not end.code
main(["validate", "shapes", "--checkpoint", sys.argv[1], "--workers", "0", "--output", "report.json"])
"""


@pytest.mark.export
def test_the_second_start_needs_no_pytorch(segmenter: Path, tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "photo.png")
    command = [sys.executable, "-c", WITHOUT, str(segmenter)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    expected = vankit.DensePredictor(segmenter, engine="torch")(PICTURE)
    assert isinstance(expected, vankit.SemanticMap) and expected.summary() in done.stdout
    with Image.open(tmp_path / "out" / "photo.png") as drawn:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected.draw(Image.fromarray(PICTURE))))
    assert (tmp_path / "report.json").is_file()


@pytest.mark.export
def test_what_it_finds_is_what_pytorch_finds(segmenter: Path) -> None:
    plain, predictor = vankit.DensePredictor(segmenter, engine="torch"), vankit.DensePredictor(segmenter)
    agree(plain, predictor)
    agree(plain, pickle.loads(pickle.dumps(predictor)))


@pytest.mark.slow
@pytest.mark.export
def test_its_module_runs_once_it_is_asked_for(segmenter: Path) -> None:
    predictor = vankit.DensePredictor(segmenter)
    torch.nn.init.zeros_(predictor.network.classifier.weight)
    torch.nn.init.zeros_(predictor.network.classifier.bias)
    predictor.network.classifier.bias.data[3] = 1
    assert (predictor.results(PICTURE)["semantic"] == 3).all()
    agree(vankit.DensePredictor(segmenter, engine="torch"), vankit.DensePredictor(segmenter))


@pytest.mark.slow
@pytest.mark.export
def test_a_detector_with_masks(dense_checkpoint: Checkpoint, empty: None) -> None:
    path = dense_checkpoint("mask_rcnn", "detect")
    keep_whole(start(path))
    predictor = vankit.DensePredictor(path)
    assert predictor.masks and predictor._on_pytorch is not None
    agree(vankit.DensePredictor(path, engine="torch"), predictor)


@pytest.mark.parametrize(
    "options",
    [
        {"test": "slide"},
        {"test": "multiscale"},
        {"engine": "torch"},
        {"engine": "onnxruntime"},
        {"precision": "bf16"},
    ],
)
def test_what_was_not_compared_runs_on_pytorch(options: dict[str, str], segmenter: Path, pytorch: object) -> None:
    with collecting() as networks:
        assert not runs_whole(segmenter, **options)
        assert runs_whole(segmenter) and runs_whole(segmenter, engine="openvino", precision="float32")
    assert networks == []


def test_a_module_that_may_have_been_changed(segmenter: Path, pytorch: object) -> None:
    opened = start(segmenter)
    assert kept_whole(opened) is not None
    assert opened.module is not None and kept_whole(opened) is None


def test_other_weights_in_the_same_file(segmenter: Path, tmp_path: Path, pytorch: object) -> None:
    path = shutil.copy(segmenter, tmp_path / "own.safetensors")
    assert [runs_whole(path) for _ in range(2)] == [False, True]  # known by its weights, once the file is
    before, content = path.stat(), read_tensors(path)
    tensors = {name: tensor.clone() for name, tensor in content.tensors.items()}
    tensors["classifier.bias"] += 1
    write_tensors(tensors, tmp_path / "other.safetensors", dict(content.metadata))
    with path.open("r+b") as file:
        file.write((tmp_path / "other.safetensors").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    assert not runs_whole(path) and not runs_whole(path)


def compared(monkeypatch: pytest.MonkeyPatch, outcome: Callable[[], Agreement]) -> list[int]:
    """Let comparisons end so; grows with each."""
    times: list[int] = []

    def agreement(*_: object, **__: object) -> Agreement:
        times.append(len(times))
        return outcome()

    monkeypatch.setattr(whole, "agreement", agreement)
    monkeypatch.setattr(kept, "_openvino_model", lambda _: _any_model())
    return times


def _any_model() -> openvino.Model:
    x = openvino.opset13.parameter([1], np.float32)
    return openvino.Model([openvino.opset13.relu(x)], [x])


def ends(error: BaseException) -> Callable[[], Agreement]:
    def outcome() -> Agreement:
        raise error

    return outcome


@pytest.mark.parametrize(
    ("outcome", "raised", "tries"),
    [
        (lambda: Agreement(objects=30, same=20), None, 1),
        (Agreement, None, 1),  # nothing was found
        (ends(UserError("OpenVINO cannot take the network")), None, 1),
        (ends(MemoryError()), MemoryError, 2),
        (ends(KeyboardInterrupt()), KeyboardInterrupt, 3),
        (ends(SystemExit(143)), SystemExit, 3),
    ],
)
def test_how_often_it_is_tried(
    outcome: Callable[[], Agreement],
    raised: type[BaseException] | None,
    tries: int,
    dense_checkpoint: Checkpoint,
    empty: None,
    pytorch: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, times = dense_checkpoint("semantic_fpn", "segment"), compared(monkeypatch, outcome)
    for _ in range(tries):
        with pytest.raises(raised) if raised else nullcontext():
            keep_whole(start(path))
    assert not runs_whole(path)
    if tries < 3:
        keep_whole(start(path))
        keep_whole(start(path))
        assert kept._decision(start(path).key).keys() == {"refused"}
    assert len(times) == tries
    assert sum("keeps its head on PyTorch" in message for message in caplog.messages) == (tries < 3)


def test_on_a_full_disk(
    dense_checkpoint: Checkpoint, empty: None, pytorch: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, times = (
        dense_checkpoint("semantic_fpn", "segment"),
        compared(monkeypatch, lambda: Agreement(objects=30, same=30)),
    )
    monkeypatch.setattr(kept, "has_kept_model", lambda _: False)
    for _ in range(3):
        keep_whole(start(path))
    assert len(times) == 2 and not runs_whole(path)


def test_a_model_that_is_gone_is_not_made_before_the_answers(segmenter: Path, pytorch: object) -> None:
    model, _ = _place((start(segmenter).key, _MODEL))
    content = model.read_bytes()
    model.unlink()
    with collecting() as networks:
        assert not runs_whole(segmenter)
    model.write_bytes(content)
    assert len(networks) == 1 and runs_whole(segmenter)


def test_nothing_is_converted_that_cannot_be_kept(
    dense_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VANKIT_CACHE", str(tmp_path / "file"))
    times = compared(monkeypatch, Agreement)
    keep_whole(start(dense_checkpoint("semantic_fpn", "segment")))
    assert times == []


def test_scores_that_the_head_leaves_out(
    dense_checkpoint: Checkpoint, empty: None, pytorch: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = dense_checkpoint("retinanet", "detect")
    with collecting() as networks:
        assert not any(runs_whole(path, score=score) for score in (0.04, 0.05))
    assert len(networks) == 1
    monkeypatch.setattr(kept, "has_kept_model", lambda key: True)
    monkeypatch.setattr(kept, "_converted", lambda *_: {"outputs": ["boxes", "labels"], "lowest_score": 0.05})
    keep_whole(start(path))
    monkeypatch.setattr("vankit.prediction.scenes.DenseFolder", lambda kept: SimpleNamespace(masks=False))
    assert [runs_whole(path, score=score) for score in (0.04, 0.05)] == [False, True]


def test_only_what_could_run_whole_is_collected(dense_checkpoint: Checkpoint, empty: None, pytorch: object) -> None:
    path = dense_checkpoint("semantic_fpn", "segment")
    with collecting() as networks:
        for options in ({"test": "slide"}, {"engine": "torch"}, {}):
            vankit.DensePredictor(path, **options)  # type: ignore[arg-type]
    vankit.DensePredictor(path)
    assert len(networks) == 1 and networks[0].source == str(path)
