"""Contenders that compute something else or nothing, speed-ups from made-up seconds, and two engines in earnest."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vankit
from vankit.errors import UserError
from vankit.models.description import Description
from vankit.study import timing
from vankit.study.timing import (
    Contender,
    Timing,
    bench,
    compare,
    input_size,
    load,
    pictures,
    random_network,
    save_weights,
    summarise,
)

# makes numpy functions: what a process is to import must not be in a test
IMAGES = np.array([[1.0, 1.00001], [0.5, 0.5]], np.float32)[:, :, None, None]
SAME = partial(partial, np.positive)
CONTENDERS = {
    "same": Contender("identity", "same", SAME, processes=2),
    "a little off": Contender("identity", "a little off", partial(partial, np.add, np.float32(5e-5))),
    "off": Contender("identity", "off", partial(partial, np.add, np.float32(2e-4))),
    "rounded": Contender("identity", "rounded", partial(partial, np.round), exact=False),
    "broken": Contender("identity", "broken", partial(partial, np.multiply, np.nan), exact=False),
    "other label": Contender("identity", "other label", partial(partial, np.flip, axis=1)),
    "other shape": Contender("identity", "other shape", partial(partial, np.sum, axis=1), exact=False),
    "missing": Contender("identity", "missing", partial(int, "no library")),
    "dies": Contender("identity", "dies", partial(os._exit, 3)),
    "other network": Contender("double", "other network", partial(partial, np.multiply, np.float32(2))),
}
EXPECTED = {"identity": IMAGES, "double": 2 * IMAGES}


@pytest.fixture(scope="module")
def compared() -> dict[str, Timing]:
    before = set(multiprocessing.active_children())
    rows = compare(list(CONTENDERS.values()), IMAGES, EXPECTED, seconds=0, calls=2)
    assert set(multiprocessing.active_children()) <= before  # its processes have ended
    assert [row.contender for row in rows] == list(CONTENDERS)
    return {row.contender: row for row in rows}


@pytest.mark.parametrize("name", ["same", "a little off", "rounded", "other network"])
def test_what_computes_the_same_is_timed(compared: dict[str, Timing], name: str) -> None:
    row = compared[name]
    assert row.note == ""
    assert 0 < row.ms_min <= row.ms_low <= row.ms <= row.ms_high
    assert len(row.rounds) == 3
    assert 0 < row.speedup_low <= row.speedup <= row.speedup_high


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("off", "refused: its logits are up to 0.0002 off, 100% of labels agree"),
        ("broken", "refused: its logits are up to nan off"),
        ("other label", "refused: its logits are up to 1e-05 off, 50% of labels agree"),
        ("other shape", "refused: its output has shape (2, 1, 1) instead of (2, 2, 1, 1)"),
        ("missing", "not available: invalid literal for int() with base 10: 'no library'"),
        ("dies", "not available: its process died with exit code 3"),
    ],
)
def test_what_does_not_is_not_timed(compared: dict[str, Timing], name: str, note: str) -> None:
    row = compared[name]
    assert note in row.note
    assert row.ms is row.speedup is None
    assert row.rounds == ()


def test_differences_are_reported(compared: dict[str, Timing]) -> None:
    assert compared["same"].difference == 0
    assert compared["a little off"].difference == pytest.approx(5e-5, rel=0.01)
    assert compared["rounded"].difference == 0.5
    assert compared["rounded"].agreement == 0.5
    assert compared["missing"].difference is None


def test_baseline_is_of_the_same_network(compared: dict[str, Timing]) -> None:
    assert compared["same"].speedup == compared["other network"].speedup == 1


def test_speedup_is_the_median_of_the_ratios_of_rounds() -> None:
    slow, fast = CONTENDERS["same"], CONTENDERS["off"]
    # four times as fast; in one round the machine was busy, in one the slow one alone was disturbed
    rounds = [
        {slow: [0.040, 0.044, 0.036], fast: [0.010, 0.009, 0.011]},
        {slow: [4.0, 4.4, 3.6], fast: [1.0, 1.1, 0.9]},
        {slow: [0.080, 0.080, 0.080], fast: [0.010, 0.010, 0.050]},
        {slow: [0.040, 0.040, 0.400], fast: [0.010, 0.010, 0.010]},
        {slow: [0.020, 0.020, 0.020], fast: [0.010, 0.010, 0.010]},
    ]
    row = summarise(Timing("identity", "off"), rounds, fast, slow)
    assert row.rounds == pytest.approx([10, 1000, 10, 10, 10])
    assert (row.speedup_low, row.speedup, row.speedup_high) == pytest.approx((4, 4, 4))
    assert (row.ms_min, row.ms_low, row.ms, row.ms_high) == pytest.approx((9, 10, 10, 30.5))


def test_without_a_timed_baseline_there_is_no_speedup() -> None:
    fast = CONTENDERS["off"]
    row = summarise(Timing("identity", "off"), [{fast: [0.01]}], fast, CONTENDERS["same"])
    assert row.ms == pytest.approx(10)
    assert row.speedup is None


@pytest.mark.slow
def test_engines_are_timed_against_plain_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_ENGINES", (("openvino", "float32"),))
    monkeypatch.setattr(timing, "_PLAIN_PROCESSES", 1)
    plain, engine = bench(["test_resnet"], seconds=0.1)
    assert (plain.contender, plain.note, plain.speedup) == ("plain PyTorch", "", 1)
    assert (engine.contender, engine.note, engine.agreement) == ("openvino float32", "", 1)
    assert 0 <= engine.difference <= 1e-4
    assert engine.speedup == pytest.approx(np.median(np.divide(plain.rounds, engine.rounds)))


BENCH = """
import sys
from vankit.study.timing import bench
if __name__ == "__main__":
    for row in bench(sys.argv[1:], seconds=0.1):
        assert row.note or row.rounds and row.ms > 0
        print(row.model, row.contender, row.note, row.agreement, row.speedup == 1, sep="|")
"""


@pytest.mark.slow
@pytest.mark.export
def test_an_exported_folder_is_timed_without_torch(
    tmp_path: Path, dense_checkpoint: Callable[[str, str], Path]
) -> None:
    """In no process: one that imports PyTorch finds a package that cannot be imported."""
    torch.manual_seed(0)
    network = vankit.VAN(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=4).eval()
    folders = [
        str(vankit.export(network, out=tmp_path / kind, format=kind, classes=[*"abcd"]).folder)
        for kind in ("onnx", "openvino")
    ]
    segmenter = dense_checkpoint("semantic_fpn", "segment")
    folders.append(str(vankit.export(checkpoint=segmenter, out=tmp_path / "segmenter").folder))
    (tmp_path / "without" / "torch").mkdir(parents=True)
    (tmp_path / "without" / "torch" / "__init__.py").write_text("raise ImportError('PyTorch was imported')")
    (tmp_path / "bench.py").write_text(BENCH)
    paths = os.pathsep.join([str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(tmp_path / "bench.py"), *folders],
        env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = [line.split("|") for line in run.stdout.splitlines()]
    floats = [(model, contender, float(agreement)) for model, contender, note, agreement, _ in rows
              if "float32" in contender and not note]  # fmt: skip
    assert floats == [
        (folders[0], "onnxruntime float32", 1), (folders[0], "openvino float32", 1),
        (folders[1], "openvino float32", 1), (folders[2], "openvino float32, 85 × 64 px", 1),
    ]  # fmt: skip
    assert [(row[0], row[1]) for row in rows if row[4] == "True"] == [(floats[i][0], floats[i][1]) for i in (0, 2, 3)]


def test_a_folder_that_is_damaged_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(UserError, match="is not a complete exported folder"):
        list(bench(["van_b0", str(tmp_path)]))


def test_a_checkpoint_is_exported_first(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.touch()
    with pytest.raises(UserError, match="best.safetensors is a file: expected a model's name, or a folder, which"):
        list(bench([str(path)]))


def test_unknown_model() -> None:
    with pytest.raises(UserError, match="unknown model 'van_b9'"):
        list(bench(["van_b9"]))


@pytest.mark.parametrize("model", ["van_b0.cifar10", "test_convnext"])
def test_random_networks(tmp_path: Path, model: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    weights = save_weights(random_network(model), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    network, again = random_network(model), load(model, weights)
    assert not network.training and not again.training
    for (name, tensor), other in zip(network.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    tiny = torch.finfo(torch.float32).tiny

    def check(module: torch.nn.Module, _: object, output: torch.Tensor) -> None:
        assert output.isfinite().all()
        assert not ((output != 0) & (output.abs() < tiny)).any(), module  # subnormal numbers are slow

    for module in network.modules():
        module.register_forward_hook(check)
    with torch.inference_mode():
        logits = network(torch.from_numpy(pictures(input_size(network))))
    assert logits.std() == pytest.approx(2, rel=0.01)
    assert (logits[1:] - logits[0]).abs().amax(1).min() > 0.1  # the pictures differ to it


def found(*boxes: tuple[float, float, float, float, float]) -> np.ndarray:
    """What is found in one picture: corners and scores, all of one class."""
    results = np.empty(1, object)
    each = np.array(boxes, np.float32).reshape(-1, 5)
    results[0] = {"boxes": each[:, :4], "labels": np.zeros(len(each), np.int64), "scores": each[:, 4]}
    return results


def test_objects_are_compared() -> None:
    exact, rounded = (Contender("detector", name, SAME, name == "exact") for name in ("exact", "rounded"))
    expected = found((0, 0, 10, 10, 0.9), (20, 0, 40, 40, 0.5))
    other = found((0, 0, 10, 10, 0.9005), (20, 0, 40, 36, 0.5))  # IoU 0.9
    row = timing._check_found(rounded, other, expected)
    assert (row.note, row.agreement, row.difference) == ("", 0.5, pytest.approx(5e-4, rel=1e-3))
    note = "refused: 1 of 2 objects are the same in 1 pictures"
    assert timing._check_found(exact, other, expected).note == note
    assert timing._check_found(exact, found((0, 0, 10, 10, 0.9)), expected).note == note
    assert timing._check_found(exact, found(), found()) == Timing("detector", "exact")
    assert timing._check_found(exact, "not available", expected).note == "not available"


@pytest.mark.parametrize(
    ("short_sides", "long_side", "size"), [((96, 512), 2048, (512, 682)), ((600,), 600, (450, 600))]
)
def test_scenes_of_the_networks_size(short_sides: tuple[int, ...], long_side: int, size: tuple[int, int]) -> None:
    description = Description("detect", "retinanet", "van_b0", ["a"], short_sides=short_sides, long_side=long_side)
    made = timing.scenes(description)
    assert made.shape == (2, *size, 3) and made.dtype == np.uint8


@given(st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)), st.integers(1, 3))
def test_pictures(size: tuple[int, int, int], count: int) -> None:
    images = pictures(size, count)
    assert images.shape == (count, *size)
    assert images.dtype == np.float32
    assert images.flags["C_CONTIGUOUS"]
