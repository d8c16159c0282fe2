"""Make the pictures of docs/explain.md: python benchmarks/explain_figures.py [WEIGHTS.safetensors of an earlier call]

Grad-CAM and attention are of `van_b0.cifar10`, fine-tuned here on generated pictures of one to three shapes.
"""

import io
import sys
import tempfile
from pathlib import Path

import timm
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

import vankit
from vankit.data.shapes import CLASSES, render_scene

DOCS = Path(__file__).parent.parent / "docs"
STEPS, BATCH, LR = 240, 24, 1e-3
TRAINING_SIZE = 96
SIZE = 160  # where four shapes are as large as those of training
SCENE, TARGETS = 24, ("arrow", "cross", "square")  # of the val split, and what is in it


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "shapes.safetensors"
        if not weights.is_file():
            fine_tune(weights)
        scene = Image.fromarray(render_scene(SCENE, "val", SIZE, objects=4).image)
        of_scene = {"inputs": scene, "checkpoint": weights, "img_size": SIZE}
        draw("grad-cam", {**of_scene, "target": TARGETS})
        draw("attention", of_scene)
    torch.manual_seed(0)
    untrained = timm.create_model("van_b0", num_classes=10)
    draw("receptive-field", {"model": "van_b0.cifar10", "img_size": 224, "compare": [untrained]})


def draw(method: str, options: dict) -> None:
    (found,) = vankit.explain(method=method, **options)
    path = DOCS / f"explain-{method}.png"
    buffer = io.BytesIO()
    found.figure.savefig(buffer, dpi=64 if method == "attention" else 80, bbox_inches="tight")
    drawn = Image.open(buffer).convert("RGB")
    dithered = drawn.quantize(palette=drawn.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    dithered.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1024:.0f} KiB, {found.summary}")


def batch(start: int, split: str, objects: int | tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (B, 3, H, W), and the share (B, 10) of each class among the shapes in them."""
    scenes = [render_scene(start + i, split, TRAINING_SIZE, objects) for i in range(BATCH)]
    x = torch.stack([torch.from_numpy(scene.image) for scene in scenes]).permute(0, 3, 1, 2) / 127.5 - 1
    counts = torch.stack([torch.bincount(torch.from_numpy(s.labels), minlength=len(CLASSES)) for s in scenes])
    return x.contiguous(memory_format=torch.channels_last), counts / counts.sum(1, keepdim=True)


def fine_tune(path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("van_b0.cifar10", pretrained=True, num_classes=len(CLASSES))
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=STEPS)
    for step in range(STEPS):
        x, shares = batch(step * BATCH, "train", objects=(1, 3))
        loss = cross_entropy(network(x), shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            print(f"step {step} of {STEPS}: loss {loss.item():.3f}", flush=True)
    network.eval()
    with torch.no_grad():
        right = [
            network(x).argmax(1) == shares.argmax(1) for x, shares in (batch(i * BATCH, "val", 1) for i in range(9))
        ]
    print(f"top-1 of {9 * BATCH} new pictures of one shape: {torch.cat(right).float().mean():.1%}")
    preprocessing = {"input_size": [3, TRAINING_SIZE, TRAINING_SIZE], "mean": [0.5] * 3, "std": [0.5] * 3}
    preprocessing |= {"crop_pct": 1.0, "interpolation": "bicubic"}
    metadata = {"model": "van_b0", "classes": list(CLASSES), "preprocessing": preprocessing}
    vankit.save_checkpoint(network, path, metadata=metadata)


if __name__ == "__main__":
    main()
