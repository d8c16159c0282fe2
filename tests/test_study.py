"""Counts against the paper, against timm's models themselves, and against PyTorch's own counter."""

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import vankit.ops.reference
from vankit.models.van import VARIANTS
from vankit.study import complexity

PARAMS = (4_105_800, 13_861_800, 26_578_472, 44_765_608, 60_283_176, 89_967_688, 199_829_416)
GMACS = (0.864, 2.495, 4.993, 8.925, 12.14, 17.13, 38.71)  # convolutions and matrix products
PUBLISHED = (0.88, 2.52, 5.03, 8.99, 12.2, 17.2, 38.9)  # the paper's and the authors' table


def digits(value: float, like: float) -> float:
    return round(value, len(str(like).split(".")[1]))


@pytest.mark.parametrize(
    ("variant", "params", "gmacs", "published"), list(zip(VARIANTS, PARAMS, GMACS, PUBLISHED, strict=False))
)
def test_published_figures(variant: str, params: int, gmacs: float, published: float) -> None:
    cost = complexity(variant)
    assert cost.params == params
    assert digits(cost.macs / 1e9, gmacs) == gmacs
    assert digits(cost.macs_all / 1e9, published) == published


@pytest.mark.parametrize("size", [(224, 224), (161, 227), (32, 64)])
@pytest.mark.parametrize("variant", ["van_b0", "van_b6"])
def test_pytorch_counts_the_same(variant: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # the counter sees the trimmed kernels of small maps; the definition is counted
    monkeypatch.setattr(vankit.ops.reference, "_reachable_taps", lambda weight, *_: weight)
    with torch.device("meta"):
        model = timm.create_model(variant, num_classes=10).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, *size))
    assert complexity(variant, size, num_classes=10).macs * 2 == counter.get_total_flops()


def test_unknown_variant() -> None:
    with pytest.raises(ValueError, match=r"van_b9.*expected one of van_b0"):
        complexity("van_b9")
