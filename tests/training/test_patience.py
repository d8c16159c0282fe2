"""Early stopping, with figures as they are told."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from together import train_together
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vankit.models.description import Description
from vankit.models.weights import read_metadata
from vankit.training.classify import Classifier
from vankit.training.keep import KeepWeights
from vankit.training.logs import Log
from vankit.training.patience import StopEarly
from vankit.training.recipes import short
from vankit.training.run import train
from vankit.training.state import StateFile, read_state

pytestmark = pytest.mark.usefixtures("blank_run_reports")

NAN = math.nan


class Told(LightningModule):
    """Its validations give the figures that it is told, by epoch."""

    def __init__(self, figures: Sequence[float]) -> None:
        super().__init__()
        self.model = nn.Linear(1, 1)
        self.figures = figures

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.model(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None: ...

    def measures(self) -> dict[str, float]:
        return {"top-1": self.figures[self.trainer.current_epoch]}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def epochs(
    figures: Sequence[float], patience: int, out: Path, resume: bool = False, longest: int = 0, every: int = 1
) -> int:
    """How many epochs a run has been trained after this."""
    keep = KeepWeights(out, Description(classes=["a", "b"]), Log(out, events=False), resumed=resume)
    out.mkdir(exist_ok=True)
    plugin = StateFile(*read_state(out)) if resume else StateFile()
    trainer = Trainer(
        max_epochs=longest or len(figures), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, check_val_every_n_epoch=every,
        callbacks=[keep, StopEarly(patience, keep)], plugins=[plugin],
    )  # fmt: skip
    batches = DataLoader(torch.ones(2, 1))  # type: ignore[arg-type]
    state = out / "resume.ckpt" if resume else None
    trainer.fit(Told(figures), batches, batches, ckpt_path=state, weights_only=True)
    return read_metadata(out / "last.safetensors")["epoch"]


@pytest.mark.parametrize(
    ("figures", "patience", "stops_after"),
    [
        ([0.1, 0.2, 0.2, 0.1, 0.9], 2, 4),
        ([0.1, 0.2, 0.2, 0.3, 0.3, 0.3, 0.9], 2, 6),
        ([0.5, 0.4, 0.6, 0.5, 0.7], 2, 5),
        ([0.5, 0.4, 0.6], 1, 2),
        ([0.0, 0.0, 0.9], 2, 3),
        ([0.3, NAN, 0.2, 0.9], 2, 3),
        ([NAN, NAN, 0.5], 2, 2),
        ([NAN, 0.1, NAN, 0.2, 0.2], 2, 5),
    ],
)
def test_a_run_stops_after_so_many_validations_without_a_better_figure(
    figures: list[float], patience: int, stops_after: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert epochs(figures, patience, tmp_path) == stops_after
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stopped")]
    seen = [figure for figure in figures[:stops_after] if figure == figure]
    best = f"{max(seen):.2%}" if seen else "nan%"
    waited = f"{patience} validation{'s' * (patience > 1)}"
    early = stops_after < len(figures)
    assert lines == [f"stopped: no better top-1 than {best} for {waited} (--patience {patience})"] * early
    if seen:
        assert read_metadata(tmp_path / "best.safetensors")["measures"] == {"top-1": max(seen)}


def test_only_validations_count(tmp_path: Path) -> None:
    assert epochs([NAN, 0.5, NAN, 0.5, NAN, 0.5, NAN, 0.9], 2, tmp_path, every=2) == 6


def test_a_resumed_run_counts_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = [0.5, 0.4, 0.3, 0.2, 0.1, 0.6, 0.1]
    assert epochs(figures, 3, tmp_path, longest=2) == 2
    assert epochs(figures, 3, tmp_path, resume=True) == 4
    # what has stopped goes on with more patience alone
    capsys.readouterr()
    weights = (tmp_path / "last.safetensors").read_bytes()
    assert epochs(figures, 3, tmp_path, resume=True) == 4
    assert epochs(figures, 1, tmp_path, resume=True) == 4
    assert (tmp_path / "last.safetensors").read_bytes() == weights
    assert capsys.readouterr().out.splitlines() == [
        f"stopped: no better top-1 than 50.00% for 3 validations (--patience {patience})" for patience in (3, 1)
    ]
    assert epochs(figures, 4, tmp_path, resume=True) == 5


def test_a_validation_that_broke_is_counted_once(tmp_path: Path) -> None:
    figures: list[float] = [0.5, 0.4]
    with pytest.raises(IndexError):
        epochs(figures, 2, tmp_path, longest=4)
    assert read_metadata(tmp_path / "last.safetensors")["epoch"] == 3
    assert epochs([0.5, 0.4, 0.3, 0.2], 2, tmp_path, resume=True) == 3


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name, level in (("bright", 200), ("dark", 50)):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + rng.integers(-30, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{i}.png")
    return tmp_path / "data"


def test_train_stops_early(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "measures", lambda self: {"top-1": 0.5})
    config = replace(short("van_b0"), epochs=4, batch_size=8, img_size=32, workers=0, patience=1)
    result = train(data, "van_b0", config, tmp_path / "run")
    assert read_metadata(result.last)["epoch"] == 2 and read_metadata(result.best)["epoch"] == 1
    assert train(data, "van_b0", config, tmp_path / "run", resume=True).score == result.score == 0.5
    assert read_metadata(result.last)["epoch"] == 2


_SCRIPT = """
import sys
from dataclasses import replace
from vankit.training.classify import Classifier
from vankit.training.recipes import short
from vankit.training.run import train

step, seen = Classifier.training_step, []

def watch(self, batch, batch_idx):
    seen.extend(batch[1].tolist())
    return step(self, batch, batch_idx)

Classifier.training_step = watch
Classifier.measures = lambda self: {"top-1": 0.5}
config = replace(short("van_b0"), epochs=5, batch_size=4, img_size=32, workers=0, patience=2, balance="sampling")
train(sys.argv[1], "van_b0", config, sys.argv[2])
print("labels", seen, flush=True)
"""


@pytest.mark.slow
def test_processes_stop_together_and_share_a_balanced_draw(data: Path, tmp_path: Path) -> None:
    for i in range(2, 8):
        (data / "train" / "dark" / f"{i}.png").unlink()
        (data / "train" / "bright" / f"{i}.png").rename(data / "train" / "bright" / f"{i}0.png")
        Image.new("RGB", (32, 32), (200, 200, i)).save(data / "train" / "bright" / f"{i}.png")
    (tmp_path / "script.py").write_text(_SCRIPT)
    done = train_together(str(tmp_path / "script.py"), str(data), str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("stopped: no better top-1 than 50.00% for 2 validations (--patience 2)") == 1
    assert read_metadata(tmp_path / "run" / "last.safetensors")["epoch"] == 3
    lines = [line for line in done.stdout.splitlines() if line.startswith("labels")]
    # 16 images an epoch in two shares, three epochs: every class as often
    assert len(lines) == 2 and sum(line.count("1") for line in lines) == sum(line.count("0") for line in lines) == 24
