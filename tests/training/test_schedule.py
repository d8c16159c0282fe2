"""Learning rates and weight decay of dense tasks, against hand computations."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vankit.heads.backbone import van_features
from vankit.heads.semantic_fpn import SemanticFPN
from vankit.training.recipes import DenseConfig
from vankit.training.schedule import lr_factor, parameter_groups

PLAIN = DenseConfig(warmup_iterations=0)


def test_step_falls_to_a_tenth_at_each_epoch_named() -> None:
    config = replace(PLAIN, schedule="step", steps=(8, 11), min_lr=1e-5)
    factors = [lr_factor(config, update, 120, 10.0) for update in (0, 79, 80, 109, 110, 119)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert lr_factor(replace(config, steps=()), 119, 120, 10.0) == 1


def test_poly_is_a_power_of_what_is_left() -> None:
    config = replace(PLAIN, schedule="poly", power=0.9)
    assert [lr_factor(config, update, 100, 10.0) for update in (0, 25, 50, 99)] == pytest.approx(
        [1, 0.75**0.9, 0.5**0.9, 0.01**0.9]
    )
    linear = replace(config, power=1.0, lr=0.1, min_lr=0.02)
    assert [lr_factor(linear, update, 100, 10.0) for update in (0, 50, 100)] == pytest.approx([1, 0.6, 0.2])


def test_cosine_goes_from_the_peak_to_the_end() -> None:
    config = replace(PLAIN, schedule="cosine", lr=0.1, min_lr=0.01)
    expected = [1, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 0.55, 0.1]
    assert [lr_factor(config, update, 80, 8.0) for update in (0, 20, 40, 80)] == pytest.approx(expected)
    assert lr_factor(config, 90, 80, 8.0) == pytest.approx(0.1)  # past the end


def test_warm_up_is_linear_from_a_thousandth_and_on_top_of_the_schedule() -> None:
    config = replace(PLAIN, schedule="step", steps=(100,), warmup_iterations=10)
    assert [lr_factor(config, update, 1000, 5.0) for update in (0, 5, 9, 10)] == pytest.approx(
        [0.001, 0.001 + 0.999 * 0.5, 0.001 + 0.999 * 0.9, 1]
    )
    poly = replace(config, schedule="poly", power=1.0)
    assert lr_factor(poly, 5, 20, 5.0) == pytest.approx(0.75 * (0.001 + 0.999 * 0.5))


@given(
    st.sampled_from(["step", "poly", "cosine"]),
    st.integers(1, 10_000),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1),
    st.floats(0.1, 3),
    st.integers(0, 2_000),
    st.floats(1, 500),
)
def test_every_update_of_a_run_learns_at_most_at_the_peak(
    schedule: Any, total: int, part: float, low: float, power: float, warmup: int, per_epoch: float
) -> None:
    config = DenseConfig(schedule=schedule, lr=1e-3, min_lr=1e-3 * low, power=power, warmup_iterations=warmup)
    update = int(part * total)
    factor = lr_factor(config, update, total, per_epoch)
    assert 0 < factor <= 1 + 1e-12
    if update >= warmup and schedule != "step":
        assert factor >= low - 1e-12
        assert lr_factor(config, update + 1, total, per_epoch) <= factor + 1e-12


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return SemanticFPN(van_features("van_b0"), 3)


def by_name(network: nn.Module, **changes: Any) -> dict[str, dict[str, Any]]:
    """By parameter name its group, after seeing that every parameter has just one."""
    groups = parameter_groups(network, DenseConfig(**changes), 0.5)
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(listed) == len(set(listed))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


def test_every_trainable_parameter_is_in_one_group(network: nn.Module) -> None:
    assert set(by_name(network)) == {name for name, _ in network.named_parameters()}
    network.classifier.requires_grad_(False)
    try:
        assert set(by_name(network)) == {n for n, _ in network.named_parameters() if not n.startswith("classifier.")}
    finally:
        network.classifier.requires_grad_(True)


def test_norms_biases_and_layer_scales_are_decayed_only_where_asked(network: nn.Module) -> None:
    norms = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    plain = {
        f"{prefix}.{name}"
        for prefix, m in network.named_modules()
        if isinstance(m, norms)
        for name, _ in m.named_parameters()
    }
    plain |= {name for name, _ in network.named_parameters() if name.endswith("bias") or "layer_scale" in name}
    found = by_name(network, decay_norms=False, weight_decay=0.3)
    assert len(plain) > 100 and len(found) - len(plain) > 50
    assert {name for name, group in found.items() if group["weight_decay"] == 0} == plain
    assert {group["weight_decay"] for name, group in found.items() if name not in plain} == {0.3}
    everywhere = by_name(network, decay_norms=True, weight_decay=0.3)
    assert {group["weight_decay"] for group in everywhere.values()} == {0.3}


def test_the_backbone_has_its_own_learning_rate(network: nn.Module) -> None:
    found = by_name(network, backbone_lr=0.1, decay_norms=False)
    rates = {name: group["lr"] for name, group in found.items()}
    backbone = {name for name in rates if name.startswith("backbone.body.")}  # not the pyramid in backbone.fpn
    assert len(backbone) == len(list(network.backbone.body.parameters()))
    assert [rates[name] for name in backbone] == pytest.approx([0.05] * len(backbone))
    assert {rates[name] for name in rates.keys() - backbone} == {0.5}
    assert {group["lr"] for group in by_name(network).values()} == {0.5}
