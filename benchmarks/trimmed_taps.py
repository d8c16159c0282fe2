"""How much does leaving out unreachable kernel taps save? A training step of van_b0, with and without, on this machine.

    python benchmarks/trimmed_taps.py [--size 64] [--batch 128] [--rounds 7]

Both variants are run in turn in one process. They are timed only if they agree in outputs and gradients.
"""

import argparse
import csv
import platform
import statistics
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

import vankit  # noqa: F401  (registers the models)
from vankit.ops import convolution

SIZES_ARE_KNOWN = convolution._sizes_are_known
RESULTS = Path(__file__).parent / "results" / "trimmed_taps.csv"


def use(trimmed: bool) -> None:
    convolution._sizes_are_known = SIZES_ARE_KNOWN if trimmed else lambda x: False


def step(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, bf16: bool) -> torch.Tensor:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = F.cross_entropy(model(images).float(), labels)
    loss.backward()
    return loss.detach()


def check(size: int) -> None:
    torch.manual_seed(0)
    model = timm.create_model("van_b0", num_classes=10).double()
    images, labels = torch.randn(4, 3, size, size, dtype=torch.float64), torch.arange(4)
    found = []
    for trimmed in (True, False):
        use(trimmed)
        loss = step(model, images, labels, bf16=False)
        found.append([loss, *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    check(args.size)
    rows = []
    for bf16 in (True, False):
        model = timm.create_model("van_b0", num_classes=10).to(memory_format=torch.channels_last)
        images = torch.randn(args.batch, 3, args.size, args.size).to(memory_format=torch.channels_last)
        labels = torch.randint(0, 10, (args.batch,))
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for i in range(args.rounds + 1):
            for trimmed in (True, False):
                use(trimmed)
                start = time.perf_counter()
                step(model, images, labels, bf16)
                if i:  # the first round warms up
                    seconds[trimmed].append(time.perf_counter() - start)
        ratios = [b / a for a, b in zip(seconds[True], seconds[False], strict=True)]
        row = {
            "precision": "bf16" if bf16 else "float32",
            "size": args.size,
            "batch": args.batch,
            "trimmed_images_per_s": round(args.batch / statistics.median(seconds[True]), 1),
            "whole_images_per_s": round(args.batch / statistics.median(seconds[False]), 1),
            "ratio_median": round(statistics.median(ratios), 2),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cpu": platform.processor() or platform.machine(),
        }
        print(row)
        rows.append(row)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
