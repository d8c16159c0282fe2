"""The job of `vankit predict`: image files in, answers out, written as they come, and continued after a stop."""

import logging
from collections.abc import Generator, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vankit.data.walk import begin, find_images
from vankit.deploy.opening import Network, open_network
from vankit.errors import UserError
from vankit.prediction.labels import Prediction, Predictor
from vankit.prediction.request import REQUEST, check_request
from vankit.prediction.tables import Table, check_table, open_table, reserved

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


def iter_predictions(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: "str | PathLike[str] | nn.Module | Network | None" = None,
    checkpoint: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    safe_csv: bool = False,
    **options: Any,
) -> Iterator[Any]:
    """`predict`, one image at a time: images are read, and results written, as the iterator is consumed."""
    if resume and output is None:
        raise UserError("resume continues an output: name it (--output)")
    check_request(model, **{name: options[name] for name in options.keys() & REQUEST})
    given = {name: options.pop(name) for name in ("pretrained", "classes", "weights") if name in options}
    with reserved(output):
        runs_on = {name: options[name] for name in ("engine", "device") if name in options}
        opened = open_network(model, checkpoint, **given, **{"engine": "auto", **runs_on})
        if not opened.dense:
            yield from iter_labels(inputs, opened, output, resume, safe_csv, **options)
            return
        from vankit.prediction.scenes import iter_scenes

        if resume or safe_csv:
            raise UserError(f"{opened.source} is a detector or segmenter: leave out resume and safe_csv")
        yield from iter_scenes(inputs, opened, output, **options)


def iter_labels(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    network: Network,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    safe_csv: bool = False,
    **options: Any,
) -> Generator[Prediction, None, None]:
    """`iter_predictions` of a classifier that is open, for a caller who has reserved the output."""
    if output is not None:
        check_table(output, safe_csv)
    images = begin(find_images(inputs))
    if output is None:
        yield from Predictor(network, **options).stream(images)
        return
    predictor = Predictor(network, **options)
    _ = predictor.engine  # what is wrong with the options is said before the output is touched
    with open_table(output, predictor.top_k, resume, safe_csv) as table:
        for prediction in predictor.stream(_without_row(images, table)):
            table.write(row_of(prediction))
            yield prediction


def _without_row(paths: Iterable[Path], table: Table) -> Iterator[Path]:
    """The images that are not done."""
    found = 0
    for path in paths:
        if table.done.take(text_of(str(path))):
            found += 1
        else:
            yield path
    if len(table.done) and not found:
        logger.warning(
            "%s: none of its %d images is among those given now, so all of them were read; names continue a table only "
            "if they are given as before, relative or absolute",
            table.path, len(table.done),
        )  # fmt: skip


def predict(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: "str | PathLike[str] | nn.Module | Network | None" = None,
    checkpoint: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    safe_csv: bool = False,
    **options: Any,
) -> list[Any]:
    """Label image files, or detect or segment what is in them, as the checkpoint was trained for.

    Args:
        inputs: files, folders (searched through) and glob patterns; for a detector or segmenter also one video.
        model, checkpoint: see `Predictor`; of a detector or segmenter the checkpoint alone, see `DensePredictor`.
        output: file that the rows are also written to as they come: .csv, .jsonl or .parquet; of a detector or
            segmenter a folder, see `vankit.prediction.scenes.iter_scenes`, or of a video a video, see
            `vankit.prediction.videos.predict_video`.
        resume: continue an output that a run left unfinished. By their names, as they are given, images that have a row
            are done and not read again; images may have been added, moved or deleted since. A row with an error is
            removed and its image read again. The options have to be the same; they are not compared. Not for detectors
            and segmenters.
        safe_csv: in a .csv, put ' before text that a spreadsheet would take for a formula.
        options: further arguments of `Predictor` or `DensePredictor`.

    Returns:
        A `Prediction` per image, in order; one that fails has its error. Of a detector or segmenter `Detections`, a
        `SemanticMap` or a `PanopticMap`, and a `Failure` for an image that fails. With `resume`, only the new ones.

    Raises:
        FileNotFoundError: a folder or pattern has no images; raised after the others are answered and written. Where
            there are no others, `output` is left as it was.
        ValueError: output's suffix is unknown, it cannot be written or continued, someone else is writing it, or see
            `Predictor` and `DensePredictor`.
    """
    return list(iter_predictions(inputs, model, checkpoint, output, resume, safe_csv, **options))


def row_of(prediction: Prediction) -> dict[str, Any]:
    """A prediction as `vankit.prediction.tables.Row`."""
    labels = prediction.labels
    return {
        "image": text_of(prediction.source),
        "labels": [text_of(label.name) for label in labels],
        "indices": [label.index for label in labels],
        "scores": [label.score for label in labels],
        "error": None if prediction.error is None else text_of(prediction.error),
    }


def text_of(name: str) -> str:
    """A name as tables hold it: a file's may have bytes that are not text."""
    return name.encode("utf-8", "backslashreplace").decode()
