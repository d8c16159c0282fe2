"""What happens to a dense task's images and their boxes, masks and label maps before PyTorch trains on them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

_COLOUR = {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}  # of SSD, arXiv 1512.02325
_GREY = 127  # the mean that VAN's preprocessing subtracts
PER_INSTANCE = ("labels", "boxes", "masks", "iscrowd", "area")


def training_transform(
    scale_range: tuple[float, float] = (1.0, 1.0),
    short_side: int = 0,
    long_side: int = 0,
    crop: int = 0,
    flip: float = 0.5,
    color: bool = False,
    padding_label: int = 0,
) -> v2.Transform:
    """Random scale, crop, flip and colour of an image together with its target.

    Args:
        scale_range: random factor on the size, low and high. With `short_side` it is relative to that length; without,
            to the size that just fits into a square of `crop` (large-scale jitter, Ghiasi et al., arXiv 2012.07177).
        short_side: length in pixels of the shorter side before scaling; 0 leaves the size to the network.
        long_side: upper limit of the longer side before scaling; 0 is none.
        crop: side of the square cut out, in pixels; smaller images are padded. 0 is none.
        flip: probability of a horizontal flip, 0 to 1.
        color: randomly vary brightness, contrast, saturation and hue, each for half of the images.
        padding_label: of masks in the padding: 255 for label maps.

    Returns:
        A callable: (image uint8 (3, H, W), target) → (image float32 of 0 to 1, target), both as tv_tensors.
    """
    low, high = scale_range
    steps: list[v2.Transform] = []
    if short_side:
        sides = list(range(max(1, round(short_side * low)), round(short_side * high) + 1))
        limits = [round(long_side * side / short_side) if long_side else None for side in sides]
        steps.append(v2.RandomChoice([v2.RandomShortestSize(*size) for size in zip(sides, limits, strict=True)]))
    elif crop:
        steps.append(v2.ScaleJitter((crop, crop), scale_range, antialias=True))
    if crop:
        steps.append(
            v2.RandomCrop(crop, pad_if_needed=True, fill={tv_tensors.Image: _GREY, tv_tensors.Mask: padding_label})
        )
    if flip:
        steps.append(v2.RandomHorizontalFlip(flip))
    if color:
        # RandomPhotometricDistort would permute the channels too
        steps += [v2.RandomApply([v2.ColorJitter(**{name: strength})]) for name, strength in _COLOUR.items()]
    return v2.Compose([*steps, DropEmpty(), evaluation_transform()])


def evaluation_transform() -> v2.Transform:
    """An image uint8 of 0 to 255 → float32 of 0 to 1; its target stays."""
    return v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)


def as_tensors(image: Image.Image, target: dict[str, Any]) -> tuple[tv_tensors.Image, dict[str, Any]]:
    """An item of `vankit.data.scenes.open_scenes` as what torchvision transforms: uint8 (3, H, W), and tensors."""
    found = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in target.items()}
    if "boxes" in found:
        size = (image.height, image.width)
        found["boxes"] = tv_tensors.BoundingBoxes(found["boxes"], format="XYXY", canvas_size=size)
    for name in {"masks", "semantic"} & found.keys():
        found[name] = tv_tensors.Mask(found[name])
    return v2.functional.to_image(image), found


class DropEmpty(v2.Transform):
    """Leaves out the objects of which a crop left nothing.

    torchvision's SanitizeBoundingBoxes goes by the boxes alone: it keeps an object whose mask a crop emptied, and
    does not take label maps.
    """

    def forward(self, *sample: Any) -> Any:
        image, target = sample
        if "labels" not in target:
            return image, target
        keep = torch.ones(len(target["labels"]), dtype=torch.bool)
        if "boxes" in target:
            x1, y1, x2, y2 = target["boxes"].unbind(1)
            keep &= (x2 - x1 >= 1) & (y2 - y1 >= 1)
        if "masks" in target:
            keep &= target["masks"].flatten(1).any(1)
        if keep.all():
            return image, target
        return image, {
            name: _wrap_like(value[keep], value) if name in PER_INSTANCE else value for name, value in target.items()
        }


def _wrap_like(value: Tensor, like: Tensor) -> Tensor:
    return tv_tensors.wrap(value, like=like) if isinstance(like, tv_tensors.TVTensor) else value


def collate(samples: Sequence[tuple[Tensor, dict[str, Any]] | None]) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Samples as a list of images and a list of targets, plain tensors in both; None is left out."""
    usable = [sample for sample in samples if sample is not None]
    images = [image.as_subclass(Tensor) for image, _ in usable]
    return images, [{name: _plain(name, value) for name, value in target.items()} for _, target in usable]


def _plain(name: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.as_subclass(Tensor)
    return value.long() if name == "semantic" else value.bool() if name == "masks" else value
