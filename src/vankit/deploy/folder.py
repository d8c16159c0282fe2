"""Exported folders: what `vankit export` writes, opened without PyTorch (except its own format, pt2)."""

import json
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypeGuard

from vankit.data.preprocessing import Preprocessing
from vankit.engines.base import Engine
from vankit.engines.onnxruntime import OnnxRuntimeEngine
from vankit.engines.openvino import OpenVinoEngine
from vankit.errors import MissingFileError, UserError
from vankit.files import sha256_of, to_json
from vankit.models.description import Description

Format = Literal["openvino", "onnx", "pt2"]

FILES: dict[str, tuple[str, ...]] = {
    "openvino": ("model.xml", "model.bin"),
    "onnx": ("model.onnx",),
    "pt2": ("model.pt2",),
}
_ENGINES = {"openvino": "openvino", "onnx": "onnxruntime", "pt2": "torch"}
DESCRIPTION = ("export.json", "preprocessing.json", "labels.txt")


@dataclass(frozen=True)
class Exported:
    """A folder with model.xml and model.bin, model.onnx or model.pt2, labels.txt, preprocessing.json and export.json.

    Attributes:
        folder: where it is.
        format: openvino, onnx or pt2.
        precision: float32 or int8.
        dynamic: whether it takes every batch and size, or batches of 1 of the preprocessing's size.
        description: of the network.
        facts: how it was made and checked.
        checksums: SHA-256 in hexadecimal of the model's files by name; empty until the folder is read.
    """

    folder: Path
    format: Format
    precision: str
    dynamic: bool
    description: Description
    facts: dict[str, Any] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def preprocessing(self) -> Preprocessing:
        """From an image to the network's input."""
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
        labels.write_text("".join(f"{name}\n" for name in self.description.classes), encoding="utf-8")
        facts = {
            "format": self.format,
            "precision": self.precision,
            "dynamic": self.dynamic,
            "sha256": {name: sha256_of(self.folder / name) for name in FILES[self.format]},
            **self.facts,
            **self.description.to_metadata(),
            "named": self.description.named,
            "classes": len(self.description.classes),
        }
        del facts["preprocessing"]
        for path, content in ((preprocessing, asdict(self.preprocessing)), (description, facts)):
            path.write_text(to_json(content) + "\n", encoding="utf-8")

    def engine(
        self, engine: str = "auto", precision: str = "auto", device: str = "auto", cached: bool = True
    ) -> Engine:
        """What runs the model: OpenVINO for openvino, ONNX Runtime (or on request OpenVINO) for onnx, PyTorch for pt2.

        Args:
            engine, precision: see `vankit.Predictor`.
            device: cpu or auto.
            cached: keep the compiled model on disk.

        Raises:
            ValueError: they do not fit the folder, or a file of the model is damaged.
            ImportError: the engine's package is missing.
        """
        own = _ENGINES[self.format]
        name = own if engine == "auto" else engine
        if name not in (own, "openvino" if self.format == "onnx" else own):
            raise UserError(f"{self.folder} is in format {self.format}, which engine {engine} cannot run: use {own}")
        if device not in ("auto", "cpu"):
            raise UserError(f"device is {device!r}, but exported folders run on the CPU: leave it out")
        if precision == "auto":
            precision = self.precision
        if "int8" in (precision, self.precision) and precision != self.precision:
            raise UserError(f"{self.folder} was exported in {self.precision}, not {precision}: export it with that")
        checked = self._verify()
        key = checked if cached else None
        if name == "torch":
            return self._torch_engine(precision)
        if name == "onnxruntime":
            return OnnxRuntimeEngine(self.path.read_bytes, key, precision)
        return OpenVinoEngine(self._openvino_model, key, precision)

    def _verify(self) -> bytes:
        """What tells the model from others, once its files are found to be those that were exported."""
        found = {name: sha256_of(self.folder / name) for name in FILES[self.format]}
        for name, checksum in found.items():
            if checksum != self.checksums.get(name, checksum):
                raise UserError(f"{self.folder / name} is damaged or was changed: export the model again")
        return repr((found, self.preprocessing.input_size)).encode()

    def _openvino_model(self) -> Any:
        import openvino

        model = openvino.Core().read_model(self.path)
        if self.dynamic:  # faster, and the predictor gives nothing else
            model.reshape([1, *self.preprocessing.input_size])
        return model

    def _torch_engine(self, precision: str) -> Engine:
        import torch

        from vankit.engines.torch import TorchEngine

        class OneByOne(torch.nn.Module):
            """Batches for a model of batch size 1."""

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                images = x.split(1) if len(x) else [x.new_zeros(1, *x.shape[1:])]
                return torch.cat([model(image) for image in images])[: len(x)]

        model = torch.export.load(self.path).module()
        return TorchEngine(model if self.dynamic else OneByOne(), "cpu", precision, batch_size=1)


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
    try:
        description, settings, labels = ((folder / name).read_text(encoding="utf-8") for name in DESCRIPTION)
        facts, classes = json.loads(description), labels.splitlines()
        kind, precision, dynamic = (facts.pop(name) for name in ("format", "precision", "dynamic"))
        count, checksums = (facts.pop(name) for name in ("classes", "sha256"))
        metadata = {name: facts.pop(name) for name in [*facts] if name in Description.__dataclass_fields__}
        metadata |= {"classes": classes, "preprocessing": asdict(Preprocessing(**json.loads(settings)))}
        network = Description.from_metadata(metadata, Description())
        files = [folder / name for name in FILES[kind]]
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{folder} is not a complete exported folder: {Path(error.filename).name} is missing"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({error}): export the model again") from None
    if missing := [path.name for path in files if not path.is_file()]:
        raise MissingFileError(f"{folder} is not a complete exported folder: {missing[0]} is missing")
    if len(classes) != count:
        raise UserError(f"{folder} is damaged: labels.txt has {len(classes)} names, and the model has {count} classes")
    return Exported(folder, kind, precision, dynamic, network, facts, checksums)
