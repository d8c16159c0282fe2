"""Counts against the paper, against timm's models themselves, and against PyTorch's own counter."""

from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import vankit.ops.convolution
from vankit.errors import UserError
from vankit.models.van import VARIANTS
from vankit.study.ablation import ABLATIONS, Ablation
from vankit.study.complexity import Complexity, complexity, layers
from vankit.study.decomposition import Decomposition, best_dilation, decomposition

PARAMS = (4_105_800, 13_861_800, 26_578_472, 44_765_608, 60_283_176, 89_967_688, 199_829_416)
GMACS = (0.864, 2.495, 4.993, 8.925, 12.14, 17.13, 38.71)  # convolutions and matrix products
PUBLISHED = (0.88, 2.52, 5.03, 8.99, 12.2, 17.2, 38.9)  # the paper's and the authors' table


def digits(value: float, like: float) -> float:
    return round(value, len(str(like).split(".")[1]))


@pytest.mark.parametrize(
    ("variant", "params", "gmacs", "published"), list(zip(VARIANTS, PARAMS, GMACS, PUBLISHED, strict=False))
)
def test_published_figures(costs: dict[str, Any], variant: str, params: int, gmacs: float, published: float) -> None:
    cost = costs[variant]
    assert cost.params == params
    assert digits(cost.macs / 1e9, gmacs) == gmacs
    assert digits(cost.macs_all / 1e9, published) == published


@pytest.mark.parametrize("size", [(224, 224), (161, 227), (32, 64)])
@pytest.mark.parametrize("variant", ["van_b0", pytest.param("van_b6", marks=pytest.mark.slow)])
def test_pytorch_counts_the_same(variant: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # the counter sees the trimmed kernels of small maps; the definition is counted
    monkeypatch.setattr(vankit.ops.convolution, "_sizes_are_known", lambda x: False)
    with torch.device("meta"):
        model = timm.create_model(variant, num_classes=10).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *size))
    assert complexity(variant, size, num_classes=10).macs * 2 == counter.get_total_flops()


LKAS: list[dict[str, Any]] = [
    {"form": "lska"},
    {"form": "strips", "kernel_size": (1, 7, 11, 21)},
    {"kernel_size": (7, 21), "dilation": (2, 3)},
    {"form": "dense", "kernel_size": 5},
    {"without": ["pw"], "gate": "none"},
]


@pytest.mark.parametrize("lka", LKAS, ids=str)
def test_pytorch_counts_the_same_for_other_attentions(lka: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vankit.ops.convolution, "_sizes_are_known", lambda x: False)
    with torch.device("meta"):
        model = timm.create_model("van_b0", lka=lka).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 96, 64))
    cost = complexity("van_b0", (96, 64), lka=lka)
    assert cost.macs * 2 == counter.get_total_flops()
    assert cost.params == sum(p.numel() for p in model.parameters())


def test_layers_by_hand() -> None:
    found = layers("van_b1", 224, num_classes=10)  # stage 1: 64 channels, 2 blocks, 56 x 56; MLP of 512
    pixels = 56 * 56
    assert found["stage1", "patch embedding"] == Complexity(64 * 3 * 49 + 64, 9408 * pixels, (9408 + 64) * pixels)
    assert found["stage1", "depth-wise"] == Complexity(2 * 64 * 26, 2 * 64 * 25 * pixels, 2 * 64 * 26 * pixels)
    assert found["stage1", "dilated depth-wise"].macs == 2 * 64 * 49 * pixels
    assert found["stage1", "MLP depth-wise"].params == 2 * 512 * 10
    assert found["stage1", "1x1"].macs == 2 * (3 * 64 * 64 + 2 * 64 * 512) * pixels
    assert found["stage1", "norm"] == Complexity(2 * (1 + 2 * 2 + 1) * 64, 0, 2 * (1 + 2 * 2 + 1) * 64 * pixels)
    assert found["stage1", "layer scale"] == Complexity(2 * 2 * 64)
    assert found["stage1", "gate"] == Complexity(0, 0, 2 * 64 * pixels)
    assert found["head", "linear"] == Complexity(5130, 5120, 5130)
    assert sum(found.values(), Complexity()) == complexity("van_b1", 224, num_classes=10)


# the paper's table 1
TABLE_1 = [
    Decomposition(32, 451_584, 15_136, 3_392),
    Decomposition(64, 1_806_336, 32_320, 8_832),
    Decomposition(128, 7_225_344, 72_832, 25_856),
    Decomposition(256, 28_901_376, 178_432, 84_480),
    Decomposition(512, 115_605_504, 487_936, 300_032),
]


def test_decomposition_is_the_papers_table() -> None:
    assert decomposition() == TABLE_1
    assert decomposition(21, 3, [512]) == TABLE_1[4:]
    assert decomposition(7, 2, [1]) == [Decomposition(1, 49, 50, 9 + 16 + 1)]


@pytest.mark.parametrize(("kernel_size", "dilation"), [(7, 2), (14, 3), (21, 3), (28, 4), (1, 1)])
def test_best_dilation(kernel_size: int, dilation: int) -> None:
    assert best_dilation(kernel_size) == dilation  # of 7 to 28 the paper's choices


def test_decomposition_wants_positive_numbers() -> None:
    for arguments in ((0,), (21, 0), (21, 3, [0])):
        with pytest.raises(UserError, match="is 0, expected 1 to 1,000,000"):
            decomposition(*arguments)


@pytest.mark.parametrize("row", ABLATIONS, ids=lambda row: row.name)
def test_published_ablations(row: Ablation) -> None:
    cost = complexity("van_b0", lka=row.lka)
    assert f"{cost.params / 1e6:.{len(row.params.partition('.')[2])}f}" == row.params
    if row.name == "without DW-D":  # printed as 0.9, perhaps by way of 0.85
        assert round(cost.macs_all / 1e9, 4) == 0.8492
        return
    assert cost.macs_all / 1e9 == pytest.approx(
        float(row.gmacs), rel=0.03, abs=0.05 if row.gmacs in ("0.8", "0.9") else 0
    )


def test_other_names_of_a_variant(costs: dict[str, Any]) -> None:
    assert complexity("van_large") == complexity("van_b3.in1k") == costs["van_b3"]


def test_unknown_variant() -> None:
    with pytest.raises(UserError, match=r"van_b9.*expected one of van_b0"):
        complexity("van_b9")
