"""ExecuTorch on CPUs, as phones run it. Its Python package computes on PyTorch's tensors, and so imports PyTorch."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vankit.engines.base import Array, Engine, cores
from vankit.errors import MissingPackageError, UserError
from vankit.files import reading

_TYPES = {"uint8": 0, "float32": 6}  # https://github.com/pytorch/pytorch/blob/main/torch/headeronly/core/ScalarType.h


class ExecuTorchEngine(Engine):
    """ExecuTorch on the CPU, with XNNPACK's threads on all cores.

    Args:
        path: a model.pte for static (1, C, H, W), or (1, H, W, 3) of a segmenter.
        precision: float32.
        takes: type of the input's numbers, float32 or uint8.

    Raises:
        ImportError: executorch is missing.
        ValueError: another precision, or the file is damaged.
    """

    name = "executorch"

    def __init__(self, path: Path, precision: str = "float32", takes: str = "float32") -> None:
        try:
            from executorch.runtime import Runtime
        except ImportError:
            raise MissingPackageError(f"{path} needs ExecuTorch: pip install 'vankit[executorch]'") from None
        if precision != "float32":
            raise UserError(
                f"precision is {precision}, but ExecuTorch runs what vankit exports in float32: leave it out"
            )
        self.precision, self.workers, self._takes = precision, cores(), _TYPES[takes]
        with reading(path, Exception):
            self._program = Runtime.get().load_program(path.read_bytes())
            self._method = self._program.load_method("forward")
            self._ends = self._shapes()
        self._lock = threading.Lock()  # a method has one set of buffers; workers prepare images meanwhile

    def _shapes(self) -> tuple[list[list[int]], list[list[int]]]:
        told = self._method.metadata
        ends = (
            [told.input_tensor_meta(i) for i in range(told.num_inputs())],
            [told.output_tensor_meta(i) for i in range(told.num_outputs())],
        )
        inputs, outputs = (
            [list(end.sizes()) if end.dtype() == kind else [] for end in each]
            for each, kind in zip(ends, (self._takes, _TYPES["float32"]), strict=True)
        )
        return inputs, outputs

    def ends(self) -> tuple[list[list[int]], list[list[int]]]:
        """Shapes of the inputs and of the outputs; a tensor of another type has none."""
        return self._ends

    def __call__(self, x: Array) -> Array:
        if not len(x):
            return np.empty((0, *self._ends[1][0][1:]), np.float32)
        return np.concatenate([self.outputs(x[i : i + 1])[0] for i in range(len(x))])

    def outputs(self, x: Array) -> list[Array]:
        import torch

        with self._lock:
            return [y.numpy() for y in self._method.execute([torch.from_numpy(np.ascontiguousarray(x))])]

    def worker(self) -> Callable[[Array], Array]:
        return self
