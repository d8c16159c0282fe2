"""What a run keeps of every epoch: the weights, the best ones, and the state to resume."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from vankit.errors import WriteError
from vankit.models.description import Description
from vankit.models.weights import read_metadata, write_tensors
from vankit.training.classify import MultiLabelClassifier
from vankit.training.dense import DenseTask
from vankit.training.progress import last_loss


class KeepWeights(Callback):
    """Writes last.safetensors and resume.ckpt after the training of every epoch, before anything in its validation can
    fail, and again after the validation, then with best.safetensors if it was the best; prints a line of it.

    Args:
        out: folder.
        description: of the network.
        resumed: whether the folder holds this run already.
    """

    def __init__(self, out: Path, description: Description, resumed: bool = False) -> None:
        self.out = out
        self.description = description
        self.best = -1.0
        self.measure = ""
        self.loss = math.nan
        self.figures: dict[str, float] = {}  # of this epoch, once it is validated
        self.improved = False
        self.has_weights = self.resumed = resumed
        self.start = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()
        self.figures, self.improved = {}, False
        set_epoch = getattr(getattr(trainer.train_dataloader, "dataset", None), "set_epoch", None)
        if set_epoch is not None:  # shards are shuffled by epoch
            set_epoch(trainer.current_epoch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.loss = last_loss(trainer, self.loss)  # the state's own, where a resumed run only has to validate
        self._save(trainer)

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
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not self.out.is_dir():
            raise WriteError  # before the file would make a folder of its own
        trainer.save_checkpoint(self.out / "resume.ckpt", weights_only=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write the weights before their state, which holds the averaged ones if there are any."""
        if trainer.validating:
            # what Lightning takes for a validation that was begun: it runs that first on resuming
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]["total"]
            progress.update(ready=1, started=1)
        if trainer.is_global_zero:
            metadata = {**self.description.to_metadata(), "epoch": trainer.current_epoch + 1}
            if self.figures:
                metadata["measures"] = self.figures
            state = {name.removeprefix("model."): tensor for name, tensor in checkpoint["state_dict"].items()}
            for name in ("last", "best") if self.improved else ("last",):
                write_tensors(state, self.out / f"{name}.safetensors", metadata)
        self.has_weights = True

    def last_good(self) -> str:
        """Where the last weights that were written are."""
        last = self.out / "last.safetensors"
        if not self.has_weights:
            return "no weights have been written yet"
        epoch = read_metadata(last).get("epoch")
        return f"the last good weights are those of epoch {epoch}, {last}, from which --resume continues"

    def what_to_do(self, error: WriteError) -> str:
        """A file of the run could not be written: which, and what is left."""
        if not self.out.is_dir():
            return f"the run's folder {self.out} is gone: start another run"
        if (self.out / "resume.ckpt").is_file():
            return f"{error}; what was written before is whole: make room, and continue the run with --resume"
        return f"{error}; there is nothing to resume yet: make room, or choose another folder (--output)"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "measure": self.measure, "loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.measure = state_dict["best"], state_dict["measure"]
        self.loss = state_dict.get("loss", math.nan)  # which early runs do not say
