"""Which engine runs a network best on this machine. PyTorch is imported only where it is needed to find out."""

import hashlib
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vankit.engines.base import Engine, UnsupportedNetworkError
from vankit.engines.cache import source_code, versions
from vankit.engines.onnxruntime import OnnxRuntimeEngine
from vankit.engines.openvino import OpenVinoEngine, kept_model
from vankit.engines.torch import TorchEngine
from vankit.errors import UserError

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


def engine_for(
    network: "nn.Module",
    input_size: Sequence[int],
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    batch_size: int = 16,
    cached: bool = False,
    dynamic: bool = False,
    class_maps: bool = False,
) -> Engine:
    """What runs a network best on this machine, or what is asked for.

    Args:
        network: in eval mode, (B, C, H, W) → (B, …).
        input_size: (C, H, W) of all that it will be given, or of an example where `dynamic`.
        engine, precision, device, batch_size: see `vankit.Predictor`.
        cached: keep the compiled model on disk; only for networks that their weights and type distinguish.
        dynamic: take every batch and size, which is 2 to 12 % slower.
        class_maps: see `vankit.engines.openvino.OpenVinoEngine`.

    Raises:
        ValueError, ImportError: the engine, precision and device do not go together, or a package is missing.
    """
    key = network_key(network, input_size, dynamic) if cached else None
    return engine_by_key(lambda: network, key, input_size, engine, precision, device, batch_size, dynamic, class_maps)


def engine_by_key(
    network: "Callable[[], nn.Module]",
    key: bytes | None,
    input_size: Sequence[int],
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    batch_size: int = 16,
    dynamic: bool = False,
    class_maps: bool = False,
) -> Engine:
    """`engine_for` of a network that need not be open: it is not asked for where what was made of it is on disk.

    Args:
        network: gives it.
        key: its `network_key`; None keeps nothing on disk.
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

    def to(name: str) -> Any:
        from vankit.engines import convert  # and PyTorch with it

        return getattr(convert, name)(network(), input_size, dynamic)

    if engine == "onnxruntime":
        return OnnxRuntimeEngine(lambda: to("to_onnx"), key, precision, class_maps=class_maps)
    if engine == "openvino" or (engine == "auto" and device == "cpu"):
        try:
            model = partial(kept_model, key, partial(to, "to_openvino"))
            found = OpenVinoEngine(model, key, precision, class_maps=class_maps)
            found.prepare()
            return found
        except UnsupportedNetworkError as error:
            if engine != "auto":
                raise
            logger.warning("running on PyTorch: %s", error)
    from vankit.models.class_maps import folded

    return TorchEngine(folded(network(), class_maps), device, precision, batch_size)


def on_torch(engine: str, device: str) -> bool:
    """Whether it is PyTorch that will run a network, as far as can be told from these options.

    Args:
        engine, device: see `vankit.Predictor`.
    """
    return engine == "torch" or device not in ("auto", "cpu") or (engine == device == "auto" and _has_cuda())


def _has_cuda() -> bool:
    if sys.modules.get("torch") is None and not _may_have_cuda():
        return False
    import torch

    return torch.cuda.is_available()


# what the drivers of NVIDIA's GPUs (its boards, and Windows' for Linux, have others) and of AMD's put there
_DEVICES = ("nvidia*", "nvhost*", "nvgpu*", "nvmap", "dxg", "kfd")


def _may_have_cuda() -> bool:
    """False only where a GPU would leave signs, and there are none."""
    if sys.platform == "linux":
        return Path("/proc/driver/nvidia").exists() or any(any(Path("/dev").glob(name)) for name in _DEVICES)
    return sys.platform != "darwin"


def device_for(engine: str, device: str) -> str:
    """torch's name of the device that 'auto' means: CUDA where there is one, unless the engine runs on CPUs.

    Raises:
        ValueError: there is no such device here.
    """
    if device == "auto":
        return "cuda" if engine in ("auto", "torch") and _has_cuda() else "cpu"
    if device == "cpu":
        return device
    import torch

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


def network_key(network: "nn.Module", input_size: Sequence[int], dynamic: bool = False) -> bytes:
    """What a compiled model depends on: the weights, the code around them, the size."""
    built_with = versions("torch", "timm", "onnx", "onnxscript", "openvino")
    layers = getattr(network, "return_layers", None)  # of timm's feature extractors: which maps they give
    size = (*input_size, dynamic)
    digest = hashlib.sha256(f"{type(network)} {network} {layers} {size} {built_with}".encode())
    digest.update(source_code("engines/convert.py", "models/*.py", "ops/*.py"))
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()
