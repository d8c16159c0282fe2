"""ONNX Runtime on CPUs."""

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.engines.base import CLASS_MAPS, Array, Engine, cores
from vankit.engines.cache import cached, cpu
from vankit.errors import MissingPackageError, UserError
from vankit.files import reading


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime on the CPU.

    Args:
        model: gives the ONNX model's bytes, for static (1, C, H, W) or dynamic sizes; called if the cache has none.
        key: as of `OpenVinoEngine`.
        precision: float32, or int8 for a quantised model.
        source, class_maps: as of `OpenVinoEngine`.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: the precision is bf16.
    """

    name = "onnxruntime"

    def __init__(
        self,
        model: Callable[[], bytes],
        key: bytes | None,
        precision: str = "float32",
        source: Path | None = None,
        class_maps: bool = False,
    ) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingPackageError("engine onnxruntime needs its package: pip install 'vankit[onnx]'") from None
        if precision == "bf16":
            raise UserError("ONNX Runtime has no bf16 on CPUs: use engine='openvino', or leave out precision")
        self.precision, self.workers = precision, cores()
        self._runtime, self._model, self._key, self._source = onnxruntime, model, key, source
        self._class_maps = class_maps
        self._lock = threading.Lock()

    # properties, see `vankit.engines.openvino.OpenVinoEngine`
    @cached_property
    def _latency(self) -> Any:
        return self._session(self.workers)

    @cached_property
    def _streams(self) -> Any:
        return self._session(1)

    def __call__(self, x: Array) -> Array:
        with self._lock:
            return self._run(self._latency, x)

    def outputs(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        with self._lock:
            session = self._latency
            return session.run(None, {session.get_inputs()[0].name: x})

    def worker(self) -> Callable[[Array], Array]:
        with self._lock:
            session = self._streams
        return lambda x: self._run(session, x)

    @staticmethod
    def _run(session: Any, x: Array) -> Array:
        name = session.get_inputs()[0].name
        outputs = [session.run(None, {name: image[None]})[0] for image in x]
        if outputs:
            return np.concatenate(outputs)
        return np.empty((0, *session.get_outputs()[0].shape[1:]), np.float32)

    def _session(self, threads: int) -> Any:
        runtime = self._runtime

        def options(level: Any) -> Any:
            found = runtime.SessionOptions()
            found.intra_op_num_threads, found.inter_op_num_threads = threads, 1
            found.graph_optimization_level, found.log_severity_level = level, 3
            return found

        def load(blob: bytes) -> Any:
            level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL  # they are in the file
            return runtime.InferenceSession(blob, options(level), providers=["CPUExecutionProvider"])

        def make() -> tuple[Any, bytes]:
            import tempfile

            with tempfile.TemporaryDirectory() as folder:
                chosen = options(runtime.GraphOptimizationLevel.ORT_ENABLE_ALL)
                chosen.optimized_model_filepath = os.path.join(folder, "optimised.onnx")
                content = self._model() if self._class_maps else without_class_maps(self._model())
                with reading(self._source, Exception) if self._source else nullcontext():
                    session = runtime.InferenceSession(content, chosen, providers=["CPUExecutionProvider"])
                return session, Path(chosen.optimized_model_filepath).read_bytes()

        if self._key is None:
            return make()[0]
        parts = (runtime.__version__, *cpu(), *[CLASS_MAPS] * self._class_maps)
        return cached(self._key, parts, load, make)


def without_class_maps(model: bytes) -> bytes:
    """The bytes of an ONNX file without the output `CLASS_MAPS` and what is computed for it alone, which ONNX Runtime
    would compute whether it is asked for or not."""
    try:
        from onnx import load_from_string
        from onnx.utils import Extractor
    except ImportError:  # then it does
        return model
    found = load_from_string(model)
    inputs, outputs = ([end.name for end in ends] for ends in (found.graph.input, found.graph.output))
    if CLASS_MAPS not in outputs:
        return model
    kept = [name for name in outputs if name != CLASS_MAPS]
    return Extractor(found).extract_model(inputs, kept).SerializeToString()
