"""What the tests of the command line share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

import vankit
from vankit.cli import main
from vankit.heads.build import build_network
from vankit.models.description import Description
from vankit.models.weights import write_tensors


@pytest.fixture(scope="session")
def run() -> Callable[..., int]:
    """Type a command: its words after `vankit`; the exit status."""

    def call(*words: object) -> int:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        return int(end.value.code or 0)

    return call


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start is not prepared, which takes seconds for each network."""
    monkeypatch.setattr("vankit.cli.keeping.keep_whole", lambda opened: None)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained VAN-B0 of two classes."""
    path = tmp_path_factory.mktemp("weights") / "two.safetensors"
    preprocessing = {
        "input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bicubic"
    }  # fmt: skip
    metadata = {"model": "van_b0", "classes": ["cat", "dog"], "preprocessing": preprocessing}
    vankit.save_checkpoint(timm.create_model("van_b0", num_classes=2), path, metadata=metadata)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """photo.png, grey."""
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Semantic FPN of two classes."""
    path = tmp_path_factory.mktemp("dense") / "segmenter.safetensors"
    sizes = {"short_sides": (32,), "long_side": 64, "crop": 32}
    found = Description("segment", "semantic_fpn", "van_b0", ["grass", "sky"], category_ids=[1, 2], **sizes)
    write_tensors(build_network(found).state_dict(), path, found.to_metadata())
    return path
