"""The caller's own datasets: what they may give, what is made of it, and what a wrong item is told."""

import gc
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchvision import tv_tensors

from vankit.data.augment import as_tensors, collate
from vankit.data.own import ItemError, OwnImages, OwnScenes, name_of, pair_of
from vankit.data.scenes import ShapeScenes
from vankit.errors import UserError


class Items(Dataset[Any]):
    """Given items, with given attributes."""

    def __init__(self, *items: Any, **attributes: Any) -> None:
        self.items = items
        vars(self).update({"classes": ["cat", "dog"], "things": [True, False], **attributes})

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[Any]):
    classes = ("cat", "dog")

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def arrays(picture: Image.Image) -> Any:
    return np.asarray(picture)


def same(*sample: Any) -> Any:
    return sample


def images(*items: Any, size: int = 4, **attributes: Any) -> OwnImages:
    return OwnImages(Items(*items, **attributes), "training", arrays, size)


def scenes(*items: Any, task: str = "detect", masks: bool = False, ignore: int = 255, **attributes: Any) -> OwnScenes:
    return OwnScenes(Items(*items, **attributes), "training", same, task, masks, ignore)


PIXELS = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PICTURE = Image.fromarray(PIXELS.permute(1, 2, 0).numpy())


# Labelled images


@pytest.mark.parametrize("image", [PICTURE, PIXELS, tv_tensors.Image(PIXELS)], ids=["picture", "tensor", "tv_tensor"])
def test_pictures_and_bytes_are_transformed(image: Any) -> None:
    found, label = images((image, 1))[0]
    assert label == 1
    np.testing.assert_array_equal(found, PIXELS.permute(1, 2, 0).numpy())


def test_pictures_of_any_mode_become_rgb() -> None:
    found, _ = images((Image.new("L", (6, 4), 7), 0))[0]
    np.testing.assert_array_equal(found, np.full((4, 6, 3), 7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_floats_are_used_as_they_are(dtype: torch.dtype) -> None:
    image = torch.linspace(-2, 2, 48).reshape(3, 4, 4).to(dtype)
    found, _ = images((image, 0))[0]
    assert found.dtype == torch.float32 and torch.equal(found, image.float())


@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1), True])
def test_whole_numbers_are_labels(label: Any) -> None:
    found = images((PICTURE, label))[0][1]
    assert found == 1 and type(found) is int


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": PICTURE, "label": 0}, r"it is of type dict: expected \(image, label\)"),
        ((PICTURE, 0, "name"), r"it is of type tuple of length 3: expected \(image, label\)"),
        ((PICTURE, 2), "the label is 2: expected 0 to 1"),
        ((PICTURE, -1), "the label is -1: expected 0 to 1"),
        ((PICTURE, 1.0), "the label is of type float: expected a whole number"),
        ((PICTURE, torch.tensor([0, 1])), r"the label is a tensor \(2,\) of int64: expected a whole number"),
        ((PICTURE, "dog"), "the label is of type str: expected a whole number"),
        ((np.asarray(PICTURE), 0), "the image is of type ndarray: expected a PIL image, or a uint8 tensor"),
        ((PIXELS.permute(1, 2, 0), 0), r"the image is a tensor \(4, 6, 3\) of uint8: expected a PIL image, or a uint8"),
        ((PIXELS.long(), 0), r"the image is a tensor \(3, 4, 6\) of int64: expected a PIL image"),
        ((PIXELS.float(), 0), r"a tensor \(3, 4, 6\) of float32: expected \(3, 4, 4\), because floats are .* img_size"),
        ((torch.full((3, 4, 4), torch.nan), 0), "the image has NaN or infinite values: expected finite ones"),
    ],
)
def test_a_wrong_image_or_label_is_named(item: Any, message: str) -> None:
    dataset = OwnImages(Items((PICTURE, 0), item), "validation", arrays, 4)
    assert len(dataset) == 2
    with pytest.raises(ItemError, match=rf"^the validation set \(Items\), item 1: .*{message}"):
        dataset[1]
    with pytest.raises(ItemError, match=r"^the training set \(Items\), item 0: "):
        images(item)


# Annotated scenes


@pytest.mark.parametrize(("task", "masks"), [("detect", True), ("segment", False), ("panoptic", True)])
def test_plain_tensors_become_what_the_readers_give(task: str, masks: bool) -> None:
    shapes = ShapeScenes(task, "train", 4, 64, transform=as_tensors)
    keys = {"detect": ("boxes", "labels", "masks"), "segment": ("semantic",), "panoptic": ("labels", "masks")}[task]
    plain = [(image.as_subclass(Tensor), {key: target[key].as_subclass(Tensor) for key in keys})
             for image, target in shapes]  # fmt: skip
    dataset = scenes(
        *plain, task=task, masks=masks, classes=shapes.classes, things=shapes.things, category_ids=shapes.category_ids
    )
    assert (dataset.classes, dataset.things, dataset.category_ids) == (
        shapes.classes,
        shapes.things,
        shapes.category_ids,
    )
    for i in range(len(shapes)):
        (image, target), (expected_image, expected) = dataset[i], shapes[i]
        assert torch.equal(image, expected_image) and type(image) is tv_tensors.Image
        assert target.keys() == expected.keys() and target["image_id"] == i
        for key in target.keys() - {"image_id"}:
            assert torch.equal(target[key], expected[key]), key
            assert (type(target[key]), target[key].dtype) == (type(expected[key]), expected[key].dtype), key
        if "boxes" in target:
            assert target["boxes"].canvas_size == expected["boxes"].canvas_size


BOXES = torch.tensor([[1.0, 0.0, 4.0, 2.0], [0.0, 1.0, 6.0, 4.0]])
OBJECTS = {"boxes": BOXES, "labels": torch.tensor([1, 0])}
MASKS = torch.zeros(2, 4, 6, dtype=torch.bool)
MASKS[0, 0:2, 1:4] = MASKS[1, 3, 0:6] = True


def test_what_a_target_leaves_out_is_filled_in() -> None:
    _, target = scenes((PIXELS, OBJECTS))[0]
    assert target["area"].tolist() == [6, 18] and target["iscrowd"].tolist() == [False, False]
    _, target = scenes((PIXELS, {**OBJECTS, "masks": MASKS}), masks=True)[0]
    assert target["area"].tolist() == [6, 6]


def test_what_a_target_says_is_kept_and_what_the_head_does_not_use_is_not() -> None:
    given = {
        **OBJECTS, "masks": MASKS, "area": torch.tensor([5, 17]), "iscrowd": torch.tensor([0, 1]),
        "image_id": "a.jpg", "note": [1, 2, 3],
    }  # fmt: skip
    _, target = scenes((PIXELS, OBJECTS), (PIXELS, given))[1]
    assert target.keys() == {"boxes", "labels", "area", "iscrowd", "image_id"}
    assert target["area"].tolist() == [5, 17] and target["image_id"] == 1
    assert target["iscrowd"].dtype == torch.bool and target["iscrowd"].tolist() == [False, True]


@pytest.mark.parametrize(
    "boxes",
    [
        BOXES.long(),
        BOXES.double(),
        tv_tensors.BoundingBoxes([[1, 0, 3, 2], [0, 1, 6, 3]], format="XYWH", canvas_size=(4, 6)),  # type: ignore[call-overload]
        BOXES + torch.tensor([[0, -1.5, 0, 0], [-2, 0, 1, 1]]),  # past the edge, as by rounding
    ],
    ids=["whole", "double", "xywh", "overhang"],
)
def test_boxes_become_corners_inside_the_image(boxes: Tensor) -> None:
    _, target = scenes((PIXELS, {**OBJECTS, "boxes": boxes}))[0]
    assert target["boxes"].dtype == torch.float32 and torch.equal(target["boxes"], BOXES)
    assert target["boxes"].format == tv_tensors.BoundingBoxFormat.XYXY


def test_an_image_without_objects() -> None:
    nothing = {key: torch.tensor([]) for key in ("boxes", "labels", "masks")}
    for task in ("detect", "panoptic"):
        _, target = scenes((PIXELS, nothing), task=task, masks=True)[0]
        assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 4, 6)
        assert target["labels"].shape == target["area"].shape == target["iscrowd"].shape == (0,)
        assert target["labels"].dtype == torch.int64


@pytest.mark.parametrize("image", [PICTURE, PIXELS / 255, PIXELS.double() / 255], ids=["picture", "float", "double"])
def test_images_of_scenes_become_bytes(image: Any) -> None:
    found, _ = scenes((image, OBJECTS))[0]
    assert type(found) is tv_tensors.Image and found.dtype == torch.uint8 and torch.equal(found, PIXELS)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_unlabelled_pixels(dtype: torch.dtype) -> None:
    labels = torch.tensor([[0, 1, 9, 255, 1, 0]] * 4, dtype=dtype)
    _, target = scenes((PIXELS, {"semantic": labels}), task="segment", ignore=9)[0]
    assert target["semantic"].tolist() == [[0, 1, 255, 255, 1, 0]] * 4 and target["semantic"].dtype == torch.uint8


def with_box(*box: float) -> dict[str, Any]:
    return {**OBJECTS, "boxes": torch.tensor([[1.0, 0.0, 4.0, 2.0], box])}


SEGMENTS = {"labels": OBJECTS["labels"], "masks": MASKS}
LABELS = torch.zeros(4, 6, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("task", "target", "message"),
    [
        ("segment", {"mask": LABELS, "id": 1}, "the target has no semantic: expected semantic, it has mask, id"),
        ("segment", LABELS, r"the target is a tensor \(4, 6\) of uint8: expected a dict with semantic"),
        ("segment", {"semantic": LABELS.T}, r"semantic is a tensor \(6, 4\) of uint8: .* whole numbers \(4, 6\)"),
        ("segment", {"semantic": LABELS[None]}, r"semantic is a tensor \(1, 4, 6\) of uint8: .* \(4, 6\), classes"),
        ("segment", {"semantic": LABELS.float()}, r"semantic is a tensor \(4, 6\) of float32: .* of whole numbers"),
        ("segment", {"semantic": LABELS.numpy()}, r"semantic is of type ndarray: expected a tensor of whole numbers"),
        ("segment", {"semantic": LABELS + 2}, "semantic has the label 2: expected 0 to 1, .* 255 where unlabelled"),
        ("segment", {"semantic": LABELS.long() - 1}, "semantic has the label -1: expected 0 to 1"),
        ("detect", {}, "the target has no boxes and no labels: expected boxes, labels, it has nothing"),
        ("detect", {**OBJECTS, "boxes": BOXES[:1]}, r"boxes is a tensor \(1, 4\) of float32: .* tensor \(2, 4\)"),
        ("detect", {**OBJECTS, "boxes": BOXES.tolist()}, r"boxes is of type list of length 2: .* tensor \(2, 4\)"),
        ("detect", {**OBJECTS, "labels": [1, 0]}, r"labels is of type list of length 2: .* numbers \(N,\), classes"),
        ("detect", {**OBJECTS, "labels": torch.ones(2)}, r"labels is a tensor \(2,\) of float32: .* of whole numbers"),
        ("detect", {**OBJECTS, "labels": torch.tensor([1, 2])}, "labels has the label 2: .* none for the background"),
        ("detect", {**OBJECTS, "area": torch.tensor([1.0])}, r"area is a tensor \(1,\) of float32: .* \(2,\), square"),
        ("detect", {**OBJECTS, "area": torch.tensor([1, torch.inf])}, "area is not finite everywhere"),
        ("detect", {**OBJECTS, "iscrowd": torch.zeros(2)}, r"iscrowd is a tensor \(2,\) of float32: .* whole numbers"),
        ("detect", with_box(3, 1, 3, 4), r"boxes\[1\] is 3, 1, 3, 4: .* x1, y1, x2, y2 .* x1 < x2 .* 6 x 4 pixels"),
        ("detect", with_box(0, 0, 6, 6.5), r"boxes\[1\] is 0, 0, 6, 6.5: expected .* inside its image of 6 x 4 pixels"),
        ("detect", with_box(0, -1, 6, -0.5), r"boxes\[1\] is 0, -1, 6, -0.5: expected"),
        ("detect", with_box(0, 0, torch.nan, 4), r"boxes\[1\] is 0, 0, nan, 4: expected"),
        ("detect", with_box(0, 0, torch.inf, 4), r"boxes\[1\] is 0, 0, inf, 4: expected"),
        ("mask", OBJECTS, "the target has no masks: expected boxes, labels, masks, it has boxes, labels"),
        ("mask", {**OBJECTS, "masks": MASKS[0]}, r"masks is a tensor \(4, 6\) of bool: .* \(2, 4, 6\), bool, or 0"),
        ("mask", {**OBJECTS, "masks": MASKS.float()}, r"masks is a tensor \(2, 4, 6\) of float32: .* whole numbers"),
        ("panoptic", {"semantic": LABELS}, "the target has no labels and no masks: expected labels, masks, it has"),
        ("panoptic", {**SEGMENTS, "masks": MASKS & ~MASKS[1]}, r"masks\[1\] is empty: expected a pixel at least"),
        ("panoptic", {**SEGMENTS, "masks": MASKS | MASKS[:1]}, "masks overlap: expected each pixel in one segment"),
    ],
)  # fmt: skip
def test_a_wrong_target_is_named(task: str, target: Any, message: str) -> None:
    options: dict[str, Any] = {"task": "detect" if task == "mask" else task, "masks": task in ("mask", "panoptic")}
    with pytest.raises(ItemError, match=rf"^the training set \(Items\), item 0: {message}"):
        scenes((PIXELS, target), **options)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS.float(), r"the image has values from .* to 2.*: expected 0 to 1 in a float tensor, or a uint8 tensor"),
        (PIXELS / 255 - 0.5, "the image has values from -0.46.* to 0.49.*: expected 0 to 1"),
        (torch.full((3, 4, 6), torch.nan), "the image has values from nan to nan: expected 0 to 1"),
        (
            PIXELS[:1],
            r"the image is a tensor \(1, 4, 6\) of uint8: expected a PIL image, or a uint8 tensor \(3, H, W\)",
        ),
    ],
)
def test_a_wrong_image_of_a_scene_is_named(image: Any, message: str) -> None:
    with pytest.raises(ItemError, match=rf"^the training set \(Items\), item 0: {message}"):
        scenes((image, OBJECTS))


# Datasets


def test_two_datasets_are_named_by_their_types() -> None:
    pair = Items((PICTURE, 0)), Stream()
    assert name_of(pair) == "(Items, Stream)" and pair_of(list(pair)) == pair
    assert name_of("shapes") == "shapes"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Items((PICTURE, 0)), r"the data is of type Items: expected a name, a folder, or two .* \(train_set, val"),
        ((Items((PICTURE, 0)),), "the data is of type tuple of length 1"),
        ([1, 2, 3], "the data is of type list of length 3"),
        (None, "the data is of type NoneType"),
    ],
)  # fmt: skip
def test_other_than_two_datasets_is_refused(data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pair_of(data)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), r"^the training set \(Stream\) is not map-style: expected a dataset with __len__ and __getitem__"),
        (3, r"^the training set \(int\) is not map-style"),
        (Dataset(), r"^the training set \(Dataset\) is not map-style"),
        (Items(), r"^the training set \(Items\) is empty: expected at least one item"),
        ([(PICTURE, 0)], r"\(list\) has no classes: set the names by label, dataset.classes = \['cat', 'dog'\]"),
        (Items((PICTURE, 0), classes="cat"), r"has the classes 'cat': set the names by label"),
        (Items((PICTURE, 0), classes=2), r"has the classes 2: set the names by label"),
        (Items((PICTURE, 0), classes=[]), r"has the classes \[\]: set the names by label"),
        (Items((PICTURE, 0), classes=[0, 1]), r"has the classes \[0, 1\]: set the names by label"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        OwnImages(dataset, "training", arrays, 4)


def test_panoptic_asks_which_classes_are_countable() -> None:
    with pytest.raises(UserError, match=r"\(Items\) has no things: set which classes are countable, dataset.things ="):
        scenes((PIXELS, SEGMENTS), task="panoptic", masks=True, things=())


def test_what_json_cannot_hold_is_made_plain() -> None:
    attributes = {"classes": np.array(["cat", "dog"]), "things": np.array([True, False]), "category_ids": np.arange(2)}
    dataset = scenes((PIXELS, SEGMENTS), task="panoptic", masks=True, **attributes)
    values = [*dataset.classes, *dataset.things, *dataset.category_ids]
    assert [type(value) for value in values] == [str, str, bool, bool, int, int]


def test_processes_that_are_spawned_get_a_copy() -> None:
    dataset = pickle.loads(pickle.dumps(images((PIXELS, 1))))
    np.testing.assert_array_equal(dataset[0][0], PICTURE)


def test_an_error_in_a_loading_process_is_as_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)  # for processes that have ended
    dataset = scenes((PIXELS, OBJECTS), (PIXELS, {"boxes": BOXES}))
    says = r"^the training set \(Items\), item 1: the target has no labels: expected boxes, labels, it has boxes$"
    with pytest.raises(ItemError, match=says):
        list(DataLoader(dataset, 2, num_workers=1, collate_fn=collate))
    gc.collect()  # the error's traceback keeps the process alive


def test_an_error_of_the_dataset_itself_stays_as_it_is() -> None:
    class Broken(Items):
        def __getitem__(self, index: int) -> Any:
            raise KeyError("a bug of the caller's")

    with pytest.raises(KeyError, match="a bug of the caller's"):
        OwnImages(Broken((PICTURE, 0)), "training", arrays, 4)
