"""Exported networks against the eager one: run by vankit without PyTorch, by plain engines, and as the README says."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from on_devices import ON_DEVICES
from PIL import Image
from torch import nn

import vankit
from vankit.cli import main
from vankit.data.preprocessing import Preprocessing
from vankit.deploy import export
from vankit.deploy.export import HALF_TOLERANCE, _command, _folder_for
from vankit.deploy.folder import FILES, Exported, Format, read_exported
from vankit.engines import convert
from vankit.engines.convert import OPSETS, UnsupportedNetworkError, to_openvino
from vankit.engines.onnxruntime import without_class_maps
from vankit.engines.openvino import openvino_core
from vankit.errors import MissingPackageError, UserError
from vankit.explanation.maps import grad_cam
from vankit.locks import held
from vankit.models import class_maps
from vankit.models.class_maps import WithClassMaps
from vankit.models.fold import fold
from vankit.prediction.labels import Predictor

SIZE = (3, 64, 48)
CLASSES = ["ant", "bee", "cat", "dog"]
FORMATS = ["openvino", "onnx", "pt2"]
OTHER_SHAPES = [(1, *SIZE), (5, *SIZE), (2, 3, 97, 64), (3, 3, 33, 50), (1, 3, 128, 128)]

Factory = Callable[..., Exported]


def small(seed: int = 0) -> nn.Module:
    """Quick to export, and with the parts of every VAN; norms and layer scales as if trained."""
    torch.manual_seed(seed)
    network = vankit.VAN(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=4).eval()
    for name, tensor in network.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            nn.init.normal_(tensor, 0, 0.3)
        elif name.endswith("running_var") or (name.endswith("weight") and "norm" in name):
            nn.init.uniform_(tensor, 0.5, 2)
        elif "layer_scale" in name:
            nn.init.uniform_(tensor, 0.1, 0.5)
    nn.init.normal_(network.head.fc.weight)
    network.pretrained_cfg = {
        "input_size": SIZE, "crop_pct": 0.9, "interpolation": "bilinear", "mean": (0.4, 0.5, 0.6),
        "std": (0.3, 0.2, 0.25),
    }  # fmt: skip
    return network


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small()


@pytest.fixture(scope="module")
def exports(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Factory:
    """Factory: the network's folder by format, for every size or for one; made once, not to be changed."""

    @cache
    def make(kind: Format, dynamic: bool = False) -> Exported:
        out = tmp_path_factory.mktemp("exports") / f"{kind}{'-dynamic' * dynamic}"
        return vankit.export(network, out=out, format=kind, dynamic=dynamic, classes=CLASSES)

    return make


def eager(network: nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(x)).numpy()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape, np.float32)


def plain(exported: Exported) -> Callable[[np.ndarray], np.ndarray]:
    """The file run by its own library."""
    if exported.format == "openvino":
        model = openvino_core().compile_model(exported.folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda x: model({"images": x})["logits"]
    if exported.format == "onnx":
        session = onnxruntime.InferenceSession(exported.folder / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda x: session.run(["logits"], {"images": x})[0]
    if exported.format == "executorch":
        from executorch.runtime import Runtime

        program = Runtime.get().load_program(exported.folder / "model.pte")
        return lambda x: program.load_method("forward").execute([torch.from_numpy(x)])[0].numpy()
    if exported.format == "litert":
        from ai_edge_litert.interpreter import Interpreter

        runner = Interpreter(str(exported.folder / "model.tflite")).get_signature_runner()
        return lambda x: runner(images=x)["logits"]
    module = torch.export.load(exported.folder / "model.pt2").module()
    return lambda x: eager(module, x)


WITHOUT_TORCH = """
import sys
import numpy as np
from vankit.prediction.labels import Predictor

*folders, images, answers = sys.argv[1:]
found = []
for folder in folders:
    predictor = Predictor(folder)
    found.append(predictor.logits(np.load(images)))
    picture = predictor(np.zeros((50, 40, 3), np.uint8))
    assert picture.error is None and len(picture.labels) == 4
np.save(answers, found)
assert not {"torch", "timm", "lightning"} & set(sys.modules), "PyTorch was imported"
"""


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_folders_run_without_torch(network: nn.Module, exports: Factory, tmp_path: Path, dynamic: bool) -> None:
    x = noise(6, *SIZE)
    np.save(tmp_path / "x.npy", x)
    folders = [exports(kind, dynamic).folder for kind in ("openvino", "onnx")]
    arguments = [*map(str, folders), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], check=True)
    for found in np.load(tmp_path / "y.npy"):
        np.testing.assert_allclose(found, eager(network, x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ON_DEVICES)
def test_folders_for_devices_run(network: nn.Module, exports: Factory, tmp_path: Path, kind: Format) -> None:
    x = noise(6, *SIZE)
    np.save(tmp_path / "x.npy", x)
    arguments = [str(exports(kind).folder), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    assert ("PyTorch was imported" in done.stderr) == (kind == "executorch") == bool(done.returncode), done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy")[0], eager(network, x), atol=1e-4, rtol=0)
    assert set(exports(kind).facts["versions"]) >= {
        "vankit",
        "torch",
        "executorch" if kind == "executorch" else "ai-edge-litert",
    }


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_class_maps_are_grad_cam(network: nn.Module, exports: Factory, kind: Format, dynamic: bool) -> None:
    folder = exports(kind, dynamic)
    predictor, x = Predictor(folder.folder), noise(1, *SIZE)
    logits, maps = predictor.class_maps(x[0])
    np.testing.assert_allclose(logits, eager(network, x)[0], atol=1e-4)
    for i, found in enumerate(maps):
        heat = grad_cam(network, "stage4", torch.from_numpy(x), lambda y, i=i: network(y)[:, i])
        np.testing.assert_allclose(found, heat[0], atol=1e-5)
    assert maps.shape == (4, 2, 2) and maps.max() > 0.01
    of_torch = Predictor(network, classes=CLASSES, engine="torch").class_maps(x[0])
    np.testing.assert_allclose(of_torch[1], maps, atol=1e-5)
    assert len(folder.engine().outputs(x)) == 1  # nor are they computed for labels
    with pytest.raises(UserError, match=r"^x is float32 of shape \(1, 1, 3, 64, 48\)"):
        predictor.class_maps(x)


@pytest.mark.parametrize("kind", ["pt2", *ON_DEVICES])
def test_other_formats_have_no_class_maps(exports: Factory, kind: Format) -> None:
    folder = exports(kind).folder
    with pytest.raises(UserError, match=f"^{folder} gives no class maps: expected .*, exported to openvino or onnx"):
        Predictor(folder).class_maps(noise(*SIZE))


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_pt2_folders_run(network: nn.Module, exports: Factory, dynamic: bool) -> None:
    x = noise(3, *SIZE)
    predictor = Predictor(exports("pt2", dynamic).folder)
    np.testing.assert_allclose(predictor.logits(x), eager(network, x), atol=1e-4, rtol=0)
    assert predictor.network is None


@pytest.mark.parametrize("kind", ["openvino", *(pytest.param(kind, marks=pytest.mark.slow) for kind in FORMATS[1:])])
def test_dynamic_models_take_every_batch_and_size(network: nn.Module, exports: Factory, kind: Format) -> None:
    run = plain(exports(kind, True))
    for shape in OTHER_SHAPES:
        x = noise(*shape)
        np.testing.assert_allclose(run(x), eager(network, x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [*FORMATS, *ON_DEVICES])
def test_static_models_take_one_size(network: nn.Module, exports: Factory, kind: Format) -> None:
    run, x = plain(exports(kind)), noise(1, *SIZE)
    np.testing.assert_allclose(run(x), eager(network, x), atol=1e-4, rtol=0)
    for shape in OTHER_SHAPES[1:]:  # their kernels are cut for this size: another would be computed wrongly
        with pytest.raises(
            (RuntimeError, AssertionError, ValueError, onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument)
        ):
            run(noise(*shape))


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_folded_network_is_exported(exports: Factory, dynamic: bool) -> None:
    """Unfolded, a block has a third sum (the inner shortcut) and two more products (the layer scales)."""
    blocks, stages = 4, 4
    content = (exports("onnx", dynamic).folder / "model.onnx").read_bytes()
    nodes = onnx.load_from_string(without_class_maps(content)).graph.node
    count = Counter(node.op_type for node in nodes)
    assert count["Conv"] == stages + 8 * blocks
    assert count["Add"] == 2 * blocks + 2 * stages
    assert count["Mul"] == blocks + 3 * stages
    assert not {"BatchNormalization", "Slice"} & set(count)


def test_openvino_weights_are_float32(exports: Factory) -> None:
    model = openvino_core().read_model(exports("openvino").folder / "model.xml")
    types = Counter(str(op.get_element_type()) for op in model.get_ops() if op.get_type_name() == "Constant")
    assert "float16" not in str(types) and types["<Type: 'float32'>"] > 50


@pytest.mark.parametrize("kind", ON_DEVICES)
def test_what_xnnpack_computes(exports: Factory, kind: Format) -> None:
    """All convolutions, those too whose kernels are cut to the map."""
    path = exports(kind).folder / FILES[kind][0]
    if kind == "litert":
        from ai_edge_litert.interpreter import Interpreter

        model = Interpreter(str(path))
        model.allocate_tensors()
        assert "DELEGATE" in {op["op_name"] for op in model._get_ops_details()}
        return
    from executorch.exir._serialize._program import deserialize_pte_binary

    plan = deserialize_pte_binary(path.read_bytes()).program.execution_plan[0]
    assert plan.delegates and not [op.name for op in plan.operators if "convolution" in op.name]


@pytest.mark.parametrize("kind", ["openvino", pytest.param("onnx", marks=pytest.mark.slow)])
def test_half_of_the_file(network: nn.Module, exports: Factory, tmp_path: Path, kind: Format) -> None:
    full = exports(kind)
    found = vankit.export(network, out=tmp_path / "half", format=kind, half=True, classes=CLASSES)
    sizes = [(each.folder / FILES[kind][-1]).stat().st_size for each in (full, found)]
    assert sizes[1] < (0.51 if kind == "openvino" else 0.7) * sizes[0]  # of a network so small, much is its graph
    assert (found.precision, found.facts["half"], full.facts["half"]) == ("float32", True, False)
    x = noise(5, *SIZE)
    logits, expected = np.concatenate([plain(found)(x[i : i + 1]) for i in range(5)]), eager(network, x)
    np.testing.assert_allclose(Predictor(found.folder).logits(x), logits, atol=1e-5, rtol=0)
    assert 1e-4 < np.abs(logits - expected).max() < HALF_TOLERANCE
    assert 1e-4 < found.facts["largest_difference"] < HALF_TOLERANCE
    assert "(0.02 is allowed, as weights are stored in 16 bits)" in (found.folder / "README.md").read_text()
    # each weight rounded, and nothing else: as PyTorch computes with such weights
    rounded = fold(network)
    for tensor in rounded.state_dict().values():
        tensor.copy_(tensor.half().float())
    np.testing.assert_allclose(logits, eager(rounded, x), atol=1e-4, rtol=0)


def test_half_that_loses_too_much_is_not_kept(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "HALF_TOLERANCE", 2e-4)
    with pytest.raises(UserError, match=r"a logit differs by \d\.\de-03, where 2e-04 is allowed"):
        vankit.export(network, out=tmp_path / "new", half=True, classes=CLASSES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_opsets(network: nn.Module, tmp_path: Path, opset: int, half: bool) -> None:
    found = vankit.export(network, out=tmp_path / "new", format="onnx", opset=opset, half=half, classes=CLASSES)
    model = onnx.load(found.path)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", opset)]
    x = noise(2, *SIZE)
    for engine in ("onnxruntime", "openvino"):
        logits = Predictor(found.folder, engine=engine).logits(x)
        np.testing.assert_allclose(logits, eager(network, x), atol=HALF_TOLERANCE if half else 1e-4, rtol=0)


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("executorch", "executorch", "executorch"), ("litert", "litert_torch", "litert"), ("onnx", "onnxscript", "onnx")],
)
def test_a_missing_package_is_named(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Format, package: str, extra: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=rf"pip install 'vankit\[{extra}\]'$"):
        vankit.export(network, out=tmp_path / "new", format=format, classes=CLASSES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [*FORMATS, *ON_DEVICES])
def test_files_do_not_hold_this_machines_paths(exports: Factory, kind: Format) -> None:
    own = str(Path(vankit.__file__).parent).encode(), str(Path(torch.__file__).parents[1]).encode()
    for path in exports(kind).folder.iterdir():
        assert not any(name in path.read_bytes() for name in own), path


def test_the_description(exports: Factory) -> None:
    found = exports("onnx")
    assert found == read_exported(found.folder)
    assert (found.format, found.precision, found.dynamic) == ("onnx", "float32", False)
    assert found.description.classes == tuple(CLASSES) and found.description.named
    assert found.preprocessing == Preprocessing(SIZE, (0.4, 0.5, 0.6), (0.3, 0.2, 0.25), 0.9, "bilinear")
    assert set(found.facts["versions"]) == {"vankit", "torch", "onnx", "onnxruntime"}
    assert found.facts["versions"]["vankit"] == vankit.__version__
    assert 0 < found.facts["largest_difference"] <= 1e-4
    names = {path.name for path in found.folder.iterdir()}
    assert names == {"README.md", "export.json", "labels.txt", "model.onnx", "preprocessing.json"}
    (found.folder.parent / "usual").mkdir(exist_ok=True)
    assert found.folder.stat().st_mode == (found.folder.parent / "usual").stat().st_mode  # others may read it


@pytest.mark.parametrize("kind", [*FORMATS, *ON_DEVICES])
def test_the_readme_runs(
    exports: Factory, kind: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exports(kind).folder
    pixels = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
    Image.fromarray(pixels).resize((140, 90)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder.name).symlink_to(folder)
    readme = (folder / "README.md").read_text()
    best = Predictor(folder)("photo.jpg").labels[0].name

    command = re.search(r"```bash\n(vankit predict .*)\n```", readme)
    assert command is not None
    with pytest.raises(SystemExit) as exit:
        main(shlex.split(command[1])[1:])
    assert not exit.value.code
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "photo.jpg" and printed[1].split()[-1] == best

    snippet = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert snippet is not None
    names: dict[str, object] = {}
    exec(snippet[1], names)
    assert capsys.readouterr().out.split() == [best]
    np.testing.assert_allclose(names["x"], Predictor(folder).preprocess("photo.jpg")[None], atol=0.02)


def test_the_command_of_an_export_can_be_typed_again() -> None:
    given = {"checkpoint": None, "calibrate": "my photos", "output": Path("x"), "max_drop": 0, "max_pixels": 9}
    expected = "vankit export van_b0 --calibrate 'my photos' --output x --max-drop 0 --max-pixels 9 --int8"
    assert _command("van_b0", **given, int8=True, dynamic=False) == expected


@pytest.mark.slow
def test_a_shipped_model_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = vankit.export("van_b0.cifar10")
    assert found.folder == tmp_path / "van_b0.cifar10-openvino"
    assert [path.name for path in tmp_path.iterdir()] == ["van_b0.cifar10-openvino"]
    assert "vankit export van_b0.cifar10 --format openvino\n" in (found.folder / "README.md").read_text()
    original, x = Predictor("van_b0.cifar10", engine="torch"), noise(4, 3, 64, 64)
    assert found.description.classes == tuple(original.classes) and found.preprocessing == original.preprocessing
    np.testing.assert_allclose(Predictor(found.folder).logits(x), original.logits(x), atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_checkpoint(network: nn.Module, tmp_path: Path) -> None:
    preprocessing = {**network.pretrained_cfg, "input_size": [3, 40, 40]}
    model = vankit.models.van.create_model("van_b0", num_classes=2)
    metadata = {"model": "van_b0", "classes": ["cat", "dog"], "preprocessing": preprocessing}
    vankit.save_checkpoint(model, tmp_path / "pets.safetensors", metadata=metadata)
    found = vankit.export(checkpoint=tmp_path / "pets.safetensors", out=tmp_path / "pets", format="pt2")
    assert found.description.classes == ("cat", "dog") and found.preprocessing.input_size == (3, 40, 40)
    x = noise(1, 3, 40, 40)
    np.testing.assert_allclose(Predictor(found.folder).logits(x), eager(model.eval(), x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["openvino", "pt2", pytest.param("onnx", marks=pytest.mark.slow), *ON_DEVICES])
def test_a_wrong_network_is_not_kept(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Format
) -> None:
    def wrong(model: nn.Module) -> nn.Module:
        folded = fold(model)
        folded.head.fc.bias.data[1] += 3e-4
        return folded

    for module in (convert, class_maps):
        monkeypatch.setattr(module, "fold", wrong)
    with pytest.raises(
        UserError, match=r"differs from PyTorch's: a logit differs by 3\.[0-9]e-04, where 1e-04 is allowed"
    ):
        vankit.export(network, out=tmp_path / "new", format=kind, classes=CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_wrong_class_maps_are_not_kept(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(WithClassMaps):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits, maps = super().forward(x)
            return logits, maps.flip(1)

    monkeypatch.setattr(class_maps, "WithClassMaps", Wrong)
    with pytest.raises(UserError, match=r"differs from PyTorch's: a class map differs by .*, where 1e-04 is allowed"):
        vankit.export(network, out=tmp_path / "new", classes=CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_a_network_wrong_at_other_sizes_only_is_not_kept(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A static program in place of the dynamic one."""

    def cut(model: nn.Module, size: tuple[int, ...], dynamic: bool) -> openvino.Model:
        found = to_openvino(model, size, False)
        found.reshape([-1, 3, -1, -1])
        return found

    monkeypatch.setattr(export, "to_openvino", cut)
    for module in (export, class_maps):  # which would raise at other sizes
        monkeypatch.setattr(module, "has_class_maps", lambda network: False)
    with pytest.raises(UserError, match=r"differs from PyTorch's: .* inputs \(3, 95, 48\)"):
        vankit.export(network, out=tmp_path / "new", dynamic=True, classes=CLASSES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_network_whose_output_is_not_finite_is_not_exported(format: Format, tmp_path: Path) -> None:
    network = small()
    with torch.no_grad():
        network.stage2.norm.weight.fill_(3e38)  # itself finite
    with pytest.raises(UserError, match="the network's output is NaN or infinite"):
        vankit.export(network, out=tmp_path / "out", format=format, classes=CLASSES)
    assert not (tmp_path / "out").exists()


def test_an_exported_folder_is_replaced_and_kept_if_it_fails(
    network: nn.Module, exports: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new" / "folder"
    shutil.copytree(exports("pt2").folder, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(export, "TOLERANCE", 0.0)
        with pytest.raises(UserError, match="differs from PyTorch's"):
            vankit.export(network, out=out, format="pt2", classes=CLASSES)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    found = vankit.export(network, out=out, format="pt2", classes=list("wxyz"))
    assert found.description.classes == tuple("wxyz")
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_is_exported_by_one(network: nn.Module, exports: Factory, tmp_path: Path) -> None:
    shutil.copytree(exports("pt2").folder, tmp_path / "old")
    for out in (tmp_path / "new", tmp_path / "old"):
        with held(out), pytest.raises(UserError, match=f"{out} is being written by process"):
            vankit.export(network, out=out, format="pt2", classes=CLASSES)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_other_peoples_files_are_left_alone(network: nn.Module, exports: Factory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(UserError, match="file is a file: pass a folder"):
        vankit.export(network, out=tmp_path / "file", classes=CLASSES)
    with pytest.raises(UserError, match="holds other files, such as file: pass another folder"):
        vankit.export(network, out=tmp_path, classes=CLASSES)
    folder = Path(shutil.copytree(exports("pt2").folder, tmp_path / "new"))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files, such as notes\.txt: pass another folder"):
        vankit.export(network, out=folder, classes=CLASSES)
    assert (folder / "notes.txt").read_text() == "mine" and (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite': expected one of openvino, onnx, pt2, executorch, litert"),
        ({"format": "pt2", "int8": True, "calibrate": "photos"}, "`int8` is for format openvino or onnx, not pt2"),
        (
            {"format": "litert", "int8": True, "calibrate": "photos"},
            "`int8` is for format openvino or onnx, not litert",
        ),
        ({"format": "executorch", "dynamic": True}, "`dynamic` is for format openvino or onnx or pt2, not executorch"),
        ({"format": "litert", "half": True}, "`half` is for format openvino or onnx or web, not litert: leave it out"),
        ({"opset": 18}, "`opset` is for format onnx, not openvino"),
        ({"format": "onnx", "opset": 17}, "opset is 17: expected 18 to 25"),
        ({"int8": True, "calibrate": "photos", "half": True}, "`int8` stores weights in 8 bits: leave out `half`"),
        ({"int8": True}, "`int8` and `calibrate` go together"),
        ({"calibrate": "photos"}, "`int8` and `calibrate` go together"),
        ({"max_drop": 1.5}, "max_drop is 1.5: expected 0 to 1"),
        ({"classes": ["a"]}, "4 outputs and there are 1 class names"),
    ],
)
def test_options_that_do_not_fit(network: nn.Module, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vankit.export(network, out=tmp_path / "new", **{"classes": CLASSES, **options})
    assert list(tmp_path.iterdir()) == []


class Unsupported(nn.Module):
    num_classes = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))[:, : 1 + int(x.sum() > 0)]


def test_networks_that_cannot_be_exported(tmp_path: Path) -> None:
    network = Unsupported()
    network.pretrained_cfg = small().pretrained_cfg
    with pytest.raises(UnsupportedNetworkError, match=r"torch\.export cannot take the network"):
        vankit.export(network, out=tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_classes_without_names(network: nn.Module, tmp_path: Path) -> None:
    found = vankit.export(network, out=tmp_path / "new", format="pt2")
    assert found.description.classes == ("0", "1", "2", "3") and not found.description.named
    assert json.loads((found.folder / "export.json").read_text())["named"] is False


@pytest.mark.parametrize("between", [True, False])
def test_what_a_killed_export_left_is_put_right(between: bool, tmp_path: Path) -> None:
    """Killed between its two renames, or after them."""
    target, old, partial = tmp_path / "x", tmp_path / ".x.vankit-old", tmp_path / ".x.vankit-new"
    for folder in (old, partial, *[target] * (not between)):
        folder.mkdir()
        (folder / "model").write_text(folder.name)
    with suppress(KeyError), _folder_for(target) as made:
        assert list(made.iterdir()) == []
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (target / "model").read_text() == (".x.vankit-old" if between else "x")
    with _folder_for(target) as made:
        (made / "model").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"] and (target / "model").read_text() == "new"
