"""`vankit convert`: checkpoints from format to format."""

from pathlib import Path
from typing import Literal


def command(source: Path, target: Path, /, *, to: Literal["vankit", "official", "mmpretrain", "hf"] = "vankit") -> None:
    """Convert a checkpoint between the public formats; the tensors stay bit-exact.

    Args:
        source: checkpoint of any of the formats; which one is found out from the file. Of a detector or segmenter the
            backbone is converted.
        target: file to write.
        to: vankit (safetensors), official (VAN-Classification), mmpretrain, or hf (transformers; a name that ends in
            .safetensors gives safetensors, any other a pickle of tensors).
    """
    from vankit.models.weights import convert as run

    found = run(source, target, to)
    print(f"{source} ({found}) → {target} ({to})")
