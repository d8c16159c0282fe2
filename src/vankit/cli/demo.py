"""The whole journey on generated pictures: train, validate, predict, and a picture of the results."""

from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from vankit.cli.terminal import say
from vankit.files import save_figure

if TYPE_CHECKING:
    from vankit.validation import ClassificationReport

PICTURES = 32


@dataclass(frozen=True)
class DemoResult:
    """Figures and files of the demo.

    Attributes:
        report: measures on the val split of `shapes`.
        checkpoint: the trained weights.
        picture: some validation images with their predicted labels.
        confusion: the confusion matrix as a picture.
    """

    report: "ClassificationReport"
    checkpoint: Path
    picture: Path
    confusion: Path


def demo(out: str | PathLike[str] = "runs/demo") -> DemoResult:
    """Train van_b0 on `shapes` at 64 px, validate it, predict, and draw the results.

    Args:
        out: folder for the run.

    Raises:
        ValueError: `out` already holds a run.
    """
    from vankit.data.shapes import Shapes
    from vankit.prediction.labels import Predictor
    from vankit.training.recipes import short
    from vankit.training.run import train
    from vankit.validation import validate

    out = Path(out)
    # many small steps, and whole pictures without smoothing: one pass over 12,000 of them is enough
    config = replace(
        short("van_b0"),
        epochs=1,
        warmup_epochs=0,
        batch_size=32,
        lr=3e-3,
        lr_batch=32,
        min_scale=1.0,
        smoothing=0.0,
        workers=1,
    )
    result = train("shapes", "van_b0", config, out)
    report = validate("shapes", checkpoint=result.best, output=out / "report.json", picture=out / "confusion.png")
    images = Shapes("val", PICTURES, config.img_size, config.seed)
    predictor = Predictor(checkpoint=result.best)
    pictures = []
    for i in range(PICTURES):
        image, label = images[i]
        best = predictor(image).labels[0]
        pictures.append((image, f"{best.name} {best.score:.0%}", best.index == label))
    picture = out / "predictions.png"
    draw_grid(picture, pictures, f"van_b0 on shapes: top-1 {report.top1:.1%} of {report.count:,} images")
    return DemoResult(report, result.best, picture, out / "confusion.png")


def draw_grid(path: str | PathLike[str], pictures: list[tuple[Image.Image, str, bool]], title: str) -> None:
    """Draw images in a grid, each with a caption: green if it is right, red if it is wrong.

    Args:
        path: output image file.
        pictures: (image, caption, right).
        title: heading.
    """
    from matplotlib.figure import Figure

    columns = 8
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(columns * 1.5, rows * 1.75 + 0.5), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (image, caption, right) in zip(grid.flat, pictures, strict=False):
        axes.imshow(image)
        axes.set_title(caption, fontsize=9, color="tab:green" if right else "tab:red")
    save_figure(figure, path, dpi=120)


def command(*, output: Path = Path("runs/demo")) -> None:
    """Train van_b0 on generated pictures in two minutes, validate it, predict, and draw a picture of the results.

    Args:
        output: folder for the run.
    """
    result = demo(output)
    say(f"top-1 {result.report.top1:.2%} on {result.report.count:,} new images")
    say(f"pictures: {result.picture}, {result.confusion}")
    say(f"next: vankit predict photo.jpg --checkpoint {result.checkpoint}")
