"""A look at data before training: what a folder holds, what would stop a training, and how to start one."""

from os import PathLike
from pathlib import Path
from typing import Any

from vankit.data.images import MAX_PIXELS
from vankit.data.reading import Reading
from vankit.errors import MissingFileError, UserError
from vankit.files import check_named
from vankit.inspection.advice import Advice, advise
from vankit.inspection.classify import ClassStudy, ClassTally
from vankit.inspection.detect import ObjectStudy, stride_of
from vankit.inspection.layouts import likely_tasks
from vankit.inspection.page import write_page
from vankit.inspection.panoptic import PanopticStudy
from vankit.inspection.pictures import Contents
from vankit.inspection.report import Copies, Finding, Inspection, Split
from vankit.inspection.segment import LabelStudy
from vankit.inspection.tallies import Study, look_through, quiet
from vankit.reports.page import check_page

STUDIES: dict[str, type[Study]] = {
    "classify": ClassStudy,
    "detect": ObjectStudy,
    "segment": LabelStudy,
    "panoptic": PanopticStudy,
}


def inspect(
    data: str | PathLike[str],
    task: str | None = None,
    output: str | PathLike[str] | None = None,
    *,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> Inspection:
    """Read a folder of data as `vankit.train` would, and say what is in it.

    Every picture is looked at once: broken ones are found by decoding them, copies by their content. What would end a
    training is left out and reported, with the option of `vankit train` that leaves it out too.

    Args:
        data: a folder, in any layout that `vankit.train` reads.
        task: classify, detect, segment or panoptic; None for the first one that the folder looks made for.
        output: HTML file for a report with pictures; it opens offline.
        workers: processes that look at the pictures.
        max_pixels: of the largest image that is decoded.

    Raises:
        FileNotFoundError: there is no such folder, or nothing to train on in it.
        ValueError: the task is unknown, `output` is not the name of an HTML file, or the annotations of the training
            images cannot be read at all.
    """
    _check(data, task, output, workers)
    root = Path(data)
    with quiet():
        tasks = likely_tasks(root) if task is None else (task,)
        study = STUDIES[tasks[0]](root, Reading(skip_bad=True, max_pixels=max_pixels))
        contents = look_through(study.tallies, workers)
        study.settle()
        findings = study.findings()
        copies, mixed = _copies(study, contents)
        advice = advise(study, findings)
        splits = [tally.report(advice.config, advice.side) for tally in study.tallies]
        findings += [*mixed, *_small_objects(study, splits, advice)]
        inspection = Inspection(
            data=str(data),
            task=study.task,
            tasks=tasks,
            splits=tuple(splits),
            held_out=(division.count, division.held_out.total) if (division := study.division) else None,
            findings=tuple(findings),
            copies=tuple(copies),
            side=advice.side,
            options=advice.options,
        )
        if output is not None:
            write_page(inspection, study, advice.config, output)
    return inspection


def _check(data: Any, task: str | None, output: Any, workers: int) -> None:
    check_named(data=data)
    if str(data) == "shapes" or str(data).startswith(("hfds/", "wds/")):
        raise UserError(f"{data} is not a folder of files: expected one, in any layout that vankit train reads")
    if not Path(data).exists():
        raise MissingFileError(f"no folder {data}: expected one with data to train on")
    if task is not None and task not in STUDIES:
        raise UserError(f"unknown task {task!r}: expected one of {', '.join(STUDIES)}")
    check_page(output)
    if workers < 0:
        raise UserError(f"workers is {workers}, expected 0 or more")


def _copies(study: Study, contents: Contents) -> tuple[list[Copies], list[Finding]]:
    paths = [tally.paths for tally in study.tallies]
    copies = contents.copies(paths)
    mixed = []
    for group in contents.groups:
        tallies = [study.tallies[split] for split, _ in group]
        labels = {
            tally.label(index)
            for tally, (_, index) in zip(tallies, group, strict=True)
            if isinstance(tally, ClassTally)
        }
        if len(labels) > 1:
            mixed.append(f"{paths[group[0][0]][group[0][1]]} ({' and '.join(sorted(labels))})")
    return copies, [Finding("note", "", "pictures that are in several classes", len(mixed), mixed[0])] if mixed else []


def _small_objects(study: Study, splits: list[Split], advice: Advice) -> list[Finding]:
    limit = stride_of(study.masks)
    what = f"objects too small for the head: a side under {limit} px where the pictures' shorter side is {advice.side}"
    found = []
    for split in splits:
        if small := sum(each.small or 0 for each in split.classes):
            total = sum(each.objects or 0 for each in split.classes)
            found.append(Finding("note", split.name, what, small, f"{small / total:.1%} of {total:,}"))
    return found
