"""What is refused of a network's output."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from vankit.errors import UserError, check_output


@pytest.mark.parametrize("make", [np.float32, torch.tensor, lambda x: torch.tensor(x, dtype=torch.bfloat16)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_output_that_is_not_finite_is_refused(bad: float, make: Any) -> None:
    check_output(make([[1.0, -3e38], [0.0, 2.0]]))
    check_output(make(np.empty((0, 2))))
    with pytest.raises(
        UserError, match="^the network's output is NaN or infinite, where numbers are expected: use other"
    ):
        check_output(make([[1.0, 0.0], [bad, 2.0]]))
