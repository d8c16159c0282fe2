"""The Lightning module: decay groups, learning rates and the loss, against hand computations."""

import math
from dataclasses import replace

import pytest
import timm
import torch
from lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from vankit.training.classify import Classifier, build_classifier
from vankit.training.recipes import TrainConfig, in1k, short

STEPS = 4


def fit(config: TrainConfig, total_batch: int = 128, callback: object = None) -> Classifier:
    torch.manual_seed(0)
    model = build_classifier("van_b0", 4, replace(config, pretrained=False))
    task = Classifier(model, 4, config, total_batch)
    images = TensorDataset(torch.randn(2 * STEPS, 3, 32, 32), torch.randint(0, 4, (2 * STEPS,)))
    trainer = Trainer(
        max_epochs=config.epochs + config.cooldown_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callback,
    )
    trainer.fit(task, DataLoader(images, 2, drop_last=True))
    return task


def test_learning_rate_follows_the_schedule() -> None:
    from lightning import Callback

    seen: list[float] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
            seen.append(max(group["lr"] for group in trainer.optimizers[0].param_groups))

    config = replace(short("van_b0"), epochs=3, warmup_epochs=1, cooldown_epochs=1, lr=0.02, lr_batch=64, min_lr=1e-4)
    fit(config, total_batch=32, callback=Watch())
    peak = 0.02 * 32 / 64
    warm = [config.warmup_lr + i * (peak - config.warmup_lr) / STEPS for i in range(STEPS)]
    assert seen[:STEPS] == pytest.approx(warm)
    cosine = [
        config.min_lr + 0.5 * (peak - config.min_lr) * (1 + math.cos(math.pi * t / (3 * STEPS)))
        for t in range(STEPS, 3 * STEPS)
    ]
    assert seen[STEPS : 3 * STEPS] == pytest.approx(cosine)
    assert seen[3 * STEPS :] == pytest.approx([config.min_lr] * STEPS)


def groups(config: TrainConfig) -> dict[str, dict[str, float]]:
    """By parameter name, its optimiser group."""
    model = build_classifier("van_b0", 4, replace(config, pretrained=False))
    task = Classifier(model, 4, config, 1024)
    task.trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    task.trainer.fit_loop.setup_data = lambda: None  # type: ignore[method-assign]
    task.trainer.fit_loop.max_batches = 10
    optimizer = task.configure_optimizers()["optimizer"]
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_norms_biases_and_layer_scales_are_not_decayed() -> None:
    found = groups(in1k("van_b0"))
    assert set(found) == {n for n, _ in timm.create_model("van_b0", num_classes=4).named_parameters()}
    for name, group in found.items():
        plain = name.endswith("bias") or "norm" in name or "layer_scale" in name
        assert group["weight_decay"] == (0.0 if plain else 0.05), name


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_layer_decay_slows_the_stem(optimizer: str) -> None:
    found = groups(replace(in1k("van_b0"), layer_decay=0.5, optimizer=optimizer))
    stem, norm = found["stage1.patch_embed.proj.weight"], found["stage1.patch_embed.norm.weight"]
    assert stem["lr"] == pytest.approx(stem["lr_scale"] * found["head.fc.weight"]["lr"])
    assert (stem["weight_decay"], norm["weight_decay"]) == (0.05, 0.0)
    assert ("foreach" in stem) and (("amsgrad" in stem) == (optimizer == "adamw"))
    scales = [found[name]["lr_scale"] for name in ("stage1.patch_embed.proj.weight", "stage3.blocks.0.mlp.fc1.weight")]
    assert scales[0] < scales[1] < found["head.fc.weight"]["lr_scale"] == 1.0


def test_loss_without_mixup_is_smoothed_cross_entropy() -> None:
    config = replace(short("van_b0"), smoothing=0.2)
    model = build_classifier("van_b0", 4, config).eval()
    task = Classifier(model, 4, config, 128)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([0, 3, 1])
    target = torch.full((3, 4), 0.2 / 4)
    target[range(3), labels] += 0.8
    expected = -(target * model(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(task.training_step((images, labels), 0), expected)


def test_mixup_makes_soft_labels_and_leaves_the_batch() -> None:
    config = replace(in1k("van_b0"), smoothing=0.0)
    model = build_classifier("van_b0", 4, config).eval()
    task = Classifier(model, 4, config, 128)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 1, 2])
    before = images.clone()
    loss = task.training_step((images, labels), 0)
    assert torch.equal(images, before)
    assert torch.isfinite(loss)
