"""Which taps, rows and tiles a map takes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vankit.errors import UserError
from vankit.ops.kernels import launch


@pytest.mark.parametrize(
    ("weight", "bias"), [((5, 1, 3, 3), None), ((1, 1, 3, 3), None), ((4, 4, 3, 3), (4,)), ((4, 1, 3, 3), (1,))]
)
def test_channels_must_agree(weight: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
    with pytest.raises(UserError, match=r"expected \(C, 1\) and \(C,\) for C = 4"):
        launch.Convolution(torch.zeros(weight), None if bias is None else torch.zeros(bias), 1, torch.zeros(1, 3, 3, 4))


def test_rows_divide_the_maps_of_the_network_well() -> None:
    assert [launch.rows_of(-(-size // 3), 7) for size in (56, 28, 14, 7)] == [7, 5, 5, 3]
    assert all(-(-size // launch.rows_of(size, 5)) * launch.rows_of(size, 5) <= 1.1 * size for size in (56, 28, 7))


@given(lines=st.integers(1, 400), taps=st.sampled_from([1, 3, 5, 7]))
def test_rows_are_among_the_compiled_ones(lines: int, taps: int) -> None:
    assert launch.rows_of(lines, taps) in launch.ROWS


def test_chunks_cover_the_batch_and_fit_the_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(10, 4, 4, 8)  # 512 bytes an image
    for images in (1, 3, 4, 10, 100):
        monkeypatch.setattr(launch, "limits", lambda device, images=images: launch.Limits(1, 512 * images))
        chunks = launch._chunks(x)
        assert [i for chunk in chunks for i in range(10)[chunk]] == list(range(10))
        assert max(len(x[chunk]) for chunk in chunks) <= images
    monkeypatch.setattr(launch, "limits", lambda device: launch.Limits(1, 1))
    assert len(launch._chunks(x)) == 10  # an image is never split
