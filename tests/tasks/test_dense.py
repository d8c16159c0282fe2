"""The dense tasks where there is no PyTorch: measured, drawn and written all the same."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vankit.tasks.dense import EVALUATORS

ABSENT = ["torch", "torchvision", "matplotlib", "torchmetrics", "lightning", "timm", "transformers", "scipy"]

USE = """
import json, sys

for name in sys.argv[1].split():
    sys.modules[name] = None  # importing it is an ImportError

import numpy as np
from PIL import Image

from vankit.tasks.dense import EVALUATORS

CLASSES, THINGS = ["cat", "dog", "sky"], [True, True, False]
masks = np.zeros((2, 60, 80), bool)
masks[0, 10:40, 10:50] = masks[1, 40:, 20:60] = True
boxes, labels = np.float32([[10, 10, 50, 40], [20, 40, 60, 60]]), np.array([0, 1])
objects = {"labels": labels, "boxes": boxes, "masks": masks, "iscrowd": np.zeros(2, bool), "area": np.ones(2)}
segments = masks[0] + 2 * masks[1]
scores = np.float32([0.9, 0.8])
SAMPLES = {
    "detect": (objects, {"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}),
    "segment": ({"semantic": segments % 3}, {"semantic": segments % 2}),
    "panoptic": (objects, {"segments": segments, "labels": labels, "scores": scores}),
}
answers = {}
for task, (target, result) in SAMPLES.items():
    evaluator = EVALUATORS[task](CLASSES, THINGS, True)
    evaluator.add(target, result)
    found, truth = evaluator.scene("a.png", CLASSES, THINGS, result), evaluator.truth("a.png", CLASSES, THINGS, target)
    for name, scene in (("found", found), ("truth", truth)):
        scene.draw(Image.new("RGB", (80, 60))).save(f"{sys.argv[2]}/{task}-{name}.png")
    rows = found.to_coco(1, [7, 8, 9], *(["a.png"] if task == "panoptic" else []))
    answers[task] = [next(iter(evaluator.measure.compute().values())), evaluator.measure.per_class(), rows]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, list], Path]:
    """What a process without the libraries measured and wrote, and the folder it drew into."""
    folder = tmp_path_factory.mktemp("drawn")
    command = [sys.executable, "-c", USE, " ".join(ABSENT), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert not run.returncode, run.stderr
    return json.loads(run.stdout), folder


def test_all_is_measured_without_torch(used: tuple[dict[str, list], Path]) -> None:
    figures = {task: rows[0] for task, rows in used[0].items()}
    assert figures["detect"] == figures["panoptic"] == pytest.approx(1)
    # of 2800 pixels of class 0, 1200 of class 1 and 800 of class 2 the last are taken for class 0
    assert figures["segment"] == pytest.approx((2800 / 3600 + 1 + 0) / 3)
    assert [len(rows) for _, _, rows in (used[0]["detect"], used[0]["segment"])] == [2, 2]
    assert [entry["category_id"] for entry in used[0]["panoptic"][2]["segments_info"]] == [7, 8]


@pytest.mark.parametrize("task", list(EVALUATORS))
def test_all_is_drawn_without_torch(used: tuple[dict[str, list], Path], task: str) -> None:
    with Image.open(used[1] / f"{task}-found.png") as found, Image.open(used[1] / f"{task}-truth.png") as truth:
        drawn, true = np.asarray(found), np.asarray(truth)
    assert drawn.shape[1] >= 80 and drawn.shape[0] >= 60
    assert drawn[15:39, 15:39].max() > 50 and true[15:39, 15:39].max() > 50
