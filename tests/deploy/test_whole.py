"""Exported detectors and segmenters: what they find is what the checkpoint finds, with no PyTorch."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from on_devices import ON_DEVICES
from PIL import Image
from torch import nn

import vankit
from vankit.data.shapes import render_scene
from vankit.deploy import whole
from vankit.deploy.agreement import HALF, Agreement
from vankit.deploy.folder import FILES, Exported, Format, read_exported
from vankit.deploy.opening import open_network
from vankit.engines.openvino import openvino_core
from vankit.errors import UserError

Factory = Callable[..., Exported]
Checkpoint = Callable[[str, str], Path]

pytestmark = pytest.mark.export

SIZES = [(90, 130), (64, 64), (150, 41)]  # height and width, of which the export saw none


@pytest.fixture(scope="module")
def exported(dense_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Factory:
    """Factory: the folder of an untrained head by task and format; made once, not to be changed."""

    @cache
    def make(head: str = "semantic_fpn", task: str = "segment", kind: Any = "openvino") -> Exported:
        out = tmp_path_factory.mktemp("exported") / f"{head}-{task}-{kind}"
        return vankit.export(checkpoint=dense_checkpoint(head, task), out=out, format=kind)

    return make


def scene(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(render_scene(7, size=size, objects=3).image)


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    scene((90, 130)).save(path)
    return path


def without_torch(code: str, folder: Path) -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm', 'transformers']))\n"
    run = subprocess.run([sys.executable, "-c", absent + code], cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("head", "task", "kind"),
    [
        ("semantic_fpn", "segment", "openvino"),
        pytest.param("semantic_fpn", "segment", "onnx", marks=pytest.mark.slow),
        pytest.param("mask_rcnn", "detect", "openvino", marks=pytest.mark.slow),
        pytest.param("faster_rcnn", "detect", "onnx", marks=pytest.mark.slow),
        pytest.param("mask2former", "panoptic", "openvino", marks=pytest.mark.slow),
    ],
)
def test_a_folder_finds_what_the_checkpoint_finds(
    head: str, task: str, kind: str, exported: Factory, dense_checkpoint: Checkpoint
) -> None:
    folder = exported(head, task, kind)
    ours, theirs = (
        vankit.DensePredictor(folder.folder),
        vankit.DensePredictor(dense_checkpoint(head, task), engine="torch"),
    )
    assert ours.network is None and (ours.classes, ours.category_ids) == (theirs.classes, theirs.category_ids)
    found = Agreement()
    for size in SIZES:
        picture = np.asarray(scene(size))
        found.add(theirs.results(picture), ours.results(picture))
    found.check()
    assert found.pixels or found.objects
    assert folder.facts["agreement"]["pictures"] == 5


def test_no_pytorch_is_needed(
    exported: Factory, dense_checkpoint: Checkpoint, photograph: Path, tmp_path: Path
) -> None:
    code = f"""import vankit
vankit.predict("photo.jpg", {str(exported().folder)!r}, output="out")
vankit.validate("shapes", {str(exported().folder)!r}, workers=0, output="report.json", report="report.html")
"""
    monkey = "from vankit.data import scenes; scenes._SHAPES_LENGTH = {'train': 2, 'val': 2}\n"
    without_torch(monkey + code, tmp_path)
    expected = vankit.predict(photograph, checkpoint=dense_checkpoint("semantic_fpn", "segment"), engine="torch")[0]
    assert isinstance(expected, vankit.SemanticMap)
    with Image.open(tmp_path / "out" / "photo.png") as drawn, Image.open(photograph) as picture:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected.draw(picture)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vankit.data.scenes._SHAPES_LENGTH", {"train": 2, "val": 2})
        report = vankit.validate(
            "shapes", checkpoint=dense_checkpoint("semantic_fpn", "segment"), workers=0, engine="torch"
        )
    measured = json.loads((tmp_path / "report.json").read_text())
    assert measured["measures"] == pytest.approx(report.to_dict()["measures"], abs=1e-3, nan_ok=True)


@pytest.mark.parametrize(("head", "task"), [("semantic_fpn", "segment"), ("faster_rcnn", "detect")])
@pytest.mark.slow
def test_the_readme_runs_without_vankit(
    head: str, task: str, exported: Factory, photograph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = exported(head, task).folder
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = (block.partition("```")[0] for block in text.split("```python\n")[1:])
    monkeypatch.chdir(folder.parent)
    (folder.parent / "photo.jpg").write_bytes(photograph.read_bytes())
    names: dict[str, Any] = {}
    exec(code, names)
    predictor = vankit.DensePredictor(folder, score=0)
    results = predictor.results(np.asarray(Image.open(photograph).convert("RGB")))
    if task == "segment":
        np.testing.assert_array_equal(names["classes"], results["semantic"])
    else:
        assert names["found"]["labels"][0].tolist() == results["labels"].tolist()


@pytest.mark.slow
def test_photographs_of_ones_own_are_compared_too(
    dense_checkpoint: Checkpoint, photograph: Path, tmp_path: Path
) -> None:
    checkpoint = dense_checkpoint("semantic_fpn", "segment")
    (tmp_path / "photos").mkdir()
    photograph.rename(tmp_path / "photos" / "photo.jpg")
    found = vankit.export(checkpoint=checkpoint, out=tmp_path / "out", check=tmp_path / "photos")
    assert found.facts["agreement"]["pictures"] == 6 and "--check" in found.facts["command"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_weights_in_16_bits(kind: Any, exported: Factory, dense_checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = vankit.export(
        checkpoint=dense_checkpoint("semantic_fpn", "segment"),
        out=tmp_path / "half",
        format=kind,
        half=True,
        opset=20 if kind == "onnx" else None,
    )
    name = FILES[kind][-1]  # with the weights
    size, before = ((folder / name).stat().st_size for folder in (found.folder, exported(kind=kind).folder))
    assert before * 0.49 < size < before * 0.52
    ours, theirs = (vankit.DensePredictor(folder) for folder in (found.folder, exported(kind=kind).folder))
    pairs = [(each.results(np.asarray(scene(size)))["semantic"] for each in (ours, theirs)) for size in SIZES]
    assert min(np.mean(one == other) for one, other in pairs) > 0.99
    assert found.precision == "float32" and found.facts["half"]
    assert found.facts["agreement"]["tolerance"] == asdict(HALF)
    assert "Weights are stored in 16 bits" in (found.folder / "README.md").read_text()
    if kind == "onnx":
        assert [each.version for each in onnx.load(found.path).opset_import] == [20]


@pytest.mark.parametrize("kind", ON_DEVICES)
@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_a_segmenter_for_phones_and_boards(
    kind: Format, head: str, dense_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one size, to which other pictures are brought; the short side of the checkpoint is another."""
    checkpoint, size = dense_checkpoint(head, "segment"), (96, 160)
    found = vankit.export(checkpoint=checkpoint, out=tmp_path / "out", format=kind, size=size)
    assert (found.size, found.dynamic, found.facts["agreement"]["pictures"]) == (size, False, 5)
    assert f"--format {kind} --size 96 160 --output" in found.facts["command"]
    ours, picture = vankit.DensePredictor(found.folder), np.asarray(scene(size))
    network = open_network(checkpoint=checkpoint).module
    with torch.no_grad():
        logits = network([torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255])[0]["logits"]
    semantic = ours.results(picture)["semantic"]
    assert np.mean(semantic == logits.argmax(0).numpy()) > 0.999
    small = ours.results(np.asarray(scene((90, 41)).resize((160, 96), Image.Resampling.BILINEAR)))["semantic"]
    expected = Image.fromarray(small.astype(np.uint8)).resize((41, 90), Image.Resampling.NEAREST)
    assert np.array_equal(ours.results(np.asarray(scene((90, 41))))["semantic"], np.asarray(expected))
    monkeypatch.chdir(tmp_path)
    scene((90, 130)).save("photo.jpg")
    names: dict[str, Any] = {}
    exec((found.folder / "README.md").read_text().split("```python\n")[1].split("```")[0], names)
    shown = Image.open("photo.jpg").convert("RGB").resize((160, 96), Image.Resampling.BILINEAR)
    assert np.array_equal(names["classes"], ours.results(np.asarray(shown))["semantic"])


def _resizing(folder: Exported) -> set[str]:
    nodes = openvino_core().read_model(folder.path).get_ops()
    return {node.get_attributes()["mode"] for node in nodes if node.get_type_name() == "Interpolate"}


def test_another_size_costs_nothing(exported: Factory) -> None:
    """OpenVINO's own resizing with antialiasing would take seconds for each."""
    assert "bilinear_pillow" not in _resizing(exported())


@pytest.mark.slow
def test_int8_is_measured_by_the_labels(exported: Factory, dense_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """They are what the checkpoint says, but for a quarter of each val picture."""
    label = vankit.DensePredictor(exported().folder)
    for split, seeds in (("train", range(2)), ("val", range(2, 5))):
        for kind in ("images", "annotations"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for seed in seeds:
            picture = render_scene(seed, size=(64, 80), objects=2).image
            semantic = label.results(picture)["semantic"].astype(np.uint8)
            if split == "val":
                semantic[:32, :40] = 10
            Image.fromarray(picture).save(tmp_path / "data" / "images" / split / f"{seed}.png")
            Image.fromarray(semantic).save(tmp_path / "data" / "annotations" / split / f"{seed}.png")
    (tmp_path / "data" / "classes.txt").write_text("\n".join(label.classes))
    folder = vankit.export(
        checkpoint=dense_checkpoint("semantic_fpn", "segment"),
        out=tmp_path / "int8",
        int8=True,
        calibrate=tmp_path / "data",
        max_drop=0.5,
    )
    report = folder.facts["int8"]
    assert (folder.precision, report["measure"]) == ("int8", "mIoU")
    assert (report["calibration_images"], report["images"]) == (2, 3)
    before, after = (
        vankit.validate(tmp_path / "data", each.folder, workers=0).measures["mIoU"] for each in (exported(), folder)
    )
    assert (report["float32"], report["score"]) == (pytest.approx(before), pytest.approx(after)) and before > 0.3
    left_out = [each["left_out"] for each in report["attempts"] if each["precision"] == "int8"]
    assert left_out == [[], ["depth-wise convolutions"]]
    assert "bilinear_pillow" not in _resizing(folder)
    size, was = (path.with_name("model.bin").stat().st_size for path in (folder.path, exported().path))
    assert size < 0.35 * was
    model = openvino_core().read_model(folder.path)
    assert model.get_rt_info(["model_info", "model_type"]).value == "Segmentation"
    quantised = {
        target.get_node().get_type_name()
        for op in model.get_ordered_ops() if op.get_type_name() == "FakeQuantize"
        for target in op.output(0).get_target_inputs()
    }  # fmt: skip
    assert "Convolution" in quantised and quantised <= {"Convolution", "GroupConvolution"}
    readme = (folder.folder / "README.md").read_text()
    assert f"| {report['score']:.2%} |" in readme and "mIoU is measured on 3 images" in readme


@pytest.mark.slow
def test_a_detector_in_8_bits(
    dense_checkpoint: Checkpoint, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vankit.data.scenes._SHAPES_LENGTH", {"train": 2, "val": 2})
    checkpoint = dense_checkpoint("faster_rcnn", "detect")
    folder = vankit.export(checkpoint=checkpoint, out=tmp_path / "int8", int8=True, calibrate="shapes", max_drop=1.0)
    results = vankit.DensePredictor(folder.folder).results(np.asarray(Image.open(photograph)))
    assert len(results["boxes"]) and np.isfinite(results["boxes"]).all()
    assert "Convolution" in {
        target.get_node().get_type_name()
        for op in openvino_core().read_model(folder.path).get_ordered_ops()
        if op.get_type_name() == "FakeQuantize"
        for target in op.output(0).get_target_inputs()
    }


@pytest.mark.slow
def test_what_differs_is_not_kept(
    dense_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert = whole.whole_to_openvino

    def other(module: Any, *args: Any) -> Any:
        nn.init.normal_(module.network.head.classifier.weight)
        return convert(module, *args)

    monkeypatch.setattr(whole, "whole_to_openvino", other)
    with pytest.raises(UserError, match="^the exported network differs from PyTorch's: .* nothing was written$"):
        vankit.export(checkpoint=dense_checkpoint("semantic_fpn", "segment"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "pt2"}, "is a semantic_fpn, and pt2 is for classifiers: use format openvino or onnx$"),
        ({"size": (64, 64)}, "^`size` is for format executorch or litert, not openvino: leave it out$"),
        (
            {"format": "litert", "size": 64},
            "^size is 64: expected height and width, multiples of 32 up to 4096 pixels$",
        ),
        ({"format": "litert", "size": (64, 50)}, r"^size is \(64, 50\): expected height and width, multiples of 32 up"),
        ({"format": "litert", "size": (64,)}, r"^size is \(64,\): expected height and width, multiples of 32 up"),
        ({"dynamic": True}, "takes every size anyway"),
        ({"format": "onnx", "opset": 21}, "^opset is 21, and .* is a semantic_fpn: expected 18 to 20$"),
        ({"format": "onnx", "int8": True, "calibrate": "shapes"}, "for which `int8` needs format openvino"),
        ({"int8": True, "calibrate": "nowhere"}, "^no dataset at nowhere: expected a folder"),
    ],
)
def test_options_that_do_not_fit(
    options: dict[str, Any], says: str, dense_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says):
        vankit.export(checkpoint=dense_checkpoint("semantic_fpn", "segment"), out=tmp_path / "out", **options)


def test_detectors_are_not_for_phones(dense_checkpoint: Checkpoint) -> None:
    with pytest.raises(UserError, match="is a mask_rcnn, and litert is for classifiers, semantic_fpn and upernet: use"):
        vankit.export(checkpoint=dense_checkpoint("mask_rcnn", "detect"), format="litert")
    with pytest.raises(UserError, match="van_b0.cifar10 is a classifier, and `size` is for segmenters: leave it out"):
        vankit.export("van_b0.cifar10", format="litert", size=(64, 64))


def test_a_folder_looks_once(exported: Factory) -> None:
    with pytest.raises(UserError, match="^test is 'slide', and an exported folder has single: use the checkpoint"):
        vankit.DensePredictor(exported().folder, test="slide")


def test_a_folder_is_no_classifier(exported: Factory) -> None:
    with pytest.raises(UserError, match="is a detector or segmenter: use vankit.DensePredictor"):
        vankit.Predictor(exported().folder)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("preprocessing.json", '{"layout": "NCHW"}', "preprocessing.json"),
        ("export.json", '"outputs": ["boxes"]', "task is segment, and outputs are"),
        (
            "export.json",
            '"size": [64, 64]',
            r"^.*export.json: size is \[64, 64\] and dynamic True for segment in format o",
        ),
        ("model.bin", "", "model.bin is damaged or was changed"),
    ],
)
def test_a_changed_folder(name: str, content: str, says: str, exported: Factory, tmp_path: Path) -> None:
    for path in exported().folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if name == "export.json":
        written = (tmp_path / name).read_text()
        old = '"outputs": [\n    "logits"\n  ]'
        assert old in written
        content = written.replace(old, content if "outputs" in content else f"{old}, {content}")
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        vankit.DensePredictor(tmp_path)


def test_the_network_of_other_classes_is_refused(exported: Factory, tmp_path: Path) -> None:
    for path in exported().folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    folder = read_exported(tmp_path)
    fewer = vars(folder.description) | {"classes": folder.description.classes[:3], "things": (), "category_ids": ()}
    changed = vars(folder) | {"description": type(folder.description)(**fewer)}
    with pytest.raises(UserError, match="is of another network: its output is .*, and export.json asks for"):
        Exported(**changed).engine(cached=False).outputs(np.asarray(scene((64, 64)))[None])
