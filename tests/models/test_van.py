"""VAN: the network against a functional float64 truth, and the whole of timm's model contract."""

import copy
import io
import math
import pickle
from collections import OrderedDict
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropPath, LayerNorm2d
from timm.models import group_modules, group_parameters
from timm.models._features_fx import create_feature_extractor, get_graph_node_names
from timm.optim import create_optimizer_v2
from torch import Tensor

from vankit.errors import UserError
from vankit.models import weights
from vankit.models.lka import LargeKernelAttention
from vankit.models.van import ALIASES, VAN, VARIANTS, architecture, create_model

PARAMETERS = {
    "van_b0": 4_105_800,
    "van_b1": 13_861_800,
    "van_b2": 26_578_472,
    "van_b3": 44_765_608,
    "van_b4": 60_283_176,
    "van_b5": 89_967_688,
    "van_b6": 199_829_416,
}
# paper table 2
WIDTHS = {
    "van_b0": [32, 64, 160, 256],
    "van_b1": [64, 128, 320, 512],
    "van_b2": [64, 128, 320, 512],
    "van_b3": [64, 128, 320, 512],
    "van_b4": [64, 128, 320, 512],
    "van_b5": [96, 192, 480, 768],
    "van_b6": [96, 192, 384, 768],
}
DEPTHS = {
    "van_b0": [3, 3, 5, 2],
    "van_b1": [2, 2, 4, 2],
    "van_b2": [3, 3, 12, 3],
    "van_b3": [3, 5, 27, 3],
    "van_b4": [3, 6, 40, 3],
    "van_b5": [3, 3, 24, 3],
    "van_b6": [6, 6, 90, 6],
}
DIMS, BLOCKS, CLASSES = (8, 12, 16, 20), (1, 2, 2, 1), 5
every_variant = pytest.mark.parametrize("name", PARAMETERS)
jit = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
few = settings(max_examples=15)


def small(**kwargs) -> VAN:
    """A cut-down VAN in eval mode; every parameter and buffer is random, so that none can be left out unseen."""
    torch.manual_seed(0)
    model = VAN(**{"num_classes": CLASSES, "embed_dims": DIMS, "depths": BLOCKS, "mlp_ratios": (2, 3, 2, 1)} | kwargs)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.2, 1.2)
    return model.eval()


def images(*size: int, batch: int = 2, chans: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, chans, *(size or (64, 64)), generator=torch.Generator().manual_seed(1)).to(dtype)


@cache
def meta(name: str, **kwargs) -> nn.Module:
    """A network of no numbers, made once: not to be changed."""
    return timm.create_model(name, device="meta", **kwargs)


def truth_stages(state: dict[str, Tensor], x: Tensor, training: bool = False) -> list[Tensor]:
    """The four stage outputs, written from the paper's equations with functional calls alone."""

    def conv(name, x, stride=1, dilation=1):
        weight = state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        return F.conv2d(x, weight, state[f"{name}.bias"], stride, dilation * (weight.shape[-1] // 2), dilation, groups)

    def batch_norm(name, x):
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def layer_norm(name, x):
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def gelu(x):
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2

    def attention(name, x):
        u = gelu(conv(f"{name}.proj_1", x))
        lka = conv(f"{name}.lka.pw", conv(f"{name}.lka.dw_d", conv(f"{name}.lka.dw", u), dilation=3))
        return x + conv(f"{name}.proj_2", u * lka)

    def mlp(name, x):
        return conv(f"{name}.fc2", gelu(conv(f"{name}.dw", conv(f"{name}.fc1", x))))

    outputs = []
    for i, depth in enumerate(BLOCKS):
        stage = f"stage{i + 1}"
        x = conv(f"{stage}.patch_embed.proj", x, stride=2 if i else 4)
        x = batch_norm(f"{stage}.patch_embed.norm", x)
        for b in range(depth):
            block = f"{stage}.blocks.{b}"
            scale_1, scale_2 = (state[f"{block}.layer_scale_{n}"][:, None, None] for n in (1, 2))
            x = x + scale_1 * attention(f"{block}.attn", batch_norm(f"{block}.norm1", x))
            x = x + scale_2 * mlp(f"{block}.mlp", batch_norm(f"{block}.norm2", x))
        x = layer_norm(f"{stage}.norm", x)
        outputs.append(x)
    return outputs


def truth(state: dict[str, Tensor], x: Tensor, training: bool = False) -> Tensor:
    pooled = truth_stages(state, x, training)[-1].mean((2, 3))
    return pooled @ state["head.fc.weight"].T + state["head.fc.bias"]


# --- the network ---


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (33, 57), (70, 41)])
def test_outputs_and_gradients_are_those_of_the_paper(size, training):
    model, x = small(dtype=torch.float64).train(training), images(*size, dtype=torch.float64).requires_grad_()
    state = {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in model.state_dict().items()}
    expected = truth(state, x, training)
    out = model(x)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)

    direction = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view_as(out)
    names, parameters = zip(*model.named_parameters(), strict=True)
    actual = torch.autograd.grad(out, [x, *parameters], direction)
    wanted = torch.autograd.grad(expected, [x, *(state[n] for n in names)], direction)
    torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-8)
    assert all(g.abs().max() > 1e-6 for n, g in zip(names, actual[1:], strict=True) if n.endswith("weight"))


@few
@given(height=st.integers(1, 97), width=st.integers(1, 97))
def test_any_size(height, width):
    model, x = small(dtype=torch.float64), images(height, width, batch=1, dtype=torch.float64)
    with torch.no_grad():
        features, stages = model.forward_intermediates(x)
        expected = truth_stages(model.state_dict(), x)
    torch.testing.assert_close(stages, expected, rtol=1e-9, atol=1e-9)
    assert [s.shape[-2:] for s in stages] == [(-(-height // r), -(-width // r)) for r in (4, 8, 16, 32)]
    assert features is stages[-1]


@pytest.mark.parametrize("size", [(1, 1), (33, 57), (224, 224), (1, 200)])
def test_sizes_of_a_full_variant(size):
    model = timm.create_model("van_b0").eval()
    with torch.no_grad():
        logits = model(images(*size, batch=1))
    assert logits.shape == (1, 1000)
    assert logits.isfinite().all()


def test_images_of_a_batch_do_not_mix_and_a_batch_may_be_empty():
    model, x = small(), images(batch=3)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]))
    assert model(x[:0]).shape == (0, CLASSES)


def test_channels_last_is_equal():
    model, x = small(dtype=torch.float64), images(65, 50, dtype=torch.float64)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    features = model.forward_features(x.to(memory_format=torch.channels_last))
    assert features.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.forward_head(features), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    model, x = small(), images()
    out, low = model(x), copy.deepcopy(model).to(dtype)(x.to(dtype))
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), out, rtol=0.05, atol=0.05 * out.abs().max().item())


def test_autocast():
    model, x = small(), images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), model(x), rtol=0.05, atol=0.05)


def test_factory_arguments_reach_every_tensor():
    double = small(dtype=torch.float64)
    assert {t.dtype for t in double.state_dict().values()} == {torch.float64, torch.int64}
    assert {t.device.type for t in small(device="meta").state_dict().values()} == {"meta"}


def test_initialisation():
    torch.manual_seed(0)
    model = timm.create_model("van_b0")
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            assert parameter.eq(1e-2).all()
        elif name.endswith("bias"):
            assert parameter.eq(0).all()
        elif ".norm" in name:
            assert parameter.eq(1).all()
    expected = {
        "stage4.blocks.0.mlp.fc1": math.sqrt(2 / 1024),  # fan out of a 1x1 to 4 * 256 channels
        "stage4.blocks.0.attn.lka.dw": math.sqrt(2 / 25),  # one output channel a group
        "stage3.blocks.0.attn.lka.dw_d": math.sqrt(2 / 49),
        "stage1.patch_embed.proj": math.sqrt(2 / (49 * 32)),
        "head.fc": 0.02,
    }
    for name, std in expected.items():
        assert model.get_submodule(name).weight.std().item() == pytest.approx(std, rel=0.05), name


def test_layer_scale_init_and_norm_epsilon():
    model = small(layer_scale_init=0.5)
    assert [m.eps for m in model.modules() if isinstance(m, LayerNorm2d)] == [1e-6] * 4
    assert {m.eps for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    fresh = VAN(embed_dims=DIMS, depths=BLOCKS, layer_scale_init=0.5)
    assert {v.item() for n, p in fresh.named_parameters() if "layer_scale" in n for v in p} == {0.5}


def test_state_dict_names():
    norm = [".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked"]
    names = []
    for stage, depth in enumerate(BLOCKS, 1):
        prefix = f"stage{stage}."
        names += [f"{prefix}patch_embed.proj{leaf}" for leaf in norm[:2]]
        names += [f"{prefix}patch_embed.norm{leaf}" for leaf in norm]
        for b in range(depth):
            block = f"{prefix}blocks.{b}."
            names += [f"{block}layer_scale_{n}" for n in (1, 2)]
            names += [f"{block}norm{n}{leaf}" for n in (1, 2) for leaf in norm]
            convs = ["attn.proj_1", "attn.lka.dw", "attn.lka.dw_d", "attn.lka.pw", "attn.proj_2"]
            names += [f"{block}{conv}{leaf}" for conv in [*convs, "mlp.fc1", "mlp.dw", "mlp.fc2"] for leaf in norm[:2]]
        names += [f"{prefix}norm{leaf}" for leaf in norm[:2]]
    assert sorted(small().state_dict()) == sorted([*names, "head.fc.weight", "head.fc.bias"])


def test_settings_of_the_attention_reach_every_block():
    model = small(lka={"kernel_size": 7, "dilation": 2, "gate": "add"}, output_stride=16)
    found = [m for m in model.modules() if isinstance(m, LargeKernelAttention)]
    assert len(found) == sum(BLOCKS)
    assert {(m.dw.kernel_size, m.dw_d.kernel_size, m.gate) for m in found} == {((3, 3), (4, 4), "add")}
    assert [m.dw_d.dilation[0] for m in found] == [2, 2, 2, 2, 2, 4]
    x = images(40, 37)
    y = model.stage1.patch_embed(x)
    block = model.stage1.blocks[0]
    u = F.gelu(block.attn.proj_1(block.norm1(y)))
    expected = y + block.layer_scale_1[:, None, None] * (
        block.norm1(y) + block.attn.proj_2(u + block.attn.lka.pw(block.attn.lka.dw_d(block.attn.lka.dw(u))))
    )
    expected = expected + block.layer_scale_2[:, None, None] * block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(y), expected)
    assert model(x).shape == (2, CLASSES)


@jit
@pytest.mark.parametrize("lka", [{"form": "lska"}, {"form": "strips", "kernel_size": (1, 7, 11)}, {"without": ["dw"]}])
def test_other_attentions_keep_the_contract(lka):
    model = small(lka=lka, depths=(1, 1, 1, 1))
    x = images(64, 64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(torch.jit.script(model)(x), expected)
        torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), expected)
        wider = images(96, 64)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(wider), model(wider))
    assert [f.shape[1] for f in timm.create_model("van_b0", features_only=True, lka=lka)(x)] == [32, 64, 160, 256]
    grouped = [name for names in group_parameters(model, model.group_matcher()).values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())


def test_unknown_settings_of_the_attention():
    with pytest.raises(UserError, match=r"lka has no setting kernel: expected some of kernel_size, dilation"):
        timm.create_model("van_b0", lka={"kernel": 7})
    with pytest.raises(UserError, match="resnet18 has no large kernel attention to set"):
        create_model("resnet18", lka={"kernel_size": 7})
    assert isinstance(create_model("van_b0", lka={}), VAN)
    for wrong in (5, {"without": {"dw"}}, {"kernel_size": torch.ones(1)}):
        with pytest.raises(UserError, match="lka is .*expected a dict of kernel_size"):
            timm.create_model("van_b0", lka=wrong)


# --- variants and registration ---


def test_registration():
    assert set(PARAMETERS) <= set(timm.list_models("van_b*"))
    public = ["van_b0.cifar10", *(f"van_b{i}.in1k" for i in range(5)), *(f"van_b{i}.in22k" for i in (4, 5, 6))]
    assert sorted(timm.list_models("van_b*", pretrained=True)) == sorted(public)
    assert all(timm.is_model(name) for name in PARAMETERS)
    assert timm.models.model_entrypoint("van_b0").__module__ == "vankit.models.van"


@pytest.mark.parametrize(
    ("alias", "tagged"),
    [
        ("van_tiny", "van_b0.in1k"),
        ("van_large", "van_b3.in1k"),
        ("van-small_3rdparty_in1k", "van_b1.in1k"),
        ("van-base_8xb128_in1k", "van_b2.in1k"),
        ("van-b4_3rdparty_in1k", "van_b4.in1k"),
        ("van-b4_8xb128_in1k", "van_b4.in1k"),
        ("van-b4_3rdparty_in21k", "van_b4.in22k"),
        ("van-b6_3rdparty_in21k", "van_b6.in22k"),
    ],
)
def test_other_names(alias, tagged):
    name, tag = tagged.split(".")
    with torch.device("meta"):
        own = create_model(alias)
        with pytest.warns(UserWarning, match=f"{alias} to current {tagged}"):
            timms = timm.create_model(alias)
    for model in (own, timms):
        assert [len(stage.blocks) for stage in model._stages()] == DEPTHS[name]
        assert (model.pretrained_cfg["architecture"], model.pretrained_cfg["tag"]) == (name, tag)
    assert architecture(alias) == architecture(tagged) == name
    assert alias not in timm.list_models("van*")


def test_every_other_name_is_of_public_weights():
    assert set(ALIASES.values()) == set(timm.list_pretrained("van_b*")) - {"van_b0.cifar10"}


@pytest.mark.parametrize("name", ["van_b4", "van_b5", "van_b6"])
def test_imagenet_22k_has_21841_classes(name):
    with torch.device("meta"):
        tagged, plain = timm.create_model(f"{name}.in22k"), timm.create_model(name)
    assert tagged.num_classes == tagged.pretrained_cfg["num_classes"] == 21841
    assert plain.num_classes == plain.pretrained_cfg["num_classes"] == 1000
    count = sum(p.numel() for p in tagged.parameters())
    assert count == PARAMETERS[name] + (21841 - 1000) * (WIDTHS[name][-1] + 1)


@every_variant
def test_variant(name):
    model = meta(name)
    assert isinstance(model, VAN)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert [info["num_chs"] for info in model.feature_info] == WIDTHS[name]
    assert [len(model.get_submodule(f"stage{i}").blocks) for i in range(1, 5)] == DEPTHS[name]
    assert [model.get_submodule(f"stage{i}").blocks[0].mlp.fc1.out_channels for i in range(1, 5)] == [
        r * w for r, w in zip((8, 8, 4, 4), WIDTHS[name], strict=True)
    ]
    assert model.num_features == model.head_hidden_size == WIDTHS[name][-1]
    x = torch.empty(2, 3, 224, 224, device="meta")
    features = model.forward_features(x)
    assert features.shape == (2, WIDTHS[name][-1], *model.pretrained_cfg["pool_size"]) == (2, WIDTHS[name][-1], 7, 7)
    assert model.forward_head(features).shape == (2, 1000)


@every_variant
def test_pretrained_cfg_names_real_modules(name):
    model = meta(name)
    cfg = model.pretrained_cfg
    assert model.get_submodule(cfg["classifier"]) is model.get_classifier()
    assert model.get_submodule(cfg["first_conv"]) is next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    assert cfg["input_size"] == (3, 224, 224)  # which test_variant runs
    assert cfg["num_classes"] == 1000
    data = timm.data.resolve_model_data_config(model)
    assert (data["interpolation"], data["crop_pct"], data["input_size"]) == ("bicubic", 0.9, (3, 224, 224))
    assert data["mean"] == data["std"] == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("name", ["van_b0", *(pytest.param(f"van_b{i}", marks=pytest.mark.slow) for i in range(1, 7))])
def test_features_of_every_variant(name):
    model = meta(name, features_only=True, out_indices=(1, 3))
    assert model.feature_info.channels() == [WIDTHS[name][1], WIDTHS[name][3]]
    assert model.feature_info.reduction() == [8, 32]
    shapes = [tuple(f.shape) for f in model(torch.empty(1, 3, 96, 65, device="meta"))]
    assert shapes == [(1, WIDTHS[name][1], 12, 9), (1, WIDTHS[name][3], 3, 3)]


@every_variant
def test_every_parameter_of_a_variant_is_in_one_layer_group(name):
    model = meta(name)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert layers.keys() == dict(model.named_parameters()).keys()
    # stem, blocks, three patch embeddings between the stages, head
    assert set(layers.values()) == set(range(1 + sum(DEPTHS[name]) + 3 + 1))


# --- head ---


@pytest.mark.parametrize("num_classes", [0, 1, 10])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_num_classes_and_in_chans(num_classes, in_chans):
    model = timm.create_model("van_b0", num_classes=num_classes, in_chans=in_chans).eval()
    assert model.num_classes == num_classes
    assert model.in_chans == in_chans
    out = model(images(32, 32, chans=in_chans))
    assert out.shape == (2, num_classes or 256)
    assert isinstance(model.get_classifier(), nn.Linear if num_classes else nn.Identity)


def test_pooling_and_pre_logits():
    model, x = small(), images()
    features = model.forward_features(x)
    pooled = features.mean((2, 3))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    torch.testing.assert_close(model.forward_head(features), model.get_classifier()(pooled))
    torch.testing.assert_close(model(x), model.forward_head(features))
    for pool, expected in (("avg", pooled), ("", features)):
        headless = small(num_classes=0, global_pool=pool)
        headless.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head")})
        torch.testing.assert_close(headless(x), expected)


@pytest.mark.parametrize("pool", ["avg", "max", "catavgmax"])
def test_head_hidden_size_is_the_width_before_the_logits(pool):
    model = small(global_pool=pool)
    pre = model.forward_head(model.forward_features(images()), pre_logits=True)
    assert pre.shape == (2, model.head_hidden_size) == (2, DIMS[-1] * (2 if pool == "catavgmax" else 1))


def test_drop_rate():
    model = small(drop_rate=0.5).train()
    assert model.drop_rate == model.head.drop.p == 0.5
    features = torch.ones(64, DIMS[-1], 1, 1)
    dropped = model.forward_head(features, pre_logits=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval().forward_head(features, pre_logits=True), features[:, :, 0, 0])


def test_classes_need_pooling():
    with pytest.raises(UserError, match=r"num_classes=5.*expected global_pool='avg'"):
        small(global_pool="")
    model = small()
    with pytest.raises(UserError, match="num_classes=4"):
        model.reset_classifier(4, "")
    assert model.num_classes == model.get_classifier().out_features == CLASSES
    model.reset_classifier(0, "")
    with pytest.raises(UserError, match="num_classes=4"):
        model.reset_classifier(4)


def test_reset_classifier():
    model, x = small(), images()
    features = model.forward_features(x)
    model.reset_classifier(7)
    assert model.num_classes == model.get_classifier().out_features == 7
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features.mean((2, 3)))
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(x), features)
    model.reset_classifier(3, "avg")
    torch.testing.assert_close(model(x), model.get_classifier()(features.mean((2, 3))))


@pytest.mark.parametrize("num_classes", [0, 5])
def test_a_new_head_takes_the_models_dtype_and_device(num_classes):
    model = small(dtype=torch.float64, num_classes=num_classes)
    model.reset_classifier(4)
    assert model(images(dtype=torch.float64)).dtype == torch.float64
    model = small(device="meta", num_classes=num_classes)
    model.reset_classifier(4)
    assert model.get_classifier().weight.is_meta


# --- stochastic depth ---


def test_drop_path_rises_linearly_over_the_blocks():
    model = VAN(depths=(3, 3, 5, 2), drop_path_rate=0.24, device="meta")
    rates = [
        block.drop_path.drop_prob if isinstance(block.drop_path, DropPath) else 0.0
        for i in range(1, 5)
        for block in model.get_submodule(f"stage{i}").blocks
    ]
    assert rates == pytest.approx([0.02 * i for i in range(13)])  # 0.24 / 12 a block
    assert not any(isinstance(m, DropPath) for m in VAN(device="meta").modules())


def test_drop_path_drops_whole_branches_in_training_only():
    model, x = small(drop_path_rate=1.0), images(16, 16, chans=DIMS[-1])
    last = model.stage4.blocks[-1]
    assert torch.equal(last.train()(x), x)
    assert not torch.equal(last.eval()(x), x)


def test_drop_path_keeps_the_expected_size_of_a_branch():
    block = small(drop_path_rate=0.5).stage4.blocks[-1].train()
    block.mlp = nn.Identity()
    nn.init.zeros_(block.layer_scale_2)
    x = images(1, 1, batch=64, chans=DIMS[-1])
    branch = block.layer_scale_1[:, None, None] * block.attn(block.norm1(x))
    scale = (block(x) - x) / branch
    per_image = scale.flatten(1).median(1).values.round(decimals=3)
    assert set(per_image.tolist()) == {0.0, 2.0}


# --- intermediate features ---


@pytest.mark.parametrize("feature_cls", ["list", "dict", "hook", "getter", "fx"])
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3), (1, 3), (2,), (-3, -1), 2])
def test_features_only(feature_cls, out_indices):
    torch.manual_seed(0)
    model = timm.create_model("van_b0", num_classes=0).eval()
    torch.manual_seed(0)
    net = timm.create_model("van_b0", features_only=True, out_indices=out_indices, feature_cls=feature_cls).eval()
    taken = [range(4)[i] for i in (range(-out_indices, 0) if isinstance(out_indices, int) else out_indices)]
    assert net.feature_info.channels() == [WIDTHS["van_b0"][i] for i in taken]
    assert net.feature_info.reduction() == [(4, 8, 16, 32)[i] for i in taken]
    assert net.feature_info.module_name() == [f"stage{i + 1}" for i in taken]
    x = images(65, 48)
    features = net(x)
    if feature_cls == "dict":
        assert isinstance(features, OrderedDict)
        features = list(features.values())
    torch.testing.assert_close(features, model.forward_intermediates(x, taken, intermediates_only=True))


def test_features_only_needs_no_head():
    names = [n for n, _ in timm.create_model("van_b0", features_only=True, out_indices=(0, 1)).named_parameters()]
    assert {n.split(".")[0] for n in names} == {"stage1", "stage2"}


@pytest.mark.parametrize("indices", [None, 1, 3, [0], [1, 3], (-2, -1), [-4]])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("stop_early", [False, True])
def test_forward_intermediates(indices, norm, stop_early):
    model, x = small(dtype=torch.float64), images(40, 72, dtype=torch.float64)
    stages = truth_stages(model.state_dict(), x)
    taken = {None: [0, 1, 2, 3], 1: [3], 3: [1, 2, 3]}.get(indices if not isinstance(indices, (list, tuple)) else 0)
    taken = [range(4)[i] for i in indices] if taken is None else taken
    features, found = model.forward_intermediates(x, indices, norm, stop_early)
    torch.testing.assert_close(found, [stages[i] for i in taken], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(features, stages[max(taken) if stop_early else 3], rtol=1e-9, atol=1e-9)
    only = model.forward_intermediates(x, indices, norm, stop_early, intermediates_only=True)
    assert isinstance(only, list)
    torch.testing.assert_close(only, found)


def test_stop_early_runs_no_later_stage():
    model = small()
    model.stage3.register_forward_hook(lambda *_: pytest.fail("stage3 was run"))
    assert len(model.forward_intermediates(images(), [0, 1], stop_early=True)[1]) == 2


def test_forward_intermediates_rejects():
    with pytest.raises(UserError, match="output_fmt is 'NHWC'"):
        small().forward_intermediates(images(), output_fmt="NHWC")
    with pytest.raises(AssertionError, match="out of range"):  # timm's own check
        small().forward_intermediates(images(), [4])


@pytest.mark.parametrize(("indices", "taken"), [([0], [0]), ([0, 2], [0, 2]), (1, [3]), (2, [2, 3]), ([-3], [1])])
def test_prune_intermediate_layers(indices, taken):
    model, x = small(), images()
    expected = [model.forward_intermediates(x, intermediates_only=True)[i] for i in taken]
    assert model.prune_intermediate_layers(indices) == taken
    torch.testing.assert_close(model.forward_intermediates(x, taken, intermediates_only=True), expected)
    torch.testing.assert_close(model(x), expected[-1])
    stages = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert stages == {f"stage{i + 1}" for i in range(max(taken) + 1)}
    assert model.num_features == model.head_hidden_size == DIMS[max(taken)]
    model.set_grad_checkpointing()  # still works on what is left
    model.reset_classifier(6, "avg")
    torch.testing.assert_close(model.eval()(x), model.get_classifier()(expected[-1].mean((2, 3))))


def test_prune_can_keep_the_head():
    model, x = small(), images()
    expected = model(x)
    assert model.prune_intermediate_layers([1, 3], prune_head=False) == [1, 3]
    torch.testing.assert_close(model(x), expected)
    model.prune_intermediate_layers([1, 3])
    assert isinstance(model.get_classifier(), nn.Identity)


def test_stages_are_direct_children_in_order():
    assert [name for name, _ in small().named_children()] == ["stage1", "stage2", "stage3", "stage4", "head"]


def test_transformers_backbone():
    transformers = pytest.importorskip("transformers")
    config = transformers.TimmBackboneConfig(backbone="van_b0", out_indices=(1, 3), use_pretrained_backbone=False)
    backbone = transformers.TimmBackbone(config).eval()
    assert backbone.stage_names == ["stage1", "stage2", "stage3", "stage4"]
    assert backbone.out_features == ["stage2", "stage4"]
    assert backbone.channels == [64, 256]
    x = images()
    plain = timm.create_model("van_b0").eval()
    plain.load_state_dict(backbone._backbone.state_dict(), strict=False)
    expected = plain.forward_intermediates(x, intermediates_only=True)
    out = backbone(x, output_hidden_states=True)
    torch.testing.assert_close(list(out.feature_maps), [expected[1], expected[3]])
    torch.testing.assert_close(list(out.hidden_states), expected)
    torch.testing.assert_close(list(backbone(x).feature_maps), [expected[1], expected[3]])


# --- output stride ---


@few
@given(output_stride=st.sampled_from([8, 16]), height=st.integers(1, 150), width=st.integers(1, 150))
def test_a_smaller_output_stride_computes_the_same_features_more_densely(output_stride, height, width):
    # A stride turned into dilation keeps each output's inputs: every f-th pixel of the dense map reads exactly what
    # its pixel of the coarse map reads, so only rounding differs; grids start at pixel 0, so any input size lines up.
    coarse, dense = small(dtype=torch.float64), small(dtype=torch.float64, output_stride=output_stride)
    dense.load_state_dict(coarse.state_dict())
    x = images(height, width, batch=1, dtype=torch.float64)
    with torch.no_grad():
        expected = coarse.forward_intermediates(x, intermediates_only=True)
        actual = dense.forward_intermediates(x, intermediates_only=True)
    assert actual[-1].shape[-2:] == (-(-height // output_stride), -(-width // output_stride))
    for reduction, wide, narrow in zip((4, 8, 16, 32), actual, expected, strict=True):
        step = max(1, reduction // output_stride)
        torch.testing.assert_close(wide[..., ::step, ::step], narrow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("output_stride", "reduction", "dilations"),
    [(8, [4, 8, 8, 8], [1, 1, 2, 4]), (16, [4, 8, 16, 16], [1, 1, 1, 2]), (32, [4, 8, 16, 32], [1, 1, 1, 1])],
)
def test_output_stride(output_stride, reduction, dilations):
    net = meta("van_b0", features_only=True, output_stride=output_stride)
    assert net.feature_info.reduction() == reduction
    features = net(torch.empty(1, 3, 96, 100, device="meta"))
    assert [f.shape[-2:] for f in features] == [(-(-96 // r), -(-100 // r)) for r in reduction]
    for i, dilation in enumerate(dilations, 1):
        block = net[f"stage{i}"].blocks[0]
        convs = block.attn.lka.dw, block.attn.lka.dw_d, block.mlp.dw
        assert [c.dilation[0] for c in convs] == [dilation, 3 * dilation, dilation]


@pytest.mark.parametrize("output_stride", [4, 64, 0, 24])
def test_bad_output_stride(output_stride):
    with pytest.raises(UserError, match=rf"output_stride is {output_stride}, but VAN offers 8, 16 and 32"):
        timm.create_model("van_b0", output_stride=output_stride)


# --- optimisation ---


def test_layer_groups_run_from_input_to_output():
    model = small()
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    owner = {
        "stage1.patch_embed": 0,
        "stage1.blocks.0": 1,
        "stage1.norm": 1,  # a stage's norm goes with its last block
        "stage2.patch_embed": 2,
        "stage2.blocks.0": 3,
        "stage2.blocks.1": 4,
        "stage2.norm": 4,
        "stage3.patch_embed": 5,
        "stage3.blocks.0": 6,
        "stage3.blocks.1": 7,
        "stage3.norm": 7,
        "stage4.patch_embed": 8,
        "stage4.blocks.0": 9,
        "stage4.norm": 9,
        "head.fc": 10,
    }
    expected = {n: next(g for prefix, g in owner.items() if n.startswith(prefix + ".")) for n in layers}
    assert layers == expected
    assert layers.keys() == dict(model.named_parameters()).keys()

    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert coarse.keys() == layers.keys()
    for name, group in coarse.items():
        stem = name.startswith("stage1.patch_embed")
        assert group == (0 if stem else 5 if name.startswith("head") else int(name[5])), name


def test_ten_blocks_sort_as_numbers():
    model = VAN(embed_dims=DIMS, depths=(1, 1, 12, 1), device="meta")
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    blocks = [layers[f"stage3.blocks.{i}.layer_scale_1"] for i in range(12)]
    assert blocks == list(range(blocks[0], blocks[0] + 12))


def test_modules_group_like_parameters():
    model = small()
    modules = group_modules(model, model.group_matcher(), reverse=True)
    parameters = group_parameters(model, model.group_matcher(), reverse=True)
    assert {n: modules[n.rpartition(".")[0]] for n in parameters} == parameters


def test_layer_decay_scales():
    model = small()
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    scales = {names[id(p)]: g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    assert len(scales) == sum(len(g["params"]) for g in optimizer.param_groups) == len(names)
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    assert scales == pytest.approx({n: 0.5 ** (10 - layer) for n, layer in layers.items()})


@pytest.mark.parametrize("layer_decay", [None, 0.9])
@pytest.mark.parametrize("decay_vectors", [False, True])
def test_weight_decay_groups(layer_decay, decay_vectors):
    model = small()
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer = create_optimizer_v2(
        model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=layer_decay, filter_bias_and_bn=not decay_vectors
    )
    decays = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays.keys() == dict(model.named_parameters()).keys()
    for name, decay in decays.items():
        matrix = name.endswith("weight") and "norm" not in name
        decayed = "layer_scale" not in name if decay_vectors else matrix
        assert decay == (0.05 if decayed else 0), name


def test_layer_scales_are_not_decayed_even_where_vectors_are():
    model = small()
    scales = {n for n, _ in model.named_parameters() if n.endswith(("layer_scale_1", "layer_scale_2"))}
    assert model.no_weight_decay() == scales
    assert len(scales) == 2 * sum(BLOCKS)
    groups = timm.optim.param_groups_weight_decay(
        model, 0.05, weight_decay_exclude_1d=False, no_weight_decay_list=model.no_weight_decay()
    )
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert all(decays[id(model.get_parameter(n))] == 0 for n in scales)
    assert decays[id(model.stage1.patch_embed.norm.weight)] == 0.05


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(drop_path_rate):
    runs = []
    for enable in (False, True):
        model = small(drop_path_rate=drop_path_rate, dtype=torch.float64).train()
        model.set_grad_checkpointing(enable)
        calls = []
        model.stage2.blocks[0].norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(3)
        model(images(dtype=torch.float64)).square().sum().backward()
        assert len(calls) == (2 if enable else 1)  # recomputed
        runs.append([*(p.grad for p in model.parameters()), *model.buffers()])
    torch.testing.assert_close(runs[1], runs[0])
    model.set_grad_checkpointing(False)
    model(images(dtype=torch.float64)).sum().backward()
    assert len(calls) == 3


def test_gradient_checkpointing_stores_less():
    def stored(enable: bool) -> int:
        model = VAN(embed_dims=DIMS, depths=(4, 1, 1, 1)).train()
        model.set_grad_checkpointing(enable)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            model(images())
        return sum(saved)

    assert stored(True) < stored(False) / 3


def test_a_training_step_lowers_the_loss():
    model, x = small().train(), images(32, 32, batch=8)
    target = torch.arange(8) % CLASSES
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-2)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# --- copies, graphs, compilers ---


def test_deepcopy_and_pickle():
    model, x = small(drop_path_rate=0.1), images()
    expected = model(x)
    copied, unpickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        model.head.fc.bias += 1
    torch.testing.assert_close(copied(x), expected)
    torch.testing.assert_close(unpickled(x), expected)
    net = copy.deepcopy(timm.create_model("van_b0", features_only=True).eval())
    assert len(net(x)) == 4


def test_state_dict_round_trip():
    model, x = small(), images()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = VAN(num_classes=CLASSES, embed_dims=DIMS, depths=BLOCKS, mlp_ratios=(2, 3, 2, 1)).eval()
    assert not torch.allclose(other(x), model(x))
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other(x), model(x))


def test_fx_graph_holds_for_any_size():
    model = small()
    graph = torch.fx.symbolic_trace(model)
    for copied in (graph, copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        for size in [(64, 64), (33, 57), (1, 1), (4, 130)]:
            torch.testing.assert_close(copied(images(*size)), model(images(*size)))
    operators = [node.target.__name__ for node in graph.graph.nodes if node.op == "call_function"]
    assert operators.count("large_kernel_attention") == sum(BLOCKS)


def test_timm_feature_extractor():
    model, x = small(), images(50, 90)
    nodes = get_graph_node_names(model)[1]
    assert "stage3.blocks.1.attn.lka.large_kernel_attention" in nodes
    extractor = create_feature_extractor(model, {"stage2": "c2", "stage4": "c4", "head.fc": "logits"})
    _, stages = model.forward_intermediates(x)
    expected = {"c2": stages[1], "c4": stages[3], "logits": model(x)}
    torch.testing.assert_close(extractor(x), expected)


@jit
def test_torchscript():
    model = small(drop_path_rate=0.1)
    scripted = torch.jit.script(model)
    for size in [(64, 64), (224, 200), (33, 57), (1, 1)]:
        torch.testing.assert_close(scripted(images(*size)), model(images(*size)))
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(images()), model(images()))


@jit
def test_torchscript_gradients():
    model = small(dtype=torch.float64).train()
    scripted = torch.jit.script(copy.deepcopy(model))
    for m in (model, scripted):
        m(images(48, 33, dtype=torch.float64)).square().sum().backward()
    torch.testing.assert_close([p.grad for p in scripted.parameters()], [p.grad for p in model.parameters()])


@jit
def test_torchscript_features_and_scriptable():
    net = timm.create_model("van_b0", features_only=True, scriptable=True).eval()
    torch.testing.assert_close(torch.jit.script(net)(images(70, 33)), net(images(70, 33)))


@jit
def test_jit_trace_holds_for_other_sizes():
    model = small()
    traced = torch.jit.trace(model, images(32, 32))  # small maps, where eager code trims taps
    torch.testing.assert_close(traced(images(160, 96)), model(images(160, 96)))


@pytest.fixture
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    model = small(depths=(1, 1, 1, 1))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in [(64, 64), (40, 57)] if dynamic else [(64, 64)]:
        torch.testing.assert_close(compiled(images(*size)), model(images(*size)))


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_training(checkpointing):
    model, plain = (small(dtype=torch.float64, depths=(1, 1, 1, 1)).train() for _ in range(2))
    model.set_grad_checkpointing(checkpointing)
    torch.compile(model, backend="aot_eager", fullgraph=True)(images(dtype=torch.float64)).square().sum().backward()
    plain(images(dtype=torch.float64)).square().sum().backward()
    actual, expected = ([*(p.grad for p in m.parameters()), *m.buffers()] for m in (model, plain))
    torch.testing.assert_close(actual, expected)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compile_inductor():
    model = small(depths=(1, 1, 1, 1))
    compiled = torch.compile(model, backend="inductor", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_dynamic_batch_and_size(strict):
    model = small(depths=(1, 1, 1, 1))
    # from 33 up: on 32 pixels the last map is 1 wide, and torch.export compiles size 1 for itself
    height, width = (torch.export.Dim(name, min=33, max=2048) for name in ("height", "width"))
    shapes = ({0: torch.export.Dim("batch", min=1, max=64), 2: height, 3: width},)
    program = torch.export.export(model, (images(96, 128),), dynamic_shapes=shapes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for batch, *size in [(1, 64, 64), (3, 33, 57), (2, 224, 224), (5, 250, 40)]:
        x = images(*size, batch=batch)
        torch.testing.assert_close(exported(x), model(x))


@pytest.mark.export
@pytest.mark.parametrize("size", [(1, 1), (32, 20)])
def test_export_of_one_small_size(size):
    model = small()
    program = torch.export.export(model, (images(*size),))
    torch.testing.assert_close(program.module()(images(*size)), model(images(*size)))


@jit
@pytest.mark.export
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [False, True])
def test_onnx_runtime_takes_the_traced_export(dynamic):
    import onnxruntime

    model, x, file = small(), images(), io.BytesIO()
    axes = {"x": {0: "batch", 2: "height", 3: "width"}} if dynamic else None
    torch.onnx.export(model, (x,), file, dynamo=False, input_names=["x"], output_names=["logits"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for inputs in [x, images(33, 150, batch=1), images(224, 224, batch=3)] if dynamic else [x]:
        found = torch.from_numpy(session.run(None, {"x": inputs.numpy()})[0])
        torch.testing.assert_close(found, model(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("width", [384, 480])
def test_b6_has_the_width_of_its_public_file(width: int, tmp_path: Path) -> None:
    dims, file = (96, 192, width, 768), tmp_path / "b6.pth"
    depths = VARIANTS["van_b6"]["depths"]
    small = VAN(num_classes=2, embed_dims=dims, depths=depths, mlp_ratios=(8, 8, 4, 4), dtype=torch.float16)
    torch.save({"state_dict": weights.rename(small.state_dict(), "vankit", "mmpretrain")}, file)
    model = timm.create_model("van_b6", pretrained=True, num_classes=2, pretrained_cfg_overlay={"file": str(file)})
    assert [stage["num_chs"] for stage in model.feature_info] == list(dims)
    assert torch.equal(model.stage3.norm.weight, small.stage3.norm.weight.float())
    if width == 480:  # with ImageNet-1k's head: OpenMMLab's table
        assert round(sum(p.numel() for p in model.parameters()) / 1e6 + 998 * 769 / 1e6, 1) == 283.9
