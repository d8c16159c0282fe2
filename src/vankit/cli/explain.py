"""`vankit explain`: what a network looks at."""

import sys
from pathlib import Path
from typing import Literal


def command(
    images: list[str] | None = None,
    /,
    *,
    model: str | None = None,
    checkpoint: Path | None = None,
    method: Literal["grad-cam", "attention", "receptive-field", "statistics"] = "grad-cam",
    target: list[str] | None = None,
    stage: int | None = None,
    layer: str | None = None,
    compare: str | None = None,
    img_size: int | None = None,
    output: Path = Path("explained"),
    device: str = "auto",
    max_pixels: int = 100_000_000,
) -> int:
    """Show what a network looks at: a picture per image, or one of all images for receptive-field and statistics.

    The exit status is 1 if any image failed; the others are answered all the same.

    Args:
        images: files, folders (searched through) and quoted glob patterns; receptive-field needs none.
        model: such as van_b2, van_b0.cifar10 or, for grad-cam and receptive-field, any timm model; the checkpoint's if
            left out, else van_b0.
        checkpoint: weights in any public format, or of a detector or segmenter; the model's public ones if left out.
        method: grad-cam, where the evidence for a class lies; attention, what each LKA multiplies its input with;
            receptive-field, which pixels the middle unit of each stage depends on; statistics, of each LKA's channels.
        target: class that grad-cam explains, by name or number; may be given again; the predicted one if left out.
        stage: 1 to 4; for grad-cam the last if left out, else all.
        layer: name of a module to look at instead of a stage.
        compare: further timm models or classifiers' checkpoints to put beside, parted by commas.
        img_size: side in pixels of what the model sees; VAN takes any.
        output: folder for the pictures, and for receptive-field and statistics a CSV of the figures.
        device: cpu, cuda, or auto.
        max_pixels: largest image that is decoded, in pixels.
    """
    from vankit.explanation import iter_explanations
    from vankit.tasks.results import Failure

    others = [name.strip() for name in compare.split(",")] if compare else []
    failed = 0
    for found in iter_explanations(
        images or [], model, checkpoint, output, method=method, target=target, stage=stage, layer=layer,
        compare=others, img_size=img_size, device=device, max_pixels=max_pixels,
    ):  # fmt: skip
        if isinstance(found, Failure):
            failed += 1
            print(f"{found.source}: {found.error}", file=sys.stderr)
        else:
            print(f"{found.source}: {found.summary}: {found.path}")
    return int(failed > 0)
