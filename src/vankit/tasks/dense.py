"""The dense tasks by name: how each is measured, and how a network answers for images of any size."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from vankit.errors import check_output
from vankit.tasks.detect import Detect
from vankit.tasks.panoptic import Panoptic
from vankit.tasks.segment import Segment, Test, segment_logits


class Evaluator(Protocol):
    """A task's measure over the images seen so far.

    Attributes:
        measure: has `compute()` (figures by name, 0 to 1, NaN where the images say nothing; the first one is the one to
            choose by), `per_class()`, `state()` and `merge(state)`.
    """

    measure: Any

    def reset(self) -> None:
        """Forget all images."""

    def add(self, target: dict[str, Any], result: dict[str, Any]) -> Any:
        """Take one image: its target and the network's result for it, see `vankit.heads`; its own measure alone."""


EVALUATORS: dict[str, Any] = {"detect": Detect, "segment": Segment, "panoptic": Panoptic}


class Sizes(Protocol):
    """What `infer` has to know of a network: a `vankit.models.description.Description`."""

    @property
    def task(self) -> str: ...
    @property
    def short_sides(self) -> Sequence[int]: ...
    @property
    def long_side(self) -> int: ...
    @property
    def crop(self) -> int: ...


def infer(
    network: nn.Module, images: list[Tensor], description: Sizes, test: Test = "single"
) -> list[dict[str, Tensor]]:
    """A network's results for images of any size, see `vankit.heads`.

    Args:
        network: in eval mode.
        images: float32 (3, H, W), RGB, 0 to 1.
        description: of the network.
        test: for semantic segmentation, see `segment_logits`.

    Raises:
        ValueError: a number of the results is not finite.
    """
    results = _infer(network, images, description, test)
    for result in results:
        for values in result.values():
            if values.is_floating_point():
                check_output(values)
    return results


def _infer(network: nn.Module, images: list[Tensor], description: Sizes, test: Test) -> list[dict[str, Tensor]]:
    if description.task != "segment":
        return network(images)
    sizes = {"short_side": description.short_sides[-1], "long_side": description.long_side, "crop": description.crop}
    return [{"logits": segment_logits(network, x, test, **sizes)} for x in images]
