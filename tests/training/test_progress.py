"""How a run is shown: the numbers by a clock that only batches move, lines, and a bar in 80 columns."""

import io
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from vankit.training.progress import Bar, Lines, Progress, Status, open_view

BATCHES, SIZE, EPOCHS = 5, 4, 3  # of training; validation has 2 batches of 8 images
STEP, VALIDATION, MEASURE = 10.0, 4.0, 3.0  # seconds of a training step, a validation batch, and all after those


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    """A view that keeps all it is shown."""

    def __init__(self, every: float = 0.0) -> None:
        self.every = every
        self.seen: list[Status] = []
        self.calls: list[str] = []

    def open(self) -> None:
        self.calls.append("open")

    def show(self, status: Status) -> None:
        self.seen.append(status)

    def close(self) -> None:
        self.calls.append("close")


class Timed(LightningModule):
    """A linear layer whose steps take time by the clock; the first one takes much more."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.layer, self.clock = nn.Linear(2, 1), clock
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
        self.clock.now += STEP if self.losses else 60 * STEP
        loss = self.layer(batch[0]).square().mean()
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> None:
        self.clock.now += VALIDATION

    def on_validation_epoch_end(self) -> None:
        self.clock.now += MEASURE

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


class Stream(IterableDataset[Any]):
    """Images, nobody knows how many."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.ones(2), 0)] * self.count)


def images(count: int) -> TensorDataset:
    return TensorDataset(torch.ones(count, 2), torch.zeros(count))


def fit(
    view: Any,
    train_set: Any = None,
    val_set: Any = None,
    clock: Clock | None = None,
    module: LightningModule | None = None,
    state: Path | None = None,
    epochs: int = EPOCHS,
    **options: Any,
) -> Trainer:
    clock = clock or Clock()
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[Progress(view, clock)], **options,
    )  # fmt: skip
    train_loader = DataLoader(train_set or images(BATCHES * SIZE), SIZE)
    val_loader = DataLoader(val_set or images(16), 8)
    trainer.fit(module or Timed(clock), train_loader, val_loader, ckpt_path=state, weights_only=True)
    return trainer


def places(seen: list[Status]) -> list[tuple[int, bool, int, float]]:
    return [(status.epoch, status.validating, status.done, status.total) for status in seen]


ALL = [
    (epoch, *place)
    for epoch in (1, 2, 3)
    for place in [*((False, i, BATCHES) for i in range(1, BATCHES + 1)), (True, 1, 2), (True, 2, 2)]
]
WHOLE = 2 * VALIDATION + MEASURE  # a validation


def test_every_batch_can_be_seen_with_loss_speed_and_the_time_left() -> None:
    view, clock = Recorder(), Clock()
    module = Timed(clock)
    fit(view, clock=clock, module=module)
    assert view.calls == ["open", "close"]
    assert places(view.seen) == ALL and {status.epochs for status in view.seen} == {EPOCHS}
    assert [status.loss for status in view.seen if not status.validating] == pytest.approx(module.losses)

    first, second, *_ = view.seen
    assert math.isnan(first.speed) and math.isnan(first.left)  # the first step is no measure
    assert second.speed == SIZE / STEP
    guessed = STEP / SIZE * 16 / 3
    assert second.left == pytest.approx(13 * STEP + 3 * guessed)
    in_first_validation = view.seen[BATCHES]
    assert in_first_validation.left == pytest.approx(10 * STEP + VALIDATION + 2 * 2 * VALIDATION)
    assert view.seen[BATCHES + 1].speed == 8 / VALIDATION
    later = view.seen[BATCHES + 2]  # the first step of epoch 2: what is left is known to the second
    assert later.left == pytest.approx(9 * STEP + 2 * WHOLE)
    assert view.seen[-1].left == 0


def test_the_time_left_is_right() -> None:
    """From the second epoch on, against what the rest of the run then took."""
    view, clock, ends = Recorder(), Clock(), []
    view.show = lambda status: (view.seen.append(status), ends.append(clock.now))  # type: ignore[method-assign]
    fit(view, clock=clock)
    for status, now in zip(view.seen, ends, strict=True):
        if status.epoch > 1 and not status.validating:
            assert now + status.left == pytest.approx(clock.now)


def test_a_look_every_so_often() -> None:
    view = Recorder(every=25.0)
    fit(view)
    # steps end after 600, 610, … 640 s; then come 11 s of validation
    assert places(view.seen)[:4] == [(1, False, 1, 5), (1, False, 4, 5), (2, False, 1, 5), (2, False, 4, 5)]


def test_accumulated_batches_are_steps_too() -> None:
    view = Recorder()
    fit(view, accumulate_grad_batches=2)
    assert places(view.seen) == ALL


def test_validations_in_some_epochs_only() -> None:
    view = Recorder()
    fit(view, epochs=4, check_val_every_n_epoch=2)
    assert [status.epoch for status in view.seen if status.validating] == [2, 2, 4, 4]
    third = next(status for status in view.seen if status.epoch == 3)
    assert third.left == pytest.approx(9 * STEP + WHOLE)


def test_the_length_of_a_stream_is_known_after_an_epoch() -> None:
    view = Recorder()
    fit(view, Stream(BATCHES * SIZE), Stream(16))
    assert [status.epoch for status in view.seen] == [place[0] for place in ALL]
    totals = {(status.epoch, status.validating): status.total for status in view.seen}
    assert totals == {(e, v): math.inf if v or e == 1 else BATCHES for e in (1, 2, 3) for v in (False, True)}
    assert all(not math.isfinite(status.left) for status in view.seen if status.epoch == 1)
    second = next(status for status in view.seen if status.epoch == 2)
    assert second.left == pytest.approx(9 * STEP + 2 * WHOLE)
    assert second.texts()["batches"] == "1/5" and view.seen[0].texts()["batches"] == "1"


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    fit(Recorder(), epochs=2).save_checkpoint(tmp_path / "state.ckpt")
    view = Recorder()
    fit(view, state=tmp_path / "state.ckpt")
    assert places(view.seen) == [place for place in ALL if place[0] == 3]
    assert view.seen[1].left == pytest.approx(3 * STEP + STEP / SIZE * 16 / 3)


def test_an_error_closes_the_view() -> None:
    class Broken(Timed):
        def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> Tensor:
            raise KeyError

    view = Recorder()
    with pytest.raises(KeyError):
        fit(view, module=Broken(Clock()))
    assert view.calls == ["open", "close"]


LATE = Status(12, 300, False, 350, 10009, 2.3456, 412.4, 5025.4)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (LATE, "epoch 12/300  step 350/10009  loss 2.346  412 images/s  1:23:45 left"),
        (Status(1, 2, False, 1, math.inf, math.nan, math.nan, math.nan), "epoch 1/2  step 1"),
        (Status(1, 2, True, 3, 50, 2.3, 0.44, 3.4), "epoch 1/2  validating 3/50  0.4 images/s  0:00:03 left"),
        (Status(1, 2, True, 3, math.inf, 2.3, 9.96, math.inf), "epoch 1/2  validating 3  10.0 images/s"),
        (
            Status(1, 300, False, 3, 50, 2.3, 1, 275_000),
            "epoch 1/300  step 3/50  loss 2.300  1.0 images/s  3 d 4 h left",
        ),
    ],
)
def test_lines(status: Status, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    Lines().show(status)
    assert capsys.readouterr().out == line + "\n"


@pytest.fixture
def terminal() -> Console:
    return Console(force_terminal=True, width=80, file=io.StringIO(), legacy_windows=False, _environ={})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def frames(text: str) -> list[str]:
    """What stood on the bar's line, one text after the other."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    return [line for line in re.split(r"[\r\n]+", plain) if line.strip()]


def screen(text: str) -> list[str]:
    """The lines that a terminal shows in the end."""
    lines, row, column = [""], 0, 0
    for control, count, kind, letter in re.findall(r"(\x1b\[([0-9;?]*)([a-zA-Z]))|(.)", text, re.S):
        if kind == "A":
            row -= int(count)
        elif kind == "K":
            lines[row] = ""
        elif letter == "\r":
            column = 0
        elif letter == "\n":
            row, column = row + 1, 0
            lines += [""] * (row == len(lines))
        elif not control:
            lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
            column += 1
    return [line for line in lines if line]


@pytest.mark.parametrize(
    "status", [LATE, Status(300, 300, False, 59143, 59143, 12.345, 12345, 86399), Status(1, 9, True, 7, 50, 1, 99, 1)]
)
def test_a_bar_fits_into_80_columns(status: Status, terminal: Console) -> None:
    bar = Bar(terminal)
    bar.open()
    bar.show(status)
    frame = frames(written(terminal))[-1]
    bar.close()
    assert len(frame) == 80
    texts = status.texts()
    expected = ["validation" if status.validating else texts["epoch"], texts["batches"], texts["loss"], texts["speed"]]
    assert re.sub("[━╸╺]+", "|", frame).split(" |")[0] == expected[0]
    for text in (*expected, texts["left"]):
        assert text in frame
    assert len(re.findall("[━╸╺]", frame)) >= 8


def test_what_is_printed_stands_above_the_bar_and_nothing_is_left_of_it(
    terminal: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = sys.stdout
    bar = Bar(terminal)
    bar.open()
    bar.show(LATE)
    print("epoch 12/300  loss 2.3  top-1 50%")
    bar.show(LATE)
    bar.close()
    assert sys.stdout is outside
    print("the end")
    assert capsys.readouterr().out == "the end\n"
    assert any(re.match("epoch 12/300 [━╸╺]", frame) for frame in frames(written(terminal)))
    assert screen(written(terminal)) == ["epoch 12/300  loss 2.3  top-1 50%"]
    assert written(terminal).count("\x1b[?25l") == written(terminal).count("\x1b[?25h") == 1  # the cursor is back


def test_what_is_logged_stands_above_the_bar(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    stderr = Tty()
    monkeypatch.setattr(sys, "stderr", stderr)
    handler = logging.StreamHandler(stderr)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    bar = Bar(terminal)
    bar.open()
    logging.getLogger("vankit").warning("a step is left out")
    bar.close()
    assert "a step is left out\n" in written(terminal) and stderr.getvalue() == ""
    assert handler.stream is stderr


def test_errors_that_go_to_a_file_stay_there(terminal: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    bar = Bar(terminal)
    bar.open()
    print("a warning", file=sys.stderr)
    bar.close()
    assert stderr.getvalue() == "a warning\n"


@pytest.mark.parametrize(
    ("is_terminal", "kind", "view"), [(True, "xterm", Bar), (True, "dumb", Lines), (False, "xterm", Lines)]
)
def test_a_bar_only_on_a_terminal(is_terminal: bool, kind: str, view: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as continuous integration sets it
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    assert isinstance(open_view(), view)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_run_on_a_terminal(tmp_path: Path) -> None:
    import pty

    program = "from vankit.cli import main; from vankit.data import folders; "
    program += "folders._SHAPES_LENGTH = {'train': 96, 'val': 32}; main()"
    words = ["train", "shapes", "--epochs", "2", "--warmup-epochs", "0", "--img-size", "32", "--batch-size", "16"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *words, "--output", "run"]
    streams: dict[str, Any] = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, **streams) as process:
        os.close(theirs)
        content = b"".join(iter(lambda: _read(ours), b""))
    assert process.returncode == 0, content
    shown = frames(content.decode())
    assert max(map(len, shown)) == 80
    bar = re.compile(r"epoch 2/2 [━╸╺]+ \d/6 loss \d\.\d+ [\d.]+ images/s 0:\d\d:\d\d left")
    assert any(map(bar.fullmatch, shown))
    first, second, last, report = screen(content.decode())
    for number, line in ((1, first), (2, second)):
        assert re.fullmatch(rf"epoch {number}/2  loss .*  top-1 .*  top-5 .*  best .* s", line)
    assert last.startswith("best top-1") and report == "curves and mistakes: run/report.html"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""
