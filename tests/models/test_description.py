"""What a network says of itself comes back from a checkpoint's metadata, and what contradicts itself is refused."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from vankit.data.preprocessing import Preprocessing
from vankit.errors import UserError
from vankit.models.description import Description

PREPROCESSING = Preprocessing((3, 40, 48), (0.4, 0.5, 0.6), (0.3, 0.25, 0.2), 0.9, "bilinear")
CLASSIFIER = Description(
    model="van_b1", classes=["ant", "bee"], lka={"kernel_size": [1, 7], "form": "strips"}, preprocessing=PREPROCESSING
)
SCENES = {
    task: Description(task, head, model, ["cat", "sky"], **settings)
    for task, head, model, settings in (
        ("detect", "retinanet", "van_b0", {"category_ids": [17, 18], "short_sides": (480, 512)}),
        ("segment", "upernet", "van_b2", {"crop": 512, "ignore_label": 0, "lka": {"form": "lska"}}),
        ("panoptic", "mask2former", "van_b0", {"things": [True, False], "long_side": 640, "queries": 50}),
    )
}


def written(description: Description) -> dict[str, Any]:
    """As a file has it."""
    return json.loads(json.dumps(description.to_metadata()))


@pytest.mark.parametrize("task", SCENES)
def test_a_detector_or_segmenter_comes_back(task: str) -> None:
    assert Description.from_metadata(written(SCENES[task])) == SCENES[task]


def test_a_classifier_comes_back() -> None:
    assert Description.from_metadata(written(CLASSIFIER), Description()) == CLASSIFIER


def test_a_file_says_nothing_of_names_that_are_none() -> None:
    assert "classes" not in Description(classes=["0", "1"], named=False).to_metadata()


def test_classes_have_numbers_and_are_things_unless_told_otherwise() -> None:
    plain = Description("detect", classes=["a", "b", "c"])
    assert plain.category_ids == (0, 1, 2)
    assert plain.things == (True, True, True)


def test_what_metadata_leaves_out_is_the_defaults() -> None:
    default = Description(model="van_b0", classes=["a", "b"], preprocessing=PREPROCESSING)
    found = Description.from_metadata({"model": "van_b3", "preprocessing": {"crop_pct": 1.0}, "epoch": 3}, default)
    assert (found.model, found.classes) == ("van_b3", ("a", "b"))
    assert found.preprocessing == Preprocessing((3, 40, 48), (0.4, 0.5, 0.6), (0.3, 0.25, 0.2), 1.0, "bilinear")
    assert Description.from_metadata({}, default) == default


@pytest.mark.parametrize("name", ["head", "model", "classes", "things", "short_sides", "long_side", "queries"])
def test_what_is_missing_is_named(name: str) -> None:
    metadata = written(SCENES["panoptic"])
    del metadata[name]
    with pytest.raises(UserError, match=f"does not say its {name}: expected best.safetensors of vankit train"):
        Description.from_metadata(metadata)


@pytest.mark.parametrize(("name", "value"), [("things", True), ("category_ids", 1)])
def test_as_many_as_classes(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"there are 2 classes and 1 {name}: expected as many"):
        Description("panoptic", classes=["a", "b"], **{name: [value]})


def test_preprocessing_that_cannot_be_is_refused() -> None:
    metadata = {"preprocessing": {"crop_pct": 0}}
    with pytest.raises(UserError, match="crop_pct is 0: expected above 0"):
        Description.from_metadata(metadata, Description(preprocessing=PREPROCESSING))


def test_thresholds_come_back_and_are_those_of_a_multi_label_network() -> None:
    several = replace(CLASSIFIER, thresholds=[0.25, 0.7])
    assert several.multi_label and not CLASSIFIER.multi_label and "thresholds" not in written(CLASSIFIER)
    assert Description.from_metadata(written(several), Description(classes=["ant", "bee"])) == several


@pytest.mark.parametrize(
    ("thresholds", "says"),
    [([0.5], "there are 2 classes and 1 thresholds"), ([0.5, 1.5], "a threshold is 1.5"), ([0.5, math.nan], "is nan")],
)
def test_thresholds_that_cannot_be(thresholds: list[float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        replace(CLASSIFIER, thresholds=thresholds)
