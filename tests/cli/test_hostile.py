"""Checkpoints that are damaged or meant to harm: one line that names the file, soon, and no more memory than it has."""

import io
import json
import re
import socket
import stat
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file
from torch import Tensor

import vankit
from vankit.deploy.opening import open_network
from vankit.errors import UserError
from vankit.models.weights import read_checkpoint

SMALL = {"embed_dims": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "mlp_ratios": (1, 1, 1, 1)}
SETTINGS = {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0, "interpolation": "bicubic"}
SOUND = {"classes": ["a", "b"], "preprocessing": SETTINGS, "lka": {}}
HEAD, STEM, NORM = "head.fc.weight", "stage1.patch_embed.proj.weight", "stage2.norm.weight"
LONG = "x" * 10**7


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """A VAN of four channels and two classes."""
    torch.manual_seed(0)
    return vankit.VAN(num_classes=2, **SMALL).state_dict()


def write(path: Path, tensors: dict[str, Tensor], **metadata: Any) -> Path:
    """A file whose metadata are JSON of the values, or the text as it is."""
    values = SOUND | metadata
    save_file(tensors, path, {k: v.text if isinstance(v, Raw) else json.dumps(v) for k, v in values.items()})
    return path


class Raw:
    """Text that no JSON writer would write."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text[:20]


def refusal(path: Path, read: Callable[..., Any] = open_network) -> str:
    """What is said against a file: one line, by its name, soon."""
    start = time.perf_counter()
    with pytest.raises(UserError) as error:
        read(checkpoint=path) if read is open_network else read(path)
    said = str(error.value)
    assert str(path) in said and "\n" not in said and len(said) < 1500
    assert time.perf_counter() - start < 10
    return said


METADATA: list[tuple[str, Any, str]] = [
    *(
        ("preprocessing", {**SETTINGS, name: value}, f"{name} is .*expected")
        for name, values in {
            "input_size": ([3, 10**9, 10**9], [3, -1, 8], [3, True, 8], [3, 8.5, 8], "big", [3] * 1000, [4, 8, 8], [],
                           [3, [8], 8], {"a": 8}, None, 10**30),
            "mean": (["a"] * 3, [0.5], [1e300] * 3, {}, 0.5, [None] * 3, [[0.5]] * 3, LONG),
            "std": ([0, 1, 1], [-1, 1, 1], [1e-300] * 3, [1e300] * 3, True, [False] * 3),
            "crop_pct": (0, -1, 1e-9, 1e308, "x", [1], True, None, LONG),
            "interpolation": ("evil", 5, LONG, None, ["bicubic"]),
        }.items()
        for value in values
    ),
    ("preprocessing", Raw('{"mean": [NaN, 0, 0]}'), "mean is .*three finite numbers"),
    ("preprocessing", Raw('{"std": [1, 1, Infinity]}'), "std is "),
    ("preprocessing", Raw('{"crop_pct": 1.0, "crop_pct": NaN}'), "crop_pct is nan"),
    ("classes", ["a"], "1 class names"),
    ("classes", ["a"] * 50_000, "50000 class names"),
    ("classes", ["a", "x" * 2000], "classes is "),
    ("thresholds", [0.5], "2 classes and 1 thresholds"),
    ("thresholds", [2, 2], "threshold is 2.0"),
    ("thresholds", [True, False], "thresholds is "),
    ("thresholds", Raw("[NaN, 0.5]"), "threshold is nan"),
    *(
        ("lka", {name: value}, f"{name} is .*expected")
        for name, values in {
            "kernel_size": (10**9, 0, -3, "7", [], [7] * 1000, True, 7.0, [7, 10**9], {"a": 7}),
            "dilation": (10**9, -1, [[3]]),
            "form": ("evil", 5, ["lka"]),
            "gate": ("evil", {}),
            "sigmoid": ("yes", 1),
            "without": ("dw", ["evil"]),
        }.items()
        for value in values
    ),
    ("lka", {"evil": 1}, "lka has no setting evil"),
    ("lka", {"form": "dense", "kernel_size": 1023}, "do not fit"),
    ("lka", {"kernel_size": 1023, "dilation": 1023}, "lka.dw.weight is|do not fit"),
    *(
        ("held_out", {name: value}, f"{title} is .*expected")
        for name, title, values in (
            ("share", "val_share", (2, 0, "x", True)), ("seed", "seed", (-1, 2**40, 0.5)), ("plain", "plain", (3,)),
            ("total", "total", (-1, 1e300, "x")),
        )
        for value in values
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "reason"), METADATA, ids=lambda each: repr(each)[:40])
def test_metadata_that_cannot_be(
    name: str, value: Any, reason: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    said = refusal(write(tmp_path / "x.safetensors", tensors, **{name: value}))
    assert re.search(reason, said), said


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", 5), ("model", ["van_b0"]), ("lka", "x"), ("lka", Raw("[" * 100_000)), ("classes", "a,b"),
     ("classes", ["a", 1]), ("classes", Raw("[" + "[]," * 6_000_000 + "[]]")), ("preprocessing", [1]),
     ("thresholds", "0.5"), ("preprocessing", Raw("{"))],
    ids=lambda each: repr(each)[:30],
)  # fmt: skip
def test_what_others_mean_by_the_same_words_is_passed_over(
    name: str, value: Any, tensors: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x.safetensors", tensors, **{name: value})
    assert len(open_network(checkpoint=path).description.classes) == 2
    assert f"{name} were not written by vankit: passed over" in caplog.text


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "a head without axes": ({HEAD: torch.tensor(1.0)}, r"head\.fc\.weight is of shape \(\): expected 2 axes"),
    "a head of one axis": ({HEAD: torch.zeros(2)}, r"head\.fc\.weight is of shape \(2,\)"),
    "a head of four axes": ({HEAD: torch.zeros(2, 4, 1, 1)}, r"head\.fc\.weight is of shape"),
    "a head of no class": ({HEAD: torch.zeros(0, 4)}, r"head\.fc\.weight is of shape \(0, 4\)"),
    "a head of another width": ({HEAD: torch.zeros(2, 5)}, r"head\.fc\.weight is \(2, 5\), the model's is \(2, 4\)"),
    "a bias without axes": ({"head.fc.bias": torch.tensor(1.0)}, r"head\.fc\.bias is \(\), the model's is \(2,\)"),
    "half a head": ({HEAD: None}, "missing: head.fc.weight"),
    "a stem without axes": ({STEM: torch.tensor(1.0)}, r"proj\.weight is of shape \(\)"),
    "a stem of no channel": ({STEM: torch.zeros(4, 0, 7, 7)}, r"proj\.weight is of shape \(4, 0, 7, 7\)"),
    "a stem of another size": ({STEM: torch.zeros(4, 3, 9, 9)}, r"proj\.weight is \(4, 3, 9, 9\)"),
    "a norm without axes": ({NORM: torch.tensor(1.0)}, "expected four stages, each with a norm"),
    "a norm of no channel": ({NORM: torch.zeros(0)}, "stages of width"),
    "a missing norm": ({NORM: None}, "missing: stage2.norm.weight"),
    "a tensor too many": ({"stage1.blocks.0.evil": torch.zeros(1)}, "left over: stage1.blocks.0.evil"),
    "another block": ({"stage1.blocks.7.layer_scale_1": torch.zeros(4)}, "missing: stage1.blocks.1"),
    "NaN": ({NORM: torch.full((4,), torch.nan)}, "NaN or infinite numbers in 1 of its"),
    "infinite": ({HEAD: torch.full((2, 4), -torch.inf)}, "NaN or infinite numbers in 1 of its"),
    "one convolution of another size": ({"stage1.blocks.0.attn.lka.dw.weight": torch.zeros(4, 1, 3, 3)}, "is .*3, 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(case: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    changes, reason = TENSORS[case]
    changed = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    said = refusal(write(tmp_path / "x.safetensors", changed))
    assert re.search(reason, said), said


def header(tensors: dict[str, Tensor], change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A safetensors file whose header was changed."""
    data = save(tensors)
    (length,) = struct.unpack("<Q", data[:8])
    content = json.loads(data[8 : 8 + length])
    text = json.dumps(change(content) or content).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def entry(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content[HEAD].update(values)


BYTES: dict[str, Callable[[dict[str, Tensor]], bytes]] = {
    "nothing": lambda _: b"",
    "a byte": lambda _: b"\0",
    "a length alone": lambda t: save(t)[:8],
    "a length beyond the file": lambda t: struct.pack("<Q", 2**62) + save(t)[8:],
    "half a header": lambda t: save(t)[:1000],
    "half the numbers": lambda t: save(t)[: len(save(t)) - 2000],
    "a byte too few": lambda t: save(t)[:-1],
    "a byte too many": lambda t: save(t) + b"\0",
    "a header that is not JSON": lambda t: save(t)[:9] + b"}" * 20 + save(t)[29:],
    "a header of depth": lambda _: struct.pack("<Q", 200_006) + b'{"a": ' + b"[" * 200_000,
    "a header that is a list": lambda t: header(t, lambda content: [content]),
    "a tensor of terabytes": lambda t: header(t, entry(shape=[10**6, 10**6])),
    "a tensor of more than a number can count": lambda t: header(t, entry(shape=[2**62, 2**62])),
    "a tensor beyond the file": lambda t: header(t, entry(data_offsets=[0, 10**12])),
    "a negative shape": lambda t: header(t, entry(shape=[-2, 4])),
    "a kind of number that is none": lambda t: header(t, entry(dtype="F1024")),
    "offsets that end before they start": lambda t: header(t, entry(data_offsets=[8, 0])),
    "metadata that are no text": lambda t: header(t, lambda content: {**content, "__metadata__": {"a": 1}}),
    "a tensor that is text": lambda t: header(t, lambda content: {**content, HEAD: "x"}),
    "a web page": lambda _: b"<!DOCTYPE html><p>404",
    "a pointer": lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "a zip bomb": lambda _: archive({"x/data.pkl": b"\0" * 10**7}, zipfile.ZIP_DEFLATED),
    "an .npz bomb": lambda _: packed(np.savez_compressed, a=np.zeros(10**6)),
    "an .npz": lambda _: packed(np.savez, a=np.zeros(4)),
    "a link in a zip": lambda _: archive({"x/data.pkl": b"/etc/passwd"}, link=True),
    "parts that lead out": lambda _: archive({"../../data.pkl": b"\x80\x02}."}),
    "a program of TorchScript": lambda _: archive({"x/data.pkl": b"\x80\x02}.", "x/constants.pkl": b"", "x/a.py": b""}),
    "a pickle that calls": lambda _: b"cposix\nsystem\n(S'true'\ntR.",
    "a pickle in a zip that calls": lambda _: archive({"x/data.pkl": b"cbuiltins\neval\n(S'1'\ntR."}),
    "a pickle that ends too early": lambda _: b"\x80\x02}q\x00(",
}  # fmt: skip


def archive(parts: dict[str, bytes], kind: int = zipfile.ZIP_STORED, link: bool = False) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", kind) as file:
        for name, content in parts.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = kind
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if link else 0
            file.writestr(info, content)
    return target.getvalue()


def packed(write: Any, **arrays: Any) -> bytes:
    target = io.BytesIO()
    write(target, **arrays)
    return target.getvalue()


@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_checkpoint(case: str, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pth"):
        (tmp_path / f"x{suffix}").write_bytes(BYTES[case](tensors))
        for read in (open_network, read_checkpoint):
            refusal(tmp_path / f"x{suffix}", read)


DENSE: list[tuple[str, Any, str]] = [
    ("task", "evil", "task is 'evil': expected one of classify, detect"), ("task", 5, "task is 5"),
    ("head", "evil", "unknown head 'evil' for segment"), ("head", [1], r"head is \[1\]"),
    ("model", "hf-hub:evil/model", "its model is 'hf-hub:evil/model': expected a VAN"),
    ("model", "local-dir:/etc", "its model is 'local-dir:/etc'"), ("model", "resnet18", "its model is 'resnet18'"),
    ("model", "van_b0.evil", "van_b0.evil"), ("model", LONG, "model is 'xxx"),
    ("classes", ["a"], "there are 1 classes and 2 things"), ("classes", [], "there are 0 classes and 2 things"),
    ("things", [1, 0], "things is "), ("things", [True], "1 things"), ("category_ids", [1e300, 2], "category_ids is "),
    ("category_ids", [10**30, 1], "category_ids is "), ("short_sides", [0], "short_sides is "),
    ("short_sides", [10**9], "short_sides is "), ("short_sides", [], "short_sides is "), ("short_sides", 32, "is 32"),
    ("long_side", -1, "long_side is -1"), ("long_side", 10**9, "long_side is 1000000000"),
    ("long_side", True, "long_side is True"), ("crop", -5, "crop is -5"), ("crop", "x", "crop is 'x'"),
    ("queries", 0, "queries is 0"), ("queries", 10**9, "queries is 1000000000"), ("ignore_label", -1, "ignore_label"),
    ("map_labels", 5, "map_labels is 5"), ("map_labels", [5], "map_labels is "),
    ("lka", {"kernel_size": 10**9}, "kernel_size is 1000000000"), ("lka", {"form": "dense"}, "description asks for"),
    ("lka", 5, "does not fit|lka"), ("task", None, "does not say its task"),
]  # fmt: skip


@pytest.fixture(scope="session")
def dense(segmenter: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from vankit.models.weights import read_metadata

    return load_file(segmenter), read_metadata(segmenter)


@pytest.mark.parametrize(("name", "value", "reason"), DENSE, ids=lambda each: repr(each)[:40])
def test_descriptions_of_a_segmenter_that_cannot_be(
    name: str, value: Any, reason: str, dense: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path
) -> None:
    tensors, metadata = dense
    # of the tensors only some are needed: what its description says is refused before they are loaded
    few = {key: tensor for key, tensor in tensors.items() if tensor.numel() < 5000}
    said = {k: v for k, v in {**metadata, name: value}.items() if v is not None}
    save_file(few, tmp_path / "x.safetensors", {key: json.dumps(each) for key, each in said.items()})
    found = refusal(tmp_path / "x.safetensors")
    assert re.search(reason, found), found


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens a socket, or looks for a hub's file, fails the test."""

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("timm.models._hub.hf_hub_download", refuse)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "name", ["hf-hub:evil/model", "hf_hub:evil/model", "local-dir:/etc", "resnet18", "van_b0.evil"]
)
def test_a_name_in_a_file_fetches_nothing(
    name: str, tensors: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "x.safetensors", tensors, model=name)
    assert open_network(checkpoint=path).description.model is None
    (tmp_path / "timm").mkdir()
    save_file(tensors, tmp_path / "timm" / "model.safetensors")
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"architecture": f"van_{name}", "num_classes": 2}))
    assert open_network(checkpoint=tmp_path / "timm").description.model is None
    assert not name.startswith(("hf", "local", "res")) or f"its model is {name!r}, which is not a VAN" in caplog.text


BESIDE: dict[str, list[tuple[str, Any, str]]] = {
    "config.json": [
        ("image_size", 10**9, "image_size is 1000000000"), ("image_size", True, "image_size is True"),
        ("id2label", {"0": 5}, "id2label is "), ("id2label", ["a"], "id2label is "), ("problem_type", 5, ".*is 5"),
    ],
    "preprocessor_config.json": [
        ("size", {"height": 10**9}, "size is "), ("size", "x", "size is 'x'"), ("crop_pct", -1, "crop_pct is -1"),
        ("crop_pct", "x", "crop_pct is 'x'"), ("resample", 99, "resample is 99"), ("resample", "x", "resample is 'x'"),
        ("image_mean", ["a"] * 3, "image_mean is "), ("image_std", [1e300] * 3, "image_std is "),
        ("rescale_factor", "x", "rescale_factor is 'x'"), ("rescale_factor", 0, "rescale_factor is 0"),
        ("do_normalize", "no", "do_normalize is 'no'"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "name", "value", "reason"), [(file, *each) for file, cases in BESIDE.items() for each in cases], ids=repr
)
def test_json_beside_a_checkpoint(
    file: str, name: str, value: Any, reason: str, tensors: dict[str, Tensor], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    vankit.models.weights.write_checkpoint(tensors, tmp_path / "model.safetensors", "hf", {"classes": ["a", "b"]})
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    assert open_network(checkpoint=tmp_path).description.preprocessing is not None
    assert re.search(rf"{file}: {reason}.*; passed over", caplog.text)


@pytest.mark.usefixtures("offline")
def test_the_config_json_of_a_run(tensors: dict[str, Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {f"model.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"state_dict": state, "pytorch-lightning_version": "2"}, tmp_path / "resume.ckpt")
    config = {"data": "x", "task": "classify", "model": "hf-hub:evil/model", **SOUND}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert open_network(checkpoint=tmp_path / "resume.ckpt").description.classes == ("a", "b")
    assert "'hf-hub:evil/model', which is not a VAN: passed over" in caplog.text
    for change in ({"lka": {"kernel_size": 10**9}}, {"preprocessing": {"mean": "x"}}, {"classes": 5}, {"model": 7}):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=rf"{tmp_path / 'config.json'}: \w+ is "):
            open_network(checkpoint=tmp_path / "resume.ckpt")


# in a process that may have so much memory that what is claimed is far beyond it
MEMORY = """
import resource, sys
from pathlib import Path
from vankit.cli import main
resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
for path in sys.argv[1:]:
    try:
        main(["validate", "nowhere", "--checkpoint", path])
    except SystemExit as end:
        # ru_maxrss would count what the process held that started this one
        print(end.code, int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
def test_claims_take_no_memory(
    tensors: dict[str, Tensor], dense: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path
) -> None:
    paths = [write(tmp_path / "lka.safetensors", tensors, lka={"form": "dense", "kernel_size": 1023})]
    one = {name: tensor.flatten()[:1].clone() for name, tensor in tensors.items()}
    wide = {
        f"stage{i}.{name}": torch.zeros(10**5)
        for i in range(1, 5)
        for name in ("norm.weight", "blocks.0.mlp.fc1.weight")
    }
    paths.append(write(tmp_path / "wide.safetensors", {**one, HEAD: tensors[HEAD], STEM: tensors[STEM], **wide}))
    named = {name for name in tensors if name.startswith("stage1.blocks.0.")}
    deep = {name.replace(".0.", f".{i}.", 1): one[name].clone() for i in range(5000) for name in named}
    paths.append(write(tmp_path / "deep.safetensors", {**tensors, **deep}))
    many = {"classes": [str(i) for i in range(300_000)], "head": "retinanet", "task": "detect"}
    for name, said in (("many", many), ("attention", {"lka": {"form": "dense", "kernel_size": 1023}})):
        metadata = {**dense[1], "category_ids": [], "things": [], **said}
        if name == "attention":
            metadata |= {"category_ids": [1, 2], "things": [True, True]}
        paths.append(tmp_path / f"{name}.safetensors")
        save_file(dense[0], paths[-1], {key: json.dumps(value) for key, value in metadata.items()})
    done = subprocess.run([sys.executable, "-c", MEMORY, *paths], capture_output=True, text=True, timeout=120)
    ends = [line.split() for line in done.stdout.splitlines()]
    assert [end[0] for end in ends] == ["1"] * len(paths), done.stderr
    assert max(int(end[1]) for end in ends) < 2500  # MB, of which PyTorch and timm are 500
    assert all(f"vankit: {path}" in done.stderr for path in paths) and "Traceback" not in done.stderr


HARM: dict[str, Callable[[dict[str, Tensor]], bytes]] = {
    "cut.safetensors": lambda t: save(t)[:3000],
    "head.safetensors": lambda t: save({**t, HEAD: torch.tensor(1.0)}),
    "range.safetensors": lambda t: save(t, {"preprocessing": json.dumps({"mean": ["a"] * 3})}),
    "plant.pth": BYTES["a pickle that calls"],
}


@pytest.mark.parametrize(
    "name", [name if i == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(HARM)]
)
def test_every_command_says_it_in_one_line(
    name: str, run: Callable[..., int], photo: Path, tensors: dict[str, Tensor], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data, path, out = tmp_path / "data", tmp_path / name, tmp_path / "out"
    for i, split in enumerate(["train", "train", "val"]):
        for label in ("a", "b"):
            (data / split / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(data / split / label / f"{i}.png")
    path.write_bytes(HARM[name](tensors))
    training = ["--checkpoint", path, "--output", out, "--workers", 0, "--batch-size", 2]
    for words in (
        ["predict", photo, "--checkpoint", path],
        ["predict", photo, "--model", path],
        ["validate", data, "--checkpoint", path],
        ["explain", photo, "--checkpoint", path],
        ["export", "--checkpoint", path, "--output", out],
        ["convert", path, tmp_path / "out.pth", "--to", "official"],
        ["train", data, *training],
        ["train", "shapes", "--task", "segment", *training],
    ):
        assert run(*words) == 1, words
        said = capsys.readouterr().err
        assert re.search(rf"^vankit: .*{path}", said, re.M) and "Traceback" not in said, (words, said)
        assert not out.exists()
