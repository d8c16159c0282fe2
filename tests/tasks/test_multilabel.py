"""Average precision and thresholds against scikit-learn and hand counts."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit

from vankit.tasks.multilabel import (
    MultiLabelMeasure,
    MultiLabelReport,
    average_precision,
    best_threshold,
    sigmoid,
)

metrics = pytest.importorskip("sklearn.metrics")

# few different values, so that there are ties
SCORES = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        arrays(bool, n), arrays(np.float64, n, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]))
    )
)


@given(SCORES)
def test_average_precision_is_scikit_learns(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = drawn
    found = average_precision(truth, scores)
    if truth.any():
        assert found == pytest.approx(metrics.average_precision_score(truth, scores))
    else:
        assert math.isnan(found)


@given(SCORES)
def test_no_threshold_has_a_better_f1_and_no_higher_one_is_as_good(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    truth, scores = drawn
    threshold = best_threshold(truth, scores)
    if not truth.any():
        assert threshold == 0.5
        return
    all_f1 = {cut: metrics.f1_score(truth, scores >= cut) for cut in np.unique(scores)}
    best = max(all_f1.values())
    assert metrics.f1_score(truth, scores >= threshold) == pytest.approx(best)
    highest = max(cut for cut, f1 in all_f1.items() if f1 == pytest.approx(best))
    below = max((score for score in scores if score < highest), default=0.0)
    assert threshold == pytest.approx((highest + below) / 2)


def test_thresholds_lie_between_neighbours_of_the_last_digit() -> None:
    low = np.float64(0.3)
    high = np.nextafter(low, 1)
    assert best_threshold(np.array([True, False]), np.array([high, low])) == high


def test_sigmoid_does_not_overflow() -> None:
    x = np.array([-1e4, -40, -1, 0, 2.5, 40, 1e4], np.float32)
    np.testing.assert_allclose(sigmoid(x), expit(x.astype(np.float64)), rtol=1e-12)


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of 40 images and 4 classes, none of them of the last."""
    rng = np.random.default_rng(seed)
    truth = rng.random((40, 4)) < [0.5, 0.2, 0.1, 0]
    return truth, (rng.normal(size=(40, 4)) + truth).astype(np.float32)


def test_measures_of_all_images() -> None:
    truth, logits = drawn()
    thresholds = (0.3, 0.6, 0.5, 0.5)
    measure = MultiLabelMeasure("abcd", thresholds)
    other = MultiLabelMeasure("abcd", thresholds)
    for part, rows in ((measure, slice(0, 7)), (measure, slice(7, 20)), (other, slice(20, 40))):
        part.add(truth[rows].astype(np.float32), logits[rows])
    measure.merge(other.state())  # of another process
    given = expit(logits.astype(np.float64)) >= thresholds
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(truth, given, average="micro")
    expected = metrics.average_precision_score(truth[:, :3], logits[:, :3], average="macro")
    assert measure.compute() == pytest.approx({"mAP": expected, "precision": precision, "recall": recall, "F1": f1})
    rows = measure.per_class()
    assert [row["class"] for row in rows] == list("abcd")
    assert [row["images"] for row in rows] == truth.sum(0).tolist()
    assert rows[1]["recall"] == pytest.approx(metrics.recall_score(truth[:, 1], given[:, 1]))
    assert rows[1]["precision"] == pytest.approx(metrics.precision_score(truth[:, 1], given[:, 1]))
    assert rows[1]["threshold"] == 0.6
    assert math.isnan(rows[3]["AP"]) and math.isnan(rows[3]["recall"])
    expected = [best_threshold(truth[:, i], expit(logits[:, i].astype(np.float64))) for i in range(4)]
    assert measure.best_thresholds() == pytest.approx(expected, rel=1e-12)


def test_without_images_or_thresholds() -> None:
    empty = MultiLabelMeasure("ab")
    assert math.isnan(empty.compute()["mAP"]) and empty.best_thresholds() == (0.5, 0.5)
    measure = MultiLabelMeasure("ab")
    measure.add(np.array([[1, 0], [0, 0]]), np.array([[1, 1], [2, 2]], np.float32))
    assert measure.compute() == {"mAP": 0.5}  # the second class has no image


def test_a_report_is_json() -> None:
    report = MultiLabelReport(2, {"mAP": 0.5, "recall": math.nan}, [{"class": "a", "AP": math.nan}], [("x", "broken")])
    assert report.to_dict() == {
        "images": 2,
        "measures": {"mAP": 0.5, "recall": None},
        "classes": [{"class": "a", "AP": None}],
        "skipped": [{"image": "x", "error": "broken"}],
    }
