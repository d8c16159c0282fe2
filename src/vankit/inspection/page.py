"""An inspection as an HTML page with pictures."""

import os
from collections import Counter
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.inspection.detect import ObjectTally, stride_of
from vankit.inspection.report import Copies, Inspection
from vankit.inspection.samples import SCENE_SIDE, SIDE, picture_of, pictures_by_class, scenes
from vankit.inspection.tallies import Study, Tally
from vankit.pages import Page
from vankit.training.recipes import Config, DenseConfig

_BARS = 40  # classes that have a bar of their own
_MEASURES = {"pixels": "share of the labelled pixels", "objects": "objects", "images": "images"}
_EFFECTS = {"stops": "ends training", "repaired": "repaired", "passed over": "passed over", "note": "worth knowing"}


def write_page(inspection: Inspection, study: Study, config: Config, path: str | PathLike[str]) -> None:
    """Write the report of an inspection.

    Args:
        inspection: what was found.
        study: the set that it was found in.
        config: the settings to start with.
        path: the HTML file.
    """
    page = Page(f"{inspection.data}: {inspection.task}")
    _overview(page, inspection)
    _findings(page, inspection)
    for copies in inspection.copies:
        _copies(page, inspection.data, copies, study.reading.max_pixels)
    _classes(page, inspection)
    _sizes(page, study.tallies, inspection.side)
    if isinstance(config, DenseConfig) and isinstance(study.tallies[0], ObjectTally):
        _objects(page, study.tallies[0], config, stride_of(study.masks))
    _pictures(page, inspection, study.tallies[0])
    page.save(path)


def _overview(page: Page, inspection: Inspection) -> None:
    if others := [task for task in inspection.tasks if task != inspection.task]:
        page.text(f"The folder looks made for {' and '.join(others)} too: inspect it with --task {others[0]}.")
    page.table([_split_row(inspection, i) for i in range(len(inspection.splits))])
    if inspection.held_out:
        count, total = inspection.held_out
        page.text(
            f"There is no val split: training holds {count:,} of the {total:,} training images out (--val-share)."
        )
    page.heading("Start with")
    page.command(inspection.command)
    page.facts({option: reason for option, reason in inspection.options if reason})


def _split_row(inspection: Inspection, place: int) -> dict[str, Any]:
    split = inspection.splits[place]
    row: dict[str, Any] = {"split": split.name, "images": split.images}
    for name in ("smallest", "median", "largest"):
        row[name] = "{} × {}".format(*getattr(split.sizes, name)) if split.sizes else None
    row[f"shorter side < {inspection.side}"] = split.sizes and split.sizes.below
    if split.empty is not None:
        row["without annotations"] = split.empty
    if split.crowds is not None:
        row["crowd regions"] = split.crowds
    if split.unlabelled is not None:
        row["unlabelled pixels"] = split.unlabelled
    return row


def _findings(page: Page, inspection: Inspection) -> None:
    rows = [
        {"effect": _EFFECTS[each.effect], "split": each.split, "what": each.what, "number": each.count,
         "details": each.example, "option": each.option}
        for each in inspection.findings
    ]  # fmt: skip
    if rows:
        page.heading("Findings")
        page.table(rows)


def _copies(page: Page, data: str, copies: Copies, max_pixels: int) -> None:
    page.heading(str(copies)[0].upper() + str(copies)[1:])
    pairs = [tuple(os.path.relpath(path, data) for path in pair) for pair in copies.examples]
    shown = (picture_of(first, max_pixels)[0] for first, _ in copies.examples)
    page.pictures(((picture, " = ".join(pair)) for picture, pair in zip(shown, pairs, strict=True)), SIDE)


def _classes(page: Page, inspection: Inspection) -> None:
    page.heading(f"Classes ({len(inspection.classes):,})")
    columns = [(split, key) for split in inspection.splits for key in _keys(inspection) if key != "thing"]
    by_name = {split.name: {each.name: each for each in split.classes} for split in inspection.splits}
    rows = []
    for name in dict.fromkeys(each.name for split in inspection.splits for each in split.classes):
        row: dict[str, Any] = {"class": name}
        if inspection.task == "panoptic":
            row["kind"] = "thing" if by_name["train"][name].thing else "stuff"
        for split, key in columns:
            row[f"{split.name}: {key}"] = getattr(by_name[split.name].get(name), key, None)
        rows.append(row)
    page.table(rows)
    page.text("In train:")
    page.figure(_class_figure(inspection))


def _keys(inspection: Inspection) -> list[str]:
    first = inspection.splits[0].classes[0]
    return [key for key in ("images", "objects", "small", "pixels") if getattr(first, key) is not None]


def _class_figure(inspection: Inspection) -> Any:
    """How often each class occurs: bars, or of many classes a curve from the most frequent to the rarest."""
    key, what = next((key, what) for key, what in _MEASURES.items() if key in _keys(inspection))
    counts = np.array([getattr(each, key) for each in inspection.splits[0].classes], float)
    many = len(counts) > _BARS
    figure, (axes,) = _axes(1, height=3.2 if many else 1 + 0.25 * len(counts))
    if many:
        axes.plot(np.arange(1, len(counts) + 1), np.sort(counts)[::-1])
        axes.set(xlabel="classes, most frequent first", ylabel=what, yscale="log" if counts.any() else "linear")
    else:
        axes.barh(inspection.classes, counts)
        axes.invert_yaxis()
        axes.set_xlabel(what)
    return figure


def _sizes(page: Page, tallies: Sequence[Tally], side: int) -> None:
    page.heading("Sizes of the pictures")
    different = {size for tally in tallies for size in tally.sizes}
    if len(different) > 1:
        page.figure(_size_figure([tally for tally in tallies if tally.sizes], side))
    elif different:
        page.text("All have {} × {} pixels.".format(*different.pop()))


def _size_figure(tallies: Sequence[Tally], side: int) -> Any:
    figure, (sides, shapes) = _axes(2)
    sizes = [np.array(tally.sizes, float) for tally in tallies]  # (N, 2) each
    names = [tally.split for tally in tallies]
    sides.hist([each.min(1) for each in sizes], bins=40, label=names)
    sides.axvline(side, color="black", linestyle=":", label="in training")
    sides.set(xlabel="shorter side in pixels", ylabel="pictures")
    shapes.hist([each[:, 0] / each[:, 1] for each in sizes], bins=40, label=names)
    shapes.set(xlabel="width : height", ylabel="pictures")
    sides.legend()
    return figure


def _objects(page: Page, tally: ObjectTally, config: DenseConfig, stride: int) -> None:
    short = tally.sides(config).min(1)
    if len(short):
        page.heading("Objects of train")
        page.figure(_object_figure(tally, np.maximum(short, 0.5), stride))


def _object_figure(tally: ObjectTally, short: NDArray[np.float64], stride: int) -> Any:
    figure, (sides, numbers) = _axes(2)
    sides.hist(short, bins=np.geomspace(short.min(), short.max() * 1.01, 40))
    sides.axvline(stride, color="black", linestyle=":", label=f"the head's finest cell, {stride} px")
    sides.set(xscale="log", xlabel="shorter side of a box in pixels, in training", ylabel="objects")
    sides.legend()
    per_image = Counter(index for index, _ in tally.single())
    counts = [per_image[index] for index in tally.used]
    numbers.hist(counts, bins=np.arange(max(counts, default=0) + 2) - 0.5)
    numbers.set(xlabel="objects per picture", ylabel="pictures")
    return figure


def _axes(columns: int, height: float = 3.2) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _pictures(page: Page, inspection: Inspection, tally: Tally) -> None:
    if inspection.task == "classify":
        for label, pictures in pictures_by_class(tally):
            page.heading(f"{inspection.classes[label]}: {len(tally.members()[label]):,} images to train on")
            page.pictures(pictures, SIDE)
        return
    page.heading("Pictures of train, with what is annotated in them")
    page.pictures(scenes(tally, inspection.task), SCENE_SIDE)
