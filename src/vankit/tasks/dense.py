"""The dense tasks by name: how each is measured, and how a result becomes a scene.

Results and targets are those of `vankit.heads` as arrays; `vankit.tasks.inference.arrays` makes them of tensors.

- detect: `boxes` (N, 4) float32, `labels` (N,) int64, `scores` (N,) float32, best first, and `masks` (N, H, W) bool
  where the head has them. A target has no scores but `iscrowd` (N,) bool and `area` (N,).
- segment: `semantic` (H, W) int64, in a target 255 where unlabelled.
- panoptic: `segments` (H, W) int64, 0 for none, i + 1 for segment i; `labels` (S,), `scores` (S,) float32. A target has
  `masks` (S, H, W) bool, `labels` and `iscrowd`.
"""

from typing import Any, Protocol

from vankit.tasks.detect import Detect
from vankit.tasks.panoptic import Panoptic
from vankit.tasks.results import Arrays
from vankit.tasks.segment import Segment


class Evaluator(Protocol):
    """A task's measure over the images seen so far.

    Attributes:
        measure: has `compute()` (figures by name, 0 to 1, NaN where the images say nothing; the first one is the one to
            choose by), `per_class()`, `state()` and `merge(state)`.
    """

    measure: Any

    def reset(self) -> None:
        """Forget all images."""

    def add(self, target: Arrays, result: Arrays) -> Any:
        """Take one image: its target and the network's result for it; its own measure alone."""


EVALUATORS: dict[str, Any] = {"detect": Detect, "segment": Segment, "panoptic": Panoptic}
