"""Engines: one call that runs a network on arrays, whatever runs it. PyTorch is imported by its own engine only."""

import hashlib
import logging
import os
import platform
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

EngineName = Literal["auto", "torch", "openvino", "onnxruntime"]
Precision = Literal["auto", "float32", "bf16", "int8"]
Array = NDArray[np.float32]
T = TypeVar("T")

# OpenVINO and NNCF would send usage data unless the user has said no; they do without the module
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

logger = logging.getLogger(__name__)


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
    def outputs(self, x: Array) -> list[Array]:
        """Run on all cores; all outputs, of a batch and size that the model takes as one."""

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
            raise ValueError(f"{option} is {value!r}, expected one of {', '.join(get_args(known))}")


def cores() -> int:
    """Cores that this process may use: its affinity, and a container's quota."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(found, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such file, or max
        return found


class OpenVinoEngine(Engine):
    """OpenVINO on the CPU.

    Args:
        model: gives the model, for static (1, C, H, W) or dynamic sizes; called only if the cache has none.
        key: what tells the model from others (weights, input size, …), for the cache; None compiles each time.
        precision: float32 or bf16, in which the CPU may compute; int8 for a quantised model, whose other layers run in
            bf16 where the CPU has it.

    Raises:
        ImportError: openvino is missing.
        ValueError: the CPU has no bf16.
    """

    name = "openvino"

    def __init__(self, model: Callable[[], Any], key: bytes | None, precision: str = "float32") -> None:
        self.precision, self.workers = precision, cores()
        self._model, self._key = cache(model), key
        has_bf16 = "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise ValueError("this CPU has no bf16 instructions: leave out precision (--precision)")
        # named although it could be left out: OpenVINO chooses bf16 by itself on CPUs that have it
        self._hint = "bf16" if precision == "bf16" or (precision == "int8" and has_bf16) else "f32"
        self._lock = threading.Lock()
        self._latency = cache(lambda: self._compile(1).create_infer_request())
        self._streams = cache(lambda: self._compile(self.workers))

    def prepare(self) -> None:
        """Compile now rather than at the first call."""
        with self._lock:
            self._latency()

    def __call__(self, x: Array) -> Array:
        with self._lock:
            return _one_by_one(self._latency(), x) if len(x) == 1 else self._on_all_streams(x)

    def outputs(self, x: Array) -> list[Array]:
        with self._lock:
            request = self._latency()
            request.infer({0: x})
            return [tensor.data.copy() for tensor in request.output_tensors]

    def _on_all_streams(self, x: Array) -> Array:
        from openvino import AsyncInferQueue

        results: list[Any] = [None] * len(x)
        queue = AsyncInferQueue(self._streams(), self.workers)
        queue.set_callback(lambda request, i: results.__setitem__(i, request.get_output_tensor(0).data.copy()))
        for i in range(len(x)):
            queue.start_async({0: x[i : i + 1]}, i)
        queue.wait_all()
        return np.concatenate(results) if results else _one_by_one(self._latency(), x)

    def worker(self) -> Callable[[Array], Array]:
        with self._lock:
            request = self._streams().create_infer_request()
        return lambda x: _one_by_one(request, x)

    def _compile(self, streams: int) -> Any:
        core = _core()
        config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self._hint, "NUM_STREAMS": streams}
        if streams > 1 or self.workers < (os.cpu_count() or 1):  # else OpenVINO takes one thread a physical core
            config["INFERENCE_NUM_THREADS"] = self.workers

        def make() -> tuple[Any, bytes]:
            compiled = core.compile_model(self._model(), "CPU", config)
            return compiled, compiled.export_model().getvalue()

        if self._key is None:
            return core.compile_model(self._model(), "CPU", config)
        import openvino

        parts = (openvino.get_version(), *_cpu(), repr(sorted(config.items())), str(cores()))
        return _cached(self._key, parts, lambda blob: core.import_model(blob, "CPU", config), make)


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


_starting = threading.Lock()


def _core() -> Any:
    with _starting:  # the binding's first conversion to NumPy deadlocks if two threads do it at once
        return _started_core()


@cache
def _started_core() -> Any:
    try:
        import openvino
    except ImportError:
        raise ImportError("engine openvino needs OpenVINO: pip install openvino, or use engine='torch'") from None
    openvino.Tensor(np.zeros(1, np.float32)).data  # noqa: B018
    return openvino.Core()


class OnnxRuntimeEngine(Engine):
    """ONNX Runtime on the CPU.

    Args:
        model: gives the ONNX model's bytes, for static (1, C, H, W) or dynamic sizes; called if the cache has none.
        key: as of `OpenVinoEngine`.
        precision: float32, or int8 for a quantised model.

    Raises:
        ImportError: onnxruntime is missing.
        ValueError: the precision is bf16.
    """

    name = "onnxruntime"

    def __init__(self, model: Callable[[], bytes], key: bytes | None, precision: str = "float32") -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ImportError("engine onnxruntime needs its package: pip install 'vankit[onnx]'") from None
        if precision == "bf16":
            raise ValueError("ONNX Runtime has no bf16 on CPUs: use engine='openvino', or leave out precision")
        self.precision, self.workers = precision, cores()
        self._runtime, self._model, self._key = onnxruntime, model, key
        self._latency = cache(lambda: self._session(self.workers))
        self._streams = cache(lambda: self._session(1))
        self._lock = threading.Lock()

    def __call__(self, x: Array) -> Array:
        with self._lock:
            return self._run(self._latency(), x)

    def outputs(self, x: Array) -> list[Array]:
        with self._lock:
            session = self._latency()
            return session.run(None, {session.get_inputs()[0].name: x})

    def worker(self) -> Callable[[Array], Array]:
        with self._lock:
            session = self._streams()
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
                session = runtime.InferenceSession(self._model(), chosen, providers=["CPUExecutionProvider"])
                return session, Path(chosen.optimized_model_filepath).read_bytes()

        if self._key is None:
            return make()[0]
        return _cached(self._key, (runtime.__version__, *_cpu()), load, make)


class TorchEngine(Engine):
    """PyTorch: compiled on CUDA devices, eager elsewhere, channels_last.

    Args:
        network: a module in eval mode, (B, C, H, W) → (B, …).
        device: torch's name.
        precision: float32 or bf16 (autocast).
        batch_size: images that a worker is best given at once.
    """

    name = "torch"

    def __init__(self, network: Any, device: str, precision: str = "float32", batch_size: int = 16) -> None:
        import torch

        if precision == "int8":
            raise ValueError("engine torch computes in float32 or bf16: for int8 see vankit export --int8")
        self.precision, self.batch_size, self.workers = precision, batch_size, cores()
        self._device = torch.device(device)
        network = network.to(memory_format=torch.channels_last).to(self._device)
        self._network = self._eager = network
        if self._device.type == "cuda":
            self._network = torch.compile(network)
        self._lock = threading.Lock()  # one forward pass uses all of the device; workers prepare images meanwhile

    def __call__(self, x: Array) -> Array:
        return self.outputs(x)[0]

    def outputs(self, x: Array) -> list[Array]:
        import torch

        kind = self._device.type
        autocast = torch.autocast(kind, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        # float32 means it: cuDNN would round the inputs of convolutions to TF32
        cudnn = torch.backends.cudnn
        exact: Any = nullcontext()
        if kind == "cuda":  # what is not named here would be switched off
            exact = cudnn.flags(cudnn.is_available(), cudnn.benchmark, cudnn.deterministic, allow_tf32=False)
        with self._lock, torch.inference_mode(), autocast, exact:
            images = torch.from_numpy(x).to(self._device, memory_format=torch.channels_last)
            found = self._run(images)
            return [y.float().cpu().numpy() for y in (found if isinstance(found, list | tuple) else [found])]

    def _run(self, images: Any) -> Any:
        import torch._dynamo.exc

        try:
            return self._network(images)
        except torch._dynamo.exc.TorchDynamoException as error:  # of Triton or a C compiler that is not there, say
            if self._network is self._eager:
                raise
            logger.warning("running uncompiled: %s", str(error).strip().partition("\n")[0])
            self._network = self._eager
            return self._network(images)

    def worker(self) -> Callable[[Array], Array]:
        return self


def cache_folder() -> Path:
    """Where compiled models are kept: VANKIT_CACHE, or `vankit` in the user's cache folder. It may be deleted."""
    if named := os.environ.get("VANKIT_CACHE"):
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("vankit", appauthor=False)


def _cached(key: bytes, parts: tuple[str, ...], load: Callable[[bytes], T], make: Callable[[], tuple[T, bytes]]) -> T:
    """What `load` makes of the cached bytes, or what `make` makes, whose bytes are cached.

    A file holds its sha256 and the bytes; one that does not match, or does not load, is made anew.
    """
    digest = hashlib.sha256(b"\0".join([key, *(part.encode() for part in parts)])).hexdigest()
    path = cache_folder() / "engines" / digest
    try:
        stored = memoryview(path.read_bytes())
        if hashlib.sha256(stored[32:]).digest() == stored[:32]:
            return load(bytes(stored[32:]))
        logger.warning("%s is damaged and will be rebuilt", path)
    except FileNotFoundError:
        pass
    except Exception as error:  # engines raise whatever they trip over
        logger.warning("%s cannot be used and will be rebuilt: %s", path, error)
    made, blob = make()
    partial = path.with_name(f"{digest}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(hashlib.sha256(blob).digest() + blob)
        os.replace(partial, path)
    except OSError as error:
        logger.warning("cannot keep the compiled model for the next start: %s", error)
        with suppress(OSError):
            partial.unlink()
    return made


@cache
def _cpu() -> tuple[str, ...]:
    """What tells this CPU from others as far as compiled code goes."""
    flags = ""
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        flags += next((line for line in lines if line.startswith("model name")), "")
    return platform.machine(), platform.processor(), platform.system(), flags
