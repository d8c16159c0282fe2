"""A run's log, read back over its resumptions."""

from pathlib import Path

import numpy as np

from vankit.reports.log import draw_log, epochs_of, read_log

FIRST = """epoch,step,train_loss_epoch,train_loss_step,val_loss,val_top1
0,19,,2.0,,
0,29,,,1.5,0.25
0,29,1.75,,,
1,39,,9.0,,
"""
SECOND = """epoch,step,lr,train_loss_epoch,train_loss_step,val_loss,val_top1
1,39,0.1,,1.0,,
1,59,,,,1.25,0.5
1,59,,0.875,,,
"""


def test_a_resumed_run_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "metrics-1.csv").write_text(FIRST)
    (tmp_path / "metrics-2.csv").write_text("epoch,step\n")  # stopped at once
    (tmp_path / "metrics.csv").write_text(SECOND)
    rows = read_log(tmp_path)
    assert [row["train_loss_step"] for row in rows if "train_loss_step" in row] == [2.0, 1.0]  # the 9 was done again
    assert epochs_of(rows) == [
        {"epoch": 1, "train loss": "1.7500", "val loss": "1.5000", "top-1": 0.25},
        {"epoch": 2, "train loss": "0.8750", "val loss": "1.2500", "top-1": 0.5},
    ]
    figure = draw_log(rows)
    assert [axes.get_title() for axes in figure.axes] == ["loss", "measures", "learning rate"]
    curves = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert curves == {"training": [[20, 2], [40, 1]], "validation": [[30, 1.5], [60, 1.25]]}


def test_the_tenth_resumption_follows_the_ninth(tmp_path: Path) -> None:
    for i in range(1, 12):
        name = "metrics.csv" if i == 11 else f"metrics-{i}.csv"
        (tmp_path / name).write_text(f"epoch,step,val_mIoU\n{i - 1},{i},{i / 100}\n")
    assert [row["mIoU"] for row in epochs_of(read_log(tmp_path))] == [i / 100 for i in range(1, 12)]


def test_a_detectors_losses_are_averaged_and_what_is_missing_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train_loss,train_boxes,val_box_AP,val_box_APl\n0,19,3,1,,\n0,39,2,1,,\n0,49,,,0.1,\n1,99,,,0.2,0.3\n"
    )
    assert epochs_of(read_log(tmp_path)) == [
        {"epoch": 1, "train loss": "2.5000", "box AP": 0.1, "box APl": None},
        {"epoch": 2, "train loss": "", "box AP": 0.2, "box APl": 0.3},
    ]


def test_a_long_curve_is_thinned_by_means() -> None:
    rows = [{"epoch": 0.0, "step": float(i), "train_loss": float(i % 2)} for i in range(10_000)]
    line = draw_log(rows).axes[0].lines[0]
    assert len(line.get_xdata()) == 500
    np.testing.assert_allclose(line.get_ydata(), 0.5)
    assert line.get_xdata()[0] == np.mean(range(1, 21))
