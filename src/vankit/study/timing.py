"""How much faster than plain PyTorch is it here? Each contender alone in a process, checked first, timed in turns."""

import logging
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from vankit.data.shapes import render_scene
from vankit.deploy.agreement import Agreement
from vankit.deploy.dense import DenseFolder
from vankit.deploy.folder import Exported, is_exported, read_exported
from vankit.errors import UserError
from vankit.models.description import Description
from vankit.study.worker import Array, Run, Worker

if TYPE_CHECKING:
    from torch import nn

TOLERANCE = 1e-4  # on logits; those of `random_network` are spread by about 2
_ENGINES = (
    ("openvino", "float32"), ("openvino", "bf16"), ("onnxruntime", "float32"), ("torch", "float32"), ("torch", "bf16"),
)  # fmt: skip
_PLAIN_PROCESSES = 3
_FEWEST_ROUNDS = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contender:
    """A way to run a network.

    Attributes:
        model: the network.
        name: of the way.
        make: called once, in a process of its own (so it is pickled): gives float32 (B, C, H, W) → (B, classes); of
            detectors and segmenters uint8 (1, H, W, 3) → the results for the picture, as an array of one object.
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
        difference: largest absolute difference of a logit from eager float32 on the CPU, of an exported folder from
            its own engine; of a detector that of the score of an object that is the same.
        agreement: share of images with the same top-1 label, 0 to 1; of other networks of the objects or pixels that
            are the same, see `vankit.deploy.agreement.Agreement.share`. None if there are none.
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
    """Time vankit's engines on this machine, one image at a time: a network with random weights against plain eager
    PyTorch, and an exported folder as it is, without PyTorch.

    A detector or segmenter is timed from a picture to what is in it, on generated scenes of 4 to 3 whose shorter side
    is the one that the network brings pictures to.

    Processes are started, so a script that calls this needs `if __name__ == "__main__":`. Anything else that the
    machine does meanwhile disturbs the figures.

    Args:
        models: names of timm models, or folders that `vankit.export` wrote.
        seconds: to time each model for, after a minute or two in which the networks are compiled.

    Yields:
        A row per contender, model by model; the first one of a model is plain PyTorch, of a folder its own engine.

    Raises:
        ValueError: timm knows no such model, or a folder is damaged.
    """
    if not 0 < seconds < math.inf:
        raise UserError(f"seconds is {seconds}, expected more than 0, and an end")
    for model in models:
        _check_model(model)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.25 * (os.cpu_count() or 1):
        logger.warning("the load average is %.1f: other processes disturb these figures", os.getloadavg()[0])
    for model in models:
        yield from _bench_folder(model, seconds) if is_exported(model) else _bench_random(model, seconds)


def _check_model(model: str) -> None:
    if is_exported(model):
        read_exported(model)
        return
    if Path(model).is_file():
        raise UserError(f"{model} is a file: expected a model's name, or a folder, which vankit export makes of it")
    from vankit.models.van import check_name

    check_name(model)


def _bench_random(model: str, seconds: float) -> list[Timing]:
    network = random_network(model)
    images = pictures(input_size(network))
    with TemporaryDirectory() as folder:
        weights = save_weights(network, folder)
        contenders = [Contender(model, "plain PyTorch", partial(_plain, model, weights), False, _PLAIN_PROCESSES)]
        for engine, precision in _ENGINES:
            make = partial(own, model, weights, engine, precision)
            contenders.append(Contender(model, f"{engine} {precision}", make, precision == "float32"))
        return compare(contenders, images, {model: eager(network)(images)}, seconds)


def _bench_folder(folder: str, seconds: float) -> list[Timing]:
    """Its own engine, which is what the others are compared with, and whatever else runs it."""
    exported = read_exported(folder)
    engine = exported.engine()
    images = scenes(exported.description) if exported.dense else pictures(exported.preprocessing.input_size)
    names = (engine.name, "openvino") if exported.format == "onnx" and not exported.dense else (engine.name,)
    if exported.precision == "int8":
        ways = [(name, "int8") for name in names]
    else:
        ways = list(dict.fromkeys([(engine.name, engine.precision), *(way for way in _ENGINES if way[0] in names)]))
    make = partial(finding, exported) if exported.dense else exported.engine
    height, width = exported.size or images.shape[1:3]
    size = f", {width} × {height} px" if exported.dense else ""
    contenders = [
        Contender(folder, f"{name} {precision}{size}", partial(make, name, precision), precision == "float32")
        for name, precision in ways
    ]
    if not exported.dense:
        return compare(contenders, images, {folder: engine(images)}, seconds)
    find = finding(exported)
    expected = np.concatenate([find(image[None]) for image in images])
    return compare(contenders, images, {folder: expected}, seconds, check=_check_found)


def finding(exported: Exported, engine: str = "auto", precision: str = "auto") -> Run:
    """A detector or segmenter in a folder, as a contender: uint8 (1, H, W, 3) → its results, as an array of one."""
    folder = DenseFolder(exported, engine, precision)

    def run(x: Array) -> Array:
        found = np.empty(1, object)
        found[0] = folder(x[0])
        return found

    return run


def scenes(description: Description) -> Any:
    """Pictures for a detector or segmenter, of the size that it is made for: uint8 (2, H, W, 3)."""
    short = min(description.short_sides[-1], description.long_side * 3 // 4)
    return np.stack([render_scene(i, size=(short, short * 4 // 3), objects=6).image for i in range(2)])


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


def compare(
    contenders: Sequence[Contender],
    images: Array,
    expected: dict[str, Array],
    seconds: float,
    calls: int = 5,
    cores: Sequence[int] = (),
    check: Callable[[Contender, Array | str, Array], Timing] | None = None,
) -> list[Timing]:
    """Check contenders, then time those that passed in rounds: in each, every one makes some calls while others sleep.

    Args:
        contenders: those of a network are compared with its first one.
        images: (B, …), as the contenders take them, for the check; the first one is timed.
        expected: by network the logits of eager float32, (B, classes), or what else its contenders give.
        seconds: begin no round after this long, but do three.
        calls: timed calls per round, after two that warm up.
        cores: that each contender may use; all if empty.
        check: of what a contender gave, beside what was expected: its row, with a note if it is not to be timed; None
            takes that of logits.

    Returns:
        A row per contender, in their order.
    """
    check = check or _check
    with ExitStack() as stack:
        workers = [
            [stack.enter_context(Worker(contender.make, cores)) for _ in range(contender.processes)]
            for contender in contenders
        ]
        rows, fit = [], {}
        for contender, copies in zip(contenders, workers, strict=True):
            checks = [check(contender, worker.outputs(images), expected[contender.model]) for worker in copies]
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


def _check_found(contender: Contender, outputs: Array | str, expected: Array) -> Timing:
    """As `_check`, for what was found in pictures; bf16 rounds coordinates and scores."""
    row = Timing(contender.model, contender.name)
    if isinstance(outputs, str):
        return replace(row, note=outputs)
    found, note = Agreement(), ""
    for one, other in zip(expected, outputs, strict=True):
        found.add(one, other)
    try:
        found.check()
    except UserError:
        note = f"refused: {found.summary()}" if contender.exact else ""
    return replace(
        row, note=note, difference=found.score_difference if found.objects else None, agreement=found.share
    )  # fmt: skip


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
