"""Folding against the unfolded network, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

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
