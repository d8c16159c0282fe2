"""Training: config, model and data go in; weights, logs and the state to resume come out."""

import dataclasses
import json
import math
import os
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import Logger
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from torch.utils.data import DistributedSampler

from vankit.data.images import MAX_PIXELS
from vankit.data.own import Data, name_of
from vankit.data.reading import STRICT, Reading
from vankit.errors import MissingFileError, NotFiniteError, UserError, WriteError
from vankit.files import read_json, to_json, write_text, writing
from vankit.models.description import Description, Weights
from vankit.models.van import VARIANTS, check_van
from vankit.models.weights import file_in, read_metadata, sizes_of
from vankit.training.balance import BalancedSampler
from vankit.training.classify import setup_classify
from vankit.training.dense import setup_dense
from vankit.training.finite import ADVICE, KeepFinite
from vankit.training.keep import KeepWeights
from vankit.training.loaders import Processes, Setup
from vankit.training.loggers import check_logger, further_logger
from vankit.training.logs import Log, LogRate
from vankit.training.optimizers import check_optimizer
from vankit.training.patience import StopEarly
from vankit.training.pictures import Pictures
from vankit.training.progress import Progress, open_view
from vankit.training.quiet import quiet_lightning
from vankit.training.recipes import DEFAULT_HEADS, Config, DenseConfig, TrainConfig, default_recipe, recipe
from vankit.training.report import KeepFindings, write_run_report
from vankit.training.state import WholeState

# which say what the network is, and its outputs mean
_OF_THE_NETWORK = ("model", "classes", "task", "head", "queries", "lka", "map_labels", "ignore_label")
# which decide the optimiser and its groups of parameters; a resumed one keeps those it has
_OF_THE_OPTIMISER = ("optimizer", "weight_decay", "layer_decay", "decay_norms")


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left.

    Attributes:
        score: best validation figure, 0 to 1.
        measure: what it is: top-1, mAP (multi-label), box AP, mIoU or PQ.
        best, last: vankit checkpoints of the best and the last epoch.
        seconds: wall time of the training loop, validation included.
    """

    score: float
    measure: str
    best: Path
    last: Path
    seconds: float


def train(
    data: Data,
    model: str = "van_b0",
    config: Config | None = None,
    out: str | Path | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    *,
    task: str = "classify",
    head: str | None = None,
    skip_bad: bool = False,
    tolerant: bool = False,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
    weights: Weights | None = None,
) -> TrainResult:
    """Train a classifier, a detector or a segmenter.

    Under torchrun every process calls this with the same arguments; one process alone trains alone.

    Args:
        data: for classify see `vankit.data.folders.open_dataset`, else `vankit.data.scenes.open_scenes`. Without a val
            split, a part of the training images is held out to validate (`val_share` of the config), with a warning.
            Or two datasets of your own, (train_set, val_set), see below.
        model: such as van_b0, or van_b0.cifar10 to start from those weights.
        config: settings: a `TrainConfig` for classify, else a `DenseConfig`; `default_recipe`'s if None.
        out: folder for best.safetensors, last.safetensors, resume.ckpt, config.json, metrics.csv, report.html and what
            the logger leaves, tensorboard/; `runs/MODEL`, or `runs/MODEL-HEAD-TASK`, if None.
        checkpoint: weights of any public format to start from, rather than the model's public ones; for the other tasks
            also of a whole network.
        resume: continue the run in `out` after its last trained epoch, which is validated first if it was not.
        task: classify, detect, segment or panoptic.
        head: see `vankit.heads.build.HEADS`; mask_rcnn, semantic_fpn or mask2former if None.
        skip_bad, tolerant, allow_outside: what to do about images and annotations that cannot be used as they are, see
            `vankit.data.reading.Reading`; the last one only for detect and panoptic.
        max_pixels: of the largest image that is decoded.
        weights: of `checkpoint`: raw, or ema for their moving average; None takes the average where there are both.

    Your own datasets are map-style, with `classes` (names by label; panoptic also `things`, whether each is countable).
    Items are (image, label) or (image, target), not augmented. Images are PIL's or uint8 (3, H, W) in RGB order; for
    classify, floats (3, img_size, img_size) are used as they are. Targets are dicts of tensors, labels from 0. detect:
    `boxes` (N, 4) x1, y1, x2, y2 in pixels, `labels` (N,), `masks` (N, H, W) for heads with masks, optional `iscrowd`,
    `area` (N,). segment: `semantic` (H, W), 255 unlabelled. panoptic: `labels`, `masks` apart, optional `iscrowd`.

    Returns:
        Best figure and the files.

    Raises:
        FileNotFoundError: data, checkpoint, or with `resume` the run is missing.
        ValueError: the data is not a labelled image set, the train and val classes differ, task, head and config do not
            go together, or `out` already holds a run.
    """
    head = head or DEFAULT_HEADS.get(task)
    config = config or recipe(default_recipe(data, task, head), model, task, head)
    reading = Reading(skip_bad, tolerant, allow_outside, max_pixels)
    _check_task(task, head, config, reading)
    check_van(model, config.lka)
    check_optimizer(config.optimizer)
    check_logger(config.logger)
    if reading != STRICT and not isinstance(data, str | os.PathLike):
        raise UserError(
            "skip_bad, tolerant, allow_outside and max_pixels are only for folders: leave them out with your own sets"
        )
    if weights is not None and checkpoint is None:
        raise UserError("weights (--weights) chooses among those of a checkpoint to start from: pass one")
    if checkpoint is not None and not resume:
        file_in(Path(checkpoint))  # before the data is read
    if config.pretrained and checkpoint is None and not resume:
        _check_public_weights(model)
    out = Path(out) if out is not None else Path("runs") / "-".join(filter(None, (model, head, head and task)))
    state = _resume_state(out, resume)
    processes = Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if processes.rank == 0:
        _check_folder(out)
    seed_everything(config.seed, verbose=False)
    start_config = dataclasses.replace(config, pretrained=config.pretrained and not resume)
    start = None if resume else checkpoint
    begun = read_json(out / "config.json") if resume and (out / "config.json").is_file() else {}
    if isinstance(start_config, DenseConfig):
        known = begun.get("classes", ())
        setup = setup_dense(data, task, head or "", model, start_config, processes, start, reading, weights, known)
    else:
        assert isinstance(start_config, TrainConfig)
        setup = setup_classify(data, model, start_config, processes, start, weights, begun.get("sizes"), reading)
    start_epoch = _check_same_run(out, model, setup.description, config) if resume else 0
    if isinstance(sampler := setup.train_loader.sampler, BalancedSampler | DistributedSampler):
        sampler.set_epoch(start_epoch)  # Lightning does so once workers have begun to load
    # every process and every resumption draws its own order, augmentation and drop path
    seed_everything(config.seed + processes.rank + processes.world * start_epoch, workers=True, verbose=False)
    record = {"data": name_of(data), **setup.description.to_metadata(), "model": model, **dataclasses.asdict(config)}
    if begun.get("logger") == config.logger and "logger_run" in begun:
        record["logger_run"] = begun["logger_run"]
    if setup.description.model is None:  # no name says what it is
        record["sizes"] = sizes_of(cast(nn.Module, setup.task.model).state_dict())
    return _fit(setup, config, out, record, state)


def _check_task(task: str, head: str | None, config: Config, reading: Reading) -> None:
    if task == "classify" and (head is not None or reading.allow_outside):
        raise UserError("a classifier has no --head and no --allow-outside: pass --task detect, segment or panoptic")
    if task == "segment" and reading.allow_outside:
        raise UserError(
            "allow_outside is only for tasks detect and panoptic, whose files name the images: leave it out"
        )
    wanted = TrainConfig if task == "classify" else DenseConfig
    if not isinstance(config, wanted):
        raise UserError(f"the config is a {type(config).__name__}, expected a {wanted.__name__} for {task}")


def _check_public_weights(model: str) -> None:
    found = get_pretrained_cfg(model) if model in VARIANTS else None  # other names are `create_model`'s to judge
    if found is not None and not found.has_weights:
        raise UserError(
            f"{model} has no public weights to start from: pass a checkpoint (--checkpoint FILE), or train it from "
            "scratch (--no-pretrained, or the recipes in1k and short: --recipe in1k)"
        )


def _fit(setup: Setup, config: Config, out: Path, record: dict[str, Any], state: Path | None) -> TrainResult:
    keep = KeepWeights(out, setup.description, resumed=state is not None)
    findings = KeepFindings(setup.description, keep)
    start = time.perf_counter()
    with quiet_lightning(), further_logger(config.logger, out, record) as further:
        trainer = _trainer(config, out, keep, findings, further, len(setup.train_loader))
        if trainer.is_global_zero:
            _prepare(out, record)
        try:
            trainer.fit(setup.task, setup.train_loader, setup.val_loader, ckpt_path=state, weights_only=True)
        except WriteError as error:
            raise WriteError(keep.what_to_do(error)) from None
        except NotFiniteError:
            best = out / "best.safetensors"
            kept = f"; the best weights so far are in {best}" if best.is_file() else ""
            raise UserError(
                f"in the validation after epoch {trainer.current_epoch + 1} the network's output is NaN or infinite: "
                f"the run has diverged{kept}; start another (--output), and {ADVICE}"
            ) from None
    if keep.best < 0:
        raise UserError(
            f"{record['data']} is too small for a whole epoch: use more images or shards, fewer --workers than "
            f"{config.workers}, or let a validation fall within the run (--validate-every)"
        )
    seconds = time.perf_counter() - start
    if trainer.is_global_zero:
        write_run_report(out, record, findings, seconds)
    return TrainResult(keep.best, keep.measure, out / "best.safetensors", out / "last.safetensors", seconds)


def _check_folder(out: Path) -> None:
    """Before the data is read, which may take long."""
    present = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not present.is_dir() or not os.access(present, os.W_OK | os.X_OK):
        raise WriteError(f"{present} is not a folder that can be written to: choose another one (--output)")


def _resume_state(out: Path, resume: bool) -> Path | None:
    state = out / "resume.ckpt"
    if resume and not state.is_file():
        raise MissingFileError(f"nothing to resume in {out}: expected {state}; leave out --resume to start a run")
    if not resume and state.is_file():
        raise UserError(f"{out} already holds a run: choose another folder (--output), or continue it with --resume")
    if resume and not zipfile.is_zipfile(state):
        raise UserError(f"{state} is damaged: choose another folder (--output) to start anew")
    return state if resume else None


def _check_same_run(out: Path, model: str, description: Description, config: Config) -> int:
    """Finished epochs of the run in `out`, which must be of this model, these classes and this head."""
    # which early runs do not say
    before: dict[str, Any] = {"lka": {}, "task": "classify", "optimizer": "adamw", "map_labels": []}
    before |= read_json(out / "config.json")
    now = {"held_out": None, **json.loads(json.dumps({**description.to_metadata(), "model": model}))}
    for name, value in now.items():
        if name in _OF_THE_NETWORK and before.get(name) != value:
            same = f"pass the same settings (--{name.replace('_', '-')}), or " if name in _OF_THE_NETWORK[-3:] else ""
            raise UserError(
                f"{out} holds a run with {name} {before.get(name)}, not {value}: {same}choose another folder (--output)"
            )
    if bool(before.get("thresholds")) != description.multi_label:
        was = "not " * description.multi_label
        raise UserError(f"{out} holds a run on data that is {was}multi-label: choose another folder (--output)")
    for name in _OF_THE_OPTIMISER:
        value = getattr(config, name, None)
        if before.get(name, value) != value:
            raise UserError(
                f"the run in {out} was begun with --{name.replace('_', '-')} {before[name]}, and its optimiser keeps "
                "that: pass the same settings, or choose another folder (--output)"
            )
    _check_division(out, before.get("held_out"), now["held_out"])
    last = out / "last.safetensors"
    epoch = read_metadata(last).get("epoch")
    if epoch is None:
        raise UserError(f"{last} is missing or damaged: choose another folder (--output) to start anew")
    return int(epoch)


def _check_division(out: Path, before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    """Were other images held out, some that the run was trained on would be validated."""
    if before == now:
        return
    if before is None or now is None:
        kinds = ("a val split", "images held out of train")
        was, is_now = (kinds[division is not None] for division in (before, now))
        change, same = f"validated with {was}, and this data has {is_now}", "use the same data"
    elif before["total"] != now["total"]:
        change, same = f"begun with {before['total']} images, and there are {now['total']} now", "use the same data"
    else:
        change = f"begun with --val-share {before['share']} and --seed {before['seed']}"
        same = "pass the same settings"
    raise UserError(f"the run in {out} was {change}: {same}, or choose another folder (--output)")


def _prepare(out: Path, record: dict[str, Any]) -> None:
    """Write down the settings; keep the log of a run that is resumed, as this one begins another."""
    write_text(out / "config.json", to_json(record) + "\n")
    if (log := out / "metrics.csv").exists():
        with writing(log):
            log.rename(out / f"metrics-{len(list(out.glob('metrics-*.csv'))) + 1}.csv")


def _trainer(
    config: Config, out: Path, keep: KeepWeights, findings: KeepFindings, further: list[Logger], batches: int
) -> Trainer:
    """One Lightning Trainer: on the processes torchrun started if any, else on one accelerator or the CPU."""
    callbacks: list[Callback] = []
    if config.ema_decay:
        callbacks.append(WeightAveraging(avg_fn=_moving_average(config.ema_decay)))
    # in this order: they see a state to save once the averaged weights are in it, and write it once it is checked
    callbacks += [KeepFinite(config.nan_tolerance, keep.last_good), keep, findings, LogRate()]
    if config.patience:
        callbacks.append(StopEarly(config.patience, keep))
    if int(os.environ.get("RANK", 0)) == 0:
        callbacks += [Pictures(keep.description), Progress(open_view())]
    dense = config if isinstance(config, DenseConfig) else None
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    world = int(os.environ.get("WORLD_SIZE", 1))
    return Trainer(
        **_length(config, batches),
        devices=local,
        num_nodes=world // local,
        # a batch without objects leaves some heads' parameters without a gradient
        strategy="auto" if world == 1 else "ddp_find_unused_parameters_true" if dense else "ddp",
        # PyTorch has it on GPUs only
        sync_batchnorm=dense is not None and dense.batch_norm == "sync" and world > 1 and torch.cuda.is_available(),
        precision=config.precision,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.clip_grad or None,
        logger=[Log(out, events=config.logger == "tensorboard"), *further],
        plugins=[WholeState()],
        callbacks=callbacks,
        enable_checkpointing=False,  # `keep` does it
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,  # until `LogRate` has seen the first update
    )


def _length(config: Config, batches: int) -> dict[str, Any]:
    if isinstance(config, TrainConfig):
        return {"max_epochs": config.epochs + config.cooldown_epochs}
    assert isinstance(config, DenseConfig)
    epochs = config.epochs or math.ceil(config.iterations * config.accumulate / batches)
    # the last epoch is always validated
    epochs = math.ceil(epochs / config.validate_every) * config.validate_every
    return {"max_epochs": epochs, "check_val_every_n_epoch": config.validate_every}


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Early on the average forgets faster, or a short run would keep its random start."""

    def average(old: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
        n = int(updates)
        return old + (new - old) * (1 - min(decay, (1 + n) / (10 + n)))

    return average
