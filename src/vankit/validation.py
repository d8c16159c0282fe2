"""Validation: a trained network's measures on a labelled image set, for every task."""

import logging
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from vankit.data.folders import class_index, open_dataset
from vankit.data.held_out import HeldOut, announce
from vankit.data.images import MAX_PIXELS
from vankit.data.multilabel import check_kind
from vankit.data.reading import Reading, read_ahead
from vankit.deploy.dense_judge import open_split
from vankit.deploy.opening import Network, open_network
from vankit.errors import UserError
from vankit.files import check_file, check_named, check_picture, is_stream, save_figure, to_json, write_text
from vankit.models.description import Weights
from vankit.pages import Page
from vankit.prediction.labels import Predictor
from vankit.prediction.request import check_request
from vankit.reports.classes import ClassFindings, class_rows, draw_confusion
from vankit.reports.findings import Findings, write_classes
from vankit.reports.page import check_page, finish, write_measures
from vankit.reports.worst import items_of
from vankit.tasks.multilabel import MultiLabelMeasure, MultiLabelReport, without_nan

if TYPE_CHECKING:
    from torch import nn

    from vankit.prediction.scenes import DensePredictor
    from vankit.tasks.segment import Test

logger = logging.getLogger(__name__)

_SHOWN = 100  # of the files that were left out


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
    def measures(self) -> dict[str, float]:
        """The accuracies by name, 0 to 1."""
        return {"top-1": self.top1} | ({} if self.top5 is None else {"top-5": self.top5})

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
        n = len(self.classes)
        return class_rows(self.classes, self.confusion.sum(1), self.confusion.sum(0)[:n], np.diag(self.confusion))

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
        title = f"top-1 {self.top1:.1%} of {self.count:,} images"
        save_figure(draw_confusion(self.confusion, self.classes, title), path, dpi=120)


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
            "measures": without_nan(self.measures),
            "classes": [without_nan(row) for row in self.per_class],
            "skipped": [{"file": path, "error": reason} for path, reason in self.skipped],
        }


def validate(
    data: str | PathLike[str],
    model: "str | PathLike[str] | nn.Module | Network | None" = None,
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
    test: "Test" = "single",
    tile: int | None = None,
    overlap: float | None = None,
    skip_bad: bool = False,
    tolerant: bool = False,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
    weights: Weights | None = None,
    report: str | PathLike[str] | None = None,
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
        workers: threads that load images while the network runs; 0 loads them in between.
        seed: of generated `shapes`; the one they were trained with.
        split: train, val, or the name of a folder such as test.
        test: for semantic segmentation, see `vankit.tasks.inference.segment_logits`.
        tile, overlap: of detectors, see `vankit.DensePredictor`.
        skip_bad, tolerant, allow_outside: what to do about images and annotations that cannot be used as they are, see
            `vankit.data.reading.Reading`; a classifier's images that cannot be read are left out in any case.
        max_pixels: of the largest image that is decoded.
        weights: see `vankit.Predictor`.
        report: HTML file for a report with the worst mistakes as pictures, such as report.html.

    Returns:
        A `ClassificationReport`, a `MultiLabelReport` for a multi-label classifier, or a `DenseReport` for a detector
        or segmenter.

    Raises:
        FileNotFoundError, ValueError: data or weights cannot be used, their classes do not match, or the network's
            output is not finite.
    """
    check_named(data=data)
    _check_output(output)
    check_picture(picture)
    check_page(report)
    if workers < 0:
        raise UserError(f"workers is {workers}, expected 0 or more")
    HeldOut(seed=seed)  # which checks it
    check_request(
        model, engine=engine, precision=precision, device=device, batch_size=batch_size, max_pixels=max_pixels,
        tile=tile, overlap=overlap,
    )  # fmt: skip
    reading = Reading(skip_bad, tolerant, allow_outside, max_pixels)
    opened = open_network(model, checkpoint, weights=weights, engine=engine, device=device)
    if picture is not None and (opened.dense or opened.description.multi_label):
        raise UserError(f"{opened.source} has no confusion matrix: leave out `picture`")
    if opened.description.task == "segment" and allow_outside:
        raise UserError("allow_outside is only for detectors and panoptic networks: leave it out")
    figures: Any
    findings: Findings | None
    if opened.dense:
        from vankit.prediction.scenes import DensePredictor

        dense = DensePredictor(
            opened, test=test, engine=engine, precision=precision, device=device, tile=tile, overlap=overlap
        )
        figures, findings = _measure_scenes(data, dense, split, workers, seed, reading)
    else:
        if tile is not None:
            raise UserError("`tile` is only for detectors: pass the `checkpoint` of one")
        if test != "single" or allow_outside:
            raise UserError(
                "`test` and `allow_outside` are only for detectors and segmenters: pass the `checkpoint` of one"
            )
        predictor = Predictor(opened, engine=engine, precision=precision, batch_size=batch_size, device=device)
        reading = replace(reading, skip_bad=True)
        figures, findings = _validate_classifier(data, predictor, split, batch_size, workers, seed, reading)
    if output is not None:
        write_text(output, to_json(figures.to_dict()) + "\n")
    if picture is not None:
        figures.plot(picture)
    if report is not None:
        settings = {
            "split": split,
            "engine": engine,
            "precision": precision,
            "device": device,
            "test": test,
            "tile": tile,
        }
        _write_report(report, data, figures, findings, opened, settings)
    return figures


def _check_output(path: str | PathLike[str] | None) -> None:
    check_file(path)
    if path is not None and not is_stream(path) and Path(path).suffix.lower() != ".json":
        raise UserError(f"{path} is not the name of a JSON file: expected one that ends in .json")


def _validate_classifier(
    data: str | PathLike[str],
    predictor: Predictor,
    split: str,
    batch_size: int,
    workers: int,
    seed: int,
    reading: Reading,
) -> tuple[ClassificationReport, ClassFindings] | tuple[MultiLabelReport, None]:
    side = predictor.preprocessing.input_size[-1]
    held_out = predictor.description.held_out or HeldOut()
    dataset = open_dataset(data, split, predictor.preprocessing, side, seed, held_out=held_out, reading=reading)
    announce(dataset, data)
    check_kind(dataset, predictor.description.multi_label, data)
    names: list[str] = list(dataset.classes)
    index = class_index(names, predictor.classes, predictor.named)
    measure: Any = _measure_labels if predictor.description.multi_label else _measure
    with closing(_batches(dataset, batch_size, workers)) as batches:  # whose threads would go on after an error
        report, findings = measure(predictor, batches, names, index)
    report = replace(report, skipped=sorted(getattr(dataset, "skipped", ())))
    if not report.count:
        reasons = [reason for _, reason in report.skipped[:1]]
        raise UserError(f"no image of {data} could be read; {' '.join(reasons) or 'it is empty'}")
    if findings is not None:
        findings.name_pictures(dataset)
    return report, findings


def _write_report(
    path: str | PathLike[str],
    data: str | PathLike[str],
    figures: Any,
    findings: Findings | None,
    network: Network,
    settings: dict[str, Any],
) -> None:
    page = Page(f"{network.source} on {data}")
    counts = {"images": f"{figures.count:,}", "left out": f"{len(figures.skipped):,}"}
    page.facts({"task": network.description.task, "split": settings["split"], **counts})
    write_measures(page, "Measures", figures.measures)
    if findings is None:
        write_classes(page, figures.per_class, "AP")
    else:
        findings.write(page)
    if figures.skipped:
        page.heading("Left out")
        page.table([{"file": file, "reason": reason} for file, reason in figures.skipped[:_SHOWN]])
    finish(page, {**settings, **network.description.to_metadata()}, path)


def _measure_scenes(
    data: str | PathLike[str], predictor: "DensePredictor", split: str, workers: int, seed: int, reading: Reading
) -> tuple[DenseReport, Findings]:
    from vankit.reports.scenes import scene_findings
    from vankit.tasks.dense import EVALUATORS

    dataset = open_split(data, predictor.description, split, predictor.masks, reading, seed)
    announce(dataset, data)
    evaluator = EVALUATORS[predictor.task](predictor.classes, predictor.things, predictor.masks)
    findings = scene_findings(predictor.description)
    with closing(read_ahead(dataset, workers, ahead=workers)) as scenes:  # masks of many objects are large
        for index, scene in enumerate(track(scenes, "validating", len(dataset), transient=True)):
            if scene is not None:  # else left out
                picture, target = scene
                result = predictor.results(np.asarray(picture))
                findings.add(index, picture, target, result, evaluator.add(target, result))
    skipped = sorted(dataset.skipped)
    if not (count := findings.count):
        raise UserError(f"no image of {data} could be used; {skipped[-1][1] if skipped else 'it is empty'}")
    measure = evaluator.measure
    findings.finish(measure)
    findings.name_pictures(dataset)
    figures = measure.compute()
    return DenseReport(predictor.task, predictor.head or "", count, figures, measure.per_class(), skipped), findings


@dataclass(frozen=True)
class _Batch:
    """Labelled images.

    Attributes:
        items: of the data set, from which some may have been left out; None of a stream.
        images: float32 (B, 3, H, W).
        labels: (B,) classes, or (B, classes) of 0 and 1.
    """

    items: range | None
    images: NDArray[np.float32]
    labels: NDArray[np.int64]


def _batches(dataset: Any, size: int, workers: int) -> Generator[_Batch, None, None]:
    """Those with an image that can be read."""
    samples = track(read_ahead(dataset, workers, ahead=2 * size), "validating", len(dataset), transient=True)
    chunks = iter(lambda: list(islice(samples, size)), [])
    for number, chunk in enumerate(chunks):
        if usable := [sample for sample in chunk if sample is not None]:
            images, labels = zip(*usable, strict=True)
            yield _Batch(items_of(dataset, size, number), np.stack(images), np.array(labels, np.int64))


def _measure(
    predictor: Predictor, batches: Iterator[_Batch], names: list[str], index: NDArray[np.int64]
) -> tuple[ClassificationReport, ClassFindings]:
    n = len(names)
    column = np.full(len(predictor.classes), n)  # the network's class → the data's, n for classes the data lacks
    column[index] = np.arange(n)
    confusion = np.zeros((n, n + (len(predictor.classes) > n)), dtype=np.int64)
    top5_correct = 0
    findings = ClassFindings(names, predictor.preprocessing, predictor.classes, column)
    for batch in batches:
        logits = predictor.logits(batch.images)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :5]
        findings.add(batch.items, batch.images.__getitem__, batch.labels, logits)
        np.add.at(confusion, (batch.labels, column[best[:, 0]]), 1)
        top5_correct += int((best == index[batch.labels][:, None]).any(1).sum())
    top5 = top5_correct if len(predictor.classes) > 5 else None
    return ClassificationReport(names, confusion, top5, []), findings


def _measure_labels(
    predictor: Predictor, batches: Iterator[_Batch], names: list[str], index: NDArray[np.int64]
) -> tuple[MultiLabelReport, None]:
    thresholds = predictor.description.thresholds
    measure = MultiLabelMeasure(names, [thresholds[i] for i in index])
    count = 0
    for batch in batches:
        measure.add(batch.labels, predictor.logits(batch.images)[:, index])
        count += len(batch.labels)
    return MultiLabelReport(count, measure.compute(), measure.per_class(), []), None
