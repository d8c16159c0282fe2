"""Which taps, rows and tiles a map takes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vankit.ops import launch
from vankit.ops.launch import Taps, reachable


@pytest.mark.parametrize(
    ("k", "dilation", "size", "expected"),
    [
        (5, 1, 56, Taps(0, 5, 2)),
        (7, 3, 56, Taps(0, 7, 9)),
        (7, 3, 7, Taps(1, 5, 6)),  # 9 pixels away is off a map of 7
        (7, 3, 3, Taps(3, 1, 0)),
        (7, 12, 13, Taps(2, 3, 12)),
        (4, 3, 10, Taps(0, 4, 4)),  # taps at -4, -1, 2, 5
        (4, 3, 5, Taps(0, 3, 4)),
        (4, 3, 1, Taps(1, 2, 1)),  # none meets the map: the two around the pixel stay
        (2, 1, 1, Taps(0, 1, 0)),
    ],
)
def test_reachable_by_hand(k: int, dilation: int, size: int, expected: Taps) -> None:
    assert reachable(k, dilation, size) == expected


@given(k=st.integers(1, 9), dilation=st.integers(1, 12), size=st.integers(1, 40))
def test_every_useful_tap_is_kept_and_the_pixel_lies_between(k: int, dilation: int, size: int) -> None:
    taps = reachable(k, dilation, size)
    before = dilation * (k - 1) // 2
    useful = {i for i in range(k) if -size < dilation * i - before < size}
    assert useful <= set(range(taps.first, taps.first + taps.length))
    assert taps.first >= 0
    assert taps.first + taps.length <= k
    # the weight gradient counts on it, to meet every row of the gradient once
    assert 0 <= taps.before <= dilation * (taps.length - 1)


@pytest.mark.parametrize(
    ("weight", "bias"), [((5, 1, 3, 3), None), ((1, 1, 3, 3), None), ((4, 4, 3, 3), (4,)), ((4, 1, 3, 3), (1,))]
)
def test_channels_must_agree(weight: tuple[int, ...], bias: tuple[int, ...] | None) -> None:
    with pytest.raises(ValueError, match=r"expected \(C, 1\) and \(C,\) for C = 4"):
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
