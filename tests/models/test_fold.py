"""Folding against the unfolded network, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import vankit
from vankit.errors import UserError
from vankit.heads.backbone import van_features
from vankit.models import weights
from vankit.models.fold import FoldedBlock, FoldedNorm, fold
from vankit.models.van import Block


def trained_like(model: nn.Module, seed: int = 0, layer_scale: float = 0.3) -> nn.Module:
    """Float64, with running statistics, layer scales and biases as training could leave them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
    for name, parameter in model.named_parameters():
        if "layer_scale" in name:
            parameter.data.uniform_(-layer_scale, layer_scale, generator=generator)
        elif parameter.ndim == 1:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.double().eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def small(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return trained_like(vankit.VAN(embed_dims=(8, 12, 16, 20), depths=(2, 1, 2, 1), num_classes=7, **kwargs))


@torch.no_grad()
def largest_difference(model: nn.Module, x: Tensor) -> float:
    expected, found = model(x), fold(model)(x)
    pairs = zip(expected, found, strict=True) if isinstance(expected, list) else [(expected, found)]
    return max(float((a - b).abs().max()) for a, b in pairs)


@settings(max_examples=15)
@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 9))
def test_any_size(height: int, width: int, seed: int) -> None:
    model = trained_like(small(), seed)
    assert largest_difference(model, images(2, 3, height, width)) <= 1e-12


@pytest.mark.parametrize(
    "name", ["van_b0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("van_b1", "van_b2"))]
)
def test_the_papers_networks(name: str) -> None:
    torch.manual_seed(0)
    assert largest_difference(trained_like(timm.create_model(name, num_classes=10)), images(1, 3, 64, 96)) <= 1e-12


@pytest.mark.parametrize(
    "lka",
    [
        {"without": ["dw_d"]}, {"without": ["pw"]}, {"form": "dense", "kernel_size": 5}, {"form": "lska"},
        {"form": "strips", "kernel_size": (1, 7, 11)}, {"kernel_size": (7, 21), "dilation": (2, 3)},
        {"gate": "none"}, {"gate": "add", "sigmoid": True},
    ],
)  # fmt: skip
def test_other_attentions(lka: dict[str, object]) -> None:
    assert largest_difference(small(lka=lka), images(2, 3, 50, 41)) <= 1e-12


def test_the_golden_outputs(
    golden_state_dict: Callable[[str], dict[str, Tensor]], golden_outputs: Callable[[str], dict[str, np.ndarray]]
) -> None:
    model = timm.create_model("van_b0").eval()
    model.load_state_dict(weights.rename(golden_state_dict("van_b0"), "official", "vankit"))
    x = np.random.default_rng(2).standard_normal((1, 3, 161, 227)).astype(np.float32)
    with torch.no_grad():
        found = fold(model.double())(torch.from_numpy(x).double())
    np.testing.assert_allclose(found.numpy(), golden_outputs("van_b0")["logits_b"], atol=1e-9)


@pytest.mark.parametrize("stride", [8, 16])
def test_output_stride(stride: int) -> None:
    assert largest_difference(small(output_stride=stride), images(1, 3, 48, 64)) <= 1e-12


def test_shortcuts_that_cannot_be_moved_are_kept() -> None:
    model = small()
    block = model.stage1.blocks[0]
    norm = block.norm1
    # ls1 · a = -1: the shortcut of channel 3 is scaled by nothing
    block.layer_scale_1.data[3] = -torch.sqrt(norm.running_var[3] + norm.eps) / norm.weight.data[3]
    folded = fold(model)
    assert folded.stage1.blocks[0].shortcut is not None
    assert folded.stage2.blocks[0].shortcut is None
    assert largest_difference(model, images(2, 3, 40, 40)) <= 1e-12


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda model: nn.ModuleDict({"body": model})])
def test_a_van_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    outer = fold(wrap(small()))
    assert not [m for m in outer.modules() if isinstance(m, nn.BatchNorm2d | Block)]


def test_feature_maps() -> None:
    torch.manual_seed(0)
    assert largest_difference(trained_like(van_features("van_b0")), images(1, 3, 65, 40)) <= 1e-12


def test_what_remains() -> None:
    model = small()
    folded = fold(fold(model))
    kinds = {type(m) for m in folded.modules() if not list(m.children())}
    assert not kinds & {nn.BatchNorm2d, nn.LayerNorm}
    assert FoldedNorm in kinds
    blocks = [m for m in folded.modules() if isinstance(m, FoldedBlock)]
    assert len(blocks) == 6
    assert all(block.attn.lka.dw_d.bias is None and block.attn.lka.dw.bias is not None for block in blocks)
    # the depth-wise kernels are those of the network
    torch.testing.assert_close(folded.stage1.blocks[0].attn.lka.dw.weight, model.stage1.blocks[0].attn.lka.dw.weight)


def test_the_network_stays_as_it_was() -> None:
    model = small().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model)
    assert model.training and not folded.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_networks_pass() -> None:
    model = timm.create_model("resnet18", num_classes=3).double().eval()
    assert largest_difference(model, images(1, 3, 64, 64)) == 0


def test_a_norm_without_statistics() -> None:
    model = small()
    model.stage2.blocks[0].norm1 = nn.GroupNorm(1, 12)
    with pytest.raises(UserError, match="cannot fold GroupNorm: expected a BatchNorm with running statistics"):
        fold(model)


def test_frozen_and_synchronised_norms() -> None:
    from torchvision.ops import FrozenBatchNorm2d

    model = small()
    expected = model(images(1, 3, 40, 40))
    old = model.stage1.blocks[0].norm2
    frozen = FrozenBatchNorm2d(8, old.eps).double()
    frozen.load_state_dict({k: v for k, v in old.state_dict().items() if k != "num_batches_tracked"})
    model.stage1.blocks[0].norm2 = frozen
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    torch.testing.assert_close(fold(model)(images(1, 3, 40, 40)), expected, atol=1e-12, rtol=0)


EVERY_CONVOLUTION = (
    "patch_embed.proj", "blocks.0.attn.proj_1", "blocks.0.attn.lka.dw", "blocks.0.attn.lka.dw_d",
    "blocks.0.attn.lka.pw", "blocks.0.attn.proj_2", "blocks.0.mlp.fc1", "blocks.0.mlp.dw", "blocks.0.mlp.fc2",
)  # fmt: skip
MODULES_THAT_STAY = (
    "", "blocks.0.attn.lka", "blocks.0.attn.lka.dw", "blocks.0.attn.lka.dw_d", "blocks.0.attn.lka.pw",
    "blocks.0.mlp.dw",
)  # fmt: skip
MODULES_THAT_GO = (
    "patch_embed", "patch_embed.proj", "patch_embed.norm", "blocks", "norm", "blocks.0", "blocks.0.norm1",
    "blocks.0.norm2", "blocks.0.drop_path", "blocks.0.attn", "blocks.0.attn.proj_1", "blocks.0.attn.proj_2",
    "blocks.0.mlp", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2",
)  # fmt: skip


@pytest.mark.parametrize("name", EVERY_CONVOLUTION)
@pytest.mark.parametrize(
    "compute",
    [
        parametrizations.weight_norm,
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
        lambda conv: prune.ln_structured(prune.random_unstructured(conv, "bias", 0.5), "weight", 0.5, n=2, dim=0),
    ],
)
def test_computed_weights(compute: Callable[[nn.Module], nn.Module], name: str) -> None:
    model, x = small(), images(1, 3, 40, 40)
    conv = compute(model.stage1.get_submodule(name))
    with torch.no_grad():  # which training would do: the effective weight is not the one of the start
        for parameter in conv.parameters():
            parameter *= 1.5
    model(x)  # with gradients, which leaves tensors that deepcopy refuses
    assert largest_difference(model, x) <= 1e-12
    assert conv is model.stage1.get_submodule(name)
    assert not isinstance(conv.weight, nn.Parameter)
    plain = fold(model).stage1
    assert {type(m) for m in plain.modules() if "Conv" in type(m).__name__} == {nn.Conv2d}


@pytest.mark.parametrize("name", MODULES_THAT_STAY)
def test_hooks_on_what_stays_keep_their_effect(name: str) -> None:
    model, x = small(), images(1, 3, 40, 40)
    expected = model(x)
    model.stage1.get_submodule(name).register_forward_hook(lambda _, __, output: output.clamp(max=0.1))
    assert (model(x) - expected).abs().max() > 1e-6
    assert largest_difference(model, x) <= 1e-12


@pytest.mark.parametrize("name", MODULES_THAT_GO)
def test_hooks_on_what_goes_are_refused(name: str) -> None:
    model = small()
    module = model.stage1.get_submodule(name)
    handle = module.register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match=f"cannot fold {name} of a VAN's stage: it has hooks of its own, which would"):
        fold(model)
    handle.remove()
    module.forward = module.forward
    with pytest.raises(UserError, match=f"cannot fold {name} "):
        fold(model)
    del module.forward
    assert largest_difference(model, images(1, 3, 40, 40)) <= 1e-12


@pytest.mark.parametrize("target", ["pw", "fc1"])
def test_lora_stays_or_must_be_merged_first(target: str) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    plain, x = small(), images(1, 3, 40, 40)
    expected = plain(x)
    config = peft.LoraConfig(r=4, target_modules=[target], init_lora_weights=False)
    tuned = peft.get_peft_model(plain, config).double().eval()
    assert (tuned(x) - expected).abs().max() > 1e-6
    if target == "pw":
        assert largest_difference(tuned, x) <= 1e-12
    else:
        with pytest.raises(
            UserError, match=r"cannot fold blocks\.0\.mlp\.fc1 of.* it is peft.*Conv2d, which.*merge_and_unload"
        ):
            fold(tuned)
    assert largest_difference(tuned.merge_and_unload(), x) <= 1e-12


def test_a_block_of_another_type_is_refused() -> None:
    model = small()
    model.stage3.blocks[1] = nn.Identity()
    with pytest.raises(
        UserError, match=r"cannot fold blocks\.1 of a VAN's stage: it is torch.nn.modules.linear.Identity"
    ):
        fold(model)
