"""Where a run's figures go beside metrics.csv and TensorBoard: Weights & Biases or MLflow."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from vankit.errors import MissingPackageError, UserError


def check_logger(name: str) -> None:
    """Refuse a logger whose library is missing.

    Args:
        name: tensorboard, wandb or mlflow.

    Raises:
        ImportError: it is.
    """
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # a folder of that name, such as wandb leaves behind, has no origin
        raise MissingPackageError(f"logger {name} needs its library: pip install {name}")


@contextmanager
def further_logger(name: str, out: Path, record: dict[str, Any]) -> Iterator[list[Logger]]:
    """The logger of a run beside its own `Log`, which ends with the context: in the first process, none in others.

    wandb and mlflow log the record as hyperparameters, and a run that is resumed continues theirs. Its name is the
    folder's, its project or experiment the parent folder's, where the libraries' environment variables name no other.

    Args:
        name: tensorboard, wandb or mlflow.
        out: the run's folder.
        record: the run's settings; `logger_run` is the id of the wandb or mlflow run to continue, and is set to that of
            a new one.

    Raises:
        ValueError: wandb or mlflow cannot log, as without a login or a server.
        ImportError: mlflow-skinny lacks the database of a local store.
    """
    if int(os.environ.get("RANK", 0)) or name == "tensorboard":
        yield []
    else:
        out.mkdir(parents=True, exist_ok=True)
        with (_wandb if name == "wandb" else _mlflow)(out.resolve(), record) as logger:
            record["logger_run"] = logger.version
            yield [logger]


@contextmanager
def _wandb(out: Path, record: dict[str, Any]) -> Iterator[Logger]:
    import wandb

    begun_outside = wandb.run is not None  # by a script or a sweep, which ends it, too
    project = re.sub(r"[/\\#?%:]", "-", out.parent.name) or "vankit"  # which wandb refuses
    try:
        logger = WandbLogger(
            name=os.environ.get("WANDB_NAME", out.name),
            project=os.environ.get("WANDB_PROJECT", project),
            save_dir=out,
            id=record.get("logger_run"),
        )
        logger.log_hyperparams(record)
        yield logger
    except BaseException as error:
        if wandb.run is not None and not begun_outside:
            wandb.finish(exit_code=1)
        if isinstance(error, wandb.Error):
            raise UserError(
                f"wandb cannot log this run: {_line(error)}; with WANDB_MODE=offline in the environment it stays on "
                "this machine"
            ) from None
        raise
    if not begun_outside:
        wandb.finish()


@contextmanager
def _mlflow(out: Path, record: dict[str, Any]) -> Iterator[Logger]:
    import mlflow

    server: Any = os.environ.get("MLFLOW_TRACKING_URI")  # also what a script has set by mlflow's function
    try:
        logger = _mlflow_logger(out, server, record.get("logger_run"))
        if "logger_run" not in record:  # parameters cannot be changed
            logger.log_hyperparams(record)
        yield logger
    except mlflow.MlflowException as error:
        raise UserError(f"mlflow cannot log this run: {_line(error)}") from None
    finally:
        mlflow.set_tracking_uri(server)  # Lightning sets it, in the environment too: the next run would go there


def _mlflow_logger(out: Path, server: str | None, run_id: str | None) -> MLFlowLogger:
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", out.parent.name or "vankit")
    if server:
        return MLFlowLogger(experiment, out.name, server, run_id=run_id)
    if importlib.util.find_spec("sqlalchemy") is None:
        raise MissingPackageError(
            "logger mlflow needs a database for a local store, which mlflow-skinny lacks: pip install mlflow, or name "
            "a server (MLFLOW_TRACKING_URI)"
        )
    store, artifacts = f"sqlite:///{out.as_posix()}/mlflow.db", (out / "mlruns").as_uri()
    return MLFlowLogger(experiment, out.name, store, artifact_location=artifacts, run_id=run_id)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
