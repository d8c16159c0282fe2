"""Results that are not finite are refused, of every kind of network."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vankit.errors import UserError
from vankit.models.description import Description
from vankit.tasks.dense import infer


class Answers(nn.Module):
    """The same result for every picture."""

    def __init__(self, result: dict[str, Tensor]) -> None:
        super().__init__()
        self.result = result

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.result for _ in images]


RESULTS = {
    "detect": {"boxes": torch.ones(2, 4), "scores": torch.ones(2), "labels": torch.tensor([0, 1])},
    "segment": {"logits": torch.ones(2, 8, 8)},
    "panoptic": {"segments": torch.ones(8, 8, dtype=torch.int64), "scores": torch.ones(1)},
}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("task", "name"), [("detect", "boxes"), ("detect", "scores"), ("segment", "logits"), ("panoptic", "scores")]
)
def test_results_that_are_not_finite_are_refused(task: Any, name: str, bad: float) -> None:
    description = Description(task, classes=["a", "b"], short_sides=[8], long_side=8)
    result = {key: tensor.clone() for key, tensor in RESULTS[task].items()}
    assert set(infer(Answers(result), [torch.rand(3, 8, 8)], description)[0]) == set(result)
    result[name].view(-1)[0] = bad
    with pytest.raises(UserError, match="the network's output is NaN or infinite"):
        infer(Answers(result), [torch.rand(3, 8, 8)], description)
