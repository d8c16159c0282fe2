"""The recipes hold the published settings, and nonsense is refused by name."""

import math
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from timm.data import create_transform

from vankit.errors import UserError
from vankit.heads.build import HEADS
from vankit.training.recipes import (
    RECIPES,
    DenseConfig,
    TrainConfig,
    check_settings,
    default_recipe,
    override,
    recipe,
)
from vankit.training.run import _length


@pytest.mark.parametrize(("model", "drop_path"), [("van_b0", 0.1), ("van_b1", 0.1), ("van_b2", 0.1), ("van_b3", 0.2)])
def test_in1k_is_the_papers(model: str, drop_path: float) -> None:
    c = recipe("in1k", model)
    assert (c.lr, c.lr_batch, c.batch_size, c.weight_decay) == (1e-3, 1024, 128, 0.05)
    assert (c.epochs, c.cooldown_epochs, c.warmup_epochs, c.warmup_lr, c.min_lr) == (300, 10, 5, 1e-6, 1e-6)
    assert (c.auto_augment, c.color_jitter, c.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.4, 0.25)
    assert (c.mixup, c.cutmix, c.mixup_switch_prob, c.smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert (c.drop_path_rate, c.pretrained, c.ema_decay, c.img_size) == (drop_path, False, 0.0, 224)


def test_finetune_starts_from_weights_with_layer_decay() -> None:
    c = recipe("finetune", "van_b0")
    assert c.pretrained
    assert 0 < c.layer_decay < 1


@pytest.mark.parametrize(("task", "name"), [(task, name) for task, known in RECIPES.items() for name in known])
def test_recipes_take_tags(task: str, name: str) -> None:
    assert isinstance(recipe(name, "van_b0.cifar10", task), TrainConfig if task == "classify" else DenseConfig)


def test_coco_schedules_are_the_papers() -> None:
    once, thrice = recipe("coco_1x", "van_b2", "detect"), recipe("coco_3x", "van_b2", "detect")
    for c in (once, thrice):
        assert (c.lr, c.lr_batch, c.weight_decay, c.schedule, c.warmup_iterations) == (1e-4, 16, 0.05, "step", 1000)
        assert (c.long_side, c.flip, c.pretrained) == (1333, 0.5, True)
    assert (once.epochs, once.steps, once.short_sides) == (12, (8, 11), (800,))
    assert (thrice.epochs, min(thrice.short_sides), thrice.short_sides[-1]) == (36, 480, 800)


@pytest.mark.parametrize("size", range(7))
def test_ade20k_schedules_are_the_papers(size: int) -> None:
    fpn, upernet = (recipe(f"ade20k_{head}", f"van_b{size}", "segment") for head in ("fpn", "upernet"))
    assert (fpn.iterations, fpn.lr, fpn.weight_decay, fpn.power, fpn.lr_batch) == (40_000, 2e-4, 1e-4, 0.9, 32)
    assert (upernet.iterations, upernet.lr, upernet.weight_decay, upernet.power) == (160_000, 6e-5, 0.01, 1.0)
    assert (upernet.lr_batch, upernet.warmup_iterations, upernet.decay_norms) == (16, 1500, False)
    assert (fpn.schedule, fpn.crop, upernet.schedule, upernet.crop) == ("poly", 512, "poly", 512)
    assert upernet.drop_path_rate == (0.1, 0.1, 0.1, 0.3, 0.4, 0.4, 0.5)[size]
    assert size > 4 or fpn.drop_path_rate == (0.2, 0.2, 0.2, 0.3, 0.4)[size]


def test_coco_panoptic_is_the_papers() -> None:
    c = recipe("coco_panoptic", "van_b3", "panoptic")
    assert (c.lr, c.epochs, c.lr_batch, c.crop, c.scale_range) == (1e-4, 50, 16, 1024, (0.1, 2.0))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("queries", 0, "1 or more"),
        ("flip", 2.0, "0 to 1"),
        ("short_sides", (), "at least one length"),
        ("long_side", 799, "no less than the largest of `short_sides`, 800"),
        ("steps", (0, 3), "epochs from 1 on"),
        ("scale_range", (2.0, 1.0), "0 < low <= high"),
        ("schedule", "exp", "one of step, poly, cosine"),
        ("batch_norm", "none", "one of train, frozen, sync"),
    ],
)
def test_bad_dense_settings_are_named(field: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"{field} is .*{says}"):
        replace(DenseConfig(), **{field: value})


@pytest.mark.parametrize(("epochs", "iterations"), [(12, 40_000), (0, 0)])
def test_a_run_is_as_long_as_epochs_or_iterations_say(epochs: int, iterations: int) -> None:
    says = f"epochs is {epochs} and `iterations` {iterations}: .*one of them, and set the other to 0"
    with pytest.raises(UserError, match=says):
        DenseConfig(epochs=epochs, iterations=iterations)
    with pytest.raises(UserError, match="epochs is 12 and `iterations` 160000"):
        replace(recipe("ade20k_upernet", "van_b0", "segment"), epochs=12)


@pytest.mark.parametrize(
    ("name", "task", "settings", "length"),
    [
        ("ade20k_fpn", "segment", {}, (0, 40_000)),
        ("ade20k_fpn", "segment", {"epochs": 3}, (3, 0)),
        ("coco_1x", "detect", {"iterations": 90}, (0, 90)),
        ("coco_1x", "detect", {"epochs": 4, "iterations": 0}, (4, 0)),
    ],
)
def test_the_length_that_is_given_holds(
    name: str, task: str, settings: dict[str, int], length: tuple[int, int]
) -> None:
    config = override(recipe(name, "van_b0", task), **settings)
    assert (config.epochs, config.iterations) == length
    assert _length(config, 20) == {"max_epochs": length[0] or -(-length[1] // 20), "check_val_every_n_epoch": 1}


def test_override_refuses_what_is_not_a_setting() -> None:
    with pytest.raises(UserError, match="^crop_pct is only for task classify: leave it out$"):
        override(DenseConfig(), crop_pct=0.5)
    with pytest.raises(UserError, match="^flip is only for the tasks detect, segment and panoptic: leave it out$"):
        override(TrainConfig(), flip=0.5)
    with pytest.raises(UserError, match="^crop_size is not a setting: leave it out$"):
        override(TrainConfig(), crop_size=7)
    assert override(recipe("short", "van_b0"), epochs=3).epochs == 3


@pytest.mark.parametrize("name", RECIPES["segment"])
def test_segmentation_trains_on_squares(name: str) -> None:
    assert recipe(name, "van_b0", "segment").crop > 0  # which training refuses to do without


@pytest.mark.parametrize(
    ("data", "task", "head", "name"),
    [
        ("photos", "classify", None, "finetune"),
        (Path("shapes"), "classify", None, "short"),
        ("shapes", "detect", "mask_rcnn", "short"),
        ("shapes", "segment", "upernet", "short"),
        ("coco", "detect", "mask_rcnn", "coco_1x"),
        ("ade", "segment", "upernet", "ade20k_upernet"),
        ("ade", "segment", "semantic_fpn", "ade20k_fpn"),
        ("coco", "panoptic", "mask2former", "coco_panoptic"),
    ],
)
def test_the_recipe_where_none_is_asked_for(data: Any, task: str, head: str | None, name: str) -> None:
    assert default_recipe(data, task, head) == name
    if data != "shapes" and not isinstance(data, Path):
        assert recipe(None, "van_b0", task, head) == recipe(name, "van_b0", task, head)
    assert name != "short" or not recipe(name, "van_b0", task).pretrained  # nothing is downloaded


def test_unknown_task() -> None:
    with pytest.raises(UserError, match="unknown task 'count': expected one of classify, detect, segment, panoptic"):
        recipe(None, "van_b0", "count")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("epochs", 0, "1 or more"),
        ("smoothing", 1.5, "less than 1"),
        ("drop_path_rate", -0.1, "0 or more, and less than 1"),
        ("drop_path_rate", 1, "less than 1"),
        ("drop_rate", 1.0, "less than 1"),
        ("ema_decay", 1.0, "less than 1"),
        ("lr", -1.0, "0 or more"),
        ("nan_tolerance", -1, "0 or more"),
        ("patience", -1, "0 or more"),
        ("balance", "classes", "one of none, weights, sampling"),
        ("logger", "comet", "one of tensorboard, wandb, mlflow"),
        ("warmup_epochs", 300, "fewer than `epochs`"),
        ("workers", 100_000, "0 to 1024"),
        ("layer_decay", 0.0, "more than 0, to 1"),
        ("min_scale", 0.0, "more than 0, to 1"),
        ("crop_pct", 0.0, "more than 0, to 1"),
        ("crop_pct", 1e-9, "at most 67,108,864 pixels"),
        ("img_size", 0, "which a network cannot take"),
        ("img_size", 10**9, "which a network cannot take"),
        ("batch_size", 7, "must be even"),
    ],
)
def test_bad_settings_are_named(field: str, value: Any, says: str) -> None:
    with pytest.raises(UserError, match=f"{field} is .*{says}"):
        replace(TrainConfig(), **{field: value})


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("field", ["lr", "min_lr", "weight_decay", "clip_grad", "warmup_lr", "mixup", "val_share"])
def test_settings_are_finite(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{field} is {value}, expected a finite number$"):
        replace(TrainConfig(), **{field: value})


def test_settings_of_several_numbers_are_finite() -> None:
    with pytest.raises(UserError, match=r"^scale_range is \(1.0, inf\), expected a finite number$"):
        DenseConfig(scale_range=(1.0, math.inf))


def test_unknown_recipe() -> None:
    with pytest.raises(UserError, match="recipe is 'in22k', expected one of in1k, finetune, short for classify"):
        recipe("in22k", "van_b0")


@pytest.mark.parametrize(
    ("policy", "known"),
    [
        ("rand-m9-mstd0.5-inc1", True),
        ("rand-m15-n2-p0.5-mmax20-tweights", True),
        ("augmix-m5-w4-d2-b1-a0.7", True),
        ("original-mstd0.5", True),
        ("v0r", True),
        ("3a", True),
        ("rand-t3aw-inc0", True),
        ("none", True),
        ("", True),
        ("junk", False),
        ("rand-m9-zzz", False),  # timm passes over this part
        ("rand-m99999", False),  # which timm takes for m10
        ("rand-m9-p7", False),
        ("rand-tnope", False),  # which timm takes for its usual transforms
        ("3a-x", False),
        ("original-m9", False),
        ("augmix-x3", False),
        ("RAND-m9", False),
    ],
)
def test_policies_are_those_that_timm_obeys(policy: str, known: bool) -> None:
    if known:
        assert TrainConfig(auto_augment=policy).auto_augment == policy
        if policy not in ("", "none"):
            create_transform(32, is_training=True, auto_augment=policy)  # timm takes it too
    else:
        with pytest.raises(UserError, match=f"^auto_augment is '{policy}', expected a policy that timm has"):
            TrainConfig(auto_augment=policy)


@pytest.mark.parametrize(
    ("name", "task", "head", "says"),
    [
        ("map_labels", "detect", None, "map_labels is only for task segment, not for detect"),
        ("ignore_label", "panoptic", None, "ignore_label is only for task segment, not for panoptic"),
        ("queries", "detect", None, "queries is only for heads that have them .*, not for mask_rcnn"),
        ("queries", "segment", "upernet", "queries is only for heads that have them .*, not for upernet"),
        ("queries", "detect", "sparse_rcnn", None),
        ("queries", "panoptic", None, None),
        ("map_labels", "segment", None, None),
        ("mixup", "classify", None, None),
    ],
)
def test_settings_that_a_head_would_not_use(name: str, task: str, head: str | None, says: str | None) -> None:
    with pytest.raises(UserError, match=says) if says else nullcontext():
        check_settings([name], task, head)


def test_heads_that_have_queries() -> None:
    """Those that `queries` is taken for are those whose building reads it."""
    for name, head in HEADS.items():
        read: list[str] = []

        class Description:
            model, task, things = "van_b0", head.tasks[0], ()

            def __getattr__(self, name: str, read: list[str] = read) -> Any:
                read.append(name)
                return 7

        with suppress(Exception):  # there is no network to build on
            head.build(None, 2, Description())
        for task in head.tasks:
            with nullcontext() if "queries" in read else pytest.raises(UserError, match="heads that have them"):
                check_settings(["queries"], task, name)
