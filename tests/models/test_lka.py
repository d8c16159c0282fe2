"""Every setting of large kernel attention against a float64 sum over shifted maps, written from the formulas."""

import io
import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from vankit.errors import UserError
from vankit.models.lka import LargeKernelAttention

C = 4
# settings, and the parameters of 4 channels by hand: every convolution has a bias a channel
SETTINGS: dict[str, tuple[dict[str, Any], int]] = {
    "VAN": ({}, C * (25 + 1) + C * (49 + 1) + C * (C + 1)),
    "K 7, d 2": ({"kernel_size": 7, "dilation": 2}, C * (9 + 1) + C * (16 + 1) + C * (C + 1)),
    "K 10, d 3": ({"kernel_size": 10, "dilation": 3}, C * (25 + 1) + C * (16 + 1) + C * (C + 1)),
    "d 1": ({"kernel_size": 4, "dilation": 1}, C * (1 + 1) + C * (16 + 1) + C * (C + 1)),
    "without dw": ({"without": ["dw"]}, C * (49 + 1) + C * (C + 1)),
    "without dw_d": ({"without": ["dw_d"]}, C * (25 + 1) + C * (C + 1)),
    "without pw": ({"without": ["pw"]}, C * (25 + 1) + C * (49 + 1)),
    "pw alone": ({"without": ["dw", "dw_d"]}, C * (C + 1)),
    "add": ({"gate": "add"}, C * (25 + 1) + C * (49 + 1) + C * (C + 1)),
    "none": ({"gate": "none"}, C * (25 + 1) + C * (49 + 1) + C * (C + 1)),
    "sigmoid": ({"sigmoid": True}, C * (25 + 1) + C * (49 + 1) + C * (C + 1)),
    "dense": ({"form": "dense", "kernel_size": 5}, C * C * 25 + C),
    "dense, even": ({"form": "dense", "kernel_size": 4, "gate": "add"}, C * C * 16 + C),
    "LSKA": ({"form": "lska"}, 2 * C * (5 + 1) + 2 * C * (7 + 1) + C * (C + 1)),
    "LSKA without dw": ({"form": "lska", "without": ["dw"]}, 2 * C * (7 + 1) + C * (C + 1)),
    "StripNet": ({"form": "strips", "kernel_size": 19}, C * (25 + 1) + 2 * C * (19 + 1) + C * (C + 1)),
    "MSCA": (
        {"form": "strips", "kernel_size": (1, 7, 11, 21)},
        C * (25 + 1) + 2 * C * (7 + 1 + 11 + 1 + 21 + 1) + C * (C + 1),
    ),
    "multi-scale": (
        {"kernel_size": (7, 21, 35), "dilation": (2, 3, 4)},  # 4 channels are 2 + 1 + 1
        2 * (9 + 1 + 16 + 1) + (25 + 1 + 49 + 1) + (49 + 1 + 81 + 1) + C * (C + 1),
    ),
    "multi-scale LSKA": (
        {"form": "lska", "kernel_size": (7, 21), "dilation": (2, 3)},
        2 * 2 * (3 + 1 + 4 + 1) + 2 * 2 * (5 + 1 + 7 + 1) + C * (C + 1),
    ),
}
every_setting = pytest.mark.parametrize("name", SETTINGS)
jit = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")


def two_fast(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in ("VAN", "LSKA") else pytest.mark.slow) for name in names]


def module(name: str = "VAN", **kwargs: Any) -> LargeKernelAttention:
    torch.manual_seed(0)
    return LargeKernelAttention(C, **SETTINGS[name][0], **{"dtype": torch.float64} | kwargs)


def maps(*size: int, channels: int = C, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def shifted_sum(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """Depth-wise or dense convolution by its definition, the odd padding at the end; of any number of axes."""
    axes = weight.ndim - 2
    before = [dilation * (k - 1) // 2 for k in weight.shape[2:]]
    padding = [n for b, k in zip(before[::-1], weight.shape[:1:-1], strict=True) for n in (b, dilation * (k - 1) - b)]
    padded, out = F.pad(x, padding), 0
    for taps in itertools.product(*(range(k) for k in weight.shape[2:])):
        window = padded[(..., *(slice(t * dilation, t * dilation + n) for t, n in zip(taps, x.shape[2:], strict=True)))]
        kernel = weight[(..., *taps)]
        if weight.shape[1] == 1:
            out = out + kernel.reshape(-1, *[1] * axes) * window
        else:
            out = out + torch.einsum("oc,bc...->bo...", kernel, window)
    return out + bias.reshape(-1, *[1] * axes)


def run(convs: Any, x: Tensor) -> Tensor:
    for conv in convs:
        x = shifted_sum(x, conv.weight, conv.bias, conv.dilation[0])
    return x


def truth(lka: LargeKernelAttention, name: str, x: Tensor) -> Tensor:
    """From the formulas of the papers that `LargeKernelAttention` names."""
    settings = SETTINGS[name][0]
    form = settings.get("form", "lka")
    single = form == "lka" and not isinstance(settings.get("kernel_size"), tuple)
    if single:
        attn = run([conv for conv in (lka.dw, lka.dw_d) if conv is not None], x)
    elif form == "strips":
        local = run(lka.dw, x)
        attn = sum(run(branch, local) for branch in lka.branches)
    else:
        parts = torch.tensor_split(x, len(lka.branches), 1)
        attn = torch.cat([run(branch, part) for branch, part in zip(lka.branches, parts, strict=True)], 1)
    if lka.pw is not None:
        attn = torch.einsum("oc,bc...->bo...", lka.pw.weight.flatten(1), attn) + lka.pw.bias[:, None, None]
    if settings.get("sigmoid"):
        attn = 1 / (1 + torch.exp(-attn))
    return {"multiply": x * attn, "add": x + attn, "none": attn}[settings.get("gate", "multiply")]


@every_setting
def test_parameters(name: str) -> None:
    assert sum(p.numel() for p in module(name).parameters()) == SETTINGS[name][1]


@every_setting
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 4), (14, 14), (23, 6)])
def test_output_and_gradients_are_the_formulas(name: str, size: tuple[int, int]) -> None:
    lka = module(name)
    for parameter in lka.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = maps(*size).requires_grad_()
    direction = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x)
    wanted = [x, *lka.parameters()]
    out, expected = lka(x), truth(lka, name, x)
    assert out.shape == x.shape
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    actual, expected = (torch.autograd.grad(y, wanted, direction, materialize_grads=True) for y in (out, expected))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@every_setting
def test_gradcheck(name: str) -> None:
    lka = module(name)
    x = maps(3, 4)[:1].requires_grad_()
    names = [key for key, _ in lka.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(lka, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(function, (x, *lka.parameters()), fast_mode=True)


@pytest.mark.parametrize("name", two_fast(SETTINGS))
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_compile_and_export(name: str) -> None:
    lka = module(name, dtype=torch.float32).eval()
    x = maps(9, 8, dtype=torch.float32)
    expected = lka(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(lka, backend="aot_eager", fullgraph=True)(x), expected)
    program = torch.export.export(lka, (x,), dynamic_shapes=({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},))
    torch.testing.assert_close(program.module()(x), expected)


@jit
@every_setting
def test_torchscript(name: str) -> None:
    lka = module(name)
    x = maps(9, 8)
    torch.testing.assert_close(torch.jit.script(lka)(x), lka(x))


@pytest.mark.export
@pytest.mark.parametrize("name", two_fast(["VAN", "K 10, d 3", "LSKA", "MSCA", "multi-scale", "dense, even"]))
def test_openvino_computes_the_same(name: str) -> None:
    from vankit.engines.choose import engine_for

    lka = module(name, dtype=torch.float32).eval()
    x = maps(12, 10, dtype=torch.float32)
    engine = engine_for(lka, (C, 12, 10), "openvino")
    assert abs(engine(x.numpy()) - lka(x).detach().numpy()).max() <= 1e-4


@every_setting
def test_attention_is_what_the_gate_gets(name: str) -> None:
    lka, x = module(name), maps(6, 7)
    attn = lka.attention(x)
    attn = attn.sigmoid() if SETTINGS[name][0].get("sigmoid") else attn
    gate = SETTINGS[name][0].get("gate", "multiply")
    torch.testing.assert_close(lka(x), {"multiply": x * attn, "add": x + attn, "none": attn}[gate])


@every_setting
def test_the_modules_run_one_by_one(name: str) -> None:
    """Their own padding and dilation agree with the operator, so hooks and converters may do so."""
    lka, x = module(name, stride_dilation=2), maps(11, 9)
    for conv in lka.modules():
        if isinstance(conv, nn.Conv2d):
            x_in = x[:, : conv.in_channels]
            torch.testing.assert_close(conv(x_in), shifted_sum(x_in, conv.weight, conv.bias, conv.dilation[0]))


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("name", ["VAN", "K 7, d 2", "LSKA", "MSCA", "multi-scale", "dense"])
def test_other_numbers_of_axes(ndim: int, name: str) -> None:
    lka = module(name, ndim=ndim)
    x = maps(*(9, 6, 5)[:ndim]).requires_grad_()
    out = lka(x)
    assert out.shape == x.shape
    kernels = {tuple(conv.weight.shape[2:]) for conv in lka.modules() if hasattr(conv, "kernel_size")}
    if name == "LSKA":
        assert kernels == {(1,) * ndim} | {
            tuple(k if axis == i else 1 for i in range(ndim)) for axis in range(ndim) for k in (5, 7)
        }
    else:
        assert all(len(kernel) == ndim for kernel in kernels)
    if name == "VAN":
        attn = run((lka.dw, lka.dw_d), x)
        attn = torch.einsum("oc,bc...->bo...", lka.pw.weight.flatten(1), attn) + lka.pw.bias.reshape(-1, *[1] * ndim)
        torch.testing.assert_close(out, x * attn)
    assert gradcheck(lka, (maps(*(4, 3, 2)[:ndim])[:1].requires_grad_(),), fast_mode=True)


@settings(max_examples=30)
@given(kernel_size=st.integers(1, 40), dilation=st.integers(1, 6), height=st.integers(1, 20), width=st.integers(1, 20))
def test_any_kernel_keeps_the_size(kernel_size: int, dilation: int, height: int, width: int) -> None:
    lka = LargeKernelAttention(2, kernel_size, dilation, dtype=torch.float64)
    x = maps(height, width, channels=2)
    assert lka.dw.kernel_size == (2 * dilation - 1,) * 2
    assert lka.dw_d.kernel_size == (math.ceil(kernel_size / dilation),) * 2
    attn = lka.pw(run((lka.dw, lka.dw_d), x))
    torch.testing.assert_close(lka(x), x * attn)


def test_every_initialisation_of_a_vision_network_reaches_it() -> None:
    assert all(isinstance(conv, nn.Conv2d) for conv in module("MSCA").modules() if hasattr(conv, "kernel_size"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"form": "lks"}, "form is 'lks', expected one of lka, lska, strips, dense"),
        ({"gate": "divide"}, "gate is 'divide', expected one of multiply, add, none"),
        ({"sigmoid": "no"}, "sigmoid is 'no', expected one of False, True"),
        ({"without": None}, "without is None.*expected a list"),
        ({"form": "strips", "kernel_size": 1, "without": ["dw", "pw"]}, "nothing would be left"),
        ({"ndim": 4}, "ndim is 4, expected one of 1, 2, 3"),
        ({"without": "dw"}, "without is 'dw'.*expected a list"),
        ({"without": ["conv"]}, r"without is \['conv'\], but form 'lka' has the parts"),
        ({"form": "strips", "without": ["dw_d"]}, "form 'strips' has the parts"),
        ({"without": ["dw", "dw_d", "pw"]}, "nothing would be left"),
        ({"kernel_size": 0}, r"kernel_size is \(0,\), expected a positive whole number"),
        ({"kernel_size": ()}, r"kernel_size is \(\), expected"),
        ({"kernel_size": 7.0}, "kernel_size"),
        ({"dilation": -1}, r"dilation is \(-1,\), expected"),
        ({"kernel_size": (7, 21), "dilation": (2, 3, 4)}, "expected one dilation, or one per kernel for lka, lska"),
        ({"form": "strips", "kernel_size": (7, 21), "dilation": (2, 3)}, "expected one dilation"),
        ({"form": "dense", "kernel_size": (7, 21)}, "'dense' has one kernel"),
        ({"kernel_size": (3, 5, 7, 9, 11)}, "for 4 channels: expected at least one channel per kernel"),
    ],
)
def test_wrong_settings(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LargeKernelAttention(C, **kwargs)


@every_setting
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (14, 9)])
def test_hooked_convolutions_are_called_and_compute_the_same(name: str, size: tuple[int, int]) -> None:
    lka = module(name)
    x = maps(*size).requires_grad_()
    convs = [conv for conv in lka.modules() if isinstance(conv, nn.Conv2d)]
    called: list[nn.Module] = []
    for conv in convs:
        conv.register_forward_hook(lambda conv, *_: called.append(conv))
    wanted = [x, *lka.parameters()]
    out, expected = lka(x), truth(lka, name, x)
    assert sorted(map(id, called)) == sorted(map(id, convs))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    actual, expected = (torch.autograd.grad(y.square().sum(), wanted, materialize_grads=True) for y in (out, expected))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("ndim", [1, 3])
@pytest.mark.parametrize("name", ["VAN", "K 10, d 3", "LSKA", "MSCA", "multi-scale", "dense, even"])
def test_hooked_convolutions_of_other_numbers_of_axes(ndim: int, name: str) -> None:
    lka = module(name, ndim=ndim)
    x = maps(*(9, 6, 5)[:ndim])
    expected, called = lka(x), 0
    convs = [conv for conv in lka.modules() if hasattr(conv, "kernel_size")]

    def count(conv: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        nonlocal called
        called += 1
        torch.testing.assert_close(output, shifted_sum(args[0], conv.weight, conv.bias, conv.dilation[0]))

    for conv in convs:
        conv.register_forward_hook(count)
    torch.testing.assert_close(lka(x), expected, rtol=1e-10, atol=1e-10)
    assert called == len(convs) > 0


@jit
@pytest.mark.export
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
@every_setting
def test_onnx_runtime_takes_the_traced_export(name: str, dynamic: bool) -> None:
    """It refuses dilations beside padding="same"."""
    import onnxruntime

    lka = module(name, dtype=torch.float32, stride_dilation=2).eval()
    x, file = maps(12, 10, dtype=torch.float32), io.BytesIO()
    axes = {"x": {0: "batch", 2: "height", 3: "width"}} if dynamic else None
    torch.onnx.export(lka, (x,), file, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for y in [x, maps(5, 33, dtype=torch.float32)] if dynamic else [x]:
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": y.numpy()})[0]), lka(y).detach())
