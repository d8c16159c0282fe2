"""Maps against hand computations, captum's own result, and convolution arithmetic."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d
from torch import Tensor, nn

from vankit.errors import UserError
from vankit.explanation import maps
from vankit.models.lka import LargeKernelAttention
from vankit.models.van import VAN

SMALL = {"embed_dims": (8, 12, 16, 24), "depths": (1, 2, 1, 1), "mlp_ratios": (2, 2, 2, 2)}


@pytest.fixture(scope="module")
def van() -> VAN:
    torch.manual_seed(0)
    return VAN(num_classes=5, layer_scale_init=1.0, **SMALL).eval()


def score_of(network: nn.Module, index: int) -> Callable[[Tensor], Tensor]:
    return lambda x: network(x)[:, index]


def by_hand(features: Tensor, logit: Tensor) -> Tensor:
    """Selvaraju et al., equations 1 and 2, of maps (B, C, h, w) and their class's logit (B,)."""
    (gradient,) = torch.autograd.grad(logit.sum(), features, retain_graph=True)
    weights = gradient.sum((2, 3)) / (gradient.shape[2] * gradient.shape[3])  # (B, C)
    return (weights[:, :, None, None] * features).sum(1).clamp(min=0)


def test_grad_cam_of_a_van_by_hand(van: VAN) -> None:
    x = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    stage3 = van.stage3(van.stage2(van.stage1(x)))
    stage4 = van.stage4(stage3)
    logits = van.forward_head(stage4)
    for name, features in (("stage3", stage3), ("stage4", stage4)):
        found = torch.stack([maps.grad_cam(van, name, x, score_of(van, i)) for i in range(5)])
        expected = torch.stack([by_hand(features, logits[:, i]) for i in range(5)])
        assert expected.amax() > 0
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-6)
    assert all(not module._forward_hooks for module in van.modules())


def test_grad_cam_is_captums(van: VAN) -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    expected = LayerGradCam(van, van.stage2).attribute(x, target=3, relu_attributions=True)
    found = maps.grad_cam(van, "stage2", x, score_of(van, 3))
    torch.testing.assert_close(found, expected[:, 0].detach(), rtol=0, atol=0)


def test_grad_cam_where_channels_come_last() -> None:
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2), "window_size": 4}
    swin = timm.create_model("swin_tiny_patch4_window7_224", num_classes=4, img_size=128, **sizes).eval()
    x = torch.randn(1, 3, 128, 128)
    features = swin.layers[2](swin.layers[1](swin.layers[0](swin.patch_embed(x)))).permute(0, 3, 1, 2)  # (1, 32, 8, 8)
    logits = swin.forward_head(swin.norm(swin.layers[3](features.permute(0, 2, 3, 1))))
    expected = by_hand(features, logits[:, 2])
    (layer,) = maps.layers_of(swin, 3).values()
    assert expected.shape == (1, 8, 8) and expected.amax() > 0
    torch.testing.assert_close(
        maps.grad_cam(swin, layer, x, score_of(swin, 2)), expected.detach(), rtol=1e-4, atol=1e-7
    )


def vit(pool: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 4, "num_heads": 2, "patch_size": 16, "img_size": (64, 96)}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, global_pool=pool, **sizes).eval()


def test_grad_cam_of_tokens_by_hand() -> None:
    network = vit("token")
    x = torch.randn(1, 3, 64, 96)
    tokens = network.forward_features(x)  # what enters the last block is taken by hooks of the test's own
    kept = []
    handle = network.blocks[-1].norm1.register_forward_hook(lambda _module, _args, y: kept.append(y))
    logit = network(x)[:, 1]
    handle.remove()
    (gradient,) = torch.autograd.grad(logit, kept[0])
    weights = gradient[:, 1:].mean(1)  # without the class token
    expected = (kept[0][:, 1:] * weights[:, None]).sum(2).clamp(min=0).reshape(1, 4, 6)
    (layer,) = maps.layers_of(network, 4).values()
    assert tokens.shape == (1, 25, 16) and layer == "blocks.3.norm1" and expected.amax() > 0
    found = maps.grad_cam(network, layer, x, score_of(network, 1))
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [
        ("van", (64, 96), {1: (16, 24), 2: (8, 12), 3: (4, 6), 4: (2, 3)}),
        ("test_resnet", (64, 96), {1: (16, 24), 4: (2, 3)}),
        ("test_efficientnet", (64, 96), {1: (16, 24), 4: (2, 3)}),
        ("test_convnext", (64, 96), {1: (16, 24), 4: (2, 3)}),
        ("vit of tokens", (64, 96), {1: (4, 6), 4: (4, 6)}),
        ("vit of averages", (64, 96), {4: (4, 6)}),
    ],
)
def test_every_kind_of_network_has_maps(
    network: str, size: tuple[int, int], expected: dict[int, tuple[int, int]], van: VAN
) -> None:
    if network.startswith("vit"):
        model = vit("token" if "tokens" in network else "avg")
    else:
        model = van if network == "van" else timm.create_model(network, num_classes=3).eval()
    x = torch.randn(1, 3, *size)
    for stage, shape in expected.items():
        ((place, layer),) = maps.layers_of(model, stage).items()
        heat = maps.grad_cam(model, layer, x, lambda x: model(x).square().sum(1))
        assert place == f"stage {stage}" and heat.shape == (1, *shape)
    found = maps.receptive_fields(model, list(maps.layers_of(model).values()), x)
    assert len(found) == 4 and all(field.shape == size for field in found)


@given(
    height=st.integers(1, 12), width=st.integers(1, 12), patch=st.integers(1, 32), prefix=st.integers(0, 5),
    form=st.sampled_from(["maps", "last", "tokens"]),
)  # fmt: skip
@settings(max_examples=60)
def test_maps_and_back(height: int, width: int, patch: int, prefix: int, form: str) -> None:
    channels = 97  # as no picture's side, which would be ambiguous
    y = torch.arange(channels * height * width).reshape(1, channels, height, width).float()
    size = (height * patch, width * patch)
    if form == "last":
        y = y.permute(0, 2, 3, 1)
    elif form == "tokens":
        y = torch.cat([torch.full((1, prefix, channels), -1.0), y.flatten(2).transpose(1, 2)], 1)
    found, back = maps.to_maps(y, size, prefix)
    assert found.shape == (1, channels, height, width)
    assert found[0, 3, -1, -1] == 3 * height * width + height * width - 1
    assert torch.equal(back(found), y)


@pytest.mark.parametrize(
    "y", [torch.zeros(1, 7), torch.zeros(1, 14, 5), torch.zeros(1, 1, 5), [torch.zeros(1, 2, 3, 3)]]
)
def test_what_is_no_map(y: object) -> None:
    with pytest.raises(UserError, match="pass another layer"):
        maps.to_maps(y, (32, 32), prefix=1)


def test_layers_that_are_not_there(van: VAN) -> None:
    assert maps.layers_of(van) == {f"stage {i}": f"stage{i}" for i in range(1, 5)}
    assert maps.layers_of(van, layer="stage2.norm") == {"stage2.norm": "stage2.norm"}
    with pytest.raises(UserError, match=r"no module 'layer4' \(--layer\): expected a name in stage1, "):
        maps.layers_of(van, layer="layer4")
    with pytest.raises(UserError, match="stage is 5"):
        maps.layers_of(van, 5)
    with pytest.raises(UserError, match="Sequential does not say where its stages are: pass layer"):
        maps.layers_of(nn.Sequential(nn.Conv2d(3, 3, 1)))


def lka(dim: int, dilation: int = 1) -> LargeKernelAttention:
    torch.manual_seed(3)
    return LargeKernelAttention(dim, stride_dilation=dilation)


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_depthwise_pair_spans_23_pixels(dilation: int) -> None:
    """5x5, then 7x7 with dilation 3: 5 + 3 (7 - 1) = 23; twice the dilation spans 45."""
    module = lka(3, dilation)
    pair = nn.Sequential(module.dw, module.dw_d)
    (field,) = maps.receptive_fields(pair, [""], torch.randn(2, 3, 61, 63))
    span = 1 + 22 * dilation
    assert {name: maps.extent(field)[name] for name in ("height", "width")} == {"height": span, "width": span}
    inside = field[30 - span // 2 : 31 + span // 2, 31 - span // 2 : 32 + span // 2]
    assert (inside[::dilation, ::dilation] > 0).all() and field.sum() == pytest.approx(inside.sum())


def test_the_depthwise_pair_is_one_large_kernel() -> None:
    module = lka(1)
    pair = nn.Sequential(module.dw, module.dw_d)
    (field,) = maps.receptive_fields(pair, [""], torch.randn(1, 1, 31, 31))
    first, second = (conv.weight.detach().double().numpy()[0, 0] for conv in (module.dw, module.dw_d))
    spread = np.zeros((19, 19))
    spread[::3, ::3] = second
    kernel = abs(convolve2d(first, spread))  # (23, 23)
    np.testing.assert_allclose(field[4:27, 4:27] / field.max(), kernel / kernel.max(), rtol=1e-4, atol=1e-7)


def test_a_pixels_value_is_the_length_of_its_jacobian() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(1, 6, 3, padding=1)
    fields = [maps.receptive_fields(conv, [""], torch.randn(1, 1, 5, 5), seed)[0] for seed in range(600)]
    expected = conv.weight.detach().square().sum(0).sqrt()[0] * np.sqrt(2 / np.pi)  # the mean of a normal's size
    np.testing.assert_allclose(np.mean(fields, 0)[1:4, 1:4], expected, rtol=0.12)


@given(kernels=st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.integers(1, 3)), min_size=1, max_size=3))
@settings(max_examples=15)
def test_any_stack_of_convolutions(kernels: list[tuple[int, int]]) -> None:
    torch.manual_seed(0)
    stack = nn.Sequential(*(nn.Conv2d(2, 2, k, padding=d * (k // 2), dilation=d) for k, d in kernels))
    (field,) = maps.receptive_fields(stack, [""], torch.randn(1, 2, 43, 43))
    reach = 1 + sum(d * (k - 1) for k, d in kernels)
    assert (maps.extent(field)["height"], maps.extent(field)["width"]) == (reach, reach)


def test_the_extent_of_whole_stages(van: VAN) -> None:
    """Embedding 7 with stride 4; a block adds 22 of LKA and 2 of the MLP's 3x3, in units of its stride."""
    x = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    fields = maps.receptive_fields(van, ["stage1", "stage2"], x)
    assert maps.extent(fields[0])["height"] == maps.extent(fields[0])["width"] == 7 + 24 * 4
    assert maps.extent(fields[1])["height"] == 320  # 7 + 24 * 4 + 2 * 4 + 2 * 24 * 8 = 495, cut off by the picture
    assert fields[0].argmax() // 320 == pytest.approx(160, abs=8)  # the middle unit's own pixels count most


def test_weights_keep_the_gradient_that_a_layer_norm_would_cancel(van: VAN) -> None:
    """After a LayerNorm of equal weights the channels' sum is constant."""
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (plain,) = torch.autograd.grad(van.stage1(x)[:, :, 8, 8].sum(), x)
    (field,) = maps.receptive_fields(van, ["stage1"], x)
    assert field.max() > 1e3 * plain.abs().mean((0, 1)).max()


def test_luos_effective_size() -> None:
    """Of a Gaussian: the disc of radius s sqrt(2 ln(1 / 0.0455)), whose area's root is 4.41 s."""
    y, x = np.mgrid[-100:101, -100:101]
    field = np.exp(-(x**2 + y**2) / (2 * 20.0**2))
    assert maps.extent(field)["effective"] == pytest.approx(20 * np.sqrt(2 * np.pi * np.log(1 / 0.0455)), rel=0.01)


def test_a_constant_has_no_receptive_field() -> None:
    with pytest.raises(UserError, match="depends on no pixel"):
        maps.receptive_fields(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Threshold(1e9, 0)), ["1"], torch.randn(1, 1, 9, 9))


def test_watching_a_network(van: VAN) -> None:
    x = torch.randn(2, 3, 64, 64)
    found: dict[maps.Block, Tensor] = {}
    blocks = maps.blocks_of(van)
    with torch.no_grad(), maps.watching(blocks, found.__setitem__), maps.inputs_of(van) as inputs:
        van(x)
        block = van.stage2.blocks[1]
        before = van.stage2.blocks[0](van.stage2.patch_embed(van.stage1(x)))
        gate_input = F.gelu(block.attn.proj_1(block.norm1(before)))
    assert list(blocks) == [(1, 1), (2, 1), (2, 2), (3, 1), (4, 1)] and set(found) == set(blocks)
    torch.testing.assert_close(gate_input * found[2, 2], block.attn.lka(gate_input))
    assert len(inputs) == 1 and torch.equal(inputs[0], x)
    assert list(maps.blocks_of(van, 2)) == [(2, 1), (2, 2)]
    with pytest.raises(UserError, match="stage is 7, expected 1 to 4"):
        maps.blocks_of(van, 7)
    with pytest.raises(UserError, match="Linear has no large kernel attention"):
        maps.blocks_of(nn.Linear(1, 1))


def test_lkas_outside_a_van_are_blocks_of_one_stage() -> None:
    assert list(maps.blocks_of(nn.Sequential(lka(2), nn.ReLU(), lka(2)))) == [(1, 1), (1, 2)]


def test_channel_statistics_are_numpys() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(b, 3, *size, generator=generator) * 3 - 1 for b, *size in ((1, 5, 7), (2, 4, 4), (1, 9, 1))]
    statistics = maps.ChannelStatistics()
    for part in parts:
        statistics.add((2, 1), part)
        statistics.add((1, 3), part[:, :1] * 0 + 2)
    rows = statistics.rows()
    assert [(row["stage"], row["block"], row["channel"]) for row in rows] == [
        (1, 3, 1),
        (2, 1, 1),
        (2, 1, 2),
        (2, 1, 3),
    ]
    assert rows[0] == {"stage": 1, "block": 3, "channel": 1, "mean": 2, "std": 0, "min": 2, "max": 2, "positive": 1}
    for i in range(3):
        values = np.concatenate([part[:, i].numpy().ravel() for part in parts]).astype(float)
        for name, expected in (
            ("mean", values.mean()), ("std", values.std()), ("min", values.min()), ("max", values.max()),
            ("positive", (values > 0).mean()),
        ):  # fmt: skip
            assert rows[1 + i][name] == pytest.approx(expected, rel=1e-9)
