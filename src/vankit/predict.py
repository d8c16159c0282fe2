"""Prediction: images in, labels out."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import nn

from vankit.data.images import MAX_PIXELS, ImageLike, find_images, source_name, to_image
from vankit.data.tables import open_table
from vankit.dense import iter_scenes
from vankit.models import weights
from vankit.models.van import VARIANTS, create_model, variant_of

# MMPretrain's names of the four published classifiers
ALIASES = {
    "van-tiny_3rdparty_in1k": "van_b0.in1k",
    "van-small_3rdparty_in1k": "van_b1.in1k",
    "van-base_3rdparty_in1k": "van_b2.in1k",
    "van-large_3rdparty_in1k": "van_b3.in1k",
}

_Prepared = tuple[str, NDArray[np.float32] | None, str | None]  # name, network input, error


@dataclass(frozen=True)
class Label:
    """One class of a prediction: its name, its index in the head, its softmax score 0 to 1."""

    name: str
    index: int
    score: float


@dataclass(frozen=True)
class Prediction:
    """What the network says of one image.

    Attributes:
        source: path as given, or a description of an image passed in memory.
        labels: the best classes, best first; empty where the image failed.
        error: why the image failed, else None.
    """

    source: str
    labels: tuple[Label, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to the network's input: resize the short side, crop the centre, normalise.

    Attributes:
        input_size: (channels, height, width).
        mean, std: per channel, in units of 0 to 1.
        crop_pct: part of the resized short side that the crop keeps.
        interpolation: timm's name, such as bicubic.
    """

    input_size: Sequence[int]
    mean: Sequence[float]
    std: Sequence[float]
    crop_pct: float
    interpolation: str

    def transform(self) -> Any:
        """A callable: PIL RGB image → float32 tensor (3, H, W)."""
        return create_transform(
            tuple(self.input_size),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
        )


class Predictor:
    """A classifier ready for use.

    Args:
        model: a timm model name such as van_b0, van_b0.cifar10 or one of MMPretrain's four VAN names; or a network
            (B, 3, H, W) → (B, classes). None takes the checkpoint's.
        checkpoint: a file of any public format. Its classes and preprocessing are used where it names them.
        pretrained: without a checkpoint, load the model's public weights (else they are random).
        classes: names by index, over those of the weights.
        top_k: labels per prediction, at most the number of classes.
        batch_size: images per forward pass.
        device: torch's name, or 'auto' for CUDA where there is one.
        max_pixels: largest image decoded, in pixels.

    Attributes:
        network: the model in eval mode.
        classes: names by index; the indices as text where the weights name none (`named` is False).
        preprocessing: a `Preprocessing`.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the weights cannot be had.
    """

    def __init__(
        self,
        model: str | nn.Module | None = None,
        checkpoint: str | PathLike[str] | None = None,
        pretrained: bool = True,
        *,
        classes: Sequence[str] | None = None,
        top_k: int = 5,
        batch_size: int = 16,
        device: str = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if top_k < 1 or batch_size < 1:
            raise ValueError(f"top_k is {top_k} and batch_size {batch_size}, expected 1 or more")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        network, own_classes, self.preprocessing = _load(model, checkpoint, pretrained)
        self.device = torch.device(device)
        self.network = network.eval().to(memory_format=torch.channels_last).to(self.device)
        self.named = classes is not None or own_classes is not None
        outputs = getattr(network, "num_classes", len(classes or ()))
        self.classes = list(classes or own_classes or (str(i) for i in range(outputs)))
        if not outputs or len(self.classes) != outputs:
            raise ValueError(
                f"the network has {outputs} outputs and there are {len(self.classes)} class names: expected as many "
                "names as outputs, and at least one; pass classes=, or a checkpoint with a classification head"
            )
        self.top_k = min(top_k, len(self.classes))
        self.batch_size = batch_size
        self.max_pixels = max_pixels
        self._transform = self.preprocessing.transform()

    def preprocess(self, image: ImageLike) -> NDArray[np.float32]:
        """Decode and prepare one image.

        Args:
            image: a path, a PIL image, or a uint8 array (H, W, 3) in RGB order or (H, W) grey.

        Returns:
            (3, height, width) as `preprocessing` says.

        Raises:
            FileNotFoundError, ValueError: the image cannot be used; `vankit.data.images.ImageError` if it is broken.
        """
        rgb = to_image(image, self.max_pixels)
        return np.asarray(self._transform(rgb), dtype=np.float32)

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network.

        Args:
            x: preprocessed images, float32 (B, 3, H, W).

        Returns:
            (B, num_classes), float32.

        Raises:
            ValueError: x has another dtype or rank.
        """
        x = np.asarray(x)
        if x.dtype != np.float32 or x.ndim != 4:
            raise ValueError(f"x is {x.dtype} of shape {x.shape}: expected float32 (B, 3, H, W)")
        with torch.inference_mode():
            images = torch.from_numpy(x).to(self.device, memory_format=torch.channels_last)
            return self.network(images).float().cpu().numpy()

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
        """Label images batch by batch; the iterable is read as needed, one batch ahead of the answers."""
        source, failure = iter(images), None

        def submit() -> list[Future[_Prepared]]:
            nonlocal failure
            futures: list[Future[_Prepared]] = []
            try:
                for image in islice(source, self.batch_size):
                    futures.append(pool.submit(self._prepare, image))
            except Exception as error:  # raised once the images before it are answered
                failure = error
            return futures

        with ThreadPoolExecutor(2) as pool:
            ahead = submit()
            while ahead:
                batch, ahead = ahead, ([] if failure else submit())
                yield from self._label([future.result() for future in batch])
        if failure is not None:
            raise failure

    def _prepare(self, image: ImageLike) -> _Prepared:
        name = source_name(image)
        try:
            return name, self.preprocess(image), None
        except Exception as error:  # decoders of lazily opened images raise whatever they trip over
            return name, None, str(error) or type(error).__name__

    def _label(self, batch: list[_Prepared]) -> Iterator[Prediction]:
        ready = [x for _, x, _ in batch if x is not None]
        scores: Iterator[NDArray[np.float32]] = iter(_softmax(self.logits(np.stack(ready))) if ready else ())
        for name, x, error in batch:
            if x is None:
                yield Prediction(name, error=error)
                continue
            row = next(scores)
            best = np.argsort(-row, kind="stable")[: self.top_k]
            yield Prediction(name, tuple(Label(self.classes[i], int(i), float(row[i])) for i in best))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _load(
    model: str | nn.Module | None, checkpoint: str | PathLike[str] | None, pretrained: bool
) -> tuple[Any, list[str] | None, Preprocessing]:
    """The network with its class names, if it has any, and preprocessing."""
    metadata: dict[str, Any] = {}
    network: Any
    if isinstance(model, nn.Module):
        network = model
        if checkpoint is not None:
            metadata = weights.load_checkpoint(network, checkpoint).metadata
    else:
        if checkpoint is not None:
            if "head" in weights.read_metadata(checkpoint):
                raise ValueError(f"{checkpoint} is a detector or segmenter: use vankit.DensePredictor")
            found = weights.read_checkpoint(checkpoint)
            metadata = found.metadata
            model = model or metadata.get("model") or variant_of(found.state_dict)
            if model is None:
                raise ValueError(f"{checkpoint} is none of {', '.join(VARIANTS)}: pass the network itself as model")
            if not found.num_classes:
                raise ValueError(f"{checkpoint} holds no classification head, only a backbone")
            network = create_model(ALIASES.get(model, model), num_classes=found.num_classes)
            weights.load_checkpoint(network, found)
        else:
            name = model or "van_b0"
            network = create_model(ALIASES.get(name, name), pretrained=pretrained)
            file = network.pretrained_cfg.get("file")
            if pretrained and file:
                metadata = weights.read_metadata(file)
    config = {**resolve_model_data_config(network), **metadata.get("preprocessing", {})}
    keys = ("input_size", "mean", "std", "crop_pct", "interpolation")
    preprocessing = Preprocessing(**{key: config[key] for key in keys})
    classes = metadata.get("classes")
    if classes is None and getattr(network, "num_classes", 0) == 1000:
        classes = list(ImageNetInfo("imagenet-1k").label_descriptions())
    return network, classes, preprocessing


def inference_model(
    model: str | nn.Module, image: ImageLike, checkpoint: str | PathLike[str] | None = None, **options: Any
) -> dict[str, Any]:
    """Classify one image and answer like MMPretrain's function of this name.

    Args:
        model: a model name, MMPretrain's four VAN names among them, or a network.
        image: see `Predictor.preprocess`.
        checkpoint: weights of any public format, instead of the public ones.
        options: further arguments of `Predictor`.

    Returns:
        pred_scores (softmax, float32 (num_classes,)), pred_label (int), pred_score (float), pred_class (str).

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the image or the weights cannot be used.
    """
    predictor = Predictor(model, checkpoint, **options)
    scores = _softmax(predictor.logits(predictor.preprocess(image)[None]))[0]
    best = int(scores.argmax())
    return {
        "pred_scores": scores,
        "pred_label": best,
        "pred_score": float(scores[best]),
        "pred_class": predictor.classes[best],
    }


def iter_predictions(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: str | nn.Module | None = None,
    checkpoint: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    **options: Any,
) -> Iterator[Any]:
    """`predict`, one image at a time: images are read, and results written, as the iterator is consumed."""
    if checkpoint is not None and "head" in weights.read_metadata(checkpoint):
        if model is not None:
            raise ValueError(f"{checkpoint} is a detector or segmenter and knows its model: leave out model")
        yield from iter_scenes(inputs, checkpoint, output, **options)
        return
    predictor = Predictor(model, checkpoint, **options)
    paths = find_images(inputs)
    with open_table(output, predictor.top_k) if output is not None else nullcontext() as table:
        for prediction in predictor.stream(paths):
            if table is not None:
                table.write(_row(prediction))
            yield prediction


def predict(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    model: str | nn.Module | None = None,
    checkpoint: str | PathLike[str] | None = None,
    output: str | PathLike[str] | None = None,
    **options: Any,
) -> list[Any]:
    """Label image files, or detect or segment what is in them, as the checkpoint was trained for.

    Args:
        inputs: files, folders (searched through) and glob patterns.
        model, checkpoint: see `Predictor`; of a detector or segmenter the checkpoint alone, see `DensePredictor`.
        output: file that the rows are also written to as they come: .csv, .jsonl or .parquet; of a detector or
            segmenter a folder, see `vankit.dense.iter_scenes`.
        options: further arguments of `Predictor` or `DensePredictor`.

    Returns:
        A `Prediction` per image, in order; one that fails has its error. Of a detector or segmenter `Detections`, a
        `SemanticMap` or a `PanopticMap`, and a `Failure` for an image that fails.

    Raises:
        FileNotFoundError: a folder or pattern has no images; raised after the others are answered and written.
        ValueError: output's suffix is unknown, or see `Predictor` and `DensePredictor`.
    """
    return list(iter_predictions(inputs, model, checkpoint, output, **options))


def _row(prediction: Prediction) -> dict[str, Any]:
    labels = prediction.labels
    return {
        "image": _text(prediction.source),
        "labels": [label.name for label in labels],
        "indices": [label.index for label in labels],
        "scores": [label.score for label in labels],
        "error": _text(prediction.error),
    }


def _text(value: Any) -> Any:
    """File names may hold bytes that are no text."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
