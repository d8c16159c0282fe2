"""A VAN in a file: read, written, converted and loaded, in any of the formats."""

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from timm.models import adapt_input_conv
from torch import Tensor

from vankit.errors import UserError
from vankit.files import reading, replacing, write_text
from vankit.models.description import Weights
from vankit.models.weights.beside import PUBLISHED, preprocessing_in, transformers_config
from vankit.models.weights.files import TensorFile, check_finite, read_tensors, stored, write_tensors
from vankit.models.weights.formats import check_axes, check_names, from_normalisation, rename, sizes_of, van_at

logger = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """A checkpoint file as data.

    Attributes:
        state_dict: tensors under vankit's names.
        format: the format of the file it came from, one of `FORMATS`.
        path: that file.
        metadata: what the file says of its network: `model` (str), `lka` (dict of its settings, empty for VAN's own),
            `classes` (list of str), `preprocessing` (dict of some of input_size, mean, std, crop_pct, interpolation),
            `thresholds` (list of float, of a multi-label network) and whatever else the writer of a vankit file added.
            Other formats say it in the file (OpenMMLab) or in config.json and preprocessor_config.json beside it
            (transformers, timm), or not at all.
        left_out: names of the file's tensors that are not the VAN's, such as those of a detector's head.
    """

    state_dict: dict[str, Tensor] = field(repr=False)
    format: str
    path: Path
    metadata: dict[str, Any] = field(default_factory=dict)
    left_out: Sequence[str] = field(default=(), repr=False)

    @property
    def num_classes(self) -> int:
        """Rows of the linear head; 0 without one."""
        head = self.state_dict.get("head.fc.weight")
        return 0 if head is None else head.shape[0]


def read_checkpoint(path: str | PathLike[str], weights: Weights | None = None) -> Checkpoint:
    """Read a checkpoint of any public format, as data: no code in the file is run.

    The VAN is found by the names of its tensors, under whatever keys and prefixes they are. What else is there is left
    out, with a warning: a head of another task, objects of other libraries.

    Args:
        path: a safetensors file or a PyTorch pickle, of tensors or of a whole module; or a folder with one, see
            `file_in`.
        weights: raw, or ema for their moving average; None takes the average where the file holds both.

    Returns:
        The checkpoint under vankit's names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds no VAN or not the weights asked for, is built to run code, or a tensor is
            missing or left over.
    """
    return checkpoint_of(read_tensors(path, weights))


def checkpoint_of(file: TensorFile) -> Checkpoint:
    """The VAN in a file; see `read_checkpoint`."""
    path, metadata, fmt = file.path, file.metadata, file.place.format
    with reading(path):
        inside, left_out = van_at(file.tensors, file.place)
        tensors = rename(inside, fmt, "vankit", metadata.get("lka"))
        check_axes(tensors)
    if left_out:
        if "classes" in metadata:  # they are the other head's
            metadata = {key: metadata[key] for key in ("model", "lka", "preprocessing") if key in metadata}
        parts = dict.fromkeys(name.removeprefix(file.place.outer).partition(".")[0] for name in left_out)
        head = file.metadata.get("head")
        what = f"a head of {head}" if head else f"other parts ({', '.join(list(parts)[:5])})"
        logger.warning("%s holds a VAN and %s: loaded only the VAN", path, what)
    if file.normalisation is not None:
        tensors = from_normalisation(tensors, *file.normalisation)
        metadata = {key: value for key, value in metadata.items() if key != "preprocessing"}
    return Checkpoint(tensors, fmt, path, metadata, left_out)


def save_checkpoint(
    model: nn.Module, path: str | PathLike[str], to: str = "vankit", metadata: Mapping[str, Any] | None = None
) -> None:
    """Save a VAN, with the settings of its attention and the preprocessing that its `pretrained_cfg` states.

    See `write_checkpoint` for the arguments; what `metadata` says outranks the model.
    """
    settings: dict[str, Any] = {"lka": model.lka} if getattr(model, "lka", None) else {}
    if isinstance(cfg := getattr(model, "pretrained_cfg", None), dict) and (stated := preprocessing_in(cfg)):
        settings["preprocessing"] = stated
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
        path: output file. `hf` is written as safetensors where the name ends so, else as a pickle of tensors, or into a
            folder as model.safetensors; beside it go the config.json and preprocessor_config.json that transformers
            reads.
        to: one of `FORMATS`.
        metadata: JSON-able values by name. `vankit` files keep all of them, `hf` has places for classes and
            preprocessing, `mmpretrain` for classes, `official` for none. What of these and of a multi-label network's
            thresholds is lost is warned about.

    Raises:
        ValueError: a tensor has no place in the format, the name's suffix is that of another kind of file, or the
            folder has a config.json of another model.
    """
    tensors = rename(state_dict, "vankit", to, (metadata or {}).get("lka"))
    path = Path(path)
    if to == "hf" and (path.is_dir() or not (path.suffix or path.exists())):
        path = path / "model.safetensors"
    safe = path.suffix.lower() == ".safetensors"
    if to in ("official", "mmpretrain") and safe:
        raise UserError(f"{path}: {to} files are pickles: expected a name that ends in .pth or .pth.tar")
    if to == "vankit" and path.suffix.lower() in (".pth", ".pt", ".tar", ".bin", ".ckpt"):
        raise UserError(f"{path}: vankit files are safetensors: expected a name that ends in .safetensors")
    a_file = path.is_file() or not path.exists()  # rather than a device such as /dev/stdout
    beside = transformers_config(path, state_dict, metadata or {}) if to == "hf" and a_file else {}
    if to != "vankit":
        _warn_of_loss(path, to, metadata or {})
    if to == "vankit" or (to == "hf" and safe):
        write_tensors(tensors, path, (metadata or {}) if to == "vankit" else {})
    else:
        content: dict[str, Any] = stored(tensors)
        if to != "hf":
            content = {"state_dict": content}
        if to == "mmpretrain":
            classes = (metadata or {}).get("classes")
            content = {"meta": {"dataset_meta": {"classes": tuple(classes)}} if classes else {}, **content}
        buffer = io.BytesIO()  # PyTorch's own writer says of a full disk that it is a bug
        torch.save(content, buffer)
        with replacing(path) as partial:
            partial.write_bytes(buffer.getbuffer())
    for file, text in beside.items():
        write_text(file, text)


def _warn_of_loss(path: Path, to: str, metadata: Mapping[str, Any]) -> None:
    lost = ["class names"] if to == "official" and metadata.get("classes") else []
    if metadata.get("thresholds"):
        lost.append("thresholds of a multi-label network")
    own = {} if to == "hf" else metadata.get("preprocessing") or {}
    stated = json.loads(json.dumps(own))  # in which tuples are lists
    other = [f"{name} {value}" for name, value in stated.items() if value != PUBLISHED.get(name)]
    if other:
        lost.append(f"preprocessing ({', '.join(other)})")
    if lost:
        logger.warning("%s: %s files have no place for %s: keep a note beside it", path, to, " and ".join(lost))


def load_checkpoint(
    model: nn.Module, source: str | PathLike[str] | Checkpoint, weights: Weights | None = None
) -> Checkpoint:
    """Load a checkpoint file of any public format into a VAN; its preprocessing goes into timm's `pretrained_cfg`.

    A head with another number of classes is left as the model has it, and a first convolution for another number of
    channels is adapted as timm does; both are logged as warnings (the head only where the model has one), and so are
    weights that fit but are of an attention with other settings.

    Args:
        model: a `vankit.VAN`; one on PyTorch's device meta gets copies of the file's tensors, in its own types.
        source: a path, see `read_checkpoint`, or what it returned.
        weights: see `read_checkpoint`.

    Returns:
        The checkpoint, with its metadata.

    Raises:
        FileNotFoundError, ValueError: see `read_checkpoint`; or the file holds another variant, or numbers that
            are not finite.
    """
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source, weights)
    path = checkpoint.path
    check_finite(checkpoint.state_dict, path)
    own = model.state_dict()
    empty = any(tensor.is_meta for tensor in own.values())
    tensors = dict(checkpoint.state_dict)
    head, stem = "head.fc.weight", "stage1.patch_embed.proj.weight"
    rows = own[head].shape[0] if head in own else 0
    if rows != checkpoint.num_classes:
        found = f"{checkpoint.num_classes} classes and the model {rows}" if checkpoint.num_classes else "no head"
        logger.log(
            logging.WARNING if rows else logging.INFO,  # a model without a head was asked for
            "%s has %s: loaded the backbone only, the model's head is unchanged", path, found,
        )  # fmt: skip
        for name in (head, "head.fc.bias"):
            tensors.pop(name, None)
            if name in own:
                tensors[name] = own[name]
    if stem in own and tensors[stem].dim() == 4 and own[stem].shape[1] != tensors[stem].shape[1]:
        chans = own[stem].shape[1]
        logger.warning("%s takes %d channels, the model %d: adapted the first convolution",
                       path, tensors[stem].shape[1], chans)  # fmt: skip
        tensors[stem] = adapt_input_conv(chans, tensors[stem], base_chans=tensors[stem].shape[1])
    settings, theirs = getattr(model, "lka", None), checkpoint.metadata.get("lka") or {}
    other = settings is not None and settings != theirs
    try:
        if stem in own:
            _check_same_sizes(own, tensors)
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
    if empty:  # copied, since safetensors only maps the file, which may change
        tensors = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(tensors, assign=empty)
    stated = checkpoint.metadata.get("preprocessing") or {}
    if isinstance(cfg := getattr(model, "pretrained_cfg", None), dict):  # as timm describes it
        cfg.update({name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()})
    return checkpoint


def for_training(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint to start training from, which normalises images by a mean and standard deviation of 0.5.

    The first convolution of weights that state others is adapted, with a warning.
    """
    stated = checkpoint.metadata.get("preprocessing") or {}
    mean, std = (list(stated.get(name, PUBLISHED[name])) for name in ("mean", "std"))
    half = {"mean": PUBLISHED["mean"], "std": PUBLISHED["std"]}
    of_three = checkpoint.state_dict["stage1.patch_embed.proj.weight"].shape[1:2] == (len(mean),)
    if {"mean": mean, "std": std} == half or not of_three:
        return checkpoint
    logger.warning(
        "%s was trained at mean %s and std %s, and training here normalises by 0.5: adapted its first convolution",
        checkpoint.path, mean, std,
    )  # fmt: skip
    tensors = from_normalisation(checkpoint.state_dict, mean, std)
    return replace(
        checkpoint, state_dict=tensors, metadata={**checkpoint.metadata, "preprocessing": {**stated, **half}}
    )


def _check_same_sizes(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    theirs, ours = sizes_of(tensors), sizes_of(own)
    if theirs != ours:
        shown = [
            f"widths {', '.join(map(str, a['embed_dims']))}, depths {', '.join(map(str, a['depths']))} and MLP ratios "
            f"{', '.join(map(str, a['mlp_ratios']))}"
            for a in (theirs, ours)
        ]
        raise UserError(f"it holds another variant, a VAN of {shown[0]}; the model has {shown[1]}")
