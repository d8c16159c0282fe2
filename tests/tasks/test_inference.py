"""Results of any network, checked and as arrays; logits of whole pictures, scales and windows agree."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vankit.data.augment import as_tensors, collate
from vankit.data.scenes import ShapeScenes
from vankit.errors import UserError
from vankit.models.description import Description
from vankit.tasks.inference import SCALES, _starts, arrays, infer, segment_logits

WEIGHT = torch.tensor([[3.0, -1, -1], [-1, 3, -1], [-1, -1, 3], [0.4, 0.3, 0.2]])


class PixelNetwork:
    """Logits are a linear map of each pixel's colour; keeps the images it was asked about."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.asked += images
        return [{"logits": torch.einsum("kc,chw->khw", WEIGHT, image)} for image in images]

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        return [tuple(image.shape[1:]) for image in self.asked]


def picture(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def direct(image: Tensor) -> Tensor:
    return torch.einsum("kc,chw->khw", WEIGHT, image)


def stripes(height: int, width: int) -> Tensor:
    """Red, green and blue from left to right: flipping it changes it, and scaling only its edges."""
    image = torch.zeros(3, height, width)
    for channel, columns in enumerate(torch.arange(width).tensor_split(3)):
        image[channel, :, columns] = 1
    return image


@pytest.mark.parametrize("size", [(40, 56), (37, 61), (9, 100), (1, 1)])
def test_a_picture_at_once(size: tuple[int, int]) -> None:
    network, image = PixelNetwork(), picture(*size)
    assert torch.equal(segment_logits(network, image), direct(image))
    assert torch.equal(network.asked[0], image) and len(network.asked) == 1


@pytest.mark.parametrize("size", [(40, 56), (37, 61), (9, 100), (24, 24), (25, 24)])
@pytest.mark.parametrize("crop", [24, 7, 1])
def test_windows_agree_with_the_whole(size: tuple[int, int], crop: int) -> None:
    network, image = PixelNetwork(), picture(*size)
    assert torch.allclose(segment_logits(network, image, "slide", crop=crop), direct(image), atol=1e-6)
    assert set(network.sizes) == {(min(crop, size[0]), min(crop, size[1]))}


def test_a_picture_smaller_than_the_window_is_one_window() -> None:
    network, image = PixelNetwork(), picture(20, 30)
    assert torch.equal(segment_logits(network, image, "slide", crop=64), direct(image))
    assert network.sizes == [(20, 30)]


def test_windows_that_overlap_are_averaged() -> None:
    count = iter(range(1, 100))

    def numbers(images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"logits": torch.full((1, *image.shape[1:]), float(next(count)))} for image in images]

    # windows of 6 begin at 0, 4, 5
    found = segment_logits(numbers, picture(6, 11), "slide", crop=6)
    assert found[0, 0].tolist() == pytest.approx([1, 1, 1, 1, 1.5, 2, 2.5, 2.5, 2.5, 2.5, 3])
    assert torch.equal(found[0], found[0, :1].expand(6, 11))


def test_multiscale_sees_every_scale_and_its_mirror() -> None:
    network, image = PixelNetwork(), stripes(64, 96)
    segment_logits(network, image, "multiscale")
    assert network.sizes == [(round(64 * s), round(96 * s)) for s in SCALES for _ in range(2)]
    for plain, mirrored in zip(network.asked[::2], network.asked[1::2], strict=True):
        assert torch.equal(plain.flip(-1), mirrored) and not torch.equal(plain, mirrored)


def test_multiscale_flips_back_and_averages_probabilities() -> None:
    image = stripes(64, 96)
    found = segment_logits(PixelNetwork(), image, "multiscale")
    assert torch.allclose(found.exp().sum(0), torch.ones(64, 96), atol=1e-5)
    inside = [*range(3, 29), *range(35, 61), *range(67, 93)]  # away from the edges, which scaling blurs
    assert torch.allclose(found[..., inside].exp(), direct(image).softmax(0)[..., inside], atol=1e-4)
    flat = picture(1, 1).expand(3, 37, 61)
    assert torch.allclose(segment_logits(PixelNetwork(), flat, "multiscale").exp(), direct(flat).softmax(0), atol=1e-5)


def test_multiscale_by_hand() -> None:
    image = picture(48, 80)
    total = torch.zeros(4, 48, 80)
    for scale in SCALES:
        size = (round(48 * scale), round(80 * scale))
        size = (max(32, size[0]), max(32, size[1]))
        for mirror in (False, True):
            x = image.flip(-1) if mirror else image
            if scale != 1:
                x = F.interpolate(x[None], size, mode="bilinear", antialias=scale < 1)[0]
            logits = direct(x)[None]
            if scale != 1:
                logits = F.interpolate(logits, (48, 80), mode="bilinear", antialias=scale > 1)
            total += (logits.flip(-1) if mirror else logits)[0].softmax(0) / 12
    found = segment_logits(PixelNetwork(), image, "multiscale")
    assert torch.allclose(found.exp(), total, atol=1e-5)


def test_certainty_beyond_floats_stays_finite() -> None:
    def certain(images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"logits": torch.stack([image[0] * 0, image[0] * 0 - 500])} for image in images]

    found = segment_logits(certain, picture(60, 90), "multiscale", short_side=32)
    assert found.isfinite().all() and (found.argmax(0) == 0).all()


@pytest.mark.parametrize(
    ("size", "short_side", "long_side", "expected"),
    [
        ((40, 60), 20, 0, (20, 30)),
        ((60, 40), 80, 200, (120, 80)),
        ((40, 120), 40, 60, (20, 60)),
        ((33, 50), 16, 0, (16, 24)),
        ((1, 300), 10, 100, (1, 100)),
    ],
)
@pytest.mark.parametrize("test", ["single", "slide"])
def test_the_network_sees_the_size_asked_for_and_answers_in_the_picture_s(
    size: tuple[int, int], short_side: int, long_side: int, expected: tuple[int, int], test: str
) -> None:
    network = PixelNetwork()
    image = picture(1, 1).expand(3, *size)
    found = segment_logits(network, image, test, short_side, long_side, crop=512)
    assert network.sizes == [expected]
    assert torch.allclose(found, direct(image), atol=1e-6)


@pytest.mark.parametrize("test", ["single", "multiscale", "slide"])
def test_half_precision_logits_are_taken(test: str) -> None:
    def half(images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"logits": direct(image).bfloat16()} for image in images]

    image = picture(33, 47)
    found, expected = (segment_logits(n, image, test, 64, 100, crop=32) for n in (half, PixelNetwork()))
    assert found.dtype == torch.float32 and found.shape == (4, 33, 47)
    assert torch.allclose(found, expected, atol=0.05)


@given(st.integers(1, 3000), st.integers(1, 1200))
def test_windows_cover_a_side_with_a_third_of_overlap(length: int, crop: int) -> None:
    starts = _starts(length, crop)
    assert starts[0] == 0 and starts == sorted(set(starts))
    if length <= crop:
        assert starts == [0]
        return
    assert starts[-1] == length - crop
    steps = np.diff(starts)
    assert steps.max() <= max(1, round(crop * 2 / 3))
    assert (steps[:-1] == steps[0]).all()
    assert len(starts) <= (length - crop) / max(1, round(crop * 2 / 3)) + 2


class Answers(nn.Module):
    """The same result for every picture."""

    def __init__(self, result: dict[str, Tensor]) -> None:
        super().__init__()
        self.result = result

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.result for _ in images]


RESULTS = {
    "detect": {"boxes": torch.ones(2, 4), "scores": torch.ones(2), "labels": torch.tensor([0, 1])},
    "segment": {"logits": torch.ones(2, 8, 8)},
    "panoptic": {"segments": torch.ones(8, 8, dtype=torch.int64), "scores": torch.ones(1)},
}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("task", "name"), [("detect", "boxes"), ("detect", "scores"), ("segment", "logits"), ("panoptic", "scores")]
)
def test_results_that_are_not_finite_are_refused(task: Any, name: str, bad: float) -> None:
    description = Description(task, classes=["a", "b"], short_sides=[8], long_side=8)
    result = {key: tensor.clone() for key, tensor in RESULTS[task].items()}
    assert set(infer(Answers(result), [torch.rand(3, 8, 8)], description)[0]) == set(result)
    result[name].view(-1)[0] = bad
    with pytest.raises(UserError, match="the network's output is NaN or infinite"):
        infer(Answers(result), [torch.rand(3, 8, 8)], description)


def test_arrays_have_the_types_of_the_contract() -> None:
    found = arrays(
        {
            "boxes": torch.rand(1, 4).half().requires_grad_(),
            "labels": torch.tensor([3]),
            "scores": torch.tensor([0.5], dtype=torch.float64),
            "masks": torch.ones(1, 2, 2, dtype=torch.bool),
        }
    )
    assert {name: values.dtype for name, values in found.items()} == {
        "boxes": np.float32, "labels": np.int64, "scores": np.float32, "masks": np.bool_
    }  # fmt: skip
    assert arrays({"scores": torch.tensor([0.625], dtype=torch.bfloat16)})["scores"].tolist() == [0.625]


def test_logits_become_the_best_class_of_each_pixel() -> None:
    logits = torch.randn(5, 30, 40, generator=torch.Generator().manual_seed(0)).round()  # with ties
    found = arrays({"logits": logits})
    assert list(found) == ["semantic"] and found["semantic"].dtype == np.int64
    np.testing.assert_array_equal(found["semantic"], logits.numpy().argmax(0))


@pytest.mark.parametrize("task", ["detect", "segment", "panoptic"])
def test_targets_as_arrays(task: str) -> None:
    target = collate([ShapeScenes(task, "val", 6, (40, 56), transform=as_tensors)[0]])[1][0]
    found = arrays(target)
    assert found.keys() == target.keys() - {"image_id"}  # which is a number
    assert all(found[name].tolist() == target[name].tolist() for name in found)
