"""Every optimiser of timm trains and is resumed, or is refused before a run starts."""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.optim import list_optimizers
from torch import Tensor, nn

from vankit.errors import MissingPackageError, UserError
from vankit.models.weights import read_metadata
from vankit.training.optimizers import build_optimizer, check_optimizer
from vankit.training.recipes import DenseConfig, short, short_semantic
from vankit.training.run import train

pytestmark = pytest.mark.usefixtures("blank_run_reports")

ON_GPUS = [name for name in list_optimizers() if name.startswith(("bnb", "fused"))]
TRAINS = [name for name in list_optimizers() if name not in ("adahessian", *ON_GPUS)]


def network() -> nn.Module:
    """Kernels, a bias and a norm: parameters of four, two and one dimension."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def closure(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
    def compute() -> Tensor:
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(0)
        images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 0])
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return compute


def parameters(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """kron compiles its step, which takes minutes."""
    monkeypatch.setattr("timm.optim.kron.has_dynamo", False)


@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
@pytest.mark.parametrize("name", TRAINS)
def test_every_optimizer_trains_and_is_resumed(name: str, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opt_einsum", torch)  # kron's wish, which so small a network does not need
    check_optimizer(name)
    model = network()
    optimizer = build_optimizer(model, name, 1e-3, weight_decay=0.05)
    before = parameters(model)
    for _ in range(2):  # adopt's first step only looks
        optimizer.step(closure(model, optimizer))
    after = parameters(model)
    for old, new in zip(before, after, strict=True):
        assert new.isfinite().all() and not torch.equal(old, new)

    def left_out() -> None:  # as by KeepFinite
        optimizer.zero_grad()

    optimizer.step(left_out)  # type: ignore[arg-type]
    assert all(map(torch.equal, after, parameters(model)))

    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = network()
    resumed.load_state_dict(weights)
    second = build_optimizer(resumed, name, 1e-3, weight_decay=0.05)
    second.load_state_dict(state)
    for module, chosen in ((model, optimizer), (resumed, second)):
        torch.manual_seed(1)  # kron draws
        chosen.step(closure(module, chosen))
    assert all(map(torch.equal, parameters(model), parameters(resumed)))


def test_the_default_is_pytorchs_adamw_to_the_bit() -> None:
    model, expected = network(), network()
    config = DenseConfig(weight_decay=0.3)
    groups = [{"params": list(m.parameters()), "lr": 1e-2, "weight_decay": 0.3} for m in (model, expected)]
    pair = build_optimizer(groups[:1], config.optimizer, 1e-3), torch.optim.AdamW(groups[1:])
    for module, optimizer in zip((model, expected), pair, strict=True):
        for _ in range(3):
            optimizer.step(closure(module, optimizer))
    assert type(pair[0]) is torch.optim.AdamW
    assert all(map(torch.equal, parameters(model), parameters(expected)))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("adamv", "optimizer is 'adamv', which timm does not have: expected a name such as adam, "),
        ("AdamW", "optimizer is 'AdamW', .* such as adamw"),
        ("lookahead_adam", "optimizer is 'lookahead_adam'"),
        ("", "optimizer is '', .* such as adamw, sgd, lamb"),
        ("adahessian", "optimizer adahessian needs second derivatives, .*: use adamw"),
    ],
)
def test_an_optimizer_that_cannot_train_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        train("no such folder", "van_b0", replace(short("van_b0"), optimizer=name), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ON_GPUS)
def test_without_a_gpu_or_its_library_an_optimizer_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"bnblion8bit": "lion", "bnbademamix": "adamw", "fusedadamw": "adamw"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"optimizer {name} needs a CUDA GPU, .*: use {plain.get(name, '')}"):
        check_optimizer(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for library in ("bitsandbytes", "apex"):
        monkeypatch.setitem(sys.modules, library, None)
    where = "bitsandbytes: pip install bitsandbytes" if name.startswith("bnb") else "apex: https://github.com/NVIDIA"
    with pytest.raises(MissingPackageError, match=f"optimizer {name} needs {where}"):
        check_optimizer(name)


def test_kron_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="optimizer kronw needs opt_einsum: pip install opt_einsum"):
        check_optimizer("kronw")


def test_settings_that_an_optimizer_refuses_are_the_users() -> None:
    with pytest.raises(UserError, match="optimizer adamc refuses its settings: .*positive max lr"):
        build_optimizer(network(), "adamc", 0.0)


def squares(root: Path) -> Path:
    for split, count in (("train", 8), ("val", 3)):
        for name, level in (("bright", 200), ("dark", 50)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((32, 32, 3), level + i, np.uint8)).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "lion", "muon", "mars"])
def test_runs_with_other_optimizers(name: str, eager: None, tmp_path: Path, small_shapes: None) -> None:
    config: Any = replace(
        short("van_b0"), epochs=1, warmup_epochs=0, batch_size=4, img_size=32, workers=0, optimizer=name, lr=1e-4,
        layer_decay=0.8, nan_tolerance=1, accumulate=2,
    )  # fmt: skip
    data = squares(tmp_path / "data")
    train(data, "van_b0", config, tmp_path / "run")
    result = train(data, "van_b0", replace(config, epochs=2), tmp_path / "run", resume=True)
    assert read_metadata(result.last)["epoch"] == 2
    with pytest.raises(UserError, match=f"was begun with --optimizer {name}, and its optimiser keeps that"):
        train(data, "van_b0", replace(config, optimizer="adamw"), tmp_path / "run", resume=True)

    config = replace(
        short_semantic("van_b0"), epochs=1, short_sides=(32,), crop=32, batch_size=4, workers=0, optimizer=name
    )
    train("shapes", "van_b0", config, tmp_path / "segment", task="segment")
    result = train("shapes", "van_b0", replace(config, epochs=2), tmp_path / "segment", resume=True, task="segment")
    assert read_metadata(result.last)["epoch"] == 2
