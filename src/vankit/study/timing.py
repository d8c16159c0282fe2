"""How much faster than plain PyTorch is it here? Each contender alone in a process, checked first, timed in turns."""

import logging
import math
import os
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from os import PathLike
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from vankit.errors import UserError

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[np.float32]
Run = Callable[[Array], Array]

TOLERANCE = 1e-4  # on logits; those of `random_network` are spread by about 2
_ENGINES = (
    ("openvino", "float32"), ("openvino", "bf16"), ("onnxruntime", "float32"), ("torch", "float32"), ("torch", "bf16"),
)  # fmt: skip
_PLAIN_PROCESSES = 3
_WARM_UP = 2  # calls
_PAUSE = 0.05  # seconds, in which the waiting threads of whoever was timed before stop spinning
_FEWEST_ROUNDS = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contender:
    """A way to run a network.

    Attributes:
        model: the network.
        name: of the way.
        make: called once, in a process of its own (so it is pickled): gives float32 (B, C, H, W) → (B, classes).
        exact: it claims float32: it is not timed if a logit is further than `TOLERANCE` from the expected one, or a
            top-1 label is another.
        processes: how many to time in turn, where the speed of one is a matter of luck. That of eager PyTorch is: as
            the heap happens to lie, the memory of its activations is kept or goes back to the system at every call.
    """

    model: str
    name: str
    make: Callable[[], Run]
    exact: bool = True
    processes: int = 1


@dataclass(frozen=True)
class Timing:
    """How a contender fared.

    Attributes:
        model: the network.
        contender: the way to run it.
        note: why it was not timed, else empty; the times are None then.
        difference: largest absolute difference of a logit from eager float32 on the CPU.
        agreement: share of images with the same top-1 label, 0 to 1.
        ms, ms_low, ms_high, ms_min: milliseconds for one image: median of all calls, quartiles, least.
        speedup, speedup_low, speedup_high: how many times faster than the first contender with this network: median
            of all rounds, quartiles.
        rounds: milliseconds of each round: medians of its calls.
    """

    model: str
    contender: str
    note: str = ""
    difference: float | None = None
    agreement: float | None = None
    ms: float | None = None
    ms_low: float | None = None
    ms_high: float | None = None
    ms_min: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    rounds: tuple[float, ...] = ()


def bench(models: Sequence[str] = ("van_b0",), seconds: float = 15) -> Iterator[Timing]:
    """Time vankit's engines against plain eager PyTorch on this machine, one image at a time, with random weights.

    Processes are started, so a script that calls this needs `if __name__ == "__main__":`. Anything else that the
    machine does meanwhile disturbs the figures.

    Args:
        models: names of timm models.
        seconds: to time each model for, after a minute or two in which the networks are compiled.

    Yields:
        A row per contender, model by model; the first one of a model is plain PyTorch.

    Raises:
        ValueError: timm knows no such model.
    """
    if not 0 < seconds < math.inf:
        raise UserError(f"seconds is {seconds}, expected more than 0, and an end")
    from vankit.models.van import check_name

    for model in models:
        check_name(model)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.25 * (os.cpu_count() or 1):
        logger.warning("the load average is %.1f: other processes disturb these figures", os.getloadavg()[0])
    for model in models:
        network = random_network(model)
        images = pictures(input_size(network))
        with TemporaryDirectory() as folder:
            weights = save_weights(network, folder)
            contenders = [Contender(model, "plain PyTorch", partial(_plain, model, weights), False, _PLAIN_PROCESSES)]
            for engine, precision in _ENGINES:
                make = partial(own, model, weights, engine, precision)
                contenders.append(Contender(model, f"{engine} {precision}", make, precision == "float32"))
            yield from compare(contenders, images, {model: eager(network)(images)}, seconds)


def _plain(model: str, weights: str) -> Run:
    import torch

    return eager(load(model, weights), "cuda" if torch.cuda.is_available() else "cpu")


def own(model: str, weights: str, engine: str, precision: str) -> Run:
    """What `vankit.Predictor` runs a network with, see `load`."""
    from vankit.prediction.labels import Predictor

    return Predictor(load(model, weights), engine=engine, precision=precision).engine


def load(model: str, weights: str) -> "nn.Module":
    """A timm model in eval mode, as most scripts open it."""
    import timm

    import vankit.models.van  # noqa: F401  (registers VAN)

    return timm.create_model(model, checkpoint_path=weights).eval()


def save_weights(network: "nn.Module", folder: str | PathLike[str]) -> str:
    """Write weights.safetensors to a folder and return its path."""
    from safetensors.torch import save_file

    path = os.path.join(folder, "weights.safetensors")
    save_file(network.state_dict(), path)
    return path


def eager(network: "nn.Module", device: str = "cpu") -> Run:
    """PyTorch as most scripts run it."""
    import torch

    network.to(device)

    def run(x: Array) -> Array:
        with torch.inference_mode():
            return network(torch.from_numpy(x).to(device)).cpu().numpy()

    return run


def random_network(model: str) -> "nn.Module":
    """A timm model in eval mode with random weights, the same ones each time. No layer does nothing, as some would when
    newly made, and logits have a standard deviation of 2.

    Raises:
        ValueError: timm knows no such model.
    """
    import torch
    from torch import nn

    from vankit.models.van import create_model

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network: Any = create_model(model).eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                for tensor in (module.weight, module.running_var):
                    tensor.data.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.data.normal_(std=0.1)
        for name, parameter in network.named_parameters():
            if "layer_scale" in name or name.endswith("gamma"):
                parameter.data.uniform_(0.01, 0.04)
    network.get_classifier().weight.data *= 2 / eager(network)(pictures(input_size(network))).std()
    return network


def input_size(network: "nn.Module") -> tuple[int, int, int]:
    """(C, H, W) of the images that a timm model is made for."""
    from timm.data import resolve_model_data_config

    return resolve_model_data_config(network)["input_size"]


def pictures(size: Sequence[int], count: int = 8) -> Array:
    """Patches of random colours, float32 (count, C, H, W) with unit variance.

    Args:
        size: (C, H, W).
        count: how many.
    """
    channels, height, width = size
    rows, columns = (np.arange(length) * 7 // length for length in (height, width))
    patches = np.random.default_rng(0).standard_normal((count, channels, 7, 7), dtype=np.float32)
    return np.ascontiguousarray(patches[:, :, rows][..., columns])


class Worker:
    """A way to run a network, in a fresh process: allocators and thread pools of different libraries slow each other.

    Args:
        make: see `Contender`.
        cores: that the process may use; all if empty.
    """

    def __init__(self, make: Callable[[], Run], cores: Sequence[int] = ()) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, cores), daemon=True)
        self._process.start()
        theirs.close()

    def outputs(self, images: Array) -> Array | str:
        """Run images, one at a time: logits (B, classes), or why there are none; once."""
        try:
            self._connection.send(images)
            return self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            return f"not available: its process died with exit code {self._process.exitcode}"

    def seconds(self, image: Array, calls: int) -> list[float]:
        """Seconds of each of some calls, after others that warm up; after `outputs`."""
        self._connection.send((image, calls))
        return self._connection.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.join(timeout=5)
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, make: Callable[[], Run], cores: Sequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        run = make()
    except Exception as error:  # libraries raise whatever they trip over
        run = partial(_fail, error)
    with suppress(EOFError, ConnectionError):  # the parent has closed the connection, or died
        images = connection.recv()
        try:
            connection.send(np.concatenate([run(images[i : i + 1]) for i in range(len(images))]))
        except Exception as error:
            connection.send(f"not available: {str(error).strip().partition(chr(10))[0] or type(error).__name__}")
            return
        while True:
            connection.send(_seconds(run, *connection.recv()))


def _fail(error: Exception, _: Array) -> Array:
    raise error


def _seconds(run: Run, image: Array, calls: int) -> list[float]:
    time.sleep(_PAUSE)
    seconds = []
    for _ in range(_WARM_UP + calls):
        start = time.perf_counter()
        run(image)
        seconds.append(time.perf_counter() - start)
    return seconds[_WARM_UP:]


def compare(
    contenders: Sequence[Contender],
    images: Array,
    expected: dict[str, Array],
    seconds: float,
    calls: int = 5,
    cores: Sequence[int] = (),
) -> list[Timing]:
    """Check contenders, then time those that passed in rounds: in each, every one makes some calls while others sleep.

    Args:
        contenders: those of a network are compared with its first one.
        images: float32 (B, C, H, W) for the check; the first one is timed.
        expected: by network the logits of eager float32, (B, classes).
        seconds: begin no round after this long, but do three.
        calls: timed calls per round, after two that warm up.
        cores: that each contender may use; all if empty.

    Returns:
        A row per contender, in their order.
    """
    with ExitStack() as stack:
        workers = [
            [stack.enter_context(Worker(contender.make, cores)) for _ in range(contender.processes)]
            for contender in contenders
        ]
        rows, fit = [], {}
        for contender, copies in zip(contenders, workers, strict=True):
            checks = [_check(contender, worker.outputs(images), expected[contender.model]) for worker in copies]
            rows.append(max(checks, key=lambda row: (row.note, row.difference or 0)))
            if not rows[-1].note:
                fit[contender] = copies
        rounds = list(_rounds(fit, images[:1], seconds, calls))
    baselines = {contender.model: contender for contender in reversed(contenders)}
    return [
        row if row.note else summarise(row, rounds, contender, baselines[contender.model])
        for row, contender in zip(rows, contenders, strict=True)
    ]


def _check(contender: Contender, outputs: Array | str, expected: Array) -> Timing:
    row = Timing(contender.model, contender.name)
    if isinstance(outputs, str):
        return replace(row, note=outputs)
    if outputs.shape != expected.shape:
        return replace(row, note=f"refused: its output has shape {outputs.shape} instead of {expected.shape}")
    difference = float(np.abs(outputs - expected).max())
    agreement = float((outputs.argmax(1) == expected.argmax(1)).mean())
    right = difference <= TOLERANCE and agreement == 1 if contender.exact else np.isfinite(difference)
    note = "" if right else f"refused: its logits are up to {difference:.1g} off, {agreement:.0%} of labels agree"
    return replace(row, note=note, difference=difference, agreement=agreement)


def _rounds(
    workers: dict[Contender, list[Worker]], image: Array, seconds: float, calls: int
) -> Iterator[dict[Contender, list[float]]]:
    """By contender the seconds of its calls, round after round."""
    order, shuffle = list(workers), random.Random(0).shuffle
    end, done = time.monotonic() + seconds, 0
    while order and (done < _FEWEST_ROUNDS or time.monotonic() < end):
        shuffle(order)
        yield {c: workers[c][done % c.processes].seconds(image, calls) for c in order}
        done += 1


def summarise(
    row: Timing, rounds: Sequence[dict[Contender, list[float]]], contender: Contender, baseline: Contender
) -> Timing:
    """Fill in the times of a contender, and the speed-up over the baseline if that was timed.

    Args:
        row: with its model and contender.
        rounds: by contender the seconds of its calls, round after round.
        contender: the one of the row.
        baseline: the one that it is compared with.
    """
    calls = [1e3 * second for found in rounds for second in found[contender]]
    medians = tuple(1e3 * statistics.median(found[contender]) for found in rounds)
    low, median, high = np.quantile(calls, (0.25, 0.5, 0.75)).tolist()
    row = replace(row, ms=median, ms_low=low, ms_high=high, ms_min=min(calls), rounds=medians)
    if baseline not in rounds[0]:
        return row
    # within a round, since other work of the machine slows both
    ratios = [1e3 * statistics.median(found[baseline]) / ms for found, ms in zip(rounds, medians, strict=True)]
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return replace(row, speedup=median, speedup_low=low, speedup_high=high)
