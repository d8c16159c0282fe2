"""Which engine runs a network best on this machine."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from torch import nn

from vankit.engines.base import Engine
from vankit.engines.cache import versions
from vankit.engines.convert import UnsupportedNetworkError, to_onnx, to_openvino
from vankit.engines.onnxruntime import OnnxRuntimeEngine
from vankit.engines.openvino import OpenVinoEngine
from vankit.engines.torch import TorchEngine
from vankit.errors import UserError
from vankit.models.fold import fold

logger = logging.getLogger(__name__)


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
        cached: keep the compiled model on disk; only for networks that their weights and type distinguish.
        dynamic: take every batch and size, which is 2 to 12 % slower.

    Raises:
        ValueError, ImportError: the engine, precision and device do not go together, or a package is missing.
    """
    if engine not in ("auto", "torch") and device not in ("auto", "cpu"):
        raise UserError(f"engine {engine} runs on the CPU and device is {device!r}: use engine='torch'")
    device = device_for(engine, device)
    if precision == "int8":
        raise UserError(
            "int8 needs photographs to calibrate with: vankit export MODEL --int8 --calibrate DATA --output FOLDER, "
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
    """torch's name of the device that 'auto' means: CUDA where there is one, unless the engine runs on CPUs.

    Raises:
        ValueError: there is no such device here.
    """
    if device == "auto":
        return "cuda" if engine in ("auto", "torch") and torch.cuda.is_available() else "cpu"
    try:
        torch.device(device)
    except RuntimeError:  # which lists all devices that PyTorch was ever made for
        raise UserError(f"device is {device!r}, expected auto, cpu, or cuda with a GPU") from None
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # each kind of device refuses in its own way
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"device is {device!r}, which cannot be used ({reason}): expected auto, cpu, or cuda with a GPU"
        ) from None
    return device


def _key(network: nn.Module, input_size: Sequence[int]) -> bytes:
    """What a compiled model depends on: the weights, the code around them, the size."""
    built_with = torch.__version__, timm.__version__, versions("onnx", "onnxscript", "openvino")
    layers = getattr(network, "return_layers", None)  # of timm's feature extractors: which maps they give
    digest = hashlib.sha256(f"{type(network)} {network} {layers} {tuple(input_size)} {built_with}".encode())
    package = Path(__file__).parents[1]
    for path in (
        package / "engines" / "convert.py",
        *sorted(package.glob("models/*.py")),
        *sorted(package.glob("ops/*.py")),
    ):
        digest.update(path.read_bytes())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()
