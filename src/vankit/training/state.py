"""The state to resume, as a file; and the weights, whose files are written together with it and could be from it."""

import hashlib
import io
import json
import logging
import os
import pickle
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeGuard

import safetensors.torch
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError
from torch import Tensor

from vankit.errors import MissingFileError, UserError
from vankit.files import replacing, sha256_of, writing
from vankit.models.weights import read_metadata, tensor_bytes, write_tensors

logger = logging.getLogger(__name__)

STATE, PREVIOUS = "resume.ckpt", "resume-previous.ckpt"

# as Lightning's Trainer makes it; `KeepWeights` adds `weights` and `place`, and `StateFile` the SHA-256 of the weights'
# files as they are once the state is written, by name, those from an earlier state included
State = dict[str, Any]

_PARTS = {"state_dict": Mapping, "loops": dict, "callbacks": dict, "optimizer_states": list}
_PLACE = ("epoch", "batch", "images", "processes")
# how PyTorch, pickle and zipfile refuse what is not whole
_DAMAGE = (
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, LookupError, ValueError, TypeError,
    AttributeError, AssertionError,
)  # fmt: skip


class StateFile(TorchCheckpointIO):
    """Writes a state and the weights that go with it: all of them, or none.

    They are whole and on the disk, in the folder where they stay, before the first takes its place: Lightning's own way
    leads through the folder for temporary files, which may be too small, or on another disk. The state before is kept
    until the next one, or the end of the run.

    Args:
        state: to resume from, see `read_state`.
        whole: whether the file that the next state replaces is to be kept.
    """

    def __init__(self, state: State | None = None, whole: bool = True) -> None:
        self._state, self._whole = state, whole
        self._sha256 = dict(hashes_in(state or {}))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> State:
        assert self._state is not None
        state = dict(self._state)
        self._state.clear()  # it takes three times the memory of the weights, and others hold it still
        return state

    def save_checkpoint(self, checkpoint: State, path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        weights = _bytes_of(checkpoint)
        names = names_in(checkpoint)
        if names:
            self._sha256 |= dict.fromkeys(names, hashlib.sha256(weights).hexdigest())
        if "weights" in checkpoint:
            checkpoint["weights"]["sha256"] = dict(self._sha256)
        content = io.BytesIO()  # into a file, torch.save turns the system's error into one of its own
        torch.save(checkpoint, content)
        with ExitStack() as files:
            for target in (path.with_name(f"{name}.safetensors") for name in names):
                _write(weights, files.enter_context(replacing(target, make_folder=False)), target)
            _write(content.getbuffer(), files.enter_context(replacing(path, make_folder=False)), path)
            if self._whole:
                with writing(path):
                    _keep(path)
        self._whole = True
        with writing(path):
            _sync(path.parent)


def _write(content: bytes | memoryview, partial: Path, target: Path) -> None:
    with writing(target), partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _keep(path: Path) -> None:
    """A state under a second name, which stays when the first is that of the next state."""
    if path.is_file():
        previous = path.with_name(PREVIOUS)
        previous.unlink(missing_ok=True)
        try:
            os.link(path, previous)
        except OSError:  # some disks have no links
            path.replace(previous)


def _sync(folder: Path) -> None:
    """Have the disk know of names, too."""
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        with suppress(OSError):  # some file systems cannot, or need not
            os.fsync(descriptor)
        os.close(descriptor)


def names_in(state: State) -> tuple[str, ...]:
    """The weights files that are written with a state, last the one of the last epoch: best, last.

    There are none within an epoch, and what an early version wrote does not name them.
    """
    return tuple(state["weights"]["names"]) if "weights" in state else ()


def hashes_in(state: State) -> Mapping[str, str]:
    """What the weights files of a run are when a state is the last, as SHA-256 by name; earlier versions do not say."""
    return state["weights"].get("sha256", {}) if "weights" in state else {}


def _weights_in(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Content and metadata of the weights that go with a state."""
    tensors = {key.removeprefix("model."): tensor for key, tensor in state["state_dict"].items()}
    return tensors, json.loads(json.dumps(state["weights"]["metadata"]))


def _bytes_of(state: State) -> bytes:
    """The file of the weights that go with a state; none within an epoch."""
    return tensor_bytes(*_weights_in(state)) if names_in(state) else b""


def restore_weights(state: State, out: Path) -> None:
    """Write the weights files that go with a state where they are not there, damaged, or those of another state."""
    for name in names_in(state):
        path = out / f"{name}.safetensors"
        tensors, metadata = _weights_in(state)
        if not _holds(path, tensors, metadata):
            logger.warning("%s is missing, damaged or not of the state to resume: written anew from that", path)
            write_tensors(tensors, path, metadata)
        state["weights"].setdefault("sha256", {})[name] = sha256_of(path)  # other bytes may hold the same


def _holds(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bool:
    try:
        found, says = safetensors.torch.load_file(path), read_metadata(path)
    except (OSError, SafetensorError, UserError):
        return False
    same = says == metadata and found.keys() == tensors.keys()
    return same and all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def read_state(out: Path) -> tuple[State, bool]:
    """The state of the run in a folder; where it cannot be read, the one before it, with a warning.

    Nothing in the file is run: it is read as data.

    Returns:
        The state, and whether it is the last one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be read, nor the one before it.
    """
    state, previous = out / STATE, out / PREVIOUS
    if not state.is_file() and not previous.is_file():
        start = "leave out --resume to start a run"
        raise MissingFileError(f"nothing to resume in {out}: expected {state}; {start}{_or_from_last(out)}")
    anew = f"choose another folder (--output) to start anew{_or_from_last(out)}"
    try:
        return _read(state), True
    except UserError as problem:
        if not previous.is_file():
            raise UserError(f"{problem}: {anew}") from None
        try:
            earlier = _read(previous)
        except UserError as other:
            raise UserError(f"{problem}, and {other}: {anew}") from None
        logger.warning("%s: the run goes on from the state before it, %s", problem, previous)
        return earlier, False


def _or_from_last(out: Path) -> str:
    """What is left of a run whose state is not."""
    last = out / "last.safetensors"
    return f", there from its last weights with --checkpoint {last}" if last.is_file() else ""


def _read(path: Path) -> State:
    try:
        with zipfile.ZipFile(path) as file:
            whole = file.testzip() is None
        state = torch.load(path, map_location="cpu", weights_only=True) if whole else None
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than data, of which nothing was run: it is damaged, or not ours") from None
    except _DAMAGE:
        raise UserError(f"{path} is damaged") from None
    if not whole or not _is_state(state):
        raise UserError(f"{path} is damaged" if not whole else f"{path} is not the state of a run")
    return state


def _is_state(state: Any) -> TypeGuard[State]:
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in _PARTS.items()):
        return False
    kept, place = state["callbacks"].get("KeepWeights"), state.get("place", dict.fromkeys(_PLACE, 0))
    weights = state.get("weights", {"names": (), "metadata": {}})
    return (
        isinstance(kept, dict)
        and isinstance(kept.get("best"), float)
        and isinstance(kept.get("measure"), str)
        and isinstance(weights, dict)
        and isinstance(weights.get("metadata"), dict)
        and isinstance(weights.get("names"), list | tuple)
        and all(name in ("best", "last") for name in weights["names"])  # which are names of files
        and isinstance(weights.get("sha256", {}), dict)
        and isinstance(state["loops"].get("fit_loop"), dict)
        and isinstance(place, dict)
        and all(isinstance(place.get(name), int) for name in _PLACE)
    )


def place_of(state: State) -> tuple[int, int]:
    """How many epochs a state has behind it, and how many batches of the one that follows."""
    if "place" in state:
        return state["place"]["epoch"], state["place"]["batch"]
    return state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"], 0  # of an early version


def within_epoch(state: State) -> bool:
    """Whether a state is of an epoch that is to be trained on."""
    return "weights" in state and not state["weights"]["names"]
