"""`vankit explain`: what a network looks at."""

from pathlib import Path
from typing import Literal

from vankit.cli.terminal import say, say_failure
from vankit.errors import UserError
from vankit.models.description import Weights


def command(
    images: list[str] | None = None,
    /,
    *,
    model: str | None = None,
    checkpoint: Path | None = None,
    weights: Weights | None = None,
    method: Literal["grad-cam", "attention", "receptive-field", "statistics"] = "grad-cam",
    target: list[str] | None = None,
    stage: int | None = None,
    layer: str | None = None,
    compare: str | None = None,
    img_size: int | None = None,
    output: Path = Path("explained"),
    device: str = "auto",
    max_pixels: int = 67_108_864,
) -> int:
    """Show what a network looks at: one picture per image; for receptive-field and statistics, one for all images.

    An image that fails gets an error message, the others are processed, and the exit status is 1.

    Args:
        images: image files, folders (searched with their subfolders) and quoted glob patterns; receptive-field needs
            none.
        model: such as van_b2 or van_b0.cifar10; for grad-cam and receptive-field any timm model; for grad-cam at
            the last stage also the folder that `vankit export` wrote of a VAN that classifies. Default: the
            checkpoint's model, or van_b0.
        checkpoint: weights in any public format, or those of a detector or segmenter; or a folder with them. Default:
            the model's public weights.
        weights: of a checkpoint: raw, or ema for their moving average. Default: the average where there are both.
        method: grad-cam shows where the evidence for a class is; attention, what each LKA multiplies its input by;
            receptive-field, which pixels the middle unit of each stage depends on; statistics, figures of each LKA's
            channels.
        target: class that grad-cam explains, by name or number; repeat the option for several. Default: the predicted
            class.
        stage: 1 to 4. Default: the last stage for grad-cam, all stages for the other methods.
        layer: name of a module to look at instead of a stage.
        compare: timm models or checkpoints of classifiers to compare with, separated by commas.
        img_size: side in pixels of the model's input; VAN takes any size. Default: the model's own.
        output: folder for the pictures; for receptive-field and statistics also for a CSV file of the figures.
        device: cpu, cuda or auto.
        max_pixels: an image with more pixels than this is not decoded.
    """
    from vankit.explanation import iter_explanations
    from vankit.tasks.results import Failure

    others = [name.strip() for name in compare.split(",")] if compare is not None else []
    if "" in others:
        raise UserError(f"--compare is {compare!r}, expected models or checkpoints, separated by commas")
    failed = 0
    for found in iter_explanations(
        images or [], model, checkpoint, output, method=method, target=target, stage=stage, layer=layer,
        compare=others, img_size=img_size, device=device, max_pixels=max_pixels, weights=weights,
    ):  # fmt: skip
        if isinstance(found, Failure):
            failed += 1
            say_failure(found.source, found.error)
        else:
            say(f"{found.source}: {found.summary}: {found.path}")
    return int(failed > 0)
