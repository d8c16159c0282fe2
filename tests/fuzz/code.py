"""Code in files that are to hold none: put into the JSON of a program, and noticed when Python is about to run it."""

import builtins
import dis
import json
import sysconfig
from collections.abc import Iterator
from random import Random
from types import CodeType
from typing import Any

PLANTED = "planted"  # a module that there is not
_CALLS = ('__import__("os").system("true")', "__import__('os').system('true')", f"exec('import {PLANTED}')")
# NAME is the text that was there before
_TEXTS = (
    "CALL", "NAME=CALL", "NAME=CALL, *_", "NAME: CALL", "NAME\nCALL", "NAME; CALL #", "NAME):\n    pass\nCALL\ndef f(x",
    "NAME', CALL, '", 'NAME", CALL, "', "NAME\\", "NAME + CALL", "Max(NAME, CALL)", "Symbol('s0', CALL)",
    "Symbol('s0', positive=CALL)", "NAME if CALL else NAME", "[CALL for _ in [0]]", "(lambda: CALL)()", "f'{CALL}'",
    "NAME.__class__", "NAME.x", "NAME #", "NAME\\\n", "eval", "self", "self.forward", "torch", "torch.load", "lambda",
    PLANTED, "a.b", "__class__", "u99999999999", "zuf9999999999", "Mul(NAME, NAME)", "Max(NAME, Mul(NAME, NAME))",
    '[1, {"type": null, "context": "{\\"__enum__\\": true, \\"fqn\\": \\"planted:E\\", \\"name\\": \\"a\\"}"}]',
    '[1, {"type": "builtins.dict", "context": "{\\"__enum__\\": 1, \\"fqn\\": \\"planted:E\\"}", "children_spec": []}]',
    '[1, {"type": "collections.defaultdict", "context": {"default_factory_module": "planted", '
    '"default_factory_name": "a", "dict_context": []}, "children_spec": []}]',
)  # fmt: skip
_OPERATORS = (
    "torch.ops.aten.save.default", "torch.ops.aten.from_file.default", "torch.ops.aten.add.overloads",
    "torch.ops.aten.add.op", "torch.ops.aten.name.format", "torch.ops.aten.__init__.x", "torch.ops.aten._dir.append",
    "torch.ops.load_library", "torch.ops.higher_order.cond", "torch.ops.vankit.a.b", "torch.load", "torch", "math",
    "torch.sym_int", "_operator.add", "_operator.methodcaller", "math.floor", "#planted:x", "torch.ops.aten.add.Tensor",
    "torch.ops.aten.detach.default", "torch.os.system", "torch.ops.aten.add.default.op", "torch.sym_int.__call__",
)  # fmt: skip
_KEYS = ("metadata", "torch_version", "guards_code", "x")
# in what FX writes of a graph, and SymPy of an expression
_HARMLESS = {"getattr", "max", "min", "abs", "float", "int", "bool", "slice"}
_STDLIB = sysconfig.get_path("stdlib")


def plant(data: bytes, random: Random) -> bytes:
    """The JSON of a program with a text that is code, or with a graph where an argument was."""
    if random.random() < 0.4:
        tree = json.loads(data)
        _nest(tree, random)
        return json.dumps(tree).encode()
    text = data.decode()
    old = random.choice(sorted({*_strings(json.loads(data))}))
    new = random.choice(_OPERATORS if old.startswith(("torch.", "_operator.")) and random.random() < 0.8 else _TEXTS)
    parts = text.split(json.dumps(old))
    at = random.randrange(1, len(parts))
    if random.random() < 0.5:
        parts[at - 1 : at + 1] = [parts[at - 1] + _planted(new, old, random) + parts[at]]
        return json.dumps(old).join(parts).encode()
    return _planted(new, old, random).join(parts).encode()


def _planted(text: str, name: str, random: Random) -> str:
    return json.dumps(text.replace("NAME", name).replace("CALL", random.choice(_CALLS)))


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        yield from node
        yield from (each for value in node.values() for each in _strings(value))
    elif isinstance(node, list):
        yield from (each for value in node for each in _strings(value))


def _nest(tree: Any, random: Random) -> None:
    """Change one of the arguments, or add one: what PyTorch reads within them is read nowhere else."""
    graph = tree["graph_module"]["graph"]
    name = json.loads(_planted(random.choice(_TEXTS[:8]), "x", random))
    inner = graph | {"inputs": [{"as_tensor": {"name": name}}], "outputs": [], "nodes": []}
    inner["tensor_values"] = {name: random.choice(list(graph["tensor_values"].values()))}
    inputs = random.choice(graph["nodes"])["inputs"]
    own = random.choice(inputs)
    argument = random.choice((
        own["arg"],
        {"as_graph": {"name": "a", "graph": inner}},
        {"as_graph": {"name": name, "graph": inner}},
        {"as_custom_obj": {"name": random.choice(("a", name)), "class_fqn": f"{PLANTED}.E"}},
        {"as_operator": random.choice(_OPERATORS)},
    ))  # fmt: skip
    if random.random() < 0.5:
        argument = {"as_string_to_argument": {random.choice(_KEYS): argument}}
    if random.random() < 0.5:
        inputs.append({"name": "a", "arg": argument, "kind": random.choice((0, 1, 2))})
    else:
        own["arg"] = argument


def escapes(code: CodeType, caller: str) -> str:
    """What code that was made of text does beyond computing with what it is given; empty if nothing.

    Args:
        code: that is to be run.
        caller: file of those who run it; Python's own writes classes.
    """
    if not code.co_filename.startswith("<") or caller.startswith(("<", _STDLIB)):
        return ""
    return ", ".join(f"{each.opname} {each.argval}" for each in _instructions(code) if _leaves(each))


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _instructions(inner)


def _leaves(instruction: dis.Instruction) -> bool:
    name = instruction.argval
    match instruction.opname:
        case "LOAD_NAME" | "LOAD_GLOBAL":
            return hasattr(builtins, name) and name not in _HARMLESS
        case "LOAD_ATTR" | "LOAD_METHOD":
            return str(name).startswith("__")
        case "IMPORT_NAME":
            return name != "sympy"
    return instruction.opname in ("STORE_ATTR", "STORE_GLOBAL", "DELETE_ATTR", "DELETE_GLOBAL")
