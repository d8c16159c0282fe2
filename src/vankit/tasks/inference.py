"""What of the dense tasks needs PyTorch: a network's results for images of any size, and these as arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vankit.errors import check_output
from vankit.tasks.segment import Test

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_OVERLAP = 1 / 3

Network = Callable[[list[Tensor]], list[dict[str, Tensor]]]


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


def arrays(given: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """The tensors (or arrays) of a network's result or of a target, see `vankit.heads`, as `vankit.tasks.dense` takes
    them.

    Floats become float32; in place of `logits` (classes, H, W) there is the best class per pixel, `semantic` (H, W).
    """
    if "logits" in given:
        given = {"semantic": given["logits"].argmax(0)}
    return {name: _array(values) for name, values in given.items() if isinstance(values, Tensor | np.ndarray)}


def _array(values: Tensor | NDArray[Any]) -> NDArray[Any]:
    if isinstance(values, np.ndarray):
        return values
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()  # NumPy has no bfloat16


def segment_logits(
    network: Network, image: Tensor, test: Test = "single", short_side: int = 0, long_side: int = 0, crop: int = 512
) -> Tensor:
    """A semantic network's logits for one image, at the image's size.

    Args:
        network: a semantic network of `vankit.heads` in eval mode.
        image: (3, H, W), RGB, 0 to 1.
        test: single: the image once; multiscale: at 0.5 to 1.75 times the size and mirrored, softmax averaged; slide:
            in overlapping windows.
        short_side, long_side: size in pixels that the image is brought to first, as in training; 0 leaves it.
        crop: side of the windows in pixels.

    Returns:
        (classes, H, W) logits, or log probabilities for multiscale.
    """
    size = image.shape[-2:]
    if short_side:
        image = _resize(image, _scale(size, short_side, long_side))
    if test == "slide":
        logits = _slide(network, image, crop)
    elif test == "multiscale":
        logits = _multiscale(network, image)
    else:
        logits = _logits(network, image)
    return _resize(logits, size)


def _logits(network: Network, image: Tensor) -> Tensor:
    return network([image])[0]["logits"].float()  # resizing knows no bfloat16 on every device


def _scale(size: Sequence[int], short_side: int, long_side: int) -> tuple[int, int]:
    """In whole numbers, as other runtimes compute it too."""
    side, length = short_side, min(size)
    if long_side and short_side * max(size) > long_side * length:
        side, length = long_side, max(size)
    height, width = (max(1, (2 * n * side + length) // (2 * length)) for n in size)
    return height, width


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """(C, H, W) → (C, *size)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps[None], tuple(size), mode="bilinear", antialias=maps.shape[-1] > size[-1])[0]


def _multiscale(network: Network, image: Tensor) -> Tensor:
    size = image.shape[-2:]
    total: Tensor | float = 0.0
    for scale in SCALES:
        scaled = _resize(image, [max(32, round(side * scale)) for side in size])
        for flipped in (False, True):
            logits = _logits(network, scaled.flip(-1) if flipped else scaled)
            total = total + _resize(logits.flip(-1) if flipped else logits, size).softmax(0)
    assert isinstance(total, Tensor)
    mean = total / (2 * len(SCALES))
    return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()  # resizing would make NaN of -inf


def _slide(network: Network, image: Tensor, crop: int) -> Tensor:
    height, width = image.shape[-2:]
    total: Tensor | None = None
    count = image.new_zeros(height, width)
    for top in _starts(height, crop):
        for left in _starts(width, crop):
            window = (..., slice(top, top + crop), slice(left, left + crop))
            logits = _logits(network, image[window])
            if total is None:
                total = logits.new_zeros(len(logits), height, width)
            total[window] += logits
            count[window] += 1
    assert total is not None
    return total / count


def _starts(length: int, crop: int) -> list[int]:
    """Where windows begin that cover a side, the last one flush with its end."""
    stride = max(1, round(crop * (1 - _OVERLAP)))
    last = max(0, length - crop)
    return sorted({*range(0, last, stride), last})
