"""Checkpoints of dense tasks: round trips, starting points, and mmseg's layout written out here from its modules."""

import copy
import logging
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vankit
from vankit.deploy.opening import open_network
from vankit.errors import MissingFileError, UserError
from vankit.heads.backbone import backbone_of
from vankit.heads.build import HEADS, build_network
from vankit.heads.checkpoints import from_mmseg, network_in_file, start_from
from vankit.models import weights
from vankit.models.description import Description

WIDTHS = (32, 64, 160, 256)
CLASSES = ["cat", "dog", "owl"]
OPTIONS = {"short_sides": [64], "long_side": 96, "queries": 12, "things": [True, False, True]}
Tensors = dict[str, Tensor]


@cache
def built(head: str, classes: int, seed: int, model: str) -> tuple[Any, Tensors]:
    torch.manual_seed(seed)
    names = [str(i) for i in range(classes)]
    network = build_network(Description(HEADS[head].tasks[0], head, model, names, **{**OPTIONS, "things": ()}))
    return network, {name: tensor.clone() for name, tensor in network.state_dict().items()}


def build(head: str, classes: int = len(CLASSES), seed: int = 0, model: str = "van_b0") -> Any:
    """A network as it was built, one for each set of arguments."""
    if head not in ("semantic_fpn", "retinanet"):
        pytest.importorskip("transformers")
    network, start = built(head, classes, seed, model)
    network.load_state_dict(start)
    return network.eval()


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert set(found) == set(expected)
    assert not [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])]


def without_head(classifier: nn.Module) -> Tensors:
    return {name: tensor for name, tensor in classifier.state_dict().items() if not name.startswith("head.")}


def but_the_stem(tensors: Tensors) -> Tensors:
    """Without the first convolution, which is adapted to another normalisation."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("stage1.patch_embed.proj.")}


def load_network(path: Path) -> tuple[Any, Description]:
    return network_in_file(weights.read_tensors(path))


def write(network: nn.Module, path: Path, **changes: Any) -> Path:
    """A checkpoint as training writes it, by default of a semantic_fpn; what is None is left out."""
    head = changes.get("head", "semantic_fpn")
    metadata = {"task": HEADS[head].tasks[0], "head": head, "model": "van_b0", "classes": CLASSES, "crop": 64}
    metadata |= OPTIONS | changes
    weights.write_tensors(network.state_dict(), path, {k: v for k, v in metadata.items() if v is not None})
    return path


def test_settings_of_the_attention_are_kept(tmp_path: Path) -> None:
    lka = {"kernel_size": [7], "dilation": [2], "gate": "add"}
    network = build_network(Description("segment", "semantic_fpn", classes=CLASSES, lka=lka))
    found, _ = load_network(write(network, tmp_path / "small.safetensors", lka=lka))
    assert_same(found.state_dict(), network.state_dict())
    assert backbone_of(found).stage2.blocks[0].attn.lka.gate == "add"
    assert weights.read_checkpoint(tmp_path / "small.safetensors").metadata == {"model": "van_b0", "lka": lka}


@pytest.fixture(scope="module")
def segmenter() -> Any:
    """Not to be trained or loaded into."""
    return build("semantic_fpn", seed=1)


@pytest.fixture(scope="module")
def dense_file(segmenter: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(segmenter, tmp_path_factory.mktemp("dense") / "best.safetensors")


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(3, 60, 84, generator=torch.Generator().manual_seed(0))


# mmsegmentation 0.x, written out


def drawn(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith("running_var") or (name.endswith(".weight") and len(shape) == 1):
            tensors[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            tensors[name] = torch.randn(shape, generator=generator) / max(prod(shape[1:]), 9) ** 0.5
    return tensors


def conv_module(name: str, inputs: int, outputs: int, kernel: int) -> dict[str, tuple[int, ...]]:
    """mmcv's ConvModule with BatchNorm: a convolution without bias."""
    norm = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (outputs,)) | {"num_batches_tracked": ()}
    return {
        f"{name}.conv.weight": (outputs, inputs, kernel, kernel),
        **{f"{name}.bn.{leaf}": shape for leaf, shape in norm.items()},
    }


def fpn_head(classes: int) -> Tensors:
    """FPN neck (no norm, so with biases) and FPNHead: level l is a sequence of l times (ConvModule, Upsample)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, width in enumerate(WIDTHS):
        shapes |= {
            f"neck.lateral_convs.{i}.conv.weight": (256, width, 1, 1),
            f"neck.lateral_convs.{i}.conv.bias": (256,),
        }
        shapes |= {f"neck.fpn_convs.{i}.conv.weight": (256, 256, 3, 3), f"neck.fpn_convs.{i}.conv.bias": (256,)}
    for level, indices in enumerate(((0,), (0,), (0, 2), (0, 2, 4))):
        for k in indices:
            shapes |= conv_module(f"decode_head.scale_heads.{level}.{k}", 128 if k else 256, 128, 3)
    shapes |= {"decode_head.conv_seg.weight": (classes, 128, 1, 1), "decode_head.conv_seg.bias": (classes,)}
    return drawn(shapes)


def uper_head(classes: int) -> Tensors:
    """UPerHead of width 512 over pools of 1, 2, 3 and 6, and the auxiliary FCNHead of width 256 on the third stage."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(4):  # (AdaptiveAvgPool2d, ConvModule)
        shapes |= conv_module(f"decode_head.psp_modules.{i}.1", WIDTHS[3], 512, 1)
    shapes |= conv_module("decode_head.bottleneck", WIDTHS[3] + 4 * 512, 512, 3)
    for i in range(3):
        shapes |= conv_module(f"decode_head.lateral_convs.{i}", WIDTHS[i], 512, 1)
        shapes |= conv_module(f"decode_head.fpn_convs.{i}", 512, 512, 3)
    shapes |= conv_module("decode_head.fpn_bottleneck", 4 * 512, 512, 3)
    shapes |= {"decode_head.conv_seg.weight": (classes, 512, 1, 1), "decode_head.conv_seg.bias": (classes,)}
    shapes |= conv_module("auxiliary_head.convs.0", WIDTHS[2], 256, 3)
    shapes |= {"auxiliary_head.conv_seg.weight": (classes, 256, 1, 1), "auxiliary_head.conv_seg.bias": (classes,)}
    return drawn(shapes)


MMSEG = {"semantic_fpn": fpn_head, "upernet": uper_head}


def conv_bn_relu(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    kernel = tensors[f"{name}.conv.weight"]
    x = F.conv2d(x, kernel, padding=kernel.shape[-1] // 2)
    mean, var, weight, bias = (
        tensors[f"{name}.bn.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, var, weight, bias).relu()


def resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


def fpn_forward(t: Tensors, maps: list[Tensor]) -> Tensor:
    inner = [F.conv2d(m, t[f"neck.lateral_convs.{i}.conv.weight"], t[f"neck.lateral_convs.{i}.conv.bias"])
             for i, m in enumerate(maps)]  # fmt: skip
    for i in (2, 1, 0):
        inner[i] = inner[i] + F.interpolate(inner[i + 1], inner[i].shape[2:], mode="nearest")
    levels = [F.conv2d(x, t[f"neck.fpn_convs.{i}.conv.weight"], t[f"neck.fpn_convs.{i}.conv.bias"], padding=1)
              for i, x in enumerate(inner)]  # fmt: skip
    total = conv_bn_relu(t, "decode_head.scale_heads.0.0", levels[0])
    for level in (1, 2, 3):
        x = levels[level]
        for doubling in range(level):
            x = conv_bn_relu(t, f"decode_head.scale_heads.{level}.{2 * doubling}", x)
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + resized(x, total)
    return F.conv2d(total, t["decode_head.conv_seg.weight"], t["decode_head.conv_seg.bias"])


def uper_forward(t: Tensors, maps: list[Tensor]) -> Tensor:
    pooled = [
        resized(conv_bn_relu(t, f"decode_head.psp_modules.{i}.1", F.adaptive_avg_pool2d(maps[3], side)), maps[3])
        for i, side in enumerate((1, 2, 3, 6))
    ]
    levels = [conv_bn_relu(t, f"decode_head.lateral_convs.{i}", maps[i]) for i in range(3)]
    levels.append(conv_bn_relu(t, "decode_head.bottleneck", torch.cat([maps[3], *pooled], 1)))
    for i in (2, 1, 0):
        levels[i] = levels[i] + resized(levels[i + 1], levels[i])
    outputs = [conv_bn_relu(t, f"decode_head.fpn_convs.{i}", levels[i]) for i in range(3)] + [levels[3]]
    joined = torch.cat([resized(x, outputs[0]) for x in outputs], 1)
    x = conv_bn_relu(t, "decode_head.fpn_bottleneck", joined)
    return F.conv2d(x, t["decode_head.conv_seg.weight"], t["decode_head.conv_seg.bias"])


FORWARD = {"semantic_fpn": fpn_forward, "upernet": uper_forward}


@pytest.fixture(scope="module")
def official(golden_state_dict: Callable[[str], Tensors]) -> Tensors:
    """van_b0 under its authors' names, made up."""
    return golden_state_dict("van_b0")


@pytest.fixture(scope="module")
def classifier(public_files: dict[str, Path]) -> Any:
    """The network of those weights, the outputs of which are checked in test_van_golden."""
    network = timm.create_model("van_b0")
    vankit.load_checkpoint(network, next(path for name, path in public_files.items() if "Tiny" in name))
    return network.eval()


@pytest.fixture(scope="module")
def mmseg(official: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Tensors]]:
    """Factory: a made-up file of VAN-Segmentation and what it holds."""

    @cache
    def make(head: str, classes: int = len(CLASSES)) -> tuple[Path, Tensors]:
        backbone = {f"backbone.{name}": t for name, t in official.items() if not name.startswith("head.")}
        tensors = {**backbone, **MMSEG[head](classes)}
        path = tmp_path_factory.mktemp(head) / "iter_40000.pth"
        torch.save({"meta": {"mmcv_version": "1.3.0"}, "state_dict": tensors}, path)
        return path, tensors

    return make


def mmseg_maps(classifier: Any, image: Tensor) -> list[Tensor]:
    """What VAN gives for an image normalised as mmseg does, beyond whose border there is vankit's grey."""
    network = copy.deepcopy(classifier)
    network.stage1.patch_embed.proj.padding = (0, 0)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    x = (F.pad(image, (3, 3, 3, 3), value=0.5) - mean) / std
    return network.forward_intermediates(x[None], intermediates_only=True)


@pytest.mark.parametrize("head", MMSEG)
def test_an_mmseg_file_is_loaded_whole_and_computes_as_mmseg_does(
    head: str, mmseg: Any, classifier: Any, image: Tensor
) -> None:
    path, tensors = mmseg(head)
    network = build(head)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    start_from(network, path, head)
    after = network.state_dict()
    counted = {name for name in after if name.endswith("num_batches_tracked") and before[name] == after[name]}
    assert not counted and all(
        not torch.equal(before[name], tensor) for name, tensor in after.items() if tensor.numel() > 1
    )
    assert len(after) == len(tensors)
    with torch.inference_mode():
        maps = mmseg_maps(classifier, image)
        expected = F.interpolate(FORWARD[head](tensors, maps), image.shape[1:], mode="bilinear", align_corners=False)
        (result,) = network([image])
    assert expected.std() > 0.01
    torch.testing.assert_close(result["logits"], expected[0], rtol=1e-4, atol=1e-4)


def test_the_auxiliary_head_arrives_too(mmseg: Any) -> None:
    path, tensors = mmseg("upernet")
    network = build("upernet")
    start_from(network, path, "upernet")
    x = torch.rand(1, WIDTHS[2], 4, 6)
    with torch.inference_mode():
        found = network.network.auxiliary_head([x, x, x, x])
    expected = F.conv2d(
        conv_bn_relu(tensors, "auxiliary_head.convs.0", x),
        tensors["auxiliary_head.conv_seg.weight"],
        tensors["auxiliary_head.conv_seg.bias"],
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        ("semantic_fpn", {"classifier.weight", "classifier.bias"}),
        (
            "upernet",
            {
                f"network.{part}_head.classifier.{leaf}"
                for part in ("decode", "auxiliary")
                for leaf in ("weight", "bias")
            },
        ),
    ],
)
def test_of_an_mmseg_file_of_other_classes_all_but_the_classifiers_is_loaded(
    head: str, kept: set[str], mmseg: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = mmseg(head, classes=7)
    network = build(head)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        start_from(network, path, head)
    same = {name for name, tensor in network.state_dict().items() if torch.equal(tensor, before[name])}
    assert same == kept
    (message,) = caplog.messages
    assert "has other shapes for" in message and all(name in message for name in kept)


@pytest.mark.parametrize(("head", "other"), [("semantic_fpn", "upernet"), ("upernet", "semantic_fpn")])
def test_an_mmseg_file_of_another_head_is_refused_by_name(head: str, other: str, mmseg: Any) -> None:
    path, _ = mmseg(other)
    network = build(head)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=rf"iter_40000\.pth: the checkpoint is not a {head} of mmseg: it also has "):
        start_from(network, path, head)
    assert_same(network.state_dict(), before)


def test_an_mmseg_file_with_a_gap_is_refused(mmseg: Any, tmp_path: Path) -> None:
    _, tensors = mmseg("semantic_fpn")
    for name, message in {
        "neck.fpn_convs.2.conv.bias": r"gap\.pth does not fit this semantic_fpn: .*layer_blocks\.2\.0\.bias",
        "backbone.block2.1.norm1.bias": r"gap\.pth: .*missing: block2\.1\.norm1\.bias",
    }.items():
        torch.save({"state_dict": {k: t for k, t in tensors.items() if k != name}}, tmp_path / "gap.pth")
        with pytest.raises(UserError, match=message):
            start_from(build("semantic_fpn"), tmp_path / "gap.pth", "semantic_fpn")


def test_names_are_mapped_without_a_network(mmseg: Any) -> None:
    path, _ = mmseg("semantic_fpn")
    file = weights.read_tensors(path)
    tensors = file.tensors
    renamed = from_mmseg(file, "semantic_fpn", "backbone.body.")
    assert len(renamed) == len(tensors)
    pairs = {
        "decode_head.scale_heads.3.4.bn.running_var": "scale_heads.3.9.running_var",  # after two times four modules
        "decode_head.scale_heads.2.2.conv.weight": "scale_heads.2.4.weight",
        "neck.lateral_convs.1.conv.bias": "backbone.fpn.inner_blocks.1.0.bias",
        "backbone.block3.4.mlp.fc2.weight": "backbone.body.stage3.blocks.4.mlp.fc2.weight",
    }
    assert all(renamed[ours] is tensors[theirs] for theirs, ours in pairs.items())


# mmseg's files, opened as they are


def of_mmpretrain(tensors: Tensors) -> Tensors:
    """The same with MMPretrain's VAN as the backbone, as mmsegmentation 1.x has it."""
    rows = {row[1]: row[2].removeprefix("backbone.") for row in weights.name_table((3, 3, 5, 2), head=False)}
    return {
        f"backbone.{rows[name.removeprefix('backbone.')]}" if name.startswith("backbone.") else name: tensor
        for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("wrapper", ["", pytest.param("module.", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backbone", ["authors", "mmpretrain"])
@pytest.mark.parametrize("head", MMSEG)
def test_an_mmseg_file_is_a_segmenter_as_it_is(
    head: str,
    backbone: str,
    wrapper: str,
    mmseg: Any,
    image: Tensor,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = build(head)
    path, tensors = mmseg(head)
    start_from(expected, path, head)
    named = of_mmpretrain(tensors) if backbone == "mmpretrain" else tensors
    content = {"meta": {"CLASSES": CLASSES, "PALETTE": None}, "state_dict": {wrapper + k: t for k, t in named.items()}}
    torch.save(content, tmp_path / "iter.pth")
    opened = open_network(tmp_path / "iter.pth")
    assert not caplog.messages  # the whole is loaded, not only the VAN
    description = opened.description
    assert (description.task, description.head, description.model) == ("segment", head, "van_b0")
    assert description.classes == tuple(CLASSES) and opened.module is not None
    assert_same(opened.module.state_dict(), expected.state_dict())
    assert vankit.convert(tmp_path / "iter.pth", tmp_path / "own.safetensors") == "mmseg"
    again = open_network(tmp_path / "own.safetensors")
    assert again.description == description and again.module is not None
    with torch.inference_mode():
        assert torch.equal(again.module([image])[0]["logits"], expected([image])[0]["logits"])


def test_the_normalisation_that_an_mmseg_file_states_is_used(mmseg: Any, classifier: Any, tmp_path: Path) -> None:
    path, tensors = mmseg("semantic_fpn")
    half = "img_norm_cfg = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)"
    torch.save({"meta": {"config": half}, "state_dict": tensors}, tmp_path / "half.pth")
    found = weights.read_checkpoint(tmp_path / "half.pth").state_dict
    stem = "stage1.patch_embed.proj.weight"
    torch.testing.assert_close(found[stem], classifier.state_dict()[stem])
    statistics = "dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])"
    torch.save({"meta": {"config": f"img_norm_cfg = {statistics}"}, "state_dict": tensors}, tmp_path / "stated.pth")
    network = build("retinanet")
    start_from(network, tmp_path / "stated.pth", "retinanet")  # adapted once
    adapted = weights.read_checkpoint(path).state_dict[stem]
    torch.testing.assert_close(backbone_of(network).state_dict()[stem], adapted)
    assert not torch.equal(weights.read_checkpoint(path).state_dict[stem], classifier.state_dict()[stem])


def test_only_a_segmenters_backbone_is_adapted(official: Tensors, tmp_path: Path) -> None:
    """mmpretrain's and other headless files say nothing of ImageNet's statistics."""
    backbone = {f"backbone.{name}": tensor for name, tensor in official.items() if not name.startswith("head.")}
    torch.save({"state_dict": backbone}, tmp_path / "bare.pth")
    found = weights.read_checkpoint(tmp_path / "bare.pth").state_dict
    assert torch.equal(found["stage1.patch_embed.proj.weight"], official["patch_embed1.proj.weight"])


# vankit's own


@pytest.mark.parametrize("head", ["semantic_fpn", "retinanet", "upernet", "rt_detr", "mask2former"])
def test_a_written_network_comes_back(head: str, tmp_path: Path, image: Tensor) -> None:
    network = build(head)
    found, description = load_network(write(network, tmp_path / "best.safetensors", head=head))
    assert not found.training
    assert (description.head, description.classes, description.crop) == (head, tuple(CLASSES), 64)
    assert_same(found.state_dict(), network.state_dict())
    if head == "retinanet":
        network.detector.score_thresh = found.detector.score_thresh = 0.0
    with torch.inference_mode():
        (expected,), (result,) = network([image]), found([image])
    assert set(result) == set(expected) and all(torch.equal(result[key], expected[key]) for key in expected)
    assert head == "mask2former" or all(value.numel() for value in expected.values())


@pytest.mark.parametrize("head", ["d_fine", "deformable_detr"])
def test_heads_with_shared_tensors_come_back(head: str, tmp_path: Path) -> None:
    """Their decoder and the network around it hold the same classifiers or box heads."""
    network = build(head)
    found, _ = load_network(write(network, tmp_path / "best.safetensors", head=head))
    assert_same(found.state_dict(), network.state_dict())


def test_a_network_that_is_not_finite_is_refused(tmp_path: Path, dense_file: Path, segmenter: Any) -> None:
    file = weights.read_tensors(dense_file)
    name = "classifier.bias"
    assert name in file.tensors
    weights.write_tensors({**file.tensors, name: file.tensors[name] * torch.nan}, tmp_path / "bad", file.metadata)
    says = f"bad has NaN or infinite numbers in 1 of its {len(file.tensors)} tensors, such as {name}: "
    with pytest.raises(UserError, match=says):
        network_in_file(weights.read_tensors(tmp_path / "bad"))
    with pytest.raises(UserError, match=says):
        start_from(segmenter, tmp_path / "bad", "semantic_fpn")


def test_settings_come_back(tmp_path: Path) -> None:
    network = build("retinanet")
    path = write(network, tmp_path / "best.safetensors", head="retinanet", short_sides=[48, 80], long_side=112)
    transform = load_network(path)[0].detector.transform
    assert (tuple(transform.min_size), transform.max_size) == ((48, 80), 112)


def test_files_that_are_no_dense_checkpoint_are_named(dense_file: Path, tmp_path: Path, segmenter: Any) -> None:
    with pytest.raises(MissingFileError, match=r"no checkpoint at .*nowhere\.safetensors"):
        load_network(tmp_path / "nowhere.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(dense_file.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut\.safetensors is truncated or damaged"):
        load_network(cut)
    (tmp_path / "text.pth").write_text("no tensors")
    with pytest.raises(UserError, match=r"text\.pth is not a checkpoint"):
        load_network(tmp_path / "text.pth")
    vankit.save_checkpoint(timm.create_model("van_b0"), tmp_path / "van.safetensors")
    with pytest.raises(UserError, match=r"van\.safetensors is not a checkpoint of a detector or segmenter: expected"):
        vankit.DensePredictor(tmp_path / "van.safetensors")


@pytest.mark.parametrize("key", ["task", "model", "short_sides", "long_side", "queries", "things", "classes"])
def test_missing_metadata_is_named(key: str, tmp_path: Path) -> None:
    path = write(build("semantic_fpn"), tmp_path / "best.safetensors", **{key: None})
    with pytest.raises(UserError, match=rf"best\.safetensors: the checkpoint does not say its {key}: expected best"):
        load_network(path)


@pytest.mark.parametrize("change", [{"model": "van_b1"}, {"classes": ["one"], "things": [True]}, {"head": "upernet"}])
def test_a_file_that_contradicts_itself_is_refused_in_few_words(
    change: dict[str, Any], segmenter: Any, tmp_path: Path
) -> None:
    if "head" in change:
        pytest.importorskip("transformers")
    path = write(segmenter, tmp_path / "best.safetensors", **change)
    head = change.get("head", "semantic_fpn")
    with pytest.raises(UserError, match=rf"best\.safetensors does not fit this {head}: ") as error:
        load_network(path)
    assert len(str(error.value)) < 1000


# starting points


def test_the_same_head_is_loaded_whole(segmenter: Any, dense_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = build("semantic_fpn")
    with caplog.at_level(logging.WARNING):
        start_from(network, dense_file, "semantic_fpn")
    assert not caplog.messages
    assert_same(network.state_dict(), segmenter.state_dict())


def test_of_the_same_head_with_other_classes_all_but_the_class_layers_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, network = build("retinanet", classes=5, seed=1), build("retinanet")
    path = write(source, tmp_path / "best.safetensors", head="retinanet", classes=list("abcde"))
    kept = {f"detector.head.classification_head.cls_logits.{leaf}" for leaf in ("weight", "bias")}
    expected = source.state_dict() | {name: network.state_dict()[name].clone() for name in kept}
    with caplog.at_level(logging.WARNING):
        start_from(network, path, "retinanet")
    assert_same(network.state_dict(), expected)
    (message,) = caplog.messages
    assert "best.safetensors has other shapes for" in message and all(name in message for name in kept)


def test_of_the_same_head_over_another_van_nothing_is_loaded(dense_file: Path) -> None:
    network = build("semantic_fpn", model="van_b1")
    with pytest.raises(UserError, match=r"best\.safetensors does not fit this semantic_fpn") as error:
        start_from(network, dense_file, "semantic_fpn")
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("head", ["semantic_fpn", "retinanet", "upernet"])
def test_of_a_classifier_the_backbone_is_loaded(head: str, public_files: dict[str, Path], classifier: Any) -> None:
    network = build(head)
    van = backbone_of(network)
    inside = {id(tensor) for tensor in van.state_dict(keep_vars=True).values()}
    rest = {n: t.clone() for n, t in network.state_dict(keep_vars=True).items() if id(t) not in inside}
    start_from(network, next(path for name, path in public_files.items() if "Tiny" in name), head)
    assert_same(van.state_dict(), without_head(classifier))
    after = network.state_dict()
    assert rest
    assert_same({name: after[name] for name in rest}, rest)


def test_another_heads_checkpoint_gives_its_backbone(
    dense_file: Path, segmenter: Any, mmseg: Any, classifier: Any, caplog: pytest.LogCaptureFixture
) -> None:
    network = build("retinanet")
    with caplog.at_level(logging.WARNING):
        start_from(network, dense_file, "retinanet")
        assert_same(backbone_of(network).state_dict(), backbone_of(segmenter).state_dict())
        start_from(network, mmseg("semantic_fpn")[0], "retinanet")
    assert_same(but_the_stem(backbone_of(network).state_dict()), but_the_stem(without_head(classifier)))
    assert [message.partition("holds a VAN")[2] for message in caplog.messages] == [
        " and a head of semantic_fpn: loaded only the VAN", " and other parts (neck, decode_head): loaded only the VAN"
    ]  # fmt: skip


def test_starting_points_that_cannot_be_read_are_named(public_files: dict[str, Path], tmp_path: Path) -> None:
    segmenter = build("semantic_fpn")
    with pytest.raises(MissingFileError, match=r"no checkpoint at .*nowhere\.pth"):
        start_from(segmenter, tmp_path / "nowhere.pth", "semantic_fpn")
    base = next(path for name, path in public_files.items() if "Base" in name)  # van_b2
    with pytest.raises(UserError, match=r"van_base_828\.pth\.tar: it holds another variant") as error:
        start_from(segmenter, base, "semantic_fpn")
    assert len(str(error.value)) < 1500
    torch.save({"state_dict": {"conv1.weight": torch.zeros(1)}}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match=r"resnet\.pth: this is not a VAN checkpoint"):
        start_from(segmenter, tmp_path / "resnet.pth", "semantic_fpn")


# the VAN inside


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_a_dense_file_read_as_a_classifier_gives_the_van_inside(
    head: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = build(head)
    path = write(network, tmp_path / "best.safetensors", head=head)
    with caplog.at_level(logging.WARNING):
        checkpoint = weights.read_checkpoint(path)
    assert caplog.messages == [f"{path} holds a VAN and a head of {head}: loaded only the VAN"]
    assert_same(checkpoint.state_dict, backbone_of(network).state_dict())
    assert (checkpoint.format, checkpoint.metadata, checkpoint.num_classes) == ("vankit", {"model": "van_b0"}, 0)


@pytest.mark.parametrize("to", ["vankit", "official"])
def test_a_converted_dense_file_is_a_backbone_for_timm(
    to: str, dense_file: Path, segmenter: Any, tmp_path: Path, image: Tensor
) -> None:
    target = tmp_path / ("van.safetensors" if to == "vankit" else "van.pth.tar")
    assert vankit.convert(dense_file, target, to) == "vankit"
    options = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(target)}}
    loaded = timm.create_model("van_b0", num_classes=0, **options).eval()
    features = timm.create_model("van_b0", features_only=True, **options).eval()
    with torch.inference_mode():
        expected = backbone_of(segmenter)(image[None])
        for maps in (features(image[None]), loaded.forward_intermediates(image[None], intermediates_only=True)):
            assert all(torch.equal(found, wanted) for found, wanted in zip(maps, expected, strict=True))


def test_an_mmseg_file_read_as_a_classifier_gives_the_van_inside(mmseg: Any, classifier: Any) -> None:
    checkpoint = weights.read_checkpoint(mmseg("semantic_fpn")[0])
    assert checkpoint.format == "official"
    assert_same(but_the_stem(checkpoint.state_dict), but_the_stem(without_head(classifier)))


def test_of_another_mmseg_head_the_van_is_converted(mmseg: Any, tmp_path: Path) -> None:
    path, tensors = mmseg("semantic_fpn")
    other = {name.replace("scale_heads", "fuse"): tensor for name, tensor in tensors.items()}
    torch.save({"state_dict": other}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is not a Semantic FPN or UperNet"):
        open_network(tmp_path / "other.pth")
    for to, name in (("vankit", "van.safetensors"), ("official", "van.pth")):
        assert vankit.convert(tmp_path / "other.pth", tmp_path / name, to) == "official"
        found = weights.read_checkpoint(tmp_path / name)
        assert_same(found.state_dict, weights.read_checkpoint(path).state_dict)
