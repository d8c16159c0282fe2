"""Files of torch.export, looked at before PyTorch loads them: by itself it would run code that is in them."""

import ast
import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vankit.errors import UserError
from vankit.files import reading

# what torch.export.save writes; beside these it would load compiled libraries and objects of any class
_ENTRY = re.compile(
    r"archive_format|archive_version|version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/(weights/weight_\d+|constants/tensor_\d+|(weights/model_weights|constants/model_constants)_config\.json)"
    r"|data/(weights|constants|sample_inputs)/model\.pt"
)
_OPERATOR = re.compile(
    r"\w*|torch\.ops\.(aten\.(?!save\b|from_file\b)|vankit\.|torchvision\.)(?!__dict__|__class__)\w+\.[A-Za-z]\w*|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
# of sizes as expressions, which are evaluated
_FUNCTIONS = {
    "Symbol", "Integer", "Add", "Mul", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "floor",
    "ceiling", "And", "Or", "Not", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan",
    "LessThan", "StrictGreaterThan", "GreaterThan",
}  # fmt: skip
_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub, ast.Not, ast.And, ast.Or, ast.Eq,
    ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
# names become Python source, in which they are not escaped
_NAME = re.compile(r"[\w.]*")
_NO_NAMES = {"expr_str", "in_spec", "out_spec", "torch_version", "guards_code"}
_SPEC = re.compile(r'[\[\]{}:, 1]|null|"(type|context|children_spec|builtins\.(tuple|list|dict)|null|\[\])"')
_SYMBOL = re.compile(r"[A-Za-z]{1,10}\d{0,9}")


def check_program(path: Path) -> None:
    """Refuse a program that is not of tensors and their operators alone.

    Args:
        path: file of `torch.export.save`.

    Raises:
        ValueError: the file is damaged, or has parts, operators or expressions that could run code.
    """
    damage = zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError
    import torch

    with reading(path, *damage), zipfile.ZipFile(path) as archive:
        for name, content in _entries(archive, torch._C.PyTorchFileReader(os.fspath(path))):
            if name.endswith(".json"):
                _check_json(content)
            else:
                _check_tensors(name, content)


def _entries(archive: zipfile.ZipFile, reader: Any) -> Iterator[tuple[str, bytes]]:
    """Each part that is not plain numbers, once all of them are known by name, as PyTorch's own reader finds it."""
    files = archive.infolist()
    names = [file.filename.partition("/")[2] for file in files]
    others = [name for name in names if not _ENTRY.fullmatch(name)]
    if others or len({*names}) < len(names) or len({file.filename.partition("/")[0] for file in files}) > 1:
        raise _refusal(f"the part {others[0]!r}" if others else "parts of the same name")
    if archive.comment or any(file.compress_type != zipfile.ZIP_STORED for file in files):
        raise _refusal("compressed parts, or a comment")
    if sorted(reader.get_all_records()) != sorted(names):
        raise _refusal("parts that two readers find differently")
    for name in names:
        if name.endswith((".json", ".pt")):
            yield name, reader.get_record(name)


def _check_tensors(name: str, content: bytes) -> None:
    import torch

    try:
        torch.load(io.BytesIO(content), weights_only=True) if content else None
    except Exception as error:  # whatever it trips over, torch.export would try again without this restriction
        raise _refusal(f"{name}, which is not of tensors alone") from error


def _check_json(content: bytes) -> None:
    try:
        queue = [("", json.loads(content), True)]
    except (ValueError, RecursionError) as error:
        raise UserError(f"a part is not JSON: {error}") from None
    while queue:
        key, node, named = queue.pop()
        _check_entry(key, node)
        if named:
            for name in (key, node if isinstance(node, str) and key not in _NO_NAMES else ""):
                if not _NAME.fullmatch(name):
                    raise _refusal(f"the name {name[:100]!r}")
        named = named and key != "metadata"  # where each node comes from, for people
        if isinstance(node, dict):
            queue.extend((name, value, named) for name, value in node.items())
        elif isinstance(node, list):
            queue.extend((key, value, named) for value in node)


def _check_entry(key: str, value: Any) -> None:
    """What is resolved, evaluated or unpickled by its key."""
    match key:
        case "use_pickle" if value is not False:
            raise _refusal("pickled tensors")
        case "target" | "as_operator" if isinstance(value, str) and not _OPERATOR.fullmatch(value):
            raise _refusal(f"the operator {value[:100]!r}")
        case "expr_str" if not _is_arithmetic(value):
            raise _refusal(f"the expression {str(value)[:100]!r}")
        case "in_spec" | "out_spec" if _SPEC.sub("", str(value)):
            raise _refusal(f"the structure {str(value)[:100]!r}")
        case "guards_code" if value:
            raise _refusal(f"the code {str(value)[:100]!r}")


def _is_arithmetic(text: Any) -> bool:
    """Whether an expression has whole numbers, symbols and arithmetic of them alone."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return False
    return all(isinstance(node, _NODES) and _is_plain(node) for node in nodes)


def _is_plain(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in _FUNCTIONS
        case ast.Name(id=name) | ast.Constant(value=str() as name):
            return name in _FUNCTIONS or bool(_SYMBOL.fullmatch(name) and any(map(str.isdigit, name)))
        case ast.Constant(value=value):
            return isinstance(value, int)
    return not isinstance(node, ast.Call)


def _refusal(what: str) -> UserError:
    return UserError(
        f"it was refused, for it has {what}, and could run code when loaded: expected tensors and their operators; "
        "export the model again, with a PyTorch of today"
    )
