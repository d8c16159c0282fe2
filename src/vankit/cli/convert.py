"""`vankit convert`: checkpoints from format to format."""

from pathlib import Path
from typing import Literal


def command(source: Path, target: Path, /, *, to: Literal["vankit", "official", "mmpretrain", "hf"] = "vankit") -> None:
    """Convert a checkpoint between the public formats; the tensors stay bit-exact.

    Args:
        source: checkpoint in any of the formats, which is detected from the file. From the checkpoint of a detector or
            segmenter the backbone is converted.
        target: file to write.
        to: vankit (safetensors), official (VAN-Classification), mmpretrain, or hf (transformers). For hf a target that
            ends in .safetensors is written as safetensors, any other as a pickle of tensors.
    """
    from vankit.models.weights import convert as run

    found = run(source, target, to)
    print(f"{source} ({found}) → {target} ({to})")
