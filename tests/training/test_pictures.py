"""Validation pictures: what stands in them, and which images they are of."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor

from vankit.data.augment import as_tensors, collate
from vankit.data.preprocessing import MEAN_STD, Preprocessing
from vankit.data.scenes import ShapeScenes
from vankit.models.description import Description
from vankit.reports.worst import picture_of, scaled
from vankit.tasks.dense import EVALUATORS
from vankit.tasks.inference import arrays
from vankit.tasks.results import Arrays
from vankit.training import pictures
from vankit.training.logs import Log
from vankit.training.pictures import Pictures, draw_class, draw_labels, draw_scenes

CLASSES = ["cat", "dog"]
PREPROCESSING = Preprocessing((3, 8, 8), MEAN_STD, (0.25, 0.5, 0.5), 1.0, "bicubic")
CLASSIFIER = Description("classify", classes=CLASSES, preprocessing=PREPROCESSING)


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and ImageChops.difference(a, b).getbbox() is None


@pytest.mark.parametrize(("label", "paint"), [(1, (0, 120, 0)), (0, (200, 0, 0))])
def test_a_classifiers_answer(label: int, paint: tuple[int, int, int]) -> None:
    image = torch.tensor([1.0, 0.0, -1.0])[:, None, None].expand(3, 8, 8)
    picture, caption, colour = draw_class(image, label, torch.tensor([0.0, torch.log(torch.tensor(3.0))]), CLASSIFIER)
    assert caption == f"dog 75%\ntrue: {CLASSES[label]}" and colour == paint
    assert np.unique(np.asarray(picture).reshape(-1, 3), axis=0).tolist() == [[191, 128, 0]]  # normalisation undone


@pytest.mark.parametrize(
    ("labels", "says", "paint"),
    [([0, 1], "dog", (0, 120, 0)), ([1, 1], "cat, dog", (200, 0, 0)), ([0, 0], "no label", (200, 0, 0))],
)
def test_a_multi_label_networks_answer(labels: list[int], says: str, paint: tuple[int, int, int]) -> None:
    image, logits = torch.zeros(3, 8, 8), torch.tensor([-1.0, 2.0])
    _, caption, colour = draw_labels(image, torch.tensor(labels, dtype=torch.float32), logits, CLASSIFIER)
    assert caption == f"dog\ntrue: {says}" and colour == paint


def scene(task: str) -> tuple[Tensor, dict[str, Any], Arrays, Description]:
    """A generated image, its target, the result of a network that is right, and the description."""
    scenes = ShapeScenes(task, "val", size=(32, 48), transform=as_tensors)
    (image,), (target,) = collate([scenes[3]])
    if task == "segment":
        result = {"logits": torch.nn.functional.one_hot(target["semantic"], 11).permute(2, 0, 1).float()}
    elif task == "panoptic":
        index = torch.arange(1, len(target["masks"]) + 1)[:, None, None]
        segments = (target["masks"] * index).amax(0)
        result = {"segments": segments, "labels": target["labels"], "scores": torch.ones(len(index))}
    else:
        result = {name: target[name] for name in ("boxes", "labels", "masks")} | {
            "scores": torch.ones(len(target["labels"]))
        }
    description = Description(task, classes=scenes.classes, things=scenes.things)
    return image / 255, target, arrays(result), description


@pytest.mark.parametrize("task", ["detect", "segment", "panoptic"])
def test_a_network_that_is_right_looks_like_the_truth(task: str) -> None:
    image, target, result, description = scene(task)
    (found, _, _), (truth, _, _) = cells = draw_scenes(image, target, result, description, side=192)
    assert [caption for _, caption, _ in cells] == ["prediction", "truth"]
    assert same(found, truth) and found.width == 192 and found.height >= 128
    plain = scaled(picture_of(image.numpy()), 192)
    assert not same(found.crop((0, 0, 192, 128)), plain)  # something is drawn


@pytest.mark.parametrize("task", ["detect", "segment", "panoptic"])
def test_a_network_that_finds_other_things_looks_otherwise(task: str) -> None:
    image, target, result, description = scene(task)
    if task == "segment":
        result = {"semantic": result["semantic"] + 1}
    else:
        result = {**result, "labels": (result["labels"] + 1) % len(description.classes)}
    (found, _, _), (truth, _, _) = draw_scenes(image, target, result, description, side=192)
    assert not same(found, truth)


def test_objects_of_low_score_are_not_drawn() -> None:
    image, target, result, description = scene("detect")
    (found, _, _), _ = draw_scenes(image, target, {**result, "scores": result["scores"] * 0.29}, description, side=192)
    assert same(found, scaled(picture_of(image.numpy()), 192))


def test_boxes_and_masks_are_resized_with_their_picture() -> None:
    _, _, result, description = scene("detect")
    found = EVALUATORS["detect"].scene("", description.classes, description.things, result)
    large = found.resized((96, 64), (48, 32))
    np.testing.assert_allclose(large.boxes, 2 * found.boxes)
    np.testing.assert_array_equal(large.masks, found.masks.repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(large.resized((48, 32), (96, 64)).masks, found.masks)


class Validation:
    """What the callback sees of a trainer that validates 20 images in batches of 3."""

    def __init__(self, log: Log | None) -> None:
        self.logger, self.global_step = log, 7
        self.val_dataloaders = torch.utils.data.DataLoader(torch.arange(20), 3)  # type: ignore[arg-type]

    def run(self, callback: Pictures) -> None:
        callback.on_validation_epoch_start(self, None)  # type: ignore[arg-type]
        for i, numbers in enumerate(self.val_dataloaders):
            images = (numbers / 20)[:, None, None, None].expand(-1, 3, 8, 8)
            outputs = {"answers": torch.zeros(len(numbers), 2)}
            batch = (images, torch.zeros(len(numbers), dtype=torch.long))
            callback.on_validation_batch_end(self, None, outputs, batch, i)  # type: ignore[arg-type]
        callback.on_validation_epoch_end(self, None)  # type: ignore[arg-type]


def test_the_same_images_at_equal_distances_in_every_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def draw(image: Tensor, *_: Any) -> Any:
        drawn.append(round(float(image[0, 0, 0]) * 20))
        return Image.new("RGB", (8, 8)), "", (0, 0, 0)

    monkeypatch.setattr(pictures, "draw_class", draw)
    callback = Pictures(CLASSIFIER)
    validation = Validation(None)
    for _ in range(2):
        validation.run(callback)
    assert drawn == [0, 2, 5, 7, 10, 12, 15, 17] * 2


def test_a_picture_per_validation(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    logged: list[tuple[str, tuple[int, int], int]] = []
    monkeypatch.setattr(Log, "log_picture", lambda _, name, picture, step: logged.append((name, picture.size, step)))
    callback, validation = Pictures(CLASSIFIER), Validation(Log(tmp_path))
    for _ in range(2):
        validation.run(callback)
    (name, size, step), second = logged
    assert (name, step) == ("validation", 6) and second == logged[0] and size[0] > 4 * 160 and size[1] > 2 * 160
