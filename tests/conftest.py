"""Fixtures shared by all tests."""

import gzip
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

# official name, MMPretrain name, transformers name, shape
NameRow = tuple[str, str, str, list[int]]


@pytest.fixture(scope="session")
def golden_names() -> dict[str, list[NameRow]]:
    """By variant, the public names and the shape of every tensor, in the order of the official files."""
    return json.loads(gzip.decompress((GOLDEN / "names.json.gz").read_bytes()))


@pytest.fixture(scope="session")
def golden_outputs() -> Callable[[str], dict[str, np.ndarray]]:
    """Factory: what the paper's implementation computes with `golden_state_dict`, see tests/golden/README.md."""

    def load(variant: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{variant}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def golden_state_dict(golden_names: dict[str, list[NameRow]]) -> Callable[[str], dict[str, Tensor]]:
    """Factory: deterministic float32 weights of a variant under their official names; fresh tensors a call."""

    def make(variant: str) -> dict[str, Tensor]:
        return {official: _tensor(official, shape) for official, _, _, shape in golden_names[variant]}

    return make


def _tensor(name: str, shape: list[int]) -> Tensor:
    """Values drawn from a generator seeded by the CRC-32 of the official name, scaled to keep activations near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if name.endswith("running_var") or (name.endswith("weight") and "norm" in name):
        values = rng.uniform(0.5, 1.5, shape)
    elif ".layer_scale_" in name:
        values = rng.uniform(0.01, 0.04, shape)
    elif name.endswith(("running_mean", "bias")):
        values = rng.normal(0.0, 0.1, shape)
    else:
        values = rng.normal(0.0, math.sqrt(1 / math.prod(shape[1:])), shape)
    return torch.from_numpy(values.astype(np.float32))
