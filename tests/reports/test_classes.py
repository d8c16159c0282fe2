"""A classifier's page against hand-made logits and torchmetrics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from page_reader import Report
from torchmetrics.functional.classification import multiclass_precision, multiclass_recall

from vankit.data.preprocessing import Preprocessing
from vankit.data.shapes import Shapes
from vankit.pages import Page
from vankit.reports.classes import ClassFindings

SIX = Preprocessing((3, 4, 4), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0), 1.0, "bicubic")


def written(findings: ClassFindings, folder: Path) -> Report:
    page = Page("a page")
    findings.name_pictures(Shapes("val", 10_000))
    findings.write(page)
    page.save(folder / "page.html")
    return Report(folder / "page.html")


def answered(
    findings: ClassFindings, logits: np.ndarray, labels: np.ndarray, batch: int = 16, share: slice = slice(None)
) -> ClassFindings:
    for start in range(0, len(labels), batch):
        items = range(start, min(start + batch, len(labels)))
        colours = np.array([(i % 3 == 0, i % 3 == 1, i % 3 == 2) for i in items], np.float32)
        part = slice(items.start, items.stop)
        findings.add(items, lambda i, each=colours: np.tile(each[i, :, None, None], (4, 4)), labels[part], logits[part])
    return findings


def test_the_surest_wrong_answers_are_shown(tmp_path: Path) -> None:
    scores = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9], [0.6, 0.3, 0.1], [0.0625, 0.875, 0.0625]]
    labels = np.array([1, 1, 0, 0, 2])  # the answers are 0, 1, 2, 0, 1
    findings = answered(ClassFindings(["cat", "dog", "owl"], SIX), np.log(np.float32(scores)), labels, batch=2)
    page = written(findings, tmp_path)
    assert page.captions["Surest mistakes"] == [
        "cat → owl 90.0%\nimage 2",
        "owl → dog 87.5%\nimage 4",
        "dog → cat 70.0%\nimage 0",
    ]
    # image 2 is (0, 0, 1) as the network has it, 0.5, 0.25 and 1 before; it is drawn larger
    shown = page.pictures["Surest mistakes"][0]
    assert shown.size == (200, 200)
    assert shown.getpixel((100, 100)) == pytest.approx((128, 64, 255), abs=3)  # JPEG
    assert page.rows("Classes") == [
        {"class": "cat", "images": "2", "recall": "50.0%", "precision": "50.0%"},
        {"class": "dog", "images": "2", "recall": "50.0%", "precision": "50.0%"},
        {"class": "owl", "images": "1", "recall": "0.0%", "precision": "0.0%"},
    ]
    assert page.rows("Confusions") == [
        {"class": "cat", "answer": "owl", "images": "1", "of the class": "50.0%"},
        {"class": "dog", "answer": "cat", "images": "1", "of the class": "50.0%"},
        {"class": "owl", "answer": "dog", "images": "1", "of the class": "100.0%"},
    ]
    assert page.figures == ["Confusions"]
    assert page.opens_offline()


@pytest.mark.parametrize("classes", [7, 1200])
def test_a_page_of_many_images_against_torchmetrics(classes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 3000)
    logits = rng.normal(size=(3000, classes)).astype(np.float32)
    logits[np.arange(3000), labels] += 3
    names = [f"n{i}" for i in range(classes)]
    page = written(answered(ClassFindings(names, SIX), logits, labels, batch=128), tmp_path)

    scores = torch.from_numpy(logits).softmax(1)
    best, answers = scores.max(1)
    wrong = [i for i in np.argsort(-best.numpy(), kind="stable").tolist() if answers[i] != labels[i]]
    assert page.captions["Surest mistakes"] == [
        f"n{labels[i]} → n{answers[i]} {best[i]:.1%}\nimage {i}" for i in wrong[:24]
    ]
    truth = torch.from_numpy(labels)
    recall = multiclass_recall(answers, truth, classes, average=None)
    precision = multiclass_precision(answers, truth, classes, average=None)
    rows = page.rows("Classes")
    for row in rows:
        i = names.index(row["class"])
        assert row["images"] == str((labels == i).sum())
        assert (row["recall"] or "0.0%") == f"{recall[i]:.1%}" and (row["precision"] or "0.0%") == f"{precision[i]:.1%}"
    if classes == 7:
        assert [row["class"] for row in rows] == names and page.figures == ["Confusions"]
    else:
        lowest = sorted(float(recall[i]) for i in range(classes) if (labels == i).any())[:1000]
        assert [row["recall"] for row in rows] == [f"{value:.1%}" for value in lowest]
        assert page.texts["Classes"] == ["The 1,000 of 1,200 classes with the lowest recall."]
        assert page.figures == []  # a matrix of so many says nothing
    assert page.size < 5e6


def test_the_networks_further_classes_are_named_as_answers(tmp_path: Path) -> None:
    column = np.array([1, 2, 0])  # the network knows dog, ant and cat; the data has cat and dog
    findings = ClassFindings(["cat", "dog"], SIX, ["dog", "ant", "cat"], column)
    logits = np.log(np.float32([[0.1, 0.8, 0.1], [0.2, 0.1, 0.7]]))
    page = written(answered(findings, logits, np.array([1, 0])), tmp_path)
    assert page.captions["Surest mistakes"] == ["dog → ant 80.0%\nimage 0"]
    assert page.rows("Confusions") == [
        {"class": "dog", "answer": "another class", "images": "1", "of the class": "100.0%"}
    ]
    assert page.rows("Classes")[1] == {"class": "dog", "images": "1", "recall": "0.0%", "precision": ""}


def test_shares_of_processes_make_one_page(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels, logits = rng.integers(0, 4, 400), rng.normal(size=(400, 4)).astype(np.float32)
    whole = answered(ClassFindings("abcd", SIX), logits, labels)
    halves = [answered(ClassFindings("abcd", SIX), logits[i::2], labels[i::2]) for i in (0, 1)]
    halves[0].merge(halves[1])
    assert halves[0].count == 400
    pages = [written(each, tmp_path) for each in (whole, halves[0])]
    assert pages[0].tables == pages[1].tables
    shown = [[caption.splitlines()[0] for caption in page.captions["Surest mistakes"]] for page in pages]
    assert shown[0] == shown[1]


def test_nothing_wrong(tmp_path: Path) -> None:
    page = written(answered(ClassFindings("ab", SIX), np.eye(2, dtype=np.float32), np.arange(2)), tmp_path)
    assert page.texts["Surest mistakes"] == ["None."] and "Confusions" not in page.tables
