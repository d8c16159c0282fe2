"""Generated scenes: reproducible, balanced, and their labels, boxes and masks true of their pixels."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vankit.data.shapes import CLASSES, SPLITS, Scene, Shapes, render_scene
from vankit.errors import UserError

SIZES = st.integers(16, 96) | st.tuples(st.integers(16, 96), st.integers(16, 96))


def same(a: Scene, b: Scene) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("image", "labels", "boxes", "masks"))


@settings(max_examples=80)
@given(st.integers(0, 2**32 - 1), st.sampled_from(SPLITS), SIZES, st.integers(1, 8), st.integers(0, 3))
def test_boxes_masks_and_labels_agree(
    index: int, split: str, size: int | tuple[int, int], objects: int, seed: int
) -> None:
    scene = render_scene(index, split, size, objects, seed)
    height, width = (size, size) if isinstance(size, int) else size
    n = len(scene.labels)
    assert 1 <= n <= objects
    assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.uint8)
    assert (scene.masks.shape, scene.masks.dtype) == ((n, height, width), bool)
    assert (scene.boxes.shape, scene.boxes.dtype, scene.labels.dtype) == ((n, 4), np.float32, np.int64)
    assert scene.masks.sum(axis=0).max() <= 1
    assert 0 <= scene.labels.min() <= scene.labels.max() < len(CLASSES)
    for mask, box in zip(scene.masks, scene.boxes, strict=True):
        y, x = np.nonzero(mask)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_a_scene_depends_on_its_arguments_and_on_nothing_else() -> None:
    base = render_scene(7)
    render_scene(8)
    np.random.seed(1)
    assert same(base, render_scene(7))
    for other in (render_scene(17), render_scene(7, "val"), render_scene(7, "test"), render_scene(7, seed=1)):
        assert not np.array_equal(base.image, other.image)


def test_splits_seeds_and_indices_never_share_a_picture() -> None:
    pictures = [
        render_scene(index, split, 16, seed=seed).image.tobytes()
        for index in range(100)
        for split in SPLITS
        for seed in (0, 1)
    ]
    assert len(set(pictures)) == len(pictures)


# Area over area of the bounding box, worked out by geometry: a wrong or rotated outline shows here.
FILL = {"circle": np.pi / 4, "ring": np.pi / 4 * (1 - 0.56**2)}


@pytest.mark.parametrize("name", FILL)
def test_area_of_round_shapes(name: str) -> None:
    for turn in range(5):
        scene = render_scene(CLASSES.index(name) + 10 * turn, size=256)
        x1, y1, x2, y2 = scene.boxes[0]
        assert scene.masks[0].sum() / ((x2 - x1) * (y2 - y1)) == pytest.approx(FILL[name], abs=0.02)


@pytest.mark.parametrize("name", ["square", "triangle", "cross"])
def test_polygon_scale_is_the_circumscribed_circle(name: str) -> None:
    for turn in range(20):
        mask = render_scene(CLASSES.index(name) + 10 * turn, size=128).masks[0]
        y, x = np.nonzero(mask)
        spread = np.hypot(x[:, None] - x[None, ::7], y[:, None] - y[None, ::7]).max()
        # A triangle is the smallest for its circle: its sides are 0.755 of the diameter about its box's centre.
        assert 0.55 * 128 * 0.755 - 2 <= spread <= 0.9 * 128 + 1


def test_one_object_fills_its_mask_and_leaves_the_background() -> None:
    for index in range(50):
        scene = render_scene(index, size=96)
        inside = scene.image[scene.masks[0]].mean(axis=0)
        outside = scene.image[~scene.masks[0]].mean(axis=0)
        assert np.abs(inside - outside).max() > 40


def test_later_objects_cover_earlier_ones_and_hidden_ones_are_left_out() -> None:
    scenes = [render_scene(index, size=48, objects=12) for index in range(60)]
    counts = [len(scene.labels) for scene in scenes]
    assert min(counts) < 12
    assert max(counts) >= 8


def test_the_number_of_objects_covers_its_range() -> None:
    counts = {len(render_scene(index, size=256, objects=(1, 3)).labels) for index in range(60)}
    assert counts == {1, 2, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": -1}, "index -1 is out of range"),
        ({"index": 2**32}, "out of range"),
        ({"index": 0, "seed": -1}, "seed -1 is out of range"),
        ({"index": 0, "split": "training"}, "expected one of train, val, test"),
        ({"index": 0, "size": 8}, "at least 16 pixels"),
        ({"index": 0, "size": (64, 15)}, "at least 16 pixels"),
        ({"index": 0, "objects": 0}, "objects 0 is not a count"),
        ({"index": 0, "objects": (3, 2)}, "low <= high"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        render_scene(**options)


def test_dataset_items_are_the_scenes_and_balanced() -> None:
    data = Shapes("val", length=40, size=32, seed=3)
    assert len(data) == 40
    assert data.classes == list(CLASSES)
    assert len(set(CLASSES)) == 10
    items = list(data)
    assert np.bincount([label for _, label in items]).tolist() == [4] * 10
    for index in (0, 13, 39):
        scene = render_scene(index, "val", 32, seed=3)
        assert isinstance(items[index][0], Image.Image)
        np.testing.assert_array_equal(np.asarray(items[index][0]), scene.image)
        assert items[index][1] == scene.labels[0]


@pytest.mark.parametrize("index", [-1, 40])
def test_dataset_index_out_of_range(index: int) -> None:
    with pytest.raises(IndexError, match="expected 0 to 39"):
        Shapes(length=40)[index]


def test_dataset_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(UserError, match="at least 1 image"):
        Shapes(length=0)
    with pytest.raises(UserError, match="expected one of train"):
        Shapes("traim")


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_dataset_pickles_with_its_transform_and_loads_in_workers() -> None:
    data = Shapes(length=20, size=16, transform=to_tensor)
    copy = pickle.loads(pickle.dumps(data))
    loader = torch.utils.data.DataLoader(copy, batch_size=10, num_workers=1)
    images, labels = zip(*loader, strict=True)
    assert torch.equal(torch.cat(images), torch.stack([image for image, _ in data]))
    assert torch.cat(labels).tolist() == [*range(10)] * 2
