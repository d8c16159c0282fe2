"""Prediction: images in, labels out. PyTorch is loaded with a network of its own, not for an exported folder."""

import difflib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vankit.data.images import (
    MAX_PIXELS,
    ImageLike,
    is_encoded,
    is_one_image,
    open_image,
    several,
    source_name,
    to_image,
)
from vankit.deploy.opening import Network, open_network
from vankit.engines.base import Engine
from vankit.engines.processes import PerProcess, avoid_lost_threads
from vankit.errors import UserError, check_output, reason_of
from vankit.models.description import Weights
from vankit.prediction.request import check_request
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
        max_pixels: of the largest image that is decoded, and of all that are at the same time.
        reduced: decode JPEGs at 1/2, 1/4 or 1/8 of their size, as long as each side keeps at least twice as many
            pixels as the network sees: much faster for large photographs, but up to 16 labels in 1,000
            change, see docs/predict.md.

    Attributes:
        description: what the network is.
        classes: names by index; the indices as text where the weights name none (`named` is False).
        preprocessing: see `vankit.data.preprocessing.Preprocessing`.

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
        avoid_lost_threads()
        self._opened = opened = open_network(model, checkpoint, pretrained, classes, weights, engine, device)
        self._options: dict[str, Any] = {"engine": engine, "precision": precision, "device": device}
        self._batch_size, self._engine, self._explaining = batch_size, PerProcess[Engine](), PerProcess[Engine]()
        if opened.dense:
            raise UserError(f"{opened.source} is a detector or segmenter: use vankit.DensePredictor")
        self.description = opened.description
        self.classes, self.named = list(self.description.classes), self.description.named
        assert self.description.preprocessing is not None
        self.preprocessing = self.description.preprocessing
        if top_k is not None and top_k > len(self.classes):
            logger.warning(
                "top_k (--top-k) is %d, and the network has %d classes: all are given", top_k, len(self.classes)
            )
        self.top_k = min(top_k or (len(self.classes) if self.description.multi_label else 5), len(self.classes))
        self.max_pixels = max_pixels
        self._min_side = 2 * self.preprocessing.min_side if reduced else None

    @property
    def network(self) -> "nn.Module | None":
        """The PyTorch module in eval mode, of a network that was remembered opened now; None of an exported folder."""
        return self._opened.module

    @property
    def engine(self) -> Engine:
        """What runs the network; made on first use, which takes seconds for a network never run on this machine.

        Every process makes its own: a forked child, and one that unpickles the predictor.
        """
        return self._engine.get(self._open)

    def _open(self, class_maps: bool = False) -> Engine:
        options = {"class_maps": class_maps, **self._options}
        if self._opened.exported is not None:
            return self._opened.exported.engine(**options)
        from vankit.engines.choose import engine_by_key, engine_for

        size, options = self.preprocessing.input_size, {"batch_size": self._batch_size, **options}
        remembered = self._opened.remembered
        if remembered is not None and not remembered.is_open:
            return engine_by_key(lambda: remembered.module, remembered.key, size, **options)
        assert self.network is not None
        return engine_for(self.network, size, cached=self._opened.own, **options)

    def preprocess(self, image: ImageLike) -> NDArray[np.float32]:
        """Decode and prepare one image.

        Args:
            image: a path, the bytes of an image file, a PIL image, or a uint8 array (H, W, 3) in RGB order or (H, W)
                grey.

        Returns:
            (3, height, width) as `preprocessing` says.

        Raises:
            FileNotFoundError, ValueError: the image cannot be used; `vankit.data.images.ImageError` if it is broken.
        """
        if is_encoded(image):  # within its share of the pixels, as resizing takes memory too
            with open_image(image, self.max_pixels, self._min_side) as picture:
                return self.preprocessing(picture)
        return self.preprocessing(to_image(image))

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network.

        Args:
            x: preprocessed images, float32 (B, 3, H, W) of the size in `preprocessing`.

        Returns:
            (B, num_classes), float32.

        Raises:
            ValueError: x has another dtype, rank or size, or a logit is not finite.
        """
        logits = self.engine(self._checked(x))
        check_output(logits)
        return logits

    def _checked(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = np.asarray(x)
        expected = tuple(self.preprocessing.input_size)
        if x.dtype != np.float32 or x.ndim != 4 or x.shape[1:] != expected:
            shape = ", ".join(map(str, expected))
            raise UserError(f"x is {x.dtype} of shape {x.shape}: expected float32 (B, {shape})")
        return x

    def prepare_class_maps(self) -> Engine:
        """What runs the network for `class_maps`, made now rather than with the first image.

        Raises:
            ValueError, ImportError: the network or folder does not give them, or cannot be run here.
        """
        self._opened.check_class_maps()
        return self._explaining.get(lambda: self._open(class_maps=True))

    def class_maps(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Where in an image the evidence for each class is: Grad-CAM (arXiv 1610.02391) at a VAN's last stage.

        Behind that stage is a linear head, so this takes no gradients, and of a folder no PyTorch.

        Args:
            x: a preprocessed image, float32 (3, H, W) of the size in `preprocessing`.

        Returns:
            Its logits (num_classes,), and the maps (num_classes, h, w), 0 or more, of 1/32 of the image's sides.

        Raises:
            ValueError: the network is not a VAN, the folder was exported without them, x has another dtype, rank or
                size, or a value is not finite.
        """
        logits, maps = self.prepare_class_maps().outputs(self._checked(x[None]))
        check_output(logits)
        check_output(maps)
        return logits[0], maps[0]

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

        Raises:
            ValueError: it is neither.
        """
        if is_one_image(images):
            return next(self.stream([images]))
        return list(self.stream(several(images)))

    def stream(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """Label images in order, on all cores; the iterable is read as needed, a few images ahead of the answers."""
        source, failure = several(images), None

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

    def labels(self, logits: NDArray[np.float32], top_k: int | None = None) -> tuple[Label, ...]:
        """The labels of an image, best first; of a multi-label network those that reach their thresholds.

        Args:
            logits: (num_classes,).
            top_k: how many at most; None takes the predictor's.

        Raises:
            ValueError: a logit is not finite.
        """
        check_output(logits)
        scores = self.scores(logits[None])[0]
        best = np.argsort(-scores, kind="stable")
        if self.description.multi_label:
            best = best[scores[best] >= np.array(self.description.thresholds)[best]]
        best = best[: top_k or self.top_k]
        return tuple(Label(self.classes[i], int(i), float(scores[i])) for i in best)

    def _prediction(self, name: str, logits: NDArray[np.float32]) -> Prediction:
        try:
            return Prediction(name, self.labels(logits))
        except UserError as error:  # the other pictures go on
            return Prediction(name, error=str(error))

    def _prepare(self, image: ImageLike) -> tuple[str, NDArray[np.float32] | None, str | None]:
        """Name, network input, error."""
        name = source_name(image)
        try:
            return name, self.preprocess(image), None
        except Exception as error:  # the other pictures go on
            return name, None, reason_of(error, name)


def class_number(target: str | int, classes: Sequence[str], network: str) -> int:
    """The index of a class, by its name, one of several names that commas separate, or its index.

    Args:
        target: what a user calls it.
        classes: names by index.
        network: whose classes they are, for messages.

    Raises:
        ValueError: there is no such class, or there are several.
    """
    wanted = str(target).strip().casefold()
    names = [name.casefold() for name in classes]
    exact = [i for i, name in enumerate(names) if name == wanted]
    found = exact or [i for i, name in enumerate(names) if wanted in [part.strip() for part in name.split(",")]]
    if not found and wanted.isdecimal() and int(wanted) < len(names):
        found = [int(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        several = ", ".join(f"{i} {classes[i]}" for i in found)
        raise UserError(f"target {target!r} stands for {several}: pass the number")
    near = difflib.get_close_matches(wanted, names, 3, 0.5) or names[:5]
    raise UserError(
        f"{network} knows no class {target!r}: as `target` expected one of its {len(names)} classes, such as "
        f"{', '.join(classes[names.index(name)] for name in near)}, or 0 to {len(names) - 1}"
    )


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
