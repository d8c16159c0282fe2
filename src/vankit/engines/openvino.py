"""OpenVINO on CPUs."""

import logging
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.engines.base import CLASS_MAPS, Array, Engine, cores
from vankit.engines.cache import cached, cpu, is_kept, keep, recall, source_code
from vankit.engines.processes import PerProcess
from vankit.engines.winograd import with_winograd
from vankit.errors import MissingPackageError, UserError
from vankit.files import reading

logger = logging.getLogger(__name__)

_MODEL = b"openvino.Model"


class OpenVinoEngine(Engine):
    """OpenVINO on the CPU.

    Args:
        model: gives the model, for static (1, C, H, W) or dynamic sizes; called only if the cache has none.
        key: what tells the model from others (weights, input size, …), for the cache; None compiles each time.
        precision: float32 or bf16, in which the CPU may compute; int8 for a quantised model, whose other layers run in
            bf16 where the CPU has it.
        source: file that the model comes from, if vankit did not make it just now: it may be damaged.
        class_maps: also compute the output of this name, where the model has it.
        winograd: in float32, compute large 3×3 convolutions by `vankit.engines.winograd`.

    Raises:
        ImportError: openvino is missing.
        ValueError: the CPU has no bf16.
    """

    name = "openvino"

    def __init__(
        self,
        model: Callable[[], Any],
        key: bytes | None,
        precision: str = "float32",
        source: Path | None = None,
        class_maps: bool = False,
        winograd: bool = False,
    ) -> None:
        self.precision, self.workers = precision, cores()
        self._model, self._key, self._source, self._class_maps = cache(model), key, source, class_maps
        self._winograd = winograd and precision == "float32"
        has_bf16 = "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise UserError("this CPU has no bf16 instructions: leave out precision (--precision)")
        # named although it could be left out: OpenVINO chooses bf16 by itself on CPUs that have it
        self._hint = "bf16" if precision == "bf16" or (precision == "int8" and has_bf16) else "f32"
        self._lock = threading.Lock()

    # properties, since functions that are kept here would hold the engine, and its threads, until garbage is collected
    @cached_property
    def _latency(self) -> Any:
        return self._compile(1).create_infer_request()

    @cached_property
    def _streams(self) -> Any:
        return self._compile(self.workers)

    def prepare(self) -> None:
        """Compile now rather than at the first call."""
        with self._lock:
            _ = self._latency

    def __call__(self, x: Array) -> Array:
        with self._lock:
            return _one_by_one(self._latency, x) if len(x) == 1 else self._on_all_streams(x)

    def outputs(self, x: NDArray[Any]) -> list[NDArray[Any]]:
        with self._lock:
            request = self._latency
            request.infer({0: x})
            return [tensor.data.copy() for tensor in request.output_tensors]

    def _on_all_streams(self, x: Array) -> Array:
        from openvino import AsyncInferQueue

        results: list[Any] = [None] * len(x)
        queue = AsyncInferQueue(self._streams, self.workers)
        queue.set_callback(lambda request, i: results.__setitem__(i, request.get_output_tensor(0).data.copy()))
        for i in range(len(x)):
            queue.start_async({0: x[i : i + 1]}, i)
        queue.wait_all()
        return np.concatenate(results) if results else _one_by_one(self._latency, x)

    def worker(self) -> Callable[[Array], Array]:
        with self._lock:
            request = self._streams.create_infer_request()
        return lambda x: _one_by_one(request, x)

    def _compile(self, streams: int) -> Any:
        core = openvino_core()
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self._hint, "NUM_STREAMS": streams}
        if streams > 1 or self.workers < (os.cpu_count() or 1):  # else OpenVINO takes one thread per physical core
            config["INFERENCE_NUM_THREADS"] = self.workers

        def compiled() -> Any:
            model = self._model() if self._class_maps else without_class_maps(self._model())
            if self._winograd:
                with_winograd(model)
            weakref.finalize(self, _THREADS.leave)
            with reading(self._source, Exception) if self._source else nullcontext():
                return core.compile_model(model, "CPU", config)

        def load(blob: bytes) -> Any:
            weakref.finalize(self, _THREADS.leave)
            return core.import_model(blob, "CPU", config)

        def make() -> tuple[Any, bytes]:
            found = compiled()
            return found, found.export_model().getvalue()

        if self._key is None:
            return compiled()
        import openvino

        parts = [openvino.get_version(), *cpu(), repr(sorted(config.items())), str(cores())]
        parts += [CLASS_MAPS] * self._class_maps + [source_code("engines/winograd.py").hex()] * self._winograd
        return cached(self._key, tuple(parts), load, make)


def without_class_maps(model: Any) -> Any:
    """An `openvino.Model` without the output `CLASS_MAPS` and what is computed for it alone."""
    import openvino

    results = model.get_results()
    kept = [result for result in results if CLASS_MAPS not in result.output(0).get_names()]
    return model if len(kept) == len(results) else openvino.Model(kept, model.get_parameters())


def kept_model(key: bytes | None, make: Callable[[], Any]) -> Any:
    """An `openvino.Model` that is kept on disk: to be compiled again, for more streams, say, it need not be made again.

    Args:
        key: as of `OpenVinoEngine`; of None nothing is kept.
        make: gives the model.
    """

    if key is None:
        return make()
    names = key, _MODEL
    if (content := recall(*names)) is not None:
        end = 8 + int.from_bytes(content[:8], "big")
        with suppress(Exception):  # what does not load is made anew
            return openvino_core().read_model(content[8:end], content[end:])
    model = make()
    try:
        keep(_in_bytes(model), *names)
    except (OSError, RuntimeError) as error:
        logger.warning("cannot keep the exported model for the next start: %s", error)
    return model


def has_kept_model(key: bytes) -> bool:
    """Whether `kept_model` need not make it."""
    return is_kept(key, _MODEL)


def _in_bytes(model: Any) -> bytes:
    """The length of its XML, the XML, the weights.

    Raises:
        OSError, RuntimeError: no file can be written here.
    """
    import tempfile

    import openvino

    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "model.xml"
        openvino.save_model(model, xml, compress_to_fp16=False)
        graph = xml.read_bytes()
        return b"".join((len(graph).to_bytes(8, "big"), graph, xml.with_suffix(".bin").read_bytes()))


def _one_by_one(request: Any, x: Array) -> Array:
    """The model of `OpenVinoEngine` takes batches of 1, or of any size."""
    if len(x) == 0:
        shape = request.get_compiled_model().output(0).get_partial_shape()
        return np.empty((0, *(d.get_length() for d in list(shape)[1:])), np.float32)
    outputs = []
    for image in x:
        request.infer({0: image[None]})  # copied: a request crashes when it is freed after an input that it shares
        outputs.append(request.get_output_tensor(0).data.copy())
    return np.concatenate(outputs)


_CORE: PerProcess[Any] = PerProcess()


class _Threads:
    """OpenVINO keeps the threads of a model that has been freed for the next one of its kind, which in a forked child
    would wait for them for ever."""

    left = lost = False

    def leave(self) -> None:
        self.left = True

    def lose(self) -> None:
        self.lost = self.left


_THREADS = _Threads()
if hasattr(os, "register_at_fork"):  # where there is fork
    os.register_at_fork(after_in_child=_THREADS.lose)


def openvino_core() -> Any:
    """OpenVINO of this process, which has one `openvino.Core` and keeps it.

    Each core takes the stack on which this thread's signals are handled, and gives back the one before when it is
    freed, although that may be gone by then, with its own core: the next signal would end the process.

    Raises:
        ImportError: openvino is missing.
        ValueError: this process was forked from one in which it had freed a model.
    """
    if _THREADS.lost:
        raise UserError(
            "OpenVINO would hang in this forked process, for its parent had used a network before and freed it: start "
            "processes with multiprocessing.get_context('spawn'), or use engine='torch'"
        )
    return _CORE.get(_start_core)


def _start_core() -> Any:
    """By one thread, for the binding's first conversion to NumPy deadlocks if two do it at once."""
    try:
        import openvino
    except ImportError:
        raise MissingPackageError(
            "engine openvino needs OpenVINO: pip install openvino, or use engine='torch'"
        ) from None
    openvino.Tensor(np.zeros(1, np.float32)).data  # noqa: B018
    return openvino.Core()
