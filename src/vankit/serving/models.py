"""The networks that are served: each opened once, run by every thread of the pool, and replaced while it is used."""

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.data.images import MAX_PIXELS, open_image, to_image
from vankit.deploy.folder import is_exported
from vankit.deploy.opening import Network, is_path, open_network
from vankit.engines.base import CLASS_MAPS
from vankit.errors import UserError, check_output
from vankit.prediction.labels import Label, Predictor, class_number
from vankit.prediction.scenes import DensePredictor, Result
from vankit.serving import answers
from vankit.tasks.results import Detections, PanopticMap, SemanticMap

LOWEST_SCORE = 0.05  # of objects that a client can ask for: below it torchvision's heads keep none

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Ask:
    """What a client asks for beside the pictures.

    Attributes:
        top_k: labels per picture; None is 5, or of a multi-label network all.
        score: lowest score of objects.
    """

    top_k: int | None = None
    score: float = 0.3


@dataclass(frozen=True)
class Settings:
    """How networks are opened and run; see `vankit.serve`."""

    workers: int
    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model, as the Open Inference Protocol names it; -1 is any length."""

    name: str
    datatype: str
    shape: Sequence[int]


class Served:
    """A network as clients see it. Its methods may be called by all threads of the pool at once.

    Attributes:
        name: by which clients call it.
        version: counts up from 1 as it is replaced.
        task: classify, detect, segment or panoptic.
        inputs, outputs: of `infer`.
        seconds: that it took to load.
    """

    task: str
    classes: list[str]
    explains = False
    multi_label = False
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]

    def __init__(self, name: str, version: str) -> None:
        self.name, self.version, self.seconds = name, version, 0.0

    def about(self) -> dict[str, Any]:
        """What `GET /models` says of it."""
        return {
            "name": self.name,
            "version": self.version,
            "task": self.task,
            "multi_label": self.multi_label,
            "explains": self.explains,
            "classes": self.classes,
        }

    def predict(self, worker: int, content: bytes, ask: Ask) -> dict[str, Any]:
        """What is in a picture.

        Args:
            worker: number of the thread, or `vankit.serving.pool.ALONE`.
            content: of the picture's file.

        Raises:
            ValueError: the picture cannot be used.
        """
        raise NotImplementedError

    def draw(self, worker: int, content: bytes, ask: Ask) -> bytes:
        """The picture as a JPEG, with what a detector or segmenter finds in it drawn on.

        Raises:
            ValueError: the picture cannot be used.
        """
        raise NotImplementedError

    def targets(self, names: Sequence[str]) -> list[int]:
        """The indices of classes that are to be explained.

        Raises:
            ValueError: there is no such class, or the network cannot be explained.
        """
        raise UserError(f"{self.name} cannot be explained: expected a VAN that classifies")

    def explain(self, worker: int, content: bytes, targets: Sequence[int]) -> dict[str, Any]:
        """Where the evidence for classes is: those of `targets`, or the best one.

        Raises:
            ValueError: the picture cannot be used.
        """
        raise NotImplementedError

    def infer(self, worker: int, image: bytes | NDArray[Any], outputs: Sequence[str]) -> Arrays:
        """The outputs of these names for one picture, encoded or as a tensor without the batch's axis.

        Raises:
            ValueError: the picture cannot be used.
        """
        raise NotImplementedError


class ServedClassifier(Served):
    """A network that labels pictures."""

    task = "classify"

    def __init__(self, name: str, version: str, opened: Network, settings: Settings) -> None:
        super().__init__(name, version)
        self._predictor = predictor = Predictor(
            opened, engine=settings.engine, precision=settings.precision, device=settings.device
        )
        self._max_pixels, self._preprocessing = settings.max_pixels, predictor.preprocessing
        self.classes, self.multi_label = predictor.classes, predictor.description.multi_label
        self.explains = opened.class_maps
        self._runs = [predictor.engine.worker() for _ in range(settings.workers)]
        self._runs.append(predictor.engine)  # at ALONE, which is -1: on all cores
        size = list(predictor.preprocessing.input_size)
        for run in self._runs:  # what is wrong is found at the start, and the first client does not wait for it
            run(np.zeros((1, *size), np.float32))
        count = len(self.classes)
        self.inputs = [Tensor("images", "FP32", [-1, *size])]
        self.outputs = [Tensor(name, "FP32", [-1, count]) for name in ("logits", "scores")]
        if self.explains:
            self.outputs = [*self.outputs, Tensor(CLASS_MAPS, "FP32", [-1, count, -1, -1])]

    def _prepare(self, content: bytes) -> tuple[NDArray[np.float32], dict[str, int]]:
        with open_image(content, self._max_pixels) as image:  # within its share of the pixels
            return self._preprocessing(image), {"width": image.width, "height": image.height}

    def predict(self, worker: int, content: bytes, ask: Ask) -> dict[str, Any]:
        x, size = self._prepare(content)
        return {**size, "labels": self._labels(self._runs[worker](x[None])[0], ask.top_k)}

    def _labels(self, logits: NDArray[np.float32], top_k: int | None) -> list[dict[str, Any]]:
        return [vars(label) for label in self._predictor.labels(logits, top_k)]

    def targets(self, names: Sequence[str]) -> list[int]:
        if not self.explains:
            raise UserError(
                f"{self.name} gives no class maps: expected a VAN that classifies, exported to openvino or onnx by "
                "this version or a later one"
            )
        return [class_number(name, self.classes, self.name) for name in names]

    def explain(self, worker: int, content: bytes, targets: Sequence[int]) -> dict[str, Any]:
        x, size = self._prepare(content)
        logits, maps = self._predictor.class_maps(x)
        scores = self._predictor.scores(logits[None])[0]
        shown = [Label(self.classes[i], i, float(scores[i])) for i in targets or [int(logits.argmax())]]
        return {
            **size,
            "labels": self._labels(logits, 5),
            "region": list(self._preprocessing.region(**size)),
            "maps": [{**vars(label), "map": maps[label.index].tolist()} for label in shown],
        }

    def infer(self, worker: int, image: bytes | NDArray[Any], outputs: Sequence[str]) -> Arrays:
        x = self._prepare(image)[0] if isinstance(image, bytes) else image
        if CLASS_MAPS in outputs:
            logits, maps = self._predictor.class_maps(x)
        else:
            logits, maps = self._runs[worker](x[None])[0], None
        check_output(logits)
        scores = self._predictor.scores(logits[None])[0].astype(np.float32)
        found = {"logits": logits, "scores": scores, CLASS_MAPS: maps}
        return {name: np.asarray(found[name]) for name in outputs}


_SCENES: dict[str, Sequence[Tensor]] = {
    "detect": [Tensor("boxes", "FP32", [-1, 4]), Tensor("labels", "INT64", [-1]), Tensor("scores", "FP32", [-1])],
    "segment": [Tensor("labels", "INT64", [-1, -1])],
    "panoptic": [
        Tensor("segments", "INT64", [-1, -1]),
        Tensor("labels", "INT64", [-1]),
        Tensor("scores", "FP32", [-1]),
    ],
}


class ServedScenes(Served):
    """A detector or segmenter. It runs one picture at a time, on all cores; the others are decoded meanwhile."""

    def __init__(self, name: str, version: str, opened: Network, settings: Settings) -> None:
        super().__init__(name, version)
        self.task = opened.description.task
        self._predictor = predictor = DensePredictor(
            opened, score=LOWEST_SCORE, engine=settings.engine, precision=settings.precision, device=settings.device
        )
        self._max_pixels = settings.max_pixels
        self.classes = predictor.classes
        self.inputs = [Tensor("image", "UINT8", [-1, -1, 3])]
        masks = [Tensor("masks", "BOOL", [-1, -1, -1])] if self.task == "detect" and predictor.masks else []
        self.outputs = [*_SCENES[self.task], *masks]
        predictor.find("", Image.new("RGB", (64, 64)))  # compiles it, and finds what is wrong at the start

    def _find(self, content: bytes, score: float) -> tuple[Result, Image.Image]:
        image = to_image(content, self._max_pixels)
        return self._predictor.find("", image, score), image

    def predict(self, worker: int, content: bytes, ask: Ask) -> dict[str, Any]:
        found, image = self._find(content, ask.score)
        kind = "objects" if isinstance(found, Detections) else "segments"
        rows = answers.scene_rows(found, self._predictor.category_ids)
        return {"width": image.width, "height": image.height, kind: rows}

    def draw(self, worker: int, content: bytes, ask: Ask) -> bytes:
        found, image = self._find(content, ask.score)
        return answers.jpeg(found.draw(image))

    def infer(self, worker: int, image: bytes | NDArray[Any], outputs: Sequence[str]) -> Arrays:
        rgb = to_image(image, self._max_pixels)
        if rgb.width * rgb.height > self._max_pixels:
            raise UserError(f"the picture has {rgb.width} x {rgb.height} pixels, more than {self._max_pixels:,}")
        found = _arrays(self._predictor.find("", rgb))
        return {name: np.asarray(found[name]) for name in outputs}


def _arrays(found: Result) -> dict[str, Any]:
    if isinstance(found, SemanticMap):
        return {"labels": found.labels}
    if isinstance(found, PanopticMap):
        return {"segments": found.segments, "labels": found.labels, "scores": found.scores}
    return {"boxes": found.boxes, "labels": found.labels, "scores": found.scores, "masks": found.masks}


def open_served(name: str, version: str, model: str | PathLike[str], settings: Settings) -> Served:
    """Open a network to be served.

    Args:
        model: see `vankit.deploy.opening.open_network`.

    Raises:
        FileNotFoundError, ValueError, ImportError: it cannot be opened, or cannot be run here.
    """
    start = time.perf_counter()
    opened = open_network(model, engine=settings.engine, device=settings.device)
    made = (ServedScenes if opened.dense else ServedClassifier)(name, version, opened, settings)
    made.seconds = time.perf_counter() - start
    return made


@dataclass
class Models:
    """The networks by name; each can be loaded anew while clients use it.

    Args:
        sources: what `open_network` takes, by name.
        settings: of all.
        loaded: is called with each network that was loaded.
    """

    sources: Mapping[str, str | PathLike[str]]
    settings: Settings
    loaded: Callable[[Served], None] = lambda served: None
    _served: dict[str, Served] = field(default_factory=dict)
    _loading: threading.Lock = field(default_factory=threading.Lock)

    def load(self, name: str) -> Served:
        """Open a network, and give it to clients from then on; those who have the former one keep it until they end.

        Raises:
            KeyError: there is none of this name.
            FileNotFoundError, ValueError, ImportError: it cannot be opened; the former one, if any, stays.
        """
        source = self.sources[name]
        with self._loading:
            former = self._served.get(name)
            version = "1" if former is None else str(int(former.version) + 1)
            self._served[name] = served = open_served(name, version, source, self.settings)
        self.loaded(served)
        return served

    def __getitem__(self, name: str) -> Served:
        return self._served[name]

    def all(self) -> list[Served]:
        """The networks in the order in which they were named."""
        return [self._served[name] for name in self.sources if name in self._served]


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_OF_RUNS = ("best", "last", "model")  # names of files that say nothing of the network


def named_sources(models: Iterable[str]) -> dict[str, str]:
    """Networks by the names that clients call them.

    Args:
        models: each NAME=MODEL, or a model's name, checkpoint or folder, which is then called as its file or folder is.

    Raises:
        ValueError: a name does not fit into an address, or two are the same.
    """
    sources: dict[str, str] = {}
    for given in models:
        name, model = _split(given)
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{name!r} cannot be the name of a model in an address: expected letters, digits, '.', '_' and '-'; "
                f"pass NAME={model}"
            )
        if name in sources:
            raise UserError(f"{model} and {sources[name]} would both be called {name}: pass NAME=MODEL for one of them")
        sources[name] = model
    if not sources:
        raise UserError("there is no model to serve: pass a model's name, a checkpoint or an exported folder")
    return sources


def _split(given: str) -> tuple[str, str]:
    name, equals, model = given.partition("=")
    if equals and model and _NAME.fullmatch(name) and not Path(given).exists():
        return name, model
    if not is_exported(given) and not is_path(given):
        return Path(given).name, given
    path = Path(given).resolve()
    stem = path.name if path.is_dir() else path.stem
    return (path.parent.name if stem in _OF_RUNS else stem), given
