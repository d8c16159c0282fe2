"""Every head: one epoch on generated scenes, resumed, measured, drawn, its backbone taken out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from together import train_together

import vankit
from vankit.data.shapes import render_scene
from vankit.deploy.opening import open_network
from vankit.errors import UserError
from vankit.heads.backbone import backbone_of
from vankit.heads.build import HEADS
from vankit.models.van import Stage
from vankit.models.weights import read_metadata
from vankit.prediction.scenes import iter_scenes
from vankit.tasks.inference import infer
from vankit.training.recipes import DenseConfig

FAST = ("retinanet", "semantic_fpn")  # a detector and a segmenter; the others are slow
PAIRS = [
    pytest.param(head, task, marks=() if head in FAST else pytest.mark.slow)
    for head, entry in HEADS.items()
    for task in entry.tasks
]
MEASURE = {"detect": "box AP", "segment": "mIoU", "panoptic": "PQ"}
RESULT = {"detect": vankit.Detections, "segment": vankit.SemanticMap, "panoptic": vankit.PanopticMap}

Checkpoint = Callable[[str, str], Path]


def tiny(task: str, **changes: Any) -> DenseConfig:
    config = replace(
        vankit.recipe("short", "van_b0", task), epochs=1, batch_size=2, lr_batch=2, lr=1e-4, short_sides=(64,),
        long_side=96, crop=64 if task == "segment" else 0, queries=10, warmup_iterations=0, workers=0,
    )  # fmt: skip
    return replace(config, **changes)


@pytest.fixture
def few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vankit.data.scenes._SHAPES_LENGTH", {"train": 2, "val": 1})


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "000000000139.jpg"
    Image.fromarray(render_scene(5, size=(70, 90), objects=2).image).save(path)
    return path


@pytest.mark.usefixtures("few_scenes", "few_proposals", "blank_run_reports")
@pytest.mark.parametrize(("head", "task"), PAIRS)
def test_a_head_trains_resumes_measures_and_draws(
    head: str, task: str, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vankit.heads.sparse_rcnn.STAGES", 2)  # of six alike, which are longer written than trained
    out = tmp_path / "run"
    first = vankit.train("shapes", "van_b0", tiny(task), out, task=task, head=head)
    assert first.measure == MEASURE[task]
    result = vankit.train("shapes", "van_b0", tiny(task, epochs=2), out, task=task, head=head, resume=True)

    opened, metadata = open_network(checkpoint=result.last), read_metadata(result.last)
    assert (metadata["epoch"], metadata["head"], metadata["task"]) == (2, head, task)
    backbone = backbone_of(opened.module)
    assert backbone.stage1.patch_embed.norm.num_batches_tracked == 2  # a step an epoch

    # other engines export the backbone, which takes seconds: see test_the_backbone_runs_on_any_engine
    report = vankit.validate("shapes", checkpoint=result.last, workers=0, engine="torch")
    assert report.measures[result.measure] == pytest.approx(metadata["measures"][result.measure], abs=1e-5)
    json.dumps(report.to_dict(), allow_nan=False)

    (found,) = vankit.predict(photograph, checkpoint=result.last, output=tmp_path / "out", engine="torch")
    assert isinstance(found, RESULT[task])
    with Image.open(tmp_path / "out" / "000000000139.png") as picture:
        assert picture.width >= 90 and picture.height >= 70
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    rows = content["annotations"] if task == "panoptic" else content
    assert all(row["image_id"] == 139 for row in rows)

    vankit.convert(result.last, tmp_path / "backbone.safetensors")
    weights = {"file": str(tmp_path / "backbone.safetensors")}
    alone = timm.create_model("van_b0", pretrained=True, num_classes=0, pretrained_cfg_overlay=weights)
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, backbone.state_dict()[name]), name


@pytest.fixture(scope="session")
def segmenter(dense_checkpoint: Checkpoint) -> Path:
    return dense_checkpoint("semantic_fpn", "segment")


@pytest.fixture(scope="session")
def detector(dense_checkpoint: Checkpoint) -> Path:
    return dense_checkpoint("retinanet", "detect")


def test_one_broken_picture_does_not_stop_the_rest(segmenter: Path, photograph: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photograph.read_bytes()[:200])
    results = vankit.predict([broken, photograph], checkpoint=segmenter, output=tmp_path / "out", engine="torch")
    assert isinstance(results[0], vankit.Failure) and "broken.jpg" in results[0].source
    assert isinstance(results[1], vankit.SemanticMap)
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {row["file_name"] for row in rows} == {photograph.name}


def test_what_is_no_picture_is_refused(segmenter: Path) -> None:
    predictor = vankit.DensePredictor(segmenter, engine="torch")
    for picture, says in ((None, "the image is None: expected"), (np.zeros((0, 0, 3), np.uint8), "has no pixels")):
        with pytest.raises(UserError, match=says):
            predictor(picture)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="^images is 5: expected a path"):
        next(predictor.stream(5))  # type: ignore[arg-type]


def test_a_bug_is_seen_and_the_rest_goes_on(
    segmenter: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = vankit.DensePredictor(segmenter, engine="torch")
    results, run = [KeyError("stage5"), torch.OutOfMemoryError("CUDA out of memory"), None], predictor._run

    def fail(picture: Any, score: float) -> Any:
        if error := results.pop(0):
            raise error
        return run(picture, score)

    monkeypatch.setattr(predictor, "_run", fail)
    first, second, third = (found for found, _ in predictor.stream([photograph] * 3))
    assert isinstance(first, vankit.Failure) and isinstance(second, vankit.Failure)
    assert isinstance(third, vankit.SemanticMap)
    (record,) = caplog.records
    assert "000000000139" in record.message and "this is a bug in vankit" in record.message
    assert record.exc_info is not None and record.exc_info[0] is KeyError


@pytest.mark.parametrize("engine", ["torch", pytest.param("openvino", marks=[pytest.mark.slow, pytest.mark.export])])
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_maps_that_are_not_finite_are_not_nothing_found(
    task: str, engine: str, dense_checkpoint: Checkpoint, photograph: Path, tmp_path: Path
) -> None:
    """The weights are finite, but what they make of a picture is not."""
    head = "retinanet" if task == "detect" else "semantic_fpn"
    opened = open_network(checkpoint=dense_checkpoint(head, task))
    with torch.no_grad():
        for norm in ("weight", "bias"):
            getattr(backbone_of(opened.module).stage4.norm, norm).fill_(3e38)
    result = list(iter_scenes([photograph], opened, tmp_path / "out", engine=engine))
    assert [type(each).__name__ for each in result] == ["Failure"]
    assert "the network's output is NaN or infinite" in result[0].error
    assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
    with pytest.raises(UserError, match="the network's output is NaN or infinite"):
        vankit.validate("shapes", opened, workers=0, engine=engine)


@pytest.mark.slow
def test_predictors_do_not_change_the_network_they_are_given(segmenter: Path, photograph: Path) -> None:
    opened = open_network(checkpoint=segmenter)
    vankit.DensePredictor(opened)  # on OpenVINO
    again, fresh = (vankit.DensePredictor(x, engine="torch") for x in (opened, segmenter))
    np.testing.assert_array_equal(again(photograph).labels, fresh(photograph).labels)
    assert isinstance(backbone_of(opened.module).stage1, Stage)


def test_an_output_folder_has_one_writer(
    segmenter: Path, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = iter_scenes([photograph, photograph], segmenter, out, engine="torch")
    next(first)
    with monkeypatch.context() as patch:
        patch.setattr("vankit.prediction.scenes.DensePredictor", None)
        with pytest.raises(UserError, match=f"{out} is being written by process"):
            next(iter_scenes(photograph, segmenter, out))
        with pytest.raises(UserError, match="writes a folder of pictures: expected one, not rows.csv"):
            next(iter_scenes(photograph, segmenter, "rows.csv"))
    first.close()
    assert json.loads((out / "predictions.json").read_text())
    assert len(list(iter_scenes(photograph, segmenter, out, engine="torch"))) == 1
    assert sorted(path.name for path in out.iterdir()) == ["000000000139.png", "predictions.json"]


def test_pictures_of_one_name_do_not_overwrite_each_other(segmenter: Path, photograph: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = tmp_path / "b" / photograph.name
    other.write_bytes(photograph.read_bytes())
    vankit.predict([photograph, other], checkpoint=segmenter, output=tmp_path / "out", engine="torch")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_the_output_folder_is_no_input(segmenter: Path, photograph: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies in the output folder .*: choose another"):
        vankit.predict(photograph, checkpoint=segmenter, output=tmp_path, engine="torch")
    for _ in range(2):
        results = vankit.predict(tmp_path, checkpoint=segmenter, output=tmp_path / "out", engine="torch")
        assert [result.source for result in results] == [str(photograph)]


def test_image_ids_are_coco_numbers_or_places(segmenter: Path, photograph: Path, tmp_path: Path) -> None:
    (tmp_path / "7.jpg").write_bytes(photograph.read_bytes())
    inputs = [tmp_path / "missing.jpg", tmp_path / "7.jpg", photograph]
    vankit.predict(inputs, checkpoint=segmenter, output=tmp_path / "out", engine="torch")
    rows = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {row["file_name"]: row["image_id"] for row in rows} == {"7.jpg": 2, photograph.name: 139}


@pytest.mark.parametrize("size", [(33, 47), (200, 31), (1, 1)])
def test_any_picture_size(segmenter: Path, detector: Path, size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 128, np.uint8)
    for checkpoint in (detector, segmenter):
        result = vankit.DensePredictor(checkpoint, score=0.0, engine="torch")(picture)
        if isinstance(result, vankit.SemanticMap):
            assert result.labels.shape == size
        elif len(result.boxes):
            assert result.boxes.min() >= 0
            assert (result.boxes.max(0) <= np.array([size[1], size[0]] * 2) + 1e-4).all()


def test_score_is_a_threshold(dense_checkpoint: Checkpoint, photograph: Path) -> None:
    checkpoint = dense_checkpoint("rt_detr", "detect")
    everything = vankit.DensePredictor(checkpoint, score=0.0, engine="torch")(photograph)
    middle = float(np.median(everything.scores))
    some = vankit.DensePredictor(checkpoint, score=middle, engine="torch")(photograph)
    assert len(some.scores) == (everything.scores >= middle).sum() < len(everything.scores)
    with pytest.raises(UserError, match=r"score is 1\.5, expected 0 to 1"):
        vankit.DensePredictor(checkpoint, score=1.5)


@pytest.mark.parametrize("head", ["retinanet", "faster_rcnn"])
def test_a_score_below_torchvisions_own_floor_is_obeyed(
    head: str, dense_checkpoint: Checkpoint, photograph: Path
) -> None:
    checkpoint = dense_checkpoint(head, "detect")
    low, middle = (vankit.DensePredictor(checkpoint, score=score, engine="torch") for score in (0.0, 0.3))
    if head == "retinanet":  # an untrained faster_rcnn finds a tenth of each of its eleven classes everywhere
        assert 0 < low(photograph).scores.min() < 0.05
    for predictor, floor in ((low, 0.0), (middle, 0.05)):
        found = [each.score_thresh for each in predictor.network.modules() if hasattr(each, "score_thresh")]
        assert max(found) == floor  # that of the proposals is 0


@pytest.mark.parametrize("test", ["multiscale", "slide"])
def test_ways_to_segment(segmenter: Path, photograph: Path, test: Any) -> None:
    assert vankit.DensePredictor(segmenter, test=test, engine="torch")(photograph).labels.shape == (70, 90)


def test_ways_to_segment_are_for_segmenters(segmenter: Path, detector: Path) -> None:
    with pytest.raises(UserError, match="test is 'slide', which is only for segmentation: .* is a retinanet"):
        vankit.DensePredictor(detector, test="slide")
    with pytest.raises(UserError, match="test is 'whole', expected one of single, multiscale, slide"):
        vankit.DensePredictor(segmenter, test="whole")  # type: ignore[arg-type]


def test_a_classifier_is_no_detector(segmenter: Path, photograph: Path, tmp_path: Path) -> None:
    vankit.save_checkpoint(timm.create_model("van_b0", num_classes=2), tmp_path / "classifier.safetensors")
    with pytest.raises(UserError, match="is not a checkpoint of a detector or segmenter"):
        vankit.DensePredictor(tmp_path / "classifier.safetensors")
    with pytest.raises(UserError, match=r"is a detector or segmenter: use vankit\.DensePredictor"):
        vankit.Predictor(checkpoint=segmenter)


def test_other_classes_are_named(segmenter: Path, tmp_path: Path) -> None:
    for folder in ("images", "annotations"):
        (tmp_path / folder / "val").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "val" / "0.png")
    Image.new("L", (8, 8)).save(tmp_path / "annotations" / "val" / "0.png")
    (tmp_path / "classes.txt").write_text("grass\n")
    with pytest.raises(UserError, match="data and network have different classes: .*grass"):
        vankit.validate(tmp_path, checkpoint=segmenter, workers=0, engine="torch")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"task": "detect", "head": "semantic_fpn"},
            "unknown head .semantic_fpn. for detect: expected",
        ),
        ({"task": "classify", "head": "retinanet"}, "a classifier has no --head"),
        ({"task": "detect", "config": vankit.recipe("short", "van_b0")}, "is a TrainConfig, expected a DenseConfig"),
        ({"weights": "ema"}, "chooses among those of a checkpoint to start from: pass one"),
        ({"task": "segment", "config": tiny("segment", crop=0)}, "crop is 0: segmentation trains on squares"),
    ],
)
@pytest.mark.usefixtures("few_scenes")
def test_what_does_not_go_together_is_named(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        vankit.train("shapes", out=tmp_path / "run", **arguments)


@pytest.mark.usefixtures("few_scenes")
def test_another_head_is_not_resumed(tmp_path: Path) -> None:
    vankit.train("shapes", config=tiny("segment"), out=tmp_path, task="segment", head="semantic_fpn")
    with pytest.raises(UserError, match="holds a run with head semantic_fpn, not upernet"):
        vankit.train("shapes", config=tiny("segment"), out=tmp_path, task="segment", head="upernet", resume=True)


@pytest.mark.export
@pytest.mark.parametrize(
    ("head", "task", "engine"),
    [
        pytest.param("semantic_fpn", "segment", "auto", marks=pytest.mark.slow),
        pytest.param("sparse_rcnn", "detect", "auto", marks=pytest.mark.slow),
        pytest.param("sparse_rcnn", "detect", "onnxruntime", marks=pytest.mark.slow),
        pytest.param("upernet", "segment", "auto", marks=pytest.mark.slow),
        pytest.param("upernet", "segment", "onnxruntime", marks=pytest.mark.slow),
    ],
)
def test_the_backbone_runs_on_any_engine(dense_checkpoint: Checkpoint, head: str, task: str, engine: str) -> None:
    images = [torch.rand(3, 70, 90), torch.rand(3, 200, 64)]
    checkpoint = dense_checkpoint(head, task)
    plain, other = (vankit.DensePredictor(checkpoint, engine=name, device="cpu") for name in ("torch", engine))
    assert not [m for m in other.network.modules() if isinstance(m, Stage)]
    for image in images:
        with torch.inference_mode():
            (expected,), (found,) = (infer(each.network, [image], each.description) for each in (plain, other))
        for key in {"boxes", "scores", "logits"} & set(expected):
            torch.testing.assert_close(found[key], expected[key], atol=1e-3, rtol=1e-4)


def test_precision_is_the_backbones(detector: Path) -> None:
    with pytest.raises(UserError, match="has no int8: export it"):
        vankit.DensePredictor(detector, precision="int8")
    with pytest.raises(UserError, match="bf16 is for engine openvino"):
        vankit.DensePredictor(detector, engine="torch", precision="bf16")


@pytest.mark.slow
def test_the_backbone_exports(segmenter: Path) -> None:
    backbone = backbone_of(open_network(checkpoint=segmenter).module)
    x = torch.randn(1, 3, 64, 64)
    exported = torch.export.export(backbone, (x,)).module()
    for ours, theirs in zip(backbone(x), exported(x), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
def test_two_processes_measure_every_picture_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for folder in ("images", "annotations"):
            (tmp_path / folder / split).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"images/{split}/{i}.png")
            Image.fromarray(rng.integers(0, 3, (64, 64), np.uint8)).save(tmp_path / f"annotations/{split}/{i}.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    done = train_together(
        "-m", "vankit", "train", str(tmp_path), "--task", "segment", "--recipe", "short", "--epochs", "1",
        "--batch-size", "2", "--short-sides", "64", "--crop", "64", "--workers", "0", "--out", str(tmp_path / "run"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("best mIoU") == 1
    report = vankit.validate(tmp_path, checkpoint=tmp_path / "run" / "last.safetensors", workers=0, engine="torch")
    assert sum(row["pixels"] for row in report.per_class) == 3 * 64 * 64
    kept = read_metadata(tmp_path / "run" / "last.safetensors")["measures"]
    assert kept["mIoU"] == pytest.approx(report.measures["mIoU"], abs=1e-4)
