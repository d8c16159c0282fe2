"""The fused depth-wise convolution with GELU against float64 autograd through shifted maps and the error function."""

import itertools
from collections.abc import Callable
from typing import Any

import interpreted
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vankit.ops.gelu import depthwise_gelu

Run = Callable[..., Any]
Args = list[Tensor | None]
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def definition(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    k, (height, width) = weight.shape[-1], x.shape[-2:]
    r = dilation * (k // 2)
    padded = F.pad(x, (r, r, r, r))
    a = torch.zeros_like(x) if bias is None else bias[:, None, None].expand_as(x)
    for i, j in itertools.product(range(k), range(k)):
        top, left = i * dilation, j * dilation
        a = a + weight[:, 0, i, j, None, None] * padded[..., top : top + height, left : left + width]
    return a * (1 + torch.erf(a / 2**0.5)) / 2


def truth(args: Args, dilation: int = 1) -> list[Tensor]:
    exact = [None if a is None else a.detach().double().requires_grad_(a.requires_grad) for a in args]
    out = definition(*exact, dilation)
    wanted = [a for a in exact if a is not None and a.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, interpreted.direction(out))]


def arguments(batch: int, dim: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Args:
    generator = torch.Generator().manual_seed(100 * height + width)
    values = [torch.randn(s, generator=generator) for s in ((batch, dim, height, width), (dim, 1, 3, 3), (dim,))]
    values[0] = values[0].contiguous(memory_format=torch.channels_last)
    return [value.to(dtype).requires_grad_() for value in values]


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for found, exact in zip(actual, expected, strict=True):
        error = (found.double() - exact).norm()
        assert error <= tolerance * exact.norm(), f"{error / exact.norm():.1e}"  # NaN fails


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "dilation"), [((2, 5, 4, 6), 1), ((1, 2, 7, 5), 2)])
def test_outputs_and_gradients_are_the_definitions(run: Run, shape, dilation: int, dtype: torch.dtype) -> None:
    args = arguments(*shape, dtype=dtype)
    actual = run("outputs_and_gradients", "gelu", args, {"dilation": dilation})
    assert [a.dtype for a in actual] == [dtype] * 4
    assert_near(actual, truth(args, dilation), TOLERANCE[dtype])


@pytest.mark.parametrize("how", ["compile", "checkpoint", "autocast"])
def test_under_compile_checkpointing_and_autocast(run: Run, how: str) -> None:
    args = arguments(1, 2, 4, 5)
    actual = run("outputs_and_gradients", "gelu", args, {}, how)
    assert_near(actual, truth(args), TOLERANCE[torch.bfloat16 if how == "autocast" else torch.float32])


@pytest.mark.parametrize("needed", [(0,), (1,), (2,)])
def test_only_the_gradients_asked_for_and_no_bias(run: Run, needed: tuple[int, ...]) -> None:
    args = [a.detach().requires_grad_(i in needed) for i, a in enumerate(arguments(1, 2, 3, 4))]
    if 2 not in needed:
        args[2] = None
    assert_near(run("outputs_and_gradients", "gelu", args, {}), truth(args), TOLERANCE[torch.float32])


def test_chunks_of_the_batch_change_nothing(run: Run) -> None:
    args = arguments(3, 2, 4, 5)
    assert_near(run("outputs_and_gradients", "gelu", args, {}, "eager", 1), truth(args), TOLERANCE[torch.float32])


def test_second_gradients(run: Run) -> None:
    args = arguments(1, 2, 3, 4)
    exact = [a.detach().double().requires_grad_() for a in args]
    out = definition(*exact)
    first = torch.autograd.grad(out, exact, interpreted.direction(out), create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in first), exact)
    assert_near(run("second_gradients", "gelu", args, {}), list(expected), 1e-5)


def test_exports_and_traces_hold_plain_convolutions(run: Run) -> None:
    exported, traced = run("exported_operators", "gelu", [a.detach() for a in arguments(1, 2, 4, 5)], {})
    assert {"aten.conv2d.default", "aten.gelu.default"} <= exported
    assert not any("vankit" in name for name in exported | traced)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_on_cpus_the_operator_is_plain(dtype: torch.dtype) -> None:
    args = arguments(2, 3, 9, 8, dtype=dtype)
    out = torch.ops.vankit.depthwise_gelu(*args, 1)
    actual = [out.detach(), *torch.autograd.grad(out, args, interpreted.direction(out))]
    assert_near(actual, truth(args), TOLERANCE.get(dtype, 1e-12))


@pytest.mark.parametrize("batch", [0, 2])
def test_opcheck(batch: int) -> None:
    args = arguments(batch, 2, 4, 5)
    torch.library.opcheck(torch.ops.vankit.depthwise_gelu, (*args, 1))
    plain = [a.detach() for a in args]
    torch.library.opcheck(torch.ops.vankit.depthwise_gelu_backward, (plain[0], *plain, 1, True, True))


def test_gradcheck_twice() -> None:
    args = [a.detach().double().requires_grad_() for a in arguments(1, 1, 2, 3)]
    assert torch.autograd.gradcheck(lambda *a: torch.ops.vankit.depthwise_gelu(*a, 1), args, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *a: torch.ops.vankit.depthwise_gelu(*a, 1), args, fast_mode=True)


@pytest.mark.parametrize("chosen", ["auto", "torch"])
def test_without_kernels_the_reference_runs(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vankit.ops.gelu.fused_gelu", None)
    args = arguments(1, 3, 9, 8)
    assert_near([depthwise_gelu(*args, backend=chosen).detach()], truth(args)[:1], TOLERANCE[torch.float32])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 512, 56, 56), (4, 1024, 7, 7), (1, 256, 200, 336), (1, 96, 51, 33)])
def test_large_maps_on_a_gpu_and_again_the_same_bits(shape, dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    args = [a.detach().cuda().requires_grad_() for a in arguments(*shape, dtype=dtype)]
    actual = interpreted.outputs_and_gradients("gelu", args, {})
    assert_near(actual, truth(args), TOLERANCE[dtype])
    for one, other in zip(actual, interpreted.outputs_and_gradients("gelu", args, {}), strict=True):
        assert torch.equal(one, other)
