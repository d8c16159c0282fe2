"""Measures against hand computations, the field's own tools, and the definitions written out pixel by pixel."""

import contextlib
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchmetrics.detection import PanopticQuality

from vankit.errors import UserError
from vankit.tasks.metrics import DetectionMeasure, PanopticMeasure, SegmentationMeasure

pytest.importorskip("faster_coco_eval")

CLASSES = ["cat", "dog", "bird"]
SIDE = 160
COCO_NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
Pair = tuple[dict[str, Any], dict[str, Any]]


def approx(expected: Any, tolerance: float = 1e-9) -> Any:
    return pytest.approx(expected, abs=tolerance, rel=0, nan_ok=True)


def ellipses(boxes: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    x1, y1, x2, y2 = boxes.T[:, :, None, None]
    return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1  # (N, H, W)


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    sides = rng.choice([16, 60, 130], (count, 1)) * rng.uniform(0.8, 1.2, (count, 2))
    corners = rng.uniform(0, SIDE - np.minimum(sides, SIDE - 1))
    return np.concatenate([corners, np.minimum(corners + sides, SIDE)], 1)


def random_image(rng: np.random.Generator) -> Pair:
    count = rng.integers(0, 7)
    boxes = random_boxes(rng, count)
    labels = rng.integers(0, len(CLASSES), count)
    near = np.repeat(boxes, 2, 0)  # two detections of every object, more or less off, and three of nothing
    scale = (near[:, 2:] - near[:, :2]).repeat(2, 1).reshape(-1, 2, 2).transpose(0, 2, 1).reshape(-1, 4)
    near = near + rng.normal(0, 0.06, near.shape) * scale
    found = np.concatenate([near, random_boxes(rng, 3)])
    found_labels = np.concatenate([labels.repeat(2), rng.integers(0, len(CLASSES), 3)])
    found_labels = np.where(rng.random(len(found)) < 0.1, 0, found_labels)
    truth = {"boxes": boxes, "labels": labels, "masks": ellipses(boxes), "iscrowd": rng.random(count) < 0.2}
    if rng.random() < 0.5:  # as COCO's, an annotated area is neither the box's nor the mask's
        truth["area"] = rng.uniform(100, 12_000, count)
    scores = rng.random(len(found))
    return truth, {"boxes": found, "labels": found_labels, "scores": scores, "masks": ellipses(found)}


def reference(pairs: list[Pair], kind: str) -> list[float]:
    """COCO's first six numbers by pycocotools, NaN for its -1."""
    pytest.importorskip("pycocotools")
    from pycocotools import mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def annotation(image: int, objects: dict[str, Any], i: int) -> dict[str, Any]:
        x1, y1, x2, y2 = map(float, objects["boxes"][i])
        row = {"image_id": image, "category_id": int(objects["labels"][i]) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        if "masks" in objects:
            row["segmentation"] = mask.encode(np.asfortranarray(objects["masks"][i].astype(np.uint8)))
        return row

    truths, results = [], []
    for image, (truth, result) in enumerate(pairs, 1):
        for i in range(len(truth["labels"])):
            row = annotation(image, truth, i) | {"id": len(truths) + 1, "iscrowd": int(truth["iscrowd"][i])}
            row["area"] = float(truth["area"][i]) if "area" in truth else float(mask.area(row["segmentation"]))
            truths.append(row)
        for i in range(len(result["labels"])):
            row = annotation(image, result, i) | {"score": float(result["scores"][i])}
            row.pop("bbox" if kind == "segm" else "segmentation", None)
            results.append(row)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i + 1, "height": SIDE, "width": SIDE} for i in range(len(pairs))],
        "annotations": truths,
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [np.nan if value == -1 else value for value in evaluation.stats[:6].tolist()]


def measured(pairs: list[Pair], masks: bool = True) -> DetectionMeasure:
    measure = DetectionMeasure(CLASSES, masks)
    for truth, result in pairs:
        measure.add(truth, result)
    return measure


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_pycocotools(seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(seed)
    pairs = [random_image(rng) for _ in range(12)]
    found = measured(pairs).compute()
    assert capsys.readouterr() == ("", "")
    assert list(found) == [f"{kind} {name}" for kind in ("box", "mask") for name in COCO_NAMES]
    expected = reference(pairs, "bbox") + reference(pairs, "segm")
    assert list(found.values()) == approx(expected)
    assert all(0 < value < 1 for value in expected)  # so that the comparison says something


def test_one_class_of_more_than_a_hundred_detections_is_cut_as_by_pycocotools() -> None:
    rng = np.random.default_rng(7)
    truth = {"boxes": random_boxes(rng, 40), "labels": np.zeros(40, int), "iscrowd": np.zeros(40, bool)}
    truth["area"] = rng.uniform(100, 12_000, 40)
    found = np.concatenate([truth["boxes"], random_boxes(rng, 200)])
    result = {"boxes": found, "labels": np.zeros(240, int), "scores": rng.random(240)}
    expected = reference([(truth, result)], "bbox")
    assert 0.05 < expected[0] < 0.6
    assert list(measured([(truth, result)], masks=False).compute().values()) == approx(expected)


def test_a_hundred_detections_of_a_class_count() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    truth = {"boxes": box, "labels": [1]}
    for label, better, expected in ((0, 200, 1.0), (1, 99, 0.01), (1, 100, 0.0)):
        result = {"boxes": np.append(box.repeat(better, 0) + 50, box, 0), "labels": [label] * better + [1]}
        result["scores"] = np.append(np.full(better, 0.9), 0.1)
        assert measured([(truth, result)], masks=False).compute()["box AP"] == approx(expected)


def test_detections_by_hand() -> None:
    # one of two large objects is found at IoU 0.7, that is at 5 of 10 thresholds: precision 1 up to recall 0.5,
    # which are 51 of COCO's 101 recalls; the small object of the other class is found exactly
    truth = {"boxes": np.array([[0.0, 0, 100, 100], [100, 100, 200, 200], [0, 0, 10, 10]]), "labels": [0, 0, 1]}
    result = {"boxes": np.array([[0.0, 0, 100, 70], [0, 0, 10, 10]]), "labels": [0, 1], "scores": [0.5, 0.6]}
    measure = measured([(truth, result)], masks=False)
    half = 51 / 101
    expected = {"AP": (half / 2 + 1) / 2, "AP50": (half + 1) / 2, "AP75": 0.5, "APs": 1, "APm": np.nan, "APl": half / 2}
    assert measure.compute() == approx({f"box {name}": value for name, value in expected.items()})
    rows = [("cat", 2, half / 2), ("dog", 1, 1.0), ("bird", 0, np.nan)]
    for row, (name, objects, ap) in zip(measure.per_class(), rows, strict=True):
        assert row == {"class": name, "objects": objects, "box AP": approx(ap)}


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong() -> None:
    boxes = np.array([[0.0, 0, 100, 100], [100, 0, 150, 50]])
    truth = {"boxes": boxes, "labels": [0, 0], "masks": ellipses(boxes)}
    found = np.array([[20.0, 20, 60, 60], [30, 30, 80, 80], [100, 0, 150, 50]])
    result = {"boxes": found, "labels": [0, 0, 0], "scores": [0.9, 0.8, 0.7], "masks": ellipses(found)}
    assert measured([(truth, result)]).compute()["mask AP"] < 0.5
    crowded = measured([(truth | {"iscrowd": np.array([True, False])}, result)])
    assert crowded.compute()["box AP"] == approx(1.0)
    assert crowded.compute()["mask AP"] == approx(1.0)
    assert crowded.per_class()[0] == {"class": "cat", "objects": 1, "box AP": approx(1.0), "mask AP": approx(1.0)}


def test_the_area_is_the_mask_s_unless_annotated() -> None:
    boxes = np.array([[0.0, 0, 34, 34]])  # medium as a box of 34², small as an ellipse of 908
    pair = {"boxes": boxes, "labels": [0], "masks": ellipses(boxes)}, {"boxes": boxes, "labels": [0], "scores": [1.0]}
    pair[1]["masks"] = pair[0]["masks"]
    annotated = pair[0] | {"area": [1e4]}
    for truth, masks, name in ((pair[0], True, "APs"), (pair[0], False, "APm"), (annotated, True, "APl")):
        found = measured([(truth, pair[1])], masks).compute()
        expected = {key: 1 if key == name else np.nan for key in ("APs", "APm", "APl")}
        assert {key: found[f"box {key}"] for key in expected} == approx(expected)


NOTHING = {"boxes": np.zeros((0, 4)), "labels": [], "scores": [], "masks": np.zeros((0, SIDE, SIDE), bool)}


def test_nothing_found_is_0_and_nothing_to_find_is_nan() -> None:
    box = np.array([[5.0, 5, 60, 60]])
    one = {"boxes": box, "labels": [2], "scores": [0.5], "masks": ellipses(box)}
    nothing_found = measured([(one, NOTHING)])
    assert {nothing_found.compute()[key] for key in ("box AP", "box AP50", "mask AP", "mask APm")} == {0.0}
    assert [row["mask AP"] for row in nothing_found.per_class()] == approx([np.nan, np.nan, 0])
    for pairs in ([], [(NOTHING, NOTHING)], [(NOTHING, one)]):
        assert list(measured(pairs).compute().values()) == approx([np.nan] * 12)
        assert measured(pairs).per_class()[2] == {
            "class": "bird", "objects": 0, "box AP": approx(np.nan), "mask AP": approx(np.nan)
        }  # fmt: skip


def test_detections_of_several_processes_and_of_another_order_measure_the_same() -> None:
    rng = np.random.default_rng(11)
    pairs = [random_image(rng) for _ in range(9)]
    whole = measured(pairs)
    first, second = measured(pairs[:4]), measured(pairs[4:])
    before = first.compute()
    first.merge(pickle.loads(pickle.dumps(second.state())))
    assert first.compute() == approx(whole.compute(), 1e-12)
    assert first.compute() != before
    for row, expected in zip(first.per_class(), whole.per_class(), strict=True):
        assert row.pop("class") == expected.pop("class")
        assert row == approx(expected)
    second.state().clear()  # a state is no view
    assert second.compute() == approx(measured(pairs[4:]).compute(), 1e-12)
    assert measured(pairs[::-1]).compute() == approx(whole.compute(), 1e-12)
    second.add(*pairs[0])
    assert second.compute() == approx(measured([*pairs[4:], pairs[0]]).compute(), 1e-12)


def test_masks_are_kept_small() -> None:
    boxes = np.array([[10.0, 10, 150, 150]]).repeat(50, 0)
    one = {"boxes": boxes, "labels": [0] * 50, "scores": [0.5] * 50, "masks": ellipses(boxes)}
    assert len(pickle.dumps(measured([(one, one)]).state())) < one["masks"].nbytes / 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.5, 0.5]}, r"scores of the result are \(2,\): expected .* with the 1 objects"),
        ({"boxes": [0.0, 0, 1, 1]}, r"boxes of the result are \(4,\): expected \(N, 4\)"),
        ({"boxes": [[0.0, 0, np.nan, 1]]}, "boxes of the result are not all finite"),
        ({"labels": [3]}, "labels of the result are 3 to 3: expected 0 to 2"),
        ({"masks": np.ones((1, 8, 9), bool)}, r"masks of the truth are \(8, 8\) pixels, those of the result \(8, 9\)"),
        ({"scores": None}, r"scores of the result are \(\)"),
    ],
)
def test_unusable_detections_are_named(change: dict[str, Any], message: str) -> None:
    one = {"boxes": [[0.0, 0, 4, 4]], "labels": [0], "scores": [0.5], "masks": np.ones((1, 8, 8), bool)}
    measure = DetectionMeasure(CLASSES, masks=True)
    measure.add(one, one)
    with pytest.raises(UserError, match=message):
        measure.add(one, one | change)
    assert len(measure.state()) == 1
    with pytest.raises(UserError, match="truth has no masks: expected boxes, labels, masks"):
        measure.add({"boxes": [[0.0, 0, 4, 4]], "labels": [0]}, one)


def random_maps(seed: int, count: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    truths = rng.integers(0, 4, (count, 12, 10))
    predictions = np.where(rng.random(truths.shape) < 0.6, truths, rng.integers(0, 4, truths.shape))
    return list(zip(np.where(rng.random(truths.shape) < 0.2, 255, truths), predictions, strict=True))


def segmented(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int = 4) -> SegmentationMeasure:
    measure = SegmentationMeasure([f"class {i}" for i in range(classes)])
    for truth, predicted in pairs:
        measure.add(truth, predicted)
    return measure


def test_segmentation_by_hand() -> None:
    truth = np.array([[0, 0, 0, 1], [1, 255, 255, 0]], np.uint8)
    predicted = np.array([[0, 0, 1, 1], [2, 3, 0, 0]])
    measure = segmented([(truth, predicted)], classes=5)
    # classes 3 and 4 are in neither; 2 is in the prediction alone
    assert measure.compute() == approx({"mIoU": (3 / 4 + 1 / 3 + 0) / 3, "aAcc": 4 / 6, "mAcc": (3 / 4 + 1 / 2) / 2})
    rows = [(3 / 4, 3 / 4, 4), (1 / 3, 1 / 2, 2), (0, np.nan, 0), (np.nan, np.nan, 0), (np.nan, np.nan, 0)]
    for i, (row, numbers) in enumerate(zip(measure.per_class(), rows, strict=True)):
        assert list(row) == ["class", "IoU", "accuracy", "pixels"]
        assert row.pop("class") == f"class {i}"
        assert list(row.values()) == approx(list(numbers))


@pytest.mark.parametrize("seed", range(3))
def test_segmentation_is_that_of_torchmetrics(seed: int) -> None:
    pairs = random_maps(seed)
    truth, predicted = (torch.from_numpy(np.stack(maps)) for maps in zip(*pairs, strict=True))
    measure = segmented(pairs)
    found = measure.compute()
    jaccard = MulticlassJaccardIndex(4, average="none", ignore_index=255)(predicted, truth)
    assert [row["IoU"] for row in measure.per_class()] == approx(jaccard.tolist(), 1e-6)
    assert found["mIoU"] == approx(jaccard.mean().item(), 1e-6)
    for name, average in (("aAcc", "micro"), ("mAcc", "macro")):
        accuracy = MulticlassAccuracy(4, average=average, ignore_index=255)(predicted, truth)
        assert found[name] == approx(accuracy.item(), 1e-6)


def test_maps_of_several_processes_measure_the_same() -> None:
    pairs = random_maps(5, 6)
    first, second = segmented(pairs[:2]), segmented(pairs[:1:-1])
    first.merge(pickle.loads(pickle.dumps(second.state())))
    assert first.compute() == segmented(pairs).compute()
    second.state()[:] = 0  # a state is no view
    assert second.compute() == segmented(pairs[2:]).compute()


def test_no_pixels_measure_nan() -> None:
    nan = {"mIoU": np.nan, "aAcc": np.nan, "mAcc": np.nan}
    assert segmented([]).compute() == approx(nan)
    assert segmented([(np.full((2, 3), 255), np.zeros((2, 3), int))]).compute() == approx(nan)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"truth is \(2, 3\), prediction \(3, 2\)"),
        (np.full((2, 2), 255), np.full((2, 2), 4), "predicted labels are 4 to 4: expected 0 to 3"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "predicted labels are -1 to -1: expected 0 to 3"),
        (np.full((2, 2), 4), np.zeros((2, 2), int), "labels of the truth are 4 to 4: expected 0 to 3"),
    ],
)
def test_unusable_maps_are_named(truth: np.ndarray, predicted: np.ndarray, message: str) -> None:
    measure = segmented([])
    with pytest.raises(UserError, match=message):
        measure.add(truth, predicted)
    assert measure.confusion.sum() == 0
    with pytest.raises(UserError, match="256 classes: expected at most 255"):
        segmented([], classes=256)


THINGS = [True, True, False, False]


def panoptic(pairs: list[Pair]) -> PanopticMeasure:
    measure = PanopticMeasure(["cat", "dog", "sky", "grass"], THINGS)
    for truth, result in pairs:
        measure.add(truth, result)
    return measure


def row(*runs: tuple[int, int]) -> np.ndarray:
    """A map of one row from (segment, pixels)."""
    return np.concatenate([np.full(pixels, segment) for segment, pixels in runs])[None]


def test_panoptic_quality_by_hand() -> None:
    truth = {"segments": row((1, 10), (2, 10), (3, 20), (0, 4)), "labels": [0, 0, 2]}
    # one cat of 10 is found by 8 of its pixels, the other by 5, which is half of it; the void is called sky and grass
    result = {"segments": row((1, 8), (0, 2), (2, 5), (3, 5), (3, 20), (3, 1), (4, 3)), "labels": [0, 0, 2, 3]}
    measure = panoptic([(truth, result)])
    # cat: IoU 8 / 10, one FP (5 / 10 is not above half), one FN; sky: 20 / 25; grass lies in void
    cat, sky = {"PQ": 0.8 / 2, "SQ": 0.8, "RQ": 1 / 2}, {"PQ": 0.8, "SQ": 0.8, "RQ": 1.0}
    expected = {name: (cat[name] + sky[name]) / 2 for name in cat}
    expected |= {f"{name} things": value for name, value in cat.items()}
    expected |= {f"{name} stuff": value for name, value in sky.items()}
    assert measure.compute() == approx(expected)
    rows = measure.per_class()
    assert [(row["class"], row["TP"], row["FP"], row["FN"]) for row in rows] == [
        ("cat", 1, 1, 1), ("dog", 0, 0, 0), ("sky", 1, 0, 0), ("grass", 0, 0, 0)
    ]  # fmt: skip
    assert [[row[name] for name in cat] for row in rows] == [
        approx(list(cat.values())), approx([np.nan] * 3), approx(list(sky.values())), approx([np.nan] * 3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "label", "false"),
    [
        ([(1, 6), (0, 6)], 0, 0),  # in the crowd
        ([(1, 6), (0, 6)], 1, 1),  # in a crowd of another class
        ([(0, 3), (1, 6), (0, 3)], 0, 0),  # half crowd, half void
        ([(0, 5), (1, 7)], 0, 0),  # 1 crowd, 4 void, 2 a cat's
        ([(0, 5), (1, 1), (0, 2), (1, 1), (0, 1), (1, 2)], 0, 1),  # half in crowd and void is not more than half
    ],
)
def test_predictions_in_void_and_crowds_are_not_counted(runs: list[tuple[int, int]], label: int, false: int) -> None:
    truth = {"segments": row((1, 6), (0, 4), (2, 2)), "labels": [0, 1], "iscrowd": [True, False]}
    counts = panoptic([(truth, {"segments": row(*runs), "labels": [label]})]).per_class()
    assert sum(row["FP"] for row in counts) == false
    assert counts[0]["FN"] == counts[0]["TP"] == 0
    assert counts[1]["FN"] == 1


def by_definition(pairs: list[Pair]) -> list[tuple[float, int, int, int]]:
    """Sum of IoU, TP, FP and FN per class, from sets of pixels."""
    sums = [[0.0, 0, 0, 0] for _ in THINGS]

    def pixels(map_: np.ndarray, value: int) -> set[tuple[int, ...]]:
        return {place for place in np.ndindex(map_.shape) if map_[place] == value}

    for truth, result in pairs:
        void = pixels(truth["segments"], 0)
        true = [(label, pixels(truth["segments"], i + 1), i) for i, label in enumerate(truth["labels"])]
        unmatched = [(label, pixels(result["segments"], i + 1)) for i, label in enumerate(result["labels"])]
        for label, segment, i in true:
            if truth["iscrowd"][i] or not segment:
                continue
            for found in unmatched:
                seen = found[1] - void
                if found[0] == label and len(seen & segment) / len(seen | segment) > 0.5:
                    sums[label][0] += len(seen & segment) / len(seen | segment)
                    sums[label][1] += 1
                    unmatched.remove(found)
                    break
            else:
                sums[label][3] += 1
        for label, segment in unmatched:
            crowds = [pixels_ for other, pixels_, i in true if other == label and truth["iscrowd"][i]]
            if segment and len(segment & void.union(*crowds)) / len(segment) <= 0.5:
                sums[label][2] += 1
    return [tuple(row) for row in sums]


def cells(rng: np.random.Generator, centres: np.ndarray, side: int) -> np.ndarray:
    places = np.stack(np.mgrid[:side, :side], -1)[:, :, None]  # (side, side, 1, 2)
    return ((places - centres) ** 2).sum(-1).argmin(-1)


def random_panoptic(seed: int, crowds: bool = True, void: bool = True) -> Pair:
    """Cells around points, and the cells of most of those points moved a little."""
    rng = np.random.default_rng(seed)
    side, count = int(rng.integers(1, 12)), int(rng.integers(1, 7))
    centres = rng.uniform(0, side, (count, 2))
    moved = centres + rng.normal(0, 0.4, centres.shape)
    labels = rng.integers(0, len(THINGS), count)
    found_labels = np.where(rng.random(count) < 0.8, labels, rng.integers(0, len(THINGS), count))
    truth = {"segments": cells(rng, centres, side) + 1, "labels": labels, "iscrowd": np.zeros(count, bool)}
    result = {"segments": cells(rng, moved, side) + 1, "labels": found_labels}
    if crowds:
        truth["iscrowd"] = rng.random(count) < 0.25
    if void:
        truth["segments"] = np.where(rng.random((side, side)) < 0.15, 0, truth["segments"])
        truth["segments"][truth["segments"] == rng.integers(1, 9)] = 0
        result["segments"][result["segments"] == rng.integers(1, 9)] = 0
    return truth, result


@settings(max_examples=150)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=3))
def test_panoptic_quality_is_that_of_the_definition(seeds: list[int]) -> None:
    pairs = [random_panoptic(seed) for seed in seeds]
    measure = panoptic(pairs)
    expected = by_definition(pairs)
    for found, (iou, tp, fp, fn) in zip(measure.per_class(), expected, strict=True):
        assert (found["TP"], found["FP"], found["FN"]) == (tp, fp, fn)
        occurs = tp + fp + fn > 0
        assert found["PQ"] == approx(iou / (tp + fp / 2 + fn / 2) if occurs else np.nan)
        assert found["SQ"] == approx((iou / tp if tp else 0) if occurs else np.nan)
        assert found["RQ"] == approx(tp / (tp + fp / 2 + fn / 2) if occurs else np.nan)
    qualities = [iou / (tp + fp / 2 + fn / 2) if tp + fp + fn else np.nan for iou, tp, fp, fn in expected]
    for name, chosen in (("PQ", qualities), ("PQ things", qualities[:2]), ("PQ stuff", qualities[2:])):
        occurring = [quality for quality in chosen if not np.isnan(quality)]
        assert measure.compute()[name] == approx(np.mean(occurring) if occurring else np.nan)


def test_the_random_segmentations_have_every_case() -> None:
    pairs = [random_panoptic(seed) for seed in range(60)]
    sums = np.array(by_definition(pairs))
    assert (sums[:, 1:] >= 5).all()
    predicted = sum(len(np.setdiff1d(result["segments"], 0)) for _, result in pairs)
    assert predicted - sums[:, 1:3].sum() >= 20  # left out because of void or crowds


@pytest.mark.parametrize("seed", range(4))
def test_panoptic_quality_is_that_of_torchmetrics(seed: int) -> None:
    reference_measure = PanopticQuality(
        things={0, 1}, stuffs={2, 3}, allow_unknown_preds_category=True, return_sq_and_rq=True, return_per_class=True
    )
    pairs = []
    for i in range(25):
        truth, result = random_panoptic(1000 * seed + i, crowds=False, void=False)
        rng = np.random.default_rng(i)
        for given_ in (truth, result):  # a stuff class is one segment
            for stuff in (2, 3):
                same = np.flatnonzero(given_["labels"] == stuff) + 1
                if len(same):
                    given_["segments"][np.isin(given_["segments"], same)] = same[0]
        truth["segments"] = np.where(rng.random(truth["segments"].shape) < 0.2, 0, truth["segments"])
        pairs.append((truth, result))
        colours = []
        for given_ in (result, truth):
            label = np.append(99, given_["labels"])[given_["segments"]]  # 99 is void
            colours.append(torch.from_numpy(np.stack([label, given_["segments"]], -1))[None])
        reference_measure.update(*colours)
    measure = panoptic(pairs)
    found = np.array([[row[name] for name in ("PQ", "SQ", "RQ")] for row in measure.per_class()])
    assert (found > 0.1).all()
    assert found == approx(reference_measure.compute().numpy(), 1e-6)


def test_segments_of_several_processes_and_of_another_order_measure_the_same() -> None:
    pairs = [random_panoptic(seed) for seed in range(9)]
    first, second = panoptic(pairs[:4]), panoptic(pairs[4:])
    first.merge(pickle.loads(pickle.dumps(second.state())))
    assert first.compute() == approx(panoptic(pairs).compute(), 1e-12)
    second.state()[:] = 0  # a state is no view
    assert second.compute() == panoptic(pairs[4:]).compute()
    assert panoptic(pairs[::-1]).compute() == approx(panoptic(pairs).compute(), 1e-12)


def test_no_segments_measure_nan() -> None:
    names = [f"{name}{of}" for of in ("", " things", " stuff") for name in ("PQ", "SQ", "RQ")]
    nothing = {"segments": np.zeros((3, 4), int), "labels": []}
    assert panoptic([]).compute() == approx(dict.fromkeys(names, np.nan))
    assert panoptic([(nothing, nothing)]).compute() == approx(dict.fromkeys(names, np.nan))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": np.zeros((2, 3), int)}, r"segments of the truth are \(2, 2\), of the result \(2, 3\)"),
        ({"segments": np.full((2, 2), 2)}, "segments of the result are 2 to 2: expected 0 to 1"),
        ({"labels": [4]}, "labels of the result are 4 to 4: expected 0 to 3"),
    ],
)
def test_unusable_segments_are_named(change: dict[str, Any], message: str) -> None:
    one = {"segments": np.ones((2, 2), int), "labels": [0]}
    measure = panoptic([])
    with pytest.raises(UserError, match=message):
        measure.add(one, one | change)
    assert not measure.state().any()
    with pytest.raises(UserError, match=r"iscrowd is \(2,\), labels \(1,\)"):
        measure.add(one | {"iscrowd": [True, False]}, one)
    with pytest.raises(UserError, match="1 classes, but 2 things"):
        PanopticMeasure(["a"], [True, False])
