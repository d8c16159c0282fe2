"""Steps whose loss or gradients are not finite: what they leave behind, and what they say."""

import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vankit.data.augment import collate
from vankit.errors import UserError
from vankit.models.description import Description
from vankit.tasks.dense import EVALUATORS
from vankit.training.classify import Classifier
from vankit.training.dense import DenseTask
from vankit.training.finite import KeepFinite
from vankit.training.recipes import short, short_semantic

STEPS = 5
BAD = 2  # the third batch


class Pixels(nn.Module):
    """Logits (B, 3, H, W) from a normed convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Labels(Pixels):
    """Logits (B, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean((2, 3))


class Semantic(Pixels):
    """As a network of `vankit.heads`; also has the name by which the schedule finds a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.ModuleDict({"patch_embed": nn.ModuleDict({"proj": nn.Conv2d(3, 3, 1)})})

    def forward(self, images: Any, targets: Any = None) -> Any:
        logits = super().forward(self.stage1["patch_embed"]["proj"](torch.stack(images)))
        if targets is None:
            return [{"logits": found} for found in logits]
        return {"pixels": F.cross_entropy(logits, torch.stack([target["semantic"] for target in targets]))}


def pictures(spoilt: bool = True) -> list[Tensor]:
    """Two to a batch; one of the bad batch has a pixel that is not a number."""
    images = torch.rand(2 * STEPS, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    if spoilt:
        images[2 * BAD, 0, 4, 4] = math.nan
    return list(images)


def classifier(accumulate: int = 1, spoilt: bool = True) -> tuple[LightningModule, DataLoader[Any]]:
    config = replace(short("van_b0"), epochs=1, warmup_epochs=0, channels_last=False, accumulate=accumulate)
    samples = [(image, i % 3) for i, image in enumerate(pictures(spoilt))]
    return Classifier(Labels(), 3, config, 128), DataLoader(samples, 2)  # type: ignore[arg-type]


def segmenter(accumulate: int = 1, spoilt: bool = True) -> tuple[LightningModule, DataLoader[Any]]:
    config = replace(short_semantic("van_b0"), warmup_iterations=0, accumulate=accumulate)
    evaluator = EVALUATORS["segment"](["a", "b", "c"], [True] * 3, False)
    description = Description("segment", classes=["a", "b", "c"], short_sides=[8], crop=8)
    samples = [(image, {"semantic": torch.full((8, 8), i % 3)}) for i, image in enumerate(pictures(spoilt))]
    loader: Any = DataLoader(samples, 2, collate_fn=collate)  # type: ignore[arg-type]
    return DenseTask(Semantic(), evaluator, description, config, 16), loader


class Watch(Callback):
    """Whether each batch changed the weights, the running statistics and the optimiser's state."""

    def __init__(self) -> None:
        self.changed: list[bool] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.before = self.state(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        after = self.state(trainer, pl_module)
        self.changed.append(len(after) != len(self.before) or not all(map(torch.equal, after, self.before)))

    @staticmethod
    def state(trainer: Trainer, module: LightningModule) -> list[Tensor]:
        optimizer = trainer.optimizers[0].state.values()
        held = [tensor for each in optimizer for tensor in each.values()]
        return [tensor.detach().clone() for tensor in (*module.state_dict().values(), *held)]


def fit(
    task: LightningModule, loader: DataLoader[Any], tolerance: int, *callbacks: Callback, **options: Any
) -> tuple[Watch, KeepFinite]:
    watch, keep = Watch(), KeepFinite(tolerance, lambda: "the good ones are elsewhere")
    config: Any = task.config
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_grad,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[watch, *callbacks, keep],
        **options,
    )
    trainer.fit(task, loader)
    return watch, keep


def spoil_gradient_of_third_batch(module: LightningModule) -> None:
    calls: list[int] = []

    def spoil(gradient: Tensor) -> Tensor:
        calls.append(1)
        return gradient * (math.inf if len(calls) == BAD + 1 else 1)

    next(module.parameters()).register_hook(spoil)


@pytest.mark.parametrize("made", [classifier, segmenter])
@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_a_step_that_is_left_out_changes_nothing(
    what: str, made: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    task, loader = made(spoilt=what == "loss")
    if what == "gradients":
        spoil_gradient_of_third_batch(task)
    averaging = WeightAveraging()
    with caplog.at_level(logging.WARNING):
        watch, keep = fit(task, loader, 1, averaging)
    assert watch.changed == [True, True, False, True, True]
    assert keep.left_out == 1
    assert re.findall("the .*", caplog.messages[0]) == [
        f"the {what} {'is' if what == 'loss' else 'are'} not finite in epoch 1, step 3: the step is left out "
        "(1 of at most 1)"
    ]
    assert averaging._average_model is not None
    for name, tensor in averaging._average_model.state_dict().items():
        assert torch.isfinite(tensor).all(), name


@pytest.mark.parametrize("made", [classifier, segmenter])
@pytest.mark.parametrize(("tolerance", "before"), [(0, ""), (2, " (steps left out before: 2)")])
def test_one_more_stops_the_run(tolerance: int, before: str, made: Callable[..., Any]) -> None:
    task, loader = made()
    for image in [loader.dataset[i][0] for i in range(2 * BAD, 2 * STEPS)]:
        image[0, 0, 0] = math.nan
    step = BAD + 1 + tolerance
    says = f"the loss is not finite in epoch 1, step {step}{before}: lower the learning rate (--lr), limit"
    with pytest.raises(UserError, match=f"^{re.escape(says)}.*; the good ones are elsewhere$"):
        fit(task, loader, tolerance)


@pytest.mark.parametrize("what", ["loss", "gradients"])
def test_a_bad_batch_spoils_all_that_an_update_accumulates(what: str) -> None:
    task, loader = classifier(accumulate=2, spoilt=what == "loss")
    if what == "gradients":
        spoil_gradient_of_third_batch(task)
    seen: list[list[Tensor]] = []

    class Updates(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            seen.append(Watch.state(trainer, pl_module))

    fit(task, loader, 1, Updates())
    first, second, third = seen[1], seen[3], seen[4]  # updates: batches 1 and 2, 3 and 4, and 5 alone
    assert all(map(torch.equal, first, second))
    assert not all(map(torch.equal, second, third))
    assert all(torch.isfinite(tensor).all() for tensor in third)


def test_the_scaler_of_float16_leaves_out_gradients_by_itself() -> None:
    task, loader = classifier(spoilt=False)
    spoil_gradient_of_third_batch(task)
    watch, keep = fit(task, loader, 0, plugins=[MixedPrecision("16-mixed", "cpu")])
    assert keep.left_out == 0 and len(watch.changed) == STEPS
    assert all(torch.isfinite(parameter).all() for parameter in task.parameters())


def test_a_bad_loss_in_float16_is_left_out() -> None:
    task, loader = classifier()
    watch, keep = fit(task, loader, 1, plugins=[MixedPrecision("16-mixed", "cpu")])
    assert keep.left_out == 1
    assert watch.changed[BAD] is False and all(torch.isfinite(x).all() for x in task.state_dict().values())


def test_what_was_left_out_counts_on_in_a_resumed_run() -> None:
    task, loader = classifier()
    _, keep = fit(task, loader, 1)
    again = KeepFinite(1, lambda: "")
    again.load_state_dict(keep.state_dict())
    assert again.left_out == 1
