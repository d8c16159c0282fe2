"""The demo: its files on a small set, and its promise on the whole one."""

from pathlib import Path

import pytest
from PIL import Image

import vankit


def test_demo_leaves_weights_and_pictures(tmp_path: Path, small_shapes: None) -> None:
    result = vankit.demo(tmp_path)
    assert result.report.count == 32
    assert vankit.read_checkpoint(result.checkpoint).num_classes == 10
    for picture in (result.picture, result.confusion):
        with Image.open(picture) as image:
            assert min(image.size) > 300


@pytest.mark.slow
def test_demo_learns_shapes(tmp_path: Path) -> None:
    assert vankit.demo(tmp_path).report.top1 >= 0.95
