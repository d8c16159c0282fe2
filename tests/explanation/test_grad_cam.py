"""Grad-CAM without PyTorch is Grad-CAM with it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vankit
from vankit.explanation.grad_cam import GradCam
from vankit.explanation.networks import open_subject

CIFAR = "van_b0.cifar10"
TARGETS: list[list[Any]] = [[], ["cat", 7, "6"]]
CODE = """
import sys

sys.modules.update(dict.fromkeys(("torch", "torchvision", "timm", "captum", "lightning")))  # they cannot be imported
import numpy as np
import vankit

model, answers, *images = sys.argv[1:]
found = {}
for i, targets in enumerate(TARGETS):
    for j, explanation in enumerate(vankit.explain(images, model, target=targets or None)):
        assert not hasattr(explanation, "error"), explanation.error
        for k, (row, heat) in enumerate(zip(explanation.rows, explanation.maps.values(), strict=True)):
            found[f"{i} {j} {k} heat"] = heat
            found[f"{i} {j} {k} row"] = [row["index"], row["score"], row["largest"]]
            found[f"{i} {j} {k} names"] = [row["model"], row["layer"], row["class"]]
np.savez(answers, **found)
""".replace("TARGETS", repr(TARGETS))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Wide, tall, tiny, grey."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = []
    for i, shape in enumerate([(70, 250, 3), (250, 70, 3), (64, 64, 3), (1, 1, 3), (90, 33)]):
        small = Image.fromarray(rng.integers(0, 256, (min(6, shape[0]), min(6, shape[1]), *shape[2:]), np.uint8))
        paths.append(folder / f"{i}.png")
        small.resize(shape[1::-1], Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def check_without_pytorch(model: str | Path, images: list[Path], tmp_path: Path) -> None:
    """A start that cannot import PyTorch explains the model as gradients do."""
    words = [str(model), str(tmp_path / "found.npz"), *map(str, images)]
    subprocess.run([sys.executable, "-c", CODE, *words], check=True)
    found = np.load(tmp_path / "found.npz")
    count = 0
    for i, targets in enumerate(TARGETS):
        look = GradCam([open_subject(CIFAR)], targets)
        for j, path in enumerate(images):
            expected = look.one(str(path), Image.open(path).convert("RGB"))
            for k, (row, heat) in enumerate(zip(expected.rows, expected.maps.values(), strict=True)):
                np.testing.assert_allclose(found[f"{i} {j} {k} heat"], heat, atol=1e-4, rtol=0)
                np.testing.assert_allclose(
                    found[f"{i} {j} {k} row"], [row["index"], row["score"], row["largest"]], atol=1e-4, rtol=0
                )
                assert list(found[f"{i} {j} {k} names"]) == [row["model"], row["layer"], row["class"]]
                count += 3
    assert len(found.files) == count


def test_the_second_start(images: list[Path], tmp_path: Path) -> None:
    assert not isinstance(vankit.explain(images[0], CIFAR)[0], vankit.Failure)
    check_without_pytorch(CIFAR, images, tmp_path)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("format", ["openvino", "onnx"])
def test_a_folder(format: Any, images: list[Path], tmp_path: Path) -> None:
    folder = vankit.export(CIFAR, out=tmp_path / "exported", format=format).folder
    check_without_pytorch(folder, images, tmp_path)
