"""A run's log: metrics.csv and TensorBoard's events."""

import csv
import errno
import io
import os
import socket
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch import Tensor
from torch.optim import Optimizer

from vankit.errors import UserError, WriteError
from vankit.files import append, replacing, write_text, writing
from vankit.locks import in_place
from vankit.training.loaders import gathered

_EVERY = 20  # updates
_QUALITY = 90  # of JPEG: a PNG of a photograph takes several times as much, and there is one per validation


class Log(Logger):
    """What is logged, as rows of metrics.csv and as events of TensorBoard.

    Every row and every event is in its file whole or not at all. Lightning's own loggers write events in a thread,
    whose error comes late and with a traceback, and empty metrics.csv before they write it anew for a further column.

    Args:
        out: the run's folder; metrics.csv is made anew, unless `go_on` is called, and an event file added.
        events: whether to write them.

    Attributes:
        rows: number of those in the table.

    Raises:
        OSError: a file cannot be written, or is gone; from all methods.
    """

    def __init__(self, out: Path, events: bool = True) -> None:
        super().__init__()
        self.table = out / "metrics.csv"
        self.columns: list[str] = []
        self.rows = 0
        self._has_events = False
        # TensorBoard takes the files of a folder one after the other, by name
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.events = out / "tensorboard" / name if events else None

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """config.json has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a row, and an event.

        Args:
            metrics: figures by name.
            step: updates before this one.
        """
        self._check_folder()
        # events first: they go into a file that exists, and the table may be made anew
        self._add_event(step, [{"tag": name, "simple_value": value} for name, value in metrics.items()])
        self._add_row({**metrics, "step": step})

    @rank_zero_only
    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Add an RGB picture to TensorBoard's."""
        self._check_folder()
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=_QUALITY, subsampling=0)
        size = {"width": picture.width, "height": picture.height, "colorspace": 3}
        self._add_event(step, [{"tag": name, "image": {**size, "encoded_image_string": content.getvalue()}}])

    def _check_folder(self) -> None:
        if not in_place(self.table.parent):
            raise WriteError(f"cannot write {self.table}: {os.strerror(errno.ENOENT)}")

    def _add_event(self, step: int | None, values: list[dict[str, Any]]) -> None:
        if self.events is None:
            return
        if not self._has_events:
            with writing(self.events):
                self.events.parent.mkdir(exist_ok=True)  # in the run's folder, which is there
            with replacing(self.events) as partial, writing(self.events):
                partial.write_bytes(_record(file_version="brain.Event:2"))
            self._has_events = True
        append(self.events, _record(step=step, summary={"value": values}))

    @rank_zero_only
    def go_on(self, rows: int) -> None:
        """Keep the first rows of the table that there is: those of the state that is resumed, which logs what follows.

        Raises:
            ValueError: the table is damaged.
        """
        if not self.table.is_file():
            return
        try:
            with self.table.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or ())
                kept = list(islice(reader, rows))
            if rows or self.columns:
                _check_table(self.columns, kept)
            self.rows, text = len(kept), self._text(kept)
        except (csv.Error, ValueError):
            raise UserError(f"{self.table} is damaged: move it away, and the run begins another") from None
        write_text(self.table, ",".join(self.columns) + "\n" * bool(self.columns) + text)

    def _add_row(self, row: dict[str, Any]) -> None:
        self._write_row(row)
        self.rows += 1

    def _write_row(self, row: dict[str, Any]) -> None:
        if row.keys() <= set(self.columns):
            append(self.table, self._text([row]).encode())
            return
        rows: list[dict[str, Any]] = []
        if self.columns:
            with self.table.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        self.columns = sorted({*self.columns, *row})
        with replacing(self.table, make_folder=False) as partial, writing(self.table):
            partial.write_text(",".join(self.columns) + "\n" + self._text([*rows, row]), encoding="utf-8")

    def _text(self, rows: list[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerows(rows)
        return text.getvalue()


def _check_table(columns: list[str], rows: list[dict[str, Any]]) -> None:
    """Refuse a table that no run has written."""
    whole = {"epoch", "step"} <= set(columns) and len(set(columns)) == len(columns)
    if not whole or any(None in (*row, *row.values()) for row in rows):  # which has too many values, or too few
        raise csv.Error


def _record(**fields: Any) -> bytes:
    """An event as its file has it: with length and checksums."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    record = io.BytesIO()
    RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
    return record.getvalue()


class LogRate(Callback):
    """Logs the learning rate, the largest of all parameter groups; has the first update logged beside every 20th."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        pl_module.log("lr", max(group["lr"] for group in optimizer.param_groups))
        trainer.log_every_n_steps = _EVERY if trainer.global_step else 1  # type: ignore[attr-defined]


class LogEpochLoss(Callback):
    """Logs the mean loss of an epoch's training, over the images of all processes, when the epoch ends. What an epoch
    has summed up is part of the state to resume."""

    def __init__(self) -> None:
        self.sum: Tensor | float = 0.0
        self.images = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs is None or outputs.get("loss") is None:  # all its images were left out
            return
        # Lightning's is the batch's share of an update
        self.sum = self.sum + outputs["loss"] * trainer.accumulate_grad_batches * len(batch[0])
        self.images += len(batch[0])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sums, images = zip(*self.state_dict()["shares"], strict=True)
        if any(images):  # not if a resumed run of an early version only had to validate
            figures = {"epoch": trainer.current_epoch, "train_loss_epoch": sum(sums) / sum(images)}
            for logger in trainer.loggers:
                logger.log_metrics(figures, trainer.global_step - 1)  # Lightning counts from 0
        self.sum, self.images = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """Every process has to call it: it gathers."""
        return {"shares": gathered((float(self.sum), self.images))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sum, self.images = dict(enumerate(state_dict["shares"])).get(int(os.environ.get("RANK", 0)), (0.0, 0))
