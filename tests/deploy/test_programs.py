"""Files of torch.export: none of their code is run, which PyTorch alone would do."""

import io
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from vankit.deploy.programs import check_program, load_program
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
     "torch.ops.load_library", "torch", "math", "torch.ops.aten.add", "torch.ops.aten.add.op",
     "torch.ops.aten.add.overloads", "torch.ops.aten.name.format", "torch.ops.aten._dir.append"],
)  # fmt: skip
def test_operators_that_are_none(operator: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    changed = graph(parts, lambda content: content["graph_module"]["graph"]["nodes"][0].update(target=operator))
    with pytest.raises(UserError, match=f"it has the operator '{operator}'"):
        check_program(written(tmp_path / "x.pt2", changed))


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "eval(chr(49))", "Symbol('s0').__class__", "(lambda: 0)()", "[x1 for x1 in s0]",
     "Symbol('__import__')", "s0.real", "open('/etc/passwd')", "exec", "2**2**2**2", "s0 if s1 else s2", "f'{s0}'",
     "(" * 500, "print(s0)", 5, None, ["s0"], "(s0\n+ s1)", "Symbol('s\\\nx270')",
     "*".join(f"(s{n} + s{n + 1})" for n in range(20))],
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


def test_arguments_hold_no_graphs_nor_anything_else(parts: dict[str, bytes], tmp_path: Path) -> None:
    """Names in them become the source of a function that is made at once."""
    marker = tmp_path / "run"
    name = f"x=__import__('os').system('touch {marker}')"
    content = json.loads(parts[f"x/{GRAPH}"])["graph_module"]["graph"]
    value = content["tensor_values"]["input"]
    inner = content | {
        "inputs": [{"as_tensor": {"name": name}}],
        "outputs": [],
        "nodes": [],
        "tensor_values": {name: value},
    }
    for argument in (
        {"as_string_to_argument": {"metadata": {"as_graph": {"name": "a", "graph": inner}}}},
        {"as_graph": {"name": "a", "graph": inner}},
        {"as_custom_obj": {"name": "a", "class_fqn": "a.B"}},
    ):

        def plant(content: dict[str, Any], argument: dict[str, Any] = argument) -> None:
            content["graph_module"]["graph"]["nodes"][0]["inputs"].append({"name": "a", "arg": argument, "kind": 1})

        path = written(tmp_path / "x.pt2", graph(parts, plant))
        with pytest.raises(UserError, match=f"it has an argument '{next(iter(argument))}', and could run code"):
            check_program(path)
        with suppress(Exception):
            torch.export.load(path)
        assert marker.exists() == ("as_custom_obj" not in argument), "the trap itself is broken"
        marker.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["torch.load", "self.forward", "lambda", "0"])
def test_variables_that_are_none(name: str, parts: dict[str, bytes], tmp_path: Path) -> None:
    content = parts[f"x/{GRAPH}"].decode().replace('"conv2d"', f'"{name}"')
    with pytest.raises(UserError, match=f"it has a variable '{name}'"):
        check_program(written(tmp_path / "x.pt2", {**parts, f"x/{GRAPH}": content.encode()}))


def test_a_range_that_is_counted_up_to(parts: dict[str, bytes], tmp_path: Path) -> None:
    changed = graph(parts, lambda content: content["range_constraints"].update(u99999999999={"min_val": 0}))
    path = written(tmp_path / "x.pt2", changed)
    with pytest.raises(UserError, match=rf"{path}: it has ranges of '.*, u99999999999': expected its symbols"):
        check_program(path)


def test_inputs_that_take_more_memory_than_the_file(parts: dict[str, bytes], tmp_path: Path) -> None:
    planted = io.BytesIO()
    zeros = io.BytesIO(saved(((torch.zeros(10_000),), {})))
    with zipfile.ZipFile(zeros) as archive, zipfile.ZipFile(planted, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    for content in (saved(bytearray(1000)), saved(OrderedDict(a=bytearray(1000))), planted.getvalue()):
        torch.load(io.BytesIO(content), weights_only=True)  # which asks nothing of that
        path = written(tmp_path / "x.pt2", {**parts, f"x/{INPUTS}": content})
        with pytest.raises(UserError, match=f"it has {INPUTS}, which is not of tensors alone"):
            check_program(path)


def test_inputs_may_have_attributes_and_names(parts: dict[str, bytes], tmp_path: Path) -> None:
    """As those of `torch.export.export` with `Dim.DYNAMIC` have."""
    image = torch.zeros(1, 3, 66, 66)
    image.noted = {0, 2}  # type: ignore[attr-defined]
    inputs = (image, torch.nn.Parameter(image.half())), {"mask": image > 0}
    check_program(written(tmp_path / "x.pt2", {**parts, f"x/{INPUTS}": saved(inputs)}))


def test_numbers_that_are_missing_are_not_made_up(parts: dict[str, bytes], tmp_path: Path) -> None:
    """PyTorch would take the memory for them."""

    def claim(size: int) -> Callable[[dict[str, Any]], None]:
        def change(content: dict[str, Any]) -> None:
            meta = content["config"]["0.weight"]["tensor_meta"]
            meta.update(sizes=[{"as_int": size}], strides=[{"as_int": 1}])

        return change

    lost = {**parts, "x/data/weights/weight_0": b""}
    path = written(tmp_path / "x.pt2", graph(lost, claim(2**45), WEIGHTS))
    with pytest.raises(UserError, match=f"{path}: the numbers of 0.weight are missing"):
        check_program(path)
    check_program(written(path, graph(lost, claim(0), WEIGHTS)))


def test_a_number_and_names_that_are_damaged(parts: dict[str, bytes], tmp_path: Path) -> None:
    path = written(tmp_path / "x.pt2", {**parts, "x/.data/version": b"9" * 30})
    with pytest.raises(UserError, match=f"{path} is damaged"):
        check_program(path)
    path.write_bytes(written(path, {**parts, "x/é": b""}).read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(UserError, match=f"{path} is damaged, or not what its name says: 'utf-8' codec"):
        check_program(path)


def test_what_does_not_fit_is_said_in_one_line(
    parts: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "x.pt2", graph(parts, lambda content: content["schema_version"].update(major=999)))
    with pytest.raises(UserError, match=rf"{path} is damaged, .*: Serialized schema version .*major=999"):
        load_program(path)
    assert capfd.readouterr().err == ""
    assert load_program(written(path, parts)).module()(torch.zeros(1, 3, 70, 90)).shape == (1, 2)
