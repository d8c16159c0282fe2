"""Matplotlib figures of what explains a network; free of pyplot, whose state is global."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # (H, W, 3), 0 to 1
Heat = NDArray[Any]  # (h, w)
Panel = tuple[Picture, Heat | None, str]  # with its title

_INCHES = 2.6  # of a panel
_COLUMNS = 6
_TINY = float(np.finfo(np.float32).tiny)
_OVERLAY = {"cmap": "turbo", "alpha": 0.5, "interpolation": "bilinear"}


def draw_heat(lines: Sequence[Sequence[Panel]]) -> Any:
    """Rows of pictures and of pictures under heat, each heat from 0 to its largest value.

    Args:
        lines: of panels; long ones are broken.
    """
    lines = [line[i : i + _COLUMNS] for line in lines for i in range(0, len(line), _COLUMNS)]
    figure, grid = _grid(len(lines), max(map(len, lines)))
    for row, line in zip(grid, lines, strict=True):
        for axes, (picture, heat, title) in zip(row, line, strict=False):
            if heat is None:
                _show(axes, picture, title)
            else:
                shown = _overlay(axes, picture, heat / max(float(heat.max()), _TINY), title)
    _bar(figure, shown, grid, "Grad-CAM / its maximum")
    return figure


def draw_blocks(picture: Picture, heats: Mapping[tuple[int, int], Heat], title: str) -> Any:
    """The picture, and a row of maps over it per stage, each from its smallest to its largest value.

    Args:
        picture: that the network saw.
        heats: by stage and block; of a stage with more than six, the first, the last and four between.
        title: of the picture.
    """
    rows = []
    for stage, blocks in groupby(sorted(heats), key=lambda place: place[0]):
        numbers = [block for _, block in blocks]
        chosen = np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), _COLUMNS)).round().astype(int))
        rows.append([(stage, numbers[i], len(numbers)) for i in chosen])
    figure, grid = _grid(len(rows), max(map(len, rows)) + 1)
    _show(grid[0, 0], picture, title)
    for line, row in zip(grid, rows, strict=True):
        for axes, (stage, block, count) in zip(line[1:], row, strict=False):
            heat = heats[stage, block]
            low, high = float(heat.min()), float(heat.max())
            heading = f"stage {stage}, block {block} of {count}\n{low:.2g} to {high:.2g}"
            shown = _overlay(axes, picture, (heat - low) / max(high - low, _TINY), heading)
    _bar(figure, shown, grid, "mean |attention|, from each map's minimum to its maximum")
    return figure


def draw_fields(fields: Mapping[str, Mapping[str, tuple[Heat, str]]]) -> Any:
    """Receptive fields on one logarithmic scale, a row per network and a column per place in it.

    Args:
        fields: by network, then by place: the field, 0 or more, and what is written over it.
    """
    from matplotlib.colors import LogNorm

    figure, grid = _grid(len(fields), max(map(len, fields.values())))
    for line, (name, places) in zip(grid, fields.items(), strict=True):
        for axes, (place, (field, text)) in zip(line, places.items(), strict=False):
            axes.set_facecolor("black")
            share = np.ma.masked_equal(field / field.max(), 0)
            shown = axes.imshow(share, cmap="inferno", norm=LogNorm(1e-4, 1))
            _write(axes, f"{name}, {place}\n{text}")
            axes.set_axis_on()
            axes.tick_params(labelsize=7)
    _bar(figure, shown, grid, "mean |gradient| / its maximum")
    return figure


def draw_statistics(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    """Boxes of the channels' figures, block by block.

    Args:
        rows: of `ChannelStatistics`.
        title: heading.
    """
    from matplotlib.figure import Figure

    blocks = {key: list(part) for key, part in groupby(rows, key=lambda row: (row["stage"], row["block"]))}
    figure = Figure(figsize=(max(6.0, 2 + 0.4 * len(blocks)), 7), layout="constrained")
    figure.suptitle(title, parse_math=False)
    quantities = {"mean": "mean", "std": "standard deviation", "positive": "share of positive values"}
    for axes, (name, label) in zip(figure.subplots(len(quantities), 1, sharex=True), quantities.items(), strict=True):
        values = [[row[name] for row in part] for part in blocks.values()]
        axes.boxplot(values, tick_labels=[f"{s}.{b}" for s, b in blocks], flierprops={"markersize": 2})
        axes.set_ylabel(label)
        axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("stage.block; a box is the quartiles of its channels")
    axes.tick_params(axis="x", rotation=90 if len(blocks) > 20 else 0)
    return figure


def _grid(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * _INCHES + 1, rows * (_INCHES + 0.5)), layout="compressed")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def _show(axes: Any, picture: Picture, title: str) -> None:
    axes.imshow(picture)
    _write(axes, title)


def _overlay(axes: Any, picture: Picture, heat: Heat, title: str) -> Any:
    """The heat, 0 to 1, over the picture in grey."""
    height, width = picture.shape[:2]
    axes.imshow(picture @ np.array([0.299, 0.587, 0.114], np.float32), cmap="gray", vmin=0, vmax=1)
    _write(axes, title)
    return axes.imshow(heat, vmin=0, vmax=1, extent=(-0.5, width - 0.5, height - 0.5, -0.5), **_OVERLAY)


def _write(axes: Any, title: str) -> None:
    axes.set_title("\n".join(fill(line, 32) for line in title.split("\n")), fontsize=9, parse_math=False)


def _bar(figure: Any, shown: Any, grid: Any, label: str) -> None:
    bar = figure.colorbar(shown, ax=grid, label=label, shrink=0.9 if len(grid) == 1 else 0.5, aspect=30)
    bar.solids.set_alpha(1)
