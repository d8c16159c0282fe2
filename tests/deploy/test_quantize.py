"""int8: its report against a recount, what is quantised, and how the ladder is climbed."""

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from PIL import Image
from torch import nn

import vankit
from vankit.data.images import load_image
from vankit.data.preprocessing import Preprocessing
from vankit.deploy import quantize as module
from vankit.deploy.folder import Exported, Format
from vankit.deploy.quantize import Int8Report, open_pictures, quantize
from vankit.engines.openvino import openvino_core
from vankit.errors import MissingFileError, UserError
from vankit.models.class_maps import WithClassMaps
from vankit.models.description import Description
from vankit.prediction.labels import Predictor

CLASSES = ["ant", "bee", "cat", "dog"]
PREPROCESSING = Preprocessing((3, 48, 40), (0.5,) * 3, (0.5,) * 3, 0.9, "bilinear")
DEPTHWISE = "depth-wise convolutions"
STAGES = ["stage 1", "stage 2", "stage 3"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    network = vankit.VAN(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=4).eval()
    nn.init.normal_(network.head.fc.weight)
    network.pretrained_cfg = asdict(PREPROCESSING)
    return network


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    return Image.fromarray(pixels).resize((60, 70))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(31):
        picture(i).save(folder / f"{i:02}.png")
    (folder / "05a.png").write_bytes(b"\x89PNG broken")
    return folder


@pytest.fixture(scope="module")
def labelled(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train and val; a third of the labels is wrong. Folders in another order than the classes, one class missing."""
    folder = tmp_path_factory.mktemp("labelled")
    predictor = Predictor(network, classes=CLASSES, engine="torch")
    for split, seeds in (("train", range(100, 110)), ("val", range(200, 260))):
        for seed in seeds:
            right = predictor(np.asarray(picture(seed))).labels[0].name
            name = right if seed % 3 else CLASSES[(CLASSES.index(right) + 1) % 4]
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            picture(seed).save(folder / split / name / f"{seed}.png")
    (folder / "val" / "bee").mkdir(exist_ok=True)
    (folder / "val" / "bee" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    return folder


@pytest.fixture(scope="module")
def float32(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Format], Exported]:
    folder = tmp_path_factory.mktemp("float32")
    return cache(lambda kind: vankit.export(network, out=folder / kind, format=kind, classes=CLASSES))


@pytest.fixture(scope="module")
def int8(network: nn.Module, labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Dynamic, and calibrated by labelled images."""
    out = tmp_path_factory.mktemp("int8") / "folder"
    return vankit.export(network, out=out, int8=True, calibrate=labelled, dynamic=True, classes=CLASSES, max_drop=0.5)


def quantised_operations(path: Path) -> Counter[str]:
    """How many operations of each type have a quantised input."""
    if path.suffix == ".onnx":
        nodes = onnx.load(path).graph.node
        made = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
        return Counter(node.op_type for node in nodes if made & set(node.input))
    found = {}
    for op in openvino_core().read_model(path).get_ordered_ops():
        if op.get_type_name() == "FakeQuantize":
            for target in op.output(0).get_target_inputs():
                found[target.get_node().get_friendly_name()] = target.get_node().get_type_name()
    return Counter(found.values())


def test_the_report_is_a_recount(network: nn.Module, int8: Exported, labelled: Path) -> None:
    report = int8.facts["int8"]
    assert (int8.precision, report["labelled"]) == ("int8", True)
    paths = sorted((labelled / "val").glob("*/*.png"))
    assert (report["calibration_images"], report["images"]) == (10, len(paths)) == (10, 60)
    shares = {}
    for name, predictor in (
        ("float32", Predictor(network, classes=CLASSES, engine="torch")),
        ("int8", Predictor(int8.folder)),
    ):
        shares[name] = np.mean([predictor(path).labels[0].name == path.parent.name for path in paths])
    assert report["float32"] == pytest.approx(shares["float32"]) == pytest.approx(2 / 3, abs=0.05)
    assert report["score"] == pytest.approx(shares["int8"])
    first, *others = report["attempts"]
    assert (first["precision"], first["score"]) == ("float32", report["float32"])
    tried = [attempt for attempt in others if attempt["precision"] == "int8"]
    assert [attempt["left_out"] for attempt in tried] == [[], [DEPTHWISE]]
    assert all(attempt["milliseconds"] > 0 for attempt in report["attempts"])
    assert report["score"] == vankit.validate(labelled, int8.folder, workers=0).top1


def test_int8_is_described(int8: Exported) -> None:
    names = {path.name for path in int8.folder.iterdir()}
    assert names == {"README.md", "export.json", "labels.txt", "model.bin", "model.xml", "preprocessing.json"}
    readme = (int8.folder / "README.md").read_text()
    report = int8.facts["int8"]
    rows = [line for line in readme.splitlines() if line.startswith("| int8")]
    assert len(rows) == 2 and sum(line.endswith("| yes |") for line in rows) == 1
    kept = next(line for line in rows if line.endswith("| yes |"))
    assert f"{report['score']:.2%}" in kept and (DEPTHWISE in kept) == bool(report["left_out"])
    assert "calibrated on 10 images. Top-1 is the accuracy on 60 images" in readme
    assert "nncf" in int8.facts["versions"]


def test_dynamic_int8_takes_other_sizes(int8: Exported, network: nn.Module) -> None:
    model = openvino_core().compile_model(int8.folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = np.stack([np.asarray(picture(seed).resize((96, 64)), np.float32).transpose(2, 0, 1) for seed in (1, 2)])
    x = x / 127.5 - 1
    with torch.inference_mode():
        expected = network(torch.from_numpy(x)).numpy()
    difference = np.abs(model(x)[0] - expected).max()
    assert 1e-4 < difference < 0.2 * np.abs(expected).max()


def test_int8_has_class_maps(int8: Exported, network: nn.Module) -> None:
    predictor = Predictor(int8.folder)
    x = predictor.preprocess(np.asarray(picture(1)))
    with torch.inference_mode():
        _, expected = WithClassMaps(network)(torch.from_numpy(x)[None])
    _, maps = predictor.class_maps(x)
    assert 1e-5 < np.abs(maps - expected[0].numpy()).max() < 0.2 * expected.max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_what_is_quantised(
    float32: Callable[[Format], Exported], photographs: Path, tmp_path: Path, kind: Format
) -> None:
    """Convolutions and the head, or all but the depth-wise ones; never sums, products and norms."""
    exported = float32(kind)
    inputs = [exported.preprocessing(load_image(path))[None] for path in sorted(photographs.glob("0[0-4].png"))]
    ladder = module._ladder(module._layers(exported))
    assert [groups for groups, _ in ladder] == [
        [], [DEPTHWISE], *([DEPTHWISE, "patch embeddings", *STAGES[:n]] for n in range(4))
    ]  # fmt: skip
    head, depthwise = {"openvino": ("MatMul", "GroupConvolution"), "onnx": ("Gemm", "Conv")}[kind]
    heads = {"openvino": 1, "onnx": 2}[kind]  # class maps, which stay in float, share the weights with the head
    for rung, convolutions in ((0, (24, 12)), (1, (24, 0)), (2, (20, 0)), (5, (5, 0))):
        found = replace(exported, folder=tmp_path / str(rung))
        module._quantize_without(ladder[rung][1], exported, found, inputs)
        expected = Counter({head: heads}) + Counter({"Convolution" if kind == "openvino" else "Conv": convolutions[0]})
        assert quantised_operations(found.path) - Counter({"Reshape": 9}) == expected + Counter(
            {depthwise: convolutions[1]}
        )


@pytest.mark.slow
def test_photographs_measure_agreement(
    float32: Callable[[Format], Exported], photographs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = float32("onnx")
    pictures = open_pictures(photographs / "*.png", before.description)
    exported = replace(before, folder=Path(shutil.copytree(before.folder, tmp_path / "onnx")), checksums={})
    capfd.readouterr()
    report = quantize(exported, pictures, 1.0)
    assert capfd.readouterr().out == ""
    names = sorted(photographs.glob("*.png"))  # number 6 is broken: one that calibrates
    assert (report.calibration_images, report.images, report.labelled) == (15, 16, False)
    replace(exported, precision="int8").write_description()
    old, new = Predictor(before.folder), Predictor(exported.folder)
    same = [old(path).labels[0].index == new(path).labels[0].index for path in names[1::2]]
    assert (report.float32, report.score) == (1.0, pytest.approx(np.mean(same)))
    assert [attempt.precision for attempt in report.attempts] == ["float32", "int8", "int8"]  # ONNX Runtime has no bf16


def stays_float32(names: list[str], exported: Exported, quantised: Exported, inputs: object) -> None:
    quantised.folder.mkdir()
    for path in exported.folder.glob("model.*"):
        shutil.copy(path, quantised.folder)


@pytest.fixture
def climb(float32: Callable[[Format], Exported], photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Climb the ladder with scripted figures: (images of 100 that each attempt gets wrong, milliseconds)."""
    monkeypatch.setattr(module, "_quantize_without", stays_float32)

    def run(script: list[tuple[int, float]], max_drop: float) -> Int8Report:
        left = [(0, 9.0), *script]
        times = []

        def answers(engine: object, dataset: object, title: str, keep: object) -> tuple[np.ndarray, np.ndarray]:
            wrong, time = left.pop(0)
            times.append(time)
            return np.arange(100) < wrong, np.zeros(100, int)

        monkeypatch.setattr(module, "_answers", answers)
        monkeypatch.setattr(module, "_milliseconds", lambda engine, x: times[-1])
        source = float32("onnx")
        folder = Path(shutil.copytree(source.folder, tmp_path / "folder", dirs_exist_ok=True))
        pictures = open_pictures(photographs, source.description)
        report = quantize(replace(source, folder=folder, checksums={}), pictures, max_drop)
        assert not left, "stopped too early"
        assert {path.name for path in folder.iterdir()} == {path.name for path in source.folder.iterdir()}
        return report

    return run


@pytest.mark.parametrize(
    ("script", "left_out"),
    [
        ([(1, 2.0), (1, 2.1)], []),  # everything, where this is as accurate and no slower
        ([(0, 2.0), (1, 2.0)], []),
        ([(1, 2.0), (0, 9.0)], [DEPTHWISE]),  # more accurate
        ([(1, 2.2), (1, 2.1)], [DEPTHWISE]),  # faster
        ([(2, 2.0), (1, 9.0)], [DEPTHWISE]),
        ([(1, 9.0), (2, 2.0)], []),  # within the limit
        ([(2, 2.0), (2, 2.0), (1, 3.0)], [DEPTHWISE, "patch embeddings"]),
        ([(9, 2.0)] * 3 + [(1, 3.0)], [DEPTHWISE, "patch embeddings", "stage 1"]),
    ],
)
def test_which_layers_are_left_out(
    climb: Callable[..., Int8Report], script: list[tuple[int, float]], left_out: list[str]
) -> None:
    report = climb(script, 0.01)
    assert report.left_out == left_out
    wrong = {tuple(a.left_out): w for a, (w, _) in zip(report.attempts[1:], script, strict=True)}
    assert report.score == 1 - wrong[tuple(left_out)] / 100


def test_the_layers_of_a_detector(float32: Callable[[Format], Exported], tmp_path: Path) -> None:
    """Convolutions of the VAN and of the head, and products: with weights, and of what was computed."""
    op = openvino.opset13
    x = op.parameter([1, 8, 16, 16], np.float32, "image")
    kernel, pad = np.ones((8, 8, 1, 1), np.float32), ([0, 0], [0, 0])
    embed = op.convolution(x, kernel, [2, 2], *pad, [1, 1], name="backbone.stage1.patch_embed/conv")
    wise = op.group_convolution(
        embed, np.ones((8, 1, 1, 1, 1), np.float32), [1, 1], *pad, [1, 1], name="backbone.stage1.blocks.0/conv"
    )
    strided = op.convolution(wise, kernel, [2, 2], *pad, [1, 1], name="head.p6/conv")
    flat = op.reshape(strided, [8, 16], False, name="reshape")
    product = op.matmul(flat, np.ones((16, 8), np.float32), False, False, name="head.stages.0/matmul")
    result = op.matmul(product, product, False, True, name="head.attention/matmul")
    folder = replace(float32("openvino"), folder=tmp_path, description=Description("detect", "retinanet"))
    openvino.save_model(openvino.Model([result], [x]), folder.path, compress_to_fp16=False)
    layers = dict(module._layers(folder))
    assert {name: kind for name, kind in layers.items() if kind != "float"} == {
        "backbone.stage1.patch_embed/conv": "strided",
        "backbone.stage1.blocks.0/conv": "depth-wise",
        "head.p6/conv": "head",
        "head.stages.0/matmul": "head",
    }
    assert {"reshape", "head.attention/matmul"} <= set(layers)
    groups = [groups for groups, _ in module._ladder(list(layers.items()))]
    assert groups == [[], [DEPTHWISE], [DEPTHWISE, "head"], [DEPTHWISE, "head", "patch embeddings"]]


def test_too_much_is_lost(climb: Callable[..., Int8Report], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loses more than 1\.00% of top-1, which is 100\.00% in float32") as error:
        climb([(20 - i, 1.0) for i in range(6)], 0.01)
    for figure in (
        "nothing left in float: 80.00%",
        f"{DEPTHWISE} left in float: 81.00%",
        "stage 3 left in float: 85.00%",
    ):
        assert figure in str(error.value)
    assert "more images" in str(error.value) and "--max-drop" in str(error.value)


def test_a_refused_int8_leaves_nothing(
    network: nn.Module, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_quantize_without", stays_float32)
    monkeypatch.setattr(module, "_best", lambda attempts, max_drop: None)
    with pytest.raises(UserError, match="int8 loses more than"):
        vankit.export(network, out=tmp_path / "new", int8=True, calibrate=photographs, classes=CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_sets_and_photographs_are_told_apart(labelled: Path, photographs: Path, tmp_path: Path) -> None:
    def opened(data: Path | str, classes: list[str] = CLASSES, named: bool = True):  # type: ignore[no-untyped-def]
        pictures = open_pictures(data, Description(classes=classes, named=named, preprocessing=PREPROCESSING))
        indices = None if pictures.classes is None else pictures.classes.tolist()
        return len(pictures.calibration), len(pictures.measured), indices

    assert opened(photographs) == (16, 16, None)
    assert opened(str(photographs / "1*.png")) == (5, 5, None)
    assert opened(photographs / "10.png") == (1, 1, None)
    assert opened(labelled / "val")[0] == opened(labelled / "val")[1] == 61  # no train: val calibrates
    assert opened(labelled / "val", ["x", "y"])[2] is None  # photographs in folders of other names
    train, val, indices = opened(labelled, CLASSES[::-1])
    assert (train, val) == (10, 61)
    assert indices == [3 - CLASSES.index(path.name) for path in sorted((labelled / "val").iterdir())]
    assert opened("shapes", [str(i) for i in range(len(vankit.data.shapes.CLASSES))], False)[:2] == (12_000, 1_000)
    with pytest.raises(UserError, match="does not know"):
        opened(labelled, ["x", "y"])
    with pytest.raises(MissingFileError, match="no dataset at"):
        opened(tmp_path / "nothing")
    with pytest.raises(MissingFileError, match="no images in"):
        opened(str(tmp_path / "*.png"))


def test_calibration_images_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALIBRATION_IMAGES", 4)
    images = [(np.full((3, 1, 1), i, np.float32), 0) for i in range(10)]
    assert [int(x[0, 0, 0, 0]) for x in module._calibration(images)] == [0, 3, 6, 9]
    assert [x.shape for x in module._calibration(images[:2])] == [(1, 3, 1, 1)] * 2


def test_logits_that_are_not_finite_are_not_counted(
    float32: Callable[[Format], Exported], photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = float32("openvino")
    engine = exported.engine(cached=False)
    monkeypatch.setattr(type(engine), "__call__", lambda self, x: np.full((len(x), 4), np.nan, np.float32))
    with pytest.raises(UserError, match="the network's output is NaN or infinite"):
        quantize(exported, open_pictures(photographs, exported.description), 1.0)


def test_nothing_readable(float32: Callable[[Format], Exported], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    pictures = open_pictures(tmp_path, Description(classes=CLASSES, preprocessing=PREPROCESSING))
    says = r"none of the images to calibrate or measure int8 can be read: pass others \(--calibrate\); .*broken\.png is"
    with pytest.raises(UserError, match=says):
        quantize(float32("onnx"), pictures, 0.01)


@pytest.mark.slow
def test_a_multi_label_network_is_measured_by_map(network: nn.Module, photographs: Path, tmp_path: Path) -> None:
    """By labels, some of them wrong, as vankit validate does; and without them by what float32 says."""
    thresholds = [0.5, 0.4, 0.6, 0.5]
    metadata = {"classes": CLASSES, "thresholds": thresholds, "preprocessing": asdict(PREPROCESSING)}
    vankit.save_checkpoint(network, tmp_path / "x.safetensors", metadata=metadata)
    paths = sorted(photographs.glob("??.png"))
    found = Predictor(tmp_path / "x.safetensors", engine="torch")(paths)
    names = [[label.name for label in each.labels] for each in found]
    assert {len(each) for each in names} > {1}
    rows = [f"{p},{';'.join(n[1:] if i % 3 else n)}" for i, (p, n) in enumerate(zip(paths, names, strict=True))]
    (tmp_path / "labels.csv").write_text("\n".join(["file,labels", *rows]).replace(f"{photographs}/", ""))
    (tmp_path / "images").symlink_to(photographs)
    for data in (tmp_path / "labels.csv", photographs):
        int8 = vankit.export(
            checkpoint=tmp_path / "x.safetensors", out=tmp_path / "int8", int8=True, calibrate=data, max_drop=0.5
        )
        report = int8.facts["int8"]
        assert (report["measure"], report["labelled"]) == ("mAP", data != photographs)
        assert "| precision | left in float | mAP |" in (int8.folder / "README.md").read_text()
        if report["labelled"]:
            assert report["float32"] < 1
            assert report["score"] == pytest.approx(vankit.validate(data, int8.folder, workers=0).measures["mAP"])
        else:
            assert report["float32"] == 1 >= report["score"] > 0.5


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.export
def test_cifar10_loses_less_than_a_point(shared_data: Callable[..., Path], tmp_path: Path) -> None:
    data = shared_data("cifar10", r"/0[01]\d\d[.]jpg")
    found = vankit.export("van_b0.cifar10", out=tmp_path / "int8", int8=True, calibrate=data)
    report = found.facts["int8"]
    assert report["images"] == 2_000
    assert report["float32"] - report["score"] <= 0.01
    assert vankit.validate(data, found.folder).top1 == report["score"]
