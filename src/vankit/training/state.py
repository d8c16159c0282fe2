"""The state to resume as a file."""

import io
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from vankit.files import replacing, writing


class WholeState(TorchCheckpointIO):
    """Writes a state whole or not at all, in the folder where it stays.

    Lightning's own way leads through the folder for temporary files, which may be too small for it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()  # into a file, torch.save turns the system's error into one of its own
        torch.save(checkpoint, content)
        with replacing(path) as partial, writing(path):
            partial.write_bytes(content.getbuffer())
