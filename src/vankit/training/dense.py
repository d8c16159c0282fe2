"""Detection, semantic and panoptic segmentation under training: one LightningModule for every head."""

import math
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchvision.transforms import v2

from vankit.data.augment import PER_INSTANCE, as_tensors, collate, evaluation_transform, training_transform
from vankit.data.coco import Coco
from vankit.data.held_out import HeldOut, announce
from vankit.data.label_maps import IGNORE
from vankit.data.own import Data, OwnScenes, Pair, pair_of
from vankit.data.reading import STRICT, Reading
from vankit.data.scenes import open_scenes
from vankit.data.semantic import SemanticFolder
from vankit.errors import UserError
from vankit.heads.backbone import keep_training_size
from vankit.heads.build import HEADS, build_network, check_head
from vankit.heads.checkpoints import start_from
from vankit.models.description import Description, Weights
from vankit.models.van import Stage
from vankit.tasks.dense import EVALUATORS, Evaluator
from vankit.tasks.inference import arrays, infer
from vankit.training.loaders import Processes, Setup, gathered, loaders, to_channels_last
from vankit.training.optimizers import build_optimizer
from vankit.training.recipes import DenseConfig
from vankit.training.schedule import lr_factor, parameter_groups


class DenseTask(LightningModule):
    """A network of `vankit.heads` under training.

    Args:
        network: see `vankit.heads`.
        evaluator: measures it on the validation images.
        description: of the network.
        config: the run's settings.
        total_batch: images per update over all processes, for the learning rate.
    """

    def __init__(
        self,
        network: nn.Module,
        evaluator: Evaluator,
        description: Description,
        config: DenseConfig,
        total_batch: int,
    ) -> None:
        super().__init__()
        self.model = network
        self.description = description
        self.evaluator = evaluator
        self.config = config
        self.lr = config.lr * total_batch / config.lr_batch
        if config.batch_norm == "frozen":
            for norm in self._backbone_norms():
                norm.requires_grad_(False)

    def _backbone_norms(self) -> list[nn.Module]:
        stages = [module for module in self.model.modules() if isinstance(module, Stage)]
        return [module for stage in stages for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> "DenseTask":
        super().train(mode)
        if self.config.batch_norm == "frozen":
            for norm in self._backbone_norms():
                norm.eval()
        return self

    def on_train_start(self) -> None:
        self.train()  # Lightning itself leaves the modes as they are, and restores them after a validation

    def training_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> Tensor | None:
        images, targets = batch
        if not images:  # all of them left out by --skip-bad
            return None
        losses: dict[str, Tensor] = self.model(images, [_without_crowds(target) for target in targets])
        loss = torch.stack(list(losses.values())).sum()
        named = {f"train_{name}": value.detach() for name, value in losses.items()}
        self.log_dict({**named, "train_loss": loss.detach()}, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int) -> dict[str, Any]:
        images, targets = batch
        results = [arrays(each) for each in infer(self.model, images, self.description)] if images else []
        alone = [self.evaluator.add(arrays(target), result) for target, result in zip(targets, results, strict=True)]
        return {"answers": results, "measures": alone}  # for `Pictures` and `KeepFindings`

    def on_validation_epoch_start(self) -> None:
        self.evaluator.reset()

    def measures(self) -> dict[str, float]:
        """Figures of the validation images of all processes; every process has to call it."""
        states = gathered(self.evaluator.measure.state())
        if len(states) > 1:
            self.evaluator.reset()
            for state in states:
                self.evaluator.measure.merge(state)
        return self.evaluator.measure.compute()

    def configure_optimizers(self) -> Any:
        groups = parameter_groups(self.model, self.config, self.lr)
        self.peak_rates = [group["lr"] for group in groups]
        self.updates = int(self.trainer.estimated_stepping_batches)
        self.updates_per_epoch = math.ceil(self.trainer.num_training_batches / self.config.accumulate)
        return build_optimizer(groups, self.config.optimizer, self.lr)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # from the step and the config alone: a stored schedule would outlive a change of --epochs or --lr on resuming
        factor = lr_factor(self.config, self.global_step, self.updates, self.updates_per_epoch)
        optimizer: Any = self.optimizers()
        for group, peak in zip(optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor


def _without_crowds(target: dict[str, Any]) -> dict[str, Any]:
    """Crowd regions are not single objects, so no head is trained on them."""
    if "iscrowd" not in target or not target["iscrowd"].any():
        return target
    keep = ~target["iscrowd"]
    return {k: v[keep] if k in PER_INSTANCE else v for k, v in target.items()}


def setup_dense(
    data: Data,
    task: str,
    head: str,
    model: str,
    config: DenseConfig,
    processes: Processes,
    checkpoint: str | PathLike[str] | None = None,
    reading: Reading = STRICT,
    weights: Weights | None = None,
    known: Sequence[str] = (),
) -> Setup:
    """A dense task's training run.

    Args:
        data, reading: see `vankit.data.scenes.open_scenes` and, for the caller's own, `vankit.data.own.OwnScenes`.
        task, head, model, config: see `vankit.train`.
        processes: this process among all.
        checkpoint: weights to start from: of the same head (what does not fit stays as it is), or of a backbone.
        weights: see `vankit.train`.
        known: classes of the run that is resumed.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the data or the weights cannot be used.
    """
    check_head(task, head)
    train_set, val_set = _datasets(data, task, head, config, reading, known)
    # validated one by one, as they are predicted: the padding of a batch changes the figures
    train_loader, val_loader = loaders(train_set, val_set, config, processes, collate, val_batch=1)
    held_out = announce(val_set, data, training=True, log=processes.rank == 0)
    description = Description(
        task,
        head,
        model,
        train_set.classes,
        lka=config.lka,
        things=getattr(train_set, "things", ()),
        category_ids=getattr(train_set, "category_ids", ()),
        short_sides=config.short_sides,
        long_side=config.long_side,
        crop=config.crop,
        queries=config.queries,
        ignore_label=config.ignore_label,
        map_labels=config.map_labels,
        held_out=held_out,
    )
    pretrained = config.pretrained and checkpoint is None
    network = build_network(description, pretrained, config.drop_path_rate, config.grad_checkpointing)
    description = replace(description, model=model.split(".")[0])  # whose weights the network has left behind
    if checkpoint is not None:
        start_from(network, checkpoint, head, weights)
    if config.crop:
        keep_training_size(network)
    if config.channels_last:
        network = to_channels_last(network)
    evaluator = EVALUATORS[task](description.classes, description.things, HEADS[head].masks)
    total_batch = config.batch_size * processes.world * config.accumulate
    return Setup(DenseTask(network, evaluator, description, config, total_batch), train_loader, val_loader, description)


def _datasets(
    data: Data, task: str, head: str, config: DenseConfig, reading: Reading, known: Sequence[str]
) -> tuple[Any, Any]:
    segment = task == "segment"
    if segment and not config.crop:
        raise UserError("crop is 0: segmentation trains on squares of one size, pass --crop in pixels")
    if config.scale_range != (1.0, 1.0) and not config.crop:
        raise UserError(f"scale_range is {config.scale_range} and crop 0: scaling needs a crop, pass --crop in pixels")
    augment = training_transform(
        config.scale_range,
        config.short_sides[-1] if segment else 0,
        config.long_side if segment else 0,
        config.crop,
        config.flip,
        config.color,
        padding_label=IGNORE if segment else 0,
    )
    if not isinstance(data, str | PathLike):
        return _own_datasets(data, task, head, config, augment)
    shared: dict[str, Any] = {
        "masks": HEADS[head].masks,
        "size": config.short_sides[-1],
        "seed": config.seed,
        "ignore_label": config.ignore_label,
        "map_labels": config.map_labels,
        "reading": reading,
        "held_out": HeldOut(config.val_share, config.seed, plain=True),
    }
    train_set = open_scenes(data, task, "train", v2.Compose([as_tensors, augment]), **shared, known=known)
    if isinstance(train_set, SemanticFolder | Coco):
        train_set.check_labels()
    evaluate = v2.Compose([as_tensors, evaluation_transform()])
    return train_set, open_scenes(data, task, "val", evaluate, **shared, known=train_set.classes)


def _own_datasets(data: Pair, task: str, head: str, config: DenseConfig, augment: Any) -> tuple[OwnScenes, OwnScenes]:
    train_set, val_set = pair_of(data)
    options: dict[str, Any] = {"task": task, "masks": HEADS[head].masks, "ignore_label": config.ignore_label}
    return (
        OwnScenes(train_set, "training", augment, **options),
        OwnScenes(val_set, "validation", evaluation_transform(), **options),
    )
