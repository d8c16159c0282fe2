"""`vankit convert`: checkpoints from format to format."""

from pathlib import Path
from typing import Literal

from vankit.cli.terminal import say
from vankit.models.description import Weights


def command(
    source: Path,
    target: Path,
    /,
    *,
    to: Literal["vankit", "official", "mmpretrain", "hf"] = "vankit",
    weights: Weights | None = None,
) -> None:
    """Convert a checkpoint between the public formats; the tensors stay bit-exact.

    Args:
        source: checkpoint in any of the formats, which is detected from the file. From the checkpoint of a detector or
            segmenter the backbone is converted; from one of mmsegmentation, to vankit, the whole network.
        target: file to write.
        to: vankit (safetensors), official (VAN-Classification), mmpretrain, or hf (transformers). For hf the target may
            be a folder; config.json and preprocessor_config.json are written beside the weights.
        weights: of a checkpoint: raw, or ema for their moving average. Default: the average where there are both.
    """
    from vankit.deploy.convert import convert as run

    found = run(source, target, to, weights)
    say(f"{source} ({found}) → {target} ({to})")
