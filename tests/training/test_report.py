"""The report at the end of a run, against what the kept weights say by themselves."""

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from page_reader import Report
from PIL import Image
from together import train_together

import vankit
from vankit.data.scenes import ShapeScenes
from vankit.models.description import Description
from vankit.models.weights import read_metadata
from vankit.training.recipes import short, short_dense, short_semantic
from vankit.training.report import KeepFindings, write_run_report
from vankit.training.run import TrainResult, train

TINY = replace(
    short("van_b0"), epochs=2, warmup_epochs=0, batch_size=4, lr_batch=4, lr=1e-3, img_size=32, workers=0, smoothing=0.0
)
STILL = replace(TINY, lr=0.0, min_lr=0.0, warmup_lr=0.0, epochs=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight noisy squares to train on; eleven to measure, some of which have the wrong label, and a broken one."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 6)):
        for name, level in (("bright", 160), ("dark", 90)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (250 - level if split == "val" and i % 2 else level) + rng.integers(-60, 60, (32, 32, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / split / name / f"{i}.png")
    (root / "val" / "bright" / "1.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(data, "van_b0", TINY, tmp_path_factory.mktemp("run"), skip_bad=True)


def page_of(result: TrainResult) -> Report:
    return Report(result.best.parent / "report.html")


def wrong_answers(data: Path, checkpoint: Path) -> tuple[list[str], dict[str, list[bool]]]:
    """Captions of all wrong answers, the surest first, and which images of each class are right."""
    predictor = vankit.Predictor(checkpoint=checkpoint, engine="torch")
    captions, right = [], {}
    for path in sorted((data / "val").rglob("*.png")):
        if path.stat().st_size:
            best, name = predictor(path).labels[0], path.parent.name
            right.setdefault(name, []).append(best.name == name)
            if best.name != name:
                captions.append((best.score, f"{name} → {best.name} {best.score:.1%}\n{name}/{path.name}"))
    return [text for _, text in sorted(captions, key=lambda pair: -pair[0])], right


def test_a_classifiers_mistakes_and_classes(run: TrainResult, data: Path) -> None:
    page = page_of(run)
    captions, right = wrong_answers(data, run.best)
    assert page.captions["Surest mistakes"] == captions and len(captions) > 2
    for row in page.rows("Classes"):
        hits = right[row["class"]]
        assert (row["images"], row["recall"]) == (str(len(hits)), f"{np.mean(hits):.1%}")
    assert page.opens_offline() and page.size < 5e6


def test_facts_curves_and_settings(run: TrainResult, data: Path) -> None:
    page, best = page_of(run), read_metadata(run.best)
    assert page.title == f"van_b0 on {data}"
    facts = page.facts(page.title)
    assert facts["best"] == f"top-1 {run.score:.2%}, after epoch {best['epoch']}"
    assert facts["images"] == "8 to train on, 11 to validate with"
    assert page.rows("Best epoch")[0]["top-1"] == f"{run.score:.1%}"
    assert page.figures == ["Curves", "Confusions"]
    with (run.best.parent / "metrics.csv").open(newline="") as file:
        logged = list(csv.DictReader(file))
    for name, column in (("top-1", "val_top1"), ("val loss", "val_loss"), ("train loss", "train_loss_epoch")):
        values = [float(row[column]) for row in logged if row[column]]
        form = "{:.1%}" if name == "top-1" else "{:.4f}"
        assert [row[name] for row in page.rows("Curves")] == [form.format(value) for value in values]
    settings = page.facts("Settings")
    assert (settings["epochs"], settings["lr"], settings["lka"]) == ("2", "0.001", "none")
    assert "vankit" in page.facts("Versions") and "Command" not in page.texts  # of pytest


def test_a_resumed_run_has_all_epochs(data: Path, tmp_path: Path) -> None:
    """The second epoch changes no weight, so that the first stays the best one."""
    train(data, "van_b0", STILL, tmp_path, skip_bad=True)
    first = Report(tmp_path / "report.html")
    assert "time" in first.facts(first.title) and "Surest mistakes" in first.captions
    result = train(data, "van_b0", replace(STILL, epochs=2), tmp_path, resume=True, skip_bad=True)
    page = page_of(result)
    assert [row["epoch"] for row in page.rows("Curves")] == ["1", "2"]
    facts = page.facts(page.title)
    assert facts["best"].endswith("after epoch 1") and facts["time"].endswith(" since it was resumed")
    note, command = page.texts["Curves"]
    assert "of epoch 2, the last one. The best one, 1, was validated before the run was resumed" in note
    assert command == f"vankit validate {data} --checkpoint {result.best} --report {tmp_path / 'best.html'}"
    assert page.captions["Surest mistakes"] == wrong_answers(data, result.last)[0]


def written_again(run: TrainResult, out: Path) -> Report:
    """The report of a run none of whose validations told what it found."""
    for name in ("best.safetensors", "metrics.csv"):
        (out / name).write_bytes((run.best.parent / name).read_bytes())
    keep = SimpleNamespace(measure="top-1", best=run.score, resumed=False, improved=True)
    kept = KeepFindings(Description.from_metadata(read_metadata(run.best), Description()), keep)
    trainer = SimpleNamespace(current_epoch=0)
    kept.on_validation_epoch_start(trainer, None)  # type: ignore[arg-type]
    kept.on_validation_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    kept.on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
    write_run_report(out, {"task": "classify", "model": "van_b0", "data": "x"}, kept, 3661.0)
    return Report(out / "report.html")


def test_without_answers_there_are_no_pictures(run: TrainResult, tmp_path: Path) -> None:
    page = written_again(run, tmp_path)
    assert page.figures == ["Curves"] and "Classes" not in page.tables
    assert page.facts(page.title)["time"] == "1:01:01"


def test_a_full_disk_is_a_warning(
    run: TrainResult, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vankit.pages.write_text", full)
    with pytest.raises(FileNotFoundError):  # by the test, as nothing was written
        written_again(run, tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"the run is complete, but {tmp_path / 'report.html'} could not be written: [Errno 28] No space left on device"
    ]


def test_a_bug_stays_visible(run: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vankit.training.report.draw_log", lambda rows: {}["bug"])
    with pytest.raises(KeyError):
        written_again(run, tmp_path)


def streets(root: Path) -> Path:
    for split, count in (("train", 4), ("val", 5)):
        scenes = ShapeScenes("segment", split, count, 32)
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            image, target = scenes[i]
            image.save(root / "images" / split / f"{i}.png")
            Image.fromarray(target["semantic"]).save(root / "annotations" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(scenes.classes))
    return root


SEGMENT = replace(short_semantic("van_b0"), epochs=1, short_sides=(32,), crop=32, batch_size=2, workers=0)


def test_a_segmenters_report_is_that_of_validate(tmp_path: Path) -> None:
    root = streets(tmp_path / "streets")
    result = train(root, "van_b0", SEGMENT, tmp_path / "run", task="segment", skip_bad=True)
    page = page_of(result)
    measured = vankit.validate(root, checkpoint=result.best, workers=0, engine="torch", report=tmp_path / "again.html")
    again = Report(tmp_path / "again.html")
    assert page.title == f"semantic_fpn van_b0 on {root}" and again.title == f"{result.best} on {root}"
    assert page.rows("Best epoch")[0]["mIoU"] == again.rows("Measures")[0]["mIoU"] == f"{result.score:.1%}"
    for each in (page, again):
        assert [row["IoU"] for row in each.rows("Classes")] == [
            "" if row["IoU"] != row["IoU"] else f"{row['IoU']:.1%}" for row in measured.per_class
        ]
        assert each.opens_offline() and each.size < 5e6
    assert page.captions == again.captions
    names = [caption.splitlines()[1] for caption in page.captions["Worst pictures"]]
    assert sorted(names) == [str(root / "images" / "val" / f"{i}.png") for i in range(5)]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "head"), [("detect", "retinanet"), ("panoptic", "mask2former")])
def test_other_tasks_reports_are_those_of_validate(task: str, head: str, small_shapes: None, tmp_path: Path) -> None:
    config = replace(short_dense("van_b0"), epochs=1, short_sides=(64,), batch_size=4, queries=10, workers=0)
    result = train("shapes", "van_b0", config, tmp_path / "run", task=task, head=head)
    vankit.validate("shapes", checkpoint=result.best, workers=0, engine="torch", report=tmp_path / "again.html")
    page, again = page_of(result), Report(tmp_path / "again.html")
    assert page.tables["Classes"] == again.tables["Classes"] and page.captions == again.captions
    assert page.captions and page.opens_offline()


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "segment"])
def test_two_processes_write_one_report(task: str, data: Path, tmp_path: Path) -> None:
    root = data if task == "classify" else streets(tmp_path / "streets")
    options = ["--img-size", "32"] if task == "classify" else ["--short-sides", "32", "--crop", "32"]
    warmup = "--warmup-epochs" if task == "classify" else "--warmup-iterations"
    done = train_together(
        "-m", "vankit", "train", str(root), "--task", task, "--recipe", "short", "--epochs", "1", warmup, "0",
        "--batch-size", "2", "--workers", "0", "--skip-bad", "--output", str(tmp_path / "run"), *options,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    best, page = tmp_path / "run" / "best.safetensors", Report(tmp_path / "run" / "report.html")
    vankit.validate(root, checkpoint=best, workers=0, engine="torch", report=tmp_path / "again.html")
    again = Report(tmp_path / "again.html")
    for heading, captions in again.captions.items():
        assert sorted(page.captions[heading]) == sorted(captions)
    assert page.tables["Classes"] == again.tables["Classes"]
    assert page.texts["Command"][0].startswith(f"vankit train {root} --task {task}")
