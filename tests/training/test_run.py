"""Training runs on tiny sets: files left, resuming, moving averages, and two processes against one."""

import ast
import csv
import json
import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from together import train_together
from torch import Tensor
from torch.utils.data import Dataset

import vankit
from vankit.data.augment import as_tensors
from vankit.data.images import ImageError
from vankit.data.scenes import ShapeScenes
from vankit.data.shapes import CLASSES, render_scene
from vankit.errors import MissingFileError, UserError, WriteError
from vankit.models.van import VARIANTS, create_model
from vankit.models.weights import from_normalisation, read_checkpoint, read_metadata
from vankit.tasks.multilabel import MultiLabelMeasure
from vankit.training.classify import Classifier, setup_classify
from vankit.training.keep import KeepWeights
from vankit.training.loaders import Processes
from vankit.training.recipes import TrainConfig, short, short_semantic
from vankit.training.run import TrainResult, train

pytestmark = pytest.mark.usefixtures("blank_run_reports")

TINY = replace(
    short("van_b0"), epochs=2, warmup_epochs=0, batch_size=4, lr_batch=4, lr=1e-3, img_size=32, workers=0, smoothing=0.0
)


@pytest.fixture(scope="module", autouse=True)
def shallow() -> Iterator[None]:
    """A VAN-B0 of a block per stage: how a run goes does not depend on how many there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS["van_b0"], "depths", (1, 1, 1, 1))
        yield


@pytest.fixture
def as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """For weights of its own, and those of other processes."""
    monkeypatch.setitem(VARIANTS["van_b0"], "depths", (3, 3, 5, 2))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen dark and bright squares to train on, six to measure."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name, level in (("bright", 200), ("dark", 50)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + rng.integers(-30, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(data, "van_b0", TINY, tmp_path_factory.mktemp("run"))


def metrics(out: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="") as file:
        return list(csv.DictReader(file))


def events(out: Path) -> EventAccumulator:
    read = EventAccumulator(str(out / "tensorboard"))
    read.Reload()
    return read


def measured(data: Path, checkpoint: Path) -> float:
    return vankit.validate(data, checkpoint=checkpoint, workers=0, engine="torch").top1


def test_a_run_leaves_weights_state_and_logs(run: TrainResult, data: Path) -> None:
    out = run.best.parent
    assert {p.name for p in out.iterdir()} == {
        "best.safetensors", "last.safetensors", "resume.ckpt", "config.json", "metrics.csv", "tensorboard",
        "report.html",
    }  # fmt: skip
    assert any((out / "tensorboard").glob("events.out.tfevents.*"))
    checkpoint = read_checkpoint(run.best)
    assert checkpoint.metadata["classes"] == ["bright", "dark"]
    assert checkpoint.metadata["model"] == "van_b0"
    assert checkpoint.metadata["preprocessing"]["input_size"] == [3, 32, 32]
    assert checkpoint.metadata["measures"]["top-1"] == pytest.approx(run.score, abs=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert {k: config[k] for k in ("model", "epochs", "data")} == {"model": "van_b0", "epochs": 2, "data": str(data)}
    measured = [float(row["val_top1"]) for row in metrics(out) if row["val_top1"]]
    assert len(measured) == 2
    assert max(measured) == pytest.approx(run.score, abs=1e-6)


def test_the_first_step_is_logged_with_its_learning_rate(run: TrainResult) -> None:
    out = run.best.parent
    first, *others = metrics(out)
    assert (first["epoch"], first["step"]) == ("0", "0")
    assert float(first["train_loss_step"]) > 0 and float(first["lr"]) == pytest.approx(TINY.lr)
    assert [row["step"] for row in others] == ["3", "3", "7", "7"]  # of two epochs: validation, then training
    assert "val_top5" not in first  # two classes
    found = events(out)
    assert [(e.step, e.value) for e in found.Scalars("lr")] == [(0, pytest.approx(TINY.lr))]
    assert [e.step for e in found.Scalars("train_loss_epoch")] == [3, 7]
    assert [e.step for e in found.Images("validation")] == [3, 7]


def test_a_run_says_nothing_of_lightning(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    level = logging.getLogger("lightning.pytorch").level
    train(data, "van_b0", replace(TINY, epochs=1), tmp_path)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("lightning")] == []
    assert logging.getLogger("lightning.pytorch").level == level


def test_the_kept_weights_measure_as_reported(run: TrainResult, data: Path) -> None:
    assert measured(data, run.best) == pytest.approx(run.score, abs=1e-6)


def test_a_run_is_not_overwritten(run: TrainResult, data: Path) -> None:
    with pytest.raises(UserError, match="already holds a run: choose another folder"):
        train(data, "van_b0", TINY, run.best.parent)


def test_nothing_to_resume(data: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nothing to resume in"):
        train(data, "van_b0", TINY, tmp_path, resume=True)


def test_resuming_continues_the_run(run: TrainResult, data: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(self: object, trainer: object, module: object) -> None:
        if trainer.current_epoch == 1:  # type: ignore[attr-defined]
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepWeights, "on_train_epoch_start", stop)
        with pytest.raises(Stopped):
            train(data, "van_b0", TINY, tmp_path)
    assert read_checkpoint(tmp_path / "last.safetensors").metadata["epoch"] == 1
    resumed = train(data, "van_b0", TINY, tmp_path, resume=True)
    last = read_checkpoint(resumed.last)
    assert last.metadata["epoch"] == 2
    steps = [int(row["step"]) for row in metrics(tmp_path) if row["val_top1"]]
    assert steps == [3, 7]  # 4 steps an epoch, counted on
    assert last.state_dict["stage1.patch_embed.norm.num_batches_tracked"] == 8
    unbroken = read_checkpoint(run.last)
    assert set(last.state_dict) == set(unbroken.state_dict)


def test_a_longer_schedule_holds_from_the_resumption_on(data: Path, tmp_path: Path) -> None:
    train(data, "van_b0", replace(TINY, epochs=1), tmp_path)
    seen: list[float] = []

    def watch(self: object, trainer: Trainer, *_: object) -> None:
        seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepWeights, "on_train_batch_start", watch, raising=False)
        train(data, "van_b0", replace(TINY, epochs=3), tmp_path, resume=True)
    cosine = [TINY.min_lr + 0.5 * (1e-3 - TINY.min_lr) * (1 + math.cos(math.pi * t / 12)) for t in range(4, 12)]
    assert seen[1:] == pytest.approx(cosine[1:])  # the first step has the optimiser's stored rate


def test_another_run_is_not_resumed(run: TrainResult, data: Path) -> None:
    with pytest.raises(UserError, match="holds a run with model van_b0, not van_b1"):
        train(data, "van_b1", TINY, run.best.parent, resume=True)
    for name, value in (("weight_decay", 0.0), ("layer_decay", 0.5), ("optimizer", "sgd")):
        option = f"--{name.replace('_', '-')}"
        with pytest.raises(UserError, match=f"was begun with {option} .*that: pass the same settings"):
            train(data, "van_b0", replace(TINY, **{name: value}), run.best.parent, resume=True)


def test_a_run_that_says_nothing_of_its_optimizer_is_one_of_adamw(run: TrainResult, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run.best.parent, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for name in ("optimizer", "patience", "balance", "logger"):  # settings of later versions
        del config[name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="was begun with --optimizer adamw"):
        train(data, "van_b0", replace(TINY, optimizer="sgd"), tmp_path / "run", resume=True)
    assert train(data, "van_b0", TINY, tmp_path / "run", resume=True).score == run.score


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".safetensors", ".ckpt")}


def test_a_run_whose_loss_is_not_finite_stops_without_weights(data: Path, tmp_path: Path) -> None:
    says = r"the loss is not finite in epoch 1, step 2: lower the learning rate \(--lr\).*no weights have been written"
    with pytest.raises(UserError, match=says):
        train(data, "van_b0", replace(TINY, lr=1e12), tmp_path)
    assert files(tmp_path) == {}
    assert train(data, "van_b0", replace(TINY, epochs=1), tmp_path).score >= 0  # another attempt needs no other folder


def test_a_run_that_stops_leaves_its_last_good_weights(run: TrainResult, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run.best.parent, tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(UserError, match=r"not finite in epoch 3, .* those of epoch 2, .*run.last\.safetensors, from"):
        train(data, "van_b0", replace(TINY, lr=1e12, epochs=4), tmp_path / "run", resume=True)
    assert files(tmp_path / "run") == before


def test_a_disk_that_is_full_leaves_what_was_written_before(
    run: TrainResult, data: Path, files_up_to: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run.best.parent, out)
    before = files(out)
    says = r"cannot write .*resume\.ckpt: File too large; what was written before is whole: make room, .*--resume"
    with files_up_to(20_000_000), pytest.raises(WriteError, match=says):  # of the weights alone there is enough room
        train(data, "van_b0", replace(TINY, epochs=3), out, resume=True)
    assert files(out) == before and not list(out.glob(".*.partial"))
    train(data, "van_b0", replace(TINY, epochs=3), out, resume=True)
    assert read_metadata(out / "last.safetensors")["epoch"] == 3


def test_a_disk_with_room_for_the_weights_alone(
    data: Path, files_up_to: Callable[[int], AbstractContextManager[None]], tmp_path: Path
) -> None:
    says = r"cannot write .*resume\.ckpt: File too large; there is nothing to resume yet: make room, or choose another"
    with files_up_to(20_000_000), pytest.raises(WriteError, match=says):
        train(data, "van_b0", TINY, tmp_path)
    assert files(tmp_path) == {}  # weights without their state would disagree with the one before


@pytest.mark.parametrize(("step", "replaced"), [(1, True), (1, False), (3, True), (3, False), (8, False)])
def test_a_folder_that_is_removed_ends_the_run(step: int, replaced: bool, data: Path, tmp_path: Path) -> None:
    """Whether the log, the weights or the report are what is to be written next; nothing is written to another one."""

    def remove(self: KeepWeights, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == step:
            shutil.rmtree(self.out)
            if replaced:
                self.out.mkdir()
                (self.out / "other").touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepWeights, "on_train_batch_end", remove, raising=False)
        found = "another one by now" if replaced else "gone"
        with pytest.raises(WriteError, match=f"the run's folder .*run is {found}: start another run"):
            train(data, "van_b0", TINY, tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == ([tmp_path / "run", tmp_path / "run" / "other"] if replaced else [])


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_that_cannot_be_written_to(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file: pass a folder to write into|file/run: Not a directory"):
        train("no data", "van_b0", TINY, tmp_path / "file" / below)


@pytest.mark.parametrize("where", ["weights", "optimiser", "average"])
def test_what_is_not_finite_is_not_written(where: str, data: Path, tmp_path: Path) -> None:
    """Though every loss and gradient was."""
    after_first: dict[str, bytes] = {}

    def spoil(self: KeepWeights, trainer: Trainer, module: Any, *_: object) -> None:
        if trainer.global_step == 4 + 1:
            after_first.update(files(self.out))
        if trainer.global_step != 4 + 4:
            return
        if where == "optimiser":
            next(iter(trainer.optimizers[0].state.values()))["exp_avg_sq"].fill_(math.inf)
        elif where == "average":
            averaging = next(c for c in trainer.callbacks if isinstance(c, WeightAveraging))
            next(averaging._average_model.parameters()).data.fill_(math.nan)
        else:
            module.model.stage1.patch_embed.norm.running_var[0] = math.nan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepWeights, "on_train_batch_end", spoil, raising=False)
        says = r"the weights or the optimiser's state are not finite after epoch 2, step 8: .*of epoch 1, .*last\.saf"
        with pytest.raises(UserError, match=says):
            train(data, "van_b0", replace(TINY, ema_decay=0.5), tmp_path)
    names = {"best.safetensors", "last.safetensors", "resume.ckpt", "resume-previous.ckpt"}
    assert set(after_first) == names
    assert files(tmp_path) == after_first


@pytest.mark.parametrize("ema_decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_what_breaks_in_validation_loses_nothing(ema_decay: float, data: Path, tmp_path: Path) -> None:
    config = replace(TINY, ema_decay=ema_decay)
    shutil.copytree(data, tmp_path / "data")
    picture = next((tmp_path / "data" / "val" / "dark").iterdir())
    whole = picture.read_bytes()
    broken = {"epoch": 0}

    def break_picture(self: object, trainer: Trainer, *_: object) -> None:
        picture.write_bytes(whole[:200] if trainer.current_epoch == broken["epoch"] else whole)

    def attempt(resume: bool) -> TrainResult:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeepWeights, "on_train_batch_end", break_picture, raising=False)
            return train(tmp_path / "data", "van_b0", config, tmp_path / "run", resume=resume)

    seen = []
    for epoch in (0, 1):
        broken["epoch"] = epoch
        with pytest.raises(ImageError, match="truncated"):
            attempt(resume=epoch > 0)
        last = read_checkpoint(tmp_path / "run" / "last.safetensors")
        assert last.metadata["epoch"] == epoch + 1 and "measures" not in last.metadata
        assert all(torch.isfinite(tensor).all() for tensor in last.state_dict.values())
        state = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)
        assert state["global_step"] == 4 * (epoch + 1)
        kept = {f"model.{name}": tensor for name, tensor in last.state_dict.items()}
        torch.testing.assert_close(kept, dict(state["state_dict"]), rtol=0, atol=0)
        assert ("current_model_state" in state) == bool(ema_decay)
        picture.write_bytes(whole)
        seen.append(measured(data, tmp_path / "run" / "last.safetensors"))
    assert (tmp_path / "run" / "best.safetensors").exists()  # of the first epoch, validated on resuming

    result = train(tmp_path / "data", "van_b0", config, tmp_path / "run", resume=True)
    assert result.score == pytest.approx(max(seen), abs=1e-6)
    assert read_checkpoint(result.last).metadata["measures"]["top-1"] == pytest.approx(seen[1], abs=1e-5)
    names = [path.name for path in (tmp_path / "run").glob("metrics*.csv")]
    rows = [row for name in names for row in metrics(tmp_path / "run", name) if row.get("val_top1")]
    assert sorted((int(row["epoch"]), int(row["step"])) for row in rows) == [(0, 3), (1, 7)]


def test_a_resumed_run_that_only_has_to_validate_trains_no_more(data: Path, tmp_path: Path) -> None:
    config = replace(TINY, epochs=1)

    def fail(*_: object) -> None:
        raise KeyError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "validation_step", fail)
        with pytest.raises(KeyError):
            train(data, "van_b0", config, tmp_path)
    before = read_checkpoint(tmp_path / "last.safetensors")
    result = train(data, "van_b0", config, tmp_path, resume=True)
    after = read_checkpoint(result.last)
    torch.testing.assert_close(dict(after.state_dict), dict(before.state_dict), rtol=0, atol=0)
    assert after.metadata == {**before.metadata, "measures": after.metadata["measures"]}
    best = read_checkpoint(result.best)
    torch.testing.assert_close(dict(best.state_dict), dict(before.state_dict), rtol=0, atol=0)


def test_an_epoch_that_is_not_validated_is_kept(small_shapes: None, tmp_path: Path) -> None:
    config = replace(
        short_semantic("van_b0"), epochs=2, validate_every=2, short_sides=(32,), crop=32, batch_size=4, workers=0
    )
    seen: list[dict[str, Any]] = []

    def look(self: KeepWeights, *_: object) -> None:
        seen.append(read_metadata(self.out / "last.safetensors"))
        assert (self.out / "resume.ckpt").exists() == bool(seen[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeepWeights, "on_train_batch_start", look, raising=False)
        result = train("shapes", "van_b0", config, tmp_path / "run", task="segment")
    assert [metadata.get("epoch") for metadata in seen] == [None, None, 1, 1]
    assert "measures" not in seen[-1] and "mIoU" in read_metadata(result.last)["measures"]
    found = events(tmp_path / "run")
    assert [e.step for e in found.Scalars("train_segmentation")] == [0]
    assert [e.step for e in found.Images("validation")] == [e.step for e in found.Scalars("val_mIoU")] == [3]


def test_a_validation_that_is_not_finite_stops_the_run(data: Path, tmp_path: Path) -> None:
    def infinite(self: Classifier, images: Tensor) -> Tensor:
        logits = self.model(images)
        return logits if self.training else logits / 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "forward", infinite)
        says = r"in the validation after epoch 1 .* the run has diverged; start another \(--output\), and lower the"
        for resume in (False, True):
            with pytest.raises(UserError, match=says):
                train(data, "van_b0", TINY, tmp_path, resume=resume)
    assert set(files(tmp_path)) == {"last.safetensors", "resume.ckpt"}  # the state is not written again


def test_fewer_images_than_a_batch(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are 16 images to train on and 6 to validate: expected at least"):
        train(data, "van_b0", replace(TINY, batch_size=32), tmp_path)


def test_other_networks_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet18 is not a VAN"):
        train(data, "resnet18", TINY, tmp_path)


def test_a_run_that_says_nothing_of_its_attention_is_resumed(run: TrainResult, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run.best.parent, tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config.pop("lka") == {}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert train(data, "van_b0", TINY, tmp_path / "run", resume=True).score == run.score


def test_settings_of_the_attention_stay_with_the_weights(data: Path, tmp_path: Path) -> None:
    config = replace(TINY, epochs=1, lka={"form": "strips", "kernel_size": (1, 7)})
    result = train(data, "van_b0", config, tmp_path / "run")
    checkpoint = read_checkpoint(result.best)
    assert checkpoint.metadata["lka"] == {"form": "strips", "kernel_size": [1, 7]}
    predictor = vankit.Predictor(checkpoint=result.best, engine="torch")
    assert predictor.network.stage1.blocks[0].attn.lka.branches[1][0].kernel_size == (1, 7)
    torch.testing.assert_close(dict(predictor.network.state_dict()), checkpoint.state_dict)
    assert predictor(next(data.glob("val/dark/*"))).labels[0].name in ("bright", "dark")
    with pytest.raises(UserError, match="holds a run with lka .*pass the same settings"):
        train(data, "van_b0", replace(config, lka={}), tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="only vankit files have a place for lka="):
        vankit.convert(result.best, tmp_path / "official.pth.tar", "official")


def test_the_state_to_resume_is_data(run: TrainResult) -> None:
    state = torch.load(run.best.parent / "resume.ckpt", weights_only=True)
    assert state["epoch"] == 1


def test_moving_average_is_what_is_kept(data: Path, tmp_path: Path) -> None:
    result = train(data, "van_b0", replace(TINY, epochs=1, ema_decay=0.9), tmp_path)
    kept = read_checkpoint(result.last).state_dict
    state = torch.load(tmp_path / "resume.ckpt", weights_only=True)
    raw, averaged = state["current_model_state"], state["state_dict"]
    name = "stage1.blocks.0.attn.proj_1.weight"
    assert torch.equal(kept[name], averaged[f"model.{name}"])
    assert not torch.equal(kept[name], raw[f"model.{name}"])
    assert measured(data, result.last) == pytest.approx(result.score, abs=1e-6)


def test_start_from_a_checkpoint(run: TrainResult, data: Path, tmp_path: Path) -> None:
    frozen = replace(TINY, epochs=1, lr=0.0, min_lr=0.0, warmup_lr=0.0, weight_decay=0.0)
    result = train(data, "van_b0", frozen, tmp_path, checkpoint=run.last)
    before, after = read_checkpoint(run.last).state_dict, read_checkpoint(result.last).state_dict
    for name, tensor in before.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(tensor, after[name]), name


def test_a_checkpoint_is_taken_instead_of_public_weights(data: Path, tmp_path: Path) -> None:
    """No host is asked."""
    vankit.save_checkpoint(create_model("van_b4", num_classes=2), tmp_path / "b4.safetensors")
    config = replace(TINY, pretrained=True)
    setup = setup_classify(data, "van_b4", config, Processes(), tmp_path / "b4.safetensors")
    torch.testing.assert_close(
        dict(setup.task.model.state_dict()), dict(read_checkpoint(tmp_path / "b4.safetensors").state_dict)
    )


def test_a_starting_point_of_another_normalisation_is_adapted(data: Path, tmp_path: Path) -> None:
    model = create_model("van_b0", num_classes=2)
    given = {"preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}
    vankit.save_checkpoint(model, tmp_path / "x.safetensors", metadata=given)
    setup = setup_classify(data, "van_b0", TINY, Processes(), tmp_path / "x.safetensors")
    trained: Any = setup.task.model
    expected = from_normalisation(model.state_dict(), **given["preprocessing"])
    torch.testing.assert_close(dict(trained.state_dict()), expected)


def test_a_van_of_other_widths_is_trained_and_resumed(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = vankit.VAN(num_classes=2, embed_dims=(4, 6, 8, 10), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 1, 1))
    vankit.save_checkpoint(small, tmp_path / "small.safetensors")
    out = tmp_path / "run"
    train(data, "van_b0", replace(TINY, epochs=1), out, tmp_path / "small.safetensors")
    result = train(data, "van_b0", TINY, out, resume=True)
    trained = vankit.Predictor(checkpoint=result.last, engine="torch")
    assert trained.description.model is None and trained.network is not None
    shapes = {name: tensor.shape for name, tensor in trained.network.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in small.state_dict().items()}
    assert read_checkpoint(result.last).metadata["epoch"] == 2


def test_raw_and_averaged_weights_to_start_from(data: Path, tmp_path: Path) -> None:
    raw, average = (create_model("van_b0", num_classes=2).state_dict() for _ in range(2))
    torch.save({"state_dict": raw, "state_dict_ema": average}, tmp_path / "both.pth")
    for choice, expected in ((None, average), ("ema", average), ("raw", raw)):
        setup = setup_classify(data, "van_b0", TINY, Processes(), tmp_path / "both.pth", choice)
        torch.testing.assert_close(dict(setup.task.model.state_dict()), dict(expected))


def test_options_of_the_paper_run(data: Path, tmp_path: Path) -> None:
    config = replace(
        TrainConfig(), epochs=1, warmup_epochs=0, cooldown_epochs=0, img_size=32, batch_size=4, workers=0, accumulate=2,
        precision="bf16-mixed", grad_checkpointing=True, clip_grad=1.0, layer_decay=0.9,
    )  # fmt: skip
    result = train(data, "van_b0", config, tmp_path)
    assert 0 <= result.score <= 1
    assert torch.load(tmp_path / "resume.ckpt", weights_only=True)["global_step"] == 2  # 4 batches, two an update


def test_different_classes_are_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(data / "train")
    (tmp_path / "val" / "dusk").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "dusk" / "0.png")
    with pytest.raises(UserError, match=r"classes without images to train on \(1\): dusk; add some"):
        train(tmp_path, "van_b0", TINY, tmp_path / "run")


def copied(data: Path, root: Path) -> Path:
    shutil.copytree(data, root, dirs_exist_ok=True)
    return root


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_cannot_be_read_are_left_out_on_request(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    root = copied(data, tmp_path / "data")
    (root / split / "dark" / "1.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"dark/1\.png is not an image"):
        train(root, "van_b0", replace(TINY, epochs=1), tmp_path / "strict")
    result = train(root, "van_b0", replace(TINY, epochs=1), tmp_path / "lenient", skip_bad=True)
    assert result.best.is_file() and "left out" in caplog.text
    # 16 images in batches of 4 as before: another one takes the place of the one that is left out
    assert torch.load(tmp_path / "lenient" / "resume.ckpt", weights_only=True)["global_step"] == 4


def test_a_whole_batch_of_validation_may_be_left_out(data: Path, tmp_path: Path) -> None:
    root = copied(data, tmp_path / "data")
    for i in range(3):
        (root / "val" / "bright" / f"{i}.png").write_bytes(b"no")
    config = replace(TINY, epochs=1, batch_size=2)
    result = train(root, "van_b0", config, tmp_path / "run", skip_bad=True)
    assert result.score in (0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1)


def test_nothing_that_can_be_read_is_an_error(data: Path, tmp_path: Path) -> None:
    root = copied(data, tmp_path / "data")
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"no")
    with pytest.raises(UserError, match="none of the images to train on can be read"):
        train(root, "van_b0", replace(TINY, epochs=1), tmp_path / "run", skip_bad=True)


def test_jpegs_without_their_end_are_read_on_request(data: Path, tmp_path: Path) -> None:
    root = copied(data, tmp_path / "data")
    for path in (root / "train" / "dark").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
        path.with_suffix(".jpg").write_bytes(path.with_suffix(".jpg").read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        train(root, "van_b0", replace(TINY, epochs=1), tmp_path / "strict")
    assert train(root, "van_b0", replace(TINY, epochs=1), tmp_path / "run", tolerant=True).best.is_file()


def test_a_class_without_validation_images_is_a_warning(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = copied(data, tmp_path / "data")
    shutil.copytree(root / "train" / "dark", root / "train" / "black")
    (root / "val" / "black").mkdir()
    (root / "train" / ".ipynb_checkpoints").mkdir()
    result = train(root, "van_b0", replace(TINY, epochs=1), tmp_path / "run")
    assert read_metadata(result.best)["classes"] == ["black", "bright", "dark"]
    assert "val: class folders without images (1): black" in caplog.text
    assert "val: classes without images to validate (1): black" in caplog.text


def test_one_class_is_explained(data: Path, tmp_path: Path) -> None:
    inner = copied(data / "train", tmp_path / "data" / "photos")
    with pytest.raises(UserError, match=rf"one class, photos: .*; or is {inner} the folder of your classes\?"):
        train(tmp_path / "data", "van_b0", TINY, tmp_path / "run")
    shutil.rmtree(inner / "dark")
    with pytest.raises(UserError, match="one class, bright: expected at least two to tell apart$"):
        train(inner, "van_b0", TINY, tmp_path / "run")


def squares(root: Path, count: int) -> None:
    for name, level in (("bright", 200), ("dark", 50)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (level + i, level, level)).save(root / name / f"{i}.png")


@pytest.mark.parametrize("place", [pytest.param("train", marks=pytest.mark.slow), "."])
def test_what_is_held_out_is_what_is_validated(place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "data"
    squares(root / place, 10)
    config = replace(TINY, epochs=1, val_share=0.3, seed=5)
    result = train(root, "van_b0", config, tmp_path / "run")
    assert caplog.text.count("6 of its 20 training images are held out to validate (--val-share 0.3, --seed 5)") == 1
    metadata = read_checkpoint(result.best).metadata
    assert metadata["held_out"] == {"share": 0.3, "seed": 5, "plain": place == ".", "total": 20}
    report = vankit.validate(root, checkpoint=result.best, workers=0, engine="torch")
    assert report.count == 6
    assert report.top1 == pytest.approx(result.score, abs=1e-6)
    assert vankit.validate(root, checkpoint=result.best, workers=0, engine="torch", split="train").count == 14
    assert vankit.validate(root / place / ".", checkpoint=result.best, workers=0, engine="torch").count == (
        6 if place == "." else 20
    )
    for changes in ({"val_share": 0.4}, {"seed": 6}):
        with pytest.raises(UserError, match=r"was begun with --val-share 0\.3 and --seed 5: pass the same settings"):
            train(root, "van_b0", replace(config, **changes), tmp_path / "run", resume=True)

    (root / place / "dark" / "new.png").write_bytes((root / place / "dark" / "0.png").read_bytes())
    with pytest.raises(UserError, match="was begun with 20 images, and there are 21 now: use the same data"):
        train(root, "van_b0", config, tmp_path / "run", resume=True)
    caplog.clear()
    grown = vankit.validate(root, checkpoint=result.best, workers=0, engine="torch")
    if place == "train":
        assert grown.count == 6
        assert "had 20 images when the network was trained, and has 21" in caplog.text
    else:
        assert grown.count == 21
        assert "has 21 images, the set that the network was trained on had 20: taken for another" in caplog.text

    squares(root / "val", 2)
    if place == "train":
        assert vankit.validate(root, checkpoint=result.best, workers=0, engine="torch").count == 4
        with pytest.raises(UserError, match="validated with images held out of train, and this data has a val split"):
            train(root, "van_b0", config, tmp_path / "run", resume=True)


class Photographs(Dataset[Any]):
    """A folder's pictures as a dataset of the caller's own."""

    def __init__(self, folder: Path) -> None:
        self.classes = sorted(path.name for path in folder.iterdir())
        self.files = sorted(folder.glob("*/*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.files[index]
        return Image.open(path), self.classes.index(path.parent.name)


def test_datasets_of_ones_own_train_as_a_folder_does(run: TrainResult, data: Path, tmp_path: Path) -> None:
    pair = Photographs(data / "train"), Photographs(data / "val")
    result = train(pair, "van_b0", TINY, tmp_path / "run")
    assert result.score == run.score
    own, folder = read_checkpoint(result.last), read_checkpoint(run.last)
    torch.testing.assert_close(dict(own.state_dict), dict(folder.state_dict), rtol=0, atol=0)
    assert own.metadata == folder.metadata
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == "(Photographs, Photographs)"
    assert train(pair, "van_b0", TINY, tmp_path / "run", resume=True).score == run.score


def test_a_wrong_dataset_is_refused_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    good, bad = Photographs(data / "train"), Photographs(data / "val")
    with pytest.raises(UserError, match=r"the data is of type Photographs: expected a name, a folder, or two datasets"):
        train(good, "van_b0", TINY, tmp_path / "run")  # type: ignore[arg-type]
    bad.files, bad.classes = bad.files[:1], ["bright", "dusk"]
    with pytest.raises(UserError, match="train and val have different classes: dark, dusk"):
        train((good, bad), "van_b0", TINY, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Annotated(Dataset[Any]):
    """Generated scenes with the keys that a task needs, or without one of them from an item on."""

    def __init__(self, task: str, split: str, keys: tuple[str, ...], lacking: int = 1_000) -> None:
        scenes = ShapeScenes(task, split, 4, 64, transform=as_tensors)
        self.classes, self.things = scenes.classes, scenes.things
        self.scenes, self.keys, self.lacking = scenes, keys, lacking

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Any:
        image, target = self.scenes[index]
        keys = self.keys if index < self.lacking else self.keys[1:]
        return image.as_subclass(Tensor), {key: target[key].as_subclass(Tensor) for key in keys}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "head", "keys"),
    [
        ("detect", "retinanet", ("boxes", "labels")),
        ("segment", "semantic_fpn", ("semantic",)),
        ("panoptic", "mask2former", ("labels", "masks")),
    ],
)
def test_scenes_of_ones_own(task: str, head: str, keys: tuple[str, ...], small_shapes: None, tmp_path: Path) -> None:
    """Read by two processes, stopped and resumed; then an item that lacks a key, read by a process."""
    config = replace(
        vankit.recipe("short", "van_b0", task), epochs=1, short_sides=(64,), long_side=96, batch_size=2, queries=10,
        crop=64 if task == "segment" else 0, workers=2,
    )  # fmt: skip
    pair = Annotated(task, "train", keys), Annotated(task, "val", keys)
    for epochs in (1, 2):
        result = train(
            pair, "van_b0", replace(config, epochs=epochs), tmp_path, resume=epochs == 2, task=task, head=head
        )
    metadata = read_metadata(result.last)
    assert metadata["epoch"] == 2 and metadata["classes"] == pair[0].classes and metadata["measures"]
    assert vankit.validate("shapes", checkpoint=result.last, workers=0, engine="torch").measures
    lacking = Annotated(task, "train", keys, lacking=3), pair[1]
    says = rf"^the training set \(Annotated\), item 3: the target has no {keys[0]}: expected {', '.join(keys)}, it has "
    with pytest.raises(UserError, match=says):
        train(lacking, "van_b0", config, tmp_path / "lacking", task=task, head=head)


def test_nothing_to_hold_out(tmp_path: Path) -> None:
    squares(tmp_path / "train", 1)
    with pytest.raises(UserError, match="no image to validate with, and 2 to train on are too few to hold any out"):
        train(tmp_path, "van_b0", TINY, tmp_path / "run")


def test_a_checkpoint_that_says_nothing_measures_a_tenth_of_train(
    run: TrainResult, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "held_out" not in read_checkpoint(run.best).metadata
    squares(tmp_path / "train", 10)
    squares(tmp_path / "test", 1)
    assert vankit.validate(tmp_path, checkpoint=run.best, workers=0, engine="torch").count == 2
    assert "2 of its 20 training images are held out to validate\n" in caplog.text
    assert vankit.validate(tmp_path / "train", checkpoint=run.best, workers=0, engine="torch").count == 20


@pytest.mark.slow
def test_two_processes_train_one_model(data: Path, as_published: None, tmp_path: Path) -> None:
    """Both processes end with the same weights, and validation counts each of the six images once."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "vankit",
        "train", str(data), "--recipe", "short", "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "4",
        "--img-size", "32", "--workers", "0", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 1/1") == 1
    assert done.stdout.count("best top-1") == 1
    assert [float(row["lr"]) for row in metrics(tmp_path / "run") if row["lr"]] == [pytest.approx(2e-3 * 8 / 128)]
    assert len(events(tmp_path / "run").Images("validation")) == 1
    checkpoint = read_checkpoint(tmp_path / "run" / "best.safetensors")
    # 16 images in two shares of 8, batch 4: two steps, in each process
    assert checkpoint.state_dict["stage1.patch_embed.norm.num_batches_tracked"] == 2
    report = vankit.validate(data, checkpoint=tmp_path / "run" / "best.safetensors", workers=0, engine="torch")
    assert report.top1 == pytest.approx(checkpoint.metadata["measures"]["top-1"], abs=1e-5)
    assert report.count == 6


_OF_ONES_OWN = """
import sys
from dataclasses import replace
from PIL import Image
from torch.utils.data import Dataset
from vankit.training.recipes import short
from vankit.training.run import train

class Squares(Dataset):
    classes = ["bright", "dark"]

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return Image.new("RGB", (32, 32), (200 - index, 200, 200) if index % 2 else (50 + index, 50, 50)), 1 - index % 2

config = replace(short("van_b0"), epochs=1, warmup_epochs=0, batch_size=4, img_size=32, workers=0)
train((Squares(16), Squares(6)), "van_b0", config, sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_share_datasets_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(_OF_ONES_OWN)
    done = train_together(str(tmp_path / "own.py"), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("epoch 1/1") == 1
    state = read_checkpoint(tmp_path / "run" / "last.safetensors")
    # 16 images in two shares of 8, batch 4: two steps, in each process
    assert state.state_dict["stage1.patch_embed.norm.num_batches_tracked"] == 2


_ONE_BAD_RANK = """
import math, sys
from dataclasses import replace
import torch
from vankit.errors import UserError
from vankit.training.classify import Classifier
from vankit.training.recipes import short
from vankit.training.run import train

plain = Classifier.training_step

def step(self, batch, batch_idx):
    images, labels = batch
    if self.trainer.global_rank == 1 and batch_idx == 0:
        images = images * math.nan
    return plain(self, (images, labels), batch_idx)

Classifier.training_step = step
config = replace(short("van_b0"), epochs=2, warmup_epochs=0, batch_size=4, img_size=32, workers=0,
                 nan_tolerance=int(sys.argv[3]))
try:
    train(sys.argv[1], "van_b0", config, sys.argv[2])
except UserError as error:
    print(f"stopped: {error}", flush=True)
else:
    print("finished", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tolerance", [1, 2])
def test_processes_leave_out_a_step_together(tolerance: int, data: Path, tmp_path: Path) -> None:
    """A batch of one process alone is bad, the first of each of two epochs."""
    (tmp_path / "one_bad_rank.py").write_text(_ONE_BAD_RANK)
    done = train_together(str(tmp_path / "one_bad_rank.py"), str(data), str(tmp_path / "run"), str(tolerance))
    assert done.returncode == 0, done.stderr[-3000:]
    state = read_checkpoint(tmp_path / "run" / "last.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.state_dict.values())
    # of two steps in an epoch one is left out, its running statistics too
    assert state.state_dict["stage1.patch_embed.norm.num_batches_tracked"] == tolerance
    assert state.metadata["epoch"] == tolerance
    if tolerance == 2:
        assert done.stdout.count("finished") == 2
    else:
        assert done.stdout.count("stopped: the loss is not finite in epoch 2, step 3 (steps left out before: 1): ") == 2


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen squares and six more that are bright, red, both or neither."""
    root = tmp_path_factory.mktemp("several")
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        (root / split).mkdir()
        rows = ["file,bright,red"]
        for i in range(count):
            bright, red = i % 2, i // 2 % 2
            pixels = np.array([80, 80 - 60 * red, 80 - 60 * red]) + 120 * bright + rng.integers(-20, 20, (32, 32, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / f"{i}.png")
            rows.append(f"{i},{bright},{red}")
        (root / f"{split}.csv").write_text("\n".join(rows))
    return root


def test_a_multi_label_run(several: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = train(several, "van_b0", replace(TINY, epochs=1), tmp_path)
    assert "multi-label, 2 classes, 22 images, 1.0 labels per image" in caplog.text
    description = vankit.Predictor(checkpoint=result.best, engine="torch").description
    assert (result.measure, description.classes) == ("mAP", ("bright", "red")) and 0 <= result.score <= 1
    report = vankit.validate(several, checkpoint=result.best, workers=0, engine="torch")
    assert report.measures["mAP"] == pytest.approx(result.score, abs=1e-6)
    measure = MultiLabelMeasure(["bright", "red"])
    predictor = vankit.Predictor(checkpoint=result.best, engine="torch")
    x = np.stack([predictor.preprocess(several / "val" / f"{i}.png") for i in range(6)])
    measure.add(np.array([[i % 2, i // 2 % 2] for i in range(6)]), predictor.logits(x))
    assert description.thresholds == pytest.approx(measure.best_thresholds(), abs=1e-6)
    assert metrics(tmp_path)[-1].keys() >= {"val_mAP", "val_loss", "train_loss_epoch"}

    again = train(several, "van_b0", TINY, tmp_path, resume=True)
    assert read_metadata(again.last)["epoch"] == 2 and again.score >= result.score
    classes = tmp_path / "classes"
    for name in ("bright", "red"):
        (classes / "train" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (32, 32)).save(classes / "train" / name / f"{i}.png")
    with pytest.raises(UserError, match="holds a run on data that is multi-label: choose another folder"):
        train(classes, "van_b0", TINY, tmp_path, resume=True)


def test_multi_label_images_are_held_out(several: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(several / "train", tmp_path / "images")
    shutil.copy(several / "train.csv", tmp_path / "labels.csv")
    result = train(tmp_path, "van_b0", replace(TINY, epochs=1, val_share=0.25), tmp_path / "run")
    assert "has no val split: 4 of its 16 training images are held out" in caplog.text
    report = vankit.validate(tmp_path, checkpoint=result.best, workers=0, engine="torch")
    assert report.count == 4 and report.measures["mAP"] == pytest.approx(result.score, abs=1e-6)


@pytest.mark.slow
def test_shapes_are_learnt_many_at_a_time(as_published: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From pictures to labels without PyTorch: mAP is thrice what chance gives."""
    root = tmp_path / "scenes"
    for split, count in (("train", 800), ("val", 100)):
        (root / "images" / split).mkdir(parents=True)
        rows = ["image_name,tags"]
        for i in range(count):
            scene = render_scene(i, split, 48, (1, 3))
            Image.fromarray(scene.image).save(root / "images" / split / f"{i}.png")
            rows.append(f"{split}/{i},{' '.join({CLASSES[label] for label in scene.labels})}")
        (root / f"{split}.csv").write_text("\n".join(rows))
    config = replace(
        short("van_b0"), epochs=3, warmup_epochs=0, pretrained=True, img_size=48, batch_size=16, lr=1e-3, lr_batch=16,
        min_scale=1.0, workers=0,
    )  # fmt: skip
    result = train(root, "van_b0.cifar10", config, tmp_path / "run")
    chance = 1.8 / 10  # of ten classes a picture has 1.8
    assert result.score > 2.5 * chance
    folder = vankit.export(checkpoint=result.best, out=tmp_path / "exported").folder
    report = vankit.validate(root, model=folder, workers=0)
    assert report.measures["mAP"] == pytest.approx(result.score, abs=1e-4)
    assert report.measures["F1"] > 0.4
    assert report.to_dict()["classes"][0]["threshold"] == read_metadata(result.best)["thresholds"][0]
    explained = vankit.explain(root / "images/val/0.png", checkpoint=result.best, target=["heart", "ring"])
    assert [row["class"] for row in explained[0].rows] == ["heart", "ring"]
    monkeypatch.chdir(tmp_path)
    snippet = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    shutil.copy(root / "images/val/1.png", "photo.jpg")
    printed = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True).stdout
    expected = vankit.Predictor(folder)("photo.jpg").labels
    assert sorted(label.name for label in expected) == sorted(ast.literal_eval(printed))
