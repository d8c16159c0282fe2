"""Reading PyTorch's pickles as data: equal to torch.load on honest files, inert on hostile ones."""

import collections
import contextlib
import copy
import copyreg
import io
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vankit.errors import UserError
from vankit.models import weights
from vankit.models.weights.pickles import Opaque, Planted, StoredTensor, Unreadable, open_pickle

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
          torch.complex64, torch.float8_e4m3fn]  # fmt: skip


def read(path: Path) -> Any:
    """The content of a file with its tensors read."""
    with open_pickle(path) as file:

        def whole(value: Any) -> Any:
            if isinstance(value, StoredTensor):
                return file.tensor(value)
            if isinstance(value, dict):
                return {name: whole(child) for name, child in value.items()}
            return value

        return whole(file.content)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_are_those_of_torch_load(dtype: torch.dtype, zipped: bool, tmp_path: Path) -> None:
    if not zipped and dtype == torch.float8_e4m3fn:
        pytest.skip("the former format has no storages of this type")
    base = torch.arange(24).to(dtype).reshape(2, 3, 4)
    content = {
        "whole": base, "turned": base.permute(2, 0, 1), "part": base[1, :, ::2], "scalar": base[0, 0, 1], "same": base,
        "empty": base[:0], "parameter": torch.nn.Parameter(torch.rand(3)), "channels": torch.rand(2, 3, 4, 5).to(
            memory_format=torch.channels_last),
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    expected = torch.load(tmp_path / "x.pth", weights_only=True)
    found = read(tmp_path / "x.pth")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name].view(-1).view(torch.uint8), tensor.contiguous().view(-1).view(torch.uint8)), name


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=12,
)


@given(value=PLAIN, protocol=st.sampled_from([2, 3, 4, 5]))
def test_plain_values_are_those_of_pickle(value: Any, protocol: int) -> None:
    from vankit.models.weights.pickles import _Machine

    assert _Machine().run(io.BytesIO(pickle.dumps(value, protocol))) == value


def test_dicts_of_all_kinds_are_dicts(tmp_path: Path) -> None:
    content = {
        "ordered": collections.OrderedDict(a=torch.ones(1)), "default": collections.defaultdict(list, b=torch.zeros(2)),
        "counter": collections.Counter("aab"), "size": torch.Size([3, 4]),
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    assert torch.equal(found["ordered"]["a"], torch.ones(1)) and torch.equal(found["default"]["b"], torch.zeros(2))
    assert found["counter"] == {"a": 2, "b": 1} and tuple(found["size"]) == (3, 4)


class Stateful:
    """Would write a file when its state is set."""

    marker = ""

    def __setstate__(self, state: Any) -> None:
        Path(state["marker"]).touch()


def test_other_objects_are_neither_made_nor_given_their_state(tmp_path: Path) -> None:
    marker = tmp_path / "called"
    thing = Stateful()
    thing.marker = str(marker)
    array = np.arange(3)
    torch.save({"state_dict": {"w": torch.ones(2)}, "thing": thing, "array": array}, tmp_path / "x.pth")
    found = read(tmp_path / "x.pth")
    assert torch.equal(found["state_dict"]["w"], torch.ones(2)) and not marker.exists()
    assert isinstance(found["thing"], Opaque) and found["thing"].state == {"marker": str(marker)}
    with open_pickle(tmp_path / "x.pth") as file:
        assert file.foreign == [f"{Stateful.__module__}.Stateful"]
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert marker.exists(), "the trap itself is broken"


# hostile files, each a data.pkl written by hand


def archive(path: Path, program: bytes, storages: dict[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("x/data.pkl", program)
        file.writestr("x/byteorder", b"little")
        for key, content in (storages or {}).items():
            file.writestr(f"x/data/{key}", content)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor_of(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4) -> bytes:
    """The pickle of a tensor over a storage of four floats."""
    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (size, stride)]
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + b"".join(numbers) + b"\x89}tR."


FOUR = {"0": np.arange(4, dtype=np.float32).tobytes()}


def test_the_handwritten_tensor_is_sound(tmp_path: Path) -> None:
    assert read(archive(tmp_path / "x.pth", tensor_of((2, 2), (1, 2)), FOUR)).tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((10**10,), (0,), 0), ((2**40, 2**40), (1, 1), 0), ((4,), (1,), 1), ((2,), (2**40,), 0), ((5,), (1,), 0)],
)
def test_claims_beyond_the_file_are_refused(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    archive(tmp_path / "x.pth", tensor_of(size, stride, offset), FOUR)
    with open_pickle(tmp_path / "x.pth") as file, pytest.raises(Unreadable, match="claims more numbers"):
        file.tensor(file.content)


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((-1,), (1,), 0), ((2,), (-1,), 0), ((2,), (1,), -1), ((2,), (1, 1), 0)]
)
def test_impossible_shapes_are_refused(
    size: tuple[int, ...], stride: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    with pytest.raises(Unreadable), open_pickle(archive(tmp_path / "x.pth", tensor_of(size, stride, offset), FOUR)):
        pass


HARMLESS_BUT_STRANGE = {
    "a list that contains itself": b"]q\x00h\x00a.",
    "a dict that contains itself": b"}q\x00" + text("a") + b"h\x00s.",
    "a memo with a huge index": b"}r\xff\xff\xff\x7f.",
    "an extension code": b"\x82\x07.",
    "a persistent id that is text": b"Pevil\n.",
    "a persistent id that is an object": b"}Q.",
    "NEWOBJ of an unknown class": b"ca\nB\n)\x81}" + text("x") + b"K\x01sb.",
    "NEWOBJ_EX": b"\x80\x04ca\nB\n)}\x92.",
    "INST": b"(K\x01ia\nB\n.",
    "OBJ": b"(ca\nB\nK\x01o.",
    "BUILD on a function": b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__defaults__") + b"Nsb.",
    "a set and a frozenset": b"\x80\x04\x8f(K\x01\x90(\x91\x86.",
    "a call of what is not a class": b"K\x01)R.",
}


@pytest.mark.parametrize("program", HARMLESS_BUT_STRANGE.values(), ids=HARMLESS_BUT_STRANGE.keys())
def test_strange_pickles_are_read_without_effect(program: bytes, tmp_path: Path) -> None:
    before = torch._utils._rebuild_tensor_v2.__defaults__
    with open_pickle(archive(tmp_path / "x.pth", program)):
        pass
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before
    with pytest.raises(UserError, match=r"x\.pth holds no state dict"):
        weights.read_checkpoint(tmp_path / "x.pth")


def test_an_extension_code_is_not_looked_up(tmp_path: Path) -> None:
    copyreg.add_extension("os", "system", 7)
    try:
        with open_pickle(archive(tmp_path / "x.pth", b"\x82\x07.")) as file:
            assert isinstance(file.content, Opaque) and file.content.name == "extension.7"
    finally:
        copyreg.remove_extension("os", "system", 7)


def test_classes_of_a_package_called_code_are_no_plant(tmp_path: Path) -> None:
    with open_pickle(archive(tmp_path / "x.pth", b"ccode.train\nConfig\n)R.")) as file:
        assert file.foreign == ["code.train.Config"]


PLANTED = [b"cos\nsystem\n", b"cposix\nsystem\n", b"cbuiltins\neval\n", b"csubprocess\nPopen\n",
           b"\x80\x04" + text("os") + text("system") + b"\x93", b"(ios\nsystem\n"]  # fmt: skip


@pytest.mark.parametrize("opening", PLANTED, ids=repr)
def test_what_can_only_be_meant_to_run_is_found_out(opening: bytes, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    program = opening + b"(" + text(f"touch {marker}") + b"tR."
    with pytest.raises(Planted), open_pickle(archive(tmp_path / "x.pth", program)):
        pass
    with pytest.raises(UserError, match=r"x\.pth was refused"):
        weights.read_checkpoint(tmp_path / "x.pth")
    assert not marker.exists()


def laughs(levels: int) -> bytes:
    """Tuples of tuples, 2 ** levels of them, in few bytes."""
    return b")q\x000" + b"".join(b"h%ch%c\x86q%c0" % (i, i, i + 1) for i in range(levels)) + b"h%c" % levels


DAMAGED = {
    "tuples without end as a key": (b"}" + laughs(200) + b"K\x01s.", None),
    "tuples without end as a name": (b"\x80\x04" + laughs(200) + text("a") + b"\x93.", "a name that is a tuple"),
    "ten gigabytes of bytes": (b"\x80\x05\x8e" + struct.pack("<Q", 10**10) + b"abc.", "breaks off or makes no sense"),
    "ten gigabytes of bytearray": (
        b"\x80\x05\x96" + struct.pack("<Q", 10**10) + b"abc.",
        "breaks off or makes no sense",
    ),
    "ten gigabytes of text": (b"\x8d" + struct.pack("<Q", 10**10) + b"abc.", "breaks off or makes no sense"),
    "no end": (b"}", "it ends too early|breaks off"),
    "an empty stack": (b"0.", "breaks off or makes no sense"),
    "an unknown opcode": (b"\xff.", "breaks off or makes no sense"),
    "a memo entry that is not there": (b"h\x05.", "breaks off or makes no sense"),
    "a storage of a long name": (
        b"\x80\x02("
        + text("storage")
        + b"ctorch\n"
        + b"." * 10**6
        + b"X\n"
        + text("0")
        + text("cpu")
        + number(1)
        + b"tQ.",
        "numbers of an unknown kind",
    ),
    "numbers with one hash": (
        b"\x80\x02}(" + b"".join(number(i * (2**61 - 1)) + b"K\x01" for i in range(30_000)) + b"u.",
        None,
    ),
    "one list made a dict many times": (
        b"\x80\x02]("
        + b"".join(number(i) + b"N\x86" for i in range(3000))
        + b"eq\x010"
        + b"ccollections\nOrderedDict\nq\x02"
        + b"h\x02h\x01\x85R0" * 3000
        + b".",
        None,
    ),
}


@pytest.mark.parametrize(("program", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_no_pickle_takes_long_or_much(program: bytes, message: str | None, tmp_path: Path) -> None:
    archive(tmp_path / "x.pth", program)
    start = time.perf_counter()
    if message is None:
        with open_pickle(tmp_path / "x.pth"):
            pass
    else:
        with pytest.raises(Unreadable, match=message), open_pickle(tmp_path / "x.pth"):
            pass
    assert time.perf_counter() - start < 30  # it would be for ever


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    archive(tmp_path / "x.pth", tensor_of((4,), (1,)), {"0": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(Unreadable, match="compressed"), open_pickle(tmp_path / "x.pth"):
        pass


@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_damage_is_unreadable_or_read(edits: list[tuple[int, int]]) -> None:
    from vankit.models.weights.pickles import _Machine

    data = bytearray(tensor_of((2, 2), (1, 2)))
    for place, value in edits:
        data[place % len(data)] = value
    imported = set(sys.modules)
    with contextlib.suppress(Unreadable, Planted):
        result = _Machine().run(io.BytesIO(data))
        assert isinstance(result, (StoredTensor, Opaque, dict, list, tuple, str, bytes, int, float, type(None)))
    assert set(sys.modules) == imported


def test_nesting_without_end_is_not_followed(tmp_path: Path) -> None:
    depth = 300_000
    archive(tmp_path / "x.pth", (b"}" + text("a")) * depth + b"}" + b"s" * depth + b".")
    start = time.perf_counter()
    with pytest.raises(UserError, match="holds no state dict"):
        weights.read_checkpoint(tmp_path / "x.pth")
    assert time.perf_counter() - start < 30  # it would be many minutes


def test_tensors_that_overlap_cannot_outgrow_the_file(tmp_path: Path) -> None:
    flat = torch.zeros(100_000)
    torch.save({"whole": flat, "half": flat[:50_000], "rest": flat[50_000:]}, tmp_path / "views.pth")
    assert {name: len(tensor) for name, tensor in read(tmp_path / "views.pth").items()} == {
        "whole": 100_000, "half": 50_000, "rest": 50_000,
    }  # fmt: skip
    torch.save([flat[:-1]] * 40 + [flat[:-1] for _ in range(40)], tmp_path / "shared.pth")
    with open_pickle(tmp_path / "shared.pth") as file:
        assert len({file.tensor(stored).data_ptr() for stored in file.content}) == 1
    torch.save([flat[: -1 - i] for i in range(40)], tmp_path / "x.pth")
    with open_pickle(tmp_path / "x.pth") as file, pytest.raises(Unreadable, match="its tensors overlap"):
        [file.tensor(stored) for stored in file.content]


def test_parts_of_an_archive_that_overlap_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(archive(tmp_path / "x.pth", b"].", {"0": bytes(10**5)}), "a") as file:
        for i in range(1, 5):
            entry = copy.copy(file.getinfo("x/data/0"))
            entry.filename = f"x/data/{i}"
            file.filelist.append(entry)
        file.writestr("x/last", b"")  # so that the directory is written anew
    with pytest.raises(Unreadable, match="larger than the file"), open_pickle(tmp_path / "x.pth"):
        pass


def test_big_endian_numbers_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("x/data.pkl", tensor_of((4,), (1,)))
        file.writestr("x/byteorder", b"big")
        file.writestr("x/data/0", FOUR["0"])
    with pytest.raises(Unreadable, match="big-endian"), open_pickle(tmp_path / "x.pth"):
        pass


def test_a_former_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(content[:-100])
    with pytest.raises(Unreadable, match="is cut off"), open_pickle(tmp_path / "x.pth"):
        pass


@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_archive_is_unreadable_or_read(edits: list[tuple[int, int]], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    data = bytearray(archive(path, tensor_of((2, 2), (1, 2)), FOUR).read_bytes())
    for place, value in edits:
        data[place % len(data)] = value
    path.write_bytes(data)
    with contextlib.suppress(Unreadable, Planted), open_pickle(path) as file:
        assert not isinstance(file.content, StoredTensor) or file.tensor(file.content).numel() <= 4
