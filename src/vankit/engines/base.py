"""Engines: one call that runs a network on arrays, whatever runs it. PyTorch is imported by its own engine only."""

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vankit.errors import UserError

EngineName = Literal["auto", "torch", "openvino", "onnxruntime"]
Precision = Literal["auto", "float32", "bf16", "int8"]
Array = NDArray[np.float32]

CLASS_MAPS = "saliency_map"  # an output besides the first, see `vankit.models.class_maps`: OpenVINO Model API's name

# OpenVINO and NNCF would send usage data unless the user has said no; they do without the module
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


class UnsupportedNetworkError(UserError):
    """torch.export, or the exporter of a format, cannot take the network."""


class Engine(ABC):
    """A network ready to run: float32 (B, C, H, W) → float32 (B, …), its first output.

    Attributes:
        name: torch, openvino or onnxruntime.
        precision: float32, bf16 or int8.
        workers: how many threads should call `worker()`'s callables at once to use all cores.
        batch_size: images that a worker is best given at once.
    """

    name: str
    precision: str
    workers: int
    batch_size: int = 1  # on CPUs: larger batches gain little or lose, see docs/performance.md

    @abstractmethod
    def __call__(self, x: Array) -> Array:
        """Run on all cores."""

    @abstractmethod
    def outputs(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        """Run on all cores; all outputs, of a batch and size (and of a type) that the model takes as one."""

    @abstractmethod
    def worker(self) -> Callable[[Array], Array]:
        """A callable for one thread, as `__call__`, to be used while `workers - 1` others run."""


def check_options(engine: str, precision: str) -> None:
    """Refuse options that no engine has.

    Raises:
        ValueError: either is unknown.
    """
    for option, value, known in (("engine", engine, EngineName), ("precision", precision, Precision)):
        if value not in get_args(known):
            raise UserError(f"{option} is {value!r}, expected one of {', '.join(get_args(known))}")


def cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(found, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such file, or max
        return found
