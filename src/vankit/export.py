"""Export: a PyTorch network as a model of OpenVINO, ONNX or torch.export, and ready-made engines for it."""

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vankit.engines import Engine, OnnxRuntimeEngine, OpenVinoEngine, TorchEngine
from vankit.models.fold import fold

logger = logging.getLogger(__name__)


class UnsupportedNetworkError(RuntimeError):
    """torch.export, or the exporter of a format, cannot take the network."""


_NO_LIMIT = 2**40

# At 32 pixels VAN's last map has size 1, which torch.export would take for a constant
_SMALLEST = 33


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
        dynamic: take every batch and size, which is some 8 % slower.

    Raises:
        ValueError, ImportError: the engine, precision and device do not go together, or a package is missing.
    """
    if device == "auto":
        device = "cuda" if engine in ("auto", "torch") and torch.cuda.is_available() else "cpu"
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


def _key(network: nn.Module, input_size: Sequence[int]) -> bytes:
    """What a compiled model depends on: the weights, the code around them, the size."""
    versions = torch.__version__, timm.__version__
    digest = hashlib.sha256(f"{type(network)} {network} {tuple(input_size)} {versions}".encode())
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
