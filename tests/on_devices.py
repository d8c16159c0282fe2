"""Formats for phones and boards, whose packages are large and not among those of the tests: skipped without them."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

_PACKAGES = {"executorch": "executorch", "litert": "litert_torch"}
ON_DEVICES = [
    pytest.param(
        kind,
        marks=[
            pytest.mark.slow,
            pytest.mark.skipif(find_spec(package) is None, reason=f"no {package}: pip install 'vankit[{kind}]'"),
        ],
    )
    for kind, package in _PACKAGES.items()
]


class Means(torch.nn.Module):
    """The mean of each channel of an input, or of the sum of several."""

    def forward(self, *images: torch.Tensor) -> torch.Tensor:
        return torch.stack(images).sum(0).flatten(2).mean(2)


def write_means(path: Path, size: tuple[int, ...], inputs: int = 1, kind: torch.dtype = torch.float32) -> None:
    """A model.pte or model.tflite of `Means`, straight from the library."""
    images = tuple(torch.zeros(size, dtype=kind) for _ in range(inputs))
    network = Means().to(kind).eval()
    if path.suffix == ".tflite":
        import litert_torch

        litert_torch.convert(network, images).export(str(path))
    else:
        from executorch.exir import to_edge_transform_and_lower

        program = to_edge_transform_and_lower(torch.export.export(network, images)).to_executorch()
        path.write_bytes(program.buffer)
