"""The public checkpoint formats: names, files, damage and malice."""

import argparse
import collections
import json
import logging
import math
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import vankit
from vankit.errors import MissingFileError, UserError
from vankit.models import weights
from vankit.models.van import VARIANTS

PUBLIC = ("official", "mmpretrain", "hf")
SUFFIX = {"vankit": ".safetensors", "official": ".pth.tar", "mmpretrain": ".pth", "hf": ".bin"}
JSON = ("config.json", "preprocessor_config.json")
HF_UNUSED = {"van.layernorm.weight", "van.layernorm.bias"}


@pytest.fixture(scope="module")
def public(golden_names: Any, golden_state_dict: Any) -> dict[str, dict[str, Tensor]]:
    """By format, van_b0 as its publisher names it; transformers' files also carry two tensors that no model uses."""
    official = golden_state_dict("van_b0")
    named = {fmt: {row[i]: official[row[0]] for row in golden_names["van_b0"]} for i, fmt in enumerate(PUBLIC)}
    named["hf"] |= {"van.layernorm.weight": torch.ones(256), "van.layernorm.bias": torch.zeros(256)}
    return named


@pytest.fixture(scope="module")
def files(public: dict[str, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By format, a file laid out as its publisher does, and a vankit file converted from the official one."""
    folder = tmp_path_factory.mktemp("published")
    paths = {fmt: folder / f"van_b0{suffix}" for fmt, suffix in SUFFIX.items()}
    args = argparse.Namespace(model="van_b0", lr=1e-3, drop_path=0.1)
    official = {"epoch": 308, "arch": "van_b0", "state_dict": public["official"], "args": args, "metric": 75.4}
    torch.save(official, paths["official"])
    torch.save({"meta": {}, "state_dict": public["mmpretrain"]}, paths["mmpretrain"])
    torch.save(public["hf"], paths["hf"])
    vankit.convert(paths["official"], paths["vankit"])
    return paths


@pytest.fixture(scope="module")
def small() -> dict[str, Tensor]:
    """A state dict under vankit's names with one block a stage and one number a tensor."""
    tensors = {row[0]: torch.tensor([float(i)]) for i, row in enumerate(weights.name_table((1, 1, 1, 1)))}
    stem = "stage1.patch_embed.proj.weight"
    return tensors | {stem: tensors[stem][:, None, None, None], "head.fc.weight": tensors["head.fc.weight"][:, None]}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert set(a) == set(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]), name


# names


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_name_table_is_the_published_one(variant: str, golden_names: Any) -> None:
    table = list(weights.name_table(VARIANTS[variant]["depths"]))
    assert [row[1:] for row in table] == [tuple(row[:3]) for row in golden_names[variant]]
    with torch.device("meta"):
        model = timm.create_model(variant)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {row[0] for row in table} == set(shapes)
    assert [shapes[row[0]] for row in table] == [row[3] for row in golden_names[variant]]


@pytest.mark.parametrize("fmt", PUBLIC)
def test_rename_both_ways_is_exact(fmt: str, public: dict[str, dict[str, Tensor]]) -> None:
    vankit_named = weights.rename(public[fmt], fmt, "vankit")
    assert len(vankit_named) == 402
    assert_equal(weights.rename(vankit_named, "vankit", fmt), public[fmt])


@pytest.mark.parametrize("problem", ["missing", "left over"])
@pytest.mark.parametrize("fmt", weights.FORMATS)
def test_missing_and_left_over_tensors_are_named(fmt: str, problem: str, small: dict[str, Tensor]) -> None:
    tensors = weights.rename(small, "vankit", fmt)
    name = sorted(set(tensors) - HF_UNUSED)[7]
    if problem == "missing":
        del tensors[name]
    else:
        name = f"{name}.momentum"
        tensors[name] = torch.zeros(1)
    with pytest.raises(UserError, match=f"{problem}: {name}"):
        weights.rename(tensors, fmt, "vankit")


def test_other_attentions_keep_their_names_and_settings(tmp_path: Path) -> None:
    model = timm.create_model("van_b0", lka={"form": "lska"})
    vankit.save_checkpoint(model, tmp_path / "lska.safetensors")
    found = weights.read_checkpoint(tmp_path / "lska.safetensors")
    assert found.metadata == {"lka": {"form": "lska"}, "preprocessing": weights.beside.PUBLISHED}
    assert_equal(found.state_dict, model.state_dict())
    again = timm.create_model("van_b0", pretrained_cfg_overlay={"file": str(tmp_path / "lska.safetensors")},
                              pretrained=True, lka=found.metadata["lka"])  # fmt: skip
    assert_equal(again.state_dict(), model.state_dict())
    with pytest.raises(
        UserError, match=r"do not fit.*it was trained with lka=\{'form': 'lska'\}, the model has lka=\{\}"
    ):
        vankit.load_checkpoint(timm.create_model("van_b0"), tmp_path / "lska.safetensors")


@pytest.mark.parametrize("lka", [{"form": "lska"}, {"gate": "add"}, {"sigmoid": True}, {"kernel_size": [7]}], ids=str)
def test_public_formats_take_no_other_attention(
    lka: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("van_b0", lka=lka)
    vankit.save_checkpoint(model, tmp_path / "own.safetensors")
    for target in PUBLIC:
        with pytest.raises(UserError, match=f"only vankit files have a place for lka=.*not those of {target}"):
            vankit.convert(tmp_path / "own.safetensors", tmp_path / "public.pth", target)
        with pytest.raises(UserError, match="only vankit files"):
            vankit.save_checkpoint(model, tmp_path / "public.pth", target)
    assert not (tmp_path / "public.pth").exists()
    if "gate" in lka:  # the tensors fit
        vankit.load_checkpoint(timm.create_model("van_b0"), tmp_path / "own.safetensors")
        assert "was trained with lka={'gate': 'add'}, the model has lka={}" in caplog.text


def test_half_a_head_is_missing_the_other(small: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match="missing: head.fc.bias"):
        weights.rename({k: v for k, v in small.items() if k != "head.fc.bias"}, "vankit", "hf")


def test_unknown_format_is_refused(small: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match="unknown checkpoint format 'keras'.*official"):
        weights.rename(small, "vankit", "keras")


def test_enormous_block_number_costs_nothing(small: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"left over: stage1\.blocks\.9+\.layer_scale_1"):
        weights.rename(small | {f"stage1.blocks.{'9' * 5000}.layer_scale_1": torch.zeros(1)}, "vankit", "official")


EDITS = st.lists(
    st.tuples(
        st.integers(0, 10**6),
        st.sampled_from(["drop", "add", "digit", "suffix"]),
        st.text(st.sampled_from("0123456789.abk²٣"), min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=6,
)


@given(fmt=st.sampled_from(weights.FORMATS), edits=EDITS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_perturbed_names_are_exact_or_refused(
    fmt: str, edits: list[tuple[int, str, str]], small: dict[str, Tensor]
) -> None:
    tensors = weights.rename(small, "vankit", fmt)
    for position, edit, text in edits:
        name = sorted(tensors)[position % len(tensors)]
        value = tensors[name]
        if edit == "add":
            tensors[text] = value
            continue
        del tensors[name]
        if edit == "digit":
            tensors[name.replace("1", text, 1)] = value
        elif edit == "suffix":
            tensors[name + text] = value
    try:
        renamed = weights.rename(tensors, fmt, "vankit")
    except ValueError as error:
        known = set(tensors) | set(weights.rename(small, "vankit", fmt))
        assert any(name in str(error) for name in known)
    else:
        used = {k: v for k, v in tensors.items() if k not in HF_UNUSED}
        assert len(renamed) == len(used)
        assert {id(v) for v in renamed.values()} == {id(v) for v in used.values()}
        assert set(renamed) <= set(small)


# files


@pytest.mark.parametrize("fmt", weights.FORMATS)
def test_every_format_gives_the_published_logits(
    fmt: str, files: dict[str, Path], golden_outputs: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    model = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay={"file": str(files[fmt])}).eval()
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 3, 161, 227)).astype(np.float32))
    with torch.inference_mode():
        logits = model(x).double().numpy()
    assert np.abs(logits - golden_outputs("van_b0")["logits_b"]).max() < 2e-6
    assert model.pretrained_cfg["file"] == str(files[fmt])
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize("to", weights.FORMATS)
@pytest.mark.parametrize("source", weights.FORMATS)
def test_convert_is_bit_exact(source: str, to: str, files: dict[str, Path], public: Any, tmp_path: Path) -> None:
    target = tmp_path / f"out{SUFFIX[to]}"
    assert vankit.convert(files[source], target, to) == source
    assert {path.name for path in tmp_path.iterdir()} == {target.name, *(JSON if to == "hf" else ())}
    checkpoint = weights.read_checkpoint(target)
    assert (checkpoint.format, checkpoint.num_classes) == (to, 1000)
    assert_equal(weights.rename(checkpoint.state_dict, "vankit", "official"), public["official"])
    if to == "vankit":
        with safetensors.safe_open(target, "pt") as file:
            named = source in ("vankit", "official")  # the others' files in `files` do not say what they are
            assert file.metadata() == {"format": "pt"} | ({"model": '"van_b0"'} if named else {})
    else:
        content = torch.load(target, weights_only=True)
        assert_equal(content if to == "hf" else content["state_dict"], public[to])


def test_hf_safetensors(files: dict[str, Path], public: Any, tmp_path: Path) -> None:
    vankit.convert(files["official"], tmp_path / "model.safetensors", "hf")
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert_equal({name: file.get_tensor(name) for name in file.keys()}, public["hf"])  # noqa: SIM118
    checkpoint = weights.read_checkpoint(tmp_path / "model.safetensors")
    assert checkpoint.format == "hf" and "classes" not in checkpoint.metadata


def test_metadata_survives_two_conversions(small: dict[str, Tensor], tmp_path: Path) -> None:
    metadata = {
        "model": "van_b0",
        "classes": ["Katze 🐈", 'dog, "brown"', "3"],
        "preprocessing": {"input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "crop_pct": 1.0},
        "note": "3",
    }
    weights.write_checkpoint(small, tmp_path / "a.safetensors", metadata=metadata)
    vankit.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert weights.read_checkpoint(tmp_path / "b.safetensors").metadata == metadata
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"  # transformers refuses a file without it
        assert json.loads(file.metadata()["classes"]) == metadata["classes"]


def test_legacy_pickle_and_module_prefix(small: dict[str, Tensor], tmp_path: Path) -> None:
    wrapped = collections.OrderedDict(
        (f"module.{k}", v) for k, v in weights.rename(small, "vankit", "official").items()
    )
    path = tmp_path / "old.pth"
    torch.save({"state_dict": wrapped}, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] != b"PK"
    assert_equal(weights.read_checkpoint(path).state_dict, small)


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_planted_code_is_refused_and_not_run(zipped: bool, small: dict[str, Tensor], tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pth"
    torch.save({"state_dict": small, "args": Planted(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"evil\.pth was refused.*could run code.*Found: .*system"):
        weights.read_checkpoint(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the trap itself is broken"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_planted_plain_pickle_is_refused(tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"state_dict": Planted(marker)}))
    with pytest.raises(UserError, match=r"evil\.pkl was refused"):
        weights.read_checkpoint(path)
    assert not marker.exists()


def test_namespace_stays_disallowed_outside(files: dict[str, Path]) -> None:
    weights.read_checkpoint(files["official"])
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        torch.load(files["official"], weights_only=True)


@pytest.mark.parametrize("content", [b"", b"a", b"<!DOCTYPE html><p>404</p>", b"version https://git-lfs.github.com/spec/v1\n",
                                     bytes(range(256)) * 64, b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00.",
                                     struct.pack("<Q", 2**60) + b"{}", struct.pack("<Q", 2) + b"{}"])  # fmt: skip
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"other\.pth.*(is empty|not a checkpoint|not a VAN checkpoint|no state dict)"):
        weights.read_checkpoint(path)


@pytest.mark.parametrize("fmt", weights.FORMATS)
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_truncated_files_are_refused(fmt: str, share: float, files: dict[str, Path], tmp_path: Path) -> None:
    data = files[fmt].read_bytes()
    path = tmp_path / f"cut{SUFFIX[fmt]}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"cut\S* is truncated or damaged"):
        weights.read_checkpoint(path)


@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4), cut=st.integers(0, 10**6),
       kind=st.sampled_from(["zip", "legacy", "safetensors"]))  # fmt: skip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_never_raise_anything_else(
    edits: list[tuple[int, int]], cut: int, kind: str, small: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / kind
    if kind == "safetensors":
        weights.write_checkpoint(small, path)
    else:
        torch.save(weights.rename(small, "vankit", "hf"), path, _use_new_zipfile_serialization=kind == "zip")
    data = bytearray(path.read_bytes())
    for position, value in edits:
        data[position % min(len(data), 4000)] = value
    path.write_bytes(data[: max(1, cut)])
    try:
        checkpoint = weights.read_checkpoint(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert set(checkpoint.state_dict) == set(small)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {"a": 1}}, {"epoch": 3}, {}], ids=str)
def test_pickles_of_something_else_are_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth.*(no state dict|not a VAN checkpoint)"):
        weights.read_checkpoint(tmp_path / "x.pth")


def test_other_network_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(UserError, match=r"linear\.pth: this is not a VAN checkpoint.*found bias, weight"):
        weights.read_checkpoint(tmp_path / "linear.pth")


def test_absent_file() -> None:
    with pytest.raises(MissingFileError, match="no checkpoint at nowhere.pth"):
        weights.read_checkpoint("nowhere.pth")


def test_equal_networks_are_equal_files_byte_for_byte(tmp_path: Path) -> None:
    """Whichever order tensors and metadata come in, and in whichever process: the library shuffles the metadata."""
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.float16), "n\u00e4me": torch.arange(3)}
    metadata = {"classes": ["d\u00fcne", "palm"], "epoch": 3, "measures": {"top-1": 0.5}, "thresholds": [], "x": None}
    content = weights.tensor_bytes(tensors, metadata)
    turned = [dict(reversed(each.items())) for each in (tensors, metadata)]
    assert {weights.tensor_bytes(*turned) for _ in range(20)} == {content}
    (tmp_path / "x.safetensors").write_bytes(content)
    with safetensors.safe_open(tmp_path / "x.safetensors", "pt") as file:
        found = file.metadata()
        assert found.pop("format") == "pt"
        assert {key: json.loads(value) for key, value in found.items()} == metadata
    loaded = safetensors.torch.load(content)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    length = struct.unpack("<Q", content[:8])[0]
    assert length % 8 == 0 and len(content) == 8 + length + 3 * 4 + 2 * 2 + 3 * 8


@pytest.mark.parametrize("to", weights.FORMATS)
def test_failing_write_keeps_the_old_file(
    to: str, small: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"kept{SUFFIX[to]}"
    weights.write_checkpoint(small, path, to)
    before = path.read_bytes()

    def full_disk(target: Path, content: Any) -> None:
        target.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        weights.write_checkpoint({k: v + 1 for k, v in small.items()}, path, to)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {path.name, *(JSON if to == "hf" else ())}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("to", weights.FORMATS)
def test_a_full_disk_is_an_error_of_the_system(to: str, small: dict[str, Tensor]) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        weights.write_checkpoint(small, "/dev/full", to)
    assert Path("/dev/full").is_char_device()


# into a model


def assert_backbone(model: torch.nn.Module, official: dict[str, Tensor]) -> None:
    own = model.state_dict()
    expected = weights.rename(official, "official", "vankit")
    assert_equal(
        {k: v for k, v in own.items() if "head" not in k}, {k: v for k, v in expected.items() if "head" not in k}
    )


def levels(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.name.startswith("vankit.models.weights")]


@pytest.mark.parametrize("fmt", weights.FORMATS)
def test_other_class_count_loads_the_backbone(
    fmt: str, files: dict[str, Path], public: Any, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    model = timm.create_model("van_b0", num_classes=10)
    head = model.head.fc.weight.clone()
    with caplog.at_level(logging.INFO, "vankit"):
        checkpoint = weights.load_checkpoint(model, files[fmt])
    assert checkpoint.num_classes == 1000
    [(level, message)] = levels(caplog)
    assert level == "WARNING" and "1000 classes and the model 10" in message
    assert torch.equal(model.head.fc.weight, head)
    assert_backbone(model, public["official"])


def test_ten_class_file_fills_a_ten_class_head(public: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    official = dict(public["official"])
    official["head.weight"], official["head.bias"] = official["head.weight"][:10], official["head.bias"][:10]
    torch.save({"state_dict": official}, tmp_path / "ten.pth")
    overlay = {"file": str(tmp_path / "ten.pth")}
    model = timm.create_model("van_b0", pretrained=True, num_classes=10, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.fc.weight, official["head.weight"])
    assert torch.equal(model.head.fc.bias, official["head.bias"])
    assert levels(caplog) == []


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"features_only": True}], ids=str)
def test_no_head_asked_for_is_no_surprise(
    options: dict[str, Any], files: dict[str, Path], public: Any, caplog: pytest.LogCaptureFixture
) -> None:
    overlay = {"file": str(files["official"])}
    with caplog.at_level(logging.INFO, "vankit"):
        model = timm.create_model("van_b0.in1k", pretrained=True, pretrained_cfg_overlay=overlay, **options)
    assert [level for level, _ in levels(caplog)] == ["INFO"]
    assert_backbone(model, public["official"])
    assert model.pretrained_cfg["file"] == overlay["file"]
    assert "hf_hub_id" not in model.pretrained_cfg


def test_input_channels_are_adapted(files: dict[str, Path], public: Any, caplog: pytest.LogCaptureFixture) -> None:
    stem = public["official"]["patch_embed1.proj.weight"]
    for chans in (1, 4):
        caplog.clear()
        overlay = {"file": str(files["official"])}
        model = timm.create_model("van_b0", pretrained=True, in_chans=chans, pretrained_cfg_overlay=overlay)
        got = model.stage1.patch_embed.proj.weight
        expected = stem.sum(1, keepdim=True) if chans == 1 else stem[:, [0, 1, 2, 0]] * 0.75
        torch.testing.assert_close(got.data, expected)
        [(level, message)] = levels(caplog)
        assert level == "WARNING" and f"takes 3 channels, the model {chans}" in message


def test_one_channel_file_into_a_colour_model(public: Any, tmp_path: Path) -> None:
    stem = "patch_embed1.proj.weight"
    gray = public["official"][stem][:, :1]
    torch.save({"state_dict": public["official"] | {stem: gray}}, tmp_path / "gray.pth")
    model = timm.create_model("van_b0")
    weights.load_checkpoint(model, tmp_path / "gray.pth")
    torch.testing.assert_close(model.stage1.patch_embed.proj.weight.data, gray.expand(-1, 3, -1, -1) / 3)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(bad: float, public: Any, tmp_path: Path) -> None:
    tensors = dict(public["official"])
    spoilt = ["patch_embed1.proj.weight", "block1.0.norm1.running_var", "block1.0.norm1.bias", "head.bias"]
    for name in spoilt:
        tensors[name] = tensors[name].index_fill(0, torch.tensor(0), bad)
    torch.save(tensors, tmp_path / "bad.pth")
    model = timm.create_model("van_b0")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    says = rf"bad.pth has NaN or infinite numbers in 4 of its {len(tensors)} tensors, such as stage1.patch_embed.proj.w"
    with pytest.raises(UserError, match=says):
        vankit.load_checkpoint(model, tmp_path / "bad.pth")
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["van_b1", "van_b2"])
def test_other_variant_is_refused_and_changes_nothing(variant: str, files: dict[str, Path]) -> None:
    model = timm.create_model(variant)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=r"van_b0\.pth\.tar: it holds another variant, a VAN of widths 32, 64"):
        weights.load_checkpoint(model, files["official"])
    assert_equal(model.state_dict(), before)


def test_same_depths_other_widths_is_refused(golden_names: Any, tmp_path: Path) -> None:
    wide = {row[0]: torch.zeros([2 * n for n in row[3]]) for row in golden_names["van_b0"]}
    torch.save({"state_dict": wide}, tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"wide\.pth: it holds another variant, .*64, .*model has widths 32"):
        weights.load_checkpoint(timm.create_model("van_b0"), tmp_path / "wide.pth")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "is empty: expected .safetensors, or a file of torch.save"),
        (b"<!DOCTYPE html><p>Not found", "is not a checkpoint, but a web page: download the file itself"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
            "is not a checkpoint, but a pointer of git-lfs: run git lfs pull",
        ),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is not a checkpoint: expected .safetensors, or a file of torch.save"),
        (b"just some words", "is not a checkpoint: expected .safetensors, or a file of torch.save"),
        (b"\x80\x02\x8e" + struct.pack("<Q", 10**13), "is truncated or damaged, or not a checkpoint: "),
    ],
    ids=["empty", "page", "git-lfs", "jpeg", "text", "ten terabytes"],
)
def test_what_is_no_checkpoint_is_named(content: bytes, cause: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.pth {cause}") as error:
        weights.read_checkpoint(tmp_path / "x.pth")
    assert "opcode" not in str(error.value) and "codec" not in str(error.value)


def test_a_torchscript_file_is_named(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8)).save(tmp_path / "x.pt")
    with pytest.raises(UserError, match="it is a TorchScript program; load it with"):
        weights.read_checkpoint(tmp_path / "x.pt")


def test_the_file_of_a_folder(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "logs.ckpt").mkdir()
    (tmp_path / "._MODEL.PTH").touch()
    (tmp_path / "MODEL.PTH").symlink_to(files["mmpretrain"])
    assert weights.file_in(tmp_path) == tmp_path / "MODEL.PTH"
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(UserError, match=r"has 2 checkpoints \(MODEL\.PTH, model-00001"):
        weights.file_in(tmp_path)
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(UserError, match=r"has a checkpoint in pieces \(model\.safetensors\.index\.json\)"):
        weights.file_in(tmp_path)
    (tmp_path / "export.json").touch()
    with pytest.raises(UserError, match=r"is an exported folder, not a checkpoint: pass it as the model"):
        weights.file_in(tmp_path)
    (tmp_path / "best.safetensors").touch()
    assert weights.file_in(tmp_path) == tmp_path / "best.safetensors"


def test_suffixes_are_read_in_capitals_too(public: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"vankit files are safetensors"):
        weights.write_checkpoint(weights.rename(public["official"], "official", "vankit"), tmp_path / "x.PTH")


def test_a_printed_checkpoint_is_a_line(files: dict[str, Path]) -> None:
    assert len(repr(weights.read_checkpoint(files["official"]))) < 500


def test_float8_is_read(public: Any, tmp_path: Path) -> None:
    tensors = weights.rename(public["official"], "official", "vankit")
    tensors["stage1.norm.weight"] = torch.ones(32).to(torch.float8_e4m3fn)
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    model = timm.create_model("van_b0")
    vankit.load_checkpoint(model, tmp_path / "x.safetensors")
    assert torch.equal(model.state_dict()["stage1.norm.weight"], torch.ones(32))
    tensors["stage1.norm.weight"] = torch.full([32], math.nan).to(torch.float8_e4m3fn)
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="NaN or infinite numbers in 1 of"):
        vankit.load_checkpoint(model, tmp_path / "x.safetensors")
