"""The paper's ablations, as published, and trained: every row on the same data with the same budget."""

import csv
import dataclasses
import io
import json
import re
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from vankit.data.images import MAX_PIXELS
from vankit.data.multilabel import is_multilabel
from vankit.errors import UserError
from vankit.files import check_folder, read_json, save_figure, to_json, write_text
from vankit.locks import held, making
from vankit.models.lka_settings import LkaSettings
from vankit.models.van import ALIASES, VARIANTS, architecture
from vankit.models.weights import read_metadata
from vankit.training.recipes import TrainConfig, short
from vankit.training.run import train
from vankit.training.state import PREVIOUS, STATE


@dataclass(frozen=True)
class Ablation:
    """A row of the paper's ablations on VAN-B0 (tables 3 and 4), as published.

    Attributes:
        name: what is changed.
        lka: the settings that change it; two rows are VAN as it is.
        params: published parameters in millions, with the digits printed.
        gmacs: published GMACs at 224 px.
        top1: published ImageNet-1k top-1 accuracy in per cent.
    """

    name: str
    lka: LkaSettings
    params: str
    gmacs: str
    top1: float


ABLATIONS = (
    Ablation("without DW", {"without": ("dw",)}, "4.1", "0.9", 74.9),
    Ablation("without DW-D", {"without": ("dw_d",)}, "4.0", "0.9", 74.1),
    Ablation("without attention", {"gate": "none"}, "4.1", "0.9", 74.3),
    Ablation("add instead of multiply", {"gate": "add"}, "4.1", "0.9", 74.6),
    Ablation("without 1x1", {"without": ("pw",)}, "3.8", "0.8", 74.6),
    Ablation("sigmoid", {"sigmoid": True}, "4.1", "0.9", 75.2),
    Ablation("dense 21x21", {"form": "dense"}, "124.7", "23.2", 76.0),
    Ablation("full", {}, "4.1", "0.9", 75.4),
    Ablation("K 7, d 2", {"kernel_size": (7,), "dilation": (2,)}, "4.03", "0.85", 74.8),
    Ablation("K 14, d 3", {"kernel_size": (14,), "dilation": (3,)}, "4.07", "0.87", 75.3),
    Ablation("K 21, d 3", {}, "4.11", "0.88", 75.4),
    Ablation("K 28, d 4", {"kernel_size": (28,), "dilation": (4,)}, "4.14", "0.90", 75.4),
)


@dataclass(frozen=True)
class Run:
    """A trained row.

    Attributes:
        row: name of the ablation.
        seed: of weights, order and augmentation.
        top1: accuracy after the last epoch on the val split, 0 to 1; the last rather than the best, which would be
            chosen by the same images.
    """

    row: str
    seed: int
    top1: float


def ablate(
    data: str | PathLike[str],
    config: TrainConfig | None = None,
    seeds: int = 3,
    out: str | PathLike[str] = "runs/ablation",
    rows: Sequence[str] = (),
    model: str = "van_b0",
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Run]:
    """Train rows of the ablation with one budget, all of them with one seed before the next.

    What is done is in `out`/ablation.csv and is not done again; a run that was stopped continues after its last epoch.

    Args:
        data: see `vankit.train`.
        config: the budget; the recipe `short` if None. Its seed and lka are not used.
        seeds: runs of each row, with seeds from 0.
        out: folder for ablation.csv, budget.json and a folder per run, with its weights and log.
        rows: names of `ABLATIONS`; all if empty. Rows that are the same network are trained once.
        model: van_b0 to van_b6.
        max_pixels: of the largest image that is decoded.

    Yields:
        All runs, those already done first.

    Raises:
        ValueError: there is no such row or model, or `out` holds runs of another model, data or config (workers aside).
    """
    model = architecture(model) if model in ALIASES else model
    if model not in VARIANTS:
        raise UserError(f"unknown variant {model!r}: expected one of {', '.join(VARIANTS)}")
    if seeds < 1:
        raise UserError(f"seeds is {seeds}, expected 1 or more")
    if is_multilabel(Path(data)):
        raise UserError(f"{data} is multi-label, and the rows are compared by top-1: pass images of one class each")
    chosen, config, out = _chosen(rows), config or short(model), Path(out)
    check_folder(out)
    budget = {"model": model, "data": str(data), **dataclasses.asdict(config)}
    with making(out), held(out), _one_budget(out / "budget.json", budget):
        yield from _train(chosen, config, seeds, out, data, model, max_pixels)


def _train(
    chosen: Sequence[Ablation],
    config: TrainConfig,
    seeds: int,
    out: Path,
    data: str | PathLike[str],
    model: str,
    max_pixels: int,
) -> Iterator[Run]:
    table = out / "ablation.csv"
    done = _read(table)
    yield from done
    finished = {(run.row, run.seed) for run in done}
    for seed in range(seeds):
        for row in chosen:
            if (row.name, seed) not in finished:
                settings = dataclasses.replace(config, seed=seed, lka=row.lka)
                folder = out / f"{'-'.join(re.findall('[a-z0-9]+', row.name.lower()))}-{seed}"
                states = [folder / STATE, folder / PREVIOUS]
                begun = any(state.is_file() for state in states)
                result = train(str(data), model, settings, folder, resume=begun, max_pixels=max_pixels)
                run = Run(row.name, seed, read_metadata(result.last)["measures"]["top-1"])
                _append(table, run)
                for state in states:  # three times the weights, and the run is over
                    state.unlink(missing_ok=True)
                yield run


def _chosen(names: Sequence[str]) -> list[Ablation]:
    known = {row.name: row for row in ABLATIONS}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"there is no row {unknown[0]!r}: expected some of {', '.join(known)}")
    chosen: list[Ablation] = []
    for name in names or known:
        row = next(row for row in ABLATIONS if row.lka == known[name].lka)
        if row not in chosen:
            chosen.append(row)
    return chosen


@contextmanager
def _one_budget(path: Path, budget: dict[str, Any]) -> Iterator[None]:
    """Write the budget down, or compare it with what is written. Without a run, as if the data is missing, it goes."""
    _check_budget(path, budget)
    try:
        yield
    finally:
        with suppress(OSError):  # the folder is gone, which the error says that is on its way
            if all(each.name in (path.name, ".lock") for each in path.parent.iterdir()):
                path.unlink()


def _check_budget(path: Path, budget: dict[str, Any]) -> None:
    """Write the budget down, or compare it with what is written."""
    for free in ("seed", "lka", "workers"):
        del budget[free]
    budget = json.loads(json.dumps(budget))
    if not path.exists():
        write_text(path, to_json(budget) + "\n")
    before = read_json(path)
    for name, value in budget.items():
        if before.get(name, value) != value:  # what an earlier version wrote may lack a setting
            raise UserError(
                f"{path.parent} holds runs with {name} {before.get(name)}, not {value}: "
                "choose another folder (--output)"
            )


def _read(table: Path) -> list[Run]:
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [Run(row["row"], int(row["seed"]), float(row["top1"])) for row in csv.DictReader(file)]


def _append(table: Path, run: Run) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(Run)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(each) for each in [*_read(table), run])
    write_text(table, text.getvalue())


def summary(runs: Sequence[Run]) -> dict[str, tuple[float, float | None, int]]:
    """By row of the table: mean top-1, its standard deviation over seeds (None of one), and how many seeds.

    A row that is the same network as a trained one has its figures.
    """
    found: dict[str, tuple[float, float | None, int]] = {}
    for row in ABLATIONS:
        same = {other.name for other in ABLATIONS if other.lka == row.lka}
        values = [run.top1 for run in runs if run.row in same]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            found[row.name] = (statistics.mean(values), deviation, len(values))
    return found


def plot(runs: Sequence[Run], path: str | PathLike[str], title: str) -> None:
    """Draw the trained rows: every seed and their mean, beside the published accuracy.

    Args:
        runs: see `ablate`.
        path: image file to write.
        title: heading of our panel.
    """
    from matplotlib.figure import Figure

    rows = [row for row in ABLATIONS if row.name in summary(runs)]
    figure = Figure(figsize=(10, 0.4 * len(rows) + 1.2), layout="constrained")
    ours, published = figure.subplots(1, 2, sharey=True)
    for y, row in enumerate(reversed(rows)):
        same = {other.name for other in ABLATIONS if other.lka == row.lka}
        values = [100 * run.top1 for run in runs if run.row in same]
        ours.plot(values, [y] * len(values), "o", color="tab:gray", markersize=4)
        ours.plot(statistics.mean(values), y, "|", color="tab:red", markersize=16, markeredgewidth=2)
        published.plot(row.top1, y, "|", color="tab:red", markersize=16, markeredgewidth=2)
    ours.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    ours.set(title=title, xlabel="top-1 %, seeds and mean")
    published.set(title="published, ImageNet-1k at 224 px", xlabel="top-1 %")
    for axes in (ours, published):
        axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path, dpi=110)
