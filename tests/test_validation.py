"""Measures against torchmetrics and hand counts, on folders with known answers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from page_reader import Report
from PIL import Image
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

import vankit
from vankit.deploy.opening import open_network
from vankit.errors import UserError
from vankit.validation import ClassificationReport, validate

QUICK = {"workers": 0, "engine": "torch"}
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
PREPROCESSING = {
    "input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bicubic"
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        folder = tmp_path / "data" / "val" / name
        folder.mkdir(parents=True)
        for i in range(4):
            noise = rng.integers(-60, 60, (32, 32, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    model = timm.create_model("van_b0", num_classes=4)
    torch.nn.init.normal_(model.head.fc.weight)
    # another order than the folder's, and a class that the folder lacks
    metadata = {"model": "van_b0", "classes": ["red", "violet", "blue", "green"], "preprocessing": PREPROCESSING}
    vankit.save_checkpoint(model, tmp_path / "w.safetensors", metadata=metadata)
    return tmp_path / "w.safetensors"


def test_report_matches_torchmetrics(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    report = validate(
        data, checkpoint=checkpoint, output=tmp_path / "out/r.json", picture=tmp_path / "out/c.png", **QUICK
    )
    predictor = vankit.Predictor(checkpoint=checkpoint, engine="torch")
    paths = sorted((data / "val").rglob("*.png"))
    logits = torch.from_numpy(predictor.logits(np.stack([predictor.preprocess(p) for p in paths])))
    labels = torch.tensor([predictor.classes.index(p.parent.name) for p in paths])
    assert report.count == 12
    assert report.top1 == pytest.approx(float(multiclass_accuracy(logits, labels, 4, average="micro")))
    assert report.top5 is None  # all of four classes are among the best five
    order = [predictor.classes.index(name) for name in report.classes]
    full = multiclass_confusion_matrix(logits, labels, 4)
    assert report.classes == ["blue", "green", "red"]
    assert report.confusion[:, :3].tolist() == full[order][:, order].tolist()
    assert report.confusion[:, 3].tolist() == full[order][:, 1].tolist()  # violet
    recall = multiclass_accuracy(logits, labels, 4, average=None)
    assert [row["recall"] for row in report.per_class()] == pytest.approx(recall[order].tolist())
    assert json.loads((tmp_path / "out/r.json").read_text()) == report.to_dict()
    with Image.open(tmp_path / "out/c.png") as picture:
        assert min(picture.size) > 300


def test_the_best_five_of_six_classes(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model("van_b0", num_classes=6)
    torch.nn.init.normal_(model.head.fc.weight)
    metadata = {"classes": [*COLOURS, "x", "y", "z"], "preprocessing": PREPROCESSING}
    vankit.save_checkpoint(model, tmp_path / "w.safetensors", metadata=metadata)
    report = validate(data, checkpoint=tmp_path / "w.safetensors", output=tmp_path / "r.json", **QUICK)
    predictor = vankit.Predictor(checkpoint=tmp_path / "w.safetensors", engine="torch")
    paths = sorted((data / "val").rglob("*.png"))
    logits = torch.from_numpy(predictor.logits(np.stack([predictor.preprocess(p) for p in paths])))
    labels = torch.tensor([predictor.classes.index(p.parent.name) for p in paths])
    expected = float(multiclass_accuracy(logits, labels, 6, average="micro", top_k=5))
    assert report.top5 == json.loads((tmp_path / "r.json").read_text())["top5"] == pytest.approx(expected)


def test_unreadable_images_are_left_out_and_named(
    data: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = data / "val" / "green" / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff\xe0 nothing")
    report = validate(data, checkpoint=checkpoint, **QUICK)
    assert report.count == 12
    assert [path for path, _ in report.skipped] == [str(bad)]
    assert str(bad) in caplog.text


def test_a_plain_class_folder_is_its_own_val_split(data: Path, checkpoint: Path) -> None:
    assert validate(data / "val", checkpoint=checkpoint, **QUICK).count == 12


def test_nothing_readable(data: Path, checkpoint: Path) -> None:
    for path in (data / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image of .* could be read"):
        validate(data, checkpoint=checkpoint, **QUICK)


def test_hand_counted_report() -> None:
    confusion = np.array([[3, 1, 0], [0, 0, 2], [0, 0, 0]])
    report = ClassificationReport(["a", "b", "c"], confusion, 5, [])
    assert report.top1 == 3 / 6
    assert report.top5 == 5 / 6
    assert ClassificationReport(["a", "b"], confusion[:2, :2], None, []).to_dict()["top5"] is None
    assert [(r["images"], r["recall"], r["precision"]) for r in report.per_class()] == [
        (4, 0.75, 1.0),
        (2, 0.0, 0.0),
        (0, None, 0.0),
    ]


@pytest.mark.slow
@pytest.mark.data
def test_the_shipped_checkpoint_on_cifar10(shared_data: Callable[..., Path]) -> None:
    """On a twentieth of the validation images: the accuracy it was published with, within four standard errors."""
    data = shared_data("cifar10", r"val/\w+/00[0-4]\d")
    file = timm.create_model("van_b0.cifar10").pretrained_cfg["file"]
    stated = vankit.read_checkpoint(file).metadata["top1"]
    report = validate(data, "van_b0.cifar10", **QUICK)
    assert report.count == 500
    assert abs(report.top1 - stated) < 4 * (stated * (1 - stated) / report.count) ** 0.5


def test_logits_that_are_not_finite_have_no_measure(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    network = open_network(checkpoint=checkpoint)
    with torch.no_grad():
        network.module.head.fc.weight.mul_(1e38)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="the network's output is NaN or infinite"):
        validate(data, network, output=tmp_path / "r.json", **QUICK)
    assert not (tmp_path / "r.json").exists()


def test_workers_below_zero_are_refused(data: Path, checkpoint: Path) -> None:
    with pytest.raises(UserError, match="workers is -1, expected 0 or more"):
        validate(data, checkpoint=checkpoint, workers=-1)


@pytest.fixture
def several(data: Path, checkpoint: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The pictures again, each with any number of labels; and the network with a threshold per class."""
    pictures = sorted((data / "val").rglob("*.png"))
    labels = np.random.default_rng(1).random((len(pictures), 3)) < 0.5
    rows = [
        f"{path.relative_to(data)},{';'.join(np.array(['blue', 'red', 'green'])[row])}"
        for path, row in zip(pictures, labels, strict=True)
    ]
    (data / "several.csv").write_text("\n".join(["file,labels", *rows, ""]))
    model = timm.create_model("van_b0", num_classes=4)
    vankit.load_checkpoint(model, checkpoint)
    metadata = {**vankit.read_checkpoint(checkpoint).metadata, "thresholds": [0.2, 0.5, 0.6, 0.4]}
    vankit.save_checkpoint(model, tmp_path / "several.safetensors", metadata=metadata)
    return data / "several.csv", tmp_path / "several.safetensors"


def test_a_multi_label_report_matches_scikit_learn(several: tuple[Path, Path], tmp_path: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    data, checkpoint = several
    (data.parent / "val" / "red" / "0.png").write_bytes(b"")
    report = validate(data, checkpoint=checkpoint, output=tmp_path / "r.json", **QUICK)
    predictor = vankit.Predictor(checkpoint=checkpoint, engine="torch")
    lines = [line.split(",") for line in data.read_text().splitlines()[1:] if "red/0.png" not in line]
    names = ["blue", "green", "red"]
    truth = np.array([[name in labels.split(";") for name in names] for _, labels in lines])
    columns = [predictor.classes.index(name) for name in names]
    x = np.stack([predictor.preprocess(data.parent / path) for path, _ in lines])
    scores = torch.from_numpy(predictor.logits(x)).double().sigmoid().numpy()[:, columns]
    assert report.count == 11 and [Path(path).name for path, _ in report.skipped] == ["0.png"]
    assert report.measures["mAP"] == pytest.approx(metrics.average_precision_score(truth, scores, average="macro"))
    given = scores >= np.array([0.6, 0.4, 0.2])  # of blue, green, red in the network's order
    assert report.measures["F1"] == pytest.approx(metrics.f1_score(truth, given, average="micro"))
    assert [row["images"] for row in report.per_class] == truth.sum(0).tolist()
    assert json.loads((tmp_path / "r.json").read_text()) == report.to_dict()


def test_kinds_of_labels_and_networks_go_together(
    several: tuple[Path, Path], data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    table, network = several
    with pytest.raises(UserError, match="has any number of labels per image, and the network gives one class"):
        validate(table, checkpoint=checkpoint, **QUICK)
    with pytest.raises(UserError, match="has one class per image, and the network gives any number of labels"):
        validate(data, checkpoint=network, **QUICK)
    with pytest.raises(UserError, match="has no confusion matrix: leave out `picture`"):
        validate(table, checkpoint=network, picture=tmp_path / "c.png", **QUICK)


def test_the_report_shows_the_surest_mistakes(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Of a network that knows a further class, and a folder with a broken image."""
    (data / "val" / "blue" / "0.png").write_bytes(b"")
    report = validate(data, checkpoint=checkpoint, report=tmp_path / "r.html", batch_size=5, **QUICK)
    predictor = vankit.Predictor(checkpoint=checkpoint, engine="torch")
    wrong = []
    for path in sorted((data / "val").rglob("*.png"))[1:]:
        best, name = predictor(path).labels[0], path.parent.name
        if best.name != name:
            wrong.append((best.score, f"{name} → {best.name} {best.score:.1%}\n{name}/{path.name}"))
    page = Report(tmp_path / "r.html")
    assert page.captions["Surest mistakes"] == [text for _, text in sorted(wrong, key=lambda pair: -pair[0])]
    assert page.rows("Measures") == [{"top-1": f"{report.top1:.1%}"}]  # of four classes
    assert page.rows("Classes") == [
        {name: "" if value is None else f"{value:.1%}" if isinstance(value, float) else str(value)
         for name, value in row.items()}
        for row in report.per_class()
    ]  # fmt: skip
    assert page.rows("Left out")[0]["file"] == str(data / "val" / "blue" / "0.png")
    assert page.facts(page.title)["left out"] == "1"
    assert page.opens_offline()


WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "timm", "lightning")))  # importing one is an error

from vankit.cli import main

sys.exit(main(sys.argv[1:]))
"""


def without_torch(*words: object) -> subprocess.CompletedProcess[str]:
    """`vankit` in a process that has no PyTorch."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.mark.export
def test_an_exported_folder_is_validated_without_torch(data: Path, tmp_path: Path) -> None:
    """A folder with a broken image: the figures, the list of what was left out and the page are the network's."""
    (data / "val" / "green" / "bad.jpg").write_bytes(b"broken")
    torch.manual_seed(0)
    module = vankit.VAN(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=6).eval()
    torch.nn.init.normal_(module.head.fc.weight)
    module.pretrained_cfg = {**PREPROCESSING, "input_size": (3, 32, 32)}
    network = open_network(module, classes=["red", "violet", "blue", "green", "black", "white"])
    vankit.export(network, out=tmp_path / "out")
    options = ("--batch-size", 5, "--skip-bad", "--output", tmp_path / "r.json", "--report", tmp_path / "r.html")
    run = without_torch("validate", data, "--model", tmp_path / "out", *options)
    report = validate(data, network, report=tmp_path / "torch.html", batch_size=5, **QUICK)
    assert json.loads((tmp_path / "r.json").read_text()) == report.to_dict()
    assert f"top-1 {report.top1:.2%}  top-5 {report.top5:.2%}  images 12  left out 1" in run.stdout
    ours, theirs = Report(tmp_path / "r.html"), Report(tmp_path / "torch.html")
    assert ours.captions == theirs.captions and ours.rows("Classes") == theirs.rows("Classes")
    assert ours.rows("Left out") == theirs.rows("Left out")


def test_any_number_of_threads_measures_the_same(data: Path, checkpoint: Path) -> None:
    """Which of several broken images was met first does not matter either."""
    for name in ("blue/1.png", "green/0.png", "green/3.png", "red/2.png"):
        (data / "val" / name).write_bytes(b"broken")
    reports = [validate(data, checkpoint=checkpoint, engine="torch", batch_size=3, workers=n) for n in (0, 4)]
    assert reports[0].to_dict() == reports[1].to_dict() and len(reports[0].skipped) == 4


def test_a_detectors_report(dense_checkpoint: Callable[[str, str], Path], small_shapes: None, tmp_path: Path) -> None:
    checkpoint = dense_checkpoint("retinanet", "detect")
    report = validate("shapes", checkpoint=checkpoint, report=tmp_path / "r.html", **QUICK)
    page = Report(tmp_path / "r.html")
    assert {row["class"]: row["objects"] for row in page.rows("Classes")} == {
        row["class"]: str(row["objects"]) for row in report.per_class
    }
    names = [caption.splitlines()[1] for caption in page.captions["Largest missed objects"]]
    assert sorted(names) == ["shapes-val-0.png", "shapes-val-1.png"]
    assert page.facts("Settings")["head"] == "retinanet"


def test_a_report_that_is_no_page_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one that ends in .html"):
        validate(tmp_path / "missing", report=tmp_path / "r.json")
