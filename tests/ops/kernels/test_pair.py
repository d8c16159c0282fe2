"""The fused depth-wise pair against a float64 sum over shifted maps that uses no convolution."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import interpreted
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.errors import UserError
from vankit.ops import backend
from vankit.ops.kernels import launch
from vankit.ops.lka import depthwise_pair

Run = Callable[..., Any]
Args = list[Tensor | None]
slow = pytest.mark.slow
TOLERANCE = {torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def shifted_sum(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """Depth-wise convolution by its definition, any kernel: every tap times the map shifted by it, zeros outside."""
    (rows, cols), (height, width) = weight.shape[-2:], x.shape[-2:]
    down, right = dilation * (rows - 1), dilation * (cols - 1)
    padded = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
    out = torch.zeros_like(x) if bias is None else bias[:, None, None].expand_as(x)
    for i, j in itertools.product(range(rows), range(cols)):
        top, left = i * dilation, j * dilation
        out = out + weight[:, 0, i, j, None, None] * padded[..., top : top + height, left : left + width]
    return out


def truth(args: Args, dw_dilation: int = 1, dw_d_dilation: int = 3) -> list[Tensor]:
    """The output and the gradients in float64, from the same rounded values."""
    x, dw, dw_bias, dw_d, dw_d_bias = exact = [
        None if a is None else a.detach().double().requires_grad_(a.requires_grad) for a in args
    ]
    out = shifted_sum(shifted_sum(x, dw, dw_bias, dw_dilation), dw_d, dw_d_bias, dw_d_dilation)
    wanted = [a for a in exact if a is not None and a.requires_grad]
    grads = torch.autograd.grad(out, wanted, interpreted.direction(out)) if wanted else ()
    return [out.detach(), *grads]


def arguments(
    batch: int, dim: int, height: int, width: int, k: int = 3, k_d: int = 3, dtype: torch.dtype = torch.float32
) -> Args:
    """x in channels_last and the four weights, in values that `dtype` has, requiring gradients."""
    generator = torch.Generator().manual_seed(100 * height + width)
    shapes = [(batch, dim, height, width), (dim, 1, k, k), (dim,), (dim, 1, k_d, k_d), (dim,)]
    values = [
        torch.randn(shape, generator=generator) / (shape[-1] if i in (1, 3) else 1) for i, shape in enumerate(shapes)
    ]
    values[0] = values[0].contiguous(memory_format=torch.channels_last)
    return [value.to(dtype).requires_grad_() for value in values]


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for found, exact in zip(actual, expected, strict=True):
        assert found.shape == exact.shape
        error = (found.double() - exact).norm()
        assert error <= tolerance * exact.norm(), f"{error / exact.norm():.1e}"  # NaN fails


@pytest.mark.parametrize(
    ("shape", "kernels", "dilations"),
    [
        ((1, 5, 7, 7), (5, 7), (1, 3)),  # VAN's, on its smallest map: 5x5 taps of the 7x7 can meet it
        ((1, 3, 1, 1), (5, 7), (1, 3)),
        pytest.param((3, 3, 5, 6), (3, 3), (1, 3), marks=slow),
        pytest.param((1, 70, 3, 19), (3, 3), (1, 2), marks=slow),  # three blocks of channels, two strips of columns
        ((2, 33, 2, 8), (3, 3), (1, 3)),  # narrow maps have blocks of 64 channels
        pytest.param((1, 2, 14, 3), (3, 3), (1, 1), marks=slow),
        ((1, 2, 9, 5), (3, 3), (2, 6)),  # the dilated kernel's taps are 6 pixels apart
        ((1, 2, 2, 3), (3, 5), (4, 12)),  # and here further than the map
        ((1, 2, 5, 7), (4, 4), (1, 3)),  # even kernels
        pytest.param((1, 2, 6, 4), (2, 6), (1, 2), marks=slow),
        ((2, 2, 1, 2), (4, 2), (1, 5)),
        ((1, 2, 4, 1), (1, 3), (1, 3)),
    ],
)  # fmt: skip
def test_outputs_and_gradients_are_the_definitions(run: Run, shape, kernels, dilations) -> None:
    args = arguments(*shape, *kernels)
    options = dict(zip(("dw_dilation", "dw_d_dilation"), dilations, strict=True))
    actual = run("outputs_and_gradients", "pair", args, options)
    assert_near(actual, truth(args, *dilations), TOLERANCE[torch.float32])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 4, 14, 14), (1, 20, 13, 22), (1, 3, 28, 17)])
def test_the_networks_kernels_on_larger_maps(run: Run, shape) -> None:
    args = arguments(*shape, 5, 7)
    assert_near(run("outputs_and_gradients", "pair", args, {}), truth(args), TOLERANCE[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_sums_in_float32(run: Run, dtype: torch.dtype) -> None:
    args = arguments(2, 17, 4, 6, dtype=dtype)
    actual = run("outputs_and_gradients", "pair", args, {})
    assert [a.dtype for a in actual] == [dtype] * 6
    assert_near(actual, truth(args), TOLERANCE[dtype])


def test_sums_are_not_rounded_to_the_maps_dtype(run: Run) -> None:
    # the gradients are sums of 400 products; beyond 256 a bfloat16 counts no ones
    ones = torch.ones(4, 1, 10, 10).bfloat16()
    args = [ones, *(torch.ones(1, 1, 1, 1).requires_grad_() if i % 2 == 0 else None for i in range(4))]
    args[0] = ones.contiguous(memory_format=torch.channels_last)
    _, dw, dw_d = run("outputs_and_gradients", "pair", args, {})
    exact = interpreted.direction(ones).double().sum()
    assert dw.dtype == torch.float32
    for found in (dw, dw_d):
        torch.testing.assert_close(found.double().sum(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scratch", [pytest.param(1, marks=slow), 2 * 4 * 5 * 2 * 4])  # an image, two images at a time
def test_chunks_of_the_batch_change_nothing(run: Run, scratch: int) -> None:
    args = arguments(3, 2, 4, 5)
    actual = run("outputs_and_gradients", "pair", args, {}, "eager", scratch)
    assert_near(actual, truth(args), TOLERANCE[torch.float32])


@pytest.mark.parametrize("how", ["compile", "checkpoint"])
def test_under_compile_and_checkpointing(run: Run, how: str) -> None:
    args = arguments(1, 2, 4, 5)
    assert_near(run("outputs_and_gradients", "pair", args, {}, how), truth(args), TOLERANCE[torch.float32])


def test_autocast_rounds_what_convolutions_would(run: Run) -> None:
    args = arguments(1, 3, 4, 5)
    actual = run("outputs_and_gradients", "pair", args, {}, "autocast")
    assert [a.dtype for a in actual] == [torch.bfloat16] + [torch.float32] * 5
    assert_near(actual, truth(args), TOLERANCE[torch.bfloat16])
    rounded = [a.detach().bfloat16().float().requires_grad_() for a in args]
    again = run("outputs_and_gradients", "pair", rounded, {}, "autocast")
    torch.testing.assert_close(actual[1], again[1], rtol=0, atol=0)  # depends on no bias, which stays unrounded


@pytest.mark.parametrize("missing", [(2,), (4,), (2, 4)])
def test_each_bias_may_be_none(run: Run, missing: tuple[int, ...]) -> None:
    args = arguments(1, 2, 3, 4)
    for position in missing:
        args[position] = None
    assert_near(run("outputs_and_gradients", "pair", args, {}), truth(args), TOLERANCE[torch.float32])


@pytest.mark.parametrize("needed", [(0,), (1, 3), (4,), ()])
def test_only_the_gradients_asked_for(run: Run, needed: tuple[int, ...]) -> None:
    args = [a.detach().requires_grad_(i in needed) for i, a in enumerate(arguments(1, 2, 3, 4))]
    assert_near(run("outputs_and_gradients", "pair", args, {}), truth(args), TOLERANCE[torch.float32])


@pytest.mark.parametrize("case", ["contiguous", "sliced", "expanded"])
def test_any_memory_layout(run: Run, case: str) -> None:
    args = arguments(2, 4, 4, 5)
    x = args[0].detach()
    x = {"contiguous": x.contiguous(), "sliced": x[:, 1::2, ::2, 1:], "expanded": x[:1].expand(2, 4, 4, 5)}[case]
    args = [a if a is None else a[: x.shape[1]].detach().requires_grad_() for a in args]
    args[0] = x.requires_grad_()
    actual = run("outputs_and_gradients", "pair", args, {})
    assert_near(actual, truth(args), TOLERANCE[torch.float32])
    assert actual[0].is_contiguous(
        memory_format=torch.channels_last
        if x.is_contiguous(memory_format=torch.channels_last)
        else torch.contiguous_format
    )


def test_an_empty_batch(run: Run) -> None:
    out, grad, *weights = run("outputs_and_gradients", "pair", arguments(0, 2, 4, 5), {})
    assert out.shape == grad.shape == (0, 2, 4, 5)
    assert all(not w.any() for w in weights)


def test_second_gradients(run: Run) -> None:
    args = arguments(1, 2, 3, 4)
    exact = [a.detach().double().requires_grad_() for a in args]
    out = shifted_sum(shifted_sum(exact[0], exact[1], exact[2], 1), exact[3], exact[4], 3)
    first = torch.autograd.grad(out, exact, interpreted.direction(out), create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in first), exact[:4])
    actual = run("second_gradients", "pair", args, {})
    assert not actual[4].any()
    assert_near(actual[:4], list(expected), 1e-5)


def test_exports_and_traces_hold_plain_convolutions(run: Run) -> None:
    exported, traced = run("exported_operators", "pair", [a.detach() for a in arguments(1, 2, 4, 5)], {})
    assert {"aten.conv2d.default"} <= exported
    assert any(name.startswith("aten::_convolution") for name in traced)
    assert not any("vankit" in name for name in exported | traced)


def test_transforms_of_functions(run: Run) -> None:
    args = [a.detach() for a in arguments(2, 2, 4, 5)]
    exact = [a.double().requires_grad_() for a in args]
    losses = [
        shifted_sum(shifted_sum(x[None], exact[1], exact[2], 1), exact[3], exact[4], 3).square().sum() for x in exact[0]
    ]
    by_x, by_weight = torch.autograd.grad(losses[0], exact[:2], retain_graph=True)
    each = torch.autograd.grad(sum(losses), exact[0])[0]
    expected = [by_x[0], by_weight, by_x.sum() + by_weight.sum(), by_x.sum(), each]
    assert_near(run("transformed", "pair", args, {}), expected, 1e-5)


# --- the operator where no kernel runs ---


def plain_call(args: Args) -> list[Tensor]:
    out = torch.ops.vankit.depthwise_pair(*args, 1, 3)
    return [out.detach(), *torch.autograd.grad(out, [a for a in args if a is not None], interpreted.direction(out))]


@pytest.mark.parametrize("kernels", [(5, 7), (4, 6)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_on_cpus_the_operator_is_plain_convolutions(kernels: tuple[int, int], dtype: torch.dtype) -> None:
    args = arguments(2, 3, 9, 35, *kernels, dtype=dtype)
    assert_near(plain_call(args), truth(args), TOLERANCE.get(dtype, 1e-12))


@pytest.mark.parametrize("batch", [0, 2])
def test_opcheck(batch: int) -> None:
    args = arguments(batch, 2, 4, 5)
    torch.library.opcheck(torch.ops.vankit.depthwise_pair, (*args, 1, 3))
    plain = [a.detach() for a in args]
    for needs in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(torch.ops.vankit.depthwise_pair_backward, (plain[0], *plain, 1, 3, *needs))


def test_gradcheck_twice() -> None:
    args = [a.detach().double().requires_grad_() for a in arguments(1, 1, 2, 3)]
    assert torch.autograd.gradcheck(lambda *a: torch.ops.vankit.depthwise_pair(*a, 1, 3), args, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: torch.ops.vankit.depthwise_pair(*a, 1, 3), args, fast_mode=True)


def test_compiles_as_one_graph() -> None:
    args = arguments(1, 2, 4, 5)
    compiled = torch.compile(torch.ops.vankit.depthwise_pair, backend="aot_eager", fullgraph=True, dynamic=True)
    for height in (4, 6):
        x = torch.ones(1, 2, height, 5)
        torch.testing.assert_close(compiled(x, *args[1:], 3, 1), torch.ops.vankit.depthwise_pair(x, *args[1:], 3, 1))


def test_auto_is_the_convolutions_until_kernels_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 4, 6, 5)
    monkeypatch.setattr(backend, "_obstacle", lambda x: None)
    assert [backend.takes_kernels(x, name) for name in backend.BACKENDS] == [False, False, True]
    monkeypatch.setattr(backend, "default", "triton")
    assert [backend.takes_kernels(x, name) for name in backend.BACKENDS] == [True, False, True]
    monkeypatch.setattr(backend, "_obstacle", lambda x: "no GPU")
    assert not backend.takes_kernels(x, "auto")


def test_the_environment_says_what_auto_is() -> None:
    code = (
        "import importlib, os; from vankit.ops import backend\n"
        "for value in ('', 'triton', 'cuda'):\n"
        "    os.environ['VANKIT_BACKEND'] = value; print(importlib.reload(backend).default)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["auto", "triton", "cuda"]


def test_an_unknown_backend_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "default", "cuda")
    with pytest.raises(UserError, match="VANKIT_BACKEND is 'cuda': expected one of auto, torch, triton"):
        backend.takes_kernels(torch.zeros(1, 4, 6, 5), "auto")


@pytest.mark.parametrize("chosen", ["auto", "torch"])
def test_without_kernels_the_reference_runs(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vankit.ops.lka.fused_pair", None)
    args = arguments(1, 3, 9, 8, 5, 7)
    torch.testing.assert_close(depthwise_pair(*args, backend=chosen).double(), truth(args)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("chosen", "dtype", "message"),
    [
        ("cuda", torch.float32, "backend is 'cuda': expected one of auto, torch, triton"),
        ("triton", torch.float32, "x is on cpu"),
        ("triton", torch.float64, "x is torch.float64"),
    ],
)
def test_what_cannot_run_is_refused(chosen: str, dtype: torch.dtype, message: str) -> None:
    with pytest.raises(UserError, match=message):
        depthwise_pair(*arguments(1, 2, 4, 5, dtype=dtype), backend=chosen)


def test_an_image_too_large_for_int32_is_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_INTERPRETED", True)
    huge = torch.empty(1, 1, 1, 1).expand(3, 1024, 1024, 2048)  # each image 2^31 elements, of no memory
    assert not backend.launches(huge)
    assert backend.launches(huge[:, 1:])
    assert not backend.launches(huge[:0])


# --- on a GPU: the sizes of real networks ---

LARGE = [
    *itertools.product(
        [(8, 64, 56, 56), (4, 96, 28, 28), (4, 160, 14, 14), (4, 256, 7, 7), (1, 32, 200, 336), (2, 160, 25, 42)],
        [torch.float32, torch.bfloat16],
    ),
    ((1, 96, 51, 33), torch.float16),
]


def on_gpu(args: Args) -> Args:
    return [None if a is None else a.detach().cuda().requires_grad_() for a in args]


@pytest.fixture
def gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("shape", "dtype"), LARGE)
def test_large_maps_on_a_gpu_and_again_the_same_bits(shape, dtype: torch.dtype) -> None:
    args = on_gpu(arguments(*shape, 5, 7, dtype=dtype))
    actual = interpreted.outputs_and_gradients("pair", args, {})
    assert_near(actual, truth(args), TOLERANCE[dtype])
    for one, other in zip(actual, interpreted.outputs_and_gradients("pair", args, {}), strict=True):
        assert torch.equal(one, other)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("kernels", "dilations"),
    [((3, 3), (1, 2)), ((7, 9), (1, 3)), ((4, 6), (1, 3)), ((5, 7), (2, 6)), ((5, 7), (4, 12))],
)
def test_kernels_and_dilations_on_a_gpu(kernels, dilations) -> None:
    args = on_gpu(arguments(2, 40, 30, 45, *kernels))
    options = dict(zip(("dw_dilation", "dw_d_dilation"), dilations, strict=True))
    actual = interpreted.outputs_and_gradients("pair", args, options)
    assert_near(actual, truth(args, *dilations), TOLERANCE[torch.float32])


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_inductor_compiles_the_whole_operator() -> None:
    args = on_gpu(arguments(2, 64, 28, 28, 5, 7))
    compiled = torch.compile(depthwise_pair, fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16):
        out = compiled(*args)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert_near([out.detach()], truth(args)[:1], TOLERANCE[torch.bfloat16])
    assert all(a.grad is not None and a.grad.isfinite().all() for a in args)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_peak_memory_is_a_few_maps() -> None:
    args = on_gpu(arguments(64, 64, 56, 56, 5, 7, dtype=torch.bfloat16))
    size = args[0].numel() * 2
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = depthwise_pair(*args, backend="triton")
    kept = torch.cuda.memory_allocated() - before
    out.backward(torch.ones_like(out))
    peak = torch.cuda.max_memory_allocated() - before
    scratch = launch.limits(args[0].device).scratch
    assert kept < 1.1 * size  # the output: the map between the convolutions is not stored
    assert peak < 3.2 * size + 2 * scratch  # with the gradients of output and input
