"""Files of torch.export, looked at before PyTorch loads them: by itself it would run code that is in them."""

import ast
import io
import json
import logging
import os
import pickletools
import re
import zipfile
from collections.abc import Set
from keyword import iskeyword
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
    r"torch\.ops\.(?P<overload>(aten\.(?!save\.|from_file\.)|vankit\.|torchvision\.)\w+\.\w+)|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
# what torch.save writes for tensors, their attributes and their collections
_TENSORS = re.compile(
    r"torch (\w+Storage|Tensor)|torch\._utils _rebuild_(tensor_v2|parameter)|torch\._tensor _rebuild_from_type_v2"
    r"|collections OrderedDict|(__builtin__|builtins) set"
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
_MOST_SYMBOLS = 20  # in a VAN 2; a product of sums is multiplied out, which takes time exponential in them
# names become Python source, in which they are not escaped; those of values its variables
_NAME = re.compile(r"[\w.]*")
_VARIABLES = {"name", "as_name", "forward_arg_names"}
_NO_NAMES = {"expr_str", "in_spec", "out_spec", "torch_version", "guards_code"}
# arguments that hold another graph, or objects that are no tensors
_NO_ARGUMENTS = {"as_graph", "as_string_to_argument", "as_custom_obj", "custom_obj"}
_SPEC = re.compile(r'[\[\]{}:, 1]|null|"(type|context|children_spec|builtins\.(tuple|list|dict)|null|\[\])"')
_SYMBOL = re.compile(r"[A-Za-z]{1,10}\d{0,9}")
_RANGED = re.compile(r"[A-Za-z]{1,10}\d{1,5}")  # PyTorch counts up to the number


def check_program(path: Path) -> None:
    """Refuse a program that is not of tensors and their operators alone.

    Args:
        path: file of `torch.export.save`.

    Raises:
        ValueError: the file is damaged, or has parts, operators or expressions that could run code.
    """
    import torch

    with reading(path, Exception):
        with zipfile.ZipFile(path) as archive:
            files, comment = archive.infolist(), archive.comment
        reader = torch._C.PyTorchFileReader(os.fspath(path))
    with reading(path):
        names = _parts(files, comment)
        with reading(path, Exception):
            found = reader.get_all_records()
            empty = {name.rpartition("/")[2] for name in found if not reader.get_record_size(name)}
        if sorted(found) != sorted(names):
            raise _refusal("parts that two readers find differently")
        for name in names:
            if name.endswith((".json", ".pt")):  # the others are plain numbers
                with reading(path, Exception):
                    content = reader.get_record(name)
                _check_json(content, empty) if name.endswith(".json") else _check_tensors(name, content)


def load_program(path: Path) -> Any:
    """Load a program that was checked.

    Args:
        path: see `check_program`.

    Returns:
        a `torch.export.ExportedProgram`.

    Raises:
        ValueError: see there, or the parts do not fit one another.
    """
    check_program(path)
    import torch

    logger = logging.getLogger(torch.export.__name__)
    logger.addFilter(_raise_logged)
    try:
        with reading(path, Exception):
            return torch.export.load(path)
    finally:
        logger.removeFilter(_raise_logged)


def _raise_logged(record: logging.LogRecord) -> bool:
    """PyTorch logs what it fails of, with a traceback, and goes on with a former format, to say nothing of it."""
    if record.exc_info and record.exc_info[1]:
        raise record.exc_info[1]
    return True


def _parts(files: list[zipfile.ZipInfo], comment: bytes) -> list[str]:
    """The names of the parts, if all of them are known."""
    names = [file.filename.partition("/")[2] for file in files]
    others = [name for name in names if not _ENTRY.fullmatch(name)]
    if others or len({*names}) < len(names) or len({file.filename.partition("/")[0] for file in files}) > 1:
        raise _refusal(f"the part {others[0]!r}" if others else "parts of the same name")
    if comment or any(file.compress_type != zipfile.ZIP_STORED for file in files):
        raise _refusal("compressed parts, or a comment")
    return names


def _check_tensors(name: str, content: bytes) -> None:
    import torch

    try:
        if content:
            _check_pickle(torch._C.PyTorchFileReader(io.BytesIO(content)), len(content))
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # whatever it trips over, torch.export would try again without this restriction
        raise _refusal(f"{name}, which is not of tensors alone") from error


def _check_pickle(reader: Any, size: int) -> None:
    """Refuse what would take more memory than the part itself: PyTorch allows bytearray(10**12) as well."""
    if sum(map(reader.get_record_size, reader.get_all_records())) > size:
        raise UserError("its parts are compressed")
    for opcode, arg, _ in pickletools.genops(reader.get_record("data.pkl")):
        if "GLOBAL" in opcode.name and not _TENSORS.fullmatch(str(arg)):
            raise UserError(f"{arg} in a pickle")


def _check_json(content: bytes, empty: Set[str]) -> None:
    """Refuse what is more than tensors and operators on them.

    Args:
        content: a part.
        empty: names of the parts for numbers that have none.
    """
    try:
        queue = [("", json.loads(content))]
    except (ValueError, RecursionError) as error:
        raise UserError(f"a part is not JSON: {error}") from None
    while queue:
        key, node = queue.pop()
        _check_name(key)
        _check_entry(key, node)
        if isinstance(node, dict) and _lacks_numbers(node, empty):
            raise UserError(f"the numbers of {key} are missing: export the model again")
        if isinstance(node, dict) and not _is_note(key, node):
            queue.extend(node.items())
        elif isinstance(node, list):
            queue.extend((key, value) for value in node)


def _lacks_numbers(node: dict[str, Any], empty: Set[str]) -> bool:
    """Whether it is a tensor without a part of its own, of which PyTorch would make zeros, however many."""
    meta = node.get("tensor_meta")
    sizes = meta.get("sizes") if isinstance(meta, dict) else None
    return str(node.get("path_name")) in empty and isinstance(sizes, list) and {"as_int": 0} not in sizes


def _is_note(key: str, node: dict[str, Any]) -> bool:
    """Whether it says, for people, where a value comes from."""
    return key == "metadata" and all(isinstance(value, str) for value in node.values())


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise _refusal(f"the name {name[:100]!r}")


def _check_entry(key: str, value: Any) -> None:
    """What is resolved, evaluated, unpickled or written into source by its key."""
    match key:
        case "use_pickle" if value is not False:
            raise _refusal("pickled tensors")
        case "target" | "as_operator" if isinstance(value, str) and not _is_operator(value):
            raise _refusal(f"the operator {value[:100]!r}")
        case "expr_str" if not _is_arithmetic(value):
            raise _refusal(f"the expression {str(value)[:100]!r}")
        case "in_spec" | "out_spec" if _SPEC.sub("", str(value)):
            raise _refusal(f"the structure {str(value)[:100]!r}")
        case "guards_code" if value:
            raise _refusal(f"the code {str(value)[:100]!r}")
        case "range_constraints" if isinstance(value, dict) and not all(map(_RANGED.fullmatch, value)):
            raise UserError(
                f"it has ranges of {', '.join(value)[:100]!r}: expected its symbols; export the model again"
            )
    if key in _NO_ARGUMENTS:
        raise _refusal(f"an argument {key!r}")
    if isinstance(value, str) and key not in _NO_NAMES:
        _check_name(value)
        if key in _VARIABLES and (not value.isidentifier() or iskeyword(value)):
            raise _refusal(f"a variable {value[:100]!r}")


def _is_operator(name: str) -> bool:
    import torch

    if (match := _OPERATOR.fullmatch(name)) is None:
        return False
    if (overload := match["overload"]) is None:
        return True
    found: Any = torch.ops
    for part in overload.split("."):
        found = getattr(found, part, None)
    return isinstance(found, torch._ops.OpOverload)


def _is_arithmetic(text: Any) -> bool:
    """Whether an expression has whole numbers, symbols and arithmetic of them alone."""
    if not isinstance(text, str) or not text.isprintable() or "\\" in text:
        return False  # SymPy joins lines, and so reads another text
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    symbols = sum(_name(node) not in (None, *_FUNCTIONS) for node in nodes)
    return symbols <= _MOST_SYMBOLS and all(isinstance(node, _NODES) and _is_plain(node) for node in nodes)


def _name(node: ast.AST) -> str | None:
    match node:
        case ast.Name(id=name) | ast.Constant(value=str() as name):
            return name
    return None


def _is_plain(node: ast.AST) -> bool:
    if (name := _name(node)) is not None:
        return name in _FUNCTIONS or bool(_SYMBOL.fullmatch(name) and any(map(str.isdigit, name)))
    match node:
        case ast.Call(func=ast.Name(id=called)):
            return called in _FUNCTIONS
        case ast.Constant(value=value):
            return isinstance(value, int)
    return not isinstance(node, ast.Call)


def _refusal(what: str) -> UserError:
    return UserError(
        f"it was refused, for it has {what}, and could run code when loaded: expected tensors and their operators; "
        "export the model again, with a PyTorch of today"
    )
