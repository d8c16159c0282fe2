"""int8: an exported network quantised after training, without the layers that would cost accuracy."""

import glob
import logging
import re
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import StringIO
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from vankit.data.folders import class_index, has_splits, open_dataset
from vankit.data.held_out import HeldOut, announce
from vankit.data.images import MAX_PIXELS, ImageError, load_image
from vankit.data.multilabel import check_kind, is_multilabel
from vankit.data.preprocessing import Preprocessing
from vankit.data.reading import Reading, is_stream
from vankit.data.walk import find_images
from vankit.deploy.folder import FILES, Exported
from vankit.deploy.judge import Judge
from vankit.engines import onnxruntime as onnxruntime_engine
from vankit.engines import openvino as openvino_engine
from vankit.engines.base import Array, Engine, cores
from vankit.errors import MissingPackageError, UserError, check_output
from vankit.models.description import Description

CALIBRATION_IMAGES = 300  # at most, evenly drawn
_PHOTOGRAPHS = 1_000  # at most, evenly drawn, that agreement is measured on
_CHUNK = 64  # images decoded at once
_ROUNDS = 20  # of the clock
_DEPTHWISE, _HEAD = "depth-wise convolutions", "head"

Kind = Literal["depth-wise", "strided", "other", "head", "float"]


@dataclass(frozen=True)
class Attempt:
    """A way to run the network.

    Attributes:
        precision: float32, bf16 or int8.
        left_out: groups of layers that int8 leaves in float; none if empty.
        score: 0 to 1, see `Int8Report`.
        milliseconds: for one image on all cores of the machine that exported: a rough figure.
    """

    precision: str
    left_out: list[str]
    score: float
    milliseconds: float


@dataclass(frozen=True)
class Int8Report:
    """What int8 costs and gives.

    Attributes:
        calibration_images: that the ranges of values were taken from.
        images: that the score was measured on.
        labelled: whether by labels; else what the float32 network says of the images is the truth.
        measure: what the score is: top-1, mAP of a multi-label network, box AP or mask AP, mIoU, or PQ.
        float32: the score before, 0 to 1.
        score, left_out: of what was kept, see `Attempt`.
        attempts: all that was measured, in order: float32, bf16 where the engine has it, and ways to quantise.
    """

    calibration_images: int
    images: int
    labelled: bool
    measure: str
    float32: float
    score: float
    left_out: list[str]
    attempts: list[Attempt]


class Trial(Protocol):
    """What a network is quantised with, and measured on.

    Attributes:
        inputs: of the model, to calibrate with.
        images: that can be measured; known once some were.
        measure, labelled: see `Int8Report`.
    """

    @property
    def inputs(self) -> Sequence[NDArray[Any]]: ...
    @property
    def images(self) -> int: ...
    @property
    def measure(self) -> str: ...
    @property
    def labelled(self) -> bool: ...

    def score(self, engine: Engine, title: str) -> float:
        """The measure, 0 to 1. The first engine is the float32 network's.

        Raises:
            ValueError: no image can be read, what the network gives is not finite, or the images say nothing.
        """


@dataclass
class Pictures:
    """The `Trial` of a classifier.

    Attributes:
        description: of the network.
        calibration, measured: datasets of (network input, label).
        classes: the network's class index of each label; None without labels.
    """

    description: Description
    calibration: Any
    measured: Any
    classes: NDArray[np.int64] | None
    _truth: NDArray[Any] | None = field(default=None, init=False)

    @cached_property
    def inputs(self) -> list[Array]:
        found = _calibration(self.calibration)
        if not found:
            raise unreadable(self.calibration)
        return found

    @property
    def images(self) -> int:
        return 0 if self._truth is None else len(self._truth)

    @property
    def labelled(self) -> bool:
        return self.classes is not None

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.description, self.classes)

    @property
    def measure(self) -> str:
        return self._judge.measure

    def score(self, engine: Engine, title: str) -> float:
        answers, labels = _answers(engine, self.measured, title, self._judge.keep)
        if not len(answers):
            raise unreadable(self.measured)
        if self._truth is None:
            self._truth = self._judge.truth(answers, labels)
        return self._judge.score(answers, self._truth)


class _Photographs:
    """Without labels."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing, max_pixels: int) -> None:
        self.paths, self.preprocessing, self.max_pixels = paths, preprocessing, max_pixels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Array, int]:
        return self.preprocessing(load_image(self.paths[i], self.max_pixels)), -1


def open_pictures(data: str | PathLike[str], description: Description, max_pixels: int = MAX_PIXELS) -> Pictures:
    """Find the images to calibrate and to measure with.

    Args:
        data: a labelled set as `vankit.validate` takes it: its split train, or else val, calibrates, and val is
            measured; or photographs, as a folder or a glob pattern: every other one calibrates, the rest is measured.
        description: of the network.
        max_pixels: of the largest image that is decoded.

    Raises:
        FileNotFoundError, ValueError: there are none, or the network does not know the labels.
    """
    preprocessing = description.preprocessing
    assert preprocessing is not None
    size = preprocessing.input_size[-1]
    options: dict[str, Any] = {"held_out": description.held_out or HeldOut(), "reading": Reading(max_pixels=max_pixels)}
    try:
        measured = open_dataset(data, "val", preprocessing, size, **options)
        check_kind(measured, description.multi_label, data)
        index = class_index(list(measured.classes), list(description.classes), description.named)
    except UserError:
        if not _may_be_photographs(str(data)):
            raise
        paths = list(find_images(data))
        rest = paths[1::2] or paths
        rest = [rest[i] for i in spread(len(rest), _PHOTOGRAPHS)]
        calibration, measured = (_Photographs(part, preprocessing, max_pixels) for part in (paths[::2], rest))
        return Pictures(description, calibration, measured, None)
    announce(measured, data)
    try:
        calibration = open_dataset(data, "train", preprocessing, size, **options)
    except UserError:
        calibration = measured
    return Pictures(description, calibration, measured, index)


def _may_be_photographs(data: str) -> bool:
    return (Path(data).exists() or glob.has_magic(data)) and not (has_splits(Path(data)) or is_multilabel(Path(data)))


def quantize(exported: Exported, trial: Trial, max_drop: float) -> Int8Report:
    """Quantise the model in an exported folder.

    Convolutions and matrix products get int8 weights and inputs; sums, products and norms stay in float, and of a
    detector or segmenter all that has no weights. All of them are tried, and all but the depth-wise ones, which are
    left out unless that is less accurate or slower. Where both lose too much, further groups are left out one after the
    other.

    Args:
        exported: a folder in float32, of format openvino or onnx; its model is replaced, its description is not.
        trial: see `open_pictures`, and `vankit.deploy.dense_judge.open_labelled`.
        max_drop: of the trial's measure, which may be lost, 0 to 1.

    Raises:
        ImportError: nncf is missing.
        ValueError: all that was tried loses more, an output is not finite, or no image can be read.
    """
    with _quiet():
        try:
            import nncf  # noqa: F401
        except ImportError:
            raise MissingPackageError("int8 needs NNCF: pip install 'vankit[int8]'") from None

    inputs = trial.inputs  # if there are none, it is said now rather than after an hour of measuring

    def attempt(engine: Engine, left_out: list[str]) -> Attempt:
        title = " without ".join([engine.precision, *left_out[-1:]])
        return Attempt(engine.precision, left_out, trial.score(engine, title), _milliseconds(engine, inputs[0]))

    engine = exported.engine(cached=False)
    attempts = [attempt(engine, [])]
    with suppress(ValueError):  # neither every CPU nor every engine has it
        engine = exported.engine(precision="bf16", cached=False)
    if engine.precision == "bf16":
        attempts.append(attempt(engine, []))
    layers = _layers(exported)
    with tempfile.TemporaryDirectory(dir=exported.folder) as scratch:
        for left_out, names in _ladder(layers):
            found = replace(exported, folder=Path(scratch) / str(len(attempts)), precision="int8")
            _quantize_without(names, exported, found, inputs)
            attempts.append(attempt(found.engine(cached=False), left_out))
            if not left_out and any(kind == "depth-wise" for _, kind in layers):
                continue  # these gain least: in OpenVINO little time, in ONNX Runtime they cost much
            kept = _best(attempts, max_drop)
            if kept is not None:
                break
        else:
            raise UserError(_too_much(attempts, max_drop, trial.measure))
        for name in FILES[exported.format]:
            (Path(scratch) / str(kept) / name).replace(exported.folder / name)
    basis = len(trial.inputs), trial.images, trial.labelled, trial.measure
    return Int8Report(*basis, attempts[0].score, attempts[kept].score, attempts[kept].left_out, attempts)


def _best(attempts: Sequence[Attempt], max_drop: float) -> int | None:
    """The last way to quantise that loses little enough, or an earlier one that is neither less accurate nor slower."""
    good = [
        i for i, a in enumerate(attempts) if a.precision == "int8" and attempts[0].score - a.score <= max_drop + 1e-9
    ]
    if not good:
        return None
    last = attempts[good[-1]]
    return next(i for i in good if attempts[i].score >= last.score and attempts[i].milliseconds <= last.milliseconds)


def _too_much(attempts: Sequence[Attempt], max_drop: float, measure: str) -> str:
    figures = "; ".join(
        f"{', '.join(a.left_out) or 'nothing'} left in float: {a.score:.2%}" for a in attempts if a.precision == "int8"
    )
    return (
        f"int8 loses more than {max_drop:.2%} of {measure}, which is {attempts[0].score:.2%} in float32 ({figures}): "
        "take more images to calibrate with, and such as the network will see; or allow a larger max_drop "
        "(--max-drop); or stay in float"
    )


def _ladder(layers: Sequence[tuple[str, Kind]]) -> list[tuple[list[str], list[str]]]:
    """What to leave in float, less and less of the network being quantised: names of groups, names of layers.

    Args:
        layers: (name, kind) from the input to the output.
    """
    starts = [i for i, (_, kind) in enumerate(layers) if kind == "strided"]  # of the stages, each a patch embedding
    groups = [
        (_DEPTHWISE, [name for name, kind in layers if kind == "depth-wise"]),
        (_HEAD, [name for name, kind in layers if kind == "head"]),
        ("patch embeddings", [name for name, kind in layers if kind == "strided"]),
        *((f"stage {stage}", [name for name, _ in layers[:end]]) for stage, end in enumerate(starts[1:], 1)),
    ]
    ladder: list[tuple[list[str], list[str]]] = [([], [name for name, kind in layers if kind == "float"])]
    for group, members in groups:
        groups_before, before = ladder[-1]
        if more := [name for name in members if name not in before]:
            ladder.append(([*groups_before, group], before + more))
    return ladder


def _layers(exported: Exported) -> list[tuple[str, Kind]]:
    """(name, kind) of all operations in the order of computation; those for class maps alone stay in float."""
    if exported.format == "openvino":
        model = openvino_engine.openvino_core().read_model(exported.path)
        kind = _dense_kind if exported.dense else _openvino_kind
        layers = [
            (op.get_friendly_name(), kind(op))
            for op in model.get_ordered_ops()
            if op.get_type_name() not in ("Parameter", "Constant", "Result")
        ]
        for_logits = {op.get_friendly_name() for op in openvino_engine.without_class_maps(model).get_ordered_ops()}
    else:
        import onnx

        content = exported.path.read_bytes()
        nodes, rest = (
            onnx.load_from_string(each).graph.node for each in (content, onnxruntime_engine.without_class_maps(content))
        )
        attributes = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
        layers = [
            (node.name, _kind(node.op_type, found.get("group", 1), found.get("strides", ())))
            for node, found in zip(nodes, attributes, strict=True)
        ]
        for_logits = {node.name for node in rest}
    return [(name, kind if name in for_logits else "float") for name, kind in layers]


def _openvino_kind(op: Any) -> Kind:
    return _kind(op.get_type_name(), 1, op.get_attributes().get("strides", ()))


def _dense_kind(op: Any) -> Kind:
    """Of a whole detector or segmenter: what computes sizes, positions and attention has no weights."""
    kind = _openvino_kind(op)
    if kind == "float" or op.input_value(1).get_node().get_type_name() != "Constant":
        return "float"
    return kind if re.search(r"[.]stage\d[.]", op.get_friendly_name()) else "head"


def _kind(operation: str, groups: int, strides: Sequence[int]) -> Kind:
    """
    Args:
        operation: the type's name in OpenVINO or ONNX.
    """
    if operation not in ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "Conv", "MatMul", "Gemm"):
        return "float"
    if operation == "GroupConvolution" or groups > 1:
        return "depth-wise"
    return "strided" if max(strides, default=1) > 1 else "other"


def _quantize_without(
    names: list[str], exported: Exported, quantised: Exported, inputs: Sequence[NDArray[Any]]
) -> None:
    with _quiet():
        import nncf

        left_out = nncf.IgnoredScope(names=names)
        quantised.folder.mkdir()
        if exported.format == "openvino":
            import openvino

            model = openvino_engine.openvino_core().read_model(exported.path)
            model = nncf.quantize(model, nncf.Dataset(inputs), subset_size=len(inputs), ignored_scope=left_out)
            openvino.save_model(model, quantised.path, compress_to_fp16=False)
            return
        import onnx

        feeds = nncf.Dataset([{"images": x} for x in inputs])
        model = nncf.quantize(onnx.load(exported.path), feeds, subset_size=len(inputs), ignored_scope=left_out)
        onnx.save(model, quantised.path)


@contextmanager
def _quiet() -> Iterator[None]:
    """NNCF logs and draws bars on the standard output, PyTorch logs what NNCF does not use."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _calibration(dataset: Any) -> list[Array]:
    """Network inputs (1, C, H, W), evenly drawn, or the first ones of a stream."""
    if is_stream(dataset):
        return [x[None] for x, _ in islice(dataset, CALIBRATION_IMAGES)]
    chunks = _chunks(dataset, spread(len(dataset), CALIBRATION_IMAGES))
    return [x[None] for chunk in chunks for x, _ in chunk]


def _answers(
    engine: Engine, dataset: Any, title: str, keep: Callable[[Array], NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """What is kept of the logits, and the label or labels, of each image that can be read."""
    answers: list[Any] = []
    labels: list[Any] = []
    count, console = len(dataset), Console(stderr=True)
    for chunk in track(_chunks(dataset, range(count)), title, -(-count // _CHUNK), console=console, transient=True):
        if chunk:
            logits = engine(np.stack([x for x, _ in chunk]))
            check_output(logits)
            answers.extend(keep(logits))
            labels.extend(label for _, label in chunk)
    return np.array(answers), np.array(labels, np.int64)


def _chunks(dataset: Any, indices: Sequence[int]) -> Iterator[list[tuple[Array, int]]]:
    """The samples that can be read, decoded on all cores; those of a stream in its own order."""
    if is_stream(dataset):
        samples = iter(dataset)
        while chunk := list(islice(samples, _CHUNK)):
            yield chunk
        return

    def load(i: int) -> Any:
        try:
            return dataset[i]
        except (OSError, ImageError):
            return None

    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(indices), _CHUNK):
            loaded = pool.map(load, indices[start : start + _CHUNK])
            yield [sample for sample in loaded if sample is not None]


def unreadable(dataset: Any) -> UserError:
    """For a set of which no image can be read, with what is wrong with the first one; a stream has gone over it."""
    why = ""
    if not is_stream(dataset) and len(dataset):
        try:
            dataset[0]
        except (OSError, ImageError) as error:
            why = f"; {error}"
    return UserError(f"none of the images to calibrate or measure int8 can be read: pass others (--calibrate){why}")


def spread(length: int, count: int) -> list[int]:
    """At most `count` indices, evenly drawn."""
    return [int(i) for i in np.linspace(0, length - 1, min(count, length))]


def _milliseconds(engine: Engine, x: NDArray[Any]) -> float:
    times = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        engine.outputs(x)
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 3)
