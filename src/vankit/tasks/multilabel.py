"""Multi-label classification: average precision, and the threshold of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def sigmoid(logits: Array) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))


def average_precision(truth: NDArray[np.bool_], scores: Array) -> float:
    """The precision at each score, averaged with the recall that is gained there; NaN without a positive.

    As scikit-learn's `average_precision_score`: without interpolation, equal scores together.

    Args:
        truth: (N,), which images have the class.
        scores: (N,), of any scale.
    """
    hits, taken, _ = _ranked(truth, scores)
    if not truth.any():
        return float("nan")
    return float(np.sum(np.diff(hits, prepend=0) * hits / taken) / hits[-1])


def best_threshold(truth: NDArray[np.bool_], scores: Array) -> float:
    """The score from which on a class is given so that its F1 is best: of several the highest, 0.5 without a positive.

    It lies midway between the lowest score that is to get the class and the next one below, or 0.

    Args:
        truth: (N,), which images have the class.
        scores: (N,), 0 to 1.
    """
    if not truth.any():
        return 0.5
    hits, taken, cuts = _ranked(truth, scores)
    best = int(np.argmax(2 * hits / (taken + hits[-1])))
    high, low = float(cuts[best]), float(cuts[best + 1]) if best + 1 < len(cuts) else 0.0
    middle = (high + low) / 2
    return middle if middle > low else high


def _ranked(truth: NDArray[np.bool_], scores: Array) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """For each different score, best first: positives and images of at least that score, and the score."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(order) - 1)[: len(order)]
    return np.cumsum(truth[order])[ends], ends + 1, ordered[ends]


class MultiLabelMeasure:
    """mAP, and with thresholds also precision and recall; see `vankit.tasks.metrics` for how it is used.

    It keeps all scores: 5 bytes per image and class.

    Args:
        classes: names by index.
        thresholds: score, 0 to 1, from which on each class is given; empty to measure mAP alone.
    """

    def __init__(self, classes: Sequence[str], thresholds: Sequence[float] = ()) -> None:
        self.classes, self.thresholds = list(classes), tuple(thresholds)
        self._parts: list[tuple[NDArray[np.bool_], NDArray[np.float32]]] = []

    def add(self, truth: NDArray[Any], logits: NDArray[np.float32]) -> None:
        """Take in some images.

        Args:
            truth: (B, classes) of 0 and 1.
            logits: (B, classes).
        """
        self._parts.append((np.asarray(truth) > 0, logits))

    def state(self) -> list[tuple[NDArray[np.bool_], NDArray[np.float32]]]:
        """All that was added, for `merge`."""
        return list(self._parts)

    def merge(self, state: list[tuple[NDArray[np.bool_], NDArray[np.float32]]]) -> None:
        """Add what another measure was given."""
        self._parts += state

    def compute(self) -> dict[str, float]:
        """mAP: the mean of the average precision of the classes with positives, NaN if there are none.

        With thresholds also the precision, recall and F1 of all labels together.
        """
        rows = self.per_class()
        precisions = [row["AP"] for row in rows if row["images"]]
        measures = {"mAP": float(np.mean(precisions)) if precisions else float("nan")}
        if self.thresholds:
            truth, logits = self._all()
            measures |= _decided(truth, sigmoid(logits) >= self.thresholds)
        return measures

    def per_class(self) -> list[dict[str, Any]]:
        """Per class: its name, images that have it, average precision, and with thresholds precision, recall, F1 and
        the threshold; NaN where the images say nothing."""
        rows = []
        truth, logits = self._all()
        for i, name in enumerate(self.classes):
            row = {"class": name, "images": int(truth[:, i].sum()), "AP": average_precision(truth[:, i], logits[:, i])}
            if self.thresholds:
                threshold = self.thresholds[i]
                row |= {**_decided(truth[:, i], sigmoid(logits[:, i]) >= threshold), "threshold": threshold}
            rows.append(row)
        return rows

    def best_thresholds(self) -> tuple[float, ...]:
        """See `best_threshold`, per class."""
        truth, logits = self._all()
        return tuple(best_threshold(truth[:, i], sigmoid(logits[:, i])) for i in range(len(self.classes)))

    def _all(self) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
        if len(self._parts) > 1:
            truths, logits = zip(*self._parts, strict=True)
            self._parts = [(np.concatenate(truths), np.concatenate(logits))]
        empty = np.zeros((0, len(self.classes)))
        return self._parts[0] if self._parts else (empty > 0, empty.astype(np.float32))


def _decided(truth: NDArray[np.bool_], given: NDArray[np.bool_]) -> dict[str, float]:
    hits, found, there = (int(np.count_nonzero(x)) for x in (truth & given, given, truth))
    return {
        "precision": hits / found if found else float("nan"),
        "recall": hits / there if there else float("nan"),
        "F1": 2 * hits / (found + there) if found + there else float("nan"),
    }


@dataclass(frozen=True)
class MultiLabelReport:
    """Measures of a multi-label classifier on a labelled image set.

    Attributes:
        count: images measured.
        measures: figures by name, 0 to 1, NaN where the images say nothing: mAP, and precision, recall and F1 of all
            labels together at the network's thresholds.
        per_class: a dict per class of the data: its name as `class`, `images` that have it, `AP`, `precision`,
            `recall`, `F1` and `threshold`.
        skipped: images that could not be read, as (path, reason).
    """

    count: int
    measures: dict[str, float]
    per_class: list[dict[str, Any]]
    skipped: list[tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON-able values, None for NaN."""
        return {
            "images": self.count,
            "measures": without_nan(self.measures),
            "classes": [without_nan(row) for row in self.per_class],
            "skipped": [{"image": path, "error": reason} for path, reason in self.skipped],
        }


def without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Figures as JSON has them: None for NaN."""
    return {name: None if value != value else value for name, value in row.items()}
