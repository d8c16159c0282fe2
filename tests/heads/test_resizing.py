"""Resizing as tensor operations: the sizes and pixels of torchvision's transform."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vankit.heads.backbone import AsTheyCome, input_transform
from vankit.heads.resizing import Resize, bilinear


@pytest.mark.parametrize(("short", "long"), [(800, 1333), (512, 640)])
def test_sizes_are_those_of_float64(short: int, long: int) -> None:
    """Also where side / length falls short of the fraction, as for 385 pixels brought to 800."""
    resize = Resize(input_transform((640, short), long))
    shorter = [*range(1, 400, 7), 385, 386, 387, 427, 480, 4000]
    sizes = [(a, b) for a in shorter for b in (a, a * 4 // 3, a * 3 // 2, 2 * a, a + 17)]
    expected = [[int(side * min(short / a, long / b)) for side in (a, b)] for a, b in sizes]
    assert any(a == b and found[0] == short - 1 for (a, b), found in zip(sizes, expected, strict=True))
    assert [resize.size(torch.tensor(size)).tolist() for size in sizes] == expected


@pytest.mark.parametrize("size", [(37, 61), (64, 64), (161, 40)])
@pytest.mark.parametrize("transform", [input_transform((96,), 160), AsTheyCome()], ids=["resized", "as_they_come"])
def test_pixels_are_those_of_torchvision(transform: torch.nn.Module, size: tuple[int, int]) -> None:
    image = torch.rand(3, *size)
    expected, _ = transform.eval()([image])
    pixels, found = Resize(transform)(image[None])
    assert torch.equal(pixels, expected.tensors)
    assert tuple(found.tolist()) == expected.image_sizes[0]


@given(st.integers(1, 300), st.integers(1, 300), st.booleans())
def test_a_matrix_that_resizes(length: int, made: int, antialias: bool) -> None:
    x = torch.rand(length, 5, dtype=torch.float64)
    expected = F.interpolate(x[None, None], (made, 5), mode="bilinear", antialias=antialias)[0, 0]
    torch.testing.assert_close(bilinear(length, made, antialias).double() @ x, expected, atol=1e-6, rtol=0)
