"""Tiles: which there are, what of several views is one object, and that small objects are found."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import batched_nms

import vankit
from vankit.errors import UserError
from vankit.prediction.tiles import find_in_tiles, places_of_tiles, suppress
from vankit.tasks.detect import box_areas, match_objects
from vankit.tasks.metrics import DetectionMeasure
from vankit.tasks.results import Detections

Checkpoint = Callable[[str, str], Path]


@given(
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    tile=st.integers(32, 200),
    overlap=st.floats(0, 0.9),
)
def test_tiles_cover_the_picture_and_overlap(size: tuple[int, int], tile: int, overlap: float) -> None:
    places = list(places_of_tiles(size, tile, overlap))
    assert len(set(places)) == len(places)
    for axis in (0, 1):
        spans = sorted({(place[axis], place[axis + 2]) for place in places})
        assert spans[0][0] == 0 and spans[-1][1] == size[axis]
        assert {end - start for start, end in spans} == {min(tile, size[axis])}
        assert all(end - start >= tile * overlap - 1e-9 for (_, end), (start, _) in pairwise(spans))
    assert len(places) == len({p[0] for p in places}) * len({p[1] for p in places})


BOX = st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))


@given(st.lists(st.tuples(BOX, st.integers(0, 2), st.sampled_from([0.1, 0.2, 0.5, 0.5, 0.9])), max_size=30))
def test_suppression_is_torchvisions(finds: list[tuple[tuple[int, ...], int, float]]) -> None:
    corners = np.array([box for box, _, _ in finds], np.float32).reshape(-1, 4)
    boxes = np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1)
    labels = np.array([label for _, label, _ in finds], np.int64)
    scores = np.array([score for _, _, score in finds], np.float32)
    n = len(finds)
    kept = suppress(boxes, labels, scores, np.arange(n), np.zeros(n, bool))
    expected = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), 0.5)
    # of equal scores torchvision's order is that of the classes, in the result alone
    assert set(kept.tolist()) == set(expected.tolist())
    assert (np.diff(scores[kept]) <= 0).all()


class Seen:
    """A detector that knows the objects of a picture, and finds those parts of them that lie in what it is shown.

    Args:
        objects: (box, label); the picture shows object i in the grey value i + 1.
        smallest: share of the shown side below which it finds nothing, as a network that makes pictures smaller.
    """

    def __init__(self, size: tuple[int, int], objects: list[tuple[tuple[int, ...], int]], smallest: float = 0) -> None:
        self.objects, self.smallest = objects, smallest
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        for i, ((x1, y1, x2, y2), _) in enumerate(objects):
            pixels[y1:y2, x1:x2] = i + 1
        self.picture = Image.fromarray(pixels)
        self.shown: list[tuple[int, int]] = []

    def __call__(self, part: Image.Image) -> Detections:
        self.shown.append(part.size)
        values = np.asarray(part)[..., 0]
        masks = [values == i + 1 for i in range(len(self.objects))]
        found = [i for i, mask in enumerate(masks) if mask.any()]
        boxes = np.array([_box(masks[i]) for i in found], np.float32).reshape(-1, 4)
        large = [i for i, box in enumerate(boxes) if (box[2:] - box[:2]).max() >= self.smallest * max(part.size)]
        # a part is as sure as a whole here, if not surer
        scores = np.array([0.9 - 0.3 * masks[found[i]].mean() for i in large], np.float32)
        order = [large[i] for i in np.argsort(-scores, kind="stable")]
        return Detections(
            "x", ["a", "b"], boxes[order], np.array([self.objects[found[i]][1] for i in order], np.int64),
            -np.sort(-scores), np.array([masks[found[i]] for i in order], bool).reshape(-1, *values.shape),
        )  # fmt: skip


def _box(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_every_object_is_found_once_and_whole() -> None:
    """Small ones in tiles alone, also on the tiles' edges; one larger than a tile in the whole picture alone."""
    objects = [((60 * i + 3, 80 * j + 5, 60 * i + 15, 80 * j + 16), (i + j) % 2) for i in range(8) for j in range(4)]
    objects += [((20, 340, 460, 460), 0), ((100, 470, 112, 479), 1)]
    seen = Seen((500, 480), objects, smallest=0.08)
    assert len(seen(seen.picture).boxes) == 1
    found = find_in_tiles(seen.picture, seen, 128, 0.2)
    assert sorted(map(tuple, found.boxes.astype(int).tolist())) == sorted(box for box, _ in objects)
    assert (np.diff(found.scores) <= 0).all()
    values = np.asarray(seen.picture)[..., 0]
    assert found.masks is not None
    for box, label, mask in zip(found.boxes, found.labels, found.masks, strict=True):
        i = objects.index((tuple(box.astype(int).tolist()), int(label)))
        np.testing.assert_array_equal(mask, values == i + 1)


def test_a_part_gives_way_to_the_whole_however_sure_it_is() -> None:
    whole, part, other = [100, 10, 160, 50], [100, 10, 128, 50], [120, 10, 128, 50]
    boxes = np.array([whole, part, other], np.float32)
    labels, scores = np.zeros(3, np.int64), np.array([0.4, 0.9, 0.8], np.float32)
    views, cut = np.array([0, 1, 1]), np.array([False, True, True])
    assert suppress(boxes, labels, scores, views, cut).tolist() == [0]
    assert suppress(boxes, np.array([1, 0, 0]), scores, views, cut).tolist() == [1, 2, 0]  # of another class
    assert suppress(boxes, labels, scores, np.zeros(3, np.int64), cut).tolist() == [1, 2, 0]  # of one view


def test_a_part_is_kept_where_no_view_has_the_whole() -> None:
    seen = Seen((400, 100), [((90, 20, 260, 80), 0)])
    found = find_in_tiles(seen.picture, lambda part: seen(part) if part.width <= 128 else seen(part).above(1), 128, 0.2)
    assert sorted(found.boxes[:, [0, 2]].tolist()) == [
        [102, 230],
        [204, 260],
    ]  # [90, 128] lies mostly in the larger part


def test_a_small_whole_object_does_not_take_a_large_part_with_it() -> None:
    boxes = np.array([[10, 10, 20, 20], [0, 0, 128, 100]], np.float32)
    kept = suppress(
        boxes, np.zeros(2, np.int64), np.array([0.9, 0.5], np.float32), np.arange(2), np.array([False, True])
    )
    assert kept.tolist() == [0, 1]


def test_a_picture_that_fits_in_a_tile_is_looked_at_once() -> None:
    seen = Seen((128, 90), [((10, 10, 30, 30), 1)])
    found = find_in_tiles(seen.picture, seen, 128)
    assert seen.shown == [(128, 90)] and len(found.boxes) == 1
    empty = Seen((300, 300), [])
    assert find_in_tiles(empty.picture, empty, 128).boxes.shape == (0, 4)
    assert len(empty.shown) == 10


def test_detectors_alone_have_tiles(dense_checkpoint: Checkpoint) -> None:
    segmenter = dense_checkpoint("semantic_fpn", "segment")
    for options, says in (
        ({"tile": 128}, "tile is 128, which is only for detectors: .* is a semantic_fpn"),
        ({"tile": 16}, "tile is 16, expected a whole number of pixels, 32 or more"),
        ({"tile": 64.5}, "tile is 64.5, expected a whole number"),
        ({"tile": 64, "overlap": 1}, r"overlap is 1, expected 0 to 0\.9"),
        ({"overlap": 0.5}, "overlap is that of tiles: pass `tile` too, such as 640"),
    ):
        with pytest.raises(UserError, match=says):
            vankit.DensePredictor(segmenter, engine="torch", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", ["retinanet", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_the_predictor_looks_at_tiles(head: str, dense_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = vankit.DensePredictor(dense_checkpoint(head, "detect"), engine="torch", score=0.0, tile=64)
    sizes: list[tuple[int, ...]] = []
    run: Any = predictor._run

    def note(picture: Any, score: float) -> Any:
        sizes.append(picture.shape[:2])
        return run(picture, score)

    monkeypatch.setattr(predictor, "_run", note)
    picture = Image.effect_noise((110, 60), 60).convert("RGB")
    found = predictor(picture)
    assert sizes == [(60, 110), (60, 64), (60, 64)]
    assert isinstance(found, Detections) and len(found.boxes) and found.boxes[:, 2].max() > 64
    predictor.score = float(np.median(found.scores))
    results, best = predictor.results(np.asarray(picture)), predictor(picture)
    sure = results["scores"] >= predictor.score
    assert 0 < sure.sum() < len(sure)
    for name, values in results.items():
        np.testing.assert_array_equal(values[sure], getattr(best, name))


def test_what_is_less_sure_takes_no_part_of_what_is_surer() -> None:
    boxes = np.array([[100, 10, 160, 50], [100, 10, 128, 50]], np.float32)
    views, cut = np.arange(2), np.array([False, True])
    for sure, score, kept in ((0.3, 0.06, [1, 0]), (0.3, 0.4, [0]), (0.0, 0.06, [0])):
        scores = np.array([score, 0.9], np.float32)
        assert suppress(boxes, np.zeros(2, np.int64), scores, views, cut, sure).tolist() == kept


def test_validate_measures_with_the_same_tiles(dense_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def predictor(*_: Any, **options: Any) -> Any:
        asked.update(options)
        raise Stop

    monkeypatch.setattr("vankit.prediction.scenes.DensePredictor", predictor)
    with pytest.raises(Stop):
        vankit.validate("shapes", checkpoint=dense_checkpoint("retinanet", "detect"), tile=64, overlap=0.5)
    assert (asked["tile"], asked["overlap"]) == (64, 0.5)


class Squares:
    """Red and blue squares of some 20 pixels on grey noise, with their boxes."""

    classes = ("red", "blue")

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image, target = self.draw([self.seed, index], 128, 4)
        return torch.from_numpy(image).permute(2, 0, 1), target

    @staticmethod
    def draw(seed: list[int], side: int, count: int) -> tuple[NDArray[np.uint8], dict[str, torch.Tensor]]:
        rng = np.random.default_rng(seed)
        image = rng.normal(120, 12, (side, side, 3)).clip(0, 255).astype(np.uint8)
        boxes, labels = [], rng.integers(0, 2, count)
        for cell, label in zip(rng.permutation((side // 32) ** 2)[:count], labels, strict=True):
            width = int(rng.integers(18, 24))
            x, y = (
                32 * place + int(rng.integers(0, 32 - width)) for place in (cell % (side // 32), cell // (side // 32))
            )
            image[y : y + width, x : x + width] = ((230, 40, 40), (40, 60, 230))[label]
            boxes.append([x, y, x + width, y + width])
        return image, {"boxes": torch.tensor(boxes), "labels": torch.from_numpy(labels)}


def as_coco(root: Path, image: NDArray[np.uint8], boxes: NDArray[np.float32], labels: NDArray[np.int64]) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    Image.fromarray(image).save(root / "val2017" / "1.png")
    corners = zip(boxes[:, :2].tolist(), (boxes[:, 2:] - boxes[:, :2]).tolist(), labels.tolist(), strict=True)
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": image.shape[1], "height": image.shape[0]}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(Squares.classes)],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": label, "bbox": [*corner, *size], "area": size[0] * size[1],
             "iscrowd": 0}
            for i, (corner, size, label) in enumerate(corners)
        ],
    }  # fmt: skip
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
@pytest.mark.usefixtures("few_proposals")
def test_small_objects_of_a_large_picture_are_found(tmp_path: Path) -> None:
    """A network trained at 128 pixels a side sees a square of 20 in a picture of 384 as one of 7."""
    config = replace(
        vankit.recipe("short", "van_b0.cifar10", "detect"), epochs=1, batch_size=2, lr_batch=2, lr=1e-3, workers=0,
        warmup_iterations=5, short_sides=(128,), long_side=128, batch_norm="frozen",
    )  # fmt: skip
    data: Any = (Squares(40, 1), Squares(1, 2))
    run = vankit.train(data, "van_b0.cifar10", config, tmp_path / "run", task="detect", head="faster_rcnn")
    image, target = Squares.draw([3], 384, 30)
    boxes, labels = target["boxes"].numpy().astype(np.float32), target["labels"].numpy()
    truth = Detections("x", list(Squares.classes), boxes, labels, np.ones(30, np.float32))
    root = as_coco(tmp_path / "data", image, boxes, labels)
    missed, ap = {}, {}
    for tile in (None, 128):
        predictor = vankit.DensePredictor(run.last, engine="torch", tile=tile)
        found = predictor(image)
        assert isinstance(found, Detections)
        missed[tile] = match_objects(truth, np.zeros(30, bool), found)[0].sum()
        measure = DetectionMeasure(list(Squares.classes))
        crowd_and_area = {"iscrowd": np.zeros(30, bool), "area": box_areas(boxes)}
        measure.add({**vars(truth), **crowd_and_area}, predictor.results(image))
        ap[tile] = measure.compute()["box AP50"]
        report = vankit.validate(root, checkpoint=run.last, engine="torch", workers=0, tile=tile)
        assert report.measures["box AP50"] == pytest.approx(ap[tile])
    assert missed[None] >= 29 and ap[None] < 0.05
    assert missed[128] <= 3 and ap[128] > 0.3  # after 20 steps
