"""Convolutions against PyTorch's own, the taps that are left out by hand."""

import pytest
import torch
import torch.nn.functional as F
from definitions import ConvWeights, integers, output_and_gradients, shifted_sum, untrimmed
from hypothesis import given, settings
from hypothesis import strategies as st

from vankit.ops.convolution import Taps, convolve, reachable

SIZES = [(1, 1), (1, 9), (2, 2), (3, 5), (4, 4), (7, 7), (6, 11), (21, 19)]
few = settings(max_examples=25)


@pytest.mark.parametrize(
    ("size", "dilation", "expected"),
    [
        ((1, 1), 3, (1, 1)),
        ((2, 2), 3, (1, 1)),
        ((3, 4), 3, (1, 3)),  # a tap 3 pixels away needs a map of 4
        ((4, 4), 3, (3, 3)),
        ((7, 7), 3, (5, 5)),
        ((9, 10), 3, (5, 7)),
        ((56, 56), 3, (7, 7)),
        ((4, 4), 1, (7, 7)),
        ((3, 2), 1, (5, 3)),
        ((12, 13), 12, (1, 3)),
    ],
)
def test_the_convolution_gets_only_the_reachable_taps(size, dilation, expected):
    with ConvWeights() as seen:
        convolve(torch.zeros(1, 2, *size), torch.zeros(2, 1, 7, 7), None, dilation)
    assert seen.sizes == [expected]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(
    ("size", "dilation", "expected"),
    [
        ((1, 1), 2, (2, 2)),  # taps at -3, -1, 1 and 3 pixels: none touches a single one, those around it stay
        ((2, 4), 2, (2, 4)),
        ((2, 3), 3, (2, 2)),  # taps at -4, -1, 2 and 5
        ((56, 56), 3, (4, 4)),
    ],
)
def test_even_kernels_are_trimmed_too(size, dilation, expected):
    x, weight, bias = integers(2, 3, *size), integers(3, 1, 4, 4), integers(3)
    with ConvWeights() as seen:
        out = convolve(x, weight, bias, dilation)
    assert seen.sizes == [expected]
    assert torch.equal(out, F.conv2d(x, weight, bias, padding="same", dilation=dilation, groups=3))


@few
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    k=st.sampled_from([1, 3, 5, 7]),
    dilation=st.sampled_from([1, 2, 3, 4, 6, 12]),
)
def test_trimming_changes_nothing_and_leaves_nothing_useless(height, width, k, dilation):
    x, weight, bias = integers(2, 3, height, width), integers(3, 1, k, k), integers(3)
    args = [t.requires_grad_() for t in (x, weight, bias)]
    actual = output_and_gradients(convolve, args, dilation)
    expected = output_and_gradients(untrimmed, args, dilation)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)

    # a tap that meets the map has a positive gradient where everything is one, any other a zero gradient
    ones = torch.ones(1, 1, k, k, dtype=torch.float64, requires_grad=True)
    image = torch.ones(1, 1, height, width, dtype=torch.float64)
    (useful,) = torch.autograd.grad(shifted_sum(image, ones, None, dilation).sum(), ones)
    kept = reachable(k, dilation, height).length * reachable(k, dilation, width).length
    assert kept == int((useful > 0.5).sum())


def test_a_full_kernel_gradient_is_zero_outside_the_reach():
    weight = integers(2, 1, 7, 7).requires_grad_()
    convolve(torch.ones(1, 2, 4, 4).double(), weight, None, 3).sum().backward()
    assert weight.grad.shape == weight.shape
    assert weight.grad[:, :, 2:5, 2:5].all()
    assert weight.grad.count_nonzero() == 2 * 9


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("size", [(14, 14), (48, 40)])
def test_the_dilated_gradient_is_right_in_bfloat16_on_cpu(autocast: bool, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, direction = (
        torch.randn(2, 32, *size, generator=generator).to(torch.bfloat16, memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight = torch.randn(32, 1, 7, 7, generator=generator).bfloat16()
    exact = weight.double().requires_grad_()
    F.conv2d(x.double(), exact, padding=9, dilation=3, groups=32).backward(direction.double())
    own = (weight.float() if autocast else weight.clone()).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = convolve(x.float() if autocast else x, own, None, dilation=3)
    assert out.dtype == torch.bfloat16
    out.backward(direction)
    assert own.grad is not None and exact.grad is not None
    assert (own.grad - exact.grad).abs().max() <= 0.01 * exact.grad.abs().max()


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


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel", "error::torch.jit.TracerWarning")
@pytest.mark.parametrize(("k", "dilation"), [(5, 1), (7, 3), (4, 2), (4, 3)])
def test_a_trace_pads_by_numbers_and_holds_for_other_sizes(k: int, dilation: int) -> None:
    """ONNX Runtime and fvcore know no convolution that has a mode."""
    weight, bias = integers(3, 1, k, k), integers(3)
    traced = torch.jit.trace(lambda x: convolve(x, weight, bias, dilation), integers(1, 3, 4, 4))
    kinds = {node.kind() for node in traced.graph.nodes() if "conv" in node.kind()}
    assert kinds == {"aten::_convolution"}
    x = integers(2, 3, 19, 8)
    assert torch.equal(traced(x), F.conv2d(x, weight, bias, padding="same", dilation=dilation, groups=3))
