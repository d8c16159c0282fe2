"""The demo's promise: a network that knows the generated pictures, and pictures of what it knows."""

from pathlib import Path

import pytest
from PIL import Image

import vankit


@pytest.mark.slow
@pytest.mark.parametrize(("pictures", "top1"), [(1600, 0.2), (12000, 0.95)])
def test_demo_learns_shapes_and_leaves_weights_and_pictures(
    pictures: int, top1: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = min(1_000, pictures // 8)  # of fewer that learn less, fewer are enough
    monkeypatch.setattr("vankit.data.folders._SHAPES_LENGTH", {"train": pictures, "val": measured})
    result = vankit.demo(tmp_path)
    assert result.report.top1 >= top1
    assert result.report.count == measured
    assert vankit.read_checkpoint(result.checkpoint).num_classes == 10
    for picture in (result.picture, result.confusion):
        with Image.open(picture) as image:
            assert min(image.size) > 300
