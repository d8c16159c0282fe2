"""Training: config, model and data go in; weights, logs and the state to resume come out."""

import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import Logger
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from vankit.data.images import MAX_PIXELS
from vankit.data.own import Data, name_of
from vankit.data.reading import STRICT, Reading
from vankit.errors import NotFiniteError, UserError, WriteError
from vankit.files import check_folder, clear_partials, to_json, write_text, writing
from vankit.locks import held, in_place, making
from vankit.models.description import Weights
from vankit.models.van import VARIANTS, check_van
from vankit.models.weights import file_in, sizes_of
from vankit.training.classify import setup_classify
from vankit.training.dense import setup_dense
from vankit.training.draws import SeedSteps
from vankit.training.finite import ADVICE, KeepFinite
from vankit.training.interruption import StopOnSignal, Stopped
from vankit.training.keep import KeepWeights
from vankit.training.loaders import Processes, Setup, start_at
from vankit.training.loggers import check_logger, further_logger
from vankit.training.logs import Log, LogEpochLoss, LogRate
from vankit.training.optimizers import check_optimizer
from vankit.training.patience import StopEarly
from vankit.training.pictures import Pictures
from vankit.training.progress import Progress, open_view
from vankit.training.quiet import quiet_lightning
from vankit.training.recipes import DEFAULT_HEADS, Config, DenseConfig, TrainConfig, default_recipe, recipe
from vankit.training.report import NAME, KeepFindings, write_run_report
from vankit.training.resume import Begun, check_new, read_run, read_unstarted, start_over
from vankit.training.state import PREVIOUS, STATE, StateFile, place_of


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
        resume: continue the run in `out` where its state is: within an epoch if a signal has stopped it, else after its
            last trained epoch, which is validated first if it was not; from the beginning if it ended before there was
            a state. A finished run is left as it is.
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

    SIGTERM and SIGINT stop a run at its next update, with its state written, in the main thread. The handlers of these
    signals are put back.

    Returns:
        Best figure and the files.

    Raises:
        KeyboardInterrupt: it was stopped by SIGINT.
        SystemExit: it was stopped by SIGTERM; the status is 143.
        FileNotFoundError: data, checkpoint, or with `resume` the run is missing.
        ValueError: the data is not a labelled image set, the train and val classes differ, task, head and config do not
            go together, `out` already holds a run, another process is writing to it, or what is to be resumed is
            damaged or another run.
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
    processes = Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    with nullcontext() if processes.rank else _only_run(out):
        if not resume:
            check_new(out)
        before = read_unstarted(out) if resume else None
        if before is not None:
            config = dataclasses.replace(config, pretrained=bool(before.get("pretrained")))
            checkpoint, weights = checkpoint or before.get("checkpoint"), weights or before.get("weights")
        begun = read_run(out) if resume and before is None else None
        seed_everything(config.seed, verbose=False)
        setup = _set_up(data, model, config, processes, checkpoint, task, head, reading, weights, begun)
        record = _record(setup, data, model, config, reading, checkpoint, weights)
        if before is not None:
            start_over(out, before, record, setup.description, checkpoint, say=processes.rank == 0)
        if begun is not None:
            _check_same_run(begun, setup, record, checkpoint, processes)
            begun.restore_weights(write=processes.rank == 0)
            if (result := _finished(begun, config, len(setup.train_loader))) is not None:
                return result
            record = begun.continued(record, say=processes.rank == 0)
        return _fit(setup, config, out, record, begun)


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder."""
    check_folder(out)
    with making(out), held(out):
        yield


def _set_up(
    data: Data,
    model: str,
    config: Config,
    processes: Processes,
    checkpoint: str | Path | None,
    task: str,
    head: str | None,
    reading: Reading,
    weights: Weights | None,
    begun: Begun | None,
) -> Setup:
    record: Mapping[str, Any] = {}
    if begun is not None:  # it has its weights
        config, checkpoint, record = dataclasses.replace(config, pretrained=False), None, begun.record
    if isinstance(config, DenseConfig):
        known = record.get("classes", ())
        return setup_dense(data, task, head or "", model, config, processes, checkpoint, reading, weights, known)
    assert isinstance(config, TrainConfig)
    return setup_classify(data, model, config, processes, checkpoint, weights, record.get("sizes"), reading)


def _record(
    setup: Setup,
    data: Data,
    model: str,
    config: Config,
    reading: Reading,
    checkpoint: str | Path | None,
    weights: Weights | None,
) -> dict[str, Any]:
    """All settings of a run, for config.json."""
    record = {"data": name_of(data), **setup.description.to_metadata(), "model": model}
    record |= {**dataclasses.asdict(config), **dataclasses.asdict(reading)}
    record |= {"checkpoint": None if checkpoint is None else str(checkpoint), "weights": weights}
    if setup.description.model is None:  # no name says what it is
        record["sizes"] = sizes_of(cast(nn.Module, setup.task.model).state_dict())
    return record


def _check_same_run(
    begun: Begun, setup: Setup, record: Mapping[str, Any], checkpoint: str | Path | None, processes: Processes
) -> None:
    images = len(setup.train_loader.dataset)  # type: ignore[arg-type]
    begun.check({**record, "images": images, "processes": processes.world}, setup.description, checkpoint)
    begun.check_fit(setup.task)


def _finished(begun: Begun, config: Config, batches: int) -> TrainResult | None:
    """What a run left that has nothing more to do; None if it has."""
    out, epochs, longest = begun.out, place_of(begun.state)[0], _length(config, batches)["max_epochs"]
    waited = begun.state["callbacks"].get("StopEarly", {}).get("waited", 0)
    stopped = 0 < config.patience <= waited
    written = (out / NAME).is_file()  # at the very end
    kept = begun.state["callbacks"]["KeepWeights"]
    if stopped or epochs >= longest:
        begun.check_best()
    if epochs <= longest and not (written and (stopped or epochs == longest)):
        return None
    if int(os.environ.get("RANK", 0)) == 0:
        further = "--patience" if epochs < longest else "--epochs"
        print(
            f"nothing to do: the run in {out} is finished, after {epochs} epochs; more {further} continue it",
            flush=True,
        )
    return TrainResult(kept["best"], kept["measure"], out / "best.safetensors", out / "last.safetensors", 0.0)


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


def _fit(setup: Setup, config: Config, out: Path, record: dict[str, Any], begun: Begun | None) -> TrainResult:
    log = Log(out, events=config.logger == "tensorboard")
    keep = KeepWeights(out, setup.description, log, resumed=begun is not None)
    findings, stop = KeepFindings(setup.description, keep), StopOnSignal(keep)
    start = time.perf_counter()
    if begun is not None:
        start_at(setup.train_loader, *place_of(begun.state))
    with _answers(keep), stop.listening(), quiet_lightning(), further_logger(config.logger, out, record) as further:
        plugin = StateFile(begun.state, begun.whole) if begun else StateFile()
        trainer = _trainer(config, keep, findings, stop, [log, *further], plugin, len(setup.train_loader))
        if trainer.is_global_zero:
            _prepare(out, record, log, begun)
        path = out / STATE if begun else None
        trainer.fit(setup.task, setup.train_loader, setup.val_loader, ckpt_path=path, weights_only=True)
    if keep.best < 0:
        raise UserError(
            f"{record['data']} is too small for a whole epoch: use more images or shards, fewer --workers than "
            f"{config.workers}, or let a validation fall within the run (--validate-every)"
        )
    seconds = time.perf_counter() - start
    if trainer.is_global_zero:
        if not in_place(out):
            raise WriteError(keep.what_to_do(WriteError()))
        (out / PREVIOUS).unlink(missing_ok=True)
        write_run_report(out, record, findings, seconds)
    return TrainResult(keep.best, keep.measure, out / "best.safetensors", out / "last.safetensors", seconds)


@contextmanager
def _answers(keep: KeepWeights) -> Iterator[None]:
    """What ends a run, as its caller is told."""
    try:
        yield
    except Stopped as stopped:
        if stopped.signum == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stopped.signum) from None
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning makes this of it
            raise KeyboardInterrupt from None
        raise
    except WriteError as error:
        raise WriteError(keep.what_to_do(error)) from None
    except NotFiniteError:
        best = keep.out / "best.safetensors"
        kept = f"; the best weights so far are in {best}" if best.is_file() else ""
        raise UserError(
            f"in the validation after epoch {keep.saved[0] + 1} the network's output is NaN or infinite: the run has "
            f"diverged{kept}; start another (--output), and {ADVICE}"
        ) from None


def _prepare(out: Path, record: dict[str, Any], log: Log, begun: Begun | None) -> None:
    """Clear up after a run that was killed, have the log go on, or begin, and write down the settings."""
    clear_partials(out)
    clear_partials(out / "tensorboard")
    rows = begun.state["callbacks"]["KeepWeights"].get("rows") if begun else None
    if rows is not None:
        log.go_on(rows)
    elif log.table.exists():  # of an early version, or of a run that wrote no state
        with writing(log.table):
            log.table.rename(out / f"metrics-{len(list(out.glob('metrics-*.csv'))) + 1}.csv")
    (out / NAME).unlink(missing_ok=True)  # the report is of the end of a run
    write_text(out / "config.json", to_json(record) + "\n")


def _trainer(
    config: Config,
    keep: KeepWeights,
    findings: KeepFindings,
    stop: StopOnSignal,
    loggers: list[Logger],
    plugin: StateFile,
    batches: int,
) -> Trainer:
    """One Lightning Trainer: on the processes torchrun started if any, else on one accelerator or the CPU."""
    callbacks: list[Callback] = [SeedSteps(config.seed)]
    if config.ema_decay:
        callbacks.append(WeightAveraging(avg_fn=_moving_average(config.ema_decay)))
    if isinstance(config, TrainConfig):
        callbacks.append(LogEpochLoss())
    # in this order: they see a state to save once the averaged weights are in it, and write it once it is checked and
    # what it is of is logged
    callbacks += [KeepFinite(config.nan_tolerance, keep.last_good), keep, findings, LogRate()]
    if config.patience:
        callbacks.append(StopEarly(config.patience, keep))
    callbacks.append(stop)
    if int(os.environ.get("RANK", 0)) == 0:
        callbacks += [Pictures(keep.description), Progress(open_view())]
    dense = config if isinstance(config, DenseConfig) else None
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    world = int(os.environ.get("WORLD_SIZE", 1))
    trainer = Trainer(
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
        logger=loggers,
        plugins=[plugin],
        callbacks=callbacks,
        enable_checkpointing=False,  # `keep` does it
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,  # until `LogRate` has seen the first update
    )
    # Lightning's handlers wait for other processes, end with status 0, and on Slurm requeue the job: `stop` does it
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


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
