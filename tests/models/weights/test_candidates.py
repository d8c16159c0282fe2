"""Finding the VAN in a file, whatever keys and prefixes lead to it."""

import argparse
import collections
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import vankit
from vankit.errors import UserError
from vankit.models import weights

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> Any:
    """As small as a VAN can be, of widths and depths of its own; not to be changed."""
    torch.manual_seed(0)
    model = vankit.VAN(num_classes=5, embed_dims=(4, 6, 8, 10), depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 1, 1)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(buffer)
    return model


@pytest.fixture(scope="module")
def own(network: Any) -> Tensors:
    return network.state_dict()


@pytest.fixture(scope="module")
def named(own: Tensors) -> dict[str, Tensors]:
    """The same tensors under every format's names."""
    return {fmt: weights.rename(own, "vankit", fmt) for fmt in weights.FORMATS}


def plus(tensors: Tensors, amount: float = 1.0) -> Tensors:
    return {name: tensor + amount if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def assert_read(path: Path, expected: Tensors, **options: Any) -> weights.Checkpoint:
    found = weights.read_checkpoint(path, **options)
    assert set(found.state_dict) == set(expected)
    assert not [name for name, tensor in found.state_dict.items() if not torch.equal(tensor, expected[name])]
    return found


def save(content: Any, tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "x.pth")
    return tmp_path / "x.pth"


@pytest.mark.parametrize("fmt", weights.FORMATS)
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.model.", "student.net."])
@pytest.mark.parametrize("keys", [(), ("net",), ("model_state_dict",), ("trainer", "state", "params")], ids=str)
def test_any_key_and_any_prefix(
    fmt: str, prefix: str, keys: tuple[str, ...], named: dict[str, Tensors], own: Tensors, tmp_path: Path
) -> None:
    content: Any = prefixed(prefix, named[fmt])
    for key in reversed(keys):
        content = {"epoch": 3, key: content, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    assert assert_read(save(content, tmp_path), own).format == fmt


WORDS = st.sampled_from(["module", "model", "net", "backbone", "encoder", "0", "student", "_orig_mod", "van2", "body"])


@given(fmt=st.sampled_from(weights.FORMATS), prefix=st.lists(WORDS, max_size=3), keys=st.lists(WORDS, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_nesting_is_found(
    fmt: str, prefix: list[str], keys: list[str], named: dict[str, Tensors], own: Tensors, tmp_path: Path
) -> None:
    content: Any = prefixed("".join(f"{word}." for word in prefix), named[fmt])
    for key in keys:
        content = {key: content}
    assert_read(save(content, tmp_path), own)


def test_a_wrapper_within_the_names(named: dict[str, Tensors], own: Tensors, tmp_path: Path) -> None:
    wrapped = {name.replace("stage1.", "stage1._orig_mod."): tensor for name, tensor in named["vankit"].items()}
    assert_read(save(wrapped, tmp_path), own)
    save_file(prefixed("_orig_mod.", named["official"]), tmp_path / "x.safetensors")
    assert_read(tmp_path / "x.safetensors", own)


@pytest.mark.parametrize("wrap", [
    lambda network: {"model": nn.DataParallel(network), "epoch": 1}, lambda network: network, lambda network: [network],
])  # fmt: skip
def test_a_whole_pickled_module(
    wrap: Callable[[Any], Any], network: Any, own: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(wrap(network), tmp_path / "x.pth")
    assert_read(tmp_path / "x.pth", own)
    assert "also holds objects of" in caplog.text and "none of their code was run" in caplog.text


@pytest.mark.parametrize(
    "key",
    ["state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "ema", "EMA", "modelEma", "swa_model", "averaged"],
)
def test_the_average_is_taken_and_said(
    key: str, named: dict[str, Tensors], own: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save({"state_dict": plus(named["official"]), key: named["official"], "args": argparse.Namespace()}, tmp_path)
    assert_read(path, own)
    assert f"taken the average, from {key}; --weights raw takes the others" in caplog.text
    caplog.clear()
    assert_read(path, own, weights="ema")
    assert_read(path, plus(own), weights="raw")
    assert not caplog.messages


def test_an_average_among_the_same_names(named: dict[str, Tensors], own: Tensors, tmp_path: Path) -> None:
    both = prefixed("model.", plus(named["hf"])) | prefixed("model_ema.module.", named["hf"])
    path = save({"state_dict": both}, tmp_path)
    assert_read(path, own)
    assert_read(path, plus(own), weights="raw")


def test_an_average_alone(named: dict[str, Tensors], own: Tensors, tmp_path: Path) -> None:
    path = save({"state_dict_ema": named["official"]}, tmp_path)
    assert_read(path, own)
    with pytest.raises(UserError, match=r"holds only averaged \(EMA\) weights: leave out weights='raw'"):
        weights.read_checkpoint(path, "raw")
    with pytest.raises(UserError, match="holds only raw weights: leave out weights='ema'"):
        weights.read_checkpoint(save({"state_dict": named["official"]}, tmp_path), "ema")


def test_frameworks_that_swap_the_average_on_writing(
    network: Any, named: dict[str, Tensors], own: Tensors, tmp_path: Path
) -> None:
    """mmengine's EMAHook stores the average as state_dict, and the raw weights as ema_state_dict."""
    raw = {**prefixed("module.", plus(named["mmpretrain"])), "steps": torch.tensor(7)}
    path = save({"meta": {}, "state_dict": named["mmpretrain"], "ema_state_dict": raw}, tmp_path)
    assert_read(path, own)
    assert_read(path, plus(own), weights="raw")
    lightning = {"state_dict": prefixed("model.", own), "current_model_state": prefixed("model.", plus(own))}
    path = save({**lightning, "averaging_state": {"n_averaged": torch.tensor(3)}}, tmp_path)
    assert_read(path, own)
    assert_read(path, plus(own), weights="raw")
    averaged = AveragedModel(network)
    assert_read(save({"averaged": averaged.state_dict()}, tmp_path), own)


def test_two_networks_are_said(
    named: dict[str, Tensors], own: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = prefixed("teacher.", named["official"]) | prefixed("student.", plus(named["official"]))
    assert_read(save(both, tmp_path), own)
    assert "holds 2 VANs: taken names that begin with teacher., not names that begin with student." in caplog.text


# what is not essential


@pytest.mark.parametrize("fmt", weights.FORMATS)
def test_what_nobody_needs_may_be_missing_or_there(
    fmt: str, named: dict[str, Tensors], own: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {name: tensor for name, tensor in named[fmt].items() if not name.endswith("num_batches_tracked")}
    zero = torch.zeros(1)
    tensors |= {f"{next(iter(tensors)).rpartition('.')[0]}.total_ops": zero, "total_params": zero, "n_averaged": zero}
    tensors |= {"ema_backbone_patch_embed1_projection_weight": zero, "data_preprocessor.mean": zero}
    found = assert_read(save({"state_dict": tensors}, tmp_path), own)
    assert found.left_out == [] and not caplog.messages


@pytest.mark.parametrize("fmt", ["mmpretrain", "hf"])
def test_bare_backbones(fmt: str, named: dict[str, Tensors], own: Tensors, tmp_path: Path) -> None:
    prefix = {"mmpretrain": "backbone.", "hf": "van."}[fmt]
    bare = {name.removeprefix(prefix): t for name, t in named[fmt].items() if name.startswith(prefix)}
    backbone = {name: tensor for name, tensor in own.items() if not name.startswith("head.")}
    assert assert_read(save(bare, tmp_path), backbone).num_classes == 0
    assert_read(save({"state_dict": prefixed("encoder.model.", bare)}, tmp_path), backbone)


def test_other_parts_are_named(
    named: dict[str, Tensors], own: Tensors, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = {name: tensor for name, tensor in named["mmpretrain"].items() if name.startswith("backbone.")}
    others = {"neck.lateral_convs.0.conv.weight": torch.zeros(3), "bbox_head.retina_cls.weight": torch.zeros(3)}
    found = assert_read(
        save({"meta": {"CLASSES": ("a", "b")}, "state_dict": backbone | others}, tmp_path),
        {name: tensor for name, tensor in own.items() if not name.startswith("head.")},
    )
    assert found.left_out == list(others) and "classes" not in found.metadata
    assert "holds a VAN and other parts (neck, bbox_head): loaded only the VAN" in caplog.text


def test_a_tensor_too_many_in_the_van_is_an_error(named: dict[str, Tensors], tmp_path: Path) -> None:
    extra = {**prefixed("module.", named["official"]), "module.block1.0.attn.bias": torch.zeros(1)}
    with pytest.raises(UserError, match=r"x\.pth: .*left over: block1\.0\.attn\.bias"):
        weights.read_checkpoint(save(extra, tmp_path))


def test_content_that_contains_itself(named: dict[str, Tensors], own: Tensors, tmp_path: Path) -> None:
    content: dict[str, Any] = {"history": collections.defaultdict(list), "list": [1, [2]]}
    content["self"] = content
    content["list"].append(content)
    content["z"] = {"weights": named["official"]}
    assert_read(save(content, tmp_path), own)


# into a network


def test_a_van_of_any_width_and_depth(network: Any, own: Tensors, named: dict[str, Tensors], tmp_path: Path) -> None:
    path = save({"state_dict": named["official"]}, tmp_path)
    predictor = vankit.Predictor(checkpoint=path, engine="torch", classes=list("abcde"))
    x = torch.rand(2, 3, 40, 50)
    with torch.inference_mode():
        assert torch.equal(predictor.network(x), network(x))
    assert predictor.description.model is None
    assert vankit.convert(path, tmp_path / "own.safetensors") == "official"
    again = vankit.Predictor(checkpoint=tmp_path / "own.safetensors", engine="torch")
    with torch.inference_mode():
        assert torch.equal(again.network(x), network(x))


def test_timm_loads_a_public_file_by_its_path(golden_state_dict: Callable[[str], Tensors], tmp_path: Path) -> None:
    official = golden_state_dict("van_b0")
    expected = weights.rename(official, "official", "vankit")
    for fmt in weights.FORMATS:
        content = {"state_dict": weights.rename(official, "official", fmt), "args": argparse.Namespace(lr=1)}
        model = timm.create_model("van_b0", checkpoint_path=str(save(content, tmp_path)))
        assert not [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, expected[name])]


def test_state_dicts_of_public_names_load_as_they_are(network: Any, named: dict[str, Tensors]) -> None:
    fresh = vankit.VAN(num_classes=5, embed_dims=(4, 6, 8, 10), depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 1, 1)).eval()
    x = torch.rand(1, 3, 32, 32)
    for fmt in weights.FORMATS:
        nn.Sequential(fresh).load_state_dict(prefixed("0.", plus(named[fmt], 0.5)))
        assert not torch.equal(fresh(x), network(x))
        nn.Sequential(fresh).load_state_dict(prefixed("0.", named[fmt]))
        assert torch.equal(fresh(x), network(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({name: t for name, t in named["vankit"].items() if "norm1" not in name})


def test_an_averaged_model_of_torch_is_one_by_its_counter(network: Any, own: Tensors, tmp_path: Path) -> None:
    path = save({"net": plus(own), "second": AveragedModel(network).state_dict()}, tmp_path)
    assert_read(path, own)
    assert_read(path, plus(own), weights="raw")


def test_an_averaged_model_in_several_processes(network: Any, own: Tensors, tmp_path: Path) -> None:
    averaged = AveragedModel(nn.DataParallel(network)).state_dict()
    assert_read(save({"net": plus(own), "second": averaged}, tmp_path), own)


@pytest.mark.parametrize("word", ["schema", "cinema_v2", "avg_pool", "averagedness", "swap"])
def test_other_words_are_no_averages(word: str, own: Tensors, tmp_path: Path) -> None:
    assert_read(save({word: own}, tmp_path), own, weights="raw")


def test_pyramids_with_the_same_stem_are_not_vans(named: dict[str, Tensors], own: Tensors, tmp_path: Path) -> None:
    pvt = {"patch_embed1.proj.weight": torch.zeros(4, 3, 7, 7), "block1.0.attn.q.weight": torch.zeros(4, 4)}
    with pytest.raises(UserError, match="this is not a VAN checkpoint: expected tensors named as in"):
        weights.read_checkpoint(save(pvt, tmp_path))
    assert_read(save({"teacher": pvt, "student": named["official"]}, tmp_path), own)


@pytest.mark.parametrize("word", ["EMA", "avg", ""])
def test_other_words_for_a_choice_are_refused(word: Any, own: Tensors, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"weights is '{word}': expected raw or ema"):
        weights.read_checkpoint(save(own, tmp_path), weights=word)


def test_loading_strictly_names_what_is_not_of_the_van(network: Any, named: dict[str, Tensors]) -> None:
    model = vankit.VAN(num_classes=5, embed_dims=(4, 6, 8, 10), depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 1, 1))
    other = {**named["mmpretrain"], "decode_head.conv_seg.weight": torch.zeros(2, 4, 1, 1)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*decode_head\.conv_seg\.weight"):
        model.load_state_dict(other)
    assert model.load_state_dict(other, strict=False).unexpected_keys == ["decode_head.conv_seg.weight"]


def test_activation_checkpointing_and_sharding_wrap_names(own: Tensors, tmp_path: Path) -> None:
    wrapped = {
        f"_fsdp_wrapped_module.{name}".replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): tensor
        for name, tensor in own.items()
    }
    assert_read(save({"model": wrapped}, tmp_path), own)
