"""How fast and how large are the fused operators on a GPU, against PyTorch's own paths and other networks?

    python benchmarks/lka_gpu.py [--parts tune ops models compile] [--rounds 3] [--quick] [--output FILE]

Every operator is checked against float64 before it is timed, and one that fails is not timed. Contenders take turns
within a round. A row has the median, least and greatest of an operator's medians a round (triton.testing.do_bench), or
of all steps of a network. `floor_ms` is the larger of the bytes that must move at the bandwidth of a copy, measured
first, and of the multiply-adds that meet the map at the float32 units' rate (docs/kernels.md).

    tune     the tiles and rows that a program may take, for the shapes of van_b2
    ops      the pair and the MLP's convolution with GELU: forward, and backward
    models   training steps and inference in bfloat16, batch 128, 224 px: eager
    compile  the same for van_b2 under torch.compile
"""

import argparse
import contextlib
import csv
import gc
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.ops import backend
from vankit.ops.convolution import convolve
from vankit.ops.gelu import depthwise_gelu
from vankit.ops.kernels import launch
from vankit.ops.kernels.operator import convolution_gradients
from vankit.ops.lka import depthwise_pair

DEVICE = "cuda"
RESULTS = Path(__file__).parent / "results" / "lka_gpu.csv"
WIDTHS = {"van_b0": (32, 64, 160, 256), "van_b2": (64, 128, 320, 512), "van_b5": (96, 192, 480, 768)}
RATIOS = (8, 8, 4, 4)
CLASSIFY = ((56, 56), (28, 28), (14, 14), (7, 7))
DETECT = ((200, 336), (100, 168), (50, 84), (25, 42))  # 800 x 1333, padded to multiples of 32
TILES = [launch.Tile(*t) for t in ((8, 64, 4), (16, 32, 2), (16, 32, 4), (32, 32, 2), (32, 32, 4), (32, 64, 4))]
GRADIENT_TILES = [launch.Tile(*t) for t in ((4, 32, 2), (4, 64, 4), (8, 32, 2), (8, 32, 4), (8, 64, 8), (16, 32, 8))]

Function = Callable[[], Any]
rows: list[dict[str, Any]] = []


def measure(contenders: dict[str, Function], rounds: int, rep: int = 60) -> dict[str, list[float]]:
    """Milliseconds of each contender: a median a round."""
    from triton.testing import do_bench

    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, function in contenders.items():
            found[name].append(do_bench(function, warmup=10, rep=rep, return_mode="median"))
    return found


def measure_steps(steps: dict[str, Function], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each contender's steps, three a round after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _, (name, step) in itertools.product(range(rounds), steps.items()):
        step()
        for _ in range(3):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            found[name].append(start.elapsed_time(end))
    return found


def report(times: dict[str, list[float]], ours: str | None, floor: float | None = None, **labels: Any) -> None:
    best = min((statistics.median(t) for name, t in times.items() if name != ours), default=None)
    for name, values in times.items():
        ms = statistics.median(values)
        row = {**labels, "contender": name, "ms": ms, "ms_min": min(values), "ms_max": max(values)}
        if floor is not None:
            row |= {"floor_ms": floor, "floor_share": floor / ms}
        if name == ours and best is not None:
            row["times_best_rival"] = best / ms
        rows.append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        print(rows[-1], flush=True)


@contextlib.contextmanager
def replaced(owner: Any, **values: Any) -> Iterator[None]:
    kept = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def convolutions(only: bool) -> Iterator[None]:
    """The network with our kernels, or without them if `only`."""
    with replaced(backend, default="torch" if only else "triton"):
        yield


def copy_bandwidth() -> float:
    """Bytes a millisecond, read and written, of a copy of 2 GiB."""
    source = torch.randn(2**29, device=DEVICE)
    target = torch.empty_like(source)
    ms = statistics.median(measure({"copy": lambda: target.copy_(source)}, 3, 200)["copy"])
    return 2 * source.numel() * 4 / ms


def float32_rate() -> float:
    """Multiply-adds a millisecond of the float32 units: 128 a multiprocessor and clock, by the vendor's tables."""
    properties = torch.cuda.get_device_properties("cuda")
    return properties.multi_processor_count * 128 * getattr(properties, "clock_rate", 1_980_000)  # kHz


def taps_met(k: int, dilation: int, size: tuple[int, int]) -> float:
    """Taps of a k x k kernel that meet the map, in the mean over its pixels."""
    offsets = [dilation * (i - k // 2) for i in range(k)]
    height, width = (sum(max(n - abs(o), 0) for o in offsets) / n for n in size)
    return height * width


def floors(shape: tuple[int, ...], kernels: list[tuple[int, int]], bandwidth: float) -> tuple[float, float]:
    """Milliseconds below which no forward and no backward pass can be, in bfloat16 with float32 sums."""
    elements = shape[0] * shape[1] * shape[2] * shape[3]
    met = [taps_met(k, d, (shape[2], shape[3])) for k, d in kernels]
    forward = max(4 * elements / bandwidth, sum(met) * elements / float32_rate())
    again = met[0]  # what is recomputed rather than stored
    return forward, max(6 * elements / bandwidth, (2 * sum(met) + again) * elements / float32_rate())


def tensors(shape: tuple[int, ...], kernels: list[tuple[int, int]]) -> list[Tensor]:
    """bfloat16 x in channels_last, and a float32 weight and bias a kernel, as under autocast."""
    x = torch.randn(shape, device=DEVICE, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    args = [x]
    for k, _ in kernels:
        args += [torch.randn(shape[1], 1, k, k, device=DEVICE) / k, torch.randn(shape[1], device=DEVICE)]
    return [a.requires_grad_() for a in args]


PAIR, GELU = [(5, 1), (7, 3)], [(3, 1)]


def pair(x: Tensor, dw: Tensor, b: Tensor, dw_d: Tensor, b_d: Tensor) -> Tensor:
    return F.conv2d(F.conv2d(x, dw, b, 1, 2, 1, len(dw)), dw_d, b_d, 1, 9, 3, len(dw))


def mlp(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.conv2d(x, weight, bias, 1, 1, 1, len(weight)))


OPERATORS: dict[str, tuple[Any, Any, list[tuple[int, int]]]] = {
    "pair": (lambda *a: depthwise_pair(*a, backend="triton"), pair, PAIR),
    "gelu": (lambda *a: depthwise_gelu(*a, backend="triton"), mlp, GELU),
}


def check(name: str, shape: tuple[int, ...]) -> None:
    """Outputs and gradients against float64 on this size of map, twice the same bits; NaN fails.

    Raises:
        SystemExit: they differ.
    """
    ours, theirs, kernels = OPERATORS[name]
    args = tensors((2, min(shape[1], 160), *shape[2:]), kernels)
    poisoned = launch.allocate
    with replaced(launch, allocate=lambda *a: poisoned(*a).fill_(float("nan"))):
        found = [passes(ours, args) for _ in range(2)]
    exact = passes(theirs, [a.detach().double().requires_grad_() for a in args])
    errors = [float((f.double() - e).norm() / e.norm()) for f, e in zip(found[0], exact, strict=True)]
    if not all(error < 0.02 for error in errors):
        raise SystemExit(f"{name} is wrong at {shape}: relative errors {errors}")
    if not all(torch.equal(a, b) for a, b in zip(*found, strict=True)):
        raise SystemExit(f"{name} does not repeat at {shape}")


def passes(function: Any, args: list[Tensor]) -> list[Tensor]:
    out = function(*args)
    direction = torch.linspace(-1, 2, out.numel(), device=DEVICE, dtype=torch.float64).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, args, direction)]


def operators(bandwidth: float, quick: bool, rounds: int) -> None:
    shapes = [(n, i, (128, w, *CLASSIFY[i])) for n, ws in WIDTHS.items() for i, w in enumerate(ws)]
    shapes += [("van_b2, 800x1333", i, (2, w, *DETECT[i])) for i, w in enumerate(WIDTHS["van_b2"])]
    for network, stage, shape in shapes:
        if quick and network != "van_b2":
            continue
        for name, (ours, theirs, kernels) in OPERATORS.items():
            at = shape if name == "pair" else (shape[0], shape[1] * RATIOS[stage], *shape[2:])
            check(name, at)
            labels = {"part": "ops", "name": f"{name} {network} stage {stage + 1}", "shape": "x".join(map(str, at))}
            compare(ours, theirs, tensors(at, kernels), floors(at, kernels, bandwidth), rounds, labels)


def compare(
    ours: Any, theirs: Any, args: list[Tensor], floor: tuple[float, float], rounds: int, labels: dict[str, Any]
) -> None:
    """Forward and backward, ours and PyTorch's in both memory formats, in the dtypes that autocast would have."""
    narrow = [a.detach().to(torch.bfloat16).requires_grad_() for a in args]
    nchw = [narrow[0].detach().contiguous().requires_grad_(), *narrow[1:]]
    calls = {"vankit": (ours, args), "torch channels_last": (theirs, narrow), "torch NCHW": (theirs, nchw)}
    forward, backward = {}, {}
    for name, (function, inputs) in calls.items():
        forward[name] = lambda function=function, inputs=inputs: function(*[a.detach() for a in inputs])
        out = function(*inputs)
        grad = torch.randn_like(out)
        backward[name] = lambda out=out, inputs=inputs, grad=grad: torch.autograd.grad(
            out, inputs, grad, retain_graph=True
        )
    report(measure(forward, rounds), "vankit", floor[0], **labels, direction="forward")
    report(measure(backward, rounds), "vankit", floor[1], **labels, direction="backward")


def tune(bandwidth: float, rounds: int) -> None:
    """Each convolution of van_b2's pair alone, and its weight gradient, with every tile and number of rows."""
    for stage, width in enumerate(WIDTHS["van_b2"]):
        shape = (128, width, *CLASSIFY[stage])
        x = tensors(shape, [])[0].detach()
        for k, dilation in PAIR:
            floor = floors(shape, [(k, dilation)], bandwidth)[0]
            tune_convolution(x, k, dilation, f"{k}x{k} stage {stage + 1}", floor, rounds)


def tune_convolution(x: Tensor, k: int, dilation: int, name: str, floor: float, rounds: int) -> None:
    """
    Raises:
        SystemExit: the convolution is wrong with a tile, which is then not timed.
    """
    nhwc = x.permute(0, 2, 3, 1)
    weight, grad, out = torch.randn(x.shape[1], 1, k, k, device=DEVICE), torch.randn_like(nhwc), torch.empty_like(nhwc)
    convolution = launch.Convolution(weight, None, dilation, nhwc)
    labels = {"part": "tune", "name": name, "shape": "x".join(map(str, x.shape))}
    exact = convolve(x[:2].double(), weight.bfloat16().double(), None, dilation)
    for tile, lines in itertools.product(TILES, launch.ROWS):
        with replaced(launch, convolve_tile=lambda *_, t=tile: t, rows_of=lambda *_, n=lines: n):
            convolution.forward(nhwc, out.fill_(float("nan")))
            if not (out[:2].permute(0, 3, 1, 2) - exact).norm() < 0.02 * exact.norm():
                raise SystemExit(f"{name} is wrong with {tile}, {lines} rows")
            times = measure({f"{tuple(tile)}, {lines} rows": lambda: convolution.forward(nhwc, out)}, rounds, 20)
        report(times, None, floor, **labels, direction="forward")
    few = x[:2].double(), grad[:2].permute(0, 3, 1, 2).double()
    exact = convolution_gradients(few[1], few[0], weight.bfloat16().double(), dilation)[1]
    for tile in GRADIENT_TILES:
        with replaced(launch, gradient_tile=lambda *_, t=tile: t):
            found = convolution.weight_gradients([convolution.weight_partials(nhwc[:2], grad[:2])])[0]
            if not (found - exact).norm() < 1e-3 * exact.norm():
                raise SystemExit(f"{name}'s weight gradient is wrong with {tile}")
            times = measure({f"{tuple(tile)}": lambda: convolution.weight_partials(nhwc, grad)}, rounds, 20)
        report(times, None, floor, **labels, direction="weight gradient")


class Contender:
    """A network with its batch, which trains or infers with or without our kernels."""

    def __init__(self, name: str, plain_only: bool, channels_last: bool, compiled: bool = False) -> None:
        import timm

        import vankit  # noqa: F401  (registers the models)

        torch.manual_seed(0)
        self.plain_only = plain_only
        self.model = timm.create_model(name, num_classes=1000).to(DEVICE)
        self.images = torch.randn(128, 3, 224, 224, device=DEVICE)
        self.labels = torch.arange(128, device=DEVICE)
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
            self.images = self.images.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        if compiled:
            self.model.compile()

    def train(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with convolutions(self.plain_only):
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = F.cross_entropy(self.model.train()(self.images), self.labels)
            loss.backward()
        self.optimizer.step()

    def infer(self) -> Tensor:
        with convolutions(self.plain_only), torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
            return self.model.eval()(self.images)

    def peak_mib(self, step: Function) -> int:
        """Of a step: what it allocates, its parameters and, in training, the optimiser's two states of each."""
        self.optimizer.zero_grad(set_to_none=True)
        own = sum(p.numel() * p.element_size() for p in self.model.parameters()) * (3 if step == self.train else 1)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return round((torch.cuda.max_memory_allocated() - before + own) / 2**20)


def networks(names: list[str], compiled: bool, rounds: int) -> None:
    """Times and peak memory of training steps and inference; the logits of the VANs are compared first.

    Raises:
        SystemExit: our kernels change the logits by more than bfloat16's rounding.
    """
    for name in names:
        contenders = {"plain channels_last": Contender(name, True, True, compiled)}
        if name.startswith("van"):
            contenders["vankit channels_last"] = Contender(name, False, True, compiled)
            if not compiled:
                contenders["plain NCHW"] = Contender(name, True, False)
            plain_logits, logits = (contender.infer().float() for contender in list(contenders.values())[:2])
            if not (logits - plain_logits).norm() < 0.05 * plain_logits.norm():
                raise SystemExit(f"{name}'s logits differ with our kernels")
        for task in ("infer", "train"):
            steps = {label: getattr(contender, task) for label, contender in contenders.items()}
            for step in steps.values():
                for _ in range(3):  # compiles, and lets cuDNN choose
                    step()
            labels = {"part": "compile" if compiled else "models", "name": name, "direction": task}
            report(measure_steps(steps, rounds), "vankit channels_last", shape="128x3x224x224", **labels)
            for row in rows[-len(steps) :]:
                row["peak_mib"] = contenders[row["contender"]].peak_mib(steps[row["contender"]])
                print(name, task, row["contender"], row["peak_mib"], "MiB", flush=True)
        del contenders, steps, step
        gc.collect()


def save(path: Path) -> None:
    import triton

    machine = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*names, *machine])
        writer.writeheader()
        writer.writerows({**row, **machine} for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["ops", "models"], choices=["tune", "ops", "models", "compile"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="van_b2 only, one round")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("lka_gpu.py measures our CUDA kernels: this machine has no CUDA device that PyTorch can use")
    torch.backends.cudnn.benchmark = True
    rounds = 1 if args.quick else args.rounds
    bandwidth = copy_bandwidth()
    print(f"copy {bandwidth / 1e9:.2f} TB/s, float32 {float32_rate() / 1e9:.1f} T multiply-adds/s by the table")
    try:
        if "tune" in args.parts:
            tune(bandwidth, rounds)
        if "ops" in args.parts:
            operators(bandwidth, args.quick, rounds)
        if "models" in args.parts:
            networks(
                ["van_b2"] if args.quick else ["van_b2", "van_b0", "van_b3", "convnext_tiny", "pvt_v2_b2"],
                False,
                rounds,
            )
        if "compile" in args.parts:
            networks(["van_b2"], True, rounds)
    finally:  # what was measured before an error or a time limit
        if rows:
            save(args.output)


if __name__ == "__main__":
    main()
