"""Checkpoints from format to format: of classifiers, and segmenters of mmseg to vankit."""

import logging
from os import PathLike
from pathlib import Path

from vankit.errors import UserError
from vankit.files import check_file, check_named, is_stream
from vankit.heads.checkpoints import mmseg_head, network_in_file
from vankit.models.description import Weights
from vankit.models.locate import file_in
from vankit.models.weights import checkpoint_of, read_tensors, write_checkpoint, write_tensors
from vankit.models.weights.files import not_finite

logger = logging.getLogger(__name__)


def convert(
    source: str | PathLike[str], target: str | PathLike[str], to: str = "vankit", weights: Weights | None = None
) -> str:
    """Convert a checkpoint file between the public formats; tensors stay bit-exact.

    Of a detector or segmenter the VAN inside is converted. A Semantic FPN or UperNet of mmsegmentation becomes a whole
    segmenter in vankit's own format. The first convolution of mmsegmentation's networks is adapted from their
    normalisation to the mean and standard deviation of 0.5 that all these formats expect.

    Args:
        source: any file that `vankit.read_checkpoint` reads.
        target: output file; for `hf` also a folder, which gets model.safetensors.
        to: vankit, official, mmpretrain or hf.
        weights: raw, or ema for their moving average; None takes the average where the file holds both.

    Returns:
        What `source` is: vankit, official, mmpretrain, hf or mmseg.

    Raises:
        ValueError: `target` is `source`, or its suffix is that of another kind of file.
        FileNotFoundError, ValueError: see `vankit.read_checkpoint`, `vankit.models.weights.write_checkpoint` and
            `vankit.files.check_file`.
        ImportError: a segmenter's head needs transformers.
    """
    check_named(source=source, target=target)
    _check_target(Path(source), Path(target), to)
    file = read_tensors(source, weights)
    if to == "vankit" and mmseg_head(file):
        network, description = network_in_file(file)
        write_tensors(network.state_dict(), target, description.to_metadata())
        return "mmseg"
    checkpoint = checkpoint_of(file)
    if bad := not_finite(checkpoint.state_dict):
        logger.warning(
            "%s has NaN or infinite numbers in %d of its %d tensors, such as %s: converted, but vankit will not use it",
            source, len(bad), len(checkpoint.state_dict), bad[0],
        )  # fmt: skip
    write_checkpoint(checkpoint.state_dict, target, to, checkpoint.metadata)
    return checkpoint.format


_PICKLES = (".pth", ".pt", ".tar", ".bin", ".ckpt")
_SUFFIXES = {"vankit": (".safetensors",), "hf": (".safetensors", *_PICKLES)}


def _check_target(source: Path, target: Path, to: str) -> None:
    """Refuse, before the source is read, a target that would be something else than its name says."""
    if to != "hf" or not target.is_dir():
        check_file(target)
    if to == "hf" and (target.is_dir() or not (target.suffix or target.exists())):
        target /= "model.safetensors"
    given, known = target.suffix.lower(), _SUFFIXES.get(to, _PICKLES)
    if given not in known and not is_stream(target):
        kind = "safetensors" if to == "vankit" else "pickles of tensors"
        raise UserError(f"{target}: {to} files are {kind}: expected a name that ends in {' or '.join(known)}")
    if target.exists() and target.samefile(file_in(source)):
        raise UserError(f"{target} is what is to be converted: name another file to write")
