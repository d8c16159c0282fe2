"""What is measured of a quantised network: accuracy, agreement, or mAP of a multi-label one."""

from dataclasses import replace

import numpy as np
import pytest

from vankit.deploy.judge import Judge
from vankit.errors import UserError
from vankit.models.description import Description

ONE = Description(classes=["a", "b", "c"])
SEVERAL = replace(ONE, thresholds=[0.5, 0.5, 0.9])
LOGITS = np.array([[3, 1, 2], [-1, -2, 4], [-3, 2, 1]], np.float32)
WORSE = np.array([[-4, 1, 2], [-1, -2, 4], [-3, 2, 1]], np.float32)


@pytest.mark.parametrize(("description", "measure"), [(ONE, "top-1"), (SEVERAL, "mAP")])
def test_without_labels_float32_agrees_with_itself(description: Description, measure: str) -> None:
    judge = Judge(description, None)
    answers = judge.keep(LOGITS)
    truth = judge.truth(answers, np.full(3, -1))
    assert (judge.measure, judge.score(answers, truth)) == (measure, 1.0)
    assert judge.score(judge.keep(WORSE), truth) < 1


def test_accuracy() -> None:
    judge = Judge(ONE, np.array([2, 0]))  # the data has c and a
    answers = judge.keep(LOGITS)
    assert judge.score(answers, judge.truth(answers, np.array([1, 0, 0]))) == pytest.approx(2 / 3)


def test_map_of_the_datas_classes() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    judge = Judge(SEVERAL, np.array([2, 0]))
    labels = np.array([[0, 1], [1, 1], [1, 0]])
    answers = judge.keep(WORSE)
    expected = metrics.average_precision_score(labels, WORSE[:, [2, 0]], average="macro")
    assert judge.score(answers, judge.truth(answers, labels)) == pytest.approx(expected)
    with pytest.raises(UserError, match="no image to measure int8 on has a label"):
        judge.score(answers, judge.truth(answers, 0 * labels))
