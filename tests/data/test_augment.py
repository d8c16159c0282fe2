"""Augmentation: what is done to the picture is done to its target, by as much as was asked for."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from vankit.data.augment import DropEmpty, as_tensors, collate, evaluation_transform, training_transform

HEIGHT, WIDTH = 48, 70
Sample = tuple[Any, dict[str, Any]]


def scene(*rectangles: tuple[int, int, int, int], size: tuple[int, int] = (HEIGHT, WIDTH)) -> Sample:
    """Black, with a white rectangle, labelled from 1, for each x1, y1, x2, y2; the rest of `semantic` is 0."""
    image = torch.zeros(3, *size, dtype=torch.uint8)
    masks = torch.zeros(len(rectangles), *size, dtype=torch.bool)
    semantic = torch.zeros(size, dtype=torch.uint8)
    for i, (x1, y1, x2, y2) in enumerate(rectangles):
        image[:, y1:y2, x1:x2] = 255
        masks[i, y1:y2, x1:x2] = True
        semantic[y1:y2, x1:x2] = i + 1
    boxes = torch.tensor(rectangles, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "labels": torch.arange(len(rectangles)) + 1,
        "masks": tv_tensors.Mask(masks),
        "iscrowd": torch.zeros(len(rectangles), dtype=torch.bool),
        "area": masks.sum((1, 2)).float(),
        "semantic": tv_tensors.Mask(semantic),
        "image_id": 7,
    }
    return tv_tensors.Image(image), target


def only(sample: Sample, *names: str) -> Sample:
    return sample[0], {name: sample[1][name] for name in (*names, "image_id")}


INSTANCES = ("boxes", "labels", "masks", "iscrowd", "area")
OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {"flip": 0.0},
    "flip": {"flip": 1.0},
    "crop": {"short_side": 48, "crop": 40},
    "padding": {"short_side": 48, "crop": 90},
    "short side": {"short_side": 60, "scale_range": (0.5, 1.7), "long_side": 100},
    "short side and crop": {"short_side": 60, "scale_range": (0.5, 2.0), "crop": 64},
    "large-scale jitter": {"scale_range": (0.3, 2.0), "crop": 64},
}


def shrunk(mask: Tensor, by: int = 3) -> Tensor:
    """The pixels farther than `by` from all that is outside the mask: resizing blurs the picture's edges alone."""
    outside = F.pad((~mask)[None].float(), (by, by, by, by), value=1.0)
    return F.max_pool2d(outside, 2 * by + 1, 1)[0] == 0


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_picture_masks_and_boxes_stay_aligned(options: dict[str, Any]) -> None:
    transform = training_transform(**options)
    compared = 0
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = transform(*only(scene((5, 8, 30, 28), (40, 20, 66, 45)), *INSTANCES))
        masks, boxes = target["masks"].as_subclass(Tensor), target["boxes"].as_subclass(Tensor)
        assert image.dtype == torch.float32 and masks.dtype == torch.bool
        assert image.shape[1:] == masks.shape[1:] == target["boxes"].canvas_size
        height, width = image.shape[1:]
        white = image[0] > 0.6
        assert not (white & shrunk(~masks.any(0))).any() and not (~white & shrunk(masks.any(0))).any()
        for label, mask, (x1, y1, x2, y2) in zip(target["labels"].tolist(), masks, boxes.tolist(), strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            tight = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            assert [x1, y1, x2, y2] == pytest.approx(tight, abs=1.01)
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            assert label in (1, 2)
            compared += 1
    assert compared >= 12


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_picture_and_label_map_stay_aligned(options: dict[str, Any]) -> None:
    transform = training_transform(**options, padding_label=255)
    labels_seen: set[int] = set()
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = transform(*only(scene((5, 8, 30, 28), (40, 20, 66, 45)), "semantic"))
        semantic = target["semantic"].as_subclass(Tensor)
        assert semantic.dtype == torch.uint8 and image.shape[1:] == semantic.shape
        white, grey = image[0] > 0.6, (image * 255 - 127).abs().amax(0) < 0.01
        inside, padding = (semantic == 1) | (semantic == 2), semantic == 255
        assert not (white & shrunk(~inside)).any() and not (~white & shrunk(inside)).any()
        assert (grey & padding).sum() == padding.sum()
        labels_seen |= set(semantic.unique().tolist())
    assert labels_seen == ({0, 1, 2, 255} if options.get("crop", 0) > 48 else {0, 1, 2})


def test_padding_is_grey_and_of_no_object() -> None:
    torch.manual_seed(0)
    image, target = training_transform(short_side=20, crop=50)(*scene((0, 0, 30, 20), size=(20, 30)))
    assert image.shape == (3, 50, 50)
    assert target["masks"].sum() == 600 and (image[:, target["masks"][0]] == 1).all()
    assert torch.allclose(image[:, ~target["masks"][0]], torch.tensor(127 / 255))
    assert target["semantic"].unique().tolist() == [0, 1]
    torch.manual_seed(0)
    _, padded = training_transform(short_side=20, crop=50, padding_label=255)(*only(scene(size=(20, 30)), "semantic"))
    assert ((padded["semantic"] == 255) == ~target["masks"][0]).all()


def sizes(count: int, size: tuple[int, int], **options: Any) -> list[tuple[int, int]]:
    transform = training_transform(**options, flip=0.0)
    torch.manual_seed(0)
    return [tuple(transform(*only(scene(size=size), "semantic"))[0].shape[1:]) for _ in range(count)]


def test_the_short_side_is_drawn_from_the_range() -> None:
    found = sizes(150, (60, 90), short_side=30, scale_range=(0.5, 2.0))
    shorter = [height for height, _ in found]
    assert 14 <= min(shorter) <= 18 and 57 <= max(shorter) <= 60  # torchvision cuts off what is after the point
    assert len(set(shorter)) > 30
    assert all(width == pytest.approx(1.5 * height, abs=2.5) for height, width in found)


def test_the_long_side_has_a_limit_before_scaling() -> None:
    assert set(sizes(5, (20, 200), short_side=30, long_side=100)) == {(10, 100)}
    longer = [width for _, width in sizes(80, (20, 200), short_side=30, long_side=100, scale_range=(0.5, 2.0))]
    assert 48 <= min(longer) <= 60 and 185 <= max(longer) <= 200


def test_large_scale_jitter_is_relative_to_the_crop() -> None:
    transform = training_transform(crop=64, scale_range=(0.5, 2.0))
    torch.manual_seed(0)
    widths, heights = [], []
    for _ in range(150):
        image, _ = transform(*scene((0, 0, 80, 40), size=(40, 80)))  # fits by its width: 64 x 32 at scale 1
        assert image.shape == (3, 64, 64)
        white = image[0] > 0.6
        widths.append(int(white.any(0).sum()))
        heights.append(int(white.any(1).sum()))
    assert 31 <= min(widths) <= 35 and max(widths) == 64
    assert 15 <= min(heights) <= 18 and 60 <= max(heights) <= 64
    uncut = [(h, w) for h, w in zip(heights, widths, strict=True) if w < 64]
    assert len(uncut) > 20 and all(h == pytest.approx(w / 2, abs=1.01) for h, w in uncut)


def test_without_scale_or_crop_the_size_is_left_alone() -> None:
    image, target = training_transform(flip=0.0)(*scene((5, 8, 30, 28)))
    before, unchanged = scene((5, 8, 30, 28))
    assert torch.equal(image, before / 255)
    assert target.keys() == unchanged.keys()
    assert all(torch.equal(target[name], unchanged[name]) for name in (*INSTANCES, "semantic"))


def test_flipped_boxes_by_hand() -> None:
    image, target = training_transform(flip=1.0)(*scene((2, 3, 6, 8), size=(10, 20)))
    assert target["boxes"].tolist() == [[14, 3, 18, 8]]
    assert image[0].nonzero().tolist() == [[y, x] for y in range(3, 8) for x in range(14, 18)]
    torch.manual_seed(0)
    often = [training_transform(flip=0.25)(*scene((2, 3, 6, 8), size=(10, 20)))[1]["boxes"][0, 0] for _ in range(400)]
    assert 70 <= sum(x1 == 14 for x1 in often) <= 130


def test_objects_of_which_a_crop_left_nothing_are_dropped() -> None:
    transform = training_transform(short_side=20, crop=20, flip=0.0)
    kept: set[tuple[int, ...]] = set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = transform(*scene((0, 0, 6, 6), (30, 3, 40, 10), size=(20, 40)))
        white = image[0] > 0.6
        assert all(len(target[name]) == len(target["labels"]) for name in INSTANCES)
        assert target["masks"].flatten(1).any(1).all()
        assert white.any() == bool(len(target["labels"]))
        assert isinstance(target["masks"], tv_tensors.Mask) and isinstance(target["boxes"], tv_tensors.BoundingBoxes)
        assert target["boxes"].canvas_size == (20, 20) and target["image_id"] == 7
        kept.add(tuple(target["labels"].tolist()))
    assert {(1,), (2,)} <= kept <= {(), (1,), (2,), (1, 2)}


def test_drop_empty_by_hand() -> None:
    image, target = scene((0, 0, 5, 5), (10, 10, 20, 20), (30, 30, 40, 40), (50, 5, 60, 9))
    target["masks"][1] = False
    target["boxes"][2, 2] = 30.5
    found_image, found = DropEmpty()(image, target)
    assert found_image is image
    assert found["labels"].tolist() == [1, 4]
    assert found["boxes"].tolist() == [[0, 0, 5, 5], [50, 5, 60, 9]]
    assert found["area"].tolist() == [25, 40] and found["iscrowd"].tolist() == [False, False]
    assert torch.equal(found["masks"], target["masks"][[0, 3]])
    assert found["semantic"] is target["semantic"] and found["image_id"] == 7
    for name in ("boxes", "masks"):
        without = {key: value for key, value in target.items() if key != name}
        assert len(DropEmpty()(image, without)[1]["labels"]) == 3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_images_without_objects_survive(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    image, target = training_transform(**options)(*only(scene(), *INSTANCES))
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, *image.shape[1:])
    assert all(target[name].shape == (0,) for name in ("labels", "iscrowd", "area"))


def test_colour_changes_the_picture_alone_and_swaps_no_channels() -> None:
    transform = training_transform(color=True, flip=0.0)
    sample = scene((5, 8, 30, 28))
    sample[0][:] = torch.tensor([200, 60, 60], dtype=torch.uint8)[:, None, None]
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        image, target = transform(*sample)
        red, green, blue = (image[:, 0, 0] * 255).round().int().tolist()
        assert red > max(green, blue) and image.shape == (3, HEIGHT, WIDTH)
        assert all(torch.equal(target[name], sample[1][name]) for name in (*INSTANCES, "semantic"))
        seen.add((red, green, blue))
    assert (200, 60, 60) in seen and len(seen) > 40


def test_the_seed_decides() -> None:
    transform = training_transform((0.3, 2.0), crop=64, color=True)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(transform(*scene((5, 8, 30, 28))))
    (first, boxes), (again, same_boxes), (other, _) = found
    assert torch.equal(first, again) and torch.equal(boxes["masks"], same_boxes["masks"])
    assert not torch.equal(first, other)


def test_evaluation_changes_nothing_but_the_range() -> None:
    sample = scene((5, 8, 30, 28))
    image, target = evaluation_transform()(*sample)
    assert image.dtype == torch.float32 and torch.equal(image, sample[0] / 255)
    assert all(torch.equal(target[name], sample[1][name]) for name in (*INSTANCES, "semantic"))
    assert target["masks"].dtype == torch.bool and target["semantic"].dtype == torch.uint8


def test_a_readers_item_as_tensors() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    masks = np.zeros((1, HEIGHT, WIDTH), bool)
    masks[0, 8:28, 5:30] = True
    boxes, labels = np.array([[5, 8, 30, 28]], np.float32), np.array([3])
    target = {"boxes": boxes, "labels": labels, "masks": masks, "semantic": masks[0].astype(np.uint8), "image_id": 7}
    image, found = as_tensors(Image.fromarray(pixels), target)
    assert type(image) is tv_tensors.Image and image.permute(1, 2, 0).tolist() == pixels.tolist()
    kinds = {name: type(value) for name, value in found.items()}
    mask, box = tv_tensors.Mask, tv_tensors.BoundingBoxes
    assert kinds == {"boxes": box, "labels": Tensor, "masks": mask, "semantic": mask, "image_id": int}
    assert (found["boxes"].format.value, found["boxes"].canvas_size) == ("XYXY", (HEIGHT, WIDTH))
    for name in kinds.keys() - {"image_id"}:
        assert found[name].tolist() == target[name].tolist() and found[name].numpy().dtype == target[name].dtype, name


def test_collated_samples_are_plain_tensors() -> None:
    samples = [evaluation_transform()(*scene(*boxes)) for boxes in ([(5, 8, 30, 28)], [])]
    samples[0][1]["masks"] = tv_tensors.Mask(samples[0][1]["masks"].to(torch.uint8))
    images, targets = collate(samples)
    assert [type(image) for image in images] == [Tensor, Tensor] and torch.equal(images[0], samples[0][0])
    for target, (_, before) in zip(targets, samples, strict=True):
        assert target["image_id"] == 7
        assert all(type(target[name]) is Tensor for name in (*INSTANCES, "semantic"))
        assert target["masks"].dtype == torch.bool and target["semantic"].dtype == torch.int64
        assert target["labels"].dtype == torch.int64 and target["boxes"].dtype == torch.float32
        assert all(target[name].tolist() == before[name].tolist() for name in (*INSTANCES, "semantic"))
