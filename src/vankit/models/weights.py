"""The public checkpoint formats of VAN: name tables between them, and reading and writing their files.

Formats: `vankit` (this package, safetensors), `official` (Visual-Attention-Network/VAN-Classification, `.pth.tar`),
`mmpretrain` (OpenMMLab MMPretrain, `.pth`) and `hf` (transformers' VanForImageClassification up to 4.57, `.bin` or
safetensors). Which one a file holds is detected from its content.
"""

import argparse
import json
import logging
import pickle
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import adapt_input_conv, clean_state_dict
from torch import Tensor

from vankit.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)

_SAFE_GLOBALS = threading.Lock()  # torch keeps its list for the whole process

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
_BLOCK_PREFIX = (
    "stage{s}.blocks.{b}", "block{s}.{b}", "backbone.blocks{s}.{b}", "van.encoder.stages.{i}.layers.{b}"
)  # fmt: skip
_LKA = ".attn.lka."
_NORM = ("stage{s}.norm", "norm{s}", "backbone.norm{s}", "van.encoder.stages.{i}.normalization")
_HEAD = ("head.fc", "head", "head.fc", "classifier")

# transformers' released files carry a final LayerNorm that its model never uses
_HF_UNUSED = ("van.layernorm.weight", "van.layernorm.bias")


@dataclass
class Checkpoint:
    """A checkpoint file as data.

    Attributes:
        state_dict: tensors under vankit's names.
        format: the format of the file it came from, one of `FORMATS`.
        path: that file.
        metadata: what a vankit file says of itself: `model` (str), `lka` (dict of its settings, empty for VAN's own),
            `classes` (list of str), `preprocessing` (dict with input_size, mean, std, crop_pct, interpolation) and
            whatever else its writer added; empty for other formats.
    """

    state_dict: dict[str, Tensor]
    format: str
    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Rows of the linear head; 0 without one."""
        head = self.state_dict.get("head.fc.weight")
        return 0 if head is None else head.shape[0]


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


def identify(names: Mapping[str, Any]) -> str:
    """The format (one of `FORMATS`) whose stem these tensor names hold.

    Raises:
        ValueError: they are not in any VAN format.
    """
    for fmt, stem in zip(FORMATS, _EMBED[0], strict=True):
        if f"{stem.format(s=1, i=0)}.weight" in names:
            return fmt
    shown = ", ".join(sorted(names)[:3]) or "nothing"
    raise UserError(
        f"this is not a VAN checkpoint: expected tensors named as in {', '.join(FORMATS)}, found {shown}, … "
        "(a dense-task checkpoint holds more than the classifier; other networks are not converted)"
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
    _check_names(set(table), set(state_dict) - unused)
    out = {new: state_dict[old] for old, new in table.items()}
    if target == "hf" and source != "hf":
        width = out[_NORM[3].format(i=3) + ".weight"]
        out[_HF_UNUSED[0]], out[_HF_UNUSED[1]] = torch.ones_like(width), torch.zeros_like(width)
    return out


def van_inside(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The VAN inside a dense task's network, under vankit's or the official names; empty if there is none.

    Under the official names it is of VAN-Segmentation, whose images are normalised by ImageNet's mean and standard
    deviation: its first convolution is adapted to vankit's.
    """
    for stem, parts in ((_EMBED[0][0], r"stage\d\."), (_EMBED[0][1], r"(?:patch_embed|block|norm)\d\.")):
        stem = stem.format(s=1)
        prefix = next(
            (name.removesuffix(f"{stem}.weight") for name in tensors if name.endswith(f".{stem}.weight")), None
        )
        if not prefix or any(name.startswith(f"{prefix}head.") for name in tensors):  # a classifier, perhaps wrapped
            continue
        pattern = re.compile(re.escape(prefix) + f"({parts}.*)")
        inside = {match[1]: tensor for name, tensor in tensors.items() if (match := pattern.fullmatch(name))}
        if stem == _EMBED[0][1].format(s=1):
            inside |= _from_imagenet_normalisation(inside, stem)
        return inside
    return {}


def _from_imagenet_normalisation(tensors: Mapping[str, Tensor], stem: str) -> dict[str, Tensor]:
    """The first convolution, for images normalised by 0.5. Exact but at the padding, which is another grey."""
    weight, bias = tensors[f"{stem}.weight"], tensors[f"{stem}.bias"]
    mean, std = (weight.new_tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    shift = (weight * ((0.5 - mean) / std)).sum((1, 2, 3))
    return {f"{stem}.weight": weight * (0.5 / std), f"{stem}.bias": bias + shift}


def _check_names(expected: set[str], found: set[str]) -> None:
    problems = []
    for word, names in (("missing", sorted(expected - found)), ("left over", sorted(found - expected))):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            problems.append(f"{word}: {', '.join(names[:8])}{more}")
    if problems:
        raise UserError(f"the checkpoint's tensors do not fit: {'; '.join(problems)}")


def read_checkpoint(path: str | PathLike[str]) -> Checkpoint:
    """Read a checkpoint of any public format, as data: no code in the file is run.

    Args:
        path: a safetensors file or a PyTorch pickle. Pickles are read with `weights_only=True`; of other classes only
            argparse.Namespace, which the official files hold, is allowed. Of a detector or segmenter (vankit's, or the
            authors' VAN-Segmentation) the VAN inside is read, with a warning.

    Returns:
        The checkpoint under vankit's names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, unsafe, of no known format, or a tensor is missing or left over.
    """
    return checkpoint_of(read_tensors(path))


@dataclass(frozen=True)
class TensorFile:
    """A file of named tensors, of whatever network.

    Attributes:
        path: the file.
        tensors: as they are called in it.
        metadata: what a vankit file says of itself, see `Checkpoint`; empty for others.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def checkpoint_of(file: TensorFile) -> Checkpoint:
    """The VAN in a file; see `read_checkpoint`."""
    path, tensors, metadata = file.path, file.tensors, file.metadata
    if backbone := van_inside(tensors):
        logger.warning(
            "%s holds a VAN and a head of %s: loaded only the VAN", path, metadata.get("head", "another task")
        )
        tensors, metadata = backbone, {key: metadata[key] for key in ("model", "lka") if key in metadata}
    try:
        fmt = identify(tensors)
        return Checkpoint(
            rename(tensors, fmt, "vankit", metadata.get("lka")), fmt, path, metadata if fmt == "vankit" else {}
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def read_tensors(path: str | PathLike[str]) -> TensorFile:
    """The named tensors of a file; see `read_checkpoint`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no checkpoint at {path}: pass the path of a .safetensors, .pth, .pth.tar or .bin file")
    try:
        if _is_safetensors(path):
            with safetensors.safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return TensorFile(path, tensors, _metadata_of(file))
        with _SAFE_GLOBALS, torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises weights_only=False, which would run the code
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if not unsafe:
            raise UserError(f"{path} is not a readable checkpoint: neither safetensors nor a PyTorch file") from None
        raise UserError(
            f"{path} was refused: it holds pickled objects in addition to tensors, which could run code when loaded. "
            f"Expected tensors and plain values; ask its author for a safetensors file. Found: {unsafe[1]}"
        ) from None
    except Exception as error:
        reason = str(error).partition(". This is an internal miniz error")[0] or type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint (truncated download?): {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict: expected named tensors, at the top or under 'state_dict'")
    return TensorFile(path, clean_state_dict(dict(content)), {})


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON header


def read_metadata(path: str | PathLike[str]) -> dict[str, Any]:
    """What a vankit file says of itself (see `Checkpoint.metadata`), without reading its tensors; empty for others."""
    if not Path(path).is_file() or not _is_safetensors(Path(path)):
        return {}
    with safetensors.safe_open(path, "pt") as file:
        return _metadata_of(file)


def _metadata_of(file: Any) -> dict[str, Any]:
    metadata = {key: _parse(value) for key, value in (file.metadata() or {}).items()}
    metadata.pop("format", None)  # safetensors' own word for PyTorch, not the writer's
    return metadata


def _parse(value: str) -> Any:
    """vankit stores lists and dicts in safetensors' string-only metadata as JSON; other writers store plain text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def save_checkpoint(
    model: nn.Module, path: str | PathLike[str], to: str = "vankit", metadata: Mapping[str, Any] | None = None
) -> None:
    """Save a VAN, with the settings of its attention; see `write_checkpoint` for the arguments."""
    settings = {"lka": model.lka} if getattr(model, "lka", None) else {}
    write_checkpoint(model.state_dict(), path, to, {**settings, **(metadata or {})})


def write_checkpoint(
    state_dict: Mapping[str, Tensor],
    path: str | PathLike[str],
    to: str = "vankit",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors in a public format, replacing `path` only once the new file is complete.

    Args:
        state_dict: tensors under vankit's names.
        path: output file. `hf` is written as safetensors where the name ends so, else as a pickle of tensors.
        to: one of `FORMATS`.
        metadata: for `vankit` files (others have no place for it): JSON-able values by name.
    """
    tensors = rename(state_dict, "vankit", to, (metadata or {}).get("lka"))
    if to == "vankit" or (to == "hf" and Path(path).suffix == ".safetensors"):
        write_tensors(tensors, path, (metadata or {}) if to == "vankit" else {})
        return
    content = {"state_dict": _stored(tensors)} if to != "hf" else _stored(tensors)
    with _replacing(path) as partial:
        torch.save({"meta": {}, **content} if to == "mmpretrain" else content, partial)


def write_tensors(tensors: Mapping[str, Tensor], path: str | PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Write named tensors as a vankit file (safetensors), replacing `path` only once the new file is complete.

    Args:
        tensors: under the names that are stored.
        path: output file.
        metadata: JSON-able values by name.
    """
    header = {key: json.dumps(value) for key, value in metadata.items()}
    with _replacing(path) as partial:
        safetensors.torch.save_file(_stored(tensors), partial, metadata={**header, "format": "pt"})


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if place in seen else tensor  # safetensors refuses shared memory
        seen.add(place)
    return stored


@contextmanager
def _replacing(path: str | PathLike[str]) -> Iterator[Path]:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def convert(source: str | PathLike[str], target: str | PathLike[str], to: str = "vankit") -> str:
    """Convert a checkpoint file between the public formats; tensors stay bit-exact.

    Args:
        source: any file `read_checkpoint` reads.
        target: output file.
        to: one of `FORMATS`.

    Returns:
        The format of `source`.
    """
    checkpoint = read_checkpoint(source)
    write_checkpoint(checkpoint.state_dict, target, to, checkpoint.metadata)
    return checkpoint.format


def load_checkpoint(model: nn.Module, source: str | PathLike[str] | Checkpoint) -> Checkpoint:
    """Load a checkpoint file of any public format into a VAN.

    A head with another number of classes is left as the model has it, and a first convolution for another number of
    channels is adapted as timm does; both are logged as warnings (the head only where the model has one), and so are
    weights that fit but are of an attention with other settings.

    Args:
        model: a `vankit.VAN`.
        source: a path, see `read_checkpoint`, or what it returned.

    Returns:
        The checkpoint, with its metadata.

    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint`; or the file holds another variant.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
    path = checkpoint.path
    own = model.state_dict()
    tensors = dict(checkpoint.state_dict)
    head, stem = "head.fc.weight", "stage1.patch_embed.proj.weight"
    rows = own[head].shape[0] if head in own else 0
    if rows != checkpoint.num_classes:
        logger.log(
            logging.WARNING if rows else logging.INFO,  # a model without a head was asked for
            "%s has %d classes and the model %d: loaded the backbone only, the model's head is unchanged",
            path, checkpoint.num_classes, rows,
        )  # fmt: skip
        for name in (head, "head.fc.bias"):
            tensors.pop(name, None)
            if name in own:
                tensors[name] = own[name]
    if stem in own and own[stem].shape[1] != tensors[stem].shape[1]:
        chans = own[stem].shape[1]
        logger.warning("%s takes %d channels, the model %d: adapted the first convolution",
                       path, tensors[stem].shape[1], chans)  # fmt: skip
        tensors[stem] = adapt_input_conv(chans, tensors[stem], base_chans=tensors[stem].shape[1])
    settings, theirs = getattr(model, "lka", None), checkpoint.metadata.get("lka") or {}
    other = settings is not None and settings != theirs
    try:
        _check_names(set(own), set(tensors))
        wrong = [k for k in own if own[k].shape != tensors[k].shape]
        if wrong:
            k = wrong[0]
            raise UserError(f"{k} is {tuple(tensors[k].shape)}, the model's is {tuple(own[k].shape)}; another variant?")
    except ValueError as error:
        hint = f"; it was trained with lka={theirs}, the model has lka={settings}: make them equal or train anew"
        raise UserError(f"{path}: {error}{hint if other else ''}") from None
    if other:
        logger.warning("%s was trained with lka=%s, the model has lka=%s", path, theirs, settings)
    model.load_state_dict(tensors)
    return checkpoint
