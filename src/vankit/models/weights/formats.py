"""The public formats as name tables: what every tensor of a VAN is called in each."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vankit.errors import UserError

FORMATS = ("vankit", "official", "mmpretrain", "hf")

# Modules that hold tensors, in the order of the published files. Columns as in FORMATS; {s} is the stage from 1,
# {i} the stage from 0, {b} the block from 0. `_leaves` says which tensors each holds.
_EMBED = (
    ("stage{s}.patch_embed.proj", "patch_embed{s}.proj", "backbone.patch_embed{s}.projection",
     "van.encoder.stages.{i}.embeddings.convolution"),
    ("stage{s}.patch_embed.norm", "patch_embed{s}.norm", "backbone.patch_embed{s}.norm",
     "van.encoder.stages.{i}.embeddings.normalization"),
)  # fmt: skip

_BLOCK = (
    ("layer_scale_1", "layer_scale_1", "layer_scale_1", "attention_scaling.weight"),
    ("layer_scale_2", "layer_scale_2", "layer_scale_2", "mlp_scaling.weight"),
    ("norm1", "norm1", "norm1", "pre_normomalization"),  # the typing error is in the published files
    ("attn.proj_1", "attn.proj_1", "attn.proj_1", "attention.pre_projection.conv"),
    ("attn.lka.dw", "attn.spatial_gating_unit.conv0", "attn.spatial_gating_unit.DW_conv",
     "attention.attention_layer.attention.depth_wise"),
    ("attn.lka.dw_d", "attn.spatial_gating_unit.conv_spatial", "attn.spatial_gating_unit.DW_D_conv",
     "attention.attention_layer.attention.depth_wise_dilated"),
    ("attn.lka.pw", "attn.spatial_gating_unit.conv1", "attn.spatial_gating_unit.conv1",
     "attention.attention_layer.attention.point_wise"),
    ("attn.proj_2", "attn.proj_2", "attn.proj_2", "attention.post_projection"),
    ("norm2", "norm2", "norm2", "post_normalization"),
    ("mlp.fc1", "mlp.fc1", "mlp.fc1", "mlp.in_dense"),
    ("mlp.dw", "mlp.dwconv.dwconv", "mlp.dwconv", "mlp.depth_wise"),
    ("mlp.fc2", "mlp.fc2", "mlp.fc2", "mlp.out_dense"),
)  # fmt: skip

_PROJECTION = next(row for row in _BLOCK if row[0] == "attn.proj_1")

_BLOCK_PREFIX = (
    "stage{s}.blocks.{b}", "block{s}.{b}", "backbone.blocks{s}.{b}", "van.encoder.stages.{i}.layers.{b}"
)  # fmt: skip

_LKA = ".attn.lka."

_NORM = ("stage{s}.norm", "norm{s}", "backbone.norm{s}", "van.encoder.stages.{i}.normalization")

_HEAD = ("head.fc", "head", "head.fc", "classifier")

# what a classifier's file has before the names of its backbone, and a bare backbone's has not
_OWN = ("", "", "backbone.", "van.")

# counters of thop, mmcv's buffers for a moving average, mmengine's normalisation, PyTorch's count of averages
_HARMLESS = re.compile(
    r"(?:^|\.)(?:total_ops|total_params|ema_\w+|data_preprocessor\.\w+)$|^(?:module\.)?(?:n_averaged|steps)$"
)

_DEEPEST = 256  # blocks per stage; van_b6 has 90

# transformers' released files carry a final LayerNorm that its model never uses
_HF_UNUSED = ("van.layernorm.weight", "van.layernorm.bias")


@dataclass(frozen=True)
class Place:
    """Where a VAN is among named tensors.

    Attributes:
        format: one of `FORMATS`.
        prefix: of the names of its backbone, such as model. or backbone.
    """

    format: str
    prefix: str

    @property
    def outer(self) -> str:
        """What is before the names of the network that has the VAN as its backbone, perhaps the classifier itself."""
        return self.prefix.removesuffix(_OWN[FORMATS.index(self.format)] or "backbone.")


def name_table(depths: tuple[int, ...], head: bool = True) -> Iterator[tuple[str, str, str, str]]:
    """Names of every tensor of a VAN in each format, as rows in the order of `FORMATS`.

    Args:
        depths: blocks per stage.
        head: with the linear head.
    """
    for i, depth in enumerate(depths):
        rows: list[tuple[str, ...]] = list(_EMBED)
        for b in range(depth):
            rows += [
                tuple(f"{p}.{m}".replace("{b}", str(b)) for p, m in zip(_BLOCK_PREFIX, row, strict=True))
                for row in _BLOCK
            ]
        rows.append(_NORM)
        for row in rows:
            names = [name.format(s=i + 1, i=i) for name in row]
            for leaf in _leaves(row[0]):
                yield tuple(name + leaf if leaf else name for name in names)  # type: ignore[misc]
    if head:
        for leaf in (".weight", ".bias"):
            yield tuple(name + leaf for name in _HEAD)  # type: ignore[misc]


def _leaves(module: str) -> tuple[str, ...]:
    if module.endswith(("layer_scale_1", "layer_scale_2")):
        return ("",)
    if re.search(r"(patch_embed\.norm|blocks\.\d+\.norm\d)$", module):
        return (".weight", ".bias", ".running_mean", ".running_var", ".num_batches_tracked")
    return (".weight", ".bias")


def places(names: Collection[str]) -> list[Place]:
    """Every VAN that these tensor names hold, in their order."""
    found = []
    columns = zip(FORMATS, _OWN, _EMBED[0], _BLOCK_PREFIX, _PROJECTION, strict=True)
    for fmt, own, embed, block, projection in columns:
        stem = f"{embed.format(s=1, i=0).removeprefix(own)}.weight"
        # of VAN alone: other pyramids begin with the same stem
        marker = f"{block.format(s=1, i=0, b=0).removeprefix(own)}.{projection}."
        vans = {name.partition(marker)[0] for name in names if marker in name}
        found += [
            (i, Place(fmt, name.removesuffix(stem)))
            for i, name in enumerate(names)
            if (name == stem or name.endswith(f".{stem}")) and name.removesuffix(stem) in vans
        ]
    return [place for _, place in sorted(found, key=lambda each: each[0])]


def not_a_van(names: Iterable[str]) -> UserError:
    """The error for names among which there is no VAN."""
    shown = ", ".join(sorted(names)[:3]) or "nothing"
    return UserError(
        f"this is not a VAN checkpoint: expected tensors named as in {', '.join(FORMATS)}, found {shown}, … "
        "(other networks are not converted)"
    )


def block_counts(names: Mapping[str, Any], fmt: str) -> tuple[int, ...]:
    """Blocks per stage, counted from the names."""
    column = FORMATS.index(fmt)
    pattern = re.escape(_BLOCK_PREFIX[column]).replace(r"\{b\}", r"(?P<b>\d+)")
    pattern = pattern.replace(r"\{s\}", r"(?P<s>\d)").replace(r"\{i\}", r"(?P<i>\d)")
    blocks: list[set[str]] = [set(), set(), set(), set()]  # counted, for a hostile file may number one 10**9
    for name in names:
        if match := re.match(pattern + r"\.", name):
            groups = match.groupdict()
            stage = int(groups["s"]) - 1 if "s" in groups else int(groups["i"])
            if 0 <= stage < 4:
                blocks[stage].add(groups["b"])
    return tuple(len(found) for found in blocks)


def sizes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """`embed_dims`, `depths` and `mlp_ratios` of the VAN whose tensors, under vankit's names, these are.

    Raises:
        ValueError: they are not those of a VAN with four stages.
    """
    depths = block_counts(tensors, "vankit")
    if max(depths) > _DEEPEST:
        raise UserError(f"stages of {', '.join(map(str, depths))} blocks: expected at most {_DEEPEST} per stage")
    try:
        dims = tuple(tensors[f"stage{i}.norm.weight"].shape[0] for i in range(1, 5))
        hidden = [tensors[f"stage{i}.blocks.0.mlp.fc1.weight"].shape[0] for i in range(1, 5)]
    except (KeyError, IndexError):
        raise UserError("expected four stages, each with a norm and at least one block") from None
    ratios = tuple(wide // dim if dim and wide % dim == 0 else 0 for wide, dim in zip(hidden, dims, strict=True))
    if not all((*dims, *ratios)):
        raise UserError(f"stages of width {dims} cannot have MLPs of width {tuple(hidden)}")
    return {"embed_dims": dims, "depths": depths, "mlp_ratios": ratios}


def rename(
    state_dict: Mapping[str, Tensor], source: str, target: str, lka: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Tensors of one format under the names of another; values are untouched.

    Args:
        state_dict: tensors under `source`'s names.
        source, target: one of `FORMATS`.
        lka: settings of the attention, if they are not VAN's: vankit files then hold any tensors of it.

    Raises:
        ValueError: a tensor is missing or left over (named), a format is unknown or has no place for `lka`.
    """
    for fmt in (source, target):
        if fmt not in FORMATS:
            raise UserError(f"unknown checkpoint format {fmt!r}: expected one of {', '.join(FORMATS)}")
    a, b = FORMATS.index(source), FORMATS.index(target)
    head = any(f"{_HEAD[a]}{leaf}" in state_dict for leaf in (".weight", ".bias"))
    table = {row[a]: row[b] for row in name_table(block_counts(state_dict, source), head)}
    if lka:
        if (source, target) != ("vankit", "vankit"):
            raise UserError(f"only vankit files have a place for lka={dict(lka)}, not those of {target}")
        table = {old: new for old, new in table.items() if _LKA not in old}
        table |= {name: name for name in state_dict if _LKA in name}
    unused = set(_HF_UNUSED) if source == "hf" else set()
    check_names(set(table), set(state_dict) - unused)
    out = {new: state_dict[old] for old, new in table.items()}
    if target == "hf" and source != "hf":
        width = out[_NORM[3].format(i=3) + ".weight"]
        out[_HF_UNUSED[0]], out[_HF_UNUSED[1]] = torch.ones_like(width), torch.zeros_like(width)
    return out


def van_at(tensors: Mapping[str, Tensor], place: Place) -> tuple[dict[str, Tensor], list[str]]:
    """The VAN at a place, and the names of what else is there.

    Args:
        tensors: of a whole file, perhaps of a network with a VAN inside.
        place: see `places`.

    Returns:
        Its tensors under the names of `place.format`, what nobody needs left out and BatchNorm's counters filled in;
        and the names outside `place.prefix` that are not of its linear head.
    """
    column = FORMATS.index(place.format)
    own, prefix = _OWN[column], place.prefix
    head = {f"{place.outer}{_HEAD[column]}{leaf}": _HEAD[column] + leaf for leaf in (".weight", ".bias")}
    weight = tensors.get(next(iter(head)))
    if weight is not None and weight.dim() != 2:  # a segmenter's convolution, by chance of this name
        head = {}
    inside: dict[str, Tensor] = {}
    left_out = []
    for name, tensor in tensors.items():
        if name in head:
            inside[head[name]] = tensor
        elif _HARMLESS.search(name) or (place.format == "hf" and "van." + name.removeprefix(prefix) in _HF_UNUSED):
            continue
        elif name.startswith(prefix):
            inside[own + name.removeprefix(prefix)] = tensor
        else:
            left_out.append(name)
    for row in name_table(block_counts(inside, place.format), head=False):
        if row[0].endswith("num_batches_tracked"):
            inside.setdefault(row[column], torch.tensor(0))
    return inside, left_out


def from_normalisation(tensors: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """A VAN that was trained on images of another mean and standard deviation, for images normalised by 0.5.

    Exact but at the padding, which is another grey.

    Args:
        tensors: under vankit's names.
        mean, std: per channel, in units of 0 to 1.
    """
    stem = _EMBED[0][0].format(s=1)
    weight, bias = tensors[f"{stem}.weight"], tensors[f"{stem}.bias"]
    centre, scale = (weight.new_tensor(v)[:, None, None] for v in (mean, std))
    shift = (weight * ((0.5 - centre) / scale)).sum((1, 2, 3))
    return {**tensors, f"{stem}.weight": weight * (0.5 / scale), f"{stem}.bias": bias + shift}


def check_axes(tensors: Mapping[str, Tensor]) -> None:
    """Refuse a first convolution or a linear head whose shape says nothing of channels or classes.

    Args:
        tensors: of a VAN, under vankit's names.

    Raises:
        ValueError: one has another number of axes, or one of length 0.
    """
    for name, axes in ((f"{_EMBED[0][0].format(s=1)}.weight", 4), (f"{_HEAD[0]}.weight", 2)):
        shape = tuple(tensors[name].shape) if name in tensors else (1,) * axes
        if len(shape) != axes or 0 in shape:
            raise UserError(f"{name} is of shape {shape}: expected {axes} axes, none of length 0")


def check_names(expected: set[str], found: set[str]) -> None:
    problems = []
    for word, names in (("missing", sorted(expected - found)), ("left over", sorted(found - expected))):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            problems.append(f"{word}: {', '.join(names[:8])}{more}")
    if problems:
        raise UserError(f"the checkpoint's tensors do not fit: {'; '.join(problems)}")
