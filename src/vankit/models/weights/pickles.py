"""PyTorch's pickles, read as data: nothing in a file is imported, made or called."""

import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vankit.files import open_file

_MAGIC = 0x1950A86A20F9469CFC6C  # opens files of PyTorch before 1.6
_DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
}  # fmt: skip
# of no use in a checkpoint but to run something; it would not run here, but whoever planted it should be found out
_PLANTED = re.compile(
    r"(os|posix|nt|sys|subprocess|_posixsubprocess|pty|runpy|shutil|socket|ctypes|importlib|webbrowser)\b"
    r"|(builtins|__builtin__)\.(eval|exec|execfile|compile|__import__|open|input|breakpoint)$"
    r"|code\.(interact|Interactive\w+)$|commands\.get\w*output$|timeit\.\w+$|(marshal|_?pickle)\.loads?$"
)
# classes whose presence says nothing, and whose objects nobody misses
_USUAL = re.compile(
    r"(argparse|builtins|__builtin__|collections|copyreg|copy_reg|_codecs|datetime|numpy|pathlib|torch)\b"
)


class Unreadable(Exception):
    """The bytes are not such a pickle, or contradict themselves; the message says how."""


class Planted(Exception):
    """The pickle names a function that runs programs or code; the message is its name."""


@dataclass(eq=False)
class Opaque:
    """A class or function, or what one would have returned: noted, not made.

    Attributes:
        name: with its module, such as argparse.Namespace.
        args: it was to be called with.
        state: it was to be given, usually its attributes by name.
        values, items: that were to be added to it, if it is a list or dict of its own kind.
    """

    name: str
    args: Any = None
    state: Any = None
    values: list[Any] = field(default_factory=list)
    items: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers in the file, under a key."""

    key: str
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in the file, not yet read: `size` and `stride` over a storage, from `offset`, in elements."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class PickleFile:
    """An open file.

    Attributes:
        content: dicts, lists, tuples, plain values, `StoredTensor` and `Opaque`; it may contain itself.
        foreign: names of the classes in it that are not usual in checkpoints, sorted.
    """

    content: Any
    foreign: list[str]
    _read: Callable[[Storage], bytes]
    _spare: int  # bytes that parts of storages may still be copied to
    _storages: dict[str, Tensor] = field(default_factory=dict)
    _parts: dict[Any, Tensor] = field(default_factory=dict)

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Read a tensor.

        Raises:
            Unreadable: it is damaged, or claims more numbers than there are.
        """
        flat = self._storages.get(stored.storage.key)
        if flat is None:
            raw = self._read(stored.storage)
            flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
            self._storages[stored.storage.key] = flat
        if len(flat) % stored.dtype.itemsize:
            raise Unreadable(f"storage {stored.storage.key} ends within a number")
        flat = flat.view(stored.dtype)
        size, stride, offset = stored.size, stored.stride, stored.offset
        numbers = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # a stride of 0 would let one number stand for any amount of memory
        if numbers > len(flat) or (numbers and last >= len(flat)):
            raise Unreadable(f"a tensor of shape {size} claims more numbers than the {len(flat)} of its storage")
        tensor = flat.as_strided(size, stride, offset) if numbers else flat.new_empty(size)
        if tensor.is_contiguous() and numbers == len(flat):
            return tensor
        part = (stored.storage.key, stored.dtype, offset, size, stride)
        if part not in self._parts:
            self._spare -= tensor.nbytes
            if self._spare < 0:
                raise Unreadable("its tensors overlap, and are together larger than the file")
            self._parts[part] = tensor.clone().contiguous()
        return self._parts[part]


@contextmanager
def open_pickle(path: Path) -> Iterator[PickleFile]:
    """Open a file that `torch.save` wrote, in its present (zip) or former format.

    Raises:
        Unreadable: it is not one, or damaged.
        Planted: see there.
    """
    with open_file(path) as file:
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    yield _in_zip(archive, path.stat().st_size)
            else:
                file.seek(0)
                yield _in_sequence(file, path.stat().st_size)
        except (zipfile.BadZipFile, EOFError, MemoryError, NotImplementedError, RuntimeError, UnicodeError) as error:
            raise Unreadable(str(error) or type(error).__name__) from None


def _in_zip(archive: zipfile.ZipFile, size: int) -> PickleFile:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if any(name.endswith("/constants.pkl") for name in entries):
        raise Unreadable("it is a TorchScript program; load it with torch.jit.load and save its state_dict()")
    # torch.save stores without compression; else a small file could unfold to any size
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
    if not stored or sum(entry.file_size for entry in entries.values()) > size:
        raise Unreadable("its parts are compressed, or larger than the file")
    root = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
    if root is None:
        raise Unreadable("a zip archive without data.pkl")
    order = f"{root}byteorder"
    if order in entries and archive.read(order) != b"little":
        raise Unreadable("its numbers are big-endian")

    def read(storage: Storage) -> bytes:
        name = f"{root}data/{storage.key}"
        if name not in entries:
            raise Unreadable(f"storage {storage.key} is missing")
        return archive.read(name)

    machine = _Machine()
    content = machine.run(io.BytesIO(archive.read(f"{root}data.pkl")))
    return PickleFile(content, machine.foreign(), read, size)


def _in_sequence(file: BinaryIO, size: int) -> PickleFile:
    """The format before PyTorch 1.6: pickles one after the other, then the storages."""
    if _Machine().run(file) != _MAGIC:
        raise Unreadable("its first object is not PyTorch's")
    _Machine().run(file)  # protocol
    _Machine().run(file)  # the machine it was written on
    machine = _Machine()
    content = machine.run(file)
    keys = _Machine().run(file)
    places: dict[str, tuple[int, int]] = {}
    for key in keys if isinstance(keys, list) else ():
        storage = machine.storages.get(_text(key))
        header = file.read(8)
        if storage is None or len(header) < 8:
            raise Unreadable("its storages are not those that its tensors name")
        length = struct.unpack("<q", header)[0] * storage.dtype.itemsize
        places[storage.key] = (file.tell(), length)
        if not 0 <= length <= size - file.tell():
            raise Unreadable(f"storage {storage.key} is cut off")
        file.seek(length, 1)

    def read(storage: Storage) -> bytes:
        if storage.key not in places:
            raise Unreadable(f"storage {storage.key} is missing")
        start, length = places[storage.key]
        file.seek(start)
        return file.read(length)

    return PickleFile(content, machine.foreign(), read, size)


class _Machine:
    """The pickle machine without its power to import and to call. Its opcodes are parsed by `pickletools`."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.names: set[str] = set()
        self.storages: dict[str, Storage] = {}

    def foreign(self) -> list[str]:
        return sorted(name for name in self.names if not _USUAL.match(name))

    def run(self, file: Any) -> Any:
        """The object of the pickle at the file's position, which ends up behind it."""
        try:
            for opcode, arg, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return self.stack.pop()
                act = getattr(self, f"_{opcode.name.lower()}", None)
                if act is None and opcode.arg is None:
                    raise Unreadable(f"a pickle with {opcode.name}")
                self.stack.append(arg) if act is None else act(arg)
        except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError, struct.error) as error:
            # whose words are about Python's parser, not the file
            raise Unreadable("its pickle breaks off or makes no sense") from error
        raise Unreadable("it ends too early")

    # marks and memo

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _items(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _pop_mark(self, _: Any) -> None:
        self._items()

    def _pop(self, _: Any) -> None:
        self.stack.pop() if self.stack else self._items()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    def _proto(self, _: Any) -> None:
        pass

    _frame = _readonly_buffer = _proto

    # plain values; those with an argument are pushed by `run`

    def _none(self, _: Any) -> None:
        self.stack.append(None)

    def _newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def _newfalse(self, _: Any) -> None:
        self.stack.append(False)

    def _empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def _tuple(self, _: Any) -> None:
        items = tuple(self._items())
        self.stack.append(items)

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _list(self, _: Any) -> None:
        items = self._items()
        self.stack.append(items)

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._items())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        (target.values if isinstance(target, Opaque) else target).extend(items)

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _dict(self, _: Any) -> None:
        items = self._items()
        self.stack.append({})
        self._set(items)

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: Any) -> None:
        self._set(self._items())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        entries = target.items if isinstance(target, Opaque) else target
        for key, value in zip(items[::2], items[1::2], strict=True):
            # tuples of tuples can take for ever to hash, and long numbers can share one hash; no name is either
            plain = isinstance(key, str | float | bytes) or (isinstance(key, int) and abs(key) < 2**63)
            entries[key if plain else object()] = value

    def _empty_set(self, _: Any) -> None:
        self.stack.append(Opaque("builtins.set"))

    def _additems(self, _: Any) -> None:
        self._items()

    def _frozenset(self, _: Any) -> None:
        self._items()
        self._empty_set(None)

    # what would import and call

    def _global(self, name: str) -> None:
        name = name.replace(" ", ".")
        if _PLANTED.match(name):
            raise Planted(name)
        self.names.add(name)
        self.stack.append(Opaque(name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._global(_text(module) + "." + _text(name))

    def _ext1(self, code: int) -> None:
        self._global(f"extension.{code}")

    _ext2 = _ext4 = _ext1

    def _next_buffer(self, _: Any) -> None:
        self.stack.append(Opaque("buffer"))

    def _reduce(self, _: Any) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_result(function, args))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._reduce(None)

    def _inst(self, name: str) -> None:
        args = tuple(self._items())
        self._global(name)
        self.stack.append(_result(self.stack.pop(), args))

    def _obj(self, _: Any) -> None:
        function, *args = self._items()
        self.stack.append(_result(function, tuple(args)))

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Opaque):
            target.state = state

    def _persid(self, _: Any) -> None:
        self.stack.append(Opaque("persistent"))

    def _binpersid(self, _: Any) -> None:
        """PyTorch's: ("storage", class, key, place, elements, …); others are of old pickled modules' source code."""
        match self.stack.pop():
            case ("storage", Opaque() as kind, key, _, _, *_):
                name = kind.name.rpartition(".")[2].removeprefix("_").removesuffix("Storage")
                if name not in _DTYPES:
                    raise Unreadable(f"numbers of an unknown kind, {kind.name}")
                storage = self.storages.setdefault(_text(key), Storage(key, _DTYPES[name]))
                self.stack.append(storage)
            case _:
                self.stack.append(Opaque("persistent"))


def _text(value: Any) -> str:
    """A value that has to be text; anything else might take for ever to print."""
    if not isinstance(value, str):
        raise Unreadable(f"a name that is a {type(value).__name__}")
    return value


def _result(function: Any, args: Any) -> Any:
    """What a call stands for: a tensor, a dict, a tuple, or else something that nobody needs."""
    name = function.name if isinstance(function, Opaque) else "unknown"
    match name.rpartition(".")[2], args:
        case "_rebuild_tensor" | "_rebuild_tensor_v2", (Storage() as storage, offset, size, stride, *_):
            return _stored(storage, offset, size, stride, storage.dtype)
        case "_rebuild_tensor_v3", (Storage() as storage, offset, size, stride, _, _, Opaque() as kind, *_):
            dtype = getattr(torch, kind.name.removeprefix("torch."), None)
            return _stored(storage, offset, size, stride, dtype) if isinstance(dtype, torch.dtype) else Opaque(name)
        case "_rebuild_parameter" | "_rebuild_parameter_with_state", (StoredTensor() as tensor, *_):
            return tensor
        case "_rebuild_from_type_v2", (Opaque() as inner, _, tuple() as inner_args, *_) if inner.name != name:
            return _result(inner, inner_args)
        case "OrderedDict" | "defaultdict" | "Counter" | "dict", tuple():
            return _as_dict(args)
        case "Size" | "tuple" | "list", (list() | tuple() as items,):
            return items
        case "encode", (str() as text, "latin1"):  # bytes, before protocol 3
            return text.encode("latin1")
        case "bytes", ():
            return b""
        case _:
            return Opaque(name, args)


def _stored(storage: Storage, offset: Any, size: Any, stride: Any, dtype: torch.dtype) -> StoredTensor:
    numbers = (offset, *size, *stride)
    if not len(size) == len(stride) <= 8 or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise Unreadable("a tensor whose shape and strides are not a few whole numbers")
    return StoredTensor(storage, offset, tuple(size), tuple(stride), dtype)


def _as_dict(args: tuple[Any, ...]) -> dict[Any, Any]:
    """The dict that a call to a kind of dict made: empty, of a dict, or of pairs. Nothing is copied twice."""
    first = args[-1] if args else None
    if isinstance(first, dict):
        return first
    if isinstance(first, list):
        pairs = {pair[0]: pair[1] for pair in first if len(pair) == 2 and isinstance(pair[0], str)}
        first.clear()
        return pairs
    return {}


def entries(node: Any) -> Mapping[Any, Any]:
    """The items of a dict, or the items and attributes of an object that was not made; nothing of anything else."""
    if isinstance(node, Mapping):
        return node
    return {**node.items, **attributes(node)} if isinstance(node, Opaque) else {}


def attributes(node: Opaque) -> dict[Any, Any]:
    """What an object was to be given, by name."""
    return node.state if isinstance(node.state, dict) else {}
