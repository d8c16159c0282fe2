"""Validation: a trained network's measures on a labelled image set, for every task."""

import json
import logging
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader, Dataset

from vankit.data.augment import collate, evaluation_transform
from vankit.data.folders import class_index, open_dataset
from vankit.data.held_out import HeldOut, announce
from vankit.data.multilabel import check_kind
from vankit.data.reading import Reader, Reading
from vankit.data.scenes import open_scenes
from vankit.deploy.opening import Network, open_network
from vankit.errors import UserError
from vankit.files import check_picture, save_figure, write_text
from vankit.heads.build import HEADS
from vankit.models.description import Weights
from vankit.prediction.labels import Predictor
from vankit.prediction.scenes import DensePredictor
from vankit.tasks.dense import EVALUATORS
from vankit.tasks.multilabel import MultiLabelMeasure, MultiLabelReport
from vankit.tasks.segment import Test

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassificationReport:
    """Measures on a labelled image set.

    Attributes:
        classes: names of the data's classes.
        confusion: (classes, classes) counts; rows are true classes, columns predicted ones. A network with further
            classes has one more column, for all of those.
        top5_correct: images whose class is among the network's five best; None if it has no more than five.
        skipped: images that could not be read, as (path, reason).
    """

    classes: list[str]
    confusion: NDArray[np.int64]
    top5_correct: int | None
    skipped: list[tuple[str, str]]

    @property
    def count(self) -> int:
        """Images measured."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Part of the images whose best class is right, 0 to 1."""
        return float(np.trace(self.confusion) / self.count)

    @property
    def top5(self) -> float | None:
        """Part of the images whose class is among the five best, 0 to 1; None if the network has no more classes."""
        return None if self.top5_correct is None else self.top5_correct / self.count

    def per_class(self) -> list[dict[str, Any]]:
        """Per class: name, images, recall (accuracy within the class) and precision, 0 to 1; None without images."""
        hits = np.diag(self.confusion)
        rows = []
        for i, name in enumerate(self.classes):
            images, predicted = int(self.confusion[i].sum()), int(self.confusion[:, i].sum())
            recall = float(hits[i] / images) if images else None
            precision = float(hits[i] / predicted) if predicted else None
            rows.append({"class": name, "images": images, "recall": recall, "precision": precision})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "images": self.count,
            "classes": self.per_class(),
            "confusion": self.confusion.tolist(),
            "skipped": [{"image": path, "error": reason} for path, reason in self.skipped],
        }

    def plot(self, path: str | PathLike[str]) -> None:
        """Write the confusion matrix as a picture, rows normalised to their class's images."""
        from matplotlib.figure import Figure

        rows = self.confusion[:, : len(self.classes)]
        share = rows / np.maximum(self.confusion.sum(1, keepdims=True), 1)
        n = len(self.classes)
        side = min(4 + 0.35 * n, 24)
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axes = figure.subplots()
        picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(picture, label="part of the true class", shrink=0.8)
        axes.set(xlabel="predicted", ylabel="true", title=f"top-1 {self.top1:.1%} of {self.count:,} images")
        if n <= 60:
            axes.set_xticks(range(n), self.classes, rotation=90)
            axes.set_yticks(range(n), self.classes)
        if n <= 20:
            for i, j in np.ndindex(n, n):
                colour = "white" if share[i, j] > 0.5 else "black"
                axes.text(j, i, f"{rows[i, j]}", ha="center", va="center", color=colour, fontsize=8)
        save_figure(figure, path, dpi=120)


@dataclass(frozen=True)
class DenseReport:
    """Measures of a detector or segmenter on a set of annotated scenes.

    Attributes:
        task: detect, segment or panoptic.
        head: the head's name.
        count: images measured.
        measures: figures by name, 0 to 1, NaN where the images say nothing: COCO's box AP and mask AP (AP, AP50, AP75,
            APs, APm, APl); mIoU, aAcc, mAcc; or PQ, SQ, RQ of all, things and stuff.
        per_class: a dict per class: its name as `class`, and its figures.
        skipped: what was left out, as (file, reason).
    """

    task: str
    head: str
    count: int
    measures: dict[str, float]
    per_class: list[dict[str, Any]]
    skipped: list[tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values, None for NaN."""
        return {
            "task": self.task,
            "head": self.head,
            "images": self.count,
            "measures": _plain(self.measures),
            "classes": [_plain(row) for row in self.per_class],
            "skipped": [{"file": path, "error": reason} for path, reason in self.skipped],
        }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in row.items()}


def validate(
    data: str | PathLike[str],
    model: str | PathLike[str] | nn.Module | Network | None = None,
    checkpoint: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    picture: str | PathLike[str] | None = None,
    *,
    batch_size: int = 64,
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    workers: int = 2,
    seed: int = 0,
    split: str = "val",
    test: Test = "single",
    skip_bad: bool = False,
    tolerant: bool = False,
    allow_outside: bool = False,
    weights: Weights | None = None,
) -> Any:
    """Measure a network on a labelled image set: a classifier, or the detector or segmenter that `checkpoint` holds.

    Data and classifier are matched by class name (also by WordNet id for ImageNet's); a network without names is
    matched by order where the counts agree. An image of a folder that cannot be read is left out and reported.
    A detector's or segmenter's classes have to be the data's, in the same order. Where the data has no split `val`, the
    images that training held out are measured, if the checkpoint names them, or else a tenth of the split `train`.

    Args:
        data: see `vankit.data.folders.open_dataset`; for a detector or segmenter `vankit.data.scenes.open_scenes`.
        model, checkpoint: see `vankit.Predictor`; for a detector or segmenter the checkpoint alone.
        output: JSON file for the report.
        picture: image file for a classifier's confusion matrix, such as confusion.png; not of a multi-label one.
        batch_size, device, engine, precision: see `vankit.Predictor`; detectors and segmenters take an image at a time.
        workers: processes that load images.
        seed: of generated `shapes`; the one they were trained with.
        split: train, val, or the name of a folder such as test.
        test: for semantic segmentation, see `vankit.tasks.segment.segment_logits`.
        skip_bad, tolerant, allow_outside: what to do about images and annotations that cannot be used as they are, see
            `vankit.data.reading.Reading`; a classifier's images that cannot be read are left out in any case.
        weights: see `vankit.Predictor`.

    Returns:
        A `ClassificationReport`, a `MultiLabelReport` for a multi-label classifier, or a `DenseReport` for a detector
        or segmenter.

    Raises:
        FileNotFoundError, ValueError: data or weights cannot be used, their classes do not match, or the network's
            output is not finite.
    """
    check_picture(picture)
    if workers < 0:
        raise UserError(f"workers is {workers}, expected 0 or more")
    reading = Reading(skip_bad, tolerant, allow_outside)
    opened = open_network(model, checkpoint, weights=weights)
    if picture is not None and (opened.dense or opened.description.multi_label):
        raise UserError(f"{opened.source} has no confusion matrix: leave out picture (--plot)")
    if opened.dense:
        dense = DensePredictor(opened, test=test, engine=engine, precision=precision, device=device)
        report = _measure_scenes(data, dense, split, workers, seed, reading)
        _write(report, output)
        return report
    if test != "single" or allow_outside:
        raise UserError("test and allow_outside are only for detectors and segmenters: pass the checkpoint of one")
    predictor = Predictor(opened, engine=engine, precision=precision, batch_size=batch_size, device=device)
    held_out = opened.description.held_out or HeldOut()
    reading = replace(reading, skip_bad=True)
    return _validate_classifier(data, predictor, output, picture, split, batch_size, workers, seed, held_out, reading)


def _validate_classifier(
    data: str | PathLike[str],
    predictor: Predictor,
    output: str | PathLike[str] | None,
    picture: str | PathLike[str] | None,
    split: str,
    batch_size: int,
    workers: int,
    seed: int,
    held_out: HeldOut,
    reading: Reading,
) -> ClassificationReport | MultiLabelReport:
    side = predictor.preprocessing.input_size[-1]
    dataset = open_dataset(data, split, predictor.preprocessing, side, seed, held_out=held_out, reading=reading)
    announce(dataset, data)
    check_kind(dataset, predictor.description.multi_label, data)
    names: list[str] = list(dataset.classes)
    index = class_index(names, predictor.classes, predictor.named)
    if isinstance(dataset, Reader):
        dataset = _WithReasons(dataset)
    loader = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=_collate)
    measure = _measure_labels if predictor.description.multi_label else _measure
    report = measure(predictor, loader, names, index)
    if not report.count:
        reasons = [reason for _, reason in report.skipped[:1]]
        raise UserError(f"no image of {data} could be read; {' '.join(reasons) or 'it is empty'}")
    _write(report, output)
    if picture is not None and isinstance(report, ClassificationReport):
        report.plot(picture)
    return report


def _write(report: ClassificationReport | MultiLabelReport | DenseReport, output: str | PathLike[str] | None) -> None:
    if output is not None:
        write_text(output, json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")


def _measure_scenes(
    data: str | PathLike[str], predictor: DensePredictor, split: str, workers: int, seed: int, reading: Reading
) -> DenseReport:
    masks = HEADS[predictor.head or ""].masks
    dataset = open_scenes(
        data,
        predictor.task,
        split,
        evaluation_transform(),
        masks=masks,
        size=predictor.description.short_sides[-1],
        seed=seed,
        ignore_label=predictor.description.ignore_label,
        map_labels=predictor.description.map_labels,
        reading=reading,
        known=predictor.classes,
        held_out=predictor.description.held_out or HeldOut(),
    )
    announce(dataset, data)
    if list(dataset.classes) != predictor.classes:
        only = sorted(set(dataset.classes) ^ set(predictor.classes)) or ["the same in another order"]
        raise UserError(f"data and network have different classes: {', '.join(only[:10])}")
    evaluator = EVALUATORS[predictor.task](predictor.classes, predictor.things, masks)
    # the one place that reads skipped files: worker processes would keep their lists to themselves
    loader = DataLoader(dataset, 1, num_workers=0 if reading.skip_bad else workers, collate_fn=collate)
    count = 0
    for images, targets in track(loader, "validating", transient=True):
        if images:  # else left out
            evaluator.add(targets[0], predictor.results(images)[0])
            count += 1
    skipped = list(dataset.skipped)
    if not count:
        raise UserError(f"no image of {data} could be used; {skipped[-1][1] if skipped else 'it is empty'}")
    measure = evaluator.measure
    return DenseReport(predictor.task, predictor.head or "", count, measure.compute(), measure.per_class(), skipped)


def _measure(
    predictor: Predictor, loader: DataLoader[Any], names: list[str], index: NDArray[np.int64]
) -> ClassificationReport:
    n = len(names)
    column = np.full(len(predictor.classes), n)  # the network's class → the data's, n for classes the data lacks
    column[index] = np.arange(n)
    confusion = np.zeros((n, n + (len(predictor.classes) > n)), dtype=np.int64)
    top5_correct, skipped = 0, []
    for images, labels, errors in track(loader, "validating", transient=True):
        skipped += errors
        if not len(labels):
            continue
        best = np.argsort(-predictor.logits(images.numpy()), axis=1, kind="stable")[:, :5]
        np.add.at(confusion, (labels, column[best[:, 0]]), 1)
        top5_correct += int((best == index[labels][:, None]).any(1).sum())
    return ClassificationReport(names, confusion, top5_correct if len(predictor.classes) > 5 else None, skipped)


def _measure_labels(
    predictor: Predictor, loader: DataLoader[Any], names: list[str], index: NDArray[np.int64]
) -> MultiLabelReport:
    thresholds = predictor.description.thresholds
    measure = MultiLabelMeasure(names, [thresholds[i] for i in index])
    count, skipped = 0, []
    for images, labels, errors in track(loader, "validating", transient=True):
        skipped += errors
        if len(labels):
            measure.add(labels, predictor.logits(images.numpy())[:, index])
            count += len(labels)
    return MultiLabelReport(count, measure.compute(), measure.per_class(), skipped)


class _WithReasons(Dataset[Any]):
    """A set whose unreadable images come as (path, reason), for worker processes keep their lists to themselves."""

    def __init__(self, dataset: Reader) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        item = self.dataset[i]
        return (self.dataset.skipped[-1], None) if item is None else item


def _collate(samples: list[Any]) -> tuple[torch.Tensor, NDArray[np.int64], list[tuple[str, str]]]:
    good = [(image, label) for image, label in samples if label is not None]
    errors = [error for error, label in samples if label is None]
    images = torch.stack([torch.as_tensor(image) for image, _ in good]) if good else torch.empty(0, 3, 0, 0)
    return images, np.array([label for _, label in good], dtype=np.int64), errors
