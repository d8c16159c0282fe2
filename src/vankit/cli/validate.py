"""`vankit validate`: measures of a trained network on labelled data."""

from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from vankit.cli.terminal import console, say
from vankit.engines.base import EngineName, Precision
from vankit.models.description import Weights


def command(
    data: str,
    /,
    *,
    model: str | None = None,
    checkpoint: Path | None = None,
    weights: Weights | None = None,
    output: Path | None = None,
    plot: Path | None = None,
    report: Path | None = None,
    batch_size: int = 64,
    workers: int = 2,
    device: str = "auto",
    engine: EngineName = "auto",
    precision: Precision = "auto",
    seed: int = 0,
    split: str = "val",
    test: Literal["single", "multiscale", "slide"] = "single",
    tile: int | None = None,
    overlap: float | None = None,
    skip_bad: bool = False,
    tolerant: bool = False,
    allow_outside: bool = False,
    max_pixels: int = 67_108_864,
) -> None:
    """Measure a classifier (top-1, top-5, confusion matrix; mAP if it is multi-label), a detector (COCO AP) or a
    segmenter (mIoU, PQ).

    Prints the measures for all images together and for each class.

    Args:
        data: labelled images, as for vankit train.
        model: such as van_b2 or van_b0.cifar10, or a folder that vankit export wrote. Default: the checkpoint's model.
        checkpoint: weights in any public format, or those of a detector or segmenter; or a folder with them. Default:
            the model's public weights.
        weights: of a checkpoint: raw, or ema for their moving average. Default: the average where there are both.
        output: JSON file for all measures.
        plot: image file for the confusion matrix of a classifier, such as confusion.png.
        report: HTML file for a report that opens offline: all measures, and the worst mistakes as pictures.
        batch_size: images per forward pass; detectors and segmenters take one at a time.
        workers: number of threads that load images.
        device: cpu, cuda or auto.
        engine: what runs the network: torch, openvino, onnxruntime, or auto for the fastest on the device.
        precision: float32, bf16, int8 (for a folder that was exported in int8), or auto: int8 for such a folder, else
            float32.
        seed: seed of the generated shapes.
        split: part of the data to measure: train, val, or the name of another folder such as test.
        test: how to segment: single, the whole image at once; multiscale, at several scales and mirrored; or slide, in
            sliding windows.
        tile: side in pixels of the tiles in which a detector also looks at larger images, such as 640.
        overlap: of neighbouring tiles, as a share of their side, 0 to 0.9. Default: 0.2.
        skip_bad: leave out images and annotations that cannot be used, with a warning; a classifier's images always
            are.
        tolerant: read JPEGs that lack their end, with grey for what is missing.
        allow_outside: read images that a COCO file names outside the folder of the data.
        max_pixels: an image with more pixels than this is not decoded.
    """
    from vankit.validation import ClassificationReport
    from vankit.validation import validate as run

    figures = run(
        data, model, checkpoint, output, plot, workers=workers, seed=seed, batch_size=batch_size, device=device,
        engine=engine, precision=precision, split=split, test=test, skip_bad=skip_bad,
        tile=tile, overlap=overlap, tolerant=tolerant, allow_outside=allow_outside, max_pixels=max_pixels,
        weights=weights, report=report,
    )  # fmt: skip
    if not isinstance(figures, ClassificationReport):
        _print_measures(data, figures)
        return
    table = Table(title=f"{data}: {figures.count:,} images")
    table.add_column("class")
    for heading in ("images", "recall %", "precision %"):
        table.add_column(heading, justify="right")
    for row in figures.per_class():
        shares = ("" if row[key] is None else f"{row[key]:.1%}" for key in ("recall", "precision"))
        table.add_row(row["class"], str(row["images"]), *shares)
    console().print(table)
    top5 = "" if figures.top5 is None else f"top-5 {figures.top5:.2%}  "
    say(f"top-1 {figures.top1:.2%}  {top5}images {figures.count}  left out {len(figures.skipped)}")


def _print_measures(data: str, report: Any) -> None:
    head = getattr(report, "head", "multi-label")
    table = Table(title=f"{data}: {report.count:,} images, {head}")
    table.add_column("class")
    columns = [name for name in report.per_class[0] if name != "class"]
    for name in columns:
        table.add_column(name, justify="right")
    for row in report.per_class:
        table.add_row(row["class"], *(_figure(row[name]) for name in columns))
    console().print(table)
    figures = "  ".join(f"{name} {_figure(value)}" for name, value in report.measures.items())
    say(f"{figures}  images {report.count}  left out {len(report.skipped)}")


def _figure(value: float | int | None) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"
