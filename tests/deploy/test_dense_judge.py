"""What a quantised detector or segmenter is measured by, on answers made by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vankit.data.scenes import ShapeScenes
from vankit.deploy import dense_judge
from vankit.deploy.dense_judge import Scenes, open_labelled
from vankit.engines.base import Engine
from vankit.errors import UserError
from vankit.models.description import Description


def description(task: str, **changes: Any) -> Description:
    scenes = ShapeScenes(task)
    given = {"classes": scenes.classes, "things": scenes.things, "category_ids": scenes.category_ids} | changes
    return Description(task, "mask2former", "van_b0", short_sides=(64,), long_side=96, queries=10, **given)


class Scripted(Engine):
    """What a model would give for the pictures that follow."""

    def __init__(self, answers: list[list[np.ndarray]]) -> None:
        self.answers = iter(answers)

    def __call__(self, x: Any) -> Any:
        raise NotImplementedError

    worker = __call__

    def outputs(self, x: Any) -> Any:
        assert x.dtype == np.uint8 and x.shape[0] == 1 and x.shape[-1] == 3
        return next(self.answers)


def right(task: str, target: dict[str, Any], missing: int = 0) -> list[np.ndarray]:
    """The annotation as a model's answer, without the last so many objects."""
    if task == "segment":
        return [target["semantic"][None, None].astype(np.int32)]
    kept = slice(len(target["labels"]) - missing)
    labels, masks = target["labels"][kept], target["masks"][kept]
    scores = np.ones(len(labels), np.float32)
    if task == "panoptic":
        return [(masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(0)[None], labels[None], scores[None]]
    height, width = masks.shape[1:]
    boxes = target["boxes"][kept] / np.array([width, height, width, height])
    return [np.c_[boxes, scores][None].astype(np.float32), labels[None], masks[None].astype(np.uint8)]


@pytest.mark.parametrize(
    ("task", "masks", "measure"),
    [("detect", True, "mask AP"), ("detect", False, "box AP"), ("segment", False, "mIoU"), ("panoptic", False, "PQ")],
)
def test_right_answers(task: str, masks: bool, measure: str) -> None:
    data = ShapeScenes(task, "val", 3, 64)
    trial = Scenes(description(task), masks, data, data)
    engine = Scripted([right(task, target) for _, target in data])
    assert trial.score(engine, "right") == pytest.approx(1)
    assert (trial.measure, trial.images, trial.labelled) == (measure, 3, True)


def test_wrong_answers() -> None:
    data = ShapeScenes("segment", "val", 2, 64)
    wrong = [[np.full((1, 1, 64, 64), 10, np.int32)] for _ in data]  # the background alone
    truth = np.stack([target["semantic"] for _, target in data])
    expected = (truth == 10).mean() / len(np.unique(truth))
    assert Scenes(description("segment"), False, data, data).score(Scripted(wrong), "") == pytest.approx(expected)


def test_masks_that_are_wrong_in_right_boxes() -> None:
    data = ShapeScenes("detect", "val", 2, 64)
    empty = [[*right("detect", target)[:2], 0 * right("detect", target)[2]] for _, target in data]
    scores = [Scenes(description("detect"), masks, data, data).score(Scripted(empty), "") for masks in (True, False)]
    assert scores == [0, 1]


def test_scenes_that_say_nothing() -> None:
    nothing = ShapeScenes("detect", "val", 1, 64)
    picture, target = nothing[0]
    bare = [(picture, {name: values[:0] for name, values in target.items() if name != "image_id"})]
    trial = Scenes(description("detect"), False, bare, bare)
    with pytest.raises(UserError, match="^the images to measure int8 on have no box AP: pass others"):
        trial.score(Scripted([right("detect", target)]), "")


def test_calibration_pictures_are_drawn_evenly_and_kept_as_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_judge, "CALIBRATION_IMAGES", 4)
    pictures = [(Image.new("RGB", (5, 4 + i), (i, 0, 0)), {}) for i in range(10)]
    scenes: list[Any] = [None if i == 3 else each for i, each in enumerate(pictures)]
    inputs = Scenes(description("segment"), False, scenes, scenes).inputs
    assert [x.shape for x in inputs] == [(1, 4, 5, 3), (1, 10, 5, 3), (1, 13, 5, 3)]  # of 0, 3, 6 and 9
    assert [int(x[0, 0, 0, 0]) for x in inputs] == [0, 6, 9]


def test_nothing_readable() -> None:
    trial = Scenes(description("segment"), False, [None], [None])
    for use in (lambda: trial.inputs, lambda: trial.score(Scripted([]), "")):
        with pytest.raises(UserError, match="^none of the images to calibrate or measure int8 can be read"):
            use()


def test_train_calibrates_and_val_is_measured(tmp_path: Path, small_shapes: None) -> None:
    trial = open_labelled("shapes", description("detect"), True)
    assert (trial.calibration.split, len(trial.calibration)) == ("train", 8)
    assert (trial.measured.split, len(trial.measured)) == ("val", 2)
    for kind in ("images", "annotations"):
        (tmp_path / kind / "val").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "val" / "a.png")
    Image.new("L", (8, 8)).save(tmp_path / "annotations" / "val" / "a.png")
    (tmp_path / "classes.txt").write_text("sky\nroad")
    named = description("segment", classes=["sky", "road"], things=(), category_ids=())
    trial = open_labelled(tmp_path, named, False)
    assert trial.calibration is trial.measured  # there is no train
    with pytest.raises(UserError, match="^data and network have different classes: "):
        open_labelled(tmp_path, description("segment"), False)
