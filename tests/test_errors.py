"""What is refused of a network's output, and what a terminal gets to see."""

import math
import unicodedata
from typing import Any

import numpy as np
import pytest
import torch

from vankit.errors import UserError, check_output, printable


@pytest.mark.parametrize("make", [np.float32, torch.tensor, lambda x: torch.tensor(x, dtype=torch.bfloat16)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_output_that_is_not_finite_is_refused(bad: float, make: Any) -> None:
    check_output(make([[1.0, -3e38], [0.0, 2.0]]))
    check_output(make(np.empty((0, 2))))
    with pytest.raises(
        UserError, match="^the network's output is NaN or infinite, where numbers are expected: use other"
    ):
        check_output(make([[1.0, 0.0], [bad, 2.0]]))


def test_no_control_character_is_printed() -> None:
    assert printable("a\x1b[31m\tb\n\x9b\x7f\u202e.png") == "a\\x1b[31m\\tb\\n\\x9b\\x7f\\u202e.png"
    every = "".join(map(chr, range(0x3000)))
    kept = set(printable(every))
    assert {unicodedata.category(c) for c in set(every) - kept} == {"Cc", "Zl", "Zp", "Cf"}
    assert not {c for c in kept if unicodedata.category(c) in ("Cc", "Zl", "Zp")}
    assert not {c for c in kept if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI")}
    for name in ("Bild 1.png", "C:\\photos\\1.png", "\u732b\u202f\u00a0.jpg", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"):
        assert printable(name) == name
