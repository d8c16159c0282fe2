"""Ablations trained on a handful of squares: one budget, resumed row by row, summed up."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vankit.study.ablation
from vankit.errors import UserError
from vankit.locks import held
from vankit.models.weights import read_checkpoint
from vankit.study.ablation import Run, ablate, summary
from vankit.training.recipes import short
from vankit.training.state import StateFile

pytestmark = pytest.mark.usefixtures("blank_run_reports")

TINY = replace(short("van_b0"), epochs=1, warmup_epochs=0, batch_size=4, img_size=32, workers=0)
ROWS = ["without DW", "K 7, d 2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    for split in ("train", "val"):
        for name, level in (("bright", 200), ("dark", 50)):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.fromarray(np.full((32, 32, 3), level + i, np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Run], Path]:
    out = tmp_path_factory.mktemp("ablation")
    return list(ablate(data, TINY, 2, out, ROWS)), out


def test_every_row_with_every_seed(done: tuple[list[Run], Path]) -> None:
    runs, out = done
    assert [(run.row, run.seed) for run in runs] == [(row, seed) for seed in (0, 1) for row in ROWS]
    assert all(0 <= run.top1 <= 1 for run in runs)
    kernels = {
        name: read_checkpoint(out / name / "last.safetensors").state_dict["stage1.blocks.0.attn.lka.dw_d.weight"].shape
        for name in ("without-dw-0", "k-7-d-2-1")
    }
    assert kernels == {"without-dw-0": (32, 1, 7, 7), "k-7-d-2-1": (32, 1, 4, 4)}
    assert not list(out.glob("*/resume.ckpt"))
    with (out / "ablation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["row"], int(row["seed"]), float(row["top1"])) for row in rows] == [
        (run.row, run.seed, run.top1) for run in runs
    ]


def test_what_is_done_is_not_done_again(
    done: tuple[list[Run], Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, out = done
    trained = []

    def train(data: str, model: str, config: object, out: Path, resume: bool, max_pixels: int) -> object:
        trained.append((out.name, resume))
        raise KeyboardInterrupt

    monkeypatch.setattr(vankit.study.ablation, "train", train)
    assert list(ablate(data, TINY, 2, out, ROWS)) == runs
    (out / "without-dw-2").mkdir()
    (out / "without-dw-2" / "resume.ckpt").touch()
    with pytest.raises(KeyboardInterrupt):
        list(ablate(data, TINY, 3, out, ROWS))
    assert trained == [("without-dw-2", True)]


def test_a_row_that_was_killed_gives_the_figure_of_an_unbroken_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(TINY, epochs=2, drop_path_rate=0.2)
    unbroken = list(ablate(data, config, 1, tmp_path / "unbroken", ROWS[:1]))
    count = 0

    def save(self: StateFile, *given: object, **options: object) -> None:
        nonlocal count
        count += 1
        if count == 4:  # the last state, whose weights are validated
            raise KeyboardInterrupt
        plain(self, *given, **options)

    plain = StateFile.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(StateFile, "save_checkpoint", save)
        with pytest.raises(KeyboardInterrupt):
            list(ablate(data, config, 1, tmp_path / "killed", ROWS[:1]))
    assert list(ablate(data, config, 1, tmp_path / "killed", ROWS[:1])) == unbroken
    states = [
        read_checkpoint(tmp_path / name / "without-dw-0" / "last.safetensors").state_dict
        for name in ("unbroken", "killed")
    ]
    torch.testing.assert_close(dict(states[1]), dict(states[0]), rtol=0, atol=0)
    assert (tmp_path / "killed" / "ablation.csv").read_bytes() == (tmp_path / "unbroken" / "ablation.csv").read_bytes()


@pytest.mark.parametrize("setting", ["epochs", "lr_batch", "weight_decay"])
def test_a_folder_has_one_budget(setting: str, done: tuple[list[Run], Path], data: Path) -> None:
    value = getattr(TINY, setting)
    with pytest.raises(UserError, match=f"holds runs with {setting} {value}, not {value + 1}: choose another folder"):
        list(ablate(data, replace(TINY, **{setting: value + 1}), 2, done[1], ROWS))


def test_a_folder_has_one_ablation(done: tuple[list[Run], Path], data: Path) -> None:
    with held(done[1]), pytest.raises(UserError, match="is being written by process"):
        next(ablate(data, TINY, 2, done[1], ROWS))


def test_unknown_row(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown variant 'van_b0.cifar10': expected one of van_b0"):
        list(ablate(data, TINY, 1, tmp_path, model="van_b0.cifar10"))
    with pytest.raises(UserError, match="there is no row 'without': expected some of without DW, without DW-D"):
        list(ablate(data, TINY, 1, tmp_path, ["without"]))


def test_rows_that_are_one_network_are_trained_once() -> None:
    names = [row.name for row in vankit.study.ablation._chosen(["full", "K 21, d 3", "sigmoid"])]
    assert names == ["full", "sigmoid"]
    assert [row.name for row in vankit.study.ablation._chosen(["K 21, d 3"])] == ["full"]
    assert len(vankit.study.ablation._chosen([])) == 11


def test_summary_by_hand() -> None:
    found = summary([Run("full", 0, 0.5), Run("full", 1, 0.7), Run("sigmoid", 0, 0.4)])
    assert found["full"] == found["K 21, d 3"] == (pytest.approx(0.6), pytest.approx(0.02**0.5), 2)
    assert found["sigmoid"] == (0.4, None, 1)
    assert found.keys() == {"full", "K 21, d 3", "sigmoid"}


def test_multi_label_data_has_no_top_1(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("file,labels\na.jpg,x y\n")
    with pytest.raises(UserError, match="is multi-label, and the rows are compared by top-1"):
        next(ablate(tmp_path, TINY, 1, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
