"""Export: a PyTorch network as a model of OpenVINO, ONNX or torch.export, and ready-made engines for it."""

import copy
import hashlib
import logging
import os
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

from vankit.classifier import load_classifier
from vankit.engines import Array, Engine, OnnxRuntimeEngine, OpenVinoEngine, TorchEngine
from vankit.exported import DESCRIPTION, FILES, Exported, Format, read_exported
from vankit.model_card import model_card
from vankit.models.fold import fold

logger = logging.getLogger(__name__)


class UnsupportedNetworkError(ValueError):
    """torch.export, or the exporter of a format, cannot take the network."""


TOLERANCE = 1e-4  # on logits in float32
_NO_LIMIT = 2**40
_CARD = "README.md"
_PACKAGES: dict[str, tuple[str, ...]] = {
    "openvino": ("vankit", "torch", "openvino"),
    "onnx": ("vankit", "torch", "onnx", "onnxruntime"),
    "pt2": ("vankit", "torch"),
}

# At 32 pixels VAN's last map has size 1, which torch.export would take for a constant
_SMALLEST = 33


def export(
    model: str | nn.Module | None = None,
    checkpoint: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    *,
    format: Format = "openvino",
    int8: bool = False,
    calibrate: str | PathLike[str] | None = None,
    dynamic: bool = False,
    pretrained: bool = True,
    classes: Sequence[str] | None = None,
    max_drop: float = 0.01,
) -> Exported:
    """Write a classifier as a folder that runs without PyTorch: model, labels.txt, preprocessing.json, README.md.

    The network is folded (see `vankit.fold`) and the model compared with eager PyTorch before it is kept.

    Args:
        model, checkpoint, pretrained, classes: see `vankit.Predictor`.
        out: the folder; MODEL-FORMAT if left out. An exported folder of that name is replaced.
        format: openvino, onnx, or pt2 (torch.export, which needs PyTorch).
        int8: quantise, see `vankit.quantize.quantize`; not for pt2.
        calibrate: pictures for int8, see `vankit.quantize.open_pictures`.
        dynamic: accept every batch and every size from 33 pixels up, instead of batches of 1 of the network's size.
        max_drop: top-1 that int8 may lose, 0 to 1.

    Returns:
        The folder; `facts` has the figures of the checks, and of int8.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the weights cannot be had, the options do not go together,
            `out` holds other files, a logit is further than `TOLERANCE` from PyTorch's or a top-1 differs, or int8
            loses more than `max_drop`. Nothing is written then.
        UnsupportedNetworkError: the format cannot express the network.
        ImportError: a package is missing.
    """
    _check_options(format, int8, calibrate, max_drop)
    found = load_classifier(model, checkpoint, pretrained, classes)
    name = Path(checkpoint).stem if checkpoint is not None else found.model or type(found.network).__name__
    target = Path(out or f"{name}-{format}{'-int8' * int8}").absolute()
    _check_target(target)
    pictures = None
    if calibrate is not None:
        from vankit.quantize import open_pictures, quantize

        pictures = open_pictures(calibrate, found.preprocessing, found.classes, found.named)
    network = copy.deepcopy(found.network).float().cpu()
    facts: dict[str, Any] = {
        "name": name,
        "command": _command(model, checkpoint, out, format, int8, calibrate, dynamic, max_drop),
        "date": datetime.now(UTC).date().isoformat(),
    }
    with _folder_for(target) as folder:
        exported = Exported(folder, format, "float32", dynamic, found.classes, found.named, found.preprocessing, facts)
        _write_model(exported, network)
        facts["largest_difference"] = _largest_difference(exported, network)
        facts["versions"] = _versions(*_PACKAGES[format], *["nncf"] * int8)
        if pictures is not None:
            facts["int8"] = asdict(quantize(exported, pictures, max_drop))
            exported = replace(exported, precision="int8")
        exported.write_description()
        (folder / _CARD).write_text(model_card(exported, target.name), encoding="utf-8")
    return read_exported(target)


def _check_options(format: str, int8: bool, calibrate: object, max_drop: float) -> None:
    if format not in FILES:
        raise ValueError(f"format is {format!r}: expected one of {', '.join(FILES)}")
    if int8 and format == "pt2":
        raise ValueError("pt2 has no int8: use format openvino or onnx")
    if int8 != (calibrate is not None):
        raise ValueError("int8 and calibrate go together: pass both (--int8 --calibrate DATA), or neither")
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop is {max_drop}: expected 0 to 1, such as 0.01 for one point of top-1")


def _check_target(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file: pass a folder to write to (--out)")
    present = {path.name for path in target.iterdir()}
    ours = {*DESCRIPTION, _CARD, *(name for names in FILES.values() for name in names)}
    if present and not {DESCRIPTION[0]} <= present <= ours:
        others = sorted(present - ours) or sorted(present)
        raise ValueError(f"{target} holds other files, such as {others[0]}: pass another folder (--out)")


def _versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _command(
    model: object,
    checkpoint: object,
    out: object,
    format: str,
    int8: bool,
    calibrate: object,
    dynamic: bool,
    max_drop: float,
) -> str:
    if isinstance(model, nn.Module):
        return "vankit.export(network, …)"
    options = {"checkpoint": checkpoint, "format": format, "calibrate": calibrate, "out": out}
    if int8:
        options["max-drop"] = max_drop
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    flags = ["--int8"] * int8 + ["--dynamic"] * dynamic
    return shlex.join(["vankit", "export", *([] if model is None else [str(model)]), *given, *flags])


@contextmanager
def _folder_for(target: Path) -> Iterator[Path]:
    """A folder to fill, which then takes the place of `target`; it goes if anything is raised."""
    partial, old = (target.with_name(f".{target.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    partial.mkdir(parents=True)
    try:
        yield partial
        if target.exists():
            target.rename(old)
        try:
            partial.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_model(exported: Exported, network: nn.Module) -> None:
    size, dynamic = exported.preprocessing.input_size, exported.dynamic
    if exported.format == "onnx":
        exported.path.write_bytes(to_onnx(network, size, dynamic))
    elif exported.format == "pt2":
        torch.export.save(to_program(network, size, dynamic), exported.path)
    else:
        model = to_openvino(network, size, dynamic)
        import openvino

        openvino.save_model(model, exported.path, compress_to_fp16=False)


def _largest_difference(exported: Exported, network: nn.Module) -> float:
    """Compare with the eager network on noise and on smooth pictures, at further sizes where the export is dynamic.

    Raises:
        ValueError: a logit is further than `TOLERANCE` off, or a top-1 is another.
    """
    preprocessing, rng = exported.preprocessing, np.random.default_rng(0)
    channels, height, width = preprocessing.input_size
    noise = rng.standard_normal((4, channels, height, width), np.float32)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)) for _ in range(4)]
    pictures = np.stack([preprocessing(image.resize((2 * width, 3 * height))) for image in coarse])
    run: Callable[[Array], Array] = exported.engine(cached=False)
    cases = [(run, np.concatenate([noise, pictures]))]
    if exported.dynamic:
        run = _as_it_is(exported)
        shapes = (2, channels, height, width), (1, channels, height + 31, width), (3, channels, _SMALLEST, 65)
        cases += [(run, rng.standard_normal(shape, np.float32)) for shape in shapes]
    worst = 0.0
    for run, x in cases:
        with torch.inference_mode():
            expected = network(torch.from_numpy(x)).numpy()
        found = run(x)
        difference = float(np.abs(found - expected).max())
        others = int((found.argmax(1) != expected.argmax(1)).sum())
        if not difference <= TOLERANCE or others:
            raise ValueError(
                f"the exported network is not PyTorch's: a logit differs by {difference:.1e}, where {TOLERANCE:.0e} is "
                f"allowed, and top-1 on {others} of {len(x)} inputs {x.shape[1:]}; nothing was written"
            )
        worst = max(worst, difference)
    return worst


def _as_it_is(exported: Exported) -> Callable[[Array], Array]:
    """The model for batches and sizes of all kinds, as others will run it: `Exported.engine` settles for one."""
    if exported.format == "openvino":
        import openvino

        compiled = openvino.Core().compile_model(exported.path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: compiled(x)[0]
    if exported.format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"images": x})[0]
    return exported.engine(cached=False)


def to_program(network: nn.Module, input_size: Sequence[int], dynamic: bool = False) -> torch.export.ExportedProgram:
    """Fold a network and capture it with torch.export.

    Args:
        network: (B, C, H, W) → (B, …).
        input_size: (C, H, W).
        dynamic: accept every batch and every size from 33 pixels up, instead of batches of 1 of this size.

    Raises:
        UnsupportedNetworkError: torch.export cannot take it.
    """
    channels, height, width = input_size
    folded = fold(network).float().cpu()
    example, axes = torch.zeros(1, channels, height, width), None
    if dynamic:
        example = torch.zeros(2, channels, max(height, 2 * _SMALLEST), max(width, 2 * _SMALLEST))
        axes = {
            0: torch.export.Dim("batch"),
            2: torch.export.Dim("height", min=_SMALLEST),
            3: torch.export.Dim("width", min=_SMALLEST),
        }
    with _exporting("torch.export"):
        program = torch.export.export(folded, (example,), dynamic_shapes=(axes,) if dynamic else None)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds this machine's paths, which would be in the file
    return program


def to_openvino(network: nn.Module, input_size: Sequence[int], dynamic: bool = False) -> Any:
    """As `to_program`, as an `openvino.Model`; input `images`, output `logits`."""
    import openvino

    program = to_program(network, input_size, dynamic)
    with _exporting("OpenVINO"):
        model = openvino.convert_model(program)
        model.input(0).set_names({"images"})
        model.output(0).set_names({"logits"})
        if not dynamic:  # the converter forgets the size, which the program's kernels were cut for
            model.reshape([1, *input_size])
        return model


def to_onnx(network: nn.Module, input_size: Sequence[int], dynamic: bool = False) -> bytes:
    """As `to_program`, as the bytes of an ONNX file; input `images`, output `logits`.

    Raises:
        ImportError: onnx or onnxscript is missing.
        UnsupportedNetworkError: the network cannot be exported.
    """
    try:
        import onnx_ir.passes.common
        import onnxscript.optimizer
    except ImportError:
        raise ImportError("ONNX needs its packages: pip install 'vankit[onnx]'") from None
    program = to_program(network, input_size, dynamic)
    with _exporting("ONNX"):
        found = torch.onnx.export(program, (), input_names=["images"], output_names=["logits"], verbose=False)
        assert found is not None
        # kernels cut to the size are constants too, however large: else NNCF would not find their weights
        onnxscript.optimizer.optimize(found.model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
        onnx_ir.passes.common.ClearMetadataAndDocStringPass()(found.model)  # long, and of no use to who runs it
        return found.model_proto.SerializeToString()


def engine_for(
    network: nn.Module,
    input_size: Sequence[int],
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    batch_size: int = 16,
    cached: bool = False,
    dynamic: bool = False,
) -> Engine:
    """What runs a network best on this machine, or what is asked for.

    Args:
        network: in eval mode, (B, C, H, W) → (B, …).
        input_size: (C, H, W) of all that it will be given, or of an example where `dynamic`.
        engine, precision, device, batch_size: see `vankit.Predictor`.
        cached: keep the compiled model on disk; only for networks that their weights and type tell apart.
        dynamic: take every batch and size, which is 2 to 12 % slower.

    Raises:
        ValueError, ImportError: the engine, precision and device do not go together, or a package is missing.
    """
    device = device_for(engine, device)
    if engine not in ("auto", "torch") and device != "cpu":
        raise ValueError(f"engine {engine} runs on the CPU and device is {device!r}: use engine='torch'")
    if precision == "int8":
        raise ValueError(
            "int8 needs photographs to calibrate with: vankit export MODEL --int8 --calibrate DATA --out FOLDER, "
            "and then predict with --model FOLDER"
        )
    precision = "float32" if precision == "auto" else precision
    key = _key(network, (*input_size, dynamic)) if cached else None
    if engine == "onnxruntime":
        return OnnxRuntimeEngine(lambda: to_onnx(network, input_size, dynamic), key, precision)
    if engine == "openvino" or (engine == "auto" and device == "cpu"):
        try:
            found = OpenVinoEngine(lambda: to_openvino(network, input_size, dynamic), key, precision)
            found.prepare()
            return found
        except UnsupportedNetworkError as error:
            if engine != "auto":
                raise
            logger.warning("running on PyTorch: %s", error)
    return TorchEngine(fold(network), device, precision, batch_size)


def device_for(engine: str, device: str) -> str:
    """torch's name of the device that 'auto' means: CUDA where there is one, unless the engine runs on CPUs."""
    if device != "auto":
        return device
    return "cuda" if engine in ("auto", "torch") and torch.cuda.is_available() else "cpu"


def _key(network: nn.Module, input_size: Sequence[int]) -> bytes:
    """What a compiled model depends on: the weights, the code around them, the size."""
    versions = torch.__version__, timm.__version__, _versions("onnx", "onnxscript", "openvino")
    layers = getattr(network, "return_layers", None)  # of timm's feature extractors: which maps they give
    digest = hashlib.sha256(f"{type(network)} {network} {layers} {tuple(input_size)} {versions}".encode())
    digest.update(Path(__file__).read_bytes())
    for room in ("models", "ops"):
        for path in sorted((Path(__file__).parent / room).glob("*.py")):
            digest.update(path.read_bytes())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


@contextmanager
def _exporting(to: str) -> Iterator[None]:
    """Exporters warn of their own insides, and raise whatever they trip over."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise UnsupportedNetworkError(f"{to} cannot take the network: {error}") from error
