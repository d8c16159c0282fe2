"""LiteRT (once TensorFlow Lite) on CPUs."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vankit.engines.base import Array, Engine, cores
from vankit.errors import MissingPackageError, UserError
from vankit.files import reading


class LiteRtEngine(Engine):
    """LiteRT on the CPU; its package does not need PyTorch.

    Args:
        path: a model.tflite for static (1, C, H, W), or (1, H, W, 3) of a segmenter.
        precision: float32.
        takes: type of the input's numbers, float32 or uint8.

    Raises:
        ImportError: ai-edge-litert is missing.
        ValueError: another precision, or the file is damaged.
    """

    name = "litert"

    def __init__(self, path: Path, precision: str = "float32", takes: str = "float32") -> None:
        try:
            import ai_edge_litert.interpreter as runtime
        except ImportError:
            raise MissingPackageError(f"{path} needs LiteRT: pip install ai-edge-litert") from None
        if precision != "float32":
            raise UserError(f"precision is {precision}, but LiteRT runs what vankit exports in float32: leave it out")
        self.precision, self.workers, self._takes = precision, cores(), takes
        self._runtime, self._content = runtime, path.read_bytes()
        self._lock = threading.Lock()
        with reading(path, Exception):
            self._latency = self._interpreter(self.workers)

    def ends(self) -> tuple[list[list[int]], list[list[int]]]:
        """Shapes of the inputs and of the outputs; a tensor of another type has none."""
        details = self._latency.get_input_details(), self._latency.get_output_details()
        inputs, outputs = (
            [end["shape"].tolist() if end["dtype"] == np.dtype(kind) else [] for end in each]
            for each, kind in zip(details, (self._takes, "float32"), strict=True)
        )
        return inputs, outputs

    def __call__(self, x: Array) -> Array:
        with self._lock:
            return _one_by_one(self._latency, x)

    def outputs(self, x: Array) -> list[Array]:
        with self._lock:
            interpreter = self._latency
            _run(interpreter, x)
            return [interpreter.get_tensor(end["index"]) for end in interpreter.get_output_details()]

    def worker(self) -> Callable[[Array], Array]:
        interpreter = self._interpreter(1)  # one computes at a time, and releases the GIL
        return lambda x: _one_by_one(interpreter, x)

    def _interpreter(self, threads: int) -> Any:
        interpreter = self._runtime.Interpreter(model_content=self._content, num_threads=threads)
        interpreter.allocate_tensors()
        return interpreter


def _one_by_one(interpreter: Any, x: Array) -> Array:
    answer = interpreter.get_output_details()[0]
    found = np.empty((len(x), *answer["shape"][1:]), np.float32)
    for i in range(len(x)):
        _run(interpreter, x[i : i + 1])
        found[i] = interpreter.get_tensor(answer["index"])[0]
    return found


def _run(interpreter: Any, x: Array) -> None:
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
