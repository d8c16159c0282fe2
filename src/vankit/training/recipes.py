"""Training settings: one config, and the recipes that fill it, as plain functions."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, overload

from vankit.data.held_out import HeldOut
from vankit.data.preprocessing import MEAN_STD, Preprocessing, check_img_size
from vankit.errors import UserError
from vankit.models.description import Description
from vankit.models.lka_settings import LkaSettings

ConfigT = TypeVar("ConfigT", bound="Config")

_MOST_WORKERS = 1024  # more than any machine has cores: a slip, which would start as many processes

# timm passes over parts of a policy that it does not understand, and over magnitudes that are too large
_STD = r"mstd\d+(\.\d+)?"
_POLICY = re.compile(
    rf"none||(original|originalr|v0|v0r|3a)(-{_STD})?"
    rf"|rand(-(m\d\d?|n\d\d?|p(0(\.\d+)?|1(\.0+)?)|{_STD}|mmax\d\d?|inc[01]|tweights|t3aw?))*"
    rf"|augmix(-(m\d\d?|w\d\d?|d\d\d?|a\d+(\.\d+)?|b[01]|{_STD}))*"
)


@dataclass(frozen=True)
class Config:
    """Settings that every task has.

    Attributes:
        epochs: passes over the training images; for classification with warm-up, without cool-down.
        lr: peak learning rate at a total batch of `lr_batch`; it is scaled linearly to the total batch in use.
        lr_batch: total batch (batch size x processes x accumulation) that `lr` is meant for.
        min_lr: learning rate at the end; not used by the step schedule.
        optimizer: any of timm's, such as adamw, sgd, lamb, lion or muon; timm.optim.list_optimizers() lists them. `lr`
            and `weight_decay` of the recipes are meant for adamw.
        weight_decay: weight decay, as the optimiser understands it.
        clip_grad: largest norm of all gradients together; 0 for no limit.
        nan_tolerance: steps of the whole run that may be left out because their loss or gradients are not finite (NaN
            or infinite). Such a step changes nothing in the network; one more stops the run.
        batch_size: images per process and step.
        accumulate: steps whose gradients are summed before an update.
        drop_path_rate: stochastic depth of the last block, 0 or more, and less than 1.
        patience: validations in a row without a better figure after which the run stops; 0 to train to the end.
        ema_decay: decay per update of the moving average of the weights that is validated and kept, warmed up as
            min(ema_decay, (1 + updates) / (10 + updates)); 0 for no average.
        pretrained: start from the model's public weights.
        precision: 32-true, bf16-mixed or 16-mixed (on GPUs), as Lightning names them.
        grad_checkpointing: recompute activations in the backward pass, for memory.
        channels_last: use the NHWC memory format.
        seed: random seed of weights, order, augmentation and the images held out, 0 to 4294967295.
        val_share: share of each class's training images, between 0 and 1, that is held out for validation if the data
            has no val split. COCO sets and wds/ need one.
        workers: processes that load images, per training process.
        logger: where the figures go beside metrics.csv: tensorboard, wandb (Weights & Biases) or mlflow.
        lka: settings of the network's large kernel attention, see `vankit.LargeKernelAttention`; VAN's if left out.
    """

    epochs: int = 300
    lr: float = 1e-3
    lr_batch: int = 1024
    min_lr: float = 1e-6
    optimizer: str = "adamw"
    weight_decay: float = 0.05
    clip_grad: float = 0.0
    nan_tolerance: int = 0
    batch_size: int = 128
    accumulate: int = 1
    drop_path_rate: float = 0.1
    patience: int = 0
    ema_decay: float = 0.0
    pretrained: bool = False
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    grad_checkpointing: bool = False
    channels_last: bool = True
    seed: int = 0
    val_share: float = 0.1
    workers: int = 2
    logger: Literal["tensorboard", "wandb", "mlflow"] = "tensorboard"
    lka: LkaSettings = field(default_factory=LkaSettings, hash=False)

    def __post_init__(self) -> None:
        self._check_finite()
        self._check_range("batch_size", "accumulate", "lr_batch", low=1)
        self._check_below_1("drop_path_rate", "ema_decay")
        self._check_range("lr", "min_lr", "weight_decay", "clip_grad", "nan_tolerance", "patience")
        self._check_range("workers", high=_MOST_WORKERS)
        self._check_choice("precision", "logger")
        HeldOut(self.val_share, self.seed)  # which checks them, as the next line does
        Description(lka=self.lka)

    def _check_finite(self) -> None:
        for name, value in vars(self).items():
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise UserError(f"{name} is {value}, expected a finite number")

    def _check_choice(self, *names: str) -> None:
        known = {field.name: get_args(field.type) for field in dataclasses.fields(self)}
        for name in names:
            if getattr(self, name) not in known[name]:
                raise UserError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known[name])}")

    def _check_above_0(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected more than 0, to 1")

    def _check_below_1(self, *names: str) -> None:
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more, and less than 1")

    def _check_range(self, *names: str, low: float = 0, high: float = float("inf")) -> None:
        for name in names:
            if not low <= getattr(self, name) <= high:
                wanted = f"{low} to {high}" if high < float("inf") else f"{low} or more"
                raise UserError(f"{name} is {getattr(self, name)}, expected {wanted}")


@dataclass(frozen=True)
class TrainConfig(Config):
    """Settings of a classifier's training. A recipe is a function that returns one; the defaults are the paper's
    (`in1k`). Norms, biases and layer scales are not decayed.

    Attributes:
        cooldown_epochs: epochs at `min_lr` after the schedule.
        warmup_epochs: epochs of linear warm-up from `warmup_lr`.
        warmup_lr: learning rate at the start.
        layer_decay: factor on the learning rate per block from the head down to the stem, 0 to 1; 1 for no decay.
        img_size: side in pixels of training and validation images.
        crop_pct: part of a validation image's short side that its centre crop keeps, 0 to 1.
        min_scale: smallest part of an image's area that a random crop keeps, 0 to 1.
        interpolation: how training crops are resized: bicubic, bilinear, or random to draw one of the two.
        auto_augment: timm's policy string, such as rand-m9-mstd0.5-inc1, or none.
        color_jitter: strength of colour jitter; timm does not use it together with `auto_augment`.
        random_erasing: probability of filling a rectangle with noise, 0 to 1.
        mixup: alpha of mixup's Beta distribution; 0 for no mixup.
        cutmix: alpha of cutmix's Beta distribution; 0 for no cutmix.
        mixup_switch_prob: probability of cutmix instead of mixup if both are on, 0 to 1.
        smoothing: label smoothing, 0 or more, and less than 1; not used for multi-label sets.
        balance: for classes of unequal size: weights to weight each image's loss by its class, the more the rarer, or
            sampling to draw every class equally often; none to train on the images as they are.
        drop_rate: dropout before the head, 0 or more, and less than 1.
        compile: torch.compile the network.
    """

    cooldown_epochs: int = 10
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    layer_decay: float = 1.0
    img_size: int = 224
    crop_pct: float = 0.9
    min_scale: float = 0.08
    interpolation: Literal["bicubic", "bilinear", "random"] = "random"
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    random_erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    mixup_switch_prob: float = 0.5
    smoothing: float = 0.1
    balance: Literal["none", "weights", "sampling"] = "none"
    drop_rate: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("epochs", low=1)
        self._check_range(
            "crop_pct",
            "min_scale",
            "random_erasing",
            "mixup_switch_prob",
            "layer_decay",
            high=1,
        )
        self._check_below_1("smoothing", "drop_rate")
        self._check_above_0("crop_pct", "min_scale", "layer_decay")
        self._check_range("cooldown_epochs", "warmup_epochs", "warmup_lr", "color_jitter", "mixup", "cutmix")
        self._check_choice("interpolation", "balance")
        check_img_size(self.img_size)
        Preprocessing((3, self.img_size, self.img_size), MEAN_STD, MEAN_STD, self.crop_pct, "bicubic")
        if not _POLICY.fullmatch(self.auto_augment):
            raise UserError(
                f"auto_augment is {self.auto_augment!r}, expected a policy that timm has, such as "
                "rand-m9-mstd0.5-inc1, augmix-m5-w4-d2, original or 3a, or none"
            )
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise UserError(
                f"warmup_epochs is {self.warmup_epochs} of {self.epochs} epochs: expected fewer than `epochs`"
            )
        if self.batch_size == 1 and self.img_size <= 32:
            raise UserError(
                f"batch_size is 1 and `img_size` {self.img_size}: the last stage has one pixel per image then, and its "
                "norms need at least two values: pass a larger one of them"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise UserError(f"batch_size is {self.batch_size}: `mixup` and `cutmix` pair images, so it must be even")


@dataclass(frozen=True)
class DenseConfig(Config):
    """Settings of a detector's or segmenter's training. The defaults are COCO's 1x schedule (`coco_1x`).

    One of `epochs` and `iterations` says how long the run is, and the other is 0; see `override`.

    Attributes:
        iterations: updates in all, rounded up to whole epochs.
        schedule: how the learning rate falls: step (x 0.1 at `steps`), poly (to the `power`) or cosine.
        steps: epochs after which the step schedule lowers the learning rate.
        power: exponent of the poly schedule.
        warmup_iterations: updates of linear warm-up from a thousandth of `lr`.
        decay_norms: apply weight decay to norms, biases and layer scales, too.
        backbone_lr: factor on the backbone's learning rate.
        batch_norm: BatchNorm of the backbone: train, frozen (running statistics, for small batches) or sync (statistics
            over all processes, on GPUs).
        short_sides: lengths of an image's shorter side in pixels. Prediction uses the last one. Training without a crop
            draws one per image; in segmentation, `scale_range` is relative to the last one.
        long_side: upper limit of the longer side in pixels.
        scale_range: random factor on a training image's size before the crop, low and high (large-scale jitter).
        crop: side in pixels of the square that is cut from training images (smaller ones are padded); 0 for no crop.
        flip: probability of a horizontal flip, 0 to 1.
        color: randomly vary brightness, contrast, saturation and hue.
        queries: number of object queries or proposals, for heads that have them.
        ignore_label: value in label images that counts as unlabelled, in addition to 255.
        map_labels: values in label images that are read as others, such as 255:1 for masks of 0 and 255.
        validate_every: epochs between validations; the run's epochs are rounded up to a multiple.
    """

    epochs: int = 12
    lr: float = 1e-4
    lr_batch: int = 16
    min_lr: float = 0.0
    batch_size: int = 2
    iterations: int = 0
    schedule: Literal["step", "poly", "cosine"] = "step"
    steps: tuple[int, ...] = (8, 11)
    power: float = 0.9
    warmup_iterations: int = 1000
    decay_norms: bool = True
    backbone_lr: float = 1.0
    batch_norm: Literal["train", "frozen", "sync"] = "sync"
    short_sides: tuple[int, ...] = (800,)
    long_side: int = 1333
    scale_range: tuple[float, float] = (1.0, 1.0)
    crop: int = 0
    flip: float = 0.5
    color: bool = False
    queries: int = 100
    ignore_label: int = 255
    map_labels: tuple[str, ...] = ()
    validate_every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_range("validate_every", "queries", "long_side", low=1)
        self._check_range("epochs", "iterations", "warmup_iterations", "crop", "power", "backbone_lr")
        if (self.epochs > 0) == (self.iterations > 0):
            raise UserError(
                f"epochs is {self.epochs} and `iterations` {self.iterations}: give the length of the run as one of "
                "them, and set the other to 0"
            )
        self._check_range("flip", high=1)
        self._check_range("ignore_label", high=255)
        if not self.short_sides or min(self.short_sides) < 1:
            raise UserError(f"short_sides is {self.short_sides}, expected at least one length in pixels")
        if max(self.short_sides) > self.long_side:
            raise UserError(
                f"long_side is {self.long_side}, expected no less than the largest of `short_sides`, "
                f"{max(self.short_sides)}"
            )
        if self.steps and min(self.steps) < 1:
            raise UserError(f"steps is {self.steps}, expected epochs from 1 on")
        Description(short_sides=self.short_sides, long_side=self.long_side, crop=self.crop, queries=self.queries)
        low, high = self.scale_range
        if not 0 < low <= high:
            raise UserError(f"scale_range is {self.scale_range}, expected 0 < low <= high")
        self._check_choice("schedule", "batch_norm")
        if self.map_labels:
            from vankit.data.label_maps import parse_map

            parse_map(self.map_labels)


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


def coco_1x(model: str) -> DenseConfig:
    """COCO detection, 12 epochs at one size (paper section 4.3, the 1x schedule of RetinaNet and Mask R-CNN)."""
    return DenseConfig(pretrained=True, drop_path_rate=0.2 if _size(model) >= 3 else 0.1)


def coco_3x(model: str) -> DenseConfig:
    """COCO detection, 36 epochs at many sizes (paper section 4.3, as Cascade Mask R-CNN and Sparse R-CNN)."""
    return dataclasses.replace(coco_1x(model), epochs=36, steps=(27, 33), short_sides=(*range(480, 800, 32), 800))


def coco_panoptic(model: str) -> DenseConfig:
    """COCO panoptic segmentation with Mask2Former (paper section 4.5): 50 epochs of large-scale jitter."""
    return dataclasses.replace(
        coco_1x(model),
        epochs=50,
        steps=(44, 48),
        warmup_iterations=10,
        clip_grad=0.01,
        backbone_lr=0.1,
        decay_norms=False,
        scale_range=(0.1, 2.0),
        crop=1024,
    )


def ade20k_fpn(model: str) -> DenseConfig:
    """ADE20K with Semantic FPN (paper section 4.4): 40,000 iterations of batch 32."""
    return dataclasses.replace(
        ade20k_upernet(model),
        iterations=40_000,
        lr=2e-4,
        lr_batch=32,
        weight_decay=1e-4,
        power=0.9,
        warmup_iterations=0,
        decay_norms=True,
        batch_size=4,
        drop_path_rate=(0.2, 0.2, 0.2, 0.3, 0.4, 0.4, 0.4)[_size(model)],
    )


def ade20k_upernet(model: str) -> DenseConfig:
    """ADE20K with UperNet (paper section 4.4): 160,000 iterations of batch 16."""
    return DenseConfig(
        epochs=0,
        iterations=160_000,
        schedule="poly",
        power=1.0,
        lr=6e-5,
        weight_decay=0.01,
        warmup_iterations=1500,
        decay_norms=False,
        short_sides=(512,),
        long_side=2048,
        scale_range=(0.5, 2.0),
        crop=512,
        color=True,
        pretrained=True,
        drop_path_rate=(0.1, 0.1, 0.1, 0.3, 0.4, 0.4, 0.5)[_size(model)],
    )


def short_dense(model: str) -> DenseConfig:
    """Any dense task on small pictures and sets in minutes, from scratch or, as van_b0.cifar10, from a classifier."""
    return DenseConfig(
        pretrained="." in model,
        epochs=12,
        schedule="cosine",
        lr=5e-4,
        lr_batch=16,
        warmup_iterations=50,
        decay_norms=False,
        clip_grad=1.0,
        batch_size=8,
        batch_norm="train",
        short_sides=(128,),
        long_side=256,
        drop_path_rate=0.0,
    )


def short_semantic(model: str) -> DenseConfig:
    """The same for semantic segmentation, which trains on squares of one size."""
    return dataclasses.replace(short_dense(model), crop=128)


def _size(model: str) -> int:
    """0 for van_b0 … 6 for van_b6; 0 for a name that `create_model` will refuse."""
    found = re.match(r"van_b([0-6])", model)
    return int(found[1]) if found else 0


DEFAULT_HEADS = {"detect": "mask_rcnn", "segment": "semantic_fpn", "panoptic": "mask2former"}

RECIPES: dict[str, dict[str, Callable[[str], Config]]] = {
    "classify": {"in1k": in1k, "finetune": finetune, "short": short},
    "detect": {"coco_1x": coco_1x, "coco_3x": coco_3x, "short": short_dense},
    "segment": {"ade20k_fpn": ade20k_fpn, "ade20k_upernet": ade20k_upernet, "short": short_semantic},
    "panoptic": {"coco_panoptic": coco_panoptic, "short": short_dense},
}


@overload
def recipe(name: str | None, model: str, task: Literal["classify"] = "classify", head: None = None) -> TrainConfig: ...
@overload
def recipe(name: str | None, model: str, task: str, head: str | None = None) -> Any: ...
def recipe(name: str | None, model: str, task: str = "classify", head: str | None = None) -> Any:
    """The config of the recipe `name` for a model.

    Args:
        name: in1k, finetune or short for classify; coco_1x, coco_3x or short for detect; ade20k_fpn, ade20k_upernet or
            short for segment; coco_panoptic or short for panoptic. None takes `default_recipe`'s for a folder.
        model: such as van_b0.
        task: classify, detect, segment or panoptic.
        head: such as upernet.

    Returns:
        A `TrainConfig` for classify, else a `DenseConfig`.

    Raises:
        ValueError: there is no such task or recipe.
    """
    if task not in RECIPES:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(RECIPES)}")
    known = RECIPES[task]
    if name is not None and name not in known:
        raise UserError(f"recipe is {name!r}, expected one of {', '.join(known)} for {task}")
    return known[name or default_recipe("", task, head)](model)


def default_recipe(data: object, task: str = "classify", head: str | None = None) -> str:
    """The name of the recipe that is taken where none is asked for.

    Args:
        data: see `vankit.train`; nothing is downloaded to train on the generated `shapes`.
        task: classify, detect, segment or panoptic.
        head: such as upernet, which has a recipe of its own.

    Raises:
        ValueError: there is no such task.
    """
    if task not in RECIPES:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(RECIPES)}")
    if str(data) == "shapes":
        return "short"
    if task == "classify":
        return "finetune"  # in1k is for a million images
    own = f"ade20k_{head}"  # ade20k_upernet is that head's
    return own if own in RECIPES[task] else next(iter(RECIPES[task]))


_FOR_SEGMENT = ("ignore_label", "map_labels")
_WITH_QUERIES = ("sparse_rcnn", "rt_detr", "d_fine", "deformable_detr", "mask2former")


def check_settings(names: Iterable[str], task: str, head: str | None) -> None:
    """Refuse settings that a dense task or its head would not use.

    Args:
        names: of the settings that were given.
        task: classify, detect, segment or panoptic.
        head: such as upernet; the task's default if None.

    Raises:
        ValueError: there is one.
    """
    if task == "classify":  # `override` knows those of the dense tasks
        return
    for name in names:
        if name in _FOR_SEGMENT and task != "segment":
            raise UserError(f"{name} is only for task segment, not for {task}: leave it out")
        if name == "queries" and (head or DEFAULT_HEADS[task]) not in _WITH_QUERIES:
            raise UserError(
                f"queries is only for heads that have them ({', '.join(_WITH_QUERIES)}), not for "
                f"{head or DEFAULT_HEADS[task]}: leave it out"
            )


def _whose(name: str) -> str:
    """Of which tasks a setting is."""
    for config, tasks in ((TrainConfig, "task classify"), (DenseConfig, "the tasks detect, segment and panoptic")):
        if name in config.__dataclass_fields__:
            return f"only for {tasks}"
    return "not a setting"


def override(config: ConfigT, **settings: Any) -> ConfigT:
    """A config with other settings. Of `epochs` and `iterations` the one that is given holds, the other becomes 0.

    Args:
        config: such as a recipe's.
        settings: by the names of its fields.

    Raises:
        ValueError: there is no such setting, or a value is out of range.
    """
    if unknown := sorted(settings.keys() - {field.name for field in dataclasses.fields(config)}):
        raise UserError(f"{unknown[0]} is {_whose(unknown[0])}: leave it out")
    if isinstance(config, DenseConfig):
        for given, other in (("epochs", "iterations"), ("iterations", "epochs")):
            if settings.get(given):
                settings.setdefault(other, 0)
    return dataclasses.replace(config, **settings)
