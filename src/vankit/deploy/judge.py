"""What a quantised network's answers are worth: top-1, or mAP of a multi-label network."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.engines.base import Array
from vankit.errors import UserError
from vankit.models.description import Description
from vankit.tasks.multilabel import MultiLabelMeasure, sigmoid


@dataclass(frozen=True)
class Judge:
    """Compares a network's answers with the truth.

    Attributes:
        description: of the network.
        classes: the network's class index of each class of the data; None without labels.
    """

    description: Description
    classes: NDArray[np.int64] | None

    @property
    def measure(self) -> str:
        """top-1 or mAP."""
        return "mAP" if self.description.multi_label else "top-1"

    def keep(self, logits: Array) -> NDArray[Any]:
        """What of the logits (B, classes) is compared: all, or the best class."""
        return logits if self.description.multi_label else logits.argmax(1)

    def truth(self, answers: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
        """By the data's labels, or without them by the float32 network's answers."""
        if self.description.multi_label:
            return sigmoid(answers) >= self.description.thresholds if self.classes is None else labels
        return answers if self.classes is None else self.classes[labels]

    def score(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:
        """The measure, 0 to 1.

        Raises:
            ValueError: there is no label, so that there is no mAP.
        """
        if not self.description.multi_label:
            return float(np.mean(answers == truth))
        measure = MultiLabelMeasure([str(i) for i in range(truth.shape[1])])
        measure.add(truth, answers if self.classes is None else answers[:, self.classes])
        score = measure.compute()["mAP"]
        if math.isnan(score):
            raise UserError("no image to measure int8 on has a label, so there is no mAP: pass others (--calibrate)")
        return score
