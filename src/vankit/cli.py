"""The `vankit` command: a thin layer over the Python API."""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from vankit import recipes

app = App(name="vankit", help="The Visual Attention Network: train, validate, predict, convert.", help_format="plaintext")

# Every setting of TrainConfig as an option that is None unless given, so that a recipe's value stays
Settings = dataclasses.make_dataclass(
    "Settings",
    [(f.name, f.type | None, dataclasses.field(default=None)) for f in dataclasses.fields(recipes.TrainConfig)],  # type: ignore[operator]
    namespace={"__module__": __name__},  # cyclopts does not look into classes of unknown modules
)
Settings.__doc__ = recipes.TrainConfig.__doc__


@app.command
def train(
    data: str,
    *,
    model: str = "van_b0",
    recipe: str = "in1k",
    out: Path | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    settings: Annotated[Settings | None, Parameter(name="*")] = None,  # type: ignore[valid-type]
) -> None:
    """Train a classifier.

    Writes best.safetensors, last.safetensors, metrics.csv, TensorBoard logs and the state to resume. Also runs under
    torchrun: torchrun --nproc-per-node N -m vankit train ...

    Args:
        data: folder with train/CLASS/*.jpg and val/CLASS/*.jpg; hfds/NAME or wds/FOLDER; or the word shapes.
        model: van_b0 to van_b6.
        recipe: in1k (the paper's), finetune (small sets, from pretrained weights) or short (from scratch, quickly).
        out: folder for the run; runs/MODEL if left out.
        checkpoint: weights to start from, in any public format.
        resume: continue the run in --out.
        settings: overrides of the recipe.
    """
    from vankit.train import train as run

    given = {k: v for k, v in dataclasses.asdict(settings).items() if v is not None} if settings else {}
    config = dataclasses.replace(recipes.recipe(recipe, model), **given)
    result = run(data, model, config, out, checkpoint, resume)
    print(f"best top-1 {result.top1:.2%} after {result.seconds:.0f} s: {result.best}")


def main(argv: list[str] | None = None) -> Any:
    """Run the command line; a user's mistake ends in one line and status 1."""
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return app(argv)
    except (ValueError, OSError, ImportError) as error:
        print(f"vankit: {error}", file=sys.stderr)
        raise SystemExit(1) from None
