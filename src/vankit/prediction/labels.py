"""Prediction: images in, labels out. PyTorch is loaded with a network of its own, not for an exported folder."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.data.images import MAX_PIXELS, ImageLike, source_name, to_image
from vankit.data.walk import find_images
from vankit.deploy.opening import Network, open_network
from vankit.engines.base import Engine
from vankit.errors import UserError, check_output, reason_of
from vankit.models.description import Weights
from vankit.prediction.request import REQUEST, check_request
from vankit.prediction.tables import open_table
from vankit.tasks.multilabel import sigmoid

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Label:
    """One class of a prediction: its name, its index in the head, its score 0 to 1, see `Predictor.scores`."""

    name: str
    index: int
    score: float


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    Attributes:
        source: path as given, or a description of an image passed in memory.
        labels: the best classes, or of a multi-label network those that reach their thresholds, which may be none; best
            first. Empty where the image failed.
        error: why the image failed, else None.
    """

    source: str
    labels: tuple[Label, ...] = ()
    error: str | None = None


class Predictor:
    """A classifier ready for use.

    Args:
        model, checkpoint, pretrained, classes, weights: see `vankit.deploy.opening.open_network`.
        engine: what runs the network: torch, openvino or onnxruntime; 'auto' is compiled torch on CUDA devices,
            OpenVINO on CPUs (or torch for a network that OpenVINO cannot take), and for an exported folder what it was
            made for.
        precision: float32, bf16 or int8 (for a folder that was exported in int8); 'auto' is int8 for such a
            folder, else float32.
        top_k: labels per prediction, at most the number of classes; None is 5, or all of a multi-label network's that
            reach their thresholds.
        batch_size: images per forward pass of engine torch; the others are fastest with one at a time, on all cores.
        device: torch's name, or 'auto' for CUDA where there is one.
        max_pixels: largest image decoded, in pixels.
        reduced: decode JPEGs at 1/2, 1/4 or 1/8 of their size, as long as each side keeps at least twice as many
            pixels as the network sees: much faster for large photographs, but up to 16 labels in 1,000
            change, see docs/predict.md.

    Attributes:
        description: what the network is.
        classes: names by index; the indices as text where the weights name none (`named` is False).
        preprocessing: see `vankit.data.preprocessing.Preprocessing`.
        network: the PyTorch module in eval mode; None of an exported folder.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the weights cannot be had.
    """

    def __init__(
        self,
        model: "str | PathLike[str] | nn.Module | Network | None" = None,
        checkpoint: str | PathLike[str] | None = None,
        pretrained: bool = True,
        *,
        engine: str = "auto",
        precision: str = "auto",
        classes: Sequence[str] | None = None,
        top_k: int | None = None,
        batch_size: int = 16,
        device: str = "auto",
        max_pixels: int = MAX_PIXELS,
        reduced: bool = False,
        weights: Weights | None = None,
    ) -> None:
        check_request(
            engine=engine, precision=precision, top_k=top_k, batch_size=batch_size, max_pixels=max_pixels
        )  # fmt: skip
        self.network: nn.Module | None = None
        self._open: Callable[[], Engine]
        self._opening = threading.Lock()
        self._engine: Engine | None = None
        opened = open_network(model, checkpoint, pretrained, classes, weights)
        if opened.dense:
            raise UserError(f"{opened.source} is a detector or segmenter: use vankit.DensePredictor")
        self.description = opened.description
        self.classes, self.named = list(self.description.classes), self.description.named
        assert self.description.preprocessing is not None
        self.preprocessing = self.description.preprocessing
        if (exported := opened.exported) is not None:
            self._open = lambda: exported.engine(engine, precision, device)
        else:
            from vankit.engines.choose import engine_for

            self.network = network = opened.module
            assert network is not None
            size, cached = self.preprocessing.input_size, self.description.model is not None
            self._open = lambda: engine_for(network, size, engine, precision, device, batch_size, cached)
        if top_k is not None and top_k > len(self.classes):
            logger.warning(
                "top_k (--top-k) is %d, and the network has %d classes: all are given", top_k, len(self.classes)
            )
        self.top_k = min(top_k or (len(self.classes) if self.description.multi_label else 5), len(self.classes))
        self.max_pixels = max_pixels
        self._min_side = 2 * self.preprocessing.min_side if reduced else None

    @property
    def engine(self) -> Engine:
        """What runs the network; made on first use, which takes seconds for a network never run on this machine."""
        with self._opening:
            if self._engine is None:
                self._engine = self._open()
            return self._engine

    def preprocess(self, image: ImageLike) -> NDArray[np.float32]:
        """Decode and prepare one image.

        Args:
            image: a path, a PIL image, or a uint8 array (H, W, 3) in RGB order or (H, W) grey.

        Returns:
            (3, height, width) as `preprocessing` says.

        Raises:
            FileNotFoundError, ValueError: the image cannot be used; `vankit.data.images.ImageError` if it is broken.
        """
        return self.preprocessing(to_image(image, self.max_pixels, self._min_side))

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network.

        Args:
            x: preprocessed images, float32 (B, 3, H, W) of the size in `preprocessing`.

        Returns:
            (B, num_classes), float32.

        Raises:
            ValueError: x has another dtype, rank or size, or a logit is not finite.
        """
        x = np.asarray(x)
        expected = tuple(self.preprocessing.input_size)
        if x.dtype != np.float32 or x.ndim != 4 or x.shape[1:] != expected:
            shape = ", ".join(map(str, expected))
            raise UserError(f"x is {x.dtype} of shape {x.shape}: expected float32 (B, {shape})")
        logits = self.engine(x)
        check_output(logits)
        return logits

    def scores(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        """What the network's answer means, 0 to 1: softmax, or of a multi-label network the sigmoid of each logit.

        Args:
            logits: (B, num_classes).
        """
        return sigmoid(logits) if self.description.multi_label else _softmax(logits)

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Any:
        """Label images.

        Args:
            images: one image as `preprocess` takes it, or a sequence of them.

        Returns:
            A `Prediction`, or a list of them for a sequence. An image that fails gives a Prediction with its error.
        """
        if isinstance(images, str | PathLike | Image.Image | np.ndarray):
            return next(self.stream([images]))
        return list(self.stream(images))

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """Label images in order, on all cores; the iterable is read as needed, a few images ahead of the answers."""
        source, failure = iter(images), None

        def take(count: int) -> list[ImageLike]:
            nonlocal failure
            taken: list[ImageLike] = []
            try:
                taken.extend(islice(source, count))
            except Exception as error:  # raised once the images before it are answered
                failure = error
            return taken

        first = take(2)
        if len(first) < 2:
            yield from self._label(first, self.engine)
        else:
            source = chain(first, source)
            yield from self._on_all_cores(take)
        if failure is not None:
            raise failure

    def _on_all_cores(self, take: Callable[[int], list[ImageLike]]) -> Iterator[Prediction]:
        """Each thread carries a chunk of images from file to label, so that decoding and inference overlap."""
        engine, local = self.engine, threading.local()
        workers = [engine.worker() for _ in range(engine.workers)]  # here, where what is wrong is raised as it is

        def start() -> None:
            local.run = workers.pop()

        def submit() -> None:
            if chunk := take(engine.batch_size):
                pending.append(pool.submit(lambda: list(self._label(chunk, local.run))))

        pending: deque[Future[list[Prediction]]] = deque()
        pool = ThreadPoolExecutor(engine.workers, initializer=start)
        try:
            # as many waiting as under way, so that no thread waits for the one with the largest image
            for _ in range(2 * engine.workers):
                submit()
            while pending:
                done = pending.popleft().result()
                submit()
                yield from done
        finally:
            pool.shutdown(cancel_futures=True)

    def _label(
        self, images: Sequence[ImageLike], run: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ) -> Iterator[Prediction]:
        prepared = [self._prepare(image) for image in images]
        ready = [x for _, x, _ in prepared if x is not None]
        logits: Iterator[NDArray[np.float32]] = iter(run(np.stack(ready)) if ready else ())
        for name, x, error in prepared:
            yield Prediction(name, error=error) if x is None else self._prediction(name, next(logits))

    def _prediction(self, name: str, logits: NDArray[np.float32]) -> Prediction:
        """
        Args:
            logits: (num_classes,).
        """
        try:
            check_output(logits)
        except UserError as error:  # the other pictures go on
            return Prediction(name, error=str(error))
        scores = self.scores(logits[None])[0]
        best = np.argsort(-scores, kind="stable")
        if self.description.multi_label:
            best = best[scores[best] >= np.array(self.description.thresholds)[best]]
        best = best[: self.top_k]
        return Prediction(name, tuple(Label(self.classes[i], int(i), float(scores[i])) for i in best))

    def _prepare(self, image: ImageLike) -> tuple[str, NDArray[np.float32] | None, str | None]:
        """Name, network input, error."""
        name = source_name(image)
        try:
            return name, self.preprocess(image), None
        except Exception as error:  # the other pictures go on
            return name, None, reason_of(error, name)


def _softmax(logits: NDArray[np.float32]) -> NDArray[Any]:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def inference_model(
    model: "str | nn.Module", image: ImageLike, checkpoint: str | PathLike[str] | None = None, **options: Any
) -> dict[str, Any]:
    """Classify one image and answer like MMPretrain's function of this name.

    Args:
        model: a model name, MMPretrain's four VAN names among them, or a network.
        image: see `Predictor.preprocess`.
        checkpoint: weights of any public format, instead of the public ones.
        options: further arguments of `Predictor`.

    Returns:
        pred_scores (see `Predictor.scores`, (num_classes,)), pred_label (int), pred_score (float), pred_class (str).

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the image or the weights cannot be used.
    """
    predictor = Predictor(model, checkpoint, **options)
    scores = predictor.scores(predictor.logits(predictor.preprocess(image)[None]))[0]
    best = int(scores.argmax())
    return {
        "pred_scores": scores,
        "pred_label": best,
        "pred_score": float(scores[best]),
        "pred_class": predictor.classes[best],
    }


def iter_predictions(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: "str | PathLike[str] | nn.Module | Network | None" = None,
    checkpoint: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> Iterator[Any]:
    """`predict`, one image at a time: images are read, and results written, as the iterator is consumed."""
    if resume and output is None:
        raise UserError("resume continues an output: name it (--output)")
    check_request(model, **{name: options[name] for name in options.keys() & REQUEST})
    given = {name: options.pop(name) for name in ("pretrained", "classes", "weights") if name in options}
    opened = open_network(model, checkpoint, **given)
    if opened.dense:
        from vankit.prediction.scenes import iter_scenes

        if resume:
            raise UserError(f"{opened.source} is a detector or segmenter: leave out resume")
        yield from iter_scenes(inputs, opened, output, **options)
        return
    predictor = Predictor(opened, **options)
    _ = predictor.engine  # what is wrong with the options is said before the output is touched
    paths: Iterator[Path] = find_images(inputs)
    with open_table(output, predictor.top_k, resume) if output is not None else nullcontext() as table:
        if table is not None:
            paths = _rest(paths, table.written(), table.path)
        for prediction in predictor.stream(paths):
            if table is not None:
                table.write(row_of(prediction))
            yield prediction


def _rest(paths: Iterator[Path], written: Iterable[str], output: Path) -> Iterator[Path]:
    """The images after those that have a row.

    Raises:
        ValueError: the rows are of other images.
    """
    for number, name in enumerate(written, 1):
        path = next(paths, None)
        if path is None or _text(str(path)) != name:
            raise UserError(
                f"cannot continue {output}: its row {number} is of {name}, where the images given now have "
                f"{path or 'ended'}; give the same inputs as before, or leave out resume to write it anew"
            )
    yield from paths


def predict(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: "str | PathLike[str] | nn.Module | Network | None" = None,
    checkpoint: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    resume: bool = False,
    **options: Any,
) -> list[Any]:
    """Label image files, or detect or segment what is in them, as the checkpoint was trained for.

    Args:
        inputs: files, folders (searched through) and glob patterns.
        model, checkpoint: see `Predictor`; of a detector or segmenter the checkpoint alone, see `DensePredictor`.
        output: file that the rows are also written to as they come: .csv, .jsonl or .parquet; of a detector or
            segmenter a folder, see `vankit.prediction.scenes.iter_scenes`.
        resume: continue an output that a run with the same inputs and options left unfinished: its rows stay, and only
            images without a row are read; the inputs are compared with the rows, the options cannot be. Not for
            detectors and segmenters.
        options: further arguments of `Predictor` or `DensePredictor`.

    Returns:
        A `Prediction` per image, in order; one that fails has its error. Of a detector or segmenter `Detections`, a
        `SemanticMap` or a `PanopticMap`, and a `Failure` for an image that fails. With `resume`, only the new ones.

    Raises:
        FileNotFoundError: a folder or pattern has no images; raised after the others are answered and written.
        ValueError: output's suffix is unknown, or it cannot be continued, or see `Predictor` and `DensePredictor`.
    """
    return list(iter_predictions(inputs, model, checkpoint, output, resume, **options))


def row_of(prediction: Prediction) -> dict[str, Any]:
    """A prediction as `vankit.prediction.tables.Row`."""
    labels = prediction.labels
    return {
        "image": _text(prediction.source),
        "labels": [label.name for label in labels],
        "indices": [label.index for label in labels],
        "scores": [label.score for label in labels],
        "error": _text(prediction.error),
    }


def _text(value: Any) -> Any:
    """File names may hold bytes that are not text."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
