"""Learning rate and weight decay of dense tasks, as their recipes say."""

import math
from typing import Any

from torch import nn

from vankit.training.recipes import DenseConfig

_WARMUP_FROM = 1e-3
_STEP = 0.1


def lr_factor(config: DenseConfig, update: int, total: int, per_epoch: float) -> float:
    """The learning rate of an update, as a factor on the peak.

    Warm-up multiplies the schedule, as in mmdetection and mmsegmentation, and holds for every parameter group alike;
    timm's schedulers warm up to the peak instead, all groups from the same rate.

    Args:
        config: names the schedule.
        update: from 0.
        total: updates of the whole run.
        per_epoch: updates per epoch.
    """
    low = config.min_lr / config.lr if config.lr else 0.0
    if config.schedule == "step":
        factor = _STEP ** sum(update >= step * per_epoch for step in config.steps)
    else:
        left = max(0.0, 1 - update / total)
        curve = left**config.power if config.schedule == "poly" else 0.5 * (1 - math.cos(math.pi * left))
        factor = low + (1 - low) * curve
    if update < config.warmup_iterations:
        factor *= _WARMUP_FROM + (1 - _WARMUP_FROM) * update / config.warmup_iterations
    return factor


def parameter_groups(network: nn.Module, config: DenseConfig, lr: float) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate (backbone or head) and by weight decay (norms, biases, scales or the rest).

    Args:
        network: a network of `vankit.heads`.
        config: the run's settings.
        lr: of the head; the backbone's is `config.backbone_lr` times as much.
    """
    stem = "stage1.patch_embed.proj.weight"
    prefix = next(name.removesuffix(stem) for name, _ in network.named_parameters() if name.endswith(stem)) + "stage"
    groups: dict[tuple[bool, bool], list[Any]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = config.decay_norms or parameter.ndim > 1
            groups.setdefault((name.startswith(prefix), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * (config.backbone_lr if backbone else 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (backbone, decays), parameters in groups.items()
    ]
