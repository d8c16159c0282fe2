"""`vankit predict`: labels, boxes and masks for photographs."""

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from vankit.cli.messages import typed
from vankit.cli.terminal import say, say_failure, stopped_by_sigterm
from vankit.data.videos import is_video
from vankit.deploy.opening import Network, open_network, says_dense
from vankit.engines.base import EngineName, Precision
from vankit.errors import UserError
from vankit.models.description import Weights
from vankit.prediction.request import check_request
from vankit.prediction.tables import reserved

_SCENES = "predictions"  # the output of a detector or segmenter


def command(
    images: list[str],
    /,
    *,
    model: str | None = None,
    checkpoint: Path | None = None,
    weights: Weights | None = None,
    output: str | None = None,
    resume: bool = False,
    safe_csv: bool = False,
    top_k: int | None = None,
    engine: EngineName = "auto",
    precision: Precision = "auto",
    batch_size: int = 16,
    device: str = "auto",
    max_pixels: int = 67_108_864,
    reduced: bool = False,
    workers: Literal["local", "ray"] = "local",
    address: str | None = None,
    score: float | None = None,
    test: Literal["single", "multiscale", "slide"] | None = None,
    tile: int | None = None,
    overlap: float | None = None,
) -> int:
    """Label photographs, or detect or segment what is in them, depending on the checkpoint.

    A detector or segmenter writes one picture per image, and predictions.json in COCO's results format, to --output.

    Given one video and a video as --output, they write it with what was found drawn on, and a line of JSON for each
    frame beside it; the sound is left out.

    An image that cannot be read gets an error message, the others are processed, and the exit status is 1.

    Args:
        images: image files, folders (searched with their subfolders) and quoted glob patterns; with --workers ray also
            URLs such as s3://bucket/folder.
        model: such as van_b2; van_b0.cifar10, which needs no download; or a folder that vankit export wrote, which runs
            without PyTorch. Default: the checkpoint's model, or van_b0.
        checkpoint: weights in any public format, or those of a detector or segmenter; or a folder with them. Default:
            the model's public weights.
        weights: of a checkpoint: raw, or ema for their moving average. Default: the average where there are both.
        output: .csv, .jsonl or .parquet file, written row by row; for a detector or segmenter a folder (default:
            predictions), or for a video a .mp4, .mov or .mkv file; with --workers ray a folder or URL for Parquet
            files. Labels are printed if it is not given.
        resume: continue the --output of a run that was stopped: images that have a row in it, by name, are not read
            again, unless the row has an error.
        safe_csv: in a .csv, put ' before names that a spreadsheet would take for formulas.
        top_k: number of labels per image. Default: 5, or for a multi-label classifier all that it finds.
        engine: what runs the network: torch, openvino, onnxruntime, or auto for the fastest on the device.
        precision: float32, bf16, int8 (for a folder that was exported in int8), or auto: int8 for such a folder, else
            float32.
        batch_size: images per forward pass with --engine torch; the other engines take one image at a time, on all
            cores.
        device: cpu, cuda or auto.
        max_pixels: an image with more pixels than this is not decoded, and those decoded at the same time share it.
        reduced: decode large JPEGs at a fraction of their size; faster, but up to 16 labels in 1,000 change.
        workers: local for this process, or ray for Ray's workers, which also continue a job that was stopped.
        address: address of a Ray cluster. Default: a local one is started.
        score: for a detector, the lowest score of the objects that are kept, 0 to 1. Default: 0.3.
        test: for a segmenter: single, the whole image at once (default); multiscale, at several scales and mirrored; or
            slide, in sliding windows.
        tile: for a detector: look at larger pictures also in tiles of so many pixels a side, such as 640, which finds
            objects that are small in them.
        overlap: of neighbouring tiles, as a share of their side, 0 to 0.9. Default: 0.2.
    """
    if workers == "local" and address is not None:
        raise UserError("--address names a Ray cluster: add --workers ray")
    options: dict[str, Any] = {"engine": engine, "precision": precision, "device": device, "max_pixels": max_pixels}
    here = options if workers == "local" else {**options, "device": "auto"}  # a cluster may have other devices
    check_request(model, batch_size=batch_size, top_k=top_k, score=score or 0.0, tile=tile, overlap=overlap, **here)
    if workers == "ray" and resume:
        raise UserError("--workers ray always continues what is in --output: leave out --resume")
    if resume and output is None:
        raise UserError("--resume continues an output: name it with --output")
    if safe_csv and (output is None or workers == "ray"):
        raise UserError("--safe-csv is for a .csv file: name one with --output, or leave it out")
    if workers == "ray" and output is None:
        raise UserError("--workers ray writes Parquet files: name a folder or URL with --output")
    written = _SCENES if output is None and says_dense(model, checkpoint) else output
    with stopped_by_sigterm(), reserved(written, folder=workers == "ray" or output is None):
        opened = open_network(model, checkpoint, weights=weights, engine=engine, device=device)
        if opened.dense:
            head = opened.description.head
            unused = {
                "--resume": resume,
                "--reduced": reduced,
                "--safe-csv": safe_csv,
                "--top-k": top_k is not None,
                "--workers ray": workers == "ray",
            }
            if any(unused.values()):
                raise UserError(f"{opened.source} is a {head}, which cannot use {typed(unused)}: leave it out")
            if score is not None and opened.description.task != "detect":
                raise UserError(f"--score is only for detectors, and {opened.source} is a {head}: leave it out")
            asked = {"score": score, "test": test, "tile": tile, "overlap": overlap}
            given = {name: value for name, value in asked.items() if value is not None}
            return _predict_scenes(images, opened, Path(output or _SCENES), {**options, **given})
        dense = {"--score": score is not None, "--test": test is not None, "--tile": tile is not None}
        if any(dense.values()):
            raise UserError(f"only detectors and segmenters have {typed(dense)}: pass the --checkpoint of one")
        options |= {"top_k": top_k, "batch_size": batch_size, "reduced": reduced}
        if workers == "ray" and output is not None:
            options |= {"weights": weights} if weights is not None else {}
            return _predict_on_ray(images, output, address, {"model": model, "checkpoint": checkpoint, **options})
        from vankit.prediction.jobs import iter_labels

        with closing(iter_labels(images, opened, output, resume, safe_csv, **options)) as rows:
            return _print_labels(rows) if output is None else _count_labels(rows, output)


def _count_labels(rows: Iterable[Any], output: str) -> int:
    failed = count = 0
    with _progress() as progress:
        task = progress.add_task("predicting", total=None)
        for row in rows:
            count += 1
            failed += row.error is not None
            progress.advance(task)
            if row.error is not None:
                say_failure(row.source, row.error)
    say(f"{count} images, {failed} failed: {output}")
    return int(failed > 0)


def _print_labels(rows: Iterable[Any]) -> int:
    failed = False
    for row in rows:
        if row.error is not None:
            failed = True
            say_failure(row.source, row.error)
            continue
        say(row.source)
        if not row.labels:
            say("  no label")
        for label in row.labels:
            say(f"  {label.score:6.1%}  {label.name}")
    return int(failed)


def _count_frames(results: Iterable[Any], output: Path) -> int:
    count = 0
    with _progress("frames") as progress:
        task = progress.add_task("predicting", total=None)
        for _ in results:
            count += 1
            progress.advance(task)
    say(f"{count} frames: {output}, and what is in each: {output.with_suffix('.jsonl')}")
    return 0


def _progress(things: str = "images") -> Any:
    """A progress bar with images, or other things, per second, if the error stream is a terminal."""
    from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    class Speed(ProgressColumn):  # rich's own, in TaskProgressColumn, says it/s
        def render(self, task: Any) -> Text:
            return Text(f"{task.speed or 0:.1f} {things}/s")

    columns = (SpinnerColumn(), TextColumn("predicting"), MofNCompleteColumn(), Speed(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _predict_on_ray(images: list[str], output: str, address: str | None, options: dict[str, Any]) -> int:
    from vankit.prediction.ray import predict_on_ray

    rows = failures = 0
    with _progress() as progress, closing(predict_on_ray(images, output, address=address, **options)) as shards:
        task = progress.add_task("predicting", total=None)
        for done, failed in shards:
            rows, failures = rows + done, failures + failed
            progress.update(task, completed=rows)
    say(f"{rows} images, {failures} failed: {output}")
    return int(failures > 0)


def _predict_scenes(images: list[str], opened: Network, output: Path, options: dict[str, Any]) -> int:
    from vankit.prediction.scenes import iter_scenes
    from vankit.tasks.results import Failure

    failed = 0
    with closing(iter_scenes(images, opened, output, **options)) as results:
        if is_video(output):
            return _count_frames(results, output)
        for result in results:
            if isinstance(result, Failure):
                failed += 1
                say_failure(result.source, result.error)
            else:
                say(f"{result.source}: {result.summary()}")
    say(f"pictures and predictions.json: {output}")
    return int(failed > 0)
