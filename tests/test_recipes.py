"""The recipes hold the published settings, and nonsense is refused by name."""

from dataclasses import replace
from typing import Any

import pytest

from vankit.recipes import RECIPES, TrainConfig, recipe


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


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_take_tags(name: str) -> None:
    assert isinstance(recipe(name, "van_b0.cifar10"), TrainConfig)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("epochs", 0, "1 or more"),
        ("smoothing", 1.5, "0 to 1"),
        ("drop_path_rate", -0.1, "0 to 1"),
        ("lr", -1.0, "0 or more"),
        ("warmup_epochs", 300, "fewer than epochs"),
        ("batch_size", 7, "must be even"),
    ],
)
def test_bad_settings_are_named(field: str, value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*{says}"):
        replace(TrainConfig(), **{field: value})


def test_unknown_recipe() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'in22k': expected one of in1k, finetune, short"):
        recipe("in22k", "van_b0")
