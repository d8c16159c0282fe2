"""How far a run is: a bar on a terminal, elsewhere a line now and then."""

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

_FORWARD = 1 / 3  # of a training step's time: the backward pass takes about twice as long as the forward pass
_RECENT = 100  # batches that the speed is measured over


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        epoch, epochs: from 1.
        validating: whether the epoch is being validated; else it is trained.
        done: batches of this training or validation.
        total: how many it has, infinity if that is unknown.
        loss: of the last step, NaN if there was none.
        speed: images per second, NaN if unknown.
        left: seconds until the whole run ends, NaN or infinity if unknown.
    """

    epoch: int
    epochs: int
    validating: bool
    done: int
    total: float
    loss: float
    speed: float
    left: float

    def texts(self) -> dict[str, str]:
        """The parts that are shown, by name; empty if unknown."""
        return {
            "epoch": f"epoch {self.epoch}/{self.epochs}",
            "part": "validating" if self.validating else "step",
            "batches": f"{self.done}/{self.total:.0f}" if math.isfinite(self.total) else f"{self.done}",
            "loss": "" if self.validating or math.isnan(self.loss) else f"loss {self.loss:.3f}",
            "speed": f"{self.speed:.{0 if self.speed >= 10 else 1}f} images/s" if math.isfinite(self.speed) else "",
            "left": f"{_duration(self.left)} left" if math.isfinite(self.left) else "",
        }


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours < 24 else f"{hours // 24} d {hours % 24} h"


class View(Protocol):
    """Shows a run.

    Attributes:
        every: seconds between two looks.
    """

    every: float

    def open(self) -> None: ...
    def show(self, status: Status) -> None: ...
    def close(self) -> None: ...


class Lines:
    """A line on the standard output."""

    every = 30.0

    def open(self) -> None:
        pass

    def show(self, status: Status) -> None:
        texts = status.texts()
        texts["part"] += " " + texts.pop("batches")
        print("  ".join(filter(None, texts.values())), flush=True)

    def close(self) -> None:
        pass


class Bar:
    """A bar on the last line of a terminal; what is printed or logged meanwhile stands above it.

    Args:
        console: of the terminal.
    """

    every = 0.2

    def __init__(self, console: Console) -> None:
        names = ("batches", "loss", "speed", "left")
        fields = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in names)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), *fields)
        # without a thread of its own, whose lock a process that loads images could be forked with
        self.progress = RichProgress(
            *columns, console=console, auto_refresh=False, transient=True, expand=True,
            redirect_stderr=sys.stderr.isatty(),
        )  # fmt: skip
        self.task = self.progress.add_task("first step", total=None, **dict.fromkeys(names, ""))  # type: ignore[arg-type]
        self.handlers: list[logging.StreamHandler[Any]] = []

    def open(self) -> None:
        stream = sys.stderr
        self.progress.start()  # stands in for the standard streams, which logging knows from before
        handlers = (each for each in logging.getLogger().handlers if isinstance(each, logging.StreamHandler))
        self.handlers = [handler for handler in handlers if handler.stream is stream]
        self._redirect()

    def show(self, status: Status) -> None:
        texts = status.texts()
        description = texts.pop("epoch") if texts.pop("part") == "step" else "validation"
        total = status.total if math.isfinite(status.total) else None
        values = {"description": description, "completed": status.done, "total": total, **texts}
        self.progress.update(self.task, refresh=True, **values)  # type: ignore[arg-type]

    def close(self) -> None:
        self.progress.stop()
        self._redirect()
        self.handlers = []

    def _redirect(self) -> None:
        for handler in self.handlers:
            handler.setStream(sys.stderr)


def open_view() -> View:
    """A bar if the standard output is a terminal that can move its cursor, else lines."""
    console = Console()
    return Bar(console) if sys.stdout.isatty() and console.is_interactive else Lines()


class Pace:
    """How long batches take: the mean of the last hundred. The first of all is left out, as it compiles and allocates.

    Attributes:
        seconds: per batch; NaN if unknown.
        speed: images per second; NaN if unknown.
    """

    def __init__(self) -> None:
        self._batches: deque[tuple[float, int]] = deque(maxlen=_RECENT)
        self._from: float | None = None

    def start(self, now: float) -> None:
        """Before the first batch of several in a row."""
        if self._from is not None:
            self._from = now

    def add(self, now: float, images: int) -> None:
        """After each batch; the time since the last one counts, or since `start`."""
        if self._from is not None:
            self._batches.append((now - self._from, images))
        self._from = now

    @property
    def seconds(self) -> float:
        return self._sum(0) / len(self._batches) if self._batches else math.nan

    @property
    def speed(self) -> float:
        return self._sum(1) / self._sum(0) if self._sum(0) else math.nan

    def _sum(self, i: int) -> float:
        return sum(batch[i] for batch in self._batches)


class Progress(Callback):
    """Shows how far a run is.

    The time left is that of the steps that are left, as long as the last hundred, and of the validations that are left,
    as long as the last one; the first validation is taken to need a third of a training step's time per image. It is
    unknown until a second step is done, and if the number of batches is until an epoch is done.

    Args:
        view: where it is shown.
        clock: seconds.
    """

    def __init__(self, view: View, clock: Callable[[], float] = time.monotonic) -> None:
        self.view, self.clock = view, clock
        self.training, self.validation = Pace(), Pace()
        self.loss = math.nan
        self.batches = math.inf  # of the last epoch
        self.validated = math.nan  # seconds of the last validation
        self.begun = math.nan  # when this validation was
        self.due = 0.0  # when to show the next status

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.due = self.clock() + self.view.every
        self.view.open()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.training.start(self.clock())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.training.add(self.clock(), len(batch[0]))
        if self.clock() >= self.due:
            self.loss = last_loss(trainer, self.loss)
            self._show(trainer, batch_idx + 1)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = self.clock()
        self.validation.start(self.begun)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.validation.add(self.clock(), len(batch[0]) if batch else 0)  # None where all were left out
        if self.clock() >= self.due:
            self._show(trainer, batch_idx + 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = self.clock() - self.begun

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches = trainer.fit_loop.batch_idx + 1

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.view.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.view.close()

    def _show(self, trainer: Trainer, done: int) -> None:
        pace = self.validation if trainer.validating else self.training
        total = self._batches_to_validate(trainer) if trainer.validating else self._batches_to_train(trainer)
        status = Status(
            epoch=trainer.current_epoch + 1,
            epochs=trainer.max_epochs or 0,
            validating=trainer.validating,
            done=done,
            total=total,
            loss=self.loss,
            speed=pace.speed * trainer.world_size,
            left=self._left(trainer, done / total),
        )
        self.view.show(status)
        self.due = self.clock() + self.view.every

    def _batches_to_train(self, trainer: Trainer) -> float:
        return min(trainer.num_training_batches, self.batches)  # shards may have fewer than they say

    def _batches_to_validate(self, trainer: Trainer) -> float:
        return float(sum(trainer.num_val_batches))

    def _left(self, trainer: Trainer, share: float) -> float:
        """Seconds until the run ends, when this share of an epoch's training or validation is done."""
        epoch, epochs, every = trainer.current_epoch + 1, trainer.max_epochs or 0, trainer.check_val_every_n_epoch or 1
        trainings, validations = float(epochs - epoch), float(epochs // every - epoch // every)
        if trainer.validating:
            validations += 1 - share
        else:
            trainings += 1 - share
            validations += epoch % every == 0
        seconds = trainings * self._batches_to_train(trainer) * self.training.seconds if trainings else 0.0
        return seconds + validations * self._seconds_per_validation(trainer, share)

    def _seconds_per_validation(self, trainer: Trainer, share: float) -> float:
        if not math.isnan(self.validated):
            return self.validated
        if trainer.validating:
            return (self.clock() - self.begun) / share if share else math.nan
        images = self._batches_to_validate(trainer) * (getattr(trainer.val_dataloaders, "batch_size", None) or 1)
        return _FORWARD * images / self.training.speed if self.training.speed else math.nan


def last_loss(trainer: Trainer, otherwise: float) -> float:
    """The loss of the last training step, where one was logged."""
    logged = trainer.callback_metrics
    return float(logged.get("train_loss_step", logged.get("train_loss", otherwise)))
