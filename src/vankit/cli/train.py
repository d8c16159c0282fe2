"""`vankit train`: a classifier, a detector or a segmenter."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from vankit.cli.settings import given, settings
from vankit.cli.terminal import quieten_lightning
from vankit.errors import UserError
from vankit.training import recipes

_Settings = settings(
    {
        "Settings for every task": recipes.Config,
        "Settings to classify": recipes.TrainConfig,
        "Settings to detect or segment": recipes.DenseConfig,
    }
)


def command(
    data: str,
    /,
    *,
    task: Literal["classify", "detect", "segment", "panoptic"] = "classify",
    head: str | None = None,
    model: str = "van_b0",
    recipe: str | None = None,
    output: Path | None = None,
    checkpoint: Path | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    settings: Annotated[_Settings | None, Parameter(name="*")] = None,  # type: ignore[valid-type]
) -> None:
    """Train a classifier, a detector or a segmenter.

    Writes best.safetensors, last.safetensors, metrics.csv, TensorBoard logs and the state to resume. Also runs under
    torchrun: torchrun --nproc-per-node N -m vankit train ...

    Args:
        data: the word shapes, or to classify a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, hfds/NAME or
            wds/FOLDER; to detect a COCO folder with annotations/instances_*.json; to segment a folder with
            images/{train,val} and annotations/{train,val}; for panoptic a COCO folder with annotations/panoptic_*.json.
        task: what to train for.
        head: detect: retinanet, faster_rcnn, mask_rcnn (taken if left out), cascade_mask_rcnn, sparse_rcnn, rt_detr,
            d_fine, deformable_detr or mask2former; segment: semantic_fpn (taken if left out), upernet or mask2former;
            panoptic: mask2former.
        model: van_b0 to van_b6.
        recipe: classify: in1k (the paper's), finetune (small sets, from pretrained weights) or short (from scratch,
            quickly); detect: coco_1x, coco_3x or short; segment: ade20k_fpn, ade20k_upernet or short; panoptic:
            coco_panoptic or short. The first one, or the head's own, if left out.
        output: folder for the run; runs/MODEL or runs/MODEL-HEAD-TASK if left out.
        checkpoint: weights to start from, in any public format.
        resume: continue the run in --output.
        skip_bad: leave out images and annotations that cannot be used, with a warning; not to classify.
        settings: overrides of the recipe.
    """
    from vankit.training.run import train as run

    quieten_lightning()
    chosen = given(settings)
    config = recipes.recipe(recipe, model, task, head)
    if unknown := sorted(set(chosen) - {field.name for field in dataclasses.fields(config)}):
        raise UserError(f"--{unknown[0].replace('_', '-')} is no setting of task {task}: leave it out")
    if "epochs" in chosen and isinstance(config, recipes.DenseConfig):
        chosen.setdefault("iterations", 0)  # some recipes count these instead
    config = dataclasses.replace(config, **chosen)
    result = run(data, model, config, output, checkpoint, resume, task=task, head=head, skip_bad=skip_bad)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"best {result.measure} {result.score:.2%} after {result.seconds:.0f} s: {result.best}")
