"""Training runs on tiny sets: files left, resuming, moving averages, and two processes against one."""

import csv
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

import vankit
from vankit.errors import MissingFileError, UserError
from vankit.models.van import create_model
from vankit.models.weights import read_checkpoint
from vankit.training.classify import setup_classify
from vankit.training.loaders import Processes
from vankit.training.recipes import TrainConfig, short
from vankit.training.run import KeepWeights, TrainResult, train

TINY = replace(
    short("van_b0"), epochs=2, warmup_epochs=0, batch_size=4, lr_batch=4, lr=1e-3, img_size=32, workers=0, smoothing=0.0
)


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


def metrics(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def measured(data: Path, checkpoint: Path) -> float:
    return vankit.validate(data, checkpoint=checkpoint, workers=0, engine="torch").top1


def test_a_run_leaves_weights_state_and_logs(run: TrainResult, data: Path) -> None:
    out = run.best.parent
    assert {p.name for p in out.iterdir()} == {
        "best.safetensors", "last.safetensors", "resume.ckpt", "config.json", "metrics.csv", "tensorboard",
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
    assert steps == [7]  # 4 steps an epoch, counted on
    with (tmp_path / "metrics-1.csv").open(newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["val_top1"]] == [3]
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
    for name, value in (("weight_decay", 0.0), ("layer_decay", 0.5)):
        option = f"--{name.replace('_', '-')}"
        with pytest.raises(UserError, match=f"was begun with {option} .*that: pass the same settings"):
            train(data, "van_b0", replace(TINY, **{name: value}), run.best.parent, resume=True)


def test_a_damaged_run_is_not_resumed(run: TrainResult, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run.best.parent, tmp_path / "run")
    (tmp_path / "run" / "last.safetensors").unlink()
    with pytest.raises(UserError, match="last.safetensors is missing or damaged: choose another folder"):
        train(data, "van_b0", TINY, tmp_path / "run", resume=True)
    shutil.copyfile(run.last, tmp_path / "run" / "last.safetensors")
    os.truncate(tmp_path / "run" / "last.safetensors", 100_000)
    with pytest.raises(UserError, match="last.safetensors is not a readable checkpoint"):
        train(data, "van_b0", TINY, tmp_path / "run", resume=True)
    os.truncate(tmp_path / "run" / "resume.ckpt", 100_000)
    with pytest.raises(UserError, match="resume.ckpt is damaged: choose another folder"):
        train(data, "van_b0", TINY, tmp_path / "run", resume=True)
    shutil.copyfile(run.best.parent / "resume.ckpt", tmp_path / "run" / "resume.ckpt")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not JSON"):
        train(data, "van_b0", TINY, tmp_path / "run", resume=True)


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
    with pytest.raises(UserError, match="train and val have different classes: bright, dark, dusk"):
        train(tmp_path, "van_b0", TINY, tmp_path / "run")


def squares(root: Path, count: int) -> None:
    for name, level in (("bright", 200), ("dark", 50)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (32, 32), (level + i, level, level)).save(root / name / f"{i}.png")


@pytest.mark.parametrize("place", ["train", "."])
def test_what_is_held_out_is_what_is_validated(place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "data"
    squares(root / place, 10)
    config = replace(TINY, epochs=1, val_share=0.3, seed=5)
    result = train(root, "van_b0", config, tmp_path / "run")
    assert caplog.text.count("6 of its 20 training images are held out to validate (--val-share 0.3, --seed 5)") == 1
    metadata = read_checkpoint(result.best).metadata
    assert metadata["held_out"] == {"share": 0.3, "seed": 5, "plain": place == ".", "total": 20}
    report = vankit.validate(root, checkpoint=result.best, workers=0)
    assert report.count == 6
    assert report.top1 == pytest.approx(result.score, abs=1e-6)
    assert vankit.validate(root, checkpoint=result.best, workers=0, split="train").count == 14
    assert vankit.validate(root / place / ".", checkpoint=result.best, workers=0).count == (6 if place == "." else 20)
    for changes in ({"val_share": 0.4}, {"seed": 6}):
        with pytest.raises(UserError, match=r"was begun with --val-share 0\.3 and --seed 5: pass the same settings"):
            train(root, "van_b0", replace(config, **changes), tmp_path / "run", resume=True)

    (root / place / "dark" / "new.png").write_bytes((root / place / "dark" / "0.png").read_bytes())
    with pytest.raises(UserError, match="was begun with 20 images, and there are 21 now: use the same data"):
        train(root, "van_b0", config, tmp_path / "run", resume=True)
    caplog.clear()
    grown = vankit.validate(root, checkpoint=result.best, workers=0)
    if place == "train":
        assert grown.count == 6
        assert "had 20 images when the network was trained, and has 21" in caplog.text
    else:
        assert grown.count == 21
        assert "has 21 images, the folder that the network was trained on had 20: taken for another" in caplog.text

    squares(root / "val", 2)
    if place == "train":
        assert vankit.validate(root, checkpoint=result.best, workers=0).count == 4
        with pytest.raises(UserError, match="validated with images held out of train, and this data has a val split"):
            train(root, "van_b0", config, tmp_path / "run", resume=True)


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
    assert vankit.validate(tmp_path, checkpoint=run.best, workers=0).count == 2
    assert "2 of its 20 training images are held out to validate\n" in caplog.text
    assert vankit.validate(tmp_path / "train", checkpoint=run.best, workers=0).count == 20


@pytest.mark.slow
def test_two_processes_train_one_model(data: Path, tmp_path: Path) -> None:
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
    checkpoint = read_checkpoint(tmp_path / "run" / "best.safetensors")
    # 16 images in two shares of 8, batch 4: two steps, in each process
    assert checkpoint.state_dict["stage1.patch_embed.norm.num_batches_tracked"] == 2
    report = vankit.validate(data, checkpoint=tmp_path / "run" / "best.safetensors", workers=0, engine="torch")
    assert report.top1 == pytest.approx(checkpoint.metadata["measures"]["top-1"], abs=1e-5)
    assert report.count == 6
