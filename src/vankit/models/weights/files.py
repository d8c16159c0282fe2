"""Files of named tensors, read as data: no code in a file is run."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from vankit.errors import UserError
from vankit.files import open_file, read_json, reading, replacing, to_json, writing
from vankit.models.description import Description, Weights, check_metadata
from vankit.models.locate import file_in, is_safetensors
from vankit.models.weights.beside import stated
from vankit.models.weights.candidates import find_van
from vankit.models.weights.formats import Place
from vankit.models.weights.pickles import PickleFile, Planted, Unreadable, open_pickle

logger = logging.getLogger(__name__)

_EXPECTED = ".safetensors, or a file of torch.save"
_TRAINED = "model."  # what Lightning has before the names of the network in training
_MMSEG = ("decode_head.", "auxiliary_head.")
_KINDS: dict[str, Any] = {"model": str, "lka": dict, "classes": list, "preprocessing": dict, "thresholds": list}
_LONGEST = 2**24  # characters of a value, such as the names of very many classes


@dataclass(frozen=True)
class TensorFile:
    """A file of named tensors, of a network that is a VAN or has one inside.

    Attributes:
        path: the file.
        tensors: as they are called in it.
        place: where among them the VAN is.
        metadata: what the file, or a JSON file beside it, says of the network, see `Checkpoint`.
        normalisation: (mean, std) of the images of a foreign segmenter; None of any other file.
    """

    path: Path
    tensors: dict[str, Tensor] = field(repr=False)
    place: Place
    metadata: dict[str, Any]
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None


def read_tensors(path: str | PathLike[str], weights: Weights | None = None) -> TensorFile:
    """The tensors of the network in a file; see `read_checkpoint`."""
    path = file_in(Path(path))
    with reading(path):
        file = _read(path, weights)
        check_metadata(file.metadata)
    return file


def _read(path: Path, weights: Weights | None) -> TensorFile:
    try:
        if is_safetensors(path):
            with safetensors.safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                found = find_van(tensors, weights, path)
                metadata = _metadata_of(file)
                if not metadata.keys() & {*_KINDS, "head"}:  # not of vankit
                    metadata |= stated(path, {}, found.place.format)
                return TensorFile(path, dict(found.tensors), found.place, metadata)
        with open_pickle(path) as file:
            return _of_pickle(path, file, weights)
    except UserError:
        raise
    except Planted as error:
        raise UserError(
            f"{path} was refused: it holds pickled objects in addition to tensors, which could run code when loaded. "
            f"Expected tensors and plain values; ask its author for a safetensors file. Found: {error}"
        ) from None
    except (Unreadable, safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} {_no_checkpoint(path, error)}") from None


def _no_checkpoint(path: Path, error: Exception) -> str:
    """What a file that is no checkpoint often is, by its first bytes."""
    with open_file(path) as file:
        start = file.read(100)
    if not start:
        return f"is empty: expected {_EXPECTED}"
    if start.startswith(b"version https://git-lfs"):
        return "is not a checkpoint, but a pointer of git-lfs: run git lfs pull"
    if start.lstrip().startswith(b"<"):
        return "is not a checkpoint, but a web page: download the file itself"
    if start.startswith((b"PK", b"\x80")) or start[8:9] == b"{":
        return f"is truncated or damaged, or not a checkpoint: {error}"
    return f"is not a checkpoint: expected {_EXPECTED}"


def _of_pickle(path: Path, file: PickleFile, weights: Weights | None) -> TensorFile:
    found = find_van(file.content, weights, path)
    if file.foreign:
        more = ", …" if len(file.foreign) > 4 else ""
        logger.warning(
            "%s also holds objects of %s%s: passed over, none of their code was run",
            path, ", ".join(file.foreign[:4]), more,
        )  # fmt: skip
    tensors = {name: file.tensor(tensor) for name, tensor in found.tensors.items()}
    lightning = isinstance(file.content, Mapping) and "pytorch-lightning_version" in file.content
    run = _run_beside(path) if lightning else {}
    if run and found.place.prefix.startswith(_TRAINED):
        tensors = {name.removeprefix(_TRAINED): tensor for name, tensor in tensors.items()}
        place = Place(found.place.format, found.place.prefix.removeprefix(_TRAINED))
        return TensorFile(path, tensors, place, run)
    metadata, normalisation = stated(path, file.content, found.place.format), None
    if any(name.removeprefix(found.place.outer).startswith(_MMSEG) for name in tensors):
        settings = metadata.get("preprocessing", {})
        normalisation = settings.get("mean", IMAGENET_DEFAULT_MEAN), settings.get("std", IMAGENET_DEFAULT_STD)
    return TensorFile(path, tensors, found.place, metadata, normalisation)


def _run_beside(path: Path) -> dict[str, Any]:
    """What vankit's training wrote of the run whose state this file is, without the run's settings."""
    record = path.with_name("config.json")
    content = read_json(record) if record.is_file() else {}
    ours = {"data", "task", "model", "classes"} <= set(content)
    said = {f.name: content[f.name] for f in fields(Description) if f.name in content} if ours else {}
    with reading(record):
        check_metadata(said)
    return said


def read_metadata(path: str | PathLike[str]) -> dict[str, Any]:
    """What a vankit file says of itself (see `Checkpoint.metadata`), without reading its tensors; empty for others."""
    if not Path(path).is_file() or not is_safetensors(Path(path)):
        return {}
    try:
        with reading(path), safetensors.safe_open(path, "pt") as file:
            metadata = _metadata_of(file)
            check_metadata(metadata)
            return metadata
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is truncated or damaged: {error}") from None


def _metadata_of(file: Any) -> dict[str, Any]:
    metadata = {key: _parse(value) for key, value in (file.metadata() or {}).items()}
    metadata.pop("format", None)  # safetensors' own word for PyTorch, not the writer's
    foreign = [key for key, kind in _KINDS.items() if not isinstance(metadata.get(key), kind | None)]
    for key, kind in (("classes", str), ("thresholds", int | float)):
        values = metadata.get(key)
        if isinstance(values, list) and not all(isinstance(value, kind) for value in values):
            foreign.append(key)
    if foreign:
        logger.warning("a checkpoint's %s were not written by vankit: passed over", ", ".join(foreign))
    return {key: value for key, value in metadata.items() if key not in foreign}


def _parse(value: str) -> Any:
    """vankit stores lists and dicts in safetensors' string-only metadata as JSON; other writers store plain text."""
    try:
        return json.loads(value) if len(value) <= _LONGEST else value
    except (ValueError, RecursionError):
        return value


def write_tensors(tensors: Mapping[str, Tensor], path: str | PathLike[str], metadata: Mapping[str, Any]) -> None:
    """Write named tensors as a vankit file (safetensors), replacing `path` only once the new file is complete.

    Args:
        tensors: under the names that are stored.
        path: output file.
        metadata: JSON-able values by name.
    """
    with replacing(path) as partial, writing(path):
        partial.write_bytes(tensor_bytes(tensors, metadata))


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The content of a vankit file, see `write_tensors`; of the same tensors and metadata the same bytes."""
    said = {key: to_json(value, indent=None) for key, value in metadata.items()}
    return _in_order(safetensors.torch.save(stored(tensors), {**said, "format": "pt"}))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted, which the library writes in another order each time."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format has the numbers begin at a multiple of 8
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(content)[end:]))


def check_finite(tensors: Mapping[str, Tensor], path: str | PathLike[str]) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        tensors: by name; those of integers pass.
        path: of their file.

    Raises:
        ValueError: a number is not finite; the first tensors are named.
    """
    if bad := not_finite(tensors):
        raise UserError(
            f"{path} has NaN or infinite numbers in {len(bad)} of its {len(tensors)} tensors, such as "
            f"{', '.join(bad[:3])}: its training went wrong, or the file is damaged; use other weights"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors in which a number is NaN or infinite."""
    # float8 has no isfinite of its own
    wide = {name: tensor.float() if "float8" in str(tensor.dtype) else tensor for name, tensor in tensors.items()}
    return [name for name, tensor in wide.items() if not torch.isfinite(tensor).all()]


def stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        stored[name] = tensor.clone() if place in seen else tensor  # safetensors refuses shared memory
        seen.add(place)
    return stored
