"""The public checkpoint formats of VAN: name tables between them, and reading and writing their files.

Formats: `vankit` (this package, safetensors), `official` (Visual-Attention-Network/VAN-Classification, `.pth.tar`),
`mmpretrain` (OpenMMLab MMPretrain, `.pth`) and `hf` (transformers' VanForImageClassification up to 4.57, `.bin` or
safetensors). Which one a file holds is detected from its content.
"""

from vankit.models.weights.checkpoints import (
    Checkpoint,
    checkpoint_of,
    convert,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from vankit.models.weights.files import TensorFile, read_metadata, read_tensors, write_tensors
from vankit.models.weights.formats import FORMATS, block_counts, identify, name_table, rename, van_inside

__all__ = [
    "FORMATS",
    "Checkpoint",
    "TensorFile",
    "block_counts",
    "checkpoint_of",
    "convert",
    "identify",
    "load_checkpoint",
    "name_table",
    "read_checkpoint",
    "read_metadata",
    "read_tensors",
    "rename",
    "save_checkpoint",
    "van_inside",
    "write_checkpoint",
    "write_tensors",
]
