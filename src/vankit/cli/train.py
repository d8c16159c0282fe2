"""`vankit train`: a classifier, a detector or a segmenter."""

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from vankit.cli.messages import typed
from vankit.cli.settings import given, settings
from vankit.cli.terminal import say
from vankit.errors import UserError
from vankit.models.description import Weights
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
    weights: Weights | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    tolerant: bool = False,
    allow_outside: bool = False,
    max_pixels: int = 67_108_864,
    settings: Annotated[_Settings | None, Parameter(name="*")] = None,  # type: ignore[valid-type]
) -> None:
    """Train a classifier, a detector or a segmenter.

    Writes best.safetensors, last.safetensors, metrics.csv, TensorBoard logs, what is needed to resume and, at the end,
    report.html with curves and the worst mistakes, to --output.
    To train with several processes, start it with torchrun: torchrun --nproc-per-node N -m vankit train ...

    Recipes:
        finetune        classify: your own folder, from pretrained weights (default)
        in1k            classify: ImageNet, the paper's 300 epochs
        coco_1x         detect: COCO, 12 epochs (default)
        coco_3x         detect: COCO, 36 epochs at many image sizes
        ade20k_fpn      segment: ADE20K, 40,000 iterations (default)
        ade20k_upernet  segment: ADE20K, 160,000 iterations (default of upernet)
        coco_panoptic   panoptic: COCO, 50 epochs (default)
        short           all tasks: small pictures, quickly (default of shapes)

    Args:
        data: the word shapes, for generated pictures, or a folder. Classification: train/CLASS/*.jpg and
            val/CLASS/*.jpg; for several labels per image train.csv and val.csv, or labels.csv, which name files and
            labels; or hfds/NAME or wds/FOLDER. Detection: a folder in the layout of COCO, YOLO or Pascal VOC.
            Segmentation: images/{train,val} and annotations/{train,val}. Panoptic segmentation: a COCO folder with
            annotations/panoptic_*.json. Without val, a part of train is held out.
        task: what to train for.
        head: detect: retinanet, faster_rcnn, mask_rcnn (default), cascade_mask_rcnn, sparse_rcnn, rt_detr, d_fine,
            deformable_detr or mask2former; segment: semantic_fpn (default), upernet or mask2former; panoptic:
            mask2former.
        model: van_b0 to van_b6, or van_b0.cifar10 to start from the weights in the package.
        recipe: values for all settings, see above; each can be changed by its own option.
        output: folder for the run. Default: runs/MODEL or runs/MODEL-HEAD-TASK.
        checkpoint: weights to start from, in any public format, or a folder with them.
        weights: of a checkpoint: raw, or ema for their moving average. Default: the average where there are both.
        resume: continue the run in --output, with the settings that it was begun with.
        skip_bad: leave out images and annotations that cannot be used, with a warning.
        tolerant: read JPEGs that lack their end, with grey for what is missing.
        allow_outside: read images that a COCO file names outside the folder of the data.
        max_pixels: an image with more pixels than this is not decoded.
        settings: they override the recipe.
    """
    dense = {"--head": head is not None, "--allow-outside": allow_outside}
    if task == "classify" and any(dense.values()):
        raise UserError(f"a classifier has no {typed(dense)}: pass --task detect, segment or panoptic")
    name, changes = recipe or recipes.default_recipe(data, task, head), given(settings)
    recipes.check_settings(changes, task, head)
    config = recipes.override(recipes.recipe(name, model, task, head), **changes)

    from vankit.training.run import train as run  # PyTorch, once all settings are known to be right

    result = run(data, model, config, output, checkpoint, resume, task=task, head=head, skip_bad=skip_bad,
                 tolerant=tolerant, allow_outside=allow_outside, max_pixels=max_pixels, weights=weights)  # fmt: skip
    if int(os.environ.get("RANK", 0)) == 0:
        say(f"best {result.measure} {result.score:.2%} after {result.seconds:.0f} s: {result.best}")
        say(f"curves and mistakes: {result.best.parent / 'report.html'}")
