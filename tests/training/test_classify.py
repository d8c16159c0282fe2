"""The Lightning module: decay groups, learning rates and the loss, against hand computations."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from vankit.tasks.multilabel import best_threshold, sigmoid
from vankit.training.classify import Classifier, MultiLabelClassifier, build_classifier
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


@pytest.mark.parametrize(("classes", "measures"), [(5, {"top-1": 0.5}), (6, {"top-1": 0.5, "top-5": 0.75})])
def test_the_best_five_are_counted_among_more_than_five(classes: int, measures: dict[str, float]) -> None:
    task = Classifier(torch.nn.Identity(), classes, replace(short("van_b0"), channels_last=False), 128)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    logits, labels = torch.arange(classes).float().expand(4, -1), torch.tensor([0, 1, classes - 1, classes - 1])
    assert torch.equal(task.validation_step((logits, labels), 0)["answers"], logits)
    assert task.measures() == measures


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


def several(config: TrainConfig) -> MultiLabelClassifier:
    task = MultiLabelClassifier(build_classifier("van_b0", 3, config).eval(), 3, config, 128)
    task.log = lambda *_, **__: None  # type: ignore[method-assign]
    return task


def test_the_loss_of_several_labels_is_unsmoothed_binary_cross_entropy() -> None:
    task = several(replace(short("van_b0"), smoothing=0.3))
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    p = task(images).double().sigmoid()
    expected = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean().float()
    torch.testing.assert_close(task.training_step((images, labels), 0), expected)


@pytest.mark.parametrize("alphas", [{"mixup": 1.0, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_labels_are_mixed_as_the_images_are(alphas: dict[str, float]) -> None:
    config = replace(in1k("van_b0"), batch_size=6, **alphas)
    task = several(config)
    seen: dict[str, torch.Tensor] = {}
    task.model = torch.nn.Identity()
    task.forward = lambda images: images.mean((2, 3))  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "torch.nn.functional.binary_cross_entropy_with_logits",
            lambda logits, labels: seen.update(logits=logits, labels=labels),
        )
        # three channels that are the labels themselves: whatever is mixed of the pictures is to be mixed of the labels
        labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
        images = labels[:, :, None, None].expand(6, 3, 32, 32).contiguous()
        np.random.seed(0)
        task.training_step((images, labels), 0)
    assert torch.equal(images[:, :, 0, 0], labels)
    torch.testing.assert_close(seen["labels"], seen["logits"], atol=1e-5, rtol=0)
    assert not torch.equal(seen["labels"], labels)


def test_measures_are_over_the_images_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    tasks = [several(short("van_b0")) for _ in range(2)]
    truth = (torch.rand(2, 9, 3) < 0.4).float()
    logits = torch.randn(2, 9, 3)
    for task, labels, answers in zip(tasks, truth, logits, strict=True):
        task.forward = lambda _, answers=answers: answers  # type: ignore[method-assign]
        task.on_validation_epoch_start()
        task.validation_step((torch.zeros(9, 3, 32, 32), labels), 0)
    states = [task.measure.state() for task in tasks]
    monkeypatch.setattr("vankit.training.classify.gathered", lambda _: states)
    flat = [part.reshape(18, 3).numpy() for part in (truth, logits)]
    for task in tasks:
        assert task.measures() == {"mAP": pytest.approx(metrics.average_precision_score(*flat))}
        f1 = [best_threshold(flat[0][:, i] > 0, sigmoid(flat[1][:, i])) for i in range(3)]
        assert task.thresholds() == pytest.approx(f1)
    tasks[0].on_validation_epoch_start()
    assert tasks[0].measure.state() == []
