"""Loggers other than TensorBoard: the real libraries, without a network."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vankit.errors import MissingPackageError, UserError
from vankit.training.loggers import check_logger
from vankit.training.recipes import short
from vankit.training.run import train

pytestmark = pytest.mark.usefixtures("blank_run_reports")

TINY = replace(
    short("van_b0"), epochs=1, warmup_epochs=0, batch_size=4, lr_batch=4, img_size=32, workers=0, smoothing=0.0
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("squares")
    for split in ("train", "val"):
        for name, level in (("bright", 200), ("dark", 50)):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (32, 32), (level, i, 0)).save(root / split / name / f"{i}.png")
    return root


def test_a_missing_library_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="logger mlflow needs its library: pip install mlflow"):
        train(data, "van_b0", replace(TINY, logger="mlflow"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_is_not_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onceuponatime").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingPackageError, match="pip install onceuponatime"):
        check_logger("onceuponatime")
    check_logger("tensorboard")


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Offline. It keeps as `ended` what each run knew at its end."""
    library = pytest.importorskip("wandb", reason="wandb is not installed")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    ended: list[dict[str, Any]] = []
    finish = library.finish

    def end(exit_code: int | None = None) -> None:
        run = library.run
        names = {"id": run.id, "name": run.name, "project": run.project, "dir": Path(run.dir), "exit_code": exit_code}
        ended.append({**names, "config": dict(run.config), "summary": dict(run.summary)})
        finish(exit_code)

    monkeypatch.setattr(library, "finish", end)
    monkeypatch.setattr(library, "ended", ended, raising=False)
    yield library
    finish()


WANDB = replace(TINY, logger="wandb", patience=7)


@pytest.mark.slow
def test_wandb_gets_settings_and_figures(wandb: Any, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "flowers" / "b0"
    result = train(data, "van_b0", WANDB, out)
    train(data, "van_b0", replace(WANDB, epochs=2), out, resume=True)
    first, resumed = wandb.ended
    assert wandb.run is None
    assert (first["name"], first["project"], first["exit_code"]) == ("b0", "flowers", None)
    assert first["dir"].is_relative_to(out / "wandb") and first["dir"].parent.name.startswith("offline-run")
    config = json.loads((out / "config.json").read_text())
    assert first["id"] == resumed["id"] == config.pop("logger_run")
    assert resumed["config"].items() >= {"epochs": 2, "patience": 7, "data": str(data), "model": "van_b0"}.items()
    assert first["config"]["epochs"] == 1
    assert first["summary"]["val_top1"] == pytest.approx(result.score)
    assert resumed["summary"]["trainer/global_step"] > first["summary"]["trainer/global_step"]
    assert not (out / "tensorboard").exists() and (out / "metrics.csv").exists()


@pytest.mark.slow
def test_wandb_runs_one_after_another_are_two(
    wandb: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with pytest.raises(UserError, match="not finite"):
        train(data, "van_b0", replace(WANDB, lr=1e12), tmp_path / "a?")
    train(data, "van_b0", WANDB, tmp_path / "b")
    assert [(run["name"], run["project"], run["exit_code"]) for run in wandb.ended] == [
        ("a?", "mine", 1), ("b", "mine", None),
    ]  # fmt: skip
    assert wandb.ended[0]["id"] != wandb.ended[1]["id"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a wandb run already in progress")
def test_a_wandb_run_of_a_script_is_used_and_left_open(wandb: Any, data: Path, tmp_path: Path) -> None:
    mine = wandb.init(project="sweep", dir=tmp_path)
    train(data, "van_b0", WANDB, tmp_path / "run")
    assert wandb.run is mine and "val_top1" in dict(mine.summary) and not wandb.ended


@pytest.mark.slow
def test_wandb_without_a_login(wandb: Any, data: Path, tmp_path: Path) -> None:
    """In a process of its own, for wandb remembers that it was offline."""
    command = [
        sys.executable, "-m", "vankit", "train", str(data), "--recipe", "short", "--img-size", "32", "--batch-size",
        "4", "--workers", "0", "--logger", "wandb", "--output", str(tmp_path / "run"),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    says = r"vankit: wandb cannot log this run: .*wandb login.*; with WANDB_MODE=offline in the environment it stays"
    assert done.returncode == 1 and re.match(says, done.stderr.splitlines()[-1]) and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    library = pytest.importorskip("mlflow", reason="mlflow is not installed")
    for name in [name for name in os.environ if name.startswith("MLFLOW_") and "TELEMETRY" not in name]:
        monkeypatch.delenv(name)
    return library


MLFLOW = replace(TINY, logger="mlflow", patience=7)


def runs(mlflow: Any, place: str, experiment: str) -> list[Any]:
    client = mlflow.MlflowClient(place)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


@pytest.mark.slow
def test_mlflow_logs_where_the_environment_says(
    mlflow: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    out = tmp_path / "flowers" / "b0"
    result = train(data, "van_b0", MLFLOW, out)
    train(data, "van_b0", replace(MLFLOW, epochs=2), out, resume=True)
    assert os.environ["MLFLOW_TRACKING_URI"] == place
    (run,) = runs(mlflow, place, "flowers")
    assert (run.info.run_name, run.info.status) == ("b0", "FINISHED")
    assert run.info.run_id == json.loads((out / "config.json").read_text())["logger_run"]
    assert run.data.params.items() >= {"epochs": "1", "patience": "7", "data": str(data), "model": "van_b0"}.items()
    top1 = mlflow.MlflowClient(place).get_metric_history(run.info.run_id, "val_top1")
    assert [point.step for point in top1] == [1, 3] and top1[0].value == pytest.approx(result.score)
    assert not (out / "mlflow.db").exists() and not (out / "mlruns").exists()


@pytest.mark.slow
def test_mlflow_logs_into_the_runs_folder(mlflow: Any, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no database")
    pytest.importorskip("alembic", reason="mlflow-skinny has no database")
    for name in ("a", "b"):
        train(data, "van_b0", MLFLOW, tmp_path / "mine" / name)
        assert "MLFLOW_TRACKING_URI" not in os.environ
        (run,) = runs(mlflow, f"sqlite:///{tmp_path}/mine/{name}/mlflow.db", "mine")
        assert (run.info.run_name, run.info.status) == (name, "FINISHED") and "val_top1" in run.data.metrics
        assert run.info.artifact_uri.startswith((tmp_path / "mine" / name / "mlruns").as_uri())


@pytest.mark.slow
def test_mlflow_skinny_says_what_a_local_store_needs(
    mlflow: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "sqlalchemy" else found(name))
    with pytest.raises(MissingPackageError, match="mlflow-skinny lacks: pip install mlflow, or name a server"):
        train(data, "van_b0", MLFLOW, tmp_path / "run")
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.slow
def test_mlflow_without_a_store(mlflow: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    with pytest.raises(UserError, match="^mlflow cannot log this run: The filesystem .* maintenance mode"):
        train(data, "van_b0", MLFLOW, tmp_path / "run")
