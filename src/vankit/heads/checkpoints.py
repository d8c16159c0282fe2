"""Checkpoints of dense tasks: vankit's own, and the mmseg layout of the authors' VAN-Segmentation."""

import logging
import re
from collections.abc import Mapping
from os import PathLike
from textwrap import shorten
from typing import Any

from torch import Tensor, nn

from vankit.errors import UserError
from vankit.heads.backbone import backbone_of
from vankit.heads.build import build_network
from vankit.models import weights
from vankit.models.description import Description
from vankit.models.weights.files import check_finite

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
_SCALE_HEAD = re.compile(r"decode_head\.scale_heads\.(\d)\.(\d)\.(conv|bn)\.(.+)")


def network_in_file(file: weights.TensorFile) -> tuple[nn.Module, Description]:
    """The network of a vankit checkpoint of a detector or segmenter, in eval mode, and its description.

    Raises:
        ValueError: the file does not say what network it holds, or its tensors do not fit.
        ImportError: its head needs transformers.
    """
    try:
        description = Description.from_metadata(file.metadata)
    except UserError as error:
        raise UserError(f"{file.path}: {error}") from None
    network = build_network(description)
    _load(network, file.tensors, file.path, description.head or "")
    return network.eval(), description


def start_from(network: nn.Module, path: str | PathLike[str], head: str) -> None:
    """Load what a checkpoint has for a network.

    All tensors whose shapes agree, of a file of the same head (vankit's or mmseg's) with perhaps other classes; else
    the backbone. What stays as it was is logged.

    Args:
        network: a network of `vankit.heads`.
        path: a checkpoint of any public format, or of a dense task.
        head: the network's head, see `vankit.heads.build.HEADS`.

    Raises:
        FileNotFoundError, ValueError: the file cannot be read or holds another VAN.
    """
    file = weights.read_tensors(path)
    tensors = file.tensors
    if file.metadata.get("head") != head and not (head in _MMSEG and "decode_head.conv_seg.weight" in tensors):
        weights.load_checkpoint(backbone_of(network), weights.checkpoint_of(file))
        return
    own = network.state_dict()
    if "head" not in file.metadata:
        try:
            tensors = from_mmseg(tensors, head, _backbone_prefix(own))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
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


def from_mmseg(tensors: Mapping[str, Tensor], head: str, prefix: str) -> dict[str, Tensor]:
    """A checkpoint of VAN-Segmentation (mmsegmentation 0.x layout), renamed and adapted to vankit's normalisation.

    Args:
        tensors: `backbone.*`, `neck.*`, `decode_head.*`, `auxiliary_head.*`.
        head: semantic_fpn or upernet.
        prefix: of the VAN's names in vankit's network.

    Raises:
        ValueError: a tensor has no place, because the file is of another head.
    """
    backbone = weights.rename(weights.van_inside(tensors), "official", "vankit")
    renamed = {prefix + name: tensor for name, tensor in backbone.items()}
    left = []
    for name, tensor in tensors.items():
        if name.startswith("backbone."):
            continue
        new = _mmseg_name(name, head)
        if new is None:
            left.append(name)
        else:
            renamed[new] = tensor
    if left:
        raise UserError(f"the checkpoint is not a {head} of mmseg: it also has {', '.join(left[:4])}")
    return renamed


def _mmseg_name(name: str, head: str) -> str | None:
    if head == "semantic_fpn" and (match := _SCALE_HEAD.fullmatch(name)):
        level, index, kind, leaf = match.groups()
        # per doubling mmseg has (conv, bn, relu) and x2 as two modules, SemanticFPN as four
        return f"scale_heads.{level}.{2 * int(index) + (kind == 'bn')}.{leaf}"
    for pattern, ours in _MMSEG[head]:
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    return None
