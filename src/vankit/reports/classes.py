"""A classifier's answers on a validation set: classes, confusions, and the surest mistakes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vankit.data.preprocessing import Preprocessing
from vankit.pages import Page, plain
from vankit.reports.findings import Findings, write_classes
from vankit.reports.worst import Mistake, Place, picture_of, scaled

_MISTAKES = "Surest mistakes"
_KEPT, _SIDE = 24, 200
_PAIRS = 20
_DRAWN = 60  # classes in a confusion matrix, at most


class ClassFindings(Findings):
    """What a classifier answered, image by image.

    Args:
        classes: names of the data's classes.
        preprocessing: that made the images.
        known: the network's classes, where they are others than the data's.
        column: (known,) the data's class for each of the network's, or their number for one that the data lacks.
    """

    def __init__(
        self,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        known: Sequence[str] | None = None,
        column: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__([_MISTAKES], _KEPT)
        self.classes, self.known = list(classes), list(known or classes)
        self.column = np.arange(len(classes)) if column is None else column
        self.mean, self.std = (
            np.array(values, np.float32)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
        )
        self.labels: list[NDArray[np.int64]] = []
        self.answers: list[NDArray[np.int64]] = []

    def add(
        self,
        batch: range | None,
        pixels: Callable[[int], NDArray[np.float32]],
        labels: NDArray[np.int64],
        logits: NDArray[np.float32],
    ) -> None:
        """Take in a batch.

        Args:
            batch: the items of the data set that it was made of; None of a stream.
            pixels: image of the batch → (3, H, W) as the network sees it; asked for only of the few that are shown.
            labels: (B,) the data's classes; B may be less than the items, where some were left out.
            logits: (B, known).
        """
        best = logits.argmax(1)
        answers = self.column[best]
        scores = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)  # softmax of the best
        worst = self.worst[_MISTAKES]
        for i in np.argsort(-scores, kind="stable"):
            if answers[i] != labels[i] and worst.takes(score := float(scores[i])):
                place = None if batch is None else Place(batch, len(labels), int(i))
                caption = f"{self.classes[labels[i]]} → {self.known[best[i]]} {score:.1%}"
                worst.add(Mistake(score, -self.count - int(i), place, self._picture(pixels(int(i))), caption))
        self.labels.append(labels)
        self.answers.append(answers)
        self.count += len(labels)

    def _picture(self, pixels: NDArray[np.float32]) -> Image.Image:
        return scaled(picture_of(pixels * self.std + self.mean), _SIDE)

    def merge(self, other: Any) -> None:
        super().merge(other)
        self.labels += other.labels
        self.answers += other.answers

    def write(self, page: Page) -> None:
        labels, answers = np.concatenate(self.labels), np.concatenate(self.answers)
        n = len(self.classes)
        counts = (np.bincount(x, minlength=n)[:n] for x in (labels, answers, labels[labels == answers]))
        write_classes(page, class_rows(self.classes, *counts), "recall")
        page.heading("Confusions")
        page.table(_confusions(self.classes, labels, answers))
        if n <= _DRAWN:
            confusion = np.zeros((n, n + 1), np.int64)
            np.add.at(confusion, (labels, answers), 1)
            page.figure(draw_confusion(confusion, self.classes))
        text = "The wrong answers with the highest scores: true class → answer. Pictures are as the network sees them."
        self._write_pictures(page, _MISTAKES, text, _SIDE)


def class_rows(
    classes: Sequence[str], images: NDArray[np.int64], answers: NDArray[np.int64], hits: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Per class: name, images, recall (accuracy within the class) and precision, 0 to 1; None without images.

    Args:
        classes: names.
        images: of each class.
        answers: how often each was the answer.
        hits: how often that was right.
    """
    columns = zip(classes, images.tolist(), answers.tolist(), hits.tolist(), strict=True)
    return [
        {
            "class": name,
            "images": number,
            "recall": right / number if number else None,
            "precision": right / answered if answered else None,
        }
        for name, number, answered, right in columns
    ]


def _confusions(classes: list[str], labels: NDArray[np.int64], answers: NDArray[np.int64]) -> list[dict[str, Any]]:
    """The most frequent pairs of a class and a wrong answer."""
    names, images = [*classes, "another class"], np.bincount(labels, minlength=len(classes))
    wrong = np.stack([labels, answers])[:, labels != answers]  # (2, N)
    pairs, counts = np.unique(wrong, axis=1, return_counts=True)
    return [
        {
            "class": names[pairs[0, i]],
            "answer": names[pairs[1, i]],
            "images": int(counts[i]),
            "of the class": float(counts[i] / images[pairs[0, i]]),
        }
        for i in np.argsort(-counts, kind="stable")[:_PAIRS]
    ]


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str], title: str = "") -> Any:
    """A confusion matrix as a figure of matplotlib, rows normalised to their class's images.

    Args:
        confusion: (classes, classes) counts, true by predicted; further columns are not drawn.
        classes: names.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    n = len(classes)
    rows = confusion[:, :n]
    share = rows / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = min(4 + 0.35 * n, 24)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(picture, label="part of the true class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if n <= _DRAWN:
        names = [plain(name) for name in classes]
        axes.set_xticks(range(n), names, rotation=90)
        axes.set_yticks(range(n), names)
    if n <= 20:
        for i, j in np.ndindex(n, n):
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, f"{rows[i, j]}", ha="center", va="center", color=colour, fontsize=8)
    return figure
