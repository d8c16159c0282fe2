"""A detector's and a segmenter's page against hand-made scenes and pycocotools."""

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from page_reader import Report
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vankit.models.description import Description
from vankit.pages import Page
from vankit.reports.classes import draw_confusion
from vankit.reports.scenes import SCORE, draw_curves, scene_findings
from vankit.tasks.dense import EVALUATORS
from vankit.tasks.inference import arrays

CLASSES = ["cat", "dog"]


class Names:
    def __init__(self, count: int) -> None:
        self.names = [f"{i}.jpg" for i in range(count)]


def written(findings: Any, folder: Path) -> Report:
    page = Page("a page")
    findings.write(page)
    page.save(folder / "page.html")
    return Report(folder / "page.html")


def objects(*boxes: tuple[int, ...], labels: list[int], **more: Any) -> dict[str, Any]:
    count = len(labels)
    given = {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "labels": np.array(labels, np.int64)}
    return {**given, "iscrowd": np.zeros(count, bool), "area": np.ones(count, np.float32), **more}


def found(*boxes: tuple[int, ...], labels: list[int], scores: list[float]) -> dict[str, NDArray[Any]]:
    answer = objects(*boxes, labels=labels)
    return {"boxes": answer["boxes"], "labels": answer["labels"], "scores": np.array(scores, np.float32)}


def measured(
    task: str, scenes: list[tuple[dict[str, Any], dict[str, Any]]], size: tuple[int, int] = (100, 200)
) -> tuple[Any, Any]:
    """Findings, named and finished, and the measure."""
    description = Description(task, "x", "van_b0", CLASSES)
    evaluator, findings = EVALUATORS[task](CLASSES, [True, False], False), scene_findings(description)
    for i, (target, result) in enumerate(scenes):
        truth, answer = arrays(target), arrays(result)
        findings.add(i, Image.new("RGB", size[::-1], (128, 128, 128)), truth, answer, evaluator.add(truth, answer))
    findings.finish(evaluator.measure)
    findings.name_pictures(Names(len(scenes)))
    return findings, evaluator.measure


SCENES = [
    # both found, by boxes that overlap them by 0.9
    (objects((0, 0, 50, 50), (100, 0, 120, 20), labels=[0, 1]), found(
        (0, 0, 45, 50), (100, 0, 118, 20), labels=[0, 1], scores=[0.9, 0.4])),
    # a cat of a tenth of the picture taken for a dog, and a dog whose find has too low a score
    (objects((0, 0, 50, 40), (60, 60, 70, 70), labels=[0, 1]), found(
        (0, 0, 50, 40), (60, 60, 70, 70), labels=[1, 1], scores=[0.8, SCORE - 0.01])),
    # a dog of a half of the picture and one of a hundredth missed, nothing found
    (objects((0, 0, 100, 100), (0, 0, 20, 10), labels=[1, 1]), found(labels=[], scores=[])),
    # a cat found twice, once too often
    (objects((0, 0, 50, 50), labels=[0]), found((0, 0, 50, 50), (0, 0, 50, 50), labels=[0, 0], scores=[0.5, 0.95])),
]  # fmt: skip


def test_missed_and_false_objects_by_hand(tmp_path: Path) -> None:
    findings, measure = measured("detect", SCENES)
    page = written(findings, tmp_path)
    rows = {row["class"]: row for row in page.rows("Classes")}
    assert {name: (row["objects"], row["missed"], row["false"]) for name, row in rows.items()} == {
        "cat": ("3", "1", "1"),
        "dog": ("4", "3", "1"),
    }
    for row in measure.per_class():
        assert rows[row["class"]]["box AP"] == f"{row['box AP']:.1%}"
    assert page.captions["Largest missed objects"] == [
        "dog, 50.0% of the picture\n2.jpg",
        "cat, 10.0% of the picture\n1.jpg",
    ]
    assert page.captions["Surest false objects"] == ["dog 0.80\n1.jpg", "cat 0.50\n3.jpg"]
    assert page.figures == ["Precision and recall"]
    assert page.opens_offline() and page.size < 5e6


def test_colours_say_what_is_missed_found_and_false(tmp_path: Path) -> None:
    findings, _ = measured("detect", SCENES)
    page = written(findings, tmp_path)
    missed, double = page.pictures["Largest missed objects"][0], page.pictures["Surest false objects"][1]
    assert missed.size == (360, 180)
    red = (
        np.asarray(missed)[90:170, 178:182].reshape(-1, 3).mean(0)
    )  # the right edge of the large dog, at 100 of 200 px
    assert red[0] > red[1] + 40 and red[0] > red[2] + 40
    edge = np.asarray(double)[30:80, 88:92].reshape(-1, 3).mean(0)  # of the cat: the surer find lies on top
    assert edge[1] > edge[2] + 20


def test_only_the_worst_of_many_are_shown(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sides = rng.integers(5, 95, 80)
    scenes = [(objects((0, 0, int(s), int(s)), labels=[0]), found(labels=[], scores=[])) for s in sides]
    page = written(measured("detect", scenes)[0], tmp_path)
    order = np.argsort(-sides, kind="stable")[:12]
    assert page.captions["Largest missed objects"] == [
        f"cat, {sides[i] ** 2 / 20_000:.1%} of the picture\n{i}.jpg" for i in order
    ]
    assert page.texts["Surest false objects"] == ["None."]


def test_shares_of_processes_add_up() -> None:
    whole, _ = measured("detect", SCENES)
    shares = [measured("detect", SCENES[i::2])[0] for i in (0, 1)]
    shares[0].merge(shares[1])
    assert shares[0].count == 4
    assert shares[0].missed.tolist() == whole.missed.tolist() and shares[0].false.tolist() == whole.false.tolist()
    for heading, kept in whole.worst.items():
        assert [m.caption for m in shares[0].worst[heading].worst_first()] == [m.caption for m in kept.worst_first()]


def test_curves_are_cocos() -> None:
    rng = np.random.default_rng(3)
    scenes = []
    for _ in range(12):
        corners = rng.integers(0, 60, (4, 2))
        boxes = np.concatenate([corners, corners + rng.integers(10, 40, (4, 2))], 1)
        labels = rng.integers(0, 2, 4)
        moved = boxes + rng.integers(-6, 7, boxes.shape)
        result = found(*map(tuple, moved), labels=labels.tolist(), scores=rng.random(4).round(2).tolist())
        scenes.append((objects(*map(tuple, boxes), labels=labels.tolist()), result))
    curves = measured("detect", scenes)[0].curves

    def rows(side: int) -> list[dict[str, Any]]:
        return [
            {
                "id": 1, "image_id": i, "category_id": int(label), "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0,
                "area": (x2 - x1) * (y2 - y1), "score": score,
            }
            for i, scene in enumerate(scenes)
            for (x1, y1, x2, y2), label, score in zip(
                scene[side]["boxes"].tolist(), scene[side]["labels"], scene[1]["scores"].tolist(), strict=True
            )
        ]  # fmt: skip

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i} for i in range(len(scenes))],
            "categories": [{"id": i} for i in range(2)],
            "annotations": [row | {"id": n} for n, row in enumerate(rows(0), 1)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows(1)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    expected = evaluation.eval["precision"][0, :, :, 0, -1].T  # IoU 0.5, all areas, 100 detections
    np.testing.assert_allclose(curves, expected, atol=1e-9)
    assert 0.1 < curves.mean() < 0.99

    lines = draw_curves(curves, CLASSES).axes[0].lines
    assert {line.get_label() for line in lines} == {
        *(f"{values.mean():.1%} {name}" for name, values in zip(CLASSES, expected, strict=True)),
        f"{expected.mean():.1%} mean",
    }
    np.testing.assert_allclose(lines[-1].get_ydata(), expected.mean(0))


def test_curves_of_many_classes_are_the_best_and_the_worst() -> None:
    curves = np.linspace(1, 0, 30)[:, None].repeat(101, 1)
    curves[3] = np.nan  # no objects
    names = [str(i) for i in range(30)]
    labels = [line.get_label().split()[-1] for line in draw_curves(curves, names).axes[0].lines]
    assert labels == ["0", "1", "2", "4", "5", "25", "26", "27", "28", "29", "mean"]
    assert len(draw_curves(np.full((2, 101), np.nan), CLASSES).axes[0].lines) == 0


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Dollar signs are no formula, an underscore hides nothing, and no font need be here."""
    names = [r"$\frac$", "_background_", "猫 <b>"]
    page = Page("a page")
    page.figure(draw_curves(np.linspace(1, 0, 3)[:, None].repeat(101, 1), names))
    page.figure(draw_confusion(np.eye(3, dtype=np.int64), names))
    page.save(tmp_path / "page.html")
    report = Report(tmp_path / "page.html")
    assert {f"{share} {name}" for share, name in zip(("100.0%", "50.0%", "0.0%"), names, strict=True)} < report.drawn
    assert {*names} < report.drawn


def test_the_pictures_with_the_lowest_miou_beside_the_truth(tmp_path: Path) -> None:
    scenes = []
    for wrong in (10, 90, 50):  # columns of 100 that are taken for dog, all are cat
        truth, found = np.zeros((2, 40, 100), np.int64)
        found[:, :wrong] = 1
        scenes.append(({"semantic": truth}, {"semantic": found}))
    unlabelled = ({"semantic": np.full((40, 100), 255)}, {"semantic": np.zeros((40, 100), np.int64)})
    findings, measure = measured("segment", [*scenes, unlabelled], (40, 100))
    page = written(findings, tmp_path)
    assert page.captions["Worst pictures"] == [  # IoU of cat, and 0 of dog
        f"mIoU {(1 - wrong / 100) / 2:.1%}\n{i}.jpg" for i, wrong in ((1, 90), (2, 50), (0, 10))
    ]
    assert page.rows("Classes")[0] == {
        "class": "cat", "IoU": f"{measure.per_class()[0]['IoU']:.1%}", "accuracy": "50.0%", "pixels": "12,000"
    }  # fmt: skip
    shown = np.asarray(page.pictures["Worst pictures"][0]).astype(int)
    truth, answer = shown[20:80, 10:230].mean((0, 1)), shown[20:80, 290:500].mean((0, 1))
    assert abs(truth - answer).max() > 30  # tinted as cat, as dog
    assert page.opens_offline()


def test_the_pictures_with_the_lowest_panoptic_quality(tmp_path: Path) -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :10], masks[1, 10:] = True, True
    target = {"masks": masks, "labels": np.array([0, 1]), "iscrowd": np.zeros(2, bool)}
    whole = np.ones((20, 20), np.int64)
    whole[10:] = 2
    answers = [  # right; the thing as stuff; the stuff alone
        {"segments": whole, "labels": np.array([0, 1]), "scores": np.ones(2, np.float32)},
        {"segments": whole, "labels": np.array([1, 1]), "scores": np.ones(2, np.float32)},
        {"segments": whole - 1, "labels": np.array([1]), "scores": np.ones(1, np.float32)},
    ]
    page = written(measured("panoptic", [(target, answer) for answer in answers], (20, 20))[0], tmp_path)
    # cat 0, dog 1 / (1 + 0.5) of the second; cat 0, dog 1 of the third
    assert page.captions["Worst pictures"] == ["PQ 33.3%\n1.jpg", "PQ 50.0%\n2.jpg", "PQ 100.0%\n0.jpg"]


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_there_is_no_picture_to_show(task: str, tmp_path: Path) -> None:
    page = written(measured(task, [])[0], tmp_path)
    assert {row["class"] for row in page.rows("Classes")} == set(CLASSES) and not page.pictures
