"""Exported folders that are damaged or meant to harm: one line that names the file, whoever made them."""

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from on_devices import ON_DEVICES, write_means

from vankit.data.preprocessing import Preprocessing
from vankit.deploy.folder import Exported, Format, read_exported
from vankit.errors import ReadError, UserError
from vankit.files import sha256_of
from vankit.models.description import Description

SIZE = (3, 8, 6)
PREPROCESSING = Preprocessing(SIZE, (0.5,) * 3, (0.5,) * 3, 0.9, "bilinear")


def openvino(path: Path, size: tuple[int, ...] = (1, *SIZE), inputs: int = 1, kind: Any = np.float32) -> None:
    """The mean of each channel of an input, or of the sum of several."""
    import openvino as ov
    from openvino import opset13 as ops

    ends = [ops.parameter(list(size), kind) for _ in range(inputs)]
    total = ends[0]
    for end in ends[1:]:
        total = ops.add(total, end)
    axes = np.arange(2, len(size))
    ov.save_model(ov.Model([ops.reduce_mean(total, axes)], ends), path)


def onnx(path: Path, size: tuple[int, ...] = (1, *SIZE), nodes: Any = None, **constants: Any) -> None:
    from onnx import TensorProto, helper

    nodes = nodes or [
        helper.make_node("GlobalAveragePool", ["images"], ["means"]), helper.make_node("Flatten", ["means"], ["logits"])
    ]  # fmt: skip
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, list(size))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, size[1]])
    graph = helper.make_graph(nodes, "g", [images], [logits], list(constants.values()))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())


def on_device(path: Path, size: tuple[int, ...] = (1, *SIZE), **options: Any) -> None:
    write_means(path, size, **options)


WRITERS: dict[str, Callable[..., None]] = {
    "openvino": openvino, "onnx": onnx, "executorch": on_device, "litert": on_device,
}  # fmt: skip
OWN_ENGINES = {"openvino": "openvino", "onnx": "onnxruntime", "executorch": "auto", "litert": "auto"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Format], Path]:
    @cache
    def make(kind: Format) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        exported = Exported(
            folder, kind, "float32", False, Description(classes=["r", "g", "b"], preprocessing=PREPROCESSING)
        )
        WRITERS[kind](exported.path)
        exported.write_description()
        return folder

    return make


@pytest.fixture
def copied(sound: Callable[[Format], Path], tmp_path: Path) -> Callable[[Format], Path]:
    return lambda kind: Path(shutil.copytree(sound(kind), tmp_path / kind))


def change(path: Path, **values: Any) -> None:
    """Other values in a JSON file; ... takes one away."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


def seal(folder: Path) -> None:
    """Checksums of the model's files as they are now, as whoever means harm would write them."""
    sums = {path.name: sha256_of(path) for path in folder.iterdir() if path.name.startswith("model.")}
    change(folder / "export.json", sha256=sums)


def refusal(folder: Path, name: str, engine: str | None = None) -> str:
    def use() -> None:
        exported = read_exported(folder)
        assert engine is not None, "the description was accepted"
        exported.engine(engine, cached=False)(np.zeros((1, *exported.preprocessing.input_size), np.float32))

    with pytest.raises(UserError) as error:
        use()
    said = str(error.value)
    assert str(folder / name) in said and "\n" not in said and len(said) < 1000
    return said


DESCRIPTIONS: list[tuple[str, Any, str]] = [
    ("format", "tflite", "format is 'tflite'"), ("format", 5, "format is 5"), ("format", ..., "format is missing"),
    ("format", ["onnx"], "format is "), ("precision", "fp4", "precision is 'fp4'"),
    ("precision", None, "precision is None"),
    ("precision", ..., "precision is missing"), ("dynamic", "no", "dynamic is 'no'"), ("dynamic", 1, "dynamic is 1"),
    ("classes", "3", "classes is '3'"), ("classes", 10**9, "3 names, and the model has 1000000000 classes"),
    ("classes", True, "classes is True"), ("classes", -3, "classes is -3"), ("classes", 3.0, "classes is 3.0"),
    ("classes", ..., "classes is missing"), ("sha256", ..., "sha256 is missing"), ("sha256", "x", "sha256 is 'x'"),
    ("sha256", {"model.onnx": 5}, "sha256 is "), ("sha256", {"model.onnx": "x"}, "sha256 is "),
    ("task", "detect", "task is detect, and outputs are"), ("task", 7, "task is 7"), ("model", ["x"], "model is "),
    ("lka", 5, "lka is 5"), ("lka", {"kernel_size": 10**9}, "kernel_size is 1000000000"),
    ("named", "yes", "named is 'yes'"),
    ("thresholds", [0.5], "1 thresholds"), ("thresholds", [9, 9, 9], "threshold is 9"), ("thresholds", "x", "is 'x'"),
    ("held_out", {"share": 7}, "val_share is 7"), ("held_out", [1], "held_out is "), ("queries", 10**9, "queries is "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "reason"), DESCRIPTIONS, ids=lambda each: repr(each)[:40])
def test_an_export_json_that_cannot_be(copied: Callable[[Format], Path], name: str, value: Any, reason: str) -> None:
    folder = copied("onnx")
    change(folder / "export.json", **{name: value})
    said = refusal(folder, "labels.txt" if "3 names" in reason else "export.json")
    assert re.search(reason, said) and said.endswith("export the model again"), said


SETTINGS: list[tuple[str, Any, str]] = [
    ("input_size", [3, 10**9, 10**9], "input_size is "), ("input_size", "x", "input_size is 'x'"),
    ("input_size", ..., "input_size is missing"), ("mean", [None] * 3, "mean is "), ("std", [0, 0, 0], "std is "),
    ("crop_pct", 1e-300, "crop_pct is 1e-300"), ("crop_pct", ..., "crop_pct is missing"),
    ("interpolation", "x" * 10**7, "interpolation is 'xxx"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "reason"), SETTINGS, ids=lambda each: repr(each)[:40])
def test_a_preprocessing_json_that_cannot_be(
    copied: Callable[[Format], Path], name: str, value: Any, reason: str
) -> None:
    folder = copied("onnx")
    change(folder / "preprocessing.json", **{name: value})
    said = refusal(folder, "preprocessing.json")
    assert re.search(reason, said) and said.endswith("export the model again"), said


NOT_JSON = {
    "nothing": b"", "half": b"{", "a list": b"[]", "a number": b"3", "null": b"null", "not text": b"\xff\xfe",
    "depth": b"[" * 10**6, "depth of objects": b'{"a": ' * 10**5, "a long number": b"9" * 5000,
}  # fmt: skip


@pytest.mark.parametrize("content", NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("name", ["export.json", "preprocessing.json"])
def test_what_is_not_json(copied: Callable[[Format], Path], name: str, content: bytes) -> None:
    folder = copied("onnx")
    (folder / name).write_bytes(content)
    refusal(folder, name)


@pytest.mark.parametrize("content", [b"", b"r\ng\n", b"r\ng\nb\nmore\n", b"\xff\xfe\n\n", b"x" * 5000 + b"\ng\nb\n"])
def test_labels_that_cannot_be(copied: Callable[[Format], Path], content: bytes) -> None:
    folder = copied("onnx")
    (folder / "labels.txt").write_bytes(content)
    refusal(folder, "export.json" if content.startswith(b"x") else "labels.txt")


@pytest.mark.parametrize("name", ["export.json", "labels.txt"])
def test_files_too_large_for_what_they_are(copied: Callable[[Format], Path], name: str) -> None:
    folder = copied("onnx")
    os.truncate(folder / name, 2**40)
    assert "1,099,511,627,776 bytes" in refusal(folder, name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
@pytest.mark.parametrize("name", ["export.json", "preprocessing.json", "labels.txt", "model.onnx"])
def test_a_pipe_is_not_waited_for(copied: Callable[[Format], Path], name: str) -> None:
    folder = copied("onnx")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ReadError, match=f"^{folder / name} is a pipe: expected a file$"):
        read_exported(folder)


OTHERS = {
    "labels.txt": [b"r\ng\ncat\n", b"g\nr\nb\n", b"r\ng\ng\n", b"r\ng\nb"],
    "preprocessing.json": [b'{"mean": [0.1, 0.2, 0.3]}', b'{"crop_pct": 0.5}', b'{"interpolation": "bicubic"}'],
}


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, found in OTHERS.items() for each in found])
def test_a_file_of_another_export(copied: Callable[[Format], Path], name: str, content: bytes) -> None:
    folder = copied("onnx")
    before = json.loads((folder / "export.json").read_text())
    if name == "labels.txt":
        (folder / name).write_bytes(content)
    else:
        change(folder / name, **json.loads(content))
    said = refusal(folder, name)
    assert "is not the file that was exported with the model" in said and said.endswith("export the model again")
    assert ("classes" in said) == (name == "labels.txt")
    # folders of earlier versions have no checksum of it
    change(folder / "export.json", sha256={"model.onnx": before["sha256"]["model.onnx"]})
    read_exported(folder)


@pytest.mark.parametrize("name", ["labels.txt", "preprocessing.json"])
def test_git_may_change_the_ends_of_lines(copied: Callable[[Format], Path], name: str) -> None:
    path = copied("onnx") / name
    before = read_exported(path.parent)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_exported(path.parent).description == before.description


GARBAGE = {
    "nothing": b"", "text": b"no model", "half": None, "zeros": bytes(1000), "a page": b"<!DOCTYPE html><p>404",
    "XML": b"<?xml version='1.0'?><net name='x' version='11'><layers/></net>",
}  # fmt: skip


@pytest.mark.parametrize("case", GARBAGE)
@pytest.mark.parametrize(("kind", "engine"), [("openvino", "openvino"), ("onnx", "onnxruntime"), ("onnx", "openvino")])
def test_models_that_are_none(case: str, kind: Format, engine: str, copied: Callable[[Format], Path]) -> None:
    folder = copied(kind)
    path = read_exported(folder).path
    content = GARBAGE[case]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content is None else content)
    seal(folder)
    refusal(folder, path.name, engine)


@pytest.mark.parametrize("case", GARBAGE)
@pytest.mark.parametrize("kind", ON_DEVICES)
def test_models_for_devices_that_are_none(case: str, kind: Format, copied: Callable[[Format], Path]) -> None:
    test_models_that_are_none(case, kind, "auto", copied)


@pytest.mark.parametrize("kind", ON_DEVICES)
def test_the_model_of_another_network_for_devices(kind: Format, copied: Callable[[Format], Path]) -> None:
    folder = copied(kind)
    path = read_exported(folder).path
    cases: list[tuple[dict[str, Any], str]] = [
        ({"size": (1, 5, 8, 6)}, r"of another network: its input is \(1, 5, 8, 6\), and export.json asks for"),
        ({"inputs": 2}, r"its input is \(1, 3, 8, 6\), \(1, 3, 8, 6\)"),
        ({"size": (4, 3, 8, 6)}, r"its input is \(4, 3, 8, 6\)"),
        ({"kind": torch.float16}, r"its input is \(\), and export.json asks for"),
    ]
    for options, reason in cases:
        on_device(path, **options)
        seal(folder)
        assert re.search(reason, refusal(folder, path.name, "auto")), options


def test_numbers_that_are_too_few(copied: Callable[[Format], Path]) -> None:
    folder = copied("openvino")
    path = folder / "model.xml"
    path.write_text(path.read_text().replace('size="16"', f'size="{10**12}"'))
    seal(folder)
    assert path.read_text().count(str(10**12)), "nothing was changed"
    refusal(folder, "model.xml", "openvino")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": (1, 5, 8, 6)}, r"of another network: its input is \(1, 5, 8, 6\), and export.json asks for"),
        ({"size": (1, 3, 9, 9)}, r"its input is \(1, 3, 9, 9\)"),
        ({"size": (1, 3)}, r"its input is \(1, 3\)"),
        ({"inputs": 2}, r"its input is \(1, 3, 8, 6\), \(1, 3, 8, 6\)"),
        ({"size": (4, 3, 8, 6)}, r"its input is \(4, 3, 8, 6\)"),
    ],
    ids=str,
)
def test_the_model_of_another_network(options: dict[str, Any], reason: str, copied: Callable[[Format], Path]) -> None:
    folder = copied("openvino")
    openvino(folder / "model.xml", **options)
    seal(folder)
    assert re.search(reason, refusal(folder, "model.xml", "openvino"))


@pytest.mark.parametrize("kind", ["openvino", "onnx", *ON_DEVICES])
def test_other_classes_than_the_model_has(kind: Format, copied: Callable[[Format], Path]) -> None:
    folder = copied(kind)
    (folder / "labels.txt").write_text("r\ng\nb\nx\n")
    change(folder / "export.json", classes=4)
    seal(folder)
    path = read_exported(folder).path
    said = refusal(folder, path.name, OWN_ENGINES[kind])
    assert re.search(r"its output is \((1|None), 3\), and export.json asks for \(1, 4\)", said), said


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_operators_that_nobody_has(engine: str, copied: Callable[[Format], Path]) -> None:
    from onnx import helper

    folder = copied("onnx")
    onnx(folder / "model.onnx", nodes=[helper.make_node("Evil", ["images"], ["logits"], domain="evil")])
    seal(folder)
    refusal(folder, "model.onnx", engine)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_numbers_in_another_file_are_not_fetched(
    engine: str, copied: Callable[[Format], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx import TensorProto, helper

    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(np.full(3, 7, np.float32).tobytes())
    there = TensorProto(name="there", dims=[1, 3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for place in ("../secret", str(tmp_path / "secret")):
        folder = copied("onnx")
        there.ClearField("external_data")
        there.external_data.add(key="location", value=place)
        nodes = [
            helper.make_node("GlobalAveragePool", ["images"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("Add", ["flat", "there"], ["logits"]),
        ]  # fmt: skip
        onnx(folder / "model.onnx", nodes=nodes, there=there)
        seal(folder)
        refusal(folder, "model.onnx", engine)
        shutil.rmtree(folder)
