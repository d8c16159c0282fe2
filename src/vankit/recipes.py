"""Training settings: one config, and the recipes that fill it, as plain functions."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. A recipe is a function that returns one; the defaults are the paper's (`in1k`).

    Attributes:
        epochs: epochs of the cosine schedule, warm-up included.
        cooldown_epochs: epochs at `min_lr` after it.
        warmup_epochs: epochs of linear warm-up from `warmup_lr`.
        lr: peak learning rate at a total batch of `lr_batch`; it is scaled linearly to the total batch in use.
        lr_batch: total batch (batch size x processes x accumulation) that `lr` is meant for.
        warmup_lr: learning rate at the start.
        min_lr: learning rate at the end.
        weight_decay: AdamW's; norms, biases and layer scales are never decayed.
        layer_decay: factor on the learning rate per block from the head down to the stem, 0 to 1; 1 is none.
        clip_grad: largest norm of all gradients together; 0 is none.
        batch_size: images per process and step.
        accumulate: steps whose gradients are summed before an update.
        img_size: side in pixels of training and validation images.
        crop_pct: part of a validation image's short side that its centre crop keeps, 0 to 1.
        min_scale: smallest part of an image's area that a random crop keeps, 0 to 1.
        interpolation: of training crops: bicubic, bilinear, or random for either.
        auto_augment: timm's policy string, such as rand-m9-mstd0.5-inc1, or none.
        color_jitter: strength; timm leaves it out where auto_augment is on.
        random_erasing: probability of filling a rectangle with noise, 0 to 1.
        mixup: alpha of mixup's Beta distribution; 0 is none.
        cutmix: alpha of cutmix's Beta distribution; 0 is none.
        mixup_switch_prob: probability of cutmix where both are on, 0 to 1.
        smoothing: label smoothing, 0 to 1.
        drop_path_rate: stochastic depth of the last block, 0 to 1.
        drop_rate: dropout before the head, 0 to 1.
        ema_decay: decay per update of the moving average of the weights that is validated and kept, warmed up as
            min(ema_decay, (1 + updates) / (10 + updates)); 0 is none.
        pretrained: start from the model's public weights.
        precision: Lightning's: 32-true, bf16-mixed or 16-mixed.
        grad_checkpointing: recompute activations in the backward pass, for memory.
        channels_last: NHWC memory format.
        compile: torch.compile the network.
        seed: of weights, order and augmentation.
        workers: processes that load images, per training process.
    """

    epochs: int = 300
    cooldown_epochs: int = 10
    warmup_epochs: int = 5
    lr: float = 1e-3
    lr_batch: int = 1024
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    clip_grad: float = 0.0
    batch_size: int = 128
    accumulate: int = 1
    img_size: int = 224
    crop_pct: float = 0.9
    min_scale: float = 0.08
    interpolation: str = "random"
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    random_erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    mixup_switch_prob: float = 0.5
    smoothing: float = 0.1
    drop_path_rate: float = 0.1
    drop_rate: float = 0.0
    ema_decay: float = 0.0
    pretrained: bool = False
    precision: str = "32-true"
    grad_checkpointing: bool = False
    channels_last: bool = True
    compile: bool = False
    seed: int = 0
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "img_size", "lr_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in (
            "crop_pct", "min_scale", "random_erasing", "mixup_switch_prob", "smoothing", "drop_path_rate", "drop_rate",
            "layer_decay", "ema_decay",
        ):  # fmt: skip
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("cooldown_epochs", "warmup_epochs", "workers", "lr", "weight_decay", "clip_grad"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs} of {self.epochs} epochs: expected fewer than epochs"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"batch_size is {self.batch_size}: mixup and cutmix pair images, so it must be even")


def in1k(model: str) -> TrainConfig:
    """ImageNet-1k from scratch as in the paper (section 4.1 and the authors' code): 8 processes of batch 128."""
    return TrainConfig(drop_path_rate=0.2 if model.split(".")[0] in ("van_b3", "van_b4", "van_b5", "van_b6") else 0.1)


def finetune(model: str) -> TrainConfig:
    """A small set from pretrained weights: short, gentle, the lower layers slower than the head."""
    return TrainConfig(
        epochs=20,
        cooldown_epochs=0,
        warmup_epochs=2,
        lr=5e-4,
        lr_batch=64,
        layer_decay=0.85,
        clip_grad=1.0,
        batch_size=32,
        min_scale=0.35,
        interpolation="bicubic",
        auto_augment="none",
        color_jitter=0.2,
        random_erasing=0.0,
        mixup=0.0,
        cutmix=0.0,
        pretrained=True,
    )


def short(model: str) -> TrainConfig:
    """From scratch in minutes to an hour: a high learning rate and light augmentation, for small pictures and sets."""
    return TrainConfig(
        epochs=15,
        cooldown_epochs=0,
        warmup_epochs=1,
        lr=2e-3,
        lr_batch=128,
        warmup_lr=1e-5,
        clip_grad=1.0,
        img_size=64,
        crop_pct=1.0,
        min_scale=0.5,
        interpolation="bicubic",
        auto_augment="none",
        color_jitter=0.0,
        random_erasing=0.0,
        mixup=0.0,
        cutmix=0.0,
        drop_path_rate=0.0,
    )


RECIPES: dict[str, Callable[[str], TrainConfig]] = {"in1k": in1k, "finetune": finetune, "short": short}


def recipe(name: str, model: str) -> TrainConfig:
    """The config of the recipe `name` for a model.

    Raises:
        ValueError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    return RECIPES[name](model)
