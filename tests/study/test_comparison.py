"""Costs of other networks against the figures of their papers."""

from pathlib import Path

import pytest
from PIL import Image

from vankit.errors import UserError
from vankit.study.comparison import PUBLISHED, Comparison, comparison, cost, plot
from vankit.study.complexity import complexity


# parameters in millions and GMACs as the papers round them
@pytest.mark.parametrize(
    ("model", "params", "gmacs"),
    [
        ("resnet50", 25.6, 4.1),
        ("swin_tiny_patch4_window7_224", 28.3, 4.5),
        ("convnext_tiny", 28.6, 4.5),
        ("pvt_v2_b2", 25.4, 4.0),
    ],
)
def test_costs_are_the_published_ones(model: str, params: float, gmacs: float) -> None:
    found = cost(model)
    assert round(found.params / 1e6, 1) == params
    assert found.macs / 1e9 == pytest.approx(gmacs, rel=0.03)
    assert found.top1 == PUBLISHED[model]


def test_a_van_is_counted_by_its_definition() -> None:
    own = complexity("van_b0")
    assert cost("van_b0") == Comparison("van_b0", own.params, own.macs, 75.41)


def test_unknown_model() -> None:
    with pytest.raises(UserError, match="unknown model 'van_b9'"):
        comparison(["van_b9"], seconds=0)
    with pytest.raises(UserError, match="different sizes"):
        comparison(["van_b0", "inception_v3"])


@pytest.mark.slow
def test_times_are_measured() -> None:
    rows = comparison(["van_b0", "resnet18"], seconds=0.1)
    assert [row.model for row in rows] == ["van_b0", "resnet18"]
    for row in rows:
        assert row.ms is not None and row.ms_low is not None and row.ms_high is not None
        assert 0 < row.ms_low <= row.ms <= row.ms_high


def test_times_have_a_panel_of_their_own_in_the_plot(tmp_path: Path) -> None:
    timed = [Comparison("van_b0", 10, 100, 75.4, 5.0, 4.0, 6.0), Comparison("resnet18", 20, 200, None, 3.0, 2.0, 4.0)]
    widths = []
    for rows in (timed, [Comparison("van_b0", 10, 100, 75.4)]):
        plot(rows, tmp_path / "plot.png")
        with Image.open(tmp_path / "plot.png") as picture:
            widths.append(picture.width)
    assert widths[0] == pytest.approx(1.5 * widths[1], abs=1)
