"""Exported folders made by hand, whose models average each channel, and what is wrong with damaged ones."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from on_devices import ON_DEVICES, write_means

from vankit.data.held_out import HeldOut
from vankit.data.preprocessing import Preprocessing
from vankit.deploy.folder import FILES, Exported, Format, is_exported, read_exported
from vankit.errors import MissingFileError, MissingPackageError, UserError
from vankit.models.description import Description
from vankit.prediction.labels import Predictor

PREPROCESSING = Preprocessing((3, 8, 6), (0.4, 0.5, 0.6), (0.3, 0.25, 0.2), 0.9, "bilinear")
FORMATS = ["openvino", "onnx", "pt2"]
ENGINES = {
    "openvino": "openvino", "onnx": "onnxruntime", "pt2": "torch", "executorch": "executorch", "litert": "litert",
}  # fmt: skip


class ChannelMeans(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def write_model(path: Path, kind: str, size: tuple[int, ...]) -> None:
    """Input (1, 3, 8, 6) or dynamic, output the mean of each channel."""
    if kind == "openvino":
        import openvino
        from openvino import opset13

        x = opset13.parameter(openvino.PartialShape(list(size)), np.float32)
        openvino.save_model(openvino.Model([opset13.reduce_mean(x, [2, 3])], [x]), path)
    elif kind == "onnx":
        import onnx
        from onnx import TensorProto, helper

        nodes = [
            helper.make_node("GlobalAveragePool", ["images"], ["means"]),
            helper.make_node("Flatten", ["means"], ["logits"]),
        ]
        ends = helper.make_tensor_value_info("images", TensorProto.FLOAT, [n if n > 0 else None for n in size])
        answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, 3])
        opset = [helper.make_opsetid("", 20)]
        onnx.save(
            helper.make_model(helper.make_graph(nodes, "g", [ends], [answer]), opset_imports=opset, ir_version=10), path
        )
    elif kind in ("executorch", "litert"):
        write_means(path, size)
    else:
        batch = torch.export.Dim.DYNAMIC if size[0] < 0 else None
        shapes = ({0: batch, 2: batch, 3: batch},) if batch else None
        torch.export.save(
            torch.export.export(ChannelMeans(), (torch.zeros(2 if batch else 1, 3, 8, 6),), dynamic_shapes=shapes), path
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Format, bool], Path]:
    """Factory: a whole folder by format, for every size or for one; made once, to be copied before it is changed."""

    @cache
    def make(kind: Format, dynamic: bool = False) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        exported = Exported(
            folder,
            kind,
            "float32",
            dynamic,
            Description(classes=["red", "green", "blue"], preprocessing=PREPROCESSING),
            {"by": "hand"},
        )
        write_model(exported.path, kind, (-1, 3, -1, -1) if dynamic else (1, 3, 8, 6))
        exported.write_description()
        return folder

    return make


@pytest.fixture
def copied(made: Callable[[Format, bool], Path], tmp_path: Path) -> Callable[[Format], Path]:
    return lambda kind: Path(shutil.copytree(made(kind), tmp_path / kind))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", FORMATS)
def test_engines_run_any_number_of_images(made: Callable[[Format, bool], Path], kind: Format, dynamic: bool) -> None:
    exported = read_exported(made(kind, dynamic))
    engine = exported.engine()
    assert (engine.name, engine.precision) == (ENGINES[kind], "float32")
    for count in (1, 5):
        x = np.random.default_rng(count).standard_normal((count, 3, 8, 6), np.float32)
        np.testing.assert_allclose(engine(x), x.mean((2, 3)), atol=1e-6)
        np.testing.assert_allclose(engine.worker()(x), x.mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize("kind", ON_DEVICES)
def test_engines_of_devices_run_any_number_of_images(made: Callable[[Format, bool], Path], kind: Format) -> None:
    test_engines_run_any_number_of_images(made, kind, False)
    engine = read_exported(made(kind, False)).engine()
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 6), np.float32)
    np.testing.assert_allclose(engine.outputs(x), [x.mean((2, 3))], atol=1e-6)
    assert engine(x[:0]).shape == engine.worker()(x[:0]).shape == (0, 3)
    found: dict[int, np.ndarray] = {}
    many = np.random.default_rng(1).standard_normal((8, 200, 3, 8, 6), np.float32)
    threads = [Thread(target=lambda i=i: found.update({i: engine.worker()(many[i])})) for i in range(len(many))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([found[i] for i in range(len(many))], many.mean((3, 4)), atol=1e-6)


@pytest.mark.parametrize("kind", ON_DEVICES)
def test_devices_compute_in_float32(made: Callable[[Format, bool], Path], kind: Format) -> None:
    exported = read_exported(made(kind, False))
    with pytest.raises(UserError, match=r"^precision is bf16, but .* in float32: leave it out$"):
        exported.engine(precision="bf16")
    with pytest.raises(UserError, match="which engine openvino cannot run: use auto"):
        exported.engine("openvino")


@pytest.mark.parametrize(("kind", "package"), [("executorch", "executorch"), ("litert", "ai_edge_litert")])
def test_a_missing_runtime_is_named(
    kind: Format, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    description = Description(classes=["red"], preprocessing=PREPROCESSING)
    exported = Exported(tmp_path, kind, "float32", False, description)
    exported.path.write_bytes(b"any")
    exported.write_description()
    with pytest.raises(
        MissingPackageError, match=rf"^{exported.path} needs .*: pip install ('vankit\[executorch\]'|ai-edge-litert)$"
    ):
        read_exported(tmp_path).engine()


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
def test_class_maps_that_the_model_does_not_give(copied: Callable[[Format], Path], kind: Format) -> None:
    folder = copied(kind)
    replace(read_exported(folder), outputs=("logits", "saliency_map")).write_description()
    with pytest.raises(UserError, match=r"its output is .*3\), and export.json asks for \(1, 3\), \(1, 3, any, any\)"):
        read_exported(folder).engine()(np.zeros((1, 3, 8, 6), np.float32))


def test_onnx_in_openvino(made: Callable[[Format, bool], Path]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 6), np.float32)
    for dynamic in (False, True):
        engine = read_exported(made("onnx", dynamic)).engine("openvino")
        assert engine.name == "openvino"
        np.testing.assert_allclose(engine(x), x.mean((2, 3)), atol=1e-6)


def test_what_is_read_is_what_was_written(made: Callable[[Format, bool], Path]) -> None:
    found = read_exported(str(made("onnx", True)))
    assert (found.format, found.precision, found.dynamic, found.description.named) == ("onnx", "float32", True, True)
    assert found.description.classes == ("red", "green", "blue")
    assert found.preprocessing == PREPROCESSING
    assert found.facts == {"by": "hand"}
    assert set(found.checksums) == {"model.onnx", "labels.txt", "preprocessing.json"}


def test_the_whole_description_is_kept(made: Callable[[Format, bool], Path], tmp_path: Path) -> None:
    exported = replace(read_exported(made("onnx", True)), folder=tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"")
    description = replace(exported.description, model="van_b1", named=False, lka={"kernel_size": [7]})
    replace(exported, description=description).write_description()
    assert read_exported(tmp_path).description == description
    assert read_exported(tmp_path).facts == exported.facts
    facts = json.loads((tmp_path / "export.json").read_text())
    del facts["task"], facts["lka"]  # which version 0.1 did not write
    (tmp_path / "export.json").write_text(json.dumps(facts))
    assert read_exported(tmp_path).description == replace(description, lka={})


@pytest.mark.parametrize("held_out", [None, HeldOut(0.3, 5, plain=True)])
def test_the_images_held_out_are_remembered(made: Callable[[Format, bool], Path], held_out: HeldOut | None) -> None:
    folder = made("onnx", True).parent / "held-out"
    shutil.copytree(made("onnx", True), folder, dirs_exist_ok=True)
    exported = read_exported(folder)
    replace(exported, description=replace(exported.description, held_out=held_out)).write_description()
    assert read_exported(folder).description.held_out == held_out
    assert ("held_out" in json.loads((folder / "export.json").read_text())) == (held_out is not None)


BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # what ends a line for str.splitlines


@settings(max_examples=100)
@given(st.lists(st.text(st.characters() | st.sampled_from(BREAKS), max_size=3), max_size=4))
@example(["a\n"])
@example(["", ""])
def test_class_names_come_back_or_are_refused(made: Callable[[Format, bool], Path], names: list[str]) -> None:
    folder = made("onnx").parent / "names"
    shutil.copytree(made("onnx"), folder, dirs_exist_ok=True)
    exported = Exported(folder, "onnx", "float32", False, Description(classes=names, preprocessing=PREPROCESSING))
    if any(char in BREAKS for name in names for char in name):
        with pytest.raises(UserError, match="contains a line break; labels.txt has one name per line: rename it"):
            exported.write_description()
        return
    exported.write_description()
    assert read_exported(folder).description.classes == tuple(names)


@pytest.mark.parametrize("kind", [*FORMATS, *ON_DEVICES])
def test_missing_files(copied: Callable[[Format], Path], kind: Format) -> None:
    folder = copied(kind)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(MissingFileError, match=f"not a complete exported folder: {path.name} is missing"):
            read_exported(folder)
        path.write_bytes(content)
    read_exported(folder)


@pytest.mark.parametrize("kind", ON_DEVICES)
def test_damaged_models_for_devices(copied: Callable[[Format], Path], kind: Format) -> None:
    test_damaged_models(copied, kind, FILES[kind][0])


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in FORMATS for name in FILES[kind]])
def test_damaged_models(copied: Callable[[Format], Path], kind: Format, name: str) -> None:
    path = copied(kind) / name
    content = path.read_bytes()
    for damaged in (content[:-1], content + b"\0", bytes([content[0] ^ 1]) + content[1:] if content else b"x"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{name} is damaged or was changed: export the model again"):
            read_exported(path.parent).engine()
    path.write_bytes(content)
    read_exported(path.parent).engine()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("export.json", "{"),
        ("export.json", "[]"),
        ("export.json", "3"),
        ("export.json", "{}"),
        ("export.json", "[" * 100_000),
        ("export.json", None),
        ("preprocessing.json", "[1]"),
        ("preprocessing.json", '{"input_size": [3, 8, 6]}'),
        ("labels.txt", "red\ngreen\n"),
        ("labels.txt", "red\ngreen\nblue\n\n"),
    ],
)
def test_damaged_descriptions(copied: Callable[[Format], Path], name: str, content: str | None) -> None:
    path = copied("onnx") / name
    if content is None:
        content = json.dumps({**json.loads(path.read_text()), "format": "tflite"})
    path.write_text(content)
    with pytest.raises(UserError, match=rf"/onnx/{name}.*; it is damaged, or was changed: export the model again"):
        read_exported(path.parent)


@pytest.mark.parametrize(
    "stated",
    [
        {}, None, [], "0" * 64, {"model.xml": "0" * 64}, {"model.bin": "0" * 64},
        {"model.xml": "0" * 64, "../model.bin": "0" * 64}, {"model.xml": "0" * 64, "/model.bin": "0" * 64},
        {"model.xml": "0" * 64, "model.bin": "0" * 64, "labels.txt": "0" * 64},
        {"model.xml": "0" * 64, "model.bin": None}, {"model.xml": "0" * 64, "model.bin": "0" * 63},
        {"model.xml": "0" * 64, "model.bin": ["0" * 64]}, {"model.xml": "0" * 64, "model.bin": ""},
    ],
)  # fmt: skip
def test_the_checksums_cannot_be_left_out(copied: Callable[[Format], Path], stated: object) -> None:
    folder = copied("openvino")
    facts = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**facts, "sha256": stated}))
    with pytest.raises(UserError, match=r"export\.json: sha256 is .*: expected .*: export the model again"):
        read_exported(folder)
    del facts["sha256"]
    (folder / "export.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"export\.json.*sha256.*: export the model again"):
        read_exported(folder)


def test_options_that_do_not_fit(made: Callable[[Format, bool], Path]) -> None:
    openvino, onnx = (read_exported(made(kind)) for kind in ("openvino", "onnx"))
    with pytest.raises(UserError, match=r"format openvino, which engine onnxruntime cannot run: use openvino"):
        openvino.engine("onnxruntime")
    with pytest.raises(UserError, match=r"format onnx, which engine torch cannot run: use onnxruntime"):
        onnx.engine("torch")
    with pytest.raises(UserError, match="device is 'cuda', but exported folders run on the CPU"):
        onnx.engine(device="cuda")
    with pytest.raises(UserError, match="was exported in float32, not int8: export it with that"):
        openvino.engine(precision="int8")


def test_is_exported(made: Callable[[Format, bool], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_exported(made("onnx")) and is_exported(str(made("onnx")))
    assert not is_exported("van_b0") and not is_exported(torch.nn.Identity()) and not is_exported(tmp_path / "nothing")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "van_b0").mkdir()
    for name in ("config.json", "labels.txt", "model.safetensors"):
        (tmp_path / "van_b0" / name).touch()
    assert not is_exported("van_b0") and not is_exported("./van_b0")
    for name in ("export.json", "preprocessing.json", "model.xml"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
        assert is_exported(tmp_path / name)  # and opening it says what is missing


def test_thresholds_are_kept(made: Callable[[Format, bool], Path], tmp_path: Path) -> None:
    exported = replace(read_exported(made("onnx", True)), folder=tmp_path)
    shutil.copy(made("onnx", True) / "model.onnx", tmp_path)
    # the model gives each channel's mean
    several = replace(exported.description, thresholds=[0.4, 0.6, 0.8])
    replace(exported, description=several).write_description()
    assert read_exported(tmp_path).description == several
    mean, std = (np.array(values)[:, None, None] for values in (PREPROCESSING.mean, PREPROCESSING.std))
    logits = ((np.full((3, 1, 1), 200) / 255 - mean) / std).mean((1, 2))
    scores = 1 / (1 + np.exp(-logits))
    found = Predictor(tmp_path)(np.full((30, 30, 3), 200, np.uint8)).labels
    assert {label.index: label.score for label in found} == pytest.approx(
        {i: scores[i] for i in range(3) if scores[i] >= several.thresholds[i]}, abs=1e-5
    )
    assert len(found) < 3
