"""What a validation finds beside its measures: for each task its classes and its worst mistakes, as parts of a page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vankit.pages import Page
from vankit.reports.worst import Worst, name_of

ROWS = 1000  # most of a table of classes


class Findings:
    """What one validation found.

    Args:
        headings: of the kinds of mistakes.
        kept: how many mistakes of each kind are kept.

    Attributes:
        count: images seen.
        worst: the worst mistakes by heading.
    """

    def __init__(self, headings: Sequence[str], kept: int) -> None:
        self.count = 0
        self.worst = {heading: Worst(kept) for heading in headings}

    def name_pictures(self, dataset: Any) -> None:
        """Give the mistakes the names of their images, for their places are of one process's share of the data."""
        for kept in self.worst.values():
            kept.mistakes = [replace(each, name=name_of(dataset, each.place)) for each in kept.mistakes]

    def merge(self, other: "Findings") -> None:
        """Add what another process has found in its share."""
        self.count += other.count
        for heading, kept in other.worst.items():
            for mistake in kept.mistakes:
                self.worst[heading].add(mistake)

    def write(self, page: Page) -> None:
        """Add the sections to a report."""
        raise NotImplementedError

    def _write_pictures(self, page: Page, heading: str, text: str, side: int) -> None:
        mistakes = self.worst[heading].worst_first()
        page.heading(heading)
        page.text(text if mistakes else "None.")
        page.pictures([(each.picture, f"{each.caption}\n{each.name}".strip()) for each in mistakes], side)


def write_classes(page: Page, rows: Sequence[Mapping[str, Any]], measure: str) -> None:
    """Add a table of the classes, of very many only those with the lowest values of a measure."""
    page.heading("Classes")
    if len(rows) > ROWS:
        page.text(f"The {ROWS:,} of {len(rows):,} classes with the lowest {measure}.")
        known = [row for row in rows if row[measure] is not None and row[measure] == row[measure]]
        rows = sorted(known, key=lambda row: row[measure])[:ROWS]
    page.table(rows)
