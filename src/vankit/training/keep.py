"""What a run keeps of every epoch: the weights, the best ones, and the state to resume."""

import dataclasses
import errno
import math
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from vankit.errors import WriteError
from vankit.locks import in_place
from vankit.models.description import Description
from vankit.models.weights import read_metadata
from vankit.training.classify import MultiLabelClassifier
from vankit.training.dense import DenseTask
from vankit.training.loaders import share_buffers
from vankit.training.logs import Log
from vankit.training.progress import last_loss
from vankit.training.state import STATE, State, place_of

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class KeepWeights(Callback):
    """Has last.safetensors and resume.ckpt written after the training of every epoch, before anything in its validation
    can fail, and again after the validation, then with best.safetensors if it was the best; prints a line of it.
    `vankit.training.state.StateFile` writes them.

    Args:
        out: folder.
        description: of the network.
        log: whose rows belong to a state.
        resumed: whether the folder holds this run already.
    """

    def __init__(self, out: Path, description: Description, log: Log, resumed: bool = False) -> None:
        self.out = out
        self.description = description
        self.table = log
        self.best = -1.0
        self.measure = ""
        self.loss = math.nan
        self.figures: dict[str, float] = {}  # of this epoch, once it is validated
        self.improved = False
        self.has_state = self.resumed = resumed
        self.has_weights = resumed and (out / "last.safetensors").is_file()
        self.saved = self._place = (0, 0)  # epochs and batches of the next one: of the state on disk, of the one to be
        self.start = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()
        self.figures, self.improved = {}, False
        set_epoch = getattr(getattr(trainer.train_dataloader, "dataset", None), "set_epoch", None)
        if set_epoch is not None:  # shards are shuffled by epoch
            set_epoch(trainer.current_epoch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.loss = last_loss(trainer, self.loss)  # the state's own, where a resumed run only has to validate
        self._save(trainer, trainer.current_epoch, trainer.fit_loop.batch_idx + 1)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        share_buffers(pl_module)  # what is kept is what is measured

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        measures: dict[str, float] = pl_module.measures()  # on every process: it gathers
        self.measure, score = next(iter(measures.items()))
        self.figures = {name: round(value, 5) for name, value in measures.items() if value == value}
        if isinstance(pl_module, DenseTask | MultiLabelClassifier):  # a classifier logs its own
            named = {f"val_{name.replace(' ', '_')}": value for name, value in measures.items() if value == value}
            pl_module.log_dict(named, rank_zero_only=True)
        if isinstance(pl_module, MultiLabelClassifier):
            self.description = dataclasses.replace(self.description, thresholds=pl_module.thresholds())
        # NaN, the figure of images without objects, is no reason to keep the weights of the first epoch
        self.improved = not self.best >= 0 or score > self.best
        if self.improved:
            self.best = score
        if trainer.is_global_zero:
            self._print(trainer, measures)

    def _print(self, trainer: Trainer, measures: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.2%}" for name, value in list(measures.items())[:3])
        print(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  loss {self.loss:.3f}  {shown}  "
            f"best {self.best:.2%}  {time.perf_counter() - self.start:.0f} s",
            flush=True,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, trainer.current_epoch + 1, 0)

    def save_within_epoch(self, trainer: Trainer, batch: int) -> None:
        """Write the state, without weights, as a batch of an epoch begins."""
        self.loss = last_loss(trainer, self.loss)
        self._save(trainer, trainer.current_epoch, batch)

    def _save(self, trainer: Trainer, epoch: int, batch: int) -> None:
        if self.saved == (epoch, batch):  # as a run is resumed there
            return
        if trainer.is_global_zero and not in_place(self.out):
            raise WriteError  # before the file would be in another folder
        self._place = (epoch, batch)
        trainer.save_checkpoint(self.out / STATE, weights_only=False)
        self.saved, self.has_state = self._place, True

    def place(self, trainer: Trainer) -> str:
        """Which epoch and step the state on disk is of."""
        epoch, batch = self.saved
        if batch:
            return f"after epoch {epoch + 1} step {batch}"
        return f"after epoch {epoch} step {trainer.num_training_batches}" if epoch else "before the first step"

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        """Say where the run is, and which weights go with that; the averaged ones are in the state if there are any."""
        epoch, batch = self._place
        loops = checkpoint["loops"]["fit_loop"]
        names: tuple[str, ...] = ("best", "last") if self.improved else ("last",)
        if trainer.validating:
            # what Lightning takes for a validation that was begun: it runs that first on resuming
            loops["epoch_loop.val_loop.batch_progress"]["total"].update(ready=1, started=1)
        elif batch:
            names = ()
            _take_back_batch(loops["epoch_loop.batch_progress"])
        metadata = {**self.description.to_metadata(), "epoch": trainer.current_epoch + 1}
        if self.figures:
            metadata["measures"] = self.figures
        checkpoint["weights"] = {"names": names, "metadata": metadata}
        images = len(trainer.train_dataloader.dataset)  # type: ignore[union-attr]
        checkpoint["place"] = {"epoch": epoch, "batch": batch, "images": images, "processes": trainer.world_size}
        self.has_weights |= bool(names)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: State) -> None:
        self.saved = place_of(checkpoint)
        if "weights" in checkpoint:
            thresholds = checkpoint["weights"]["metadata"].get("thresholds", ())
            self.description = dataclasses.replace(self.description, thresholds=tuple(thresholds))

    def last_good(self) -> str:
        """Where the last weights that were written are."""
        last = self.out / "last.safetensors"
        if not self.has_weights:
            return "no weights have been written yet"
        epoch = read_metadata(last).get("epoch")
        return f"the last good weights are those of epoch {epoch}, {last}, from which --resume continues"

    def what_to_do(self, error: WriteError) -> str:
        """A file of the run could not be written: which, and what is left."""
        if not in_place(self.out):
            found = "another one by now" if self.out.is_dir() else "gone"
            return f"the run's folder {self.out} is {found}: start another run"
        room = "make room" if error.errno in _NO_ROOM else "put that right"
        if (self.out / STATE).is_file():
            return f"{error}; what was written before is whole: {room}, and continue the run with --resume"
        return f"{error}; there is nothing to resume yet: {room}, or choose another folder (--output)"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "measure": self.measure, "loss": self.loss, "rows": self.table.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.measure = state_dict["best"], state_dict["measure"]
        self.loss = state_dict.get("loss", math.nan)  # which early runs do not say


def _take_back_batch(progress: dict[str, Any]) -> None:
    """A batch that has been fetched, and not been trained on, is one that is still to come."""
    for counts in (progress["total"], progress["current"]):
        counts["ready"] = counts["completed"]
    progress["is_last_batch"] = False
