"""Contenders that compute something else or nothing, speed-ups from made-up seconds, and two engines in earnest."""

import multiprocessing
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vankit
from vankit.errors import UserError
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
def test_an_exported_folder_is_timed_without_torch(tmp_path: Path) -> None:
    """In no process: one that imports PyTorch finds a package that cannot be imported."""
    torch.manual_seed(0)
    network = vankit.VAN(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=4).eval()
    folders = [
        str(vankit.export(network, out=tmp_path / kind, format=kind, classes=[*"abcd"]).folder)
        for kind in ("onnx", "openvino")
    ]
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
              if contender.endswith("float32") and not note]  # fmt: skip
    assert floats == [
        (folders[0], "onnxruntime float32", 1), (folders[0], "openvino float32", 1),
        (folders[1], "openvino float32", 1),
    ]  # fmt: skip
    assert [(row[0], row[1]) for row in rows if row[4] == "True"] == [(floats[i][0], floats[i][1]) for i in (0, 2)]


def test_a_folder_that_is_damaged_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(UserError, match="is not a complete exported folder"):
        list(bench(["van_b0", str(tmp_path)]))


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


@given(st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)), st.integers(1, 3))
def test_pictures(size: tuple[int, int, int], count: int) -> None:
    images = pictures(size, count)
    assert images.shape == (count, *size)
    assert images.dtype == np.float32
    assert images.flags["C_CONTIGUOUS"]
