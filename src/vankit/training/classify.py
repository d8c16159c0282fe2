"""Image classification: the network, its loss, its optimiser and its measures as a LightningModule."""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from timm.data import Mixup, create_transform
from timm.scheduler import create_scheduler_v2
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from vankit.data.folders import ClassFolder, open_dataset
from vankit.data.held_out import HeldOut, announce
from vankit.data.multilabel import MultiLabelImages, announce_labels
from vankit.data.own import Data, OwnImages, name_of, pair_of
from vankit.data.preprocessing import MEAN_STD, Preprocessing
from vankit.data.reading import STRICT, Reader, Reading, Replacing
from vankit.data.walk import subfolders
from vankit.errors import UserError, check_output
from vankit.models.description import Description, Weights
from vankit.models.van import VAN, create_model, variant_of
from vankit.models.weights import for_training, load_checkpoint, read_checkpoint, sizes_of
from vankit.tasks.multilabel import MultiLabelMeasure
from vankit.training.balance import balanced_weights, labels_of, weighted_targets
from vankit.training.loaders import Processes, Setup, collate_usable, gathered, loaders, to_channels_last
from vankit.training.optimizers import build_optimizer
from vankit.training.recipes import TrainConfig


class Classifier(LightningModule):
    """A VAN under training.

    Args:
        model: a network (B, 3, H, W) → (B, classes).
        num_classes: outputs of its head.
        config: the run's settings.
        total_batch: images per update over all processes, for the learning rate.
        class_weights: (classes,) how much an image of each class counts; None for all alike.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        model: torch.nn.Module,
        num_classes: int,
        config: TrainConfig,
        total_batch: int,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.lr = config.lr * total_batch / config.lr_batch
        self._prepare(num_classes)

    def _prepare(self, num_classes: int) -> None:
        config, self.mixup = self.config, None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(
                config.mixup,
                config.cutmix,
                switch_prob=config.mixup_switch_prob,
                label_smoothing=config.smoothing if self.class_weights is None else 0.0,
                num_classes=num_classes,
            )
        ks = (1, 5) if num_classes > 5 else (1,)  # of five classes or fewer, all are among the best five
        self.accuracies: Any = torch.nn.ModuleDict(
            {f"top-{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in ks}
        )

    def forward(self, images: Tensor) -> Tensor:
        if self.config.channels_last:
            images = images.to(memory_format=torch.channels_last)
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch  # (B, 3, H, W), (B,)
        smoothing = self.config.smoothing
        if self.mixup is not None and len(images) % 2 == 0:
            images, labels = self.mixup(images.clone(), labels)  # labels (B, classes), smoothed unless weighted
            smoothing = 0.0
        if self.class_weights is not None:
            labels, smoothing = weighted_targets(labels, self.class_weights, self.config.smoothing), 0.0
        loss = F.cross_entropy(self(images).float(), labels, label_smoothing=smoothing)
        self.log("train_loss_step", loss, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor] | None, batch_idx: int) -> dict[str, Any] | None:
        if batch is None:  # all of them left out by --skip-bad
            return None
        images, labels = batch
        logits = self(images).float()
        check_output(logits)
        self.log("val_loss", F.cross_entropy(logits, labels), on_epoch=True, sync_dist=True)
        for name, accuracy in self.accuracies.items():
            accuracy(logits, labels)
            self.log(f"val_{name.replace('-', '')}", accuracy, on_epoch=True)
        return {"answers": logits}  # for `Pictures` and `KeepFindings`

    def measures(self) -> dict[str, float]:
        """Accuracies of the last validation, 0 to 1; every process has to call it."""
        return {name: float(accuracy.compute()) for name, accuracy in self.accuracies.items()}

    def configure_optimizers(self) -> Any:
        config = self.config
        decay = config.layer_decay if config.layer_decay < 1 else None
        optimizer = build_optimizer(
            self.model, config.optimizer, self.lr, weight_decay=config.weight_decay, layer_decay=decay
        )
        epochs = config.epochs + config.cooldown_epochs
        scheduler, _ = create_scheduler_v2(
            optimizer,
            "cosine",
            num_epochs=config.epochs,
            cooldown_epochs=config.cooldown_epochs,
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
            warmup_epochs=config.warmup_epochs,
            step_on_epochs=False,
            updates_per_epoch=max(1, int(self.trainer.estimated_stepping_batches) // epochs),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # the schedule follows from the step and the config; a stored one would outlive a change of --epochs or --lr
        checkpoint["lr_schedulers"] = []

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step_update(self.global_step)


class MultiLabelClassifier(Classifier):
    """A VAN under training for images that each have any number of the classes; labels are (B, classes), 0 to 1.

    Its loss is binary cross-entropy, the mean over images and classes. Labels are not smoothed: each is by itself, and
    most are 0.
    """

    def _prepare(self, num_classes: int) -> None:
        config, self.mixup = self.config, None
        if config.mixup or config.cutmix:
            # which image is in which, in place of classes
            settings = {"switch_prob": config.mixup_switch_prob, "num_classes": config.batch_size}
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=0.0, **settings)
        self.measure = MultiLabelMeasure([str(i) for i in range(num_classes)])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch  # (B, 3, H, W), (B, classes)
        if self.mixup is not None and len(images) % 2 == 0:
            images, shares = self.mixup(images.clone(), torch.arange(len(images), device=images.device))
            with torch.autocast(images.device.type, enabled=False):
                labels = shares[:, : len(images)] @ labels
        loss = F.binary_cross_entropy_with_logits(self(images).float(), labels)
        self.log("train_loss_step", loss, sync_dist=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.measure = MultiLabelMeasure(self.measure.classes)

    def validation_step(self, batch: tuple[Tensor, Tensor] | None, batch_idx: int) -> dict[str, Any] | None:
        if batch is None:
            return None
        images, labels = batch
        logits = self(images).float()
        check_output(logits)
        self.measure.add(labels.cpu().numpy(), logits.cpu().numpy())
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        self.log("val_loss", loss, on_epoch=True, sync_dist=True)
        return {"answers": logits}

    def measures(self) -> dict[str, float]:
        """mAP of the last validation, 0 to 1; every process has to call it."""
        states = gathered(self.measure.state())
        self.on_validation_epoch_start()
        for state in states:
            self.measure.merge(state)
        return self.measure.compute()

    def thresholds(self) -> tuple[float, ...]:
        """The score from which on each class is given, chosen on the images of `measures`."""
        return self.measure.best_thresholds()


def build_classifier(
    model: str, num_classes: int, config: TrainConfig, sizes: Mapping[str, Any] | None = None
) -> torch.nn.Module:
    """The network that a config describes, in its memory format.

    Args:
        model: a name such as van_b0 or van_b0.cifar10.
        num_classes: outputs of the head.
        config: the run's settings.
        sizes: widths, depths and MLP ratios of its own, see `vankit.models.weights.sizes_of`.

    Raises:
        ValueError: the model is not a VAN.
    """
    network: Any = create_model(
        model,
        pretrained=config.pretrained,
        num_classes=num_classes,
        drop_path_rate=config.drop_path_rate,
        drop_rate=config.drop_rate,
        lka=config.lka,
        **sizes or {},
    )
    if not isinstance(network, VAN):
        raise UserError(f"{model} is not a VAN: expected van_b0 to van_b6")
    network.set_grad_checkpointing(config.grad_checkpointing)
    if config.channels_last:
        network = to_channels_last(network)
    if config.compile:
        network.compile()
    return network


def setup_classify(
    data: Data,
    model: str,
    config: TrainConfig,
    processes: Processes,
    checkpoint: str | PathLike[str] | None = None,
    weights: Weights | None = None,
    sizes: Mapping[str, Any] | None = None,
    reading: Reading = STRICT,
) -> Setup:
    """A classifier's training run.

    Args:
        data: see `vankit.data.folders.open_dataset` and, for the caller's own, `vankit.data.own.OwnImages`.
        model, config: see `vankit.train`.
        processes: this process among all.
        checkpoint: weights of any public format to start from, also of a VAN with widths and depths of its own.
        weights: see `vankit.train`.
        sizes: of such a VAN, when its run is resumed.
        reading: how forgiving to be with the files of a folder. In training another image takes the place of one that
            is left out, so that batches keep their size.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the data or the weights cannot be used.
    """
    train_set, val_set = _datasets(data, config, reading)
    classes = list(train_set.classes)
    multi_label = isinstance(train_set, MultiLabelImages)
    if multi_label and config.balance != "none":
        raise UserError(f"balance is {config.balance}, which is for one class per image: leave it out for multi-label")
    if multi_label:
        announce_labels(train_set, val_set, data, log=processes.rank == 0)
    elif len(classes) < 2:
        hint = _inner(data, classes[0])
        raise UserError(f"{name_of(data)} has one class, {classes[0]}: expected at least two to tell apart{hint}")
    if reading.skip_bad and isinstance(train_set, Reader):
        train_set = Replacing(train_set)
    train_loader, val_loader = loaders(train_set, val_set, config, processes, collate_usable)
    start = None if checkpoint is None else for_training(read_checkpoint(checkpoint, weights))
    if start is not None:
        config = replace(config, pretrained=False)
        if variant_of(start.state_dict) is None:
            sizes = sizes_of(start.state_dict)
    network = build_classifier(model, len(classes), config, sizes)
    if start is not None:
        load_checkpoint(network, start)
    kind = MultiLabelClassifier if multi_label else Classifier
    total_batch = config.batch_size * processes.world * config.accumulate
    class_weights = balanced_weights(labels_of(train_set), len(classes)) if config.balance == "weights" else None
    task = kind(network, len(classes), config, total_batch, class_weights)
    preprocessing = Preprocessing((3, config.img_size, config.img_size), MEAN_STD, MEAN_STD, config.crop_pct, "bicubic")
    held_out = announce(val_set, data, training=True, log=processes.rank == 0)
    description = Description(
        model=model.split(".")[0] if sizes is None else None,
        classes=classes,
        lka=config.lka,
        preprocessing=preprocessing,
        thresholds=(0.5,) * len(classes) if multi_label else (),
        held_out=held_out,
    )
    return Setup(task, train_loader, val_loader, description)


def _inner(data: Data, name: str) -> str:
    """Whether the one class of a folder is rather the folder of the classes."""
    inner = Path(data) / name if isinstance(data, str | PathLike) else None
    return f"; or is {inner} the folder of your classes?" if inner and inner.is_dir() and subfolders(inner) else ""


def _datasets(data: Data, config: TrainConfig, reading: Reading) -> tuple[Any, Any]:
    common: dict[str, Any] = {"input_size": config.img_size, "mean": MEAN_STD, "std": MEAN_STD}
    augment = _augment(config, common)
    centre = create_transform(**common, crop_pct=config.crop_pct, interpolation="bicubic")
    if not isinstance(data, str | PathLike):
        train_set, val_set = pair_of(data)
        size = config.img_size
        return OwnImages(train_set, "training", augment, size), OwnImages(val_set, "validation", centre, size)
    options: dict[str, Any] = {
        "size": config.img_size,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "held_out": HeldOut(config.val_share, config.seed, plain=True),
        "reading": reading,
    }
    train_set, val_set = open_dataset(data, "train", augment, **options), open_dataset(data, "val", centre, **options)
    if isinstance(val_set, ClassFolder):
        val_set.relabel(train_set.classes)
    return train_set, val_set


def _augment(config: TrainConfig, common: dict[str, Any]) -> Any:
    return create_transform(
        **common,
        is_training=True,
        scale=(config.min_scale, 1.0),
        auto_augment=None if config.auto_augment in ("", "none") else config.auto_augment,
        color_jitter=config.color_jitter or None,
        re_prob=config.random_erasing,
        re_mode="pixel",
        interpolation=config.interpolation,
    )
