"""`vankit inspect`: what a folder of data holds, before anything is trained on it."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from vankit.cli.terminal import console, say

if TYPE_CHECKING:
    from vankit.inspection import Inspection
    from vankit.inspection.report import ClassCount, Copies, Finding, Split

_CLASSES = 12  # that are shown
_FINDINGS = 6  # of a kind
_LETTERS = 240  # of a finding


def command(
    data: str,
    /,
    *,
    task: Literal["classify", "detect", "segment", "panoptic"] | None = None,
    output: Path | None = None,
    workers: int = 2,
    max_pixels: int = 67_108_864,
) -> None:
    """Say what is in a folder of data, as vankit train would read it, and how to start.

    Prints the splits, the classes with their counts, what would end a training or be left out, files of the same
    content, and the command to start with. Every file is opened once; nothing is written without --output.

    Args:
        data: a folder, in any layout that vankit train reads.
        task: what it is for. Default: what it looks made for.
        output: HTML file for a report with pictures, such as report.html; it opens offline.
        workers: processes that look at the pictures.
        max_pixels: an image with more pixels than this is not decoded.
    """
    from vankit.inspection import inspect

    show(inspect(data, task, output, workers=workers, max_pixels=max_pixels))
    if output is not None:
        say()
        say(f"report: {output}")


def show(inspection: "Inspection") -> None:
    """Print an inspection on one screen."""
    out = console()
    say(_title(inspection))
    out.print(_splits(inspection))
    if inspection.held_out:
        count, total = inspection.held_out
        say(f"no val split: training holds {count:,} of the {total:,} training images out (--val-share)")
    say()
    out.print(_classes(inspection.splits))
    for heading, findings in (
        ("In the way, to be mended first:", inspection.in_the_way),
        ("Would end training but for an option:", inspection.of("stops", with_option=True)),
        ("Repaired:", inspection.of("repaired")),
        ("Passed over:", inspection.of("passed over")),
        ("Worth knowing:", inspection.of("note")),
    ):
        _show_findings(out, heading, findings)
    _show_lines(out, "The same content twice:", [_copies(inspection.data, each) for each in inspection.copies])
    say()
    say("Start with:")
    say(f"  {inspection.command}")
    said = {each.option for each in inspection.findings}
    _show_lines(out, "", [f"{option}: {why}" for option, why in inspection.options if why and option not in said])


def _title(inspection: "Inspection") -> str:
    others = " or ".join(f"--task {task}" for task in inspection.tasks if task != inspection.task)
    also = f" (also: {others})" if others else ""
    return f"{inspection.data}: {inspection.task}, {len(inspection.classes):,} classes{also}"


def _copies(data: str, copies: "Copies") -> str:
    return f"{copies}: {' = '.join(os.path.relpath(path, data) for path in copies.examples[0])}"


def _splits(inspection: "Inspection") -> Table:
    splits = inspection.splits
    extra = [name for name in ("empty", "crowds", "unlabelled") if getattr(splits[0], name) is not None]
    table = _table("split", ["images", "smallest", "median", "largest", f"< {inspection.side}", *extra])
    for split in splits:
        sizes = split.sizes
        sides = [f"{w}x{h}" for w, h in (sizes.smallest, sizes.median, sizes.largest)] if sizes else [""] * 3
        sides.append(_figure(sizes.below if sizes else None))
        table.add_row(split.name, f"{split.images:,}", *sides, *(_figure(getattr(split, name)) for name in extra))
    return table


def _classes(splits: "Sequence[Split]") -> Table:
    names = [name for name in ("objects", "small", "pixels") if getattr(splits[0].classes[0], name) is not None]
    columns = [
        (split, name) for split in splits for name in ("images", *names) if name != "small" or split is splits[0]
    ]
    table = _table("class", [split.name if name == "images" else name for split, name in columns])
    by_name = {split.name: {each.name: each for each in split.classes} for split in splits}
    for name in _some(splits[0].classes):
        if isinstance(name, int):
            table.add_row(f"… {name:,} more")
            continue
        cells = [getattr(by_name[split.name].get(name), column, 0) for split, column in columns]
        table.add_row(textwrap.shorten(name, 24, placeholder="…"), *map(_figure, cells))
    return table


def _some(classes: "Sequence[ClassCount]") -> list[str | int]:
    """The names of all classes, or of the most frequent and the rarest with the number of the others between."""
    if len(classes) <= _CLASSES:
        return [each.name for each in classes]
    ordered = sorted(classes, key=lambda each: (each.objects or 0, each.pixels or 0, each.images), reverse=True)
    half = _CLASSES // 2
    return [*(c.name for c in ordered[:half]), len(ordered) - 2 * half, *(c.name for c in ordered[-half:])]


def _table(first: str, others: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _figure(value: float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if isinstance(value, float) else f"{value:,}"


def _show_findings(out: Console, heading: str, findings: "Sequence[Finding]") -> None:
    lines = [": ".join(filter(None, (each.option, each.split, str(each)))) for each in findings[:_FINDINGS]]
    if len(findings) > _FINDINGS:
        lines.append(f"… {len(findings) - _FINDINGS} more")
    _show_lines(out, heading, lines)


def _show_lines(out: Console, heading: str, lines: Sequence[str]) -> None:
    if lines and heading:
        say()
        say(heading)
    for line in lines:
        for part in textwrap.wrap(_cut(line), out.width - 2, initial_indent="  ", subsequent_indent="    "):
            say(part)


def _cut(line: str) -> str:
    return line if len(line) <= _LETTERS else f"{line[:_LETTERS]} …"
