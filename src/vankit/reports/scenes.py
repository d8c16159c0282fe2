"""What a detector or segmenter found on a validation set: classes, precision and recall, and the worst pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vankit.models.description import Description
from vankit.pages import Page, plain
from vankit.reports.findings import Findings, write_classes
from vankit.reports.worst import Mistake, Place, scaled
from vankit.tasks.dense import EVALUATORS
from vankit.tasks.detect import box_areas, match_objects
from vankit.tasks.drawing import draw_boxes
from vankit.tasks.results import Arrays

SCORE = 0.3  # from which on an object counts as found, as `vankit.DensePredictor` has it

_MISSED, _FALSE, _PICTURES = "Largest missed objects", "Surest false objects", "Worst pictures"
_KEPT = 12
_SIDE, _HALF, _GAP = 360, 272, 8  # pixels: three single pictures, or two pairs of halves, stand side by side
_GREEN = (40, 170, 60)
_COLOURS = {_MISSED: (230, 30, 30), _FALSE: (255, 150, 0)}
_CURVES = 10  # classes, at most, that each have a curve


class SceneFindings(Findings):
    """What all dense tasks share.

    Args:
        description: of the network.

    Attributes:
        rows: a dict per class, once the measure is whole.
    """

    headings: tuple[str, ...] = ()

    def __init__(self, description: Description) -> None:
        super().__init__(self.headings, _KEPT)
        self.description = description
        self.rows: list[dict[str, Any]] = []

    def add(self, index: int, image: Image.Image, target: Arrays, result: Arrays, alone: Any) -> None:
        """Take in one image.

        Args:
            index: of the item.
            image: the RGB picture.
            target, result: as arrays, see `vankit.tasks.dense`.
            alone: the task's measure of this image.
        """
        raise NotImplementedError

    def finish(self, measure: Any) -> None:
        """Take the figures of the task's measure of all images."""
        self.rows = measure.per_class()

    def _scene(self, kind: str, given: Arrays) -> Any:
        make = getattr(EVALUATORS[self.description.task], kind)
        return make("", self.description.classes, self.description.things, given)

    def _keep(self, heading: str, score: float, index: int, picture: Image.Image, caption: str) -> None:
        place = Place(range(index, index + 1), 1, 0)
        self.worst[heading].add(Mistake(score, -self.count, place, picture, caption))


class DetectFindings(SceneFindings):
    """Objects that a detector missed, and those that it found where there are none."""

    headings = (_MISSED, _FALSE)

    def __init__(self, description: Description) -> None:
        super().__init__(description)
        self.missed, self.false = np.zeros((2, len(description.classes)), np.int64)
        self.curves: NDArray[np.float64] = np.empty((0, 0))

    def add(self, index: int, image: Image.Image, target: Arrays, result: Arrays, alone: Any) -> None:
        truth, found = (self._scene(kind, _boxes(given)) for kind, given in (("truth", target), ("scene", result)))
        found = found.above(SCORE)
        missed, false = match_objects(truth, target["iscrowd"], found)
        np.add.at(self.missed, truth.labels[missed], 1)
        np.add.at(self.false, found.labels[false], 1)
        shares = box_areas(truth.boxes[missed]) / (image.width * image.height)
        kinds = {  # caption of the worst, objects, and how bad each is
            _MISSED: ("{}, {:.1%} of the picture", truth.boxes[missed], truth.labels[missed], shares),
            _FALSE: ("{} {:.2f}", found.boxes[false], found.labels[false], found.scores[false]),
        }
        for heading, (caption, _, labels, scores) in kinds.items():
            if len(scores) and self.worst[heading].takes(score := float(scores.max())):
                text = caption.format(self.description.classes[labels[scores.argmax()]], score)
                drawn = {kind: (boxes, labels) for kind, (_, boxes, labels, _) in kinds.items()}
                self._keep(heading, score, index, self._draw(image, found.boxes[~false], drawn, heading), text)
        self.count += 1

    def _draw(
        self, image: Image.Image, right: NDArray[np.float32], wrong: dict[str, tuple[Any, Any]], heading: str
    ) -> Image.Image:
        """The picture with boxes: right ones without names, as there may be many, and on top the heading's kind."""
        picture = scaled(image, _SIDE)
        factor = np.float32(picture.width / image.width)
        pen = ImageDraw.Draw(picture)
        for box in right * factor:
            pen.rectangle(box.tolist(), outline=_GREEN)
        for kind in sorted(wrong, key=lambda kind: kind == heading):
            boxes, labels = wrong[kind]
            names = [self.description.classes[label] for label in labels]
            picture = draw_boxes(picture, boxes * factor, names, [_COLOURS[kind]] * len(names))
        return picture

    def finish(self, measure: Any) -> None:
        super().finish(measure)
        self.curves = measure.curves()

    def merge(self, other: Any) -> None:
        super().merge(other)
        self.missed += other.missed
        self.false += other.false

    def write(self, page: Page) -> None:
        extra = zip(self.rows, self.missed.tolist(), self.false.tolist(), strict=True)
        write_classes(page, [{**row, "missed": missed, "false": false} for row, missed, false in extra], "box AP")
        page.text(
            f"An object is missed if nothing of its class with a score of {SCORE} or more overlaps it by half (IoU 0.5 "
            "of boxes); what is found is false if it overlaps no object of its class that much."
        )
        page.heading("Precision and recall")
        page.figure(draw_curves(self.curves, self.description.classes))
        legend = "Red: missed. Green: found. Orange: found where there is no such object."
        share = "The pictures of which a missed object takes the largest share."
        self._write_pictures(page, _MISSED, f"{share} {legend}", _SIDE)
        sure = "The pictures in which a false object has the highest score."
        self._write_pictures(page, _FALSE, f"{sure} {legend}", _SIDE)


class MapFindings(SceneFindings):
    """The pictures that a semantic or panoptic network did worst on."""

    headings = (_PICTURES,)

    def add(self, index: int, image: Image.Image, target: Arrays, result: Arrays, alone: Any) -> None:
        name, value = next(iter(alone.compute().items()))
        if value == value and self.worst[_PICTURES].takes(1 - value):  # NaN of a picture without labels
            picture = scaled(image, _HALF)
            scenes = (self._scene("truth", target), self._scene("scene", result))
            drawn = [scene.resized(picture.size).draw(picture) for scene in scenes]
            self._keep(_PICTURES, 1 - value, index, _side_by_side(*drawn), f"{name} {value:.1%}")
        self.count += 1

    def write(self, page: Page) -> None:
        write_classes(page, self.rows, list(self.rows[0])[1])
        text = "Each measured by itself: those with the lowest figures. Left: the truth. Right: the answer."
        self._write_pictures(page, _PICTURES, text, 2 * _HALF + _GAP)


def scene_findings(description: Description) -> SceneFindings:
    """What to keep of the validation of a detector or segmenter."""
    return (DetectFindings if description.task == "detect" else MapFindings)(description)


def _boxes(given: Arrays) -> Arrays:
    """What of an annotation or a result is needed here: masks are large."""
    return {name: given[name] for name in ("boxes", "labels", "scores") if name in given}


def _side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (left.width + _GAP + right.width, max(left.height, right.height)), (255, 255, 255))
    sheet.paste(left)
    sheet.paste(right, (left.width + _GAP, 0))
    return sheet


def draw_curves(curves: NDArray[np.float64], classes: Sequence[str]) -> Any:
    """Precision over recall as a figure of matplotlib: the mean, and the classes, of many the best and the worst.

    Args:
        curves: (classes, 101), see `vankit.tasks.metrics.DetectionMeasure.curves`.
        classes: names.
    """
    from matplotlib.figure import Figure

    averages = curves.mean(1)
    known = [int(i) for i in np.argsort(-averages, kind="stable") if averages[i] == averages[i]]
    shown = known if len(known) <= _CURVES else known[: _CURVES // 2] + known[-_CURVES // 2 :]
    figure = Figure(figsize=(9, 4.5))
    axes = figure.subplots()
    axes.set(xlabel="recall", ylabel="precision", title="boxes at IoU 0.5, with AP50", xlim=(0, 1), ylim=(0, 1.02))
    recalls = np.linspace(0, 1, curves.shape[1])
    for i in shown:
        axes.plot(recalls, curves[i], linewidth=1, label=f"{averages[i]:.1%} {plain(classes[i])}")
    if known:
        axes.plot(recalls, curves[known].mean(0), "k", linewidth=2.5, label=f"{averages[known].mean():.1%} mean")
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False)
    return figure
