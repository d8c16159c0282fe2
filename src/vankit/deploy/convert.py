"""Checkpoints from format to format: of classifiers, and segmenters of mmseg to vankit."""

from os import PathLike

from vankit.heads.checkpoints import is_dense, network_in_file
from vankit.models.description import Weights
from vankit.models.weights import checkpoint_of, read_tensors, write_checkpoint, write_tensors


def convert(
    source: str | PathLike[str], target: str | PathLike[str], to: str = "vankit", weights: Weights | None = None
) -> str:
    """Convert a checkpoint file between the public formats; tensors stay bit-exact.

    Of a detector or segmenter the VAN inside is converted. A segmenter of mmsegmentation becomes a whole segmenter in
    vankit's own format, and there its first convolution is adapted to vankit's normalisation.

    Args:
        source: any file that `vankit.read_checkpoint` reads.
        target: output file; for `hf` also a folder, which gets model.safetensors.
        to: vankit, official, mmpretrain or hf.
        weights: raw, or ema for their moving average; None takes the average where the file holds both.

    Returns:
        What `source` is: vankit, official, mmpretrain, hf or mmseg.

    Raises:
        FileNotFoundError, ValueError: see `vankit.read_checkpoint` and `vankit.models.weights.write_checkpoint`.
        ImportError: a segmenter's head needs transformers.
    """
    file = read_tensors(source, weights)
    if to == "vankit" and is_dense(file) and "head" not in file.metadata:
        network, description = network_in_file(file)
        write_tensors(network.state_dict(), target, description.to_metadata())
        return "mmseg"
    checkpoint = checkpoint_of(file)
    write_checkpoint(checkpoint.state_dict, target, to, checkpoint.metadata)
    return checkpoint.format
