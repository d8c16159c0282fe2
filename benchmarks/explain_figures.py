"""Make the pictures of docs/explain.md: python benchmarks/explain_figures.py [RUN/best.safetensors]

Trains a VAN-B0 on generated pictures as `vankit demo` does, if no such checkpoint is given.
"""

import sys
import tempfile
from pathlib import Path

import timm
import torch
from PIL import Image

import vankit
from vankit.data.shapes import render_scene

DOCS = Path(__file__).parent.parent / "docs"
SIZE = 160  # where an object of four is about as large as the one of 64 px that the network was trained on
SCENES = {3: ("heart", "star"), 8: ("ring", "arrow")}  # of the val split, and two of the classes in each


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(sys.argv[1]) if len(sys.argv) > 1 else vankit.demo(Path(folder) / "demo").checkpoint
        grad_cam(checkpoint)
        attention(checkpoint)
    receptive_field()
    for path in sorted(DOCS.glob("explain-*.png")):
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


def scene(index: int) -> Image.Image:
    return Image.fromarray(render_scene(index, "val", SIZE, objects=4).image)


def grad_cam(checkpoint: Path) -> None:
    options = {"checkpoint": checkpoint, "img_size": SIZE}
    (found,) = vankit.explain(scene(3), target=SCENES[3], **options)
    found.save(DOCS / "explain-grad-cam.png")


def attention(checkpoint: Path) -> None:
    (found,) = vankit.explain(scene(3), checkpoint=checkpoint, img_size=SIZE, method="attention")
    found.save(DOCS / "explain-attention.png")


def receptive_field() -> None:
    torch.manual_seed(0)
    untrained = timm.create_model("van_b0", num_classes=10)
    options = {"img_size": 224, "method": "receptive-field", "compare": [untrained]}
    (found,) = vankit.explain((), "van_b0.cifar10", **options)
    found.save(DOCS / "explain-receptive-field.png")


if __name__ == "__main__":
    main()
