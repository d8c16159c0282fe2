"""Changes to valid files that leave them readable enough to get past the parser: wrong types, gaps, huge numbers, …"""

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import PurePath
from random import Random
from typing import Any
from xml.etree import ElementTree

import yaml

from .code import plant
from .targets import Case

_NUMBERS = (0, -1, 1, 2, 255, 256, 65536, 2**31, 2**53 + 1, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308)
_TEXTS = (
    "", " ", "0", "-1", "1.0", "1e400", "nan", "inf", "None", "null", "true", "a" * 5000, "\0", "\n", "\r", "\x85",
    "é", "\ud800", "🦒", "../../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\x.png", "a.png", "b.jpg", "a.png/b",
    ".", "..", "%s%d", "{0}", "=", "'", '"', "²", "1_000", "٣", "cat", "van_b0", "van_b0.cifar10",
)  # fmt: skip
_WORDS = [
    b"0", b"-1", b"1e400", b"nan", b"inf", b"99999999999999999999", b"0.5", b"", b"\0", b"\xff\xfe", b'"', b"'", b"#",
    b"\xc2\xb2", b"1_0", b"../../x.png", b"/etc/x.png", b"images/train/a.png", b"a" * 3000, b"\xed\xa0\x80",
]  # fmt: skip
_BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (letter, letter, b",".join([b"*%c" % (letter - 1)] * 9)) for letter in b"bcdefghi"
)
_YAML = (b"? [a, b]\n: c\n", b"x: !!python/name:os.system\n", b"names: *nothing\n", b"\t- a\n")
_ENCODINGS = ("utf-7", "utf-16", "utf-32", "idna", "rot13", "zlib", "hex", "cp037", "undefined", "latin-1", "nobody")
_DOCTYPES = (
    b'<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>',
    b'<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
    b'<!DOCTYPE a [<!ENTITY e "eeeeeeeeee"><!ENTITY f "&e;&e;&e;&e;&e;&e;&e;&e;">]>',
)
_PARTS = (
    "data/aotinductor/model/a.so", "data/constants/custom_obj_0", "data/constants/opaque_obj_0", "code/a.py",
    "data/weights/weight_0", "data/constants/tensor_0", "data/weights/model.pt", "data/constants/model.pt", "version",
    "serialized_exported_program.json", "extra/a.py", "models/other.json", "data/sample_inputs/other.pt",
    ".data/version", "data.pkl",
)  # fmt: skip

Change = Callable[[bytes, Random], bytes]


def change(case: Case, random: Random) -> Case:
    """A case with one of its files, or rarely more, changed by its format."""
    changed = dict(case)
    for _ in range(1 if random.random() < 0.8 else 3):
        name = random.choice(list(changed))
        if random.random() < 0.03:
            changed[name] = b""
        else:
            changed[name] = _change(name, changed[name], random)
    return changed


def _change(name: str, data: bytes, random: Random) -> bytes:
    known = _BY_SUFFIX.get(PurePath(name).suffix) or _by_content(data)
    if known is None or random.random() < 0.2:
        return _bytes(data, random)
    try:
        return known(data, random)
    except Exception:  # after a few changes a file need not be one of its kind any more
        return _bytes(data, random)


def _by_content(data: bytes) -> Change | None:
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return _png
    if data[:2] == b"PK":
        return _zip
    return _pickle if data[:1] == b"\x80" else _safetensors if data[8:9] == b"{" else None


def _bytes(data: bytes, random: Random) -> bytes:
    """Bits turned, bytes left out, doubled or set to what numbers are made of."""
    changed = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(changed) or 1)
        end = min(len(changed), at + random.choice((1, 1, 2, 4, 16, 256)))
        pieces = (
            bytes(changed[at:end]) * 2,
            b"",
            bytes(byte ^ 1 << random.randrange(8) for byte in changed[at:end]),
            random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * (end - at),
            random.randbytes(end - at),
            random.choice(_WORDS),
        )
        changed[at:end] = random.choice(pieces)
    return bytes(changed)


# trees: what JSON, YAML and the header of safetensors hold


def _value(random: Random, depth: int = 0) -> Any:
    kind = random.randrange(8)
    if kind < 3:
        return random.choice(_NUMBERS) * random.choice((1, 1, -1))
    if kind < 5:
        return random.choice(_TEXTS)
    if kind == 5:
        return random.choice((None, True, False, float("nan"), float("inf"), -float("inf")))
    if depth > 2:
        return random.choice(([], {}))
    items = [_value(random, depth + 1) for _ in range(random.randrange(4))]
    return items if kind == 6 else {random.choice(_TEXTS): item for item in items}


def _tree(root: Any, random: Random) -> Any:
    """The tree with one node changed; what was there is taken apart, not copied."""
    holder = [root]
    places: list[tuple[Any, Any]] = [(holder, 0)]
    for node, key in places:
        child = node[key]
        if isinstance(child, dict | list):
            places += [(child, each) for each in (child if isinstance(child, dict) else range(len(child)))]
    node, key = random.choice(places)
    _change_node(node, key, [parent[each] for parent, each in places], random)
    return holder[0] if holder else None


def _change_node(node: Any, key: Any, values: list[Any], random: Random) -> None:
    value, kind = node[key], random.randrange(10)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[random.choice((*_TEXTS, *node))] = node.pop(key)
    elif kind == 1:
        node[key:key] = [value] * random.choice((1, 1, 2, 300))
    elif kind == 2:
        node[key] = json.loads(json.dumps(random.choice(values)))
    elif kind == 3:
        node[key] = [value] if random.random() < 0.5 else {"id": value}
    elif kind == 4 and random.random() < 0.2:
        for _ in range(random.choice((10, 300))):
            node[key] = [node[key]]
    elif kind == 5 and isinstance(value, int | float):
        node[key] = random.choice((value + 1, value - 1, -value, value * 1000, float(value), str(value), value / 3))
    elif kind == 5 and isinstance(value, str):
        node[key] = random.choice((value * 2, value[1:], value.upper(), f" {value}", value + random.choice(_TEXTS)))
    else:
        node[key] = _value(random)


def _json(data: bytes, random: Random) -> bytes:
    text = json.dumps(_tree(json.loads(data), random), ensure_ascii=random.random() < 0.5)
    if random.random() < 0.02:
        text = text.replace("{", '{"id": 1, "id": [], ', 1)
    return text.encode(errors="surrogatepass")


def _json_lines(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    at = random.randrange(len(lines))
    lines[at] = _json(lines[at], random) + b"\n"
    return b"".join(lines)


def _yaml(data: bytes, random: Random) -> bytes:
    if b"&" in data:  # what a bomb unfolds to
        return _lines(data, random)
    if random.random() < 0.05:
        return random.choice((_BOMB + data, *(data + line for line in _YAML)))
    tree = _tree(yaml.safe_load(data), random)
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode(errors="surrogatepass")


def _safetensors(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__")
    if metadata and random.random() < 0.6:
        key = random.choice(list(metadata))
        metadata[key] = json.dumps(_tree(json.loads(metadata[key]), random))
        text = json.dumps(header).encode()
    else:
        text = _json(data[8 : 8 + length], random)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


# text in lines


def _lines(data: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    kind = random.randrange(7)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines[at:at] = [lines[other]] * random.choice((1, 300))
    elif kind == 2:
        lines[at] = lines[at].replace(*random.sample((b",", b";", b"\t", b" ", b"|", b":"), 2))
    elif kind == 3:
        lines[at] = lines[at].rstrip(b"\r\n") + random.choice((b"\r\n", b"\r", b"", b"\x0b", b"\xe2\x80\xa8"))
    else:
        sign = next((each for each in (b",", b"\t", b";", b":", b" ") if each in lines[at]), b" ")
        words = lines[at].rstrip(b"\r\n").split(sign)
        place = random.randrange(len(words))
        words[place : place + random.choice((0, 1, 1, 1))] = [random.choice([*_WORDS, *words, b'"' + words[0] + b'"'])]
        lines[at] = sign.join(words) + b"\n"
    return random.choice((b"", b"", b"", b"", b"\xef\xbb\xbf")) + b"".join(lines)


def _xml(data: bytes, random: Random) -> bytes:
    root = ElementTree.fromstring(data)
    parents = [node for node in root.iter() if len(node)]
    parent = random.choice(parents)
    at = random.randrange(len(parent))
    child, kind = parent[at], random.randrange(8)
    if kind == 0:
        parent.remove(child)
    elif kind == 1:
        parent.insert(random.randrange(len(parent) + 1), deepcopy(random.choice(list(root))))
    elif kind == 2:
        child.tag = random.choice([node.tag for node in root.iter()])
    elif kind == 3:
        for _ in range(random.choice((1, 200))):
            inner = ElementTree.Element(child.tag)
            inner.append(parent[at])
            parent[at] = inner
    else:
        leaf = random.choice([node for node in root.iter() if not len(node)])
        leaf.text = str(random.choice((*_NUMBERS[:6], *_NUMBERS[8:11], *_NUMBERS[12:], *_TEXTS)))
    text = ElementTree.tostring(root)
    encoding = random.choice(_ENCODINGS).encode()
    heads = (b"", b"", b"", b'<?xml version="1.0" encoding="%s"?>' % encoding, random.choice(_DOCTYPES))
    return random.choice(heads) + random.choice((text, text, text.replace(b"cat", b"&e;&f;")))


# containers


def _png(data: bytes, random: Random) -> bytes:
    """Chunks changed, and their checksums made right again."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    at = random.randrange(len(chunks))
    kind, content = chunks[at]
    way = random.randrange(8)
    if way == 0:
        del chunks[at]
    elif way == 1:
        chunks.insert(random.randrange(len(chunks) + 1), (kind, content))
    elif way == 2:
        name = random.choice((b"PLTE", b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"gAMA", b"sBIT"))
        chunks.insert(1, (name, random.randbytes(random.choice((0, 1, 4, 26)))))
    elif way == 3 and kind == b"IDAT":
        chunks[at] = (kind, zlib.compress(_bytes(zlib.decompress(content), random)))
    elif way == 4 and kind == b"IHDR":
        size = [random.choice((0, 1, 6, 8, 1000, 2**16, 2**31 - 1)) for _ in range(2)]
        chunks[at] = (kind, struct.pack(">II", *size) + content[8:])
    else:
        chunks[at] = (kind, _bytes(content, random))
    parts = (struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
             for name, body in chunks)  # fmt: skip
    return data[:8] + b"".join(parts)


def _zip(data: bytes, random: Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))
    if random.random() < 0.8:
        entries[pickled] = _pickle(entries[pickled], random)
    else:
        name = random.choice(list(entries))
        content = entries.pop(name)
        entries |= random.choice(({}, {f"{name}x": content}, {name: content[:-1]}, {name: content * 2}))
    return _zipped(entries.items(), random.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,)))


def _zipped(entries: Iterable[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in entries:
            archive.writestr(name, content)
        archive.comment = comment
    return stream.getvalue()


def _program(data: bytes, random: Random) -> bytes:
    """A part of what torch.export wrote changed, mostly the graph; or the parts."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    if random.random() < 0.1:
        return _parts(entries, random)
    at = random.choice([place for place, (name, _) in enumerate(entries) if name.endswith((".json", ".pt"))])
    if random.random() < 0.75:
        at = next((place for place, (name, _) in enumerate(entries) if name.endswith("/models/model.json")), at)
    name, content = entries[at]
    known = _zip if name.endswith(".pt") else random.choice((_json, plant, plant))
    entries[at] = name, known(content, random)
    return _zipped(entries)


def _parts(entries: list[tuple[str, bytes]], random: Random) -> bytes:
    at, kind, other = random.randrange(len(entries)), random.randrange(9), random.randrange(len(entries))
    (name, content), (root, _, _) = entries[at], entries[at][0].partition("/")
    if kind == 0:
        del entries[at]
    elif kind == 1:
        entries.insert(other, (name, random.choice((content, b"", entries[other][1], b"{}"))))
    elif kind == 2:
        entries[at], entries[other] = entries[other], entries[at]
    elif kind == 3:
        entries[at] = f"{root}/{random.choice(_PARTS)}", content
    elif kind == 4:
        entries.insert(other, (f"{root}/{random.choice(_PARTS)}", content))
    elif kind == 5:
        entries[at] = random.choice((f"y{name}", name.upper(), name.replace("/", "//"), f"./{name}", name[1:])), content
    elif kind == 6:
        return _zipped(entries, zipfile.ZIP_DEFLATED)
    elif kind == 7:
        return _zipped(entries, comment=random.choice((b"x", _zipped(entries))))
    else:
        entries[at] = name, random.choice((b"", content[:-1], content * 2, _bytes(content, random)))
    return _zipped(entries)


def _pickle(data: bytes, random: Random) -> bytes:
    """An opcode left out, doubled, moved or with another argument; of the pickles in a row, the first."""
    starts = [position or 0 for _, _, position in pickletools.genops(data)]
    ends = [*starts[1:], starts[-1] + 1]
    codes = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    at = random.randrange(len(codes))
    span = slice(at, at + random.choice((1, 1, 1, 2, 5)))
    kind = random.randrange(6)
    if kind == 0:
        del codes[span]
    elif kind == 1:
        codes[at:at] = codes[span] * random.choice((1, 1, 500))
    elif kind == 2:
        other = random.randrange(len(codes))
        codes[at], codes[other] = codes[other], codes[at]
    elif kind == 3:
        codes[at] = random.choice((b"N", b"K\x00", b"J\xff\xff\xff\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\0", b")", b"}",
                                   b"]", b"(", b"0", b"t", b"R", b"b", b"\x88", b"G\x7f\xf8" + b"\0" * 6, b"X\0\0\0\0",
                                   b"cos\nsystem\n", b"cbuiltins\neval\n", b"h\x00", b"2", b"\x85", b"Q"))  # fmt: skip
    else:
        code = codes[at]
        codes[at] = code[:1] + _bytes(code[1:], random)[: len(code) - 1].ljust(len(code) - 1, b"\0")
    return b"".join(codes) + data[ends[-1] :]


_BY_SUFFIX: dict[str, Change] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".yaml": _yaml,
    ".xml": _xml,
    ".csv": _lines,
    ".txt": _lines,
    ".names": _lines,
    ".png": _png,
    ".pt2": _program,
}
