"""Runs that are killed or stopped and resumed: bit for bit what an unbroken run leaves; damage is said in a line."""

import csv
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from together import forking, train_together

import vankit
from vankit.data.augment import as_tensors
from vankit.data.scenes import ShapeScenes
from vankit.errors import MissingFileError, UserError
from vankit.locks import held
from vankit.models.weights import read_checkpoint, read_metadata
from vankit.training.classify import Classifier
from vankit.training.draws import SeedSteps
from vankit.training.interruption import StopOnSignal, Stopped
from vankit.training.keep import KeepWeights
from vankit.training.recipes import Config, short, short_dense
from vankit.training.run import TrainResult, train
from vankit.training.state import StateFile

pytestmark = pytest.mark.usefixtures("blank_run_reports")

SLOW = pytest.mark.slow
TINY = replace(
    short("van_b0"), epochs=3, warmup_epochs=0, batch_size=4, lr_batch=4, lr=1e-3, img_size=32, workers=0,
)  # fmt: skip
# everything that draws random numbers
RANDOM = replace(
    TINY, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, mixup=0.8, cutmix=1.0, drop_path_rate=0.2,
    drop_rate=0.1, ema_decay=0.9, accumulate=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Jobs in the background are started with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty dark and bright squares to train on, six to measure."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, counts in (("train", (14, 6)), ("val", (3, 3))):
        for name, level, count in zip(("bright", "dark"), (140, 110), counts, strict=True):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + rng.integers(-30, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAN whose state takes a few kilobytes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    vankit.save_checkpoint(
        vankit.VAN(num_classes=2, embed_dims=(4, 6, 8, 10), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 1, 1)), path
    )
    return path


def metrics(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(out: Path, unbroken: Path) -> None:
    """Weights, what is said of them, and every figure."""
    for name in ("last", "best"):
        found, wanted = (read_checkpoint_as_data(path / f"{name}.safetensors") for path in (out, unbroken))
        assert found[1] == wanted[1]
        assert found[0].keys() == wanted[0].keys()
        assert [key for key, tensor in found[0].items() if not torch.equal(tensor, wanted[0][key])] == []
    assert metrics(out) == metrics(unbroken)
    assert not list(out.rglob("*.partial"))


def read_checkpoint_as_data(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors.torch import load_file

    return load_file(path), read_metadata(path)


class Halt(Exception):
    """What a run is broken off with, as if it were killed."""


def halt_at(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, when: Callable[..., bool]) -> None:
    """Break a run off before a call of a method."""
    plain = getattr(owner, method)

    def broken(*given: Any, **options: Any) -> Any:
        if when(*given):
            raise Halt
        return plain(*given, **options)

    monkeypatch.setattr(owner, method, broken)


@pytest.fixture(scope="module")
def unbroken(data: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(data, "van_b0", RANDOM, tmp_path_factory.mktemp("unbroken") / "run", small).last.parent


def stopped_after(step: int, signum: int = signal.SIGINT) -> Any:
    """Send this process a signal once it has trained on so many batches; before the first step of the run if 0."""

    class Sent(SeedSteps):
        count = 0

        def on_train_batch_start(self, *given: Any) -> None:
            if Sent.count == step:
                signal.raise_signal(signum)
            Sent.count += 1
            super().on_train_batch_start(*given)

    return Sent


@pytest.mark.parametrize("step", [pytest.param(2, marks=SLOW), pytest.param(5, marks=SLOW), 6])
def test_a_run_that_is_stopped_within_an_epoch_goes_on_there(
    step: int, data: Path, small: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Batches of an update are finished first, so after 5 batches it is 6 that are done: 5 are an epoch."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr("vankit.training.run.SeedSteps", stopped_after(step))
        with pytest.raises(KeyboardInterrupt):
            train(data, "van_b0", RANDOM, tmp_path, small)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    place = {2: "epoch 1 step 2", 5: "epoch 1 step 5", 6: "epoch 2 step 2"}[step]
    assert f"stopped after {place}; continue with --resume\n" in capsys.readouterr().out
    train(data, "van_b0", RANDOM, tmp_path, small, resume=True)
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGINT, marks=SLOW), signal.SIGTERM])
def test_a_run_that_is_stopped_in_a_validation_stops_at_once(
    signum: int, data: Path, small: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    seen = []

    def validate(self: Classifier, *given: Any) -> Any:
        seen.append(self.trainer.current_epoch)
        if seen == [0, 0, 1]:  # of two batches each
            signal.raise_signal(signum)
        return step(self, *given)

    step = Classifier.validation_step
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "validation_step", validate)
        with pytest.raises((KeyboardInterrupt, SystemExit)) as end:
            train(data, "van_b0", RANDOM, tmp_path, small)
    assert seen == [0, 0, 1]
    assert end.type is KeyboardInterrupt if signum == signal.SIGINT else end.value.code == 143  # type: ignore[attr-defined]
    assert "stopped after epoch 2 step 5; continue with --resume\n" in capsys.readouterr().out
    train(data, "van_b0", RANDOM, tmp_path, small, resume=True)
    assert_same_run(tmp_path, unbroken)


def test_a_run_that_ended_before_its_first_state_begins_again(
    data: Path, small: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """From the same start, whether or not that is named again, so that whoever restarts it may always say --resume."""
    for resume in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr("vankit.training.run.SeedSteps", stopped_after(0))
            with pytest.raises(KeyboardInterrupt):
                train(
                    data,
                    "van_b0",
                    RANDOM if resume else replace(RANDOM, pretrained=True),
                    tmp_path,
                    small,
                    resume=resume,
                )
        assert "stopped before the first step; start again\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="was begun with --optimizer adamw, and its optimiser keeps that"):
        train(data, "van_b0", replace(RANDOM, optimizer="sgd"), tmp_path, resume=True)
    train(data, "van_b0", RANDOM, tmp_path, resume=True)
    assert f"no epoch of the run in {tmp_path} was finished: started from the beginning\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["pretrained"] is True
    assert_same_run(tmp_path, unbroken)


@pytest.mark.parametrize("found", [None, '{"architectures": ["VanForImageClassification"]}'])
def test_a_folder_that_holds_no_run_is_not_resumed(found: str | None, data: Path, tmp_path: Path) -> None:
    if found:
        (tmp_path / "config.json").write_text(found)
    with pytest.raises(MissingFileError, match=f"nothing to resume in {tmp_path}: expected .*; leave out --resume to"):
        train(data, "van_b0", TINY, tmp_path, resume=True)


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr("vankit.training.interruption.time.monotonic", lambda: now[0])
    stop = StopOnSignal(None)

    def several() -> None:
        with stop.listening():
            signal.raise_signal(signal.SIGINT)
            now[0] += 0.5
            signal.raise_signal(signal.SIGTERM)  # of one who passes on what the group has got
            assert stop.signum == signal.SIGINT
            now[0] += 1
            signal.raise_signal(signal.SIGINT)
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        several()


def test_a_signal_as_a_run_ends_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    stop = StopOnSignal(None)
    with pytest.raises(Stopped) as error, stop.listening():
        signal.raise_signal(signal.SIGTERM)
    assert error.value.signum == signal.SIGTERM
    assert capsys.readouterr().out == "stopped as it ended; --resume finishes it\n"


def test_a_signal_that_is_ignored_stays_ignored_and_threads_have_none(data: Path, small: Path, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = StopOnSignal(None)
        with stop.listening():
            signal.raise_signal(signal.SIGINT)
        assert not stop.signum and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    given = (data, "van_b0", replace(TINY, epochs=1), tmp_path, small)
    thread = threading.Thread(target=train, args=given)
    thread.start()
    thread.join()
    assert (tmp_path / "report.html").is_file() and signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(
    ("write", "written"),
    [
        (4, True),
        *(pytest.param(*case, marks=SLOW) for case in ((1, False), (2, False), (5, True), (6, False), (6, True))),
    ],
)
def test_a_kill_beside_the_writing_of_a_state_loses_and_repeats_nothing(
    write: int, written: bool, data: Path, small: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a state is written, what it is of has been logged; after, the weights may be those of the one before."""
    count = 0

    def save(self: StateFile, checkpoint: Any, path: Path, **options: Any) -> None:
        nonlocal count
        count += 1
        before = {file: file.read_bytes() for file in tmp_path.glob("*.safetensors")}
        if count == write and not written:
            raise Halt
        plain(self, checkpoint, path, **options)
        if count == write:
            for file in tmp_path.glob("*.safetensors"):
                file.write_bytes(before[file]) if file in before else file.unlink()
            raise Halt

    plain = StateFile.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "save_checkpoint", save)
        with pytest.raises(Halt):
            train(data, "van_b0", RANDOM, tmp_path, small)
    (tmp_path / f".{32 * 'a'}.partial").write_text("left over")
    train(data, "van_b0", RANDOM, tmp_path, small, resume=write + written > 1)
    assert_same_run(tmp_path, unbroken)


def contents(out: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}


@pytest.fixture
def finished(unbroken: Path, tmp_path: Path) -> Path:
    return shutil.copytree(unbroken, tmp_path / "finished")


def test_a_finished_run_is_left_as_it_is(
    data: Path, small: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(finished)
    for epochs in (3, 2):
        result = train(data, "van_b0", replace(RANDOM, epochs=epochs), finished, small, resume=True)
        assert contents(finished) == before
        assert (
            f"the run in {finished} is finished, after 3 epochs; more --epochs continue it" in capsys.readouterr().out
        )
    best = read_metadata(finished / "best.safetensors")
    assert result == TrainResult(
        pytest.approx(best["measures"]["top-1"], abs=1e-5), "top-1", result.best, result.last, 0
    )
    train(data, "van_b0", replace(RANDOM, epochs=4), finished, small, resume=True)
    assert [row["epoch"] for row in metrics(finished) if row["val_top1"]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "tampered"])
def test_damaged_weights_are_written_anew_from_the_state(
    damage: str, data: Path, small: Path, unbroken: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = finished / "last.safetensors"
    content = path.read_bytes()
    damaged = {"empty": b"", "truncated": content[:1000], "tampered": content[:-4] + b"\0\0\0\1"}
    path.unlink() if damage == "missing" else path.write_bytes(damaged[damage])
    train(data, "van_b0", RANDOM, finished, small, resume=True)
    assert f"{path} is missing, damaged or not of the state to resume: written anew from that" in caplog.text
    assert_same_run(finished, unbroken)


@pytest.mark.parametrize("damage", ["empty", "missing", "tampered"])
def test_the_best_weights_of_an_earlier_epoch_cannot_be_written_anew(
    damage: str, data: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """So they are never said to be what they are not."""
    figures = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(Classifier, "measures", lambda self: {"top-1": next(figures)})
    result = train(data, "van_b0", replace(TINY, epochs=2), tmp_path, small)
    content = bytearray(result.best.read_bytes())
    content[len(content) // 2] ^= 1
    result.best.unlink() if damage == "missing" else result.best.write_bytes(content if damage == "tampered" else b"")
    says = f"the run in {tmp_path} is finished, and its best weights are lost: use those of its last epoch, "
    with pytest.raises(UserError, match=f"{says}{result.last}, or continue it with more --epochs"):
        train(data, "van_b0", replace(TINY, epochs=2), tmp_path, small, resume=True)
    caplog.clear()
    result = train(data, "van_b0", TINY, tmp_path, small, resume=True)
    says = (
        f"{result.best} is missing, damaged or not what the run wrote: the best of the epochs to come takes its place"
    )
    assert says in caplog.text
    assert result.score == 0.7 and read_metadata(result.best)["epoch"] == 3


def test_a_state_knows_the_weights_of_all_epochs(
    data: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Across resumptions, and within an epoch, when it is written with none. What is sound is left as it is."""
    figures = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(Classifier, "measures", lambda self: {"top-1": next(figures)})
    train(data, "van_b0", replace(TINY, epochs=1), tmp_path, small)
    with monkeypatch.context() as patch:
        patch.setattr("vankit.training.run.SeedSteps", stopped_after(7))
        with pytest.raises(KeyboardInterrupt):
            train(data, "van_b0", TINY, tmp_path, small, resume=True)
    state = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    files = {name: tmp_path / f"{name}.safetensors" for name in ("best", "last")}
    assert state["place"] == {"epoch": 2, "batch": 2, "images": 20, "processes": 1} and not state["weights"]["names"]
    assert state["weights"]["sha256"] == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }
    caplog.clear()
    result = train(data, "van_b0", TINY, tmp_path, small, resume=True)
    assert (result.score, read_metadata(result.best)["epoch"]) == (0.9, 1) and "missing" not in caplog.text


class Mischief:
    """A pickle that would run code."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def tampered(path: Path) -> None:
    """Change a bit of the largest tensor."""
    with zipfile.ZipFile(path) as file:
        largest = file.read(max(file.infolist(), key=lambda info: info.file_size))
    content = bytearray(path.read_bytes())
    content[content.index(largest) + len(largest) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_state_is_answered_in_a_line_and_runs_nothing(data: Path, small: Path, finished: Path) -> None:
    state, proof = finished / "resume.ckpt", finished / "proof"
    given = (data, "van_b0", replace(RANDOM, epochs=4), finished, small)
    anew = (
        rf"choose another folder \(--output\) to start anew, there from its last weights with --checkpoint {finished}"
    )
    whole, damage = state.read_bytes(), f"{state} is damaged: {anew}/last.safetensors$"
    torch.save({**torch.load(state, weights_only=True), "mischief": Mischief(proof)}, state)
    cases: list[tuple[bytes, str]] = [
        (b"", damage),
        (whole[:1000], damage),
        (whole[: len(whole) // 2], damage),
        (pickle.dumps(Mischief(proof)), damage),
        (state.read_bytes(), f"{state} holds more than data, of which nothing was run"),
    ]
    tampered(state)
    cases.append((state.read_bytes(), damage))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02K\x05Q.")
        file.writestr("archive/version", b"3")
    cases.append((content.getvalue(), f"{state} "))
    sound = torch.load(io.BytesIO(whole), weights_only=True)
    outside = {**sound, "weights": {**sound["weights"], "names": ("../victim",)}}
    for other in ({"a": 1}, {**sound, "callbacks": 3}, [1], outside, {**sound, "weights": {}}, {**sound, "weights": 3}):
        torch.save(other, state)
        cases.append((state.read_bytes(), f"{state} is not the state of a run"))
    for content, says in cases:
        state.write_bytes(content)
        before = contents(finished)
        with pytest.raises(UserError, match=says) as error:
            train(*given, resume=True)
        assert "\n" not in str(error.value) and contents(finished) == before
    (finished / "last.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"is not the state of a run: choose another folder \(--output\) to start anew$"
    ):
        train(*given, resume=True)
    assert not proof.exists() and not (finished.parent / "victim.safetensors").exists()


def test_a_state_of_another_network_is_refused(data: Path, small: Path, finished: Path) -> None:
    state = torch.load(finished / "resume.ckpt", weights_only=True)
    del state["state_dict"]["model.head.fc.bias"]
    torch.save(state, finished / "resume.ckpt")
    with pytest.raises(UserError, match=f"the state in {finished} is damaged, or of another network"):
        train(data, "van_b0", RANDOM, finished, small, resume=True)


@pytest.mark.parametrize(
    "damage", [pytest.param("missing", marks=SLOW), "truncated", pytest.param("tampered", marks=SLOW)]
)
def test_a_damaged_state_falls_back_to_the_one_before(
    damage: str, data: Path, small: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        halt_at(patch, KeepWeights, "on_train_epoch_start", lambda _, trainer, __: trainer.current_epoch == 2)
        with pytest.raises(Halt):
            train(data, "van_b0", RANDOM, tmp_path, small)
    state, previous = tmp_path / "resume.ckpt", tmp_path / "resume-previous.ckpt"
    if damage == "missing":
        state.unlink()
    elif damage == "truncated":
        os.truncate(state, 1000)
    else:
        tampered(state)
    with monkeypatch.context() as patch:  # nothing is lost if that run is killed, too, at its first state
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(Halt))
        patch.setattr("vankit.training.run._prepare", lambda *_: None)
        with pytest.raises(Halt):
            train(data, "van_b0", RANDOM, tmp_path, small, resume=True)
    train(data, "van_b0", RANDOM, tmp_path, small, resume=True)
    says = f"{state} is {'missing' if damage == 'missing' else 'damaged'}: the run goes on from the state before it, "
    assert caplog.text.count(f"{says}{previous}") == 2
    assert_same_run(tmp_path, unbroken)
    assert not previous.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is missing, which says what the run is: choose another folder"),
        ("", "is not JSON: .*; it says what the run is: choose another folder"),
        ("[]", "is JSON, but not an object.*; it says what the run is: choose another folder"),
        ({"batch_size": "x"}, "is damaged, batch_size is 'x': choose"),
        ({"lr": [1]}, r"is damaged, lr is \[1\]: choose"),
        ({"ema_decay": None}, "is damaged, ema_decay is None: choose"),
        ({"classes": 5}, "is damaged, classes is 5: choose another folder"),
        ({"classes": [1, 2]}, r"is damaged, classes is \[1, 2\]: choose"),
        ({"sizes": {"depth": [1]}}, r"is damaged, sizes is \{'depth': \[1\]\}: choose"),
        ({"sizes": {"depths": "a"}}, r"is damaged, sizes is \{'depths': 'a'\}: choose"),
        ({"held_out": 3}, "is damaged, held_out is 3: choose"),
        ({"held_out": {"share": 1}}, "is damaged, held_out is .*: choose"),
        ({"thresholds": 0.5}, "is damaged, thresholds is 0.5: choose"),
        ({"logger_run": 7}, "is damaged, logger_run is 7: choose"),
    ],
)
def test_a_damaged_record_is_answered_in_a_line(text: Any, says: str, data: Path, small: Path, finished: Path) -> None:
    path = finished / "config.json"
    if isinstance(text, dict):
        text = json.dumps({**json.loads(path.read_text()), **text})
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=f"{path} {says}") as error:
        train(data, "van_b0", RANDOM, finished, small, resume=True)
    assert "\n" not in str(error.value)


def test_other_settings_are_said_or_refused(
    data: Path, small: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    record = json.loads((finished / "config.json").read_text())
    assert (record["checkpoint"], record["weights"], record["skip_bad"]) == (str(small), None, False)
    with pytest.raises(UserError, match=f"was begun from {small}: leave out --checkpoint, or choose another folder"):
        train(data, "van_b0", RANDOM, finished, finished / "best.safetensors", resume=True)
    changed = replace(RANDOM, epochs=4, lr=0.002, workers=1, batch_size=2)
    train(data, "van_b0", changed, finished, resume=True)
    assert f"{finished} goes on with other settings than before: --epochs 4 (before 3), --lr 0.002 (bef" in caplog.text
    assert "--batch-size 2 (before 4)\n" in caplog.text
    after = json.loads((finished / "config.json").read_text())
    assert after == {**record, "epochs": 4, "lr": 0.002, "workers": 1, "batch_size": 2}
    with monkeypatch.context() as patch:
        patch.setattr("vankit.training.run.SeedSteps", stopped_after(2))
        with pytest.raises(KeyboardInterrupt):
            train(data, "van_b0", TINY, tmp_path / "run", small)
    for name, value in (("batch_size", 2), ("seed", 1), ("accumulate", 2), ("balance", "sampling")):
        option = f"--{name.replace('_', '-')}"
        says = f"was stopped within epoch 1, whose batches would be others with {option} {value}"
        with pytest.raises(UserError, match=says):
            train(data, "van_b0", replace(TINY, **{name: value}), tmp_path / "run", small, resume=True)


def test_one_run_at_a_time_has_a_folder(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with held(tmp_path / "run"):
        for state in ("none", "resume.ckpt"):  # before its first state is written, and after
            (tmp_path / "run" / state).touch()
            for resume in (False, True):
                with pytest.raises(UserError, match=f"run is being written by process {os.getpid()} on"):
                    train(data, "van_b0", TINY, tmp_path / "run", resume=resume)
    with pytest.raises(UserError, match=r"run already holds a run: choose another folder \(--output\), or continue it"):
        train(data, "van_b0", TINY, tmp_path / "run")


def test_files_of_a_run_have_the_modes_that_are_asked_for(
    data: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And none takes the way through the folder for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "full"))
    before = os.umask(0o027)
    try:
        train(data, "van_b0", replace(TINY, epochs=1), tmp_path / "run", small)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) == 7 and {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


def test_runs_of_earlier_versions_go_on(data: Path, small: Path, finished: Path) -> None:
    """Their state says less, and their log is another one."""
    state = torch.load(finished / "resume.ckpt", weights_only=True)
    del state["weights"], state["place"], state["callbacks"]["LogEpochLoss"], state["callbacks"]["KeepWeights"]["rows"]
    torch.save(state, finished / "resume.ckpt")
    record = json.loads((finished / "config.json").read_text())
    for name in ("checkpoint", "weights", "skip_bad", "tolerant", "allow_outside"):
        del record[name]
    (finished / "config.json").write_text(json.dumps(record))
    result = train(data, "van_b0", replace(RANDOM, epochs=4), finished, small, resume=True)
    assert read_metadata(result.last)["epoch"] == 4
    assert [row["epoch"] for row in metrics(finished) if row["val_top1"]] == ["3"]
    with (finished / "metrics-1.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file) if row["val_top1"]] == ["0", "1", "2"]


@pytest.mark.slow
def test_the_number_of_processes_that_load_images_changes_nothing(data: Path, small: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        train(data, "van_b0", replace(RANDOM, epochs=1, workers=workers), tmp_path / str(workers), small)
    assert_same_run(tmp_path / "2", tmp_path / "0")


@pytest.mark.slow
def test_an_epoch_of_shards_gets_the_rest_of_its_steps(
    data: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another draw: their order is timm's."""
    pytest.importorskip("webdataset")
    shards = tmp_path / "shards"
    shards.mkdir()
    splits = {}
    for split in ("train", "val"):
        pictures = sorted((data / split).glob("*/*.png"))
        with tarfile.open(shards / f"{split}.tar", "w") as tar:
            for number, path in enumerate(pictures):
                for suffix, content in (("png", path.read_bytes()), ("cls", b"%d" % (path.parent.name == "dark"))):
                    info = tarfile.TarInfo(f"{number}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        count = {"num_samples": len(pictures), "shard_lengths": [len(pictures)]}
        splits[split] = {"name": split, "filenames": [f"{split}.tar"], **count}
    (shards / "_info.json").write_text(json.dumps({"splits": splits}))
    (shards / "classes.txt").write_text("bright\ndark")
    given = (f"wds/{shards}", "van_b0", TINY, tmp_path / "run", small)
    with monkeypatch.context() as patch:
        patch.setattr("vankit.training.run.SeedSteps", stopped_after(7))  # an epoch has five
        with pytest.raises(KeyboardInterrupt):
            train(*given)
    result = train(*given, resume=True)
    assert read_checkpoint(result.last).state_dict["stage1.patch_embed.norm.num_batches_tracked"] == 15
    assert [row["step"] for row in metrics(tmp_path / "run") if row["val_top1"]] == ["4", "9", "14"]


def train_alone(given: tuple[Any, ...], options: dict[str, Any]) -> None:
    """A run in a process of its own."""
    multiprocessing.set_start_method("fork", force=True)  # of those that load images, as it is on Linux
    train(*given, **options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", ["classify", "detect"])
def test_killed_again_and_again_a_run_is_the_unbroken_one(
    task: str, workers: int, data: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL again and again, each at any moment of an epoch that follows a state that was written since the last."""
    epochs = 8
    config: Config = replace(RANDOM, epochs=epochs, workers=workers, balance="sampling" if workers else "none")
    pair: Any = data
    options: dict[str, Any] = {"checkpoint": small}
    if task == "detect":
        config = replace(
            short_dense("van_b0"), epochs=epochs, batch_size=2, workers=workers, short_sides=(32, 48), long_side=64,
            color=True, drop_path_rate=0.2, warmup_iterations=3, optimizer="sgd",
        )  # fmt: skip
        scenes = [
            ShapeScenes("detect", split, count, 48, transform=as_tensors) for split, count in (("train", 6), ("val", 2))
        ]
        pair, options = tuple(scenes), {"task": "detect", "head": "retinanet" if workers else "faster_rcnn"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # how many there are may decide on the last bits
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    context = forking()

    def start(out: Path) -> Any:
        """A process, once it has written a state."""
        state = out / "resume.ckpt"
        before = state.stat().st_ino if state.is_file() else None
        resume = {"resume": before is not None}
        process = context.Process(target=train_alone, args=((pair, "van_b0", config, out), {**options, **resume}))
        process.start()
        while process.is_alive() and (not state.is_file() or state.stat().st_ino == before):
            time.sleep(0.005)
        return process

    whole, began = start(tmp_path / "unbroken"), time.monotonic()
    whole.join()
    epoch = (time.monotonic() - began) / (epochs - 0.5)
    out, kills, rng = tmp_path / "run", 0, random.Random()
    while kills < (5 if task == "classify" else 3):  # a start takes seconds
        process = start(out)
        process.join(rng.uniform(0, epoch))
        assert process.is_alive()
        process.kill()
        process.join()
        kills += 1
    last = start(out)
    last.join()
    assert (whole.exitcode, last.exitcode) == (0, 0)
    assert_same_run(out, tmp_path / "unbroken")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "unbroken").iterdir()}


@pytest.mark.slow
def test_two_processes_stop_and_go_on_together(data: Path, small: Path, tmp_path: Path) -> None:
    """torchrun hands SIGTERM on to both."""
    command = [
        "-m", "vankit", "train", str(data), "--recipe", "short", "--checkpoint", str(small), "--epochs", "3",
        "--warmup-epochs", "0", "--batch-size", "2", "--img-size", "32", "--workers", "0", "--ema-decay", "0.9",
        "--mixup", "0.5", "--drop-path-rate", "0.2", "--output",
    ]  # fmt: skip
    done = train_together(*command, str(tmp_path / "unbroken"))
    assert done.returncode == 0, done.stderr
    out = tmp_path / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [*torchrun, *command, str(out)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while not (out / "best.safetensors").is_file() and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=300)[0]
    assert process.returncode != 0 and said.count("stopped after epoch") == 1, said
    assert "vankit.training" not in said  # no traceback but torchrun's
    done = train_together(*command, str(out), "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_run(out, tmp_path / "unbroken")
