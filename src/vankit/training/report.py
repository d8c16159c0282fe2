"""The report of a run: what its validations found, and report.html at its end."""

import logging
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from vankit.models.description import Description
from vankit.models.weights import read_metadata
from vankit.pages import Page
from vankit.reports.classes import ClassFindings
from vankit.reports.findings import Findings
from vankit.reports.log import draw_log, epochs_of, read_log
from vankit.reports.page import finish, write_measures
from vankit.reports.scenes import SceneFindings, scene_findings
from vankit.reports.worst import items_of, picture_of
from vankit.tasks.inference import arrays
from vankit.training.loaders import gathered

logger = logging.getLogger(__name__)

NAME = "report.html"


class KeepFindings(Callback):
    """Keeps what the best of this process's validations found; before there is one, the last.

    Args:
        description: of the network.
        keep: what keeps the best weights; it has to come before this among the callbacks.

    Attributes:
        findings: of all processes, once the run has ended.
        images: that it was trained on.
        epoch: whose they are, from 1.
    """

    def __init__(self, description: Description, keep: Any) -> None:
        self.description, self.keep = description, keep
        self.findings: Findings | None = None
        self.images = self.epoch = 0
        self.of_best = False
        self.current = self._new()

    def _new(self) -> Any:
        if self.description.multi_label:  # whose figures and classes say it all
            return None
        if self.description.task != "classify":
            return scene_findings(self.description)
        assert self.description.preprocessing is not None
        return ClassFindings(self.description.classes, self.description.preprocessing)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.current = self._new()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not outputs or self.current is None:  # all images were left out
            return
        images, targets = batch
        if isinstance(self.current, SceneFindings):
            for i, target in enumerate(targets):  # one at most
                picture = picture_of(_pixels(images[i]))
                self.current.add(batch_idx, picture, arrays(target), outputs["answers"][i], outputs["measures"][i])
            return
        loader = cast(Any, trainer.val_dataloaders)
        items = items_of(loader.dataset, loader.batch_size, batch_idx)
        labels, logits = targets.cpu().numpy(), outputs["answers"].cpu().numpy()
        self.current.add(items, lambda i: _pixels(images[i]), labels, logits)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if isinstance(self.current, SceneFindings):
            self.current.finish(pl_module.evaluator.measure)
        if self.keep.improved or not self.of_best:
            self.findings, self.epoch, self.of_best = self.current, trainer.current_epoch + 1, self.keep.improved

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images = len(cast(Any, trainer.train_dataloader).dataset)
        if self.findings is None:
            return
        self.findings.name_pictures(cast(Any, trainer.val_dataloaders).dataset)
        first, *others = gathered(self.findings)
        for other in others:
            first.merge(other)
        self.findings = first


def _pixels(image: Tensor) -> NDArray[np.float32]:
    return image.cpu().float().numpy()


def write_run_report(out: Path, record: Mapping[str, Any], kept: KeepFindings, seconds: float) -> None:
    """Write report.html of a run that has ended. What the system has against it is a warning: the run is done.

    Args:
        out: the run's folder.
        record: its settings.
        kept: what its validations found.
        seconds: that it took.
    """
    try:
        _write(out, record, kept, seconds)
    except OSError as error:
        logger.warning("the run is complete, but %s could not be written: %s", out / NAME, error)


def _write(out: Path, record: Mapping[str, Any], kept: KeepFindings, seconds: float) -> None:
    weights, log, keep = out / "best.safetensors", read_log(out), kept.keep
    best, data = read_metadata(weights), record["data"]
    page = Page(" ".join(filter(None, (record.get("head"), record["model"], "on", data))))
    validated = "" if kept.findings is None else f", {kept.findings.count:,} to validate with"
    page.facts(
        {
            "task": record["task"],
            "best": f"{keep.measure} {keep.best:.2%}, after epoch {best['epoch']}",
            "images": f"{kept.images:,} to train on{validated}",
            "time": f"{timedelta(seconds=round(seconds))}{' since it was resumed' * keep.resumed}",
            "weights": weights,
        }
    )
    write_measures(page, "Best epoch", best.get("measures", {}))
    page.heading("Curves")
    page.figure(draw_log(log))
    page.table(epochs_of(log))
    if kept.findings is not None and kept.findings.count:
        if not kept.of_best:
            page.text(
                f"What follows is of epoch {kept.epoch}, the last one. The best one, {best['epoch']}, was validated "
                "before the run was resumed; this measures it again:"
            )
            page.command(f"vankit validate {data} --checkpoint {weights} --report {out / 'best.html'}")
        kept.findings.write(page)
    finish(page, record, out / NAME)
