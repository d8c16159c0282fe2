"""A run's log over all its resumptions: read, drawn as curves, and as a table of its epochs."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, float]

_POINTS = 500  # of a curve: more cannot be told apart
_OF_STEPS = ("train_loss_step", "train_loss")


def read_log(out: Path) -> list[Row]:
    """The rows of metrics-1.csv, metrics-2.csv, … and metrics.csv in a run's folder, each with what it holds.

    Of steps that a resumed run took again, the rows are those of the resumed run.
    """
    earlier = sorted(out.glob("metrics-*.csv"), key=lambda path: int(path.stem.partition("-")[2]))
    rows: list[Row] = []
    for path in [*earlier, out / "metrics.csv"]:
        with path.open(newline="", encoding="utf-8") as file:
            found = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
        first = min((row["step"] for row in found), default=np.inf)
        rows = [row for row in rows if row["step"] < first] + found
    return rows


def epochs_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A row per validated epoch: `epoch`, from 1, the losses that were logged, as text, and the measures, 0 to 1."""
    epochs: dict[int, dict[str, list[float]]] = {}
    for row in rows:
        values = epochs.setdefault(int(row["epoch"]) + 1, {})
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    columns = {"train loss": ("train_loss_epoch", *_OF_STEPS), "val loss": ("val_loss",)}
    losses = {title: names for title, names in columns.items() if any(name in row for row in rows for name in names)}
    measures = _measures(rows)
    return [
        {
            "epoch": epoch,
            **{title: _mean(values, names) for title, names in losses.items()},
            **{title: values[name][-1] if name in values else None for name, title in measures.items()},
        }
        for epoch, values in epochs.items()
        if any(name in values for name in measures)
    ]


def _measures(rows: Sequence[Row]) -> dict[str, str]:
    """What validation measured, and how it is called in reports."""
    names = dict.fromkeys(name for row in rows for name in row if name.startswith("val_") and name != "val_loss")
    return {name: re.sub(r"^top(?=\d)", "top-", name.removeprefix("val_").replace("_", " ")) for name in names}


def _mean(values: dict[str, list[float]], names: Sequence[str]) -> str:
    """Of the first of these that there is."""
    name = next((name for name in names if name in values), None)
    return "" if name is None else f"{np.mean(values[name]):.4f}"


def draw_log(rows: Sequence[Row]) -> Any:
    """Losses, measures and, where it was logged, the learning rate over the updates, as a figure of matplotlib."""
    from matplotlib.figure import Figure

    curves: dict[str, dict[str, str]] = {
        "loss": {_train_loss(rows): "training", "val_loss": "validation"},
        "measures": _measures(rows),
        "learning rate": {"lr": ""},
    }
    points = {
        title: {label: found for name, label in names.items() if (found := _points(rows, name)).size}
        for title, names in curves.items()
    }
    panels = {title: lines for title, lines in points.items() if lines}
    figure = Figure(figsize=(4.5 * len(panels), 3.5))
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        axes.set(title=title, xlabel="updates")
        axes.xaxis.get_major_locator().set_params(integer=True)
        for label, (steps, values) in lines.items():
            axes.plot(steps, values, marker="." if len(steps) < 50 else "", label=label)
        if any(lines):
            axes.legend(fontsize="small", frameon=False)
    return figure


def _train_loss(rows: Sequence[Row]) -> str:
    """The name of the training loss of which there are most figures."""
    return max((*_OF_STEPS, "train_loss_epoch"), key=lambda name: sum(name in row for row in rows))


def _points(rows: Sequence[Row], name: str) -> NDArray[np.float64]:
    """Updates and values, (2, N), of many the means of neighbours."""
    points = np.array([(row["step"] + 1, row[name]) for row in rows if name in row]).reshape(-1, 2)
    parts = np.array_split(points, max(1, min(len(points), _POINTS)))
    return np.array([part.mean(0) for part in parts]).T if len(points) else points
