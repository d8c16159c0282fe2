"""Large kernel attention against a float64 sum over shifted maps that uses no convolution."""

import itertools

import pytest
import torch
from definitions import ConvWeights, arguments, output_and_gradients, shifted_sum
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from vankit.errors import UserError
from vankit.ops import large_kernel_attention
from vankit.ops.convolution import convolve

SIZES = [(1, 1), (1, 9), (2, 2), (3, 5), (4, 4), (7, 7), (6, 11), (21, 19)]
few = settings(max_examples=25)


def truth(x, dw, dw_bias, dw_d, dw_d_bias, pw, pw_bias, dw_dilation=1, dw_d_dilation=3) -> Tensor:
    attn = shifted_sum(x, dw, dw_bias, dw_dilation)
    attn = shifted_sum(attn, dw_d, dw_d_bias, dw_d_dilation)
    attn = torch.einsum("oc,bchw->bohw", pw[:, :, 0, 0], attn)
    return x * (attn if pw_bias is None else attn + pw_bias[:, None, None])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride_dilation", [1, 2, 4])
def test_outputs_and_gradients_are_the_definitions(size, dilation, stride_dilation):
    args = arguments(*size)
    actual = output_and_gradients(large_kernel_attention, args, stride_dilation, dilation * stride_dilation)
    expected = output_and_gradients(truth, args, stride_dilation, dilation * stride_dilation)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@few
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    k=st.sampled_from([1, 3, 5]),
    k_d=st.sampled_from([1, 3, 7]),
    dilation=st.integers(1, 3),
    stride_dilation=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
)
def test_any_shape(height, width, k, k_d, dilation, stride_dilation, bias):
    args = arguments(height, width, k, k_d, dim=2, bias=bias)
    actual = output_and_gradients(large_kernel_attention, args, stride_dilation, dilation * stride_dilation)
    expected = output_and_gradients(truth, args, stride_dilation, dilation * stride_dilation)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_each_bias_may_be_none():
    for kept in itertools.product([True, False], repeat=3):
        args = arguments(5, 6)
        for position, keep in zip((2, 4, 6), kept, strict=True):
            args[position] = args[position] if keep else None
        torch.testing.assert_close(
            output_and_gradients(large_kernel_attention, args),
            output_and_gradients(truth, args),
            rtol=1e-10,
            atol=1e-10,
        )


def test_parts_may_be_left_out_and_the_gate_chosen():
    x, dw, dw_bias, dw_d, dw_d_bias, pw, pw_bias = arguments(6, 5)
    steps = {
        "dw": lambda y: shifted_sum(y, dw, dw_bias, 1),
        "dw_d": lambda y: shifted_sum(y, dw_d, dw_d_bias, 3),
        "pw": lambda y: torch.einsum("oc,bchw->bohw", pw[:, :, 0, 0], y) + pw_bias[:, None, None],
    }
    tensors = {"dw": (dw, dw_bias), "dw_d": (dw_d, dw_d_bias), "pw": (pw, pw_bias)}
    gates = {"multiply": lambda x, a: x * a, "add": lambda x, a: x + a, "none": lambda x, a: a}
    for kept in itertools.product([True, False], repeat=3):
        names = [name for name, keep in zip(steps, kept, strict=True) if keep]
        weights = [t for name in steps for t in (tensors[name] if name in names else (None, None))]
        attn = x
        for name in names:
            attn = steps[name](attn)
        for (gate, gated), sigmoid in itertools.product(gates.items(), (False, True)):
            out = large_kernel_attention(x, *weights, gate=gate, sigmoid=sigmoid)
            torch.testing.assert_close(out, gated(x, 1 / (1 + (-attn).exp()) if sigmoid else attn))


def test_a_backend_needs_the_pair():
    args = [a.detach() for a in arguments(6, 5)]
    for backend in ("triton", "cuda"):
        with pytest.raises(UserError, match=f"backend is '{backend}': expected auto or torch"):
            large_kernel_attention(args[0], None, None, *args[3:], backend=backend)


def test_one_pixel_by_hand():
    # on a 1x1 map only the central taps count: x * (pw * (dw_d * (dw * x + b) + b_d) + b_p)
    x = torch.full((1, 1, 1, 1), 2.0)
    dw, dw_d, pw = torch.zeros(1, 1, 5, 5), torch.full((1, 1, 7, 7), 9.0), torch.full((1, 1, 1, 1), 0.5)
    dw[0, 0, 2, 2], dw_d[0, 0, 3, 3] = 3.0, -1.0
    b, b_d, b_p = torch.tensor([1.0]), torch.tensor([4.0]), torch.tensor([0.25])
    assert large_kernel_attention(x, dw, b, dw_d, b_d, pw, b_p).item() == 2 * (0.5 * (-1 * (3 * 2 + 1) + 4) + 0.25)


@pytest.mark.parametrize(("stride_dilation", "reach"), [(1, 11), (2, 22), (4, 44)])
def test_receptive_field(stride_dilation, reach):
    # ones everywhere: an impulse reaches 2 + 9 pixels (times the stride dilation) to each side, 23 x 23 in all
    size = 2 * reach + 5
    x = torch.zeros(1, 1, size, size, dtype=torch.float64)
    x[..., reach + 2, reach + 2] = 1
    attn = convolve(x, torch.ones(1, 1, 5, 5).double(), None, stride_dilation)
    attn = convolve(attn, torch.ones(1, 1, 7, 7).double(), None, 3 * stride_dilation)
    touched = attn[0, 0].nonzero()
    assert touched.min(0).values.tolist() == [2, 2]
    assert touched.max(0).values.tolist() == [2 * reach + 2, 2 * reach + 2]


def test_channels_of_the_depthwise_steps_do_not_mix():
    args = [a.detach() for a in arguments(6, 6)]
    args[5] = torch.eye(3, dtype=torch.float64)[:, :, None, None]
    before = large_kernel_attention(*args)
    args[0] = args[0].clone()
    args[0][:, 1] += 1
    after = large_kernel_attention(*args)
    assert torch.equal(before[:, ::2], after[:, ::2])
    assert not torch.equal(before[:, 1], after[:, 1])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4)])
@pytest.mark.parametrize("stride_dilation", [1, 2])
def test_gradcheck(size, stride_dilation):
    args = arguments(*size, k=3, k_d=3, dim=2)
    args[0] = args[0][:1].detach().requires_grad_()

    def function(*tensors):
        return large_kernel_attention(*tensors, stride_dilation, 3 * stride_dilation)

    assert gradcheck(function, args)
    assert gradgradcheck(function, args)


def test_channels_last_is_equal_and_kept():
    args = [a.detach() for a in arguments(9, 8)]
    expected = large_kernel_attention(*args)
    out = large_kernel_attention(args[0].contiguous(memory_format=torch.channels_last), *args[1:])
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 8e-3)])
def test_low_precision_is_near_the_float64_truth(dtype, tolerance):
    args = [a.detach().div(a.numel() ** 0.5 if i else 1).to(dtype) for i, a in enumerate(arguments(8, 7))]
    out, expected = large_kernel_attention(*args), truth(*[a.double() for a in args])
    assert out.dtype == dtype
    assert (out.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_keeps_the_dtype_of_x_under_autocast(dtype):
    args = [a.detach().float() for a in arguments(8, 7)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert large_kernel_attention(args[0].to(dtype), *args[1:]).dtype == dtype


def test_inputs_are_not_changed():
    args = [a.detach() for a in arguments(5, 5)]
    copies = [a.clone() for a in args]
    large_kernel_attention(*args)
    assert all(torch.equal(a, b) for a, b in zip(args, copies, strict=True))


def test_the_operator_trims_both_depthwise_kernels():
    with ConvWeights() as seen:
        large_kernel_attention(*arguments(2, 4))
    assert seen.sizes == [(3, 5), (1, 3), (1, 1)]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_torchscript_and_compile_compute_the_same_without_trimming():
    args = [a.detach() for a in arguments(4, 3)]
    expected = large_kernel_attention(*args)
    compiled = torch.compile(large_kernel_attention, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*args), expected)
    torch.testing.assert_close(torch.jit.script(large_kernel_attention)(*args), expected)


def test_vmap_and_meta():
    args = [a.detach() for a in arguments(4, 6)]
    stack = torch.stack([args[0], 2 * args[0]])
    out = torch.func.vmap(lambda x: large_kernel_attention(x, *args[1:]))(stack)
    torch.testing.assert_close(out[1], large_kernel_attention(2 * args[0], *args[1:]))
    assert large_kernel_attention(*[a.to("meta") for a in args]).shape == (2, 3, 4, 6)
