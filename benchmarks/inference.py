"""How soon are the labels there? Against plain PyTorch, other engines and other networks; on a CPU, with Linux.

    python benchmarks/inference.py --photos FOLDER [FOLDER ...] --many FOLDER [--only latency cold-start ...]

latency      one image at a time, 224 px. van_b0 and van_b2 as plain PyTorch runs them, with torch.compile, exported as
             they are to ONNX Runtime and OpenVINO, and with vankit's engines; then other networks with vankit's engine.
cold-start   from the start of the process to the first printed label of a photograph, and the memory that takes.
throughput   a folder of photographs to a CSV, against a loop with timm and a DataLoader. The steady rate is that of the
             second half of the photographs: the time of all less the time of half of them.
memory       over all images of --many (CIFAR-10's files, say), which van_b0.cifar10 labels.

Each contender is a process of its own, bound to the same cores. Contenders take turns in a random order, and are timed
only if they compute what eager float32 does (bf16 and int8: the CSV says how far off they are). Weights are random,
except van_b0.cifar10's. Run this on a machine that does nothing else. Results: benchmarks/results/inference_*.csv,
where rows of other CPUs are kept.
"""

import argparse
import csv
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vankit.data.walk import find_images
from vankit.engines.base import cores
from vankit.study.timing import (
    Array,
    Contender,
    Timing,
    compare,
    eager,
    load,
    own,
    pictures,
    random_network,
    save_weights,
)
from vankit.study.worker import Run, Worker

# torch and the engines are imported by the processes that need them: the others should look as they are deployed

RESULTS = Path(__file__).parent / "results"
SIZE = (3, 224, 224)
NETWORKS = (
    "van_b0", "van_b1", "van_b2", "van_b3", "convnext_tiny", "swin_tiny_patch4_window7_224", "pvt_v2_b2", "resnet50",
)  # fmt: skip
VANKIT = str(Path(sys.executable).with_name("vankit"))
PLAIN = [sys.executable, str(Path(__file__).with_name("plain_timm.py"))]


def plain(model: str, weights: str) -> Run:
    return eager(load(model, weights))


def channels_last(model: str, weights: str) -> Run:
    import torch

    return eager(load(model, weights).to(memory_format=torch.channels_last))


def compiled(model: str, weights: str) -> Run:
    import torch
    import torch._inductor.config as inductor

    inductor.freezing = True
    return eager(torch.compile(load(model, weights)))


def straight_onnxruntime(path: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def straight_openvino(path: str, precision: str) -> Run:
    import openvino

    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": cores(),
    }
    if precision == "bf16" and not has_bf16():
        raise ValueError("this CPU has no bf16 instructions, so OpenVINO would compute in float32")
    request = openvino.Core().compile_model(path, "CPU", config).create_infer_request()

    def run(x: Array) -> Array:
        request.infer({0: x}, share_inputs=True)
        return request.get_output_tensor(0).data.copy()

    return run


def has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def exported(folder: str) -> Run:
    from vankit.prediction.labels import Predictor

    return Predictor(folder).engine


def export_straight(model: str, weights: str, folder: str) -> None:
    """Unfolded, as PyTorch and OpenVINO export a network: model.onnx, model.xml."""
    import openvino
    import torch

    network, x = load(model, weights), torch.zeros(1, *SIZE)
    torch.onnx.export(network, (x,), f"{folder}/model.onnx", dynamo=True, external_data=False, verbose=False)
    converted = openvino.convert_model(network, example_input=x, input=[x.shape])
    openvino.save_model(converted, f"{folder}/model.xml", compress_to_fp16=False)


def random_weights(model: str, folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    save_weights(random_network(model), folder)


def export(weights: str, out: str, calibrate: str | None = None) -> None:
    import vankit

    # with random weights, how much of top-1 int8 keeps means nothing
    options: Any = {"int8": True, "calibrate": calibrate, "max_drop": 1.0} if calibrate else {}
    found = vankit.export(checkpoint=weights, out=out, **options)
    if calibrate:
        print(f"int8 but for {', '.join(found.facts['int8']['left_out']) or 'nothing'}")


def apart(function: Callable[..., None], *args: str) -> None:
    """Call it in a process of its own: the peak memory of a process counts what its parent held when it was started."""
    process = get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__}{args} failed")


def prepare(model: str, folder: Path, images: Array) -> tuple[str, Array]:
    """The file of random weights, and the logits of eager float32."""
    apart(random_weights, model, str(folder / model))
    weights = str(folder / model / "weights.safetensors")
    with Worker(partial(plain, model, weights)) as worker:
        logits = worker.outputs(images)
    if isinstance(logits, str):
        raise RuntimeError(f"{model}: {logits}")
    return weights, logits


def latency(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    images, rows = pictures(SIZE), []
    prepared = {model: prepare(model, folder, images) for model in dict.fromkeys((*args.models, *NETWORKS))}
    expected = {model: logits for model, (_, logits) in prepared.items()}
    timed = {"seconds": args.seconds, "cores": sorted(os.sched_getaffinity(0))}
    photos = link(photographs(args), folder / "photographs", 200)
    for model in args.models:
        weights, straight, int8 = prepared[model][0], str(folder / model), str(folder / model / "int8")
        apart(export_straight, model, weights, straight)
        apart(export, weights, int8, str(photos))
        contenders = [
            Contender(model, "plain PyTorch", partial(plain, model, weights), processes=args.processes),
            Contender(model, "PyTorch channels_last", partial(channels_last, model, weights), processes=args.processes),
            Contender(model, "torch.compile, freezing", partial(compiled, model, weights)),
            Contender(model, "ONNX Runtime", partial(straight_onnxruntime, f"{straight}/model.onnx")),
            Contender(model, "OpenVINO float32", partial(straight_openvino, f"{straight}/model.xml", "f32")),
            Contender(model, "OpenVINO bf16", partial(straight_openvino, f"{straight}/model.xml", "bf16"), exact=False),
            Contender(model, "vankit onnxruntime", partial(own, model, weights, "onnxruntime", "float32")),
            Contender(model, "vankit float32", partial(own, model, weights, "auto", "auto")),
            Contender(model, "vankit bf16", partial(own, model, weights, "auto", "bf16"), exact=False),
            Contender(model, "vankit int8", partial(exported, int8), exact=False),
        ]
        found = compare(contenders, images, expected, **timed)
        rows += [latency_row("engines", row, found) for row in found]
    for precision, exact in (("float32", True), ("bf16", False)):
        contenders = [
            Contender(model, f"vankit {precision}", partial(own, model, weights, "auto", precision), exact)
            for model, (weights, _) in prepared.items()
            if model in NETWORKS
        ]
        found = compare(contenders, images, expected, **timed)
        rows += [latency_row("networks", row, found) for row in found]
    return rows


def latency_row(part: str, row: Timing, others: Sequence[Timing]) -> dict[str, Any]:
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    values["rounds"] = len(row.rounds)
    for name in ("ONNX Runtime", "OpenVINO float32", "OpenVINO bf16"):
        rounds = next((other.rounds for other in others if other.contender == name), ())
        ratios = [own / other for own, other in zip(row.rounds, rounds, strict=False)]
        values[f"time over {name}"] = statistics.median(ratios) if ratios else None
    return {"part": part, **values}


@dataclass(frozen=True)
class Command:
    """How a process went: seconds to its end and first label, that label, processor seconds, peak memory in MB."""

    seconds: float
    first: float
    label: str
    cpu: float
    peak: float


def run(command: Sequence[str]) -> Command:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    first, label = math.nan, ""
    for line in process.stdout or ():
        if not label and line.startswith(b"  "):
            first, label = time.perf_counter() - start, line.decode().strip()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return Command(time.perf_counter() - start, first, label, cpu, usage.ru_maxrss * 1024 / 1e6)


def in_turns(commands: dict[str, Sequence[str]], runs: int) -> dict[str, list[Command]]:
    """Each once, so that files and compiled models are at hand, and then some more times."""
    found: dict[str, list[Command]] = {name: [] for name in commands}
    shuffle, order = random.Random(0).shuffle, list(commands)
    for i in range(runs + 1):
        shuffle(order)
        for name in order:
            result = run(commands[name])
            if i:
                found[name].append(result)
    return found


def cold_start(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    photo, model = str(photographs(args)[0]), str(folder / "exported")
    apart(random_weights, "van_b0", str(folder))
    weights = str(folder / "weights.safetensors")
    apart(export, weights, model)
    commands = {
        "exported folder": [VANKIT, "predict", photo, "--model", model],
        "van_b0.cifar10": [VANKIT, "predict", photo, "--model", "van_b0.cifar10"],
        "torch and timm": [*PLAIN, weights, photo],
    }
    runs = in_turns(commands, args.runs)
    if runs["exported folder"][0].label != runs["torch and timm"][0].label:
        raise RuntimeError(f"labels differ: {[found[0].label for found in runs.values()]}")
    return [
        {
            "contender": name,
            "label": found[0].label,
            "seconds_to_label": statistics.median(r.first for r in found),
            "seconds_to_label_min": min(r.first for r in found),
            "seconds_to_label_max": max(r.first for r in found),
            "seconds_to_end": statistics.median(r.seconds for r in found),
            "peak_mb": statistics.median(r.peak for r in found),
            "runs": len(found),
        }
        for name, found in runs.items()
    ]


def photographs(args: argparse.Namespace) -> list[Path]:
    return [path.resolve() for path in find_images(args.photos) if path.suffix.lower() in (".jpg", ".jpeg")]


def link(paths: Sequence[Path], folder: Path, count: int) -> Path:
    """A folder of so many photographs, repeated if there are fewer."""
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:05}.jpg").symlink_to(paths[i % len(paths)])
    return folder


def throughput(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    found, weights = photographs(args), str(folder / "weights.safetensors")
    apart(random_weights, "van_b0", str(folder))
    counts = {"half": args.images // 2, "all": args.images}
    for name, count in counts.items():
        link(found, folder / name, count)
    contenders = {
        "torch and timm": lambda part, out: [*PLAIN, weights, part, out],
        "vankit float32": lambda part, out: [VANKIT, "predict", part, "--checkpoint", weights, "--output", out],
    }
    if has_bf16():
        contenders["vankit bf16"] = lambda part, out: [*contenders["vankit float32"](part, out), "--precision", "bf16"]
    commands = {
        (name, part): make(str(folder / part), str(folder / f"{name} {part}.csv"))
        for name, make in contenders.items()
        for part in counts
    }
    runs = in_turns(commands, args.repeats)
    labels = {name: best_labels(folder / f"{name} all.csv") for name in contenders}
    rows = []
    for name in contenders:
        half, whole = ([r.seconds for r in runs[name, part]] for part in counts)
        cpu_half, cpu_whole = (statistics.median(r.cpu for r in runs[name, part]) for part in counts)
        rest = statistics.median(whole) - statistics.median(half)
        same = float(np.mean([a == b for a, b in zip(labels[name], labels["torch and timm"], strict=True)]))
        if same < (0 if name.endswith("bf16") else 0.995):
            raise RuntimeError(f"{name}: only {same:.1%} of the labels are those of torch and timm")
        rows.append(
            {
                "contender": name,
                "photographs": args.images,
                "same_labels": same,
                "different_labels": len(set(labels[name])),
                "images_per_s": args.images / statistics.median(whole),
                "images_per_s_min": args.images / max(whole),
                "images_per_s_max": args.images / min(whole),
                "steady_images_per_s": (counts["all"] - counts["half"]) / rest,
                "steady_cpu_utilisation": (cpu_whole - cpu_half) / rest / cores(),
                "runs": args.repeats,
            }
        )
    return rows


def best_labels(path: Path) -> list[str]:
    """In the order of the photographs' names."""
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["image"])
    return [row.get("label_1") or row["label"] for row in rows]


def memory(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    table, rows, seen = folder / "rows.csv", [], -1  # the heading is no image
    process = subprocess.Popen([VANKIT, "predict", args.many, "--model", "van_b0.cifar10", "--output", str(table)])
    while not table.exists() and process.poll() is None:
        time.sleep(0.1)
    with table.open("rb") as file:
        while process.poll() is None:
            seen += file.read().count(b"\n")
            if seen // 1000 > len(rows):
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
                rows.append({"images": seen, "mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6})
            time.sleep(0.02)
    if process.returncode or not rows:
        raise RuntimeError(f"vankit predict {args.many} ended with status {process.returncode} after {seen} images")
    early, late = (min(rows, key=lambda row: abs(row["images"] - count)) for count in (5_000, 50_000))
    print(f"{late['mb'] - early['mb']:+.1f} MB between images {early['images']:,} and {late['images']:,}")
    return rows


def wait_until_quiet(patience: float) -> float:
    """The load average, once it is below 0.5 or patience is at its end."""
    end = time.monotonic() + patience
    while (load := os.getloadavg()[0]) > 0.5 and time.monotonic() < end:
        time.sleep(5)
    if load > 0.5:
        print(f"the load average is {load:.2f}: other processes disturb these figures", file=sys.stderr)
    return load


def machine(load: float) -> dict[str, Any]:
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines()]
    cpu = {name.strip(): value.strip() for name, _, value in lines}
    return {
        "cpu": f"{cpu.get('model name', platform.machine())}, family {cpu.get('cpu family')}, model {cpu.get('model')}",
        "cores": cores(),
        "load_before": load,
        "date": datetime.now(UTC).date().isoformat(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("vankit", "torch", "timm", "openvino", "onnxruntime", "nncf")},
    }


PARTS = {"latency": latency, "cold-start": cold_start, "throughput": throughput, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", nargs="+", required=True, help="folders of JPEG photographs")
    parser.add_argument("--many", help="folder of more than 50,000 images, for memory")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", default=["van_b0", "van_b2"], help="latency: compared in all ways")
    parser.add_argument("--seconds", type=float, default=120, help="latency: of timing, for each comparison")
    parser.add_argument("--processes", type=int, default=9, help="latency: of eager PyTorch, see vankit.bench")
    parser.add_argument("--runs", type=int, default=9, help="cold-start: of each contender")
    parser.add_argument("--images", type=int, default=1200, help="throughput: photographs, repeated if there are fewer")
    parser.add_argument("--repeats", type=int, default=3, help="throughput: runs of each contender")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--patience", type=float, default=300, help="seconds to wait for a quiet machine")
    args = parser.parse_args()
    if "memory" in args.only and not args.many:
        parser.error("memory needs --many")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    facts = machine(wait_until_quiet(args.patience))
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["VANKIT_CACHE"] = f"{folder}/cache"
            rows = PARTS[name](args, Path(folder))
        for row in rows:
            print({key: rounded(value) for key, value in row.items() if value is not None})
        write(RESULTS / f"inference_{name.replace('-', '_')}.csv", rows, facts)


def write(path: Path, rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Replace the rows of this CPU in a CSV, and keep those of others."""
    others: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            others = [row for row in csv.DictReader(file) if row["cpu"] != facts["cpu"]]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *facts])
        writer.writeheader()
        writer.writerows(others)
        writer.writerows({key: rounded(value) for key, value in (row | facts).items()} for row in rows)


def rounded(value: Any) -> Any:
    """Four digits are more than can be measured."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
