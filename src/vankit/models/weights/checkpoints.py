"""A VAN in a file: read, written, converted and loaded, in any of the formats."""

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from timm.models import adapt_input_conv
from torch import Tensor

from vankit.errors import UserError
from vankit.files import replacing
from vankit.models.weights.files import TensorFile, check_finite, read_tensors, stored, write_tensors
from vankit.models.weights.formats import check_names, identify, rename, van_inside

logger = logging.getLogger(__name__)


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
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


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
    content = {"state_dict": stored(tensors)} if to != "hf" else stored(tensors)
    buffer = io.BytesIO()  # PyTorch's own writer says of a full disk that it is a bug
    torch.save({"meta": {}, **content} if to == "mmpretrain" else content, buffer)
    with replacing(path) as partial:
        partial.write_bytes(buffer.getbuffer())


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
    check_finite(checkpoint.state_dict, path)
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
        check_names(set(own), set(tensors))
        wrong = [k for k in own if own[k].shape != tensors[k].shape]
        if wrong:
            k = wrong[0]
            raise UserError(f"{k} is {tuple(tensors[k].shape)}, the model's is {tuple(own[k].shape)}; another variant?")
    except UserError as error:
        hint = f"; it was trained with lka={theirs}, the model has lka={settings}: make them equal or train anew"
        raise UserError(f"{path}: {error}{hint if other else ''}") from None
    if other:
        logger.warning("%s was trained with lka=%s, the model has lka=%s", path, theirs, settings)
    model.load_state_dict(tensors)
    return checkpoint
