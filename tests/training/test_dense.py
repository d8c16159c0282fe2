"""The Lightning module of dense tasks over a small network: what it freezes, trains on, measures and sets up."""

import csv
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vankit.data.augment import as_tensors, collate
from vankit.data.scenes import ShapeScenes
from vankit.errors import UserError
from vankit.models.description import Description
from vankit.models.van import VAN
from vankit.tasks.dense import EVALUATORS
from vankit.tasks.inference import arrays, infer
from vankit.training.dense import DenseTask, setup_dense
from vankit.training.draws import Draw
from vankit.training.loaders import Processes
from vankit.training.logs import Log, LogRate
from vankit.training.recipes import DenseConfig, short_dense
from vankit.training.run import train

SIDE = 32
CLASSES = ["a", "b", "c"]
CONFIG = replace(short_dense("van_b0"), warmup_iterations=0, batch_size=2, workers=0, crop=SIDE, pretrained=False)
DESCRIPTION = Description("segment", classes=CLASSES, short_sides=[SIDE], long_side=64, crop=SIDE)


class Small(nn.Module):
    """A very small VAN with a normed classifier of its coarsest pixels; keeps the targets it is given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.van = VAN(num_classes=0, embed_dims=(4, 4, 8, 8), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 2, 2))
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Conv2d(8, 3, 1)
        self.seen: list[list[dict[str, Any]]] = []

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        logits = self.classifier(self.norm(self.van.forward_features(torch.stack(images))))
        logits = F.interpolate(logits, images[0].shape[1:])
        if not self.training:
            return [{"logits": found} for found in logits]
        assert targets is not None
        self.seen.append(targets)
        labels = torch.stack([target["semantic"] for target in targets])
        return {"pixels": F.cross_entropy(logits, labels), "size": 0.1 * logits.square().mean()}


def dense_task(config: DenseConfig = CONFIG, total_batch: int = 16, network: nn.Module | None = None) -> DenseTask:
    evaluator = EVALUATORS["segment"](CLASSES, [True] * 3, False)
    return DenseTask(network or Small(), evaluator, DESCRIPTION, config, total_batch)


def batches(count: int, size: int = 2) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    samples = [
        (
            torch.rand(3, SIDE, SIDE, generator=generator),
            {"semantic": torch.randint(0, 3, (SIDE, SIDE), generator=generator)},
        )
        for _ in range(count * size)
    ]
    return DataLoader(samples, size, collate_fn=collate)  # type: ignore[arg-type]


def fit(
    task: DenseTask, count: int, epochs: int = 1, callback: Callback | None = None, logger: Log | None = None
) -> Trainer:
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        accumulate_grad_batches=task.config.accumulate,
        logger=logger or False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callback,
    )
    trainer.fit(task, batches(count), batches(1))
    return trainer


def norms(task: DenseTask) -> dict[str, nn.BatchNorm2d]:
    return {name: m for name, m in task.model.named_modules() if isinstance(m, nn.BatchNorm2d)}


def state(task: DenseTask) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.model.state_dict().items()}


def test_frozen_norms_of_the_backbone_stand_still_while_the_rest_trains() -> None:
    task = dense_task(replace(CONFIG, batch_norm="frozen"))
    before = state(task)
    fit(task, 2, epochs=2)  # a validation lies between the two
    found = norms(task)
    assert len(found) > 8
    for name, norm in found.items():
        frozen = name.startswith("van.")
        assert norm.training != frozen
        assert {p.requires_grad for p in norm.parameters()} == {not frozen}
        for leaf, tensor in norm.state_dict().items():
            assert torch.equal(tensor, before[f"{name}.{leaf}"]) == frozen, f"{name}.{leaf}"
    still = {name for name, p in task.model.named_parameters() if torch.equal(p, before[name])}
    assert still == {f"{n}.{leaf}" for n in found if n.startswith("van.") for leaf in ("weight", "bias")}


def test_frozen_norms_survive_train_and_eval() -> None:
    task = dense_task(replace(CONFIG, batch_norm="frozen"))
    for mode in (True, False, True):
        assert task.train(mode) is task
        assert {norm.training for name, norm in norms(task).items() if name.startswith("van.")} == {False}
        assert task.model.norm.training == task.model.training == mode


@pytest.mark.parametrize("batch_norm", ["train", "sync"])
def test_other_norms_gather_statistics(batch_norm: Any) -> None:
    task = dense_task(replace(CONFIG, batch_norm=batch_norm))
    before = state(task)
    task.training_step(next(iter(batches(1))), 0)
    for name, norm in norms(task).items():
        assert norm.training and not torch.equal(norm.running_mean, before[f"{name}.running_mean"])
        assert all(p.requires_grad for p in norm.parameters())


def test_the_losses_are_added_and_logged() -> None:
    task = dense_task(replace(CONFIG, lr=0.0))
    images, targets = next(iter(batches(1)))
    with torch.no_grad():
        losses = task.model(images, targets)
    metrics = fit(task, 1).callback_metrics
    assert metrics["train_loss"] == pytest.approx(float(losses["pixels"] + losses["size"]), rel=1e-5)
    assert {"train_pixels", "train_size"} <= metrics.keys()


def test_the_first_update_is_logged_beside_every_20th(tmp_path: Path) -> None:
    config = replace(CONFIG, schedule="poly", power=1.0, lr=0.01, accumulate=2, backbone_lr=0.5)
    fit(dense_task(config), count=50, callback=LogRate(), logger=Log(tmp_path))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "19"]
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.01, 0.01 * 6 / 25])  # the head's, of 25 updates
    for row in rows:
        assert float(row["train_loss"]) == pytest.approx(
            float(row["train_pixels"]) + float(row["train_size"]), rel=1e-5
        )


def test_no_head_is_trained_on_crowds() -> None:
    task = dense_task()
    images, targets = next(iter(batches(1)))
    objects = {
        "boxes": torch.arange(12.0).reshape(3, 4),
        "labels": torch.tensor([2, 0, 1]),
        "masks": torch.rand(3, SIDE, SIDE) > 0.5,
        "iscrowd": torch.tensor([False, True, False]),
        "area": torch.tensor([5.0, 6, 7]),
        "image_id": 9,
    }
    targets = [target | objects for target in targets]
    targets[1] = targets[1] | {"iscrowd": torch.zeros(3, dtype=torch.bool)}
    task.training_step((images, targets), 0)
    first, second = task.model.seen[0]
    for name in ("boxes", "labels", "masks", "iscrowd", "area"):
        assert torch.equal(first[name], targets[0][name][[0, 2]]) and torch.equal(second[name], targets[1][name])
    assert first["image_id"] == 9 and torch.equal(first["semantic"], targets[0]["semantic"])
    assert len(targets[0]["labels"]) == 3


class Watch(Callback):
    """The learning rates of backbone and head at every update, and whether it was one."""

    def __init__(self) -> None:
        self.rates: list[tuple[float, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, *_: object) -> None:
        rates = {group["lr"] for group in trainer.optimizers[0].param_groups}
        self.rates.append((min(rates), max(rates)))


def test_the_learning_rate_falls_after_whole_epochs_and_grows_with_the_batch() -> None:
    config = replace(CONFIG, schedule="step", steps=(1, 2), lr=0.02, lr_batch=16, accumulate=2, backbone_lr=0.5)
    watch = Watch()
    fit(
        dense_task(config, total_batch=4), count=5, epochs=3, callback=watch
    )  # 3 updates an epoch, the last of one batch
    peak = 0.02 * 4 / 16
    expected = [peak] * 3 + [peak / 10] * 3 + [peak / 100] * 3
    assert [head for _, head in watch.rates] == pytest.approx(expected)
    assert [backbone for backbone, _ in watch.rates] == pytest.approx([rate / 2 for rate in expected])


def test_another_optimizer_keeps_the_groups() -> None:
    config = replace(CONFIG, optimizer="sgd", lr=0.02, backbone_lr=0.5, decay_norms=False, weight_decay=0.3)
    task, watch = dense_task(config), Watch()
    before = state(task)
    optimizer = fit(task, count=3, callback=watch).optimizers[0]
    assert type(optimizer) is torch.optim.SGD and optimizer.defaults["momentum"] == 0.9
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.3}
    assert all(backbone == pytest.approx(head / 2) for backbone, head in watch.rates)
    assert not torch.equal(before["classifier.weight"], task.model.classifier.weight)


def test_poly_ends_with_the_run() -> None:
    config = replace(CONFIG, schedule="poly", power=1.0, lr=0.01, warmup_iterations=2, accumulate=2)
    watch = Watch()
    fit(dense_task(config), count=4, epochs=2, callback=watch)
    assert [head for _, head in watch.rates] == pytest.approx([1e-5, 0.0075 * 0.5005, 0.005, 0.0025])


def one_hot(labels: Tensor) -> dict[str, Tensor]:
    return {"logits": F.one_hot(labels, 3).permute(2, 0, 1).float()}


def test_validation_measures_each_epoch_anew() -> None:
    truth = torch.tensor([[0, 1], [2, 2]])

    class Perfect(nn.Module):
        answer = truth

        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            return [one_hot(self.answer) for _ in images]

    network = Perfect()
    task = dense_task(network=network)
    task.description = replace(DESCRIPTION, short_sides=[2], long_side=2)
    task.eval()
    for answer, expected in ((truth * 0, 0.25 / 3), (truth, 1.0)):
        network.answer = answer
        task.on_validation_epoch_start()
        task.validation_step(([torch.rand(3, 2, 2)] * 2, [{"semantic": truth}] * 2), 0)
        assert next(iter(task.measures().items())) == ("mIoU", pytest.approx(expected))


@pytest.mark.parametrize("world", [1, 2])
def test_measures_are_of_the_images_of_all_processes(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """Two processes, the other one's share known; and a process alone, which gathers nothing."""
    truth, wrong = torch.tensor([[0, 1, 2, 2]]), torch.tensor([[0, 0, 0, 0]])
    own, other, both = (EVALUATORS["segment"](CLASSES, [True] * 3, False) for _ in range(3))
    for evaluator, answers in ((own, [truth]), (other, [wrong]), (both, [truth, wrong])):
        for answer in answers:
            evaluator.add({"semantic": truth.numpy()}, arrays(one_hot(answer)))

    def gather(states: list[Any], mine: Any) -> None:
        states[:] = [mine, other.measure.state()]

    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: world)
    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    task = DenseTask(Small(), own, DESCRIPTION, CONFIG, 16)
    expected = both.measure.compute() if world == 2 else {"mIoU": 1, "aAcc": 1, "mAcc": 1}
    assert task.measures() == pytest.approx(expected)


@pytest.mark.parametrize("task", ["detect", "panoptic"])
def test_detectors_and_panoptic_networks_get_the_images_as_they_are(task: str) -> None:
    asked = []

    def network(images: list[Tensor]) -> list[dict[str, Tensor]]:
        asked.append(images)
        return [{"labels": torch.zeros(1)} for _ in images]

    images = [torch.rand(3, 20, 30), torch.rand(3, 8, 9)]
    found = infer(network, images, replace(DESCRIPTION, task=task))  # type: ignore[arg-type]
    assert len(found) == 2 and asked == [images] and asked[0][1] is images[1]


@pytest.mark.parametrize(("test", "count"), [("single", 1), ("multiscale", 12), ("slide", 3)])
def test_semantic_networks_get_images_of_the_last_short_side(test: Any, count: int) -> None:
    sizes = []

    def network(images: list[Tensor]) -> list[dict[str, Tensor]]:
        sizes.append(tuple(images[0].shape[1:]))
        return [{"logits": images[0]}]

    description = replace(DESCRIPTION, short_sides=[16, 40], long_side=90, crop=40)
    image = torch.rand(3, 20, 60)
    (found,) = infer(network, [image], description, test)  # type: ignore[arg-type]
    assert found["logits"].shape == image.shape and len(sizes) == count
    assert sizes[-1] == {"single": (30, 90), "multiscale": (52, 158), "slide": (30, 40)}[test]


class Options:
    """What `setup_dense` asked `build_network` for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    def build(self, *arguments: Any) -> nn.Module:
        self.asked.append(arguments)
        return Small()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Options:
    options = Options()
    monkeypatch.setattr("vankit.training.dense.build_network", options.build)
    return options


RUN = replace(CONFIG, short_sides=(24, SIDE), queries=7, drop_path_rate=0.3, accumulate=3, lr=0.01, lr_batch=24)


@pytest.mark.parametrize(
    ("task", "head"), [("detect", "mask_rcnn"), ("segment", "upernet"), ("panoptic", "mask2former")]
)
def test_a_run_is_set_up(built: Options, task: str, head: str) -> None:
    setup = setup_dense("shapes", task, head, "van_b0.cifar10", RUN, Processes(0, 2))
    ((description, *further),) = built.asked
    scenes = ShapeScenes(task)
    assert description == replace(setup.description, model="van_b0.cifar10") and further == [False, 0.3, False]
    assert setup.description.to_metadata() == {
        "task": task, "head": head, "model": "van_b0", "classes": scenes.classes, "things": scenes.things,
        "category_ids": scenes.category_ids, "short_sides": [24, SIDE], "long_side": 256, "crop": SIDE, "queries": 7,
        "ignore_label": 255, "map_labels": [], "lka": {},
    }  # fmt: skip
    assert isinstance(setup.task, DenseTask) and isinstance(setup.task.evaluator, EVALUATORS[task])
    assert setup.task.lr == pytest.approx(0.01 * 2 * 2 * 3 / 24)
    images, targets = next(iter(setup.train_loader))
    assert [image.shape for image in images] == [(3, SIDE, SIDE)] * 2 and type(images[0]) is Tensor
    assert ("semantic" in targets[0]) == (task == "segment")
    (images, first), (_, second), *_ = itertools.islice(setup.val_loader, 2)
    assert len(images) == 1 and images[0].shape == (3, SIDE, SIDE) and images[0].max() <= 1
    assert first[0]["image_id"] == 0 and second[0]["image_id"] == 2  # every second one


@pytest.mark.parametrize(
    ("task", "head"),
    [("detect", "mask_rcnn"), ("detect", "retinanet"), ("segment", "upernet"), ("panoptic", "mask2former")],
)
def test_scenes_of_ones_own_are_trained_on_as_those_of_the_readers(
    built: Options, small_shapes: None, task: str, head: str
) -> None:
    pair = [ShapeScenes(task, split, count, SIDE, transform=as_tensors) for split, count in (("train", 8), ("val", 2))]
    batches = []
    for data in ("shapes", pair):
        setup = setup_dense(data, task, head, "van_b0", RUN, Processes())
        batches.append([next(iter(setup.train_loader)), *setup.val_loader])
    assert built.asked[0] == built.asked[1]
    for (images, targets), (own_images, own_targets) in zip(*batches, strict=True):
        torch.testing.assert_close(own_images, images, rtol=0, atol=0)
        for target, own in zip(targets, own_targets, strict=True):
            assert own.keys() == target.keys() - ({"masks"} if head == "retinanet" else set())
            known = {name: value for name, value in target.items() if name in own and name != "area"}
            torch.testing.assert_close({name: own[name] for name in known}, known, rtol=0, atol=0)


def test_bad_items_of_ones_own_are_not_skipped(built: Options) -> None:
    pair = ShapeScenes("detect", "train", 8, SIDE), ShapeScenes("detect", "val", 2, SIDE)
    for option in ("skip_bad", "tolerant", "allow_outside"):
        with pytest.raises(UserError, match="only for folders: leave them out with your own sets"):
            train(pair, "van_b0", RUN, task="detect", head="mask_rcnn", **{option: True})


def test_padding_is_unlabelled_for_semantic_segmentation_and_of_no_object_elsewhere(built: Options) -> None:
    config = replace(RUN, scale_range=(0.4, 0.5))
    for task, head in (("segment", "upernet"), ("panoptic", "mask2former")):
        setup = setup_dense("shapes", task, head, "van_b0", config, Processes())
        image, target = setup.train_loader.dataset[Draw(0, 0, 0)]
        grey = (image - 127 / 255).abs().amax(0) < 1e-4
        assert grey.float().mean() > 0.5
        outside = target["semantic"] == 255 if task == "segment" else target["masks"].sum(0) == 0
        assert torch.equal(torch.as_tensor(outside & grey), torch.as_tensor(outside)) and outside.float().mean() > 0.5


def test_weights_to_start_from_replace_the_public_ones(
    built: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = []
    monkeypatch.setattr("vankit.training.dense.start_from", lambda *arguments: started.append(arguments[1:]))
    config = replace(RUN, pretrained=True)
    for checkpoint in (None, tmp_path / "x.safetensors"):
        setup_dense("shapes", "segment", "upernet", "van_b0", config, Processes(), checkpoint)
    assert [arguments[1] for arguments in built.asked] == [True, False]
    assert started == [(tmp_path / "x.safetensors", "upernet", None)]


def test_impossible_settings_are_named(built: Options) -> None:
    with pytest.raises(UserError, match="crop is 0: segmentation trains on squares of one size, pass --crop"):
        setup_dense("shapes", "segment", "upernet", "van_b0", replace(RUN, crop=0), Processes())
    jitter = replace(RUN, crop=0, scale_range=(0.5, 2.0))
    with pytest.raises(UserError, match=r"scale_range is \(0\.5, 2\.0\) and crop 0"):
        setup_dense("shapes", "detect", "mask_rcnn", "van_b0", jitter, Processes())
    with pytest.raises(UserError, match="expected at least a batch of 5000"):
        setup_dense("shapes", "detect", "mask_rcnn", "van_b0", replace(RUN, batch_size=5000), Processes())
    assert built.asked == []


def test_a_head_of_another_task_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown head 'upernet' for detect: expected one of retinanet"):
        setup_dense("shapes", "detect", "upernet", "van_b0", RUN, Processes())
