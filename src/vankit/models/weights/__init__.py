"""The public checkpoint formats of VAN: name tables between them, and reading and writing their files.

Formats: `vankit` (this package, safetensors), `official` (Visual-Attention-Network/VAN-Classification, `.pth.tar`),
`mmpretrain` (OpenMMLab MMPretrain, `.pth`) and `hf` (transformers' VanForImageClassification up to 4.57, `.bin` or
safetensors). Which one a file holds is detected from its content.

`pickles` reads PyTorch's files as data; `candidates` finds the VAN in what was read; `formats` knows the names;
`beside` what is said of classes and preprocessing; `files` puts these together, and `checkpoints` loads and converts.
"""

from vankit.models.locate import file_in
from vankit.models.weights.beside import PUBLISHED, label_names
from vankit.models.weights.checkpoints import (
    Checkpoint,
    checkpoint_of,
    for_training,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
    write_checkpoint,
)
from vankit.models.weights.files import (
    TensorFile,
    read_metadata,
    read_tensors,
    tensor_bytes,
    write_tensors,
)
from vankit.models.weights.formats import (
    FORMATS,
    Place,
    block_counts,
    from_normalisation,
    name_table,
    places,
    rename,
    sizes_of,
    van_at,
)

__all__ = [
    "FORMATS",
    "PUBLISHED",
    "Checkpoint",
    "Place",
    "TensorFile",
    "block_counts",
    "checkpoint_of",
    "file_in",
    "for_training",
    "from_normalisation",
    "label_names",
    "load_checkpoint",
    "name_table",
    "places",
    "read_checkpoint",
    "read_metadata",
    "read_tensors",
    "rename",
    "save_checkpoint",
    "sizes_of",
    "tensor_bytes",
    "van_at",
    "write_checkpoint",
    "write_tensors",
]
