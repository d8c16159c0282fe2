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
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from vankit.data.folders import ClassFolder, open_dataset
from vankit.data.held_out import HeldOut, announce
from vankit.data.preprocessing import MEAN_STD, Preprocessing
from vankit.data.reading import Reading, Replacing, collate_usable
from vankit.data.walk import subfolders
from vankit.errors import UserError, check_output
from vankit.models.description import Description, Weights
from vankit.models.van import VAN, create_model, variant_of
from vankit.models.weights import for_training, load_checkpoint, read_checkpoint, sizes_of
from vankit.training.loaders import Processes, Setup, loaders, to_channels_last
from vankit.training.recipes import TrainConfig


class Classifier(LightningModule):
    """A VAN under training.

    Args:
        model: a network (B, 3, H, W) → (B, classes).
        num_classes: outputs of its head.
        config: the run's settings.
        total_batch: images per update over all processes, for the learning rate.
    """

    def __init__(self, model: torch.nn.Module, num_classes: int, config: TrainConfig, total_batch: int) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.lr = config.lr * total_batch / config.lr_batch
        self.mixup = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(
                config.mixup,
                config.cutmix,
                switch_prob=config.mixup_switch_prob,
                label_smoothing=config.smoothing,
                num_classes=num_classes,
            )
        self.top1 = MulticlassAccuracy(num_classes, top_k=1, average="micro")
        self.top5 = MulticlassAccuracy(num_classes, top_k=min(5, num_classes), average="micro")

    def forward(self, images: Tensor) -> Tensor:
        if self.config.channels_last:
            images = images.to(memory_format=torch.channels_last)
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch  # (B, 3, H, W), (B,)
        smoothing = self.config.smoothing
        if self.mixup is not None and len(images) % 2 == 0:
            images, labels = self.mixup(images.clone(), labels)  # labels (B, classes), smoothed already
            smoothing = 0.0
        loss = F.cross_entropy(self(images).float(), labels, label_smoothing=smoothing)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor] | None, batch_idx: int) -> dict[str, Any] | None:
        if batch is None:  # all of them left out by --skip-bad
            return None
        images, labels = batch
        logits = self(images).float()
        check_output(logits)
        self.top1(logits, labels)
        self.top5(logits, labels)
        self.log("val_loss", F.cross_entropy(logits, labels), on_epoch=True, sync_dist=True)
        self.log("val_top1", self.top1, on_epoch=True, prog_bar=True)
        self.log("val_top5", self.top5, on_epoch=True)
        return {"answers": logits}

    def measures(self) -> dict[str, float]:
        """Accuracies of the last validation, 0 to 1; every process has to call it."""
        return {"top-1": float(self.top1.compute()), "top-5": float(self.top5.compute())}

    def configure_optimizers(self) -> Any:
        config = self.config
        decay = config.layer_decay if config.layer_decay < 1 else None
        optimizer = create_optimizer_v2(
            self.model, "adamw", lr=self.lr, weight_decay=config.weight_decay, layer_decay=decay
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
    data: str | PathLike[str],
    model: str,
    config: TrainConfig,
    processes: Processes,
    checkpoint: str | PathLike[str] | None = None,
    weights: Weights | None = None,
    sizes: Mapping[str, Any] | None = None,
    reading: Reading = Reading(),  # noqa: B008  frozen
) -> Setup:
    """A classifier's training run.

    Args:
        data: see `vankit.data.folders.open_dataset`.
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
    if len(classes) < 2:
        inner = Path(data) / classes[0]
        hint = f"; or is {inner} the folder of your classes?" if inner.is_dir() and subfolders(inner) else ""
        raise UserError(f"{data} has one class, {classes[0]}: expected at least two to tell apart{hint}")
    train_loader, val_loader = loaders(train_set, val_set, config, processes, collate_usable)
    start = None if checkpoint is None else for_training(read_checkpoint(checkpoint, weights))
    if start is not None:
        config = replace(config, pretrained=False)
        if variant_of(start.state_dict) is None:
            sizes = sizes_of(start.state_dict)
    network = build_classifier(model, len(classes), config, sizes)
    if start is not None:
        load_checkpoint(network, start)
    task = Classifier(network, len(classes), config, config.batch_size * processes.world * config.accumulate)
    preprocessing = Preprocessing((3, config.img_size, config.img_size), MEAN_STD, MEAN_STD, config.crop_pct, "bicubic")
    held_out = announce(val_set, data, training=True, log=processes.rank == 0)
    description = Description(
        model=model.split(".")[0] if sizes is None else None,
        classes=classes,
        lka=config.lka,
        preprocessing=preprocessing,
        held_out=held_out,
    )
    return Setup(task, train_loader, val_loader, description)


def _datasets(data: str | PathLike[str], config: TrainConfig, reading: Reading) -> tuple[Any, Any]:
    common: dict[str, Any] = {"input_size": config.img_size, "mean": MEAN_STD, "std": MEAN_STD}
    augment = _augment(config, common)
    centre = create_transform(**common, crop_pct=config.crop_pct, interpolation="bicubic")
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
    return Replacing(train_set) if reading.skip_bad else train_set, val_set


def _augment(config: TrainConfig, common: dict[str, Any]) -> Any:
    try:
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
    except (AssertionError, LookupError, TypeError, ValueError) as error:  # how timm refuses a policy
        raise UserError(
            f"auto_augment is {config.auto_augment!r}, which timm cannot use ({type(error).__name__} {error}): "
            "expected a policy such as rand-m9-mstd0.5-inc1, or none"
        ) from None
