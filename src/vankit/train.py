"""Training: config, model and data go in; weights, logs and the state to resume come out."""

import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset

from vankit.data.folders import open_dataset
from vankit.models import weights
from vankit.recipes import TrainConfig, in1k
from vankit.tasks.classify import Classifier, build_classifier

# Lightning's advice on what the config and `out` have decided, and a deprecation in its own code
_ADVICE = (
    ".*does not have many workers",
    ".*number of training batches.*smaller than the logging interval",
    ".*directory .* exists and is not empty",
    ".*LeafSpec.*is deprecated",
)

MEAN_STD = (0.5, 0.5, 0.5)  # VAN's published preprocessing


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left.

    Attributes:
        top1: best validation accuracy, 0 to 1.
        best, last: vankit checkpoints of the best and the last epoch.
        seconds: wall time of the training loop, validation included.
    """

    top1: float
    best: Path
    last: Path
    seconds: float


def train(
    data: str | Path,
    model: str = "van_b0",
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a classifier.

    Under torchrun every process calls this with the same arguments; one process alone trains alone.

    Args:
        data: see `vankit.data.folders.open_dataset`; needs a train and a val split.
        model: such as van_b0, or van_b0.cifar10 to start from those weights.
        config: settings; `recipes.in1k(model)` if None.
        out: folder for best.safetensors, last.safetensors, resume.ckpt, config.json, metrics.csv and tensorboard/;
            `runs/MODEL` if None.
        checkpoint: weights of any public format to start from.
        resume: continue the run in `out` from its last finished epoch.

    Returns:
        Best accuracy and the files.

    Raises:
        FileNotFoundError: data, checkpoint, or with `resume` the run is missing.
        ValueError: the data is no labelled image set, the train and val classes differ, or `out` already holds a run.
    """
    config = config or in1k(model)
    out = Path(out) if out is not None else Path("runs") / model
    state = _resume_state(out, resume)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    train_loader, val_loader, classes = _loaders(data, config, rank, world)
    start_epoch = _check_same_run(out, model, classes) if resume else 0
    seed_everything(config.seed, verbose=False)
    overlay = {"file": str(checkpoint)} if checkpoint and not resume else {}
    start_from = dataclasses.replace(config, pretrained=config.pretrained and not resume)
    network = build_classifier(model, len(classes), start_from, **overlay)
    # every process and every resumption draws its own order, augmentation and drop path
    seed_everything(config.seed + rank + world * start_epoch, workers=True, verbose=False)
    task = Classifier(network, len(classes), config, config.batch_size * world * config.accumulate)

    keep = KeepWeights(out, _metadata(model, classes, config))
    start = time.perf_counter()
    with warnings.catch_warnings():
        for message in _ADVICE:
            warnings.filterwarnings("ignore", message=message)
        trainer = _trainer(config, out, keep)
        if trainer.is_global_zero:
            record = {"data": str(data), "model": model, "classes": classes, **dataclasses.asdict(config)}
            _prepare(out, record)
        trainer.fit(task, train_loader, val_loader, ckpt_path=state, weights_only=True)
    if keep.best < 0:
        raise ValueError(f"{data} gave no whole epoch: expected more images or shards for {config.workers} workers")
    return TrainResult(keep.best, out / "best.safetensors", out / "last.safetensors", time.perf_counter() - start)


def _resume_state(out: Path, resume: bool) -> Path | None:
    state = out / "resume.ckpt"
    if resume and not state.is_file():
        raise FileNotFoundError(f"nothing to resume in {out}: expected {state}; leave out --resume to start a run")
    if not resume and state.is_file():
        raise ValueError(
            f"{out} already holds a run: choose another folder (--out), or continue it with train --resume"
        )
    return state if resume else None


def _check_same_run(out: Path, model: str, classes: list[str]) -> int:
    """Finished epochs of the run in `out`, which must be of this model and these classes."""
    before = json.loads((out / "config.json").read_text())
    for name, value in (("model", model), ("classes", classes)):
        if before[name] != value:
            raise ValueError(
                f"{out} holds a run with {name} {before[name]}, not {value}: choose another folder (--out)"
            )
    return int(weights.read_metadata(out / "last.safetensors")["epoch"])


def _prepare(out: Path, record: dict[str, Any]) -> None:
    """Write down the settings; keep the log of a run that is resumed, which Lightning would overwrite."""
    out.mkdir(parents=True, exist_ok=True)
    partial = out / "config.json.partial"  # the other processes of a resumed run may be reading
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(out / "config.json")
    if (log := out / "metrics.csv").exists():
        log.rename(out / f"metrics-{len(list(out.glob('metrics-*.csv'))) + 1}.csv")


def _trainer(config: TrainConfig, out: Path, keep: "KeepWeights") -> Trainer:
    """One Lightning Trainer: on the processes torchrun started if any, else on one accelerator or the CPU."""
    callbacks: list[Callback] = [keep]
    if config.ema_decay:
        # after `keep`: callbacks run in order, and this one swaps the averaged weights back out
        callbacks.append(WeightAveraging(avg_fn=_moving_average(config.ema_decay)))
    callbacks.append(ModelCheckpoint(out, "resume", save_top_k=1, enable_version_counter=False))
    if bar := sys.stdout.isatty():
        callbacks.append(RichProgressBar())
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    world = int(os.environ.get("WORLD_SIZE", 1))
    return Trainer(
        max_epochs=config.epochs + config.cooldown_epochs,
        devices=local,
        num_nodes=world // local,
        strategy="ddp" if world > 1 else "auto",
        precision=config.precision,  # type: ignore[arg-type]
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_grad or None,
        logger=[CSVLogger(out, name="", version=""), TensorBoardLogger(out, name="", version="tensorboard")],
        callbacks=callbacks,
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=20,
    )


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Early on the average forgets faster, or a short run would keep its random start."""

    def average(old: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        n = int(updates)
        return old + (new - old) * (1 - min(decay, (1 + n) / (10 + n)))

    return average


class KeepWeights(Callback):
    """Writes last.safetensors after every validation and best.safetensors after the best, and prints a line of it.

    Args:
        out: folder.
        metadata: see `vankit.models.weights.Checkpoint`.
    """

    def __init__(self, out: Path, metadata: dict[str, Any]) -> None:
        self.out = out
        self.metadata = metadata
        self.best = -1.0
        self.start = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()
        set_epoch = getattr(getattr(trainer.train_dataloader, "dataset", None), "set_epoch", None)
        if set_epoch is not None:  # shards are shuffled by epoch
            set_epoch(trainer.current_epoch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        top1 = float(pl_module.top1.compute())  # on every process: it gathers
        top5 = float(pl_module.top5.compute())
        improved, self.best = top1 > self.best, max(top1, self.best)
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        metadata = {**self.metadata, "epoch": epoch, "top1": round(top1, 5), "top5": round(top5, 5)}
        state = pl_module.model.state_dict()
        for name in ("last", "best") if improved else ("last",):
            weights.write_checkpoint(state, self.out / f"{name}.safetensors", metadata=metadata)
        loss = float(trainer.callback_metrics.get("train_loss_step", float("nan")))
        print(
            f"epoch {epoch}/{trainer.max_epochs}  loss {loss:.3f}  top-1 {top1:.2%}  top-5 {top5:.2%}  "
            f"best {self.best:.2%}  {time.perf_counter() - self.start:.0f} s",
            flush=True,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]


def _metadata(model: str, classes: list[str], config: TrainConfig) -> dict[str, Any]:
    return {
        "model": model.split(".")[0],
        "classes": classes,
        "preprocessing": {
            "input_size": [3, config.img_size, config.img_size],
            "mean": list(MEAN_STD),
            "std": list(MEAN_STD),
            "crop_pct": config.crop_pct,
            "interpolation": "bicubic",
        },
    }


def _loaders(
    data: str | Path, config: TrainConfig, rank: int = 0, world: int = 1
) -> tuple[DataLoader[Any], DataLoader[Any], list[str]]:
    common: dict[str, Any] = {"input_size": config.img_size, "mean": MEAN_STD, "std": MEAN_STD}
    augment = create_transform(
        **common,
        is_training=True,
        scale=(config.min_scale, 1.0),
        auto_augment=None if config.auto_augment in ("", "none") else config.auto_augment,
        color_jitter=config.color_jitter or None,
        re_prob=config.random_erasing,
        re_mode="pixel",
        interpolation=config.interpolation,
    )
    centre = create_transform(**common, crop_pct=config.crop_pct, interpolation="bicubic")
    options = {"size": config.img_size, "seed": config.seed, "batch_size": config.batch_size}
    train_set = open_dataset(data, "train", augment, **options)
    val_set = open_dataset(data, "val", centre, **options)
    classes = list(train_set.classes)
    if classes != list(val_set.classes):
        only = sorted(set(classes) ^ set(val_set.classes))
        raise ValueError(f"train and val have different classes: {', '.join(only[:10])}")
    train_loader = _loader(train_set, config, True, rank, world)
    if not len(train_loader) or len(val_set) < world:
        raise ValueError(
            f"{data} has {len(train_set)} images to train on and {len(val_set)} to validate: expected at least a batch "
            f"of {config.batch_size} and one image for each of {world} processes; a smaller --batch-size may help"
        )
    return train_loader, _loader(val_set, config, False, rank, world), classes


def _loader(dataset: Any, config: TrainConfig, shuffle: bool, rank: int, world: int) -> DataLoader[Any]:
    """Batches of this process's share; validation shares are disjoint, so that no image counts twice."""
    stream = isinstance(dataset, IterableDataset)
    if stream and world > 1:
        raise ValueError("shards are read by one process only: use a folder of images under torchrun")
    if stream:
        dataset.set_loader_cfg(num_workers=config.workers)
    sampler: DistributedSampler[Any] | None = None
    if world > 1 and not stream:
        if shuffle:
            sampler = DistributedSampler(dataset, world, rank, seed=config.seed, drop_last=True)
        else:
            dataset = Subset(dataset, range(rank, len(dataset), world))
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        sampler=sampler,
        shuffle=shuffle and sampler is None and not stream,
        drop_last=shuffle,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
