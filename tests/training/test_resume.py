"""Runs that are killed or stopped and resumed: bit for bit what an unbroken run leaves, and damage is said in a line."""

import csv
import json
import logging
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

import vankit
from vankit.errors import MissingFileError, UserError, WriteError
from vankit.files import held
from vankit.models.weights import read_checkpoint, read_metadata
from vankit.training.classify import Classifier
from vankit.training.draws import SeedSteps
from vankit.training.keep import KeepWeights
from vankit.training.recipes import Config, short, short_dense
from vankit.training.run import TrainResult, train
from vankit.training.state import StateFile

TINY = replace(
    short("van_b0"), epochs=3, warmup_epochs=0, batch_size=4, lr_batch=4, lr=1e-3, img_size=32, workers=0,
)  # fmt: skip
# everything that draws random numbers
RANDOM = replace(
    TINY, auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.5, mixup=0.8, cutmix=1.0, drop_path_rate=0.2,
    drop_rate=0.1, ema_decay=0.9, accumulate=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty dark and bright squares to train on, six to measure."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, counts in (("train", (14, 6)), ("val", (3, 3))):
        for name, level, count in zip(("bright", "dark"), (140, 110), counts, strict=True):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + rng.integers(-30, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAN whose state takes a few kilobytes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    vankit.save_checkpoint(
        vankit.VAN(num_classes=2, embed_dims=(4, 6, 8, 10), depths=(1, 1, 1, 1), mlp_ratios=(2, 2, 1, 1)), path
    )
    return path


def metrics(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(out: Path, unbroken: Path) -> None:
    """Weights, what is said of them, and every figure."""
    for name in ("last", "best"):
        found, wanted = (read_checkpoint_as_data(path / f"{name}.safetensors") for path in (out, unbroken))
        assert found[1] == wanted[1]
        assert found[0].keys() == wanted[0].keys()
        assert [key for key, tensor in found[0].items() if not torch.equal(tensor, wanted[0][key])] == []
    assert metrics(out) == metrics(unbroken)
    assert not list(out.rglob("*.partial"))


def read_checkpoint_as_data(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors.torch import load_file

    return load_file(path), read_metadata(path)


class Halt(Exception):
    """What a run is broken off with, as if it were killed."""


def halt_at(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, when: Callable[..., bool]) -> None:
    """Break a run off before a call of a method."""
    plain = getattr(owner, method)

    def broken(*given: Any, **options: Any) -> Any:
        if when(*given):
            raise Halt
        return plain(*given, **options)

    monkeypatch.setattr(owner, method, broken)


@pytest.fixture(scope="module")
def unbroken(data: Path, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(data, "van_b0", RANDOM, tmp_path_factory.mktemp("unbroken") / "run", small).last.parent


def stopped_after(step: int, signum: int = signal.SIGINT) -> Any:
    """Send this process a signal once it has trained on so many batches; before the first step of the run if 0."""

    class Sent(SeedSteps):
        count = 0

        def on_train_batch_start(self, *given: Any) -> None:
            if Sent.count == step:
                signal.raise_signal(signum)
            Sent.count += 1
            super().on_train_batch_start(*given)

    return Sent


@pytest.mark.parametrize("step", [2, 5, 6])
def test_a_run_that_is_stopped_within_an_epoch_goes_on_there(
    step: int, data: Path, small: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Batches of an update are finished first, so after 5 batches it is 6 that are done: 5 are an epoch."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr("vankit.training.run.SeedSteps", stopped_after(step))
        with pytest.raises(KeyboardInterrupt):
            train(data, "van_b0", RANDOM, tmp_path, small)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    place = {2: "epoch 1 step 2", 5: "epoch 1 step 5", 6: "epoch 2 step 2"}[step]
    assert f"stopped after {place}; continue with --resume\n" in capsys.readouterr().out
    train(data, "van_b0", RANDOM, tmp_path, small, resume=True)
    assert_same_run(tmp_path, unbroken)
