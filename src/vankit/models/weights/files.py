"""Files of named tensors, read as data: no code in a file is run."""

import argparse
import json
import pickle
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.models import clean_state_dict
from torch import Tensor

from vankit.errors import MissingFileError, UserError
from vankit.files import replacing

_SAFE_GLOBALS = threading.Lock()  # torch keeps its list for the whole process


@dataclass(frozen=True)
class TensorFile:
    """A file of named tensors, of whatever network.

    Attributes:
        path: the file.
        tensors: as they are called in it.
        metadata: what a vankit file says of itself, see `Checkpoint`; empty for others.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def read_tensors(path: str | PathLike[str]) -> TensorFile:
    """The named tensors of a file; see `read_checkpoint`."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"no checkpoint at {path}: pass the path of a .safetensors, .pth, .pth.tar or .bin file")
    try:
        if _is_safetensors(path):
            with safetensors.safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return TensorFile(path, tensors, _metadata_of(file))
        with _SAFE_GLOBALS, torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises weights_only=False, which would run the code
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if not unsafe:
            raise UserError(f"{path} is not a readable checkpoint: neither safetensors nor a PyTorch file") from None
        raise UserError(
            f"{path} was refused: it holds pickled objects in addition to tensors, which could run code when loaded. "
            f"Expected tensors and plain values; ask its author for a safetensors file. Found: {unsafe[1]}"
        ) from None
    except Exception as error:
        reason = str(error).partition(". This is an internal miniz error")[0] or type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint (truncated download?): {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict: expected named tensors, at the top or under 'state_dict'")
    return TensorFile(path, clean_state_dict(dict(content)), {})


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON header


def read_metadata(path: str | PathLike[str]) -> dict[str, Any]:
    """What a vankit file says of itself (see `Checkpoint.metadata`), without reading its tensors; empty for others."""
    if not Path(path).is_file() or not _is_safetensors(Path(path)):
        return {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            return _metadata_of(file)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a readable checkpoint (truncated download?): {error}") from None


def _metadata_of(file: Any) -> dict[str, Any]:
    metadata = {key: _parse(value) for key, value in (file.metadata() or {}).items()}
    metadata.pop("format", None)  # safetensors' own word for PyTorch, not the writer's
    return metadata


def _parse(value: str) -> Any:
    """vankit stores lists and dicts in safetensors' string-only metadata as JSON; other writers store plain text."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def write_tensors(tensors: Mapping[str, Tensor], path: str | PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Write named tensors as a vankit file (safetensors), replacing `path` only once the new file is complete.

    Args:
        tensors: under the names that are stored.
        path: output file.
        metadata: JSON-able values by name.
    """
    header = {key: json.dumps(value) for key, value in metadata.items()}
    with replacing(path) as partial:
        partial.write_bytes(safetensors.torch.save(stored(tensors), {**header, "format": "pt"}))


def check_finite(tensors: Mapping[str, Tensor], path: str | PathLike[str]) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        tensors: by name; those of integers pass.
        path: of their file.

    Raises:
        ValueError: a number is not finite; the first tensors are named.
    """
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise UserError(
            f"{path} has NaN or infinite numbers in {len(bad)} of its {len(tensors)} tensors, such as "
            f"{', '.join(bad[:3])}: its training went wrong, or the file is damaged; use other weights"
        )


def stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if place in seen else tensor  # safetensors refuses shared memory
        seen.add(place)
    return stored
