"""Files of torch.export: none of their code is run, which PyTorch alone would do."""

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vankit.deploy.programs import check_program
from vankit.engines.convert import to_program
from vankit.errors import UserError

GRAPH, INPUTS = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Of a program of any size, by name."""
    path = tmp_path_factory.mktemp("program") / "x.pt2"
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    torch.export.save(to_program(network.eval(), (3, 64, 64), dynamic=True), path)
    check_program(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def written(path: Path, parts: dict[str, bytes], **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


class Planted:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def saved(content: Any) -> bytes:
    target = io.BytesIO()
    torch.save(content, target)
    return target.getvalue()


def graph(parts: dict[str, bytes], change: Callable[[dict[str, Any]], None], name: str = GRAPH) -> dict[str, bytes]:
    content = json.loads(parts[f"x/{name}"])
    change(content)
    return {**parts, f"x/{name}": json.dumps(content).encode()}


def test_a_sound_program_written_anew_is_one(parts: dict[str, bytes], tmp_path: Path) -> None:
    path = written(tmp_path / "x.pt2", parts)
    check_program(path)
    program = torch.export.load(path).module()
    assert program(torch.zeros(2, 3, 70, 90)).shape == (2, 2)


def test_planted_inputs_are_found_before_pytorch_runs_them(parts: dict[str, bytes], tmp_path: Path) -> None:
    marker = tmp_path / "run"
    planted = {**parts, f"x/{INPUTS}": saved((Planted(marker), {}))}
    path = written(tmp_path / "x.pt2", planted)
    with pytest.raises(UserError, match=rf"{path}: it was refused, for it has {INPUTS}, which is not of tensors alone"):
        check_program(path)
    assert not marker.exists()
    with pytest.raises(Exception, match=""):
        torch.export.load(path)
    assert marker.exists(), "the trap itself is broken"


def test_planted_weights(parts: dict[str, bytes], tmp_path: Path) -> None:
    marker = tmp_path / "run"

    def pickled(content: dict[str, Any]) -> None:
        next(iter(content["config"].values()))["use_pickle"] = True

    planted = {**graph(parts, pickled, WEIGHTS), "x/data/weights/weight_0": pickle.dumps(Planted(marker))}
    with pytest.raises(UserError, match="it was refused, for it has pickled tensors"):
        check_program(written(tmp_path / "x.pt2", planted))
    assert not marker.exists()


@pytest.mark.parametrize(
    "name",
    ["data/aotinductor/model/a.so", "data/constants/custom_obj_0", "data/weights/weight_0.so", "extra/a.py",
     "serialized_exported_program.json", "data/../a", "code/a.py"],
)  # fmt: skip
def test_parts_that_could_be_code(name: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"it has the part '{name}', and could run code when loaded"):
        check_program(written(tmp_path / "x.pt2", {**parts, f"x/{name}": b"x"}))


@pytest.mark.parametrize(
    "operator",
    ["torch.os.system", "torch.load", "torch.hub.load", "_operator.methodcaller", "_operator.attrgetter", "#evil:x",
     "torch.ops.aten.save.default", "torch.ops.aten.from_file.default", "torch.ops.evil.run.default",
     "torch.ops.load_library"],
)  # fmt: skip
def test_operators_that_are_none(operator: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    changed = graph(parts, lambda content: content["graph_module"]["graph"]["nodes"][0].update(target=operator))
    with pytest.raises(UserError, match=f"it has the operator '{operator}'"):
        check_program(written(tmp_path / "x.pt2", changed))


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "eval(chr(49))", "Symbol('s0').__class__", "(lambda: 0)()", "[x1 for x1 in s0]",
     "Symbol('__import__')", "s0.real", "open('/etc/passwd')", "exec", "2**2**2**2", "s0 if s1 else s2", "f'{s0}'",
     "(" * 500, "print(s0)", 5, None, ["s0"]],
)  # fmt: skip
def test_expressions_that_are_none(text: Any, parts: dict[str, bytes], tmp_path: Path) -> None:
    sound = parts[f"x/{GRAPH}"].decode()
    content, found = re.subn(r'(?<="expr_str": )"[^"]*"', lambda _: json.dumps(text), sound, count=1)
    assert found
    with pytest.raises(UserError, match="it has the expression"):
        check_program(written(tmp_path / "x.pt2", {**parts, f"x/{GRAPH}": content.encode()}))


def test_code_that_guards(parts: dict[str, bytes], tmp_path: Path) -> None:
    changed = graph(parts, lambda content: content.update(guards_code=["__import__('os').system('true')"]))
    with pytest.raises(UserError, match="it has the code"):
        check_program(written(tmp_path / "x.pt2", changed))


def test_archives_that_two_readers_could_read_differently(parts: dict[str, bytes], tmp_path: Path) -> None:
    for change, options in (({"y/version": b"1"}, {}), ({}, {"compression": zipfile.ZIP_DEFLATED})):
        with pytest.raises(UserError, match="it was refused"):
            check_program(written(tmp_path / "x.pt2", {**parts, **change}, **options))
    path = written(tmp_path / "x.pt2", parts)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(f"x/{GRAPH}", b"{}")
    with pytest.raises(UserError, match="parts of the same name"):
        check_program(path)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04" + bytes(50), b"PK\x05\x06" + bytes(18)])
def test_what_is_no_archive(content: bytes, tmp_path: Path) -> None:
    from vankit.deploy.folder import Exported

    path = tmp_path / "model.pt2"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path}"):
        Exported._torch_engine(Exported(tmp_path, "pt2", "float32", False, None), "float32")  # type: ignore[arg-type]


def test_names_are_no_code(parts: dict[str, bytes], tmp_path: Path) -> None:
    """PyTorch writes them into the source of a function as they are."""
    content = parts[f"x/{GRAPH}"].decode()
    name = json.loads(content)["graph_module"]["signature"]["input_specs"][-1]["user_input"]["arg"]["as_tensor"]["name"]
    code = f"{name}=__import__('os').system('x'), *"
    planted = written(tmp_path / "x.pt2", {**parts, f"x/{GRAPH}": content.replace(f'"{name}"', f'"{code}"').encode()})
    with pytest.raises(UserError, match="it has the name"):
        check_program(planted)


@pytest.mark.parametrize("spec", ["in_spec", "out_spec"])
def test_structures_import_nothing(spec: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    planted = json.dumps([1, {"type": None, "context": json.dumps({"__enum__": True, "fqn": "evil:E", "name": "a"})}])
    content = re.sub(
        rf'"{spec}": "(?:[^"\\]|\\.)*"', lambda _: f'"{spec}": {json.dumps(planted)}', parts[f"x/{GRAPH}"].decode()
    )
    assert content != parts[f"x/{GRAPH}"].decode()
    with pytest.raises(UserError, match="it has the structure"):
        check_program(written(tmp_path / "x.pt2", {**parts, f"x/{GRAPH}": content.encode()}))
