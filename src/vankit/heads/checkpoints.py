"""Checkpoints of dense tasks: vankit's own, and the mmseg layout of the authors' VAN-Segmentation."""

import logging
import re
from collections.abc import Mapping
from os import PathLike
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from vankit.errors import UserError
from vankit.files import reading
from vankit.heads.backbone import backbone_of
from vankit.heads.build import build_network
from vankit.models import weights
from vankit.models.description import Description, Weights
from vankit.models.van import VARIANTS, architecture, variant_of
from vankit.models.weights.files import check_finite
from vankit.schema import shown

logger = logging.getLogger(__name__)

# (pattern of mmseg's names, ours); the neck and heads are checked against this, so nothing is left over unseen
_MMSEG: dict[str, tuple[tuple[str, str], ...]] = {
    "semantic_fpn": (
        (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"backbone.fpn.inner_blocks.\1.0.\2"),
        (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"backbone.fpn.layer_blocks.\1.0.\2"),
        (r"decode_head\.conv_seg\.(.+)", r"classifier.\1"),
    ),
    "upernet": (
        (r"(decode_head|auxiliary_head)\.conv_seg\.(.+)", r"network.\1.classifier.\2"),
        (r"(decode_head|auxiliary_head)\.(.+)\.bn\.(.+)", r"network.\1.\2.batch_norm.\3"),
        (r"(decode_head|auxiliary_head)\.(.+)\.conv\.(.+)", r"network.\1.\2.conv.\3"),
    ),
}
_USUAL = 1000  # classes and queries, with which no network is large
_CLASSIFIER = "decode_head.conv_seg.weight"
_PARTS_OF_MMSEG = {
    "semantic_fpn": re.compile(r"decode_head\.scale_heads\."),
    "upernet": re.compile(r"decode_head\.psp_modules\."),
}
_SCALE_HEAD = re.compile(r"decode_head\.scale_heads\.(\d)\.(\d)\.(conv|bn)\.(.+)")


def is_dense(file: weights.TensorFile) -> bool:
    """Whether a file holds a detector or segmenter, of vankit or of mmseg, that `network_in_file` opens."""
    return "head" in file.metadata or _CLASSIFIER in mmseg_tensors(file)


def mmseg_head(file: weights.TensorFile) -> str | None:
    """The head of mmseg's segmenters that are read, semantic_fpn or upernet, that a file holds, else None."""
    tensors = mmseg_tensors(file)
    heads = (head for head, part in _PARTS_OF_MMSEG.items() if any(map(part.match, tensors)))
    return next(heads, None) if _CLASSIFIER in tensors else None


def network_in_file(file: weights.TensorFile) -> tuple[nn.Module, Description]:
    """The network of a checkpoint of a detector or segmenter, in eval mode, and its description.

    Args:
        file: vankit's own, or mmsegmentation's of a Semantic FPN or UperNet with a VAN, of the authors or of
            mmpretrain. Its classes are those of its `meta`, else their indices.

    Raises:
        ValueError: the file does not say what network it holds, or its tensors do not fit.
        ImportError: its head needs transformers.
    """
    with reading(file.path):
        if "head" not in file.metadata:
            description = _of_mmseg(file)
            network = build_network(description)
            prefix = _backbone_prefix(network.state_dict())
            tensors: Mapping[str, Tensor] = from_mmseg(file, description.head or "", prefix)
        else:
            description, tensors = Description.from_metadata(file.metadata), file.tensors
            _check_says_what_it_holds(description, tensors)
            network = build_network(description)
        _load(network, tensors, file.path, description.head or "")
    return network.eval(), description


def _check_says_what_it_holds(description: Description, tensors: Mapping[str, Tensor]) -> None:
    """Refuse what would take more memory than the file, or make timm fetch another model."""
    if architecture(description.model or "") not in VARIANTS:
        raise UserError(f"its model is {shown(description.model)}: expected a VAN, {' or '.join(VARIANTS)}")
    if not description.lka and max(len(description.classes), description.queries) <= _USUAL:
        return
    with torch.device("meta"):  # which takes time, but no memory
        expected = build_network(description).state_dict()
    for name, tensor in expected.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            has = tuple(tensors[name].shape) if name in tensors else "missing"
            raise UserError(f"{name} is {has}: its own description asks for {tuple(tensor.shape)}")


def _of_mmseg(file: weights.TensorFile) -> Description:
    tensors = mmseg_tensors(file)
    head = mmseg_head(file)
    if head is None:
        raise UserError(f"{file.path} is not a Semantic FPN or UperNet: from mmseg, vankit reads these two")
    model = variant_of(_backbone(file)[0])
    if model is None:
        raise UserError(f"{file.path} has a VAN of other widths or depths than van_b0 to van_b6 under its {head}")
    if tensors[_CLASSIFIER].dim() != 4:
        raise UserError(f"{file.path}: {_CLASSIFIER} is of shape {tuple(tensors[_CLASSIFIER].shape)}: expected 4 axes")
    outputs = tensors[_CLASSIFIER].shape[0]
    names = file.metadata.get("classes")
    if names is not None and len(names) != outputs:
        logger.warning("%s names %d classes and has %d: numbered instead", file.path, len(names), outputs)
        names = None
    return Description("segment", head, model, names or [str(i) for i in range(outputs)], named=names is not None,
                       crop=512, short_sides=(512,), long_side=2048)  # fmt: skip


def start_from(network: nn.Module, path: str | PathLike[str], head: str, choice: Weights | None = None) -> None:
    """Load what a checkpoint has for a network.

    All tensors whose shapes agree, of a file of the same head (vankit's or mmseg's) with perhaps other classes; else
    the backbone. What stays as it was is logged.

    Args:
        network: a network of `vankit.heads`.
        path: a checkpoint of any public format, or of a dense task.
        head: the network's head, see `vankit.heads.build.HEADS`.
        choice: raw or averaged weights, see `vankit.read_checkpoint`.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read or holds another VAN.
    """
    file = weights.read_tensors(path, choice)
    if file.metadata.get("head") != head and not (head in _MMSEG and _CLASSIFIER in mmseg_tensors(file)):
        weights.load_checkpoint(backbone_of(network), weights.for_training(weights.checkpoint_of(file)))
        return
    own = network.state_dict()
    tensors = file.tensors if "head" in file.metadata else from_mmseg(file, head, _backbone_prefix(own))
    other = [name for name, tensor in tensors.items() if name in own and own[name].shape != tensor.shape]
    if other:
        logger.warning("%s has other shapes for %s: left as they were", path, ", ".join(other[:6]))
    _load(network, {**tensors, **{name: own[name] for name in other}}, path, head)


def _load(network: nn.Module, tensors: Mapping[str, Tensor], path: str | PathLike[str], head: str) -> None:
    check_finite(tensors, path)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:  # it may name hundreds of tensors
        raise UserError(f"{path} does not fit this {head}: {shorten(str(error), 600)}") from None


def _backbone_prefix(names: Mapping[str, Any]) -> str:
    stem = "stage1.patch_embed.proj.weight"
    return next(name.removesuffix(stem) for name in names if name.endswith(stem))


def mmseg_tensors(file: weights.TensorFile) -> dict[str, Tensor]:
    """The tensors of an mmseg file under mmseg's own names: without what a wrapper put before them all."""
    return {name.removeprefix(file.place.outer): tensor for name, tensor in file.tensors.items()}


def from_mmseg(file: weights.TensorFile, head: str, prefix: str) -> dict[str, Tensor]:
    """A segmenter of mmsegmentation, renamed and adapted to vankit's normalisation.

    Args:
        file: with `backbone.*`, `neck.*`, `decode_head.*`, `auxiliary_head.*`.
        head: semantic_fpn or upernet.
        prefix: of the VAN's names in vankit's network.

    Raises:
        ValueError: a tensor has no place, because the file is of another head.
    """
    backbone, others = _backbone(file)
    if file.normalisation is not None:
        backbone = weights.from_normalisation(backbone, *file.normalisation)
    renamed = {prefix + name: tensor for name, tensor in backbone.items()}
    left = []
    for name in others:
        theirs = name.removeprefix(file.place.outer)
        new = _mmseg_name(theirs, head)
        if new is None:
            left.append(theirs)
        else:
            renamed[new] = file.tensors[name]
    if left:
        raise UserError(f"{file.path}: the checkpoint is not a {head} of mmseg: it also has {', '.join(left[:4])}")
    return renamed


def _backbone(file: weights.TensorFile) -> tuple[dict[str, Tensor], list[str]]:
    """The VAN of an mmseg file under vankit's names, and the names of the other tensors."""
    inside, others = weights.van_at(file.tensors, file.place)
    with reading(file.path):
        return weights.rename(inside, file.place.format, "vankit"), others


def _mmseg_name(name: str, head: str) -> str | None:
    if head == "semantic_fpn" and (match := _SCALE_HEAD.fullmatch(name)):
        level, index, kind, leaf = match.groups()
        # per doubling mmseg has (conv, bn, relu) and x2 as two modules, SemanticFPN as four
        return f"scale_heads.{level}.{2 * int(index) + (kind == 'bn')}.{leaf}"
    for pattern, ours in _MMSEG[head]:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return None
