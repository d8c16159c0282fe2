"""`vankit predict`: labels, boxes and masks for photographs."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vankit.deploy.opening import Network, open_network
from vankit.engines.base import EngineName, Precision
from vankit.errors import UserError


def command(
    images: list[str],
    /,
    *,
    model: str | None = None,
    checkpoint: Path | None = None,
    output: str | None = None,
    resume: bool = False,
    top_k: int = 5,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    batch_size: int = 16,
    device: str = "auto",
    max_pixels: int = 100_000_000,
    reduced: bool = False,
    workers: Literal["local", "ray"] = "local",
    address: str | None = None,
    score: float | None = None,
    test: Literal["single", "multiscale", "slide"] | None = None,
) -> int:
    """Label photographs, or detect or segment what is in them, as the checkpoint was trained for.

    A detector or segmenter leaves a picture per image and predictions.json, in COCO's results format, in --output.

    The exit status is 1 if any image could not be read; the others are answered all the same.

    Args:
        images: files, folders (searched through) and quoted glob patterns; with --workers ray also URLs such as
            s3://bucket/folder.
        model: such as van_b2, or van_b0.cifar10, which needs no network; or a folder that vankit export wrote, which is
            run without PyTorch; the checkpoint's if left out, else van_b0.
        checkpoint: weights in any public format, or of a detector or segmenter; the model's public ones if left out.
        output: .csv, .jsonl or .parquet file for the rows, written as they come; for a detector or segmenter a folder,
            "predictions" if left out; with --workers ray a folder or URL for Parquet files.
        resume: continue the --output of a run that was stopped.
        top_k: labels per image.
        engine: what runs the network: torch, openvino, onnxruntime, or auto, the fastest for the device.
        precision: float32, bf16, int8 (of a folder exported so), or auto: float32, and int8 for such a folder.
        batch_size: images per forward pass of engine torch; the others take one at a time, on all cores.
        device: cpu, cuda, or auto.
        max_pixels: largest image that is decoded, in pixels.
        reduced: decode large JPEGs at a fraction of their size: sooner, and a label in some hundred differs.
        workers: local, this process; or ray, Ray's workers, which continue a job that was stopped.
        address: of a Ray cluster; a local one is started if left out.
        score: of a detector: lowest score of the objects shown, 0 to 1; 0.3 if left out.
        test: of a segmenter: the whole image (single, if left out), at several scales and mirrored, or in sliding
            windows.
    """
    if workers == "local" and address is not None:
        raise UserError("--address is of a Ray cluster: add --workers ray")
    options: dict[str, Any] = {"engine": engine, "precision": precision, "device": device, "max_pixels": max_pixels}
    if workers == "ray" and resume:
        raise UserError("--workers ray always continues what is in --output: leave out --resume")
    if workers == "ray" and output is None:
        raise UserError("--workers ray writes Parquet files: name a folder or URL with --output")
    opened = open_network(model, checkpoint)
    if opened.dense:
        if resume or reduced or workers == "ray":
            head = opened.description.head
            raise UserError(f"{opened.source} is a {head}: leave out --resume, --reduced and --workers")
        given = {name: value for name, value in (("score", score), ("test", test)) if value is not None}
        return _predict_scenes(images, opened, Path(output or "predictions"), {**options, **given})
    if score is not None or test is not None:
        raise UserError("--score and --test are for detectors and segmenters: pass the --checkpoint of one")
    options |= {"top_k": top_k, "batch_size": batch_size, "reduced": reduced}
    if workers == "ray" and output is not None:
        return _predict_on_ray(images, output, address, {"model": model, "checkpoint": checkpoint, **options})
    from vankit.prediction.labels import iter_predictions

    rows = iter_predictions(images, opened, output=output, resume=resume, **options)
    if output is None:
        return _print_labels(rows)
    failed = count = 0
    with _progress() as progress:
        task = progress.add_task("predicting", total=None)
        for row in rows:
            count += 1
            failed += row.error is not None
            progress.advance(task)
            if row.error is not None:
                print(f"{row.source}: {row.error}", file=sys.stderr)
    print(f"{count} images, {failed} failed: {output}")
    return int(failed > 0)


def _print_labels(rows: Iterable[Any]) -> int:
    failed = False
    for row in rows:
        if row.error is not None:
            failed = True
            print(f"{row.source}: {row.error}", file=sys.stderr)
            continue
        print(row.source)
        for label in row.labels:
            print(f"  {label.score:6.1%}  {label.name}")
    return int(failed)


def _progress() -> Any:
    """A bar of images done, and how many a second, where the error stream is a terminal."""
    from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed or 0:.1f} images/s")

    columns = (SpinnerColumn(), TextColumn("predicting"), MofNCompleteColumn(), Speed(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _predict_on_ray(images: list[str], output: str, address: str | None, options: dict[str, Any]) -> int:
    from vankit.prediction.ray import predict_on_ray

    rows = failures = 0
    with _progress() as progress:
        task = progress.add_task("predicting", total=None)
        try:
            for done, failed in predict_on_ray(images, output, address=address, **options):
                rows, failures = rows + done, failures + failed
                progress.update(task, completed=rows)
        except RuntimeError as error:
            raise UserError(str(error)) from error
    print(f"{rows} images, {failures} failed: {output}")
    return int(failures > 0)


def _predict_scenes(images: list[str], opened: Network, output: Path, options: dict[str, Any]) -> int:
    from vankit.prediction.scenes import iter_scenes
    from vankit.tasks.results import Failure

    failed = 0
    for result in iter_scenes(images, opened, output, **options):
        if isinstance(result, Failure):
            failed += 1
            print(f"{result.source}: {result.error}", file=sys.stderr)
        else:
            print(f"{result.source}: {result.summary()}")
    print(f"pictures and predictions.json: {output}")
    return int(failed > 0)
