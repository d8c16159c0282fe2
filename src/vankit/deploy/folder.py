"""Exported folders: what `vankit export` writes, opened without PyTorch (which pt2 and executorch need)."""

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, get_args

from msgspec import Meta

from vankit.data.preprocessing import Preprocessing
from vankit.deploy.programs import load_program
from vankit.engines.base import CLASS_MAPS, Engine, EngineName
from vankit.engines.executorch import ExecuTorchEngine
from vankit.engines.litert import LiteRtEngine
from vankit.engines.onnxruntime import OnnxRuntimeEngine
from vankit.engines.openvino import OpenVinoEngine, openvino_core
from vankit.errors import MissingFileError, UserError
from vankit.files import open_file, read_json, read_text, reading, sha256_of, to_json, write_text
from vankit.models.description import Description
from vankit.schema import Count, check_fields, made

Format = Literal["openvino", "onnx", "pt2", "executorch", "litert", "web"]

FILES: dict[str, tuple[str, ...]] = {
    "openvino": ("model.xml", "model.bin"),
    "onnx": ("model.onnx",),
    "pt2": ("model.pt2",),
    "executorch": ("model.pte",),
    "litert": ("model.tflite",),
    "web": ("model.onnx",),
}
_ENGINES = {
    "openvino": "openvino", "onnx": "onnxruntime", "pt2": "torch", "executorch": "executorch", "litert": "litert",
    "web": "onnxruntime",
}  # fmt: skip
DESCRIPTION = ("export.json", "preprocessing.json", "labels.txt")
_BESIDE = DESCRIPTION[1:]

# of the pictures for a model that takes one size, in pixels
LARGEST_SIDE = 4096
# formats whose models take one size
ON_DEVICES: dict[str, type[ExecuTorchEngine | LiteRtEngine]] = {"executorch": ExecuTorchEngine, "litert": LiteRtEngine}
# names and shapes of what models give; None is any length, and -1 the number of classes
OUTPUTS: dict[str, dict[str, tuple[int | None, ...]]] = {
    "classify": {"logits": (1, -1), CLASS_MAPS: (1, -1, None, None)},
    "detect": {"boxes": (1, None, 5), "labels": (1, None), "masks": (1, None, None, None)},
    "segment": {"logits": (1, -1, None, None)},
    "panoptic": {"segments": (1, None, None), "labels": (1, None), "scores": (1, None)},
}


@dataclass(frozen=True)
class Exported:
    """A folder with a format's `FILES`, labels.txt, preprocessing.json and export.json.

    Attributes:
        folder: where it is.
        format: openvino, onnx, pt2, executorch, litert or web.
        precision: in which it computes, float32 or int8.
        dynamic: whether it takes every size (a classifier also every batch), or batches of 1 of the preprocessing's
            size, or of `size`.
        description: of the network.
        facts: how it was made and checked.
        checksums: SHA-256 in hexadecimal of the other files by name; empty until the folder is read.
        outputs: names of what the model gives, some of `OUTPUTS`.
        size: height and width of the pictures that a segmenter takes which is not dynamic, else empty.
    """

    folder: Path
    format: Format
    precision: str
    dynamic: bool
    description: Description
    facts: dict[str, Any] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    outputs: Sequence[str] = ("logits",)
    size: Sequence[int] = ()

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"folder": self.folder.absolute()}  # another process may run in another folder

    @property
    def dense(self) -> bool:
        """Whether it is a detector or segmenter."""
        return self.description.task != "classify"

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image to a classifier's input."""
        assert self.description.preprocessing is not None
        return self.description.preprocessing

    @property
    def path(self) -> Path:
        """The model's file, with model.xml of openvino's two."""
        return self.folder / FILES[self.format][0]

    def write_description(self) -> None:
        """Write labels.txt, preprocessing.json and export.json.

        Raises:
            ValueError: a class name holds a line break.
        """
        if broken := [name for name in self.description.classes if name and name.splitlines() != [name]]:
            raise UserError(
                f"class name {broken[0]!r} contains a line break; labels.txt has one name per line: rename it"
            )
        description, preprocessing, labels = (self.folder / name for name in DESCRIPTION)
        write_text(labels, "".join(f"{name}\n" for name in self.description.classes))
        write_text(preprocessing, to_json(_pictures(self.size) if self.dense else asdict(self.preprocessing)) + "\n")
        facts = {
            "format": self.format,
            "precision": self.precision,
            "dynamic": self.dynamic,
            "outputs": list(self.outputs),
            **({"size": list(self.size)} if self.size else {}),
            "sha256": {name: sha256_of(self.folder / name) for name in (*FILES[self.format], *_BESIDE)},
            **self.facts,
            **self.description.to_metadata(),
            "named": self.description.named,
            "classes": len(self.description.classes),
        }
        facts.pop("preprocessing", None)
        write_text(description, to_json(facts) + "\n")

    def engine(
        self,
        engine: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        cached: bool = True,
        class_maps: bool = False,
    ) -> Engine:
        """What runs the model: the format's own library, for pt2 PyTorch, and for onnx on request OpenVINO.

        Args:
            engine, precision: see `vankit.Predictor`.
            device: cpu or auto.
            cached: keep the compiled model on disk.
            class_maps: see `vankit.engines.openvino.OpenVinoEngine`.

        Raises:
            ValueError: they do not fit the folder, or a file of the model is damaged.
            ImportError: the engine's package is missing.
        """
        own = _ENGINES[self.format]
        others = ("openvino",) if self.format in ("onnx", "web") and not self.dense else ()  # which resizes otherwise
        name = own if engine == "auto" else engine
        if name not in (own, *others):
            instead = own if own in get_args(EngineName) else "auto"
            raise UserError(
                f"{self.folder} is in format {self.format}, which engine {engine} cannot run: use {instead}"
            )
        if device not in ("auto", "cpu"):
            raise UserError(f"device is {device!r}, but exported folders run on the CPU: leave it out")
        if precision == "auto":
            precision = self.precision
        if "int8" in (precision, self.precision) and precision != self.precision:
            raise UserError(f"{self.folder} was exported in {self.precision}, not {precision}: export it with that")
        checked = self._verify()
        about = repr((len(self.description.classes), self.description.task, tuple(self.outputs))).encode()
        key = about + checked if cached else None
        if name == "torch":
            return self._torch_engine(precision)
        if name == "onnxruntime":
            return OnnxRuntimeEngine(self._onnx_model, key, precision, self.path, class_maps)
        if name in ON_DEVICES:
            found = ON_DEVICES[name](self.path, precision, "uint8" if self.dense else "float32")
            self._check_ends(*found.ends())
            return found
        return OpenVinoEngine(self._openvino_model, key, precision, self.path, class_maps, winograd=self.dense)

    def _verify(self) -> bytes:
        """What tells the model from others, once its files are found to be those that were exported."""
        found = {name: sha256_of(self.folder / name) for name in FILES[self.format]}
        for name, checksum in found.items():
            if self.checksums and checksum != self.checksums[name]:
                raise UserError(f"{self.folder / name} is damaged or was changed: export the model again")
        return repr((found, None if self.dense else self.preprocessing.input_size)).encode()

    def _openvino_model(self) -> Any:
        core = openvino_core()
        with reading(self.path, Exception):
            # not mapped: a file that is written over while it is used would end the process
            model = core.read_model(self.path, config={"ENABLE_MMAP": False})
            inputs, outputs = ([_lengths(end.partial_shape) for end in ends] for ends in (model.inputs, model.outputs))
        self._check_ends(inputs, outputs)
        with reading(self.path, Exception):
            if self.description.task == "segment":
                return with_best_class(model)
            if self.dynamic and not self.dense:  # faster, and the predictor gives nothing else
                model.reshape([1, *self.preprocessing.input_size])
        return model

    def _onnx_model(self) -> bytes:
        import onnxruntime

        content, options = self.path.read_bytes(), onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        with reading(self.path, Exception):
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._check_ends([end.shape for end in session.get_inputs()], [end.shape for end in session.get_outputs()])
        return content

    def _check_ends(self, inputs: Sequence[Sequence[Any]], outputs: Sequence[Sequence[Any]]) -> None:
        """Refuse the model of another network, or of another program.

        Args:
            inputs, outputs: their shapes; what is not a whole number is any length.
        """
        expected = self._expected_ends()
        # further outputs are passed over, as other explanations of a network would be
        given = list(inputs), list(outputs[: len(expected[1])])
        for kind, shapes, found in zip(("input", "output"), expected, given, strict=True):
            if len(found) != len(shapes) or not all(map(_agree, found, shapes)):
                raise UserError(
                    f"{self.path} is of another network: its {kind} is {_said(found)}, and {DESCRIPTION[0]} asks for "
                    f"{_said(shapes)}; export the model again"
                )

    def _expected_ends(self) -> tuple[list[Sequence[Any]], list[Sequence[Any]]]:
        """Shapes of the model's inputs and outputs; None is any length."""
        taken = (1, *(self.size or (None, None)), 3) if self.dense else (1, *self.preprocessing.input_size)
        return [taken], list(self.shapes().values())

    def shapes(self) -> dict[str, Sequence[int | None]]:
        """Of what the model gives, by name; None is any length."""
        count = len(self.description.classes)
        known = OUTPUTS[self.description.task]
        return {name: [count if n == -1 else n for n in known[name]] for name in self.outputs}

    def _torch_engine(self, precision: str) -> Engine:
        import torch

        from vankit.engines.torch import TorchEngine

        class OneByOne(torch.nn.Module):
            """Batches for a model of batch size 1."""

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                images = x.split(1) if len(x) else [x.new_zeros(1, *x.shape[1:])]
                return torch.cat([model(image) for image in images])[: len(x)]

        program = load_program(self.path)
        with reading(self.path, Exception):
            model, own = program.module(), program.graph_signature.user_inputs
            *nodes, answer = program.graph.nodes
            inputs = [_lengths(node.meta["val"].shape) for node in nodes if node.name in own]
            outputs = [_lengths(node.meta["val"].shape) for node in answer.args[0]]
        self._check_ends(inputs, outputs)
        return TorchEngine(model if self.dynamic else OneByOne(), "cpu", precision, batch_size=1)


@dataclass(frozen=True)
class _Record:
    """What export.json says of the folder itself; see `Exported`."""

    format: Format
    precision: Literal["float32", "int8"]
    dynamic: bool
    classes: Count
    sha256: Mapping[str, Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]]
    outputs: Annotated[Sequence[str], Meta(max_length=10)] = ("logits",)
    size: Annotated[Sequence[Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]], Meta(max_length=2)] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        needed, stated = {*FILES[self.format]}, set(self.sha256)
        if stated not in (needed | {*_BESIDE}, needed):  # folders of earlier versions vouch for the model alone
            names = " and ".join((*FILES[self.format], *_BESIDE))
            raise UserError(f"sha256 is {reprlib.repr(dict(self.sha256))}: expected those of {names}")


_LARGEST_LABELS = 2**26  # bytes


def _lengths(shape: Any) -> list[int | None]:
    """Of OpenVINO or PyTorch; None where it varies."""
    lengths = [n.get_length() if getattr(n, "is_static", False) else n for n in shape]
    return [n if isinstance(n, int) else None for n in lengths]


def _agree(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether a shape, in which only whole numbers say something, can be this one."""
    fixed = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(n == m for n, m in fixed if isinstance(n, int) and m is not None)


def _said(shapes: Sequence[Sequence[Any]]) -> str:
    return ", ".join(f"({', '.join('any' if n is None else str(n) for n in each)})" for each in shapes) or "nothing"


def with_best_class(model: Any) -> Any:
    """A segmenter's model with the best class of each pixel in place of the logits, which are many times as large."""
    import openvino
    from openvino import opset13

    best = opset13.topk(model.output(0).get_node().input_value(0), 1, 1, "max", "none", "i32")
    total = opset13.reduce_sum(best.output(0), [0, 1, 2, 3], False)  # not finite if a logit is not
    return openvino.Model([best.output(1), total.output(0)], model.get_parameters())


# that a folder of another library would not have: an exported one from which a file was lost has one of them still
_OWN = (*DESCRIPTION[:2], *(names[0] for names in FILES.values()))


def is_exported(path: object) -> TypeGuard[str | PathLike[str]]:
    """Whether this is an exported folder, perhaps an incomplete one, rather than one with a checkpoint or a name."""
    return isinstance(path, str | PathLike) and any((Path(path) / name).is_file() for name in _OWN)


def read_exported(path: str | PathLike[str]) -> Exported:
    """Open an exported folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    folder = Path(path)
    parts = [folder / name for name in DESCRIPTION]
    for part in parts:
        _check_present(part)
    try:
        found = _described(folder, *parts)
    except UserError as error:
        raise UserError(f"{error}; it is damaged, or was changed: export the model again") from None
    for name in FILES[found.format]:
        _check_present(folder / name)
    return found


def _check_present(part: Path) -> None:
    try:
        open_file(part).close()
    except MissingFileError:
        raise MissingFileError(f"{part.parent} is not a complete exported folder: {part.name} is missing") from None


def _described(folder: Path, description: Path, settings: Path, labels: Path) -> Exported:
    content = read_json(description)
    with reading(description):
        own = made(_Record, content)
    classes = _names(labels)
    if len(classes) != own.classes:
        raise UserError(f"{labels} has {len(classes)} names, and the model has {own.classes} classes")
    with reading(description):
        network = Description.from_metadata(content | {"classes": classes}, Description())
        _check_outputs(network.task, own)
    with reading(settings):
        network = replace(network, preprocessing=_preprocessing(network.task, own.size, read_json(settings)))
    known = {*_Record.__dataclass_fields__, *Description.__dataclass_fields__}
    facts = {name: value for name, value in content.items() if name not in known}
    _check_beside(folder, own.sha256)
    return Exported(
        folder, own.format, own.precision, own.dynamic, network, facts, dict(own.sha256), tuple(own.outputs),
        tuple(own.size),
    )  # fmt: skip


def _check_outputs(task: str, own: _Record) -> None:
    one = task == "segment" and own.format in ON_DEVICES
    if len(own.size) != 2 * one or (one and own.dynamic):
        raise UserError(
            f"size is {list(own.size)} and dynamic {own.dynamic} for {task} in format {own.format}: expected "
            f"{'height and width, and false' if one else 'no size'}"
        )
    known, classifies = OUTPUTS[task], task == "classify"
    needed = known.keys() - {"masks", CLASS_MAPS}
    if not needed <= set(own.outputs) <= set(known) or not (classifies or one or own.format in ("openvino", "onnx")):
        raise UserError(
            f"task is {task}, and outputs are {list(own.outputs)} of format {own.format}: expected {list(known)}"
        )


def _preprocessing(task: str, size: Sequence[int], content: Any) -> Preprocessing | None:
    if task == "classify":
        return made(Preprocessing, content)
    if content != _pictures(size):
        raise UserError(f"it is {reprlib.repr(content)}: expected {_pictures(size)}, as {task} takes pictures")
    return None


def _pictures(size: Sequence[int]) -> dict[str, object]:
    """preprocessing.json of detectors and segmenters: how their models take pictures, of any size or of one."""
    sizes = (list(size), "bilinear, before the model") if size else ("any", "by the model")
    return {"layout": "NHWC", "channels": "RGB", "type": "uint8", "sizes": sizes[0], "resized": sizes[1]}


def _check_beside(folder: Path, checksums: Mapping[str, str]) -> None:
    """Refuse class names and preprocessing that are not those of the model, well-formed as they may be."""
    for name in _BESIDE:
        if name in checksums and _sha256_of_text(folder / name) != checksums[name]:
            other = " (other names are passed as classes to vankit.Predictor or vankit.export)"
            hint = other if name == "labels.txt" else ""
            raise UserError(f"{folder / name} is not the file that was exported with the model{hint}")


def _sha256_of_text(path: Path) -> str:
    """As it was written: git may have given it the line ends of Windows."""
    with open_file(path) as file:
        return hashlib.sha256(file.read().replace(b"\r\n", b"\n")).hexdigest()


def _names(labels: Path) -> list[str]:
    if labels.stat().st_size > _LARGEST_LABELS:
        raise UserError(f"{labels} has {labels.stat().st_size:,} bytes: expected at most {_LARGEST_LABELS:,}")
    return read_text(labels).splitlines()
