"""VAN against outputs of the paper's own implementation."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

import vankit  # noqa: F401  (registers the models)
from vankit.models import weights

VARIANTS = [f"van_b{i}" for i in range(7)]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS[3:]]  # their names: see test_weights.py
# float32 comes within 5e-7 of the logits; LayerNorm eps 1e-5 would be off by 3e-6, tanh-GELU by 1.6e-5
INPUTS = {"a": (1, (2, 3, 224, 224)), "b": (2, (1, 3, 161, 227))}  # seed, shape
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-6}


def build(variant: str, official: dict[str, torch.Tensor]) -> torch.nn.Module:
    with torch.device("meta"):  # b6 would spend seconds on an initialisation that is then replaced
        model = timm.create_model(variant)
    model.load_state_dict(weights.rename(official, "official", "vankit"), assign=True)
    return model.eval()


def images(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32)).to(dtype)


@pytest.fixture(scope="module", params=[*VARIANTS[:3], *SLOW])
def golden(request: Any, golden_state_dict: Any, golden_outputs: Any) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    return build(request.param, golden_state_dict(request.param)), golden_outputs(request.param)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "a"),
        (torch.float32, "b"),
        (torch.float64, "b"),
        pytest.param(torch.float64, "a", marks=pytest.mark.slow),  # 45 s for all variants on an idle core
    ],
)
@torch.inference_mode()
def test_logits_and_stages(
    golden: tuple[torch.nn.Module, dict[str, np.ndarray]], dtype: torch.dtype, name: str
) -> None:
    model, expected = golden[0].to(dtype), golden[1]  # the weights are float32 numbers, exact in either dtype
    features, stages = model.forward_intermediates(images(*INPUTS[name], dtype))
    logits = model.forward_head(features)
    assert np.abs(logits.double().numpy() - expected[f"logits_{name}"]).max() < TOLERANCE[dtype]
    for i, stage in enumerate(stages, 1):
        channels = stage.shape[1]
        sample = stage[0, :: max(1, channels // 16)][:16, ::2, ::2].double().numpy()
        # the reference's stages are stored as float32, of magnitude 1 to 10
        atol = 1e-6 if dtype == torch.float64 else 2e-5
        np.testing.assert_allclose(sample, expected[f"stage{i}_{name}"], rtol=0, atol=atol)


def test_forward_is_head_of_features(golden_state_dict: Callable, golden_outputs: Callable) -> None:
    model = build("van_b0", golden_state_dict("van_b0")).double()
    with torch.inference_mode():
        logits = model(images(*INPUTS["a"], torch.float64))
    assert np.abs(logits.numpy() - golden_outputs("van_b0")["logits_a"]).max() < 1e-9


def test_train_step(golden_state_dict: Callable, golden_outputs: Callable) -> None:
    expected = golden_outputs("van_b0")
    model = build("van_b0", golden_state_dict("van_b0")).double().train()
    loss = F.cross_entropy(model(images(3, (4, 3, 64, 64), torch.float64)), torch.tensor([1, 5, 7, 900]))
    loss.backward()

    assert abs(loss.item() - expected["train_loss"]) < 1e-9
    official = {row[0]: row[1] for row in weights.name_table((3, 3, 5, 2))}
    got = {official[name]: parameter.grad.norm().item() for name, parameter in model.named_parameters()}
    names = expected["train_grad_names"].tolist()
    assert set(got) == set(names)
    np.testing.assert_allclose([got[name] for name in names], expected["train_grad_norms"], rtol=1e-7, atol=1e-12)
    running_mean = model.stage1.blocks[0].norm1.running_mean
    np.testing.assert_allclose(running_mean.numpy(), expected["bn_running_mean_after"], rtol=0, atol=1e-9)
