"""Where a checkpoint is, and what its first bytes say of it, without PyTorch."""

from contextlib import suppress
from os import PathLike
from pathlib import Path

import safetensors

from vankit.errors import MissingFileError, UserError
from vankit.files import open_file

BESIDE = ("config.json", "preprocessor_config.json")  # what is read beside a checkpoint, see `vankit.models.weights`
_USUAL_NAMES = ("best.safetensors", "model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt")


def file_in(path: Path) -> Path:
    """A checkpoint itself, or the one in a folder: a run's, transformers' or timm's, or the only one.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the folder has several, and none has one of the usual names.
    """
    if path.exists() and not path.is_dir():
        return path
    if not path.is_dir():
        raise MissingFileError(f"no checkpoint at {path}: pass the path of a .safetensors, .pth, .pth.tar or .bin file")
    if usual := next((path / name for name in _USUAL_NAMES if (path / name).is_file()), None):
        return usual
    files = [each for each in sorted(path.iterdir()) if _may_be_one(each)]
    if (path / "export.json").is_file():
        raise UserError(f"{path} is an exported folder, not a checkpoint: pass it as the model (--model)")
    if not files:
        raise MissingFileError(f"no checkpoint in the folder {path}: expected {', '.join(_USUAL_NAMES)}, or one file")
    if index := next((each for kind in ("safetensors", "bin") for each in path.glob(f"*.{kind}.index.json")), None):
        raise UserError(f"{path} has a checkpoint in pieces ({index.name}): save it in one file")
    if len(files) > 1:
        names = ", ".join([*(each.name for each in files[:4]), *(["…"] if len(files) > 4 else [])])
        raise UserError(f"the folder {path} has {len(files)} checkpoints ({names}): pass the path of one of them")
    return files[0]


def _may_be_one(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(_SUFFIXES)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as those of safetensors do."""
    with open_file(path) as file:
        return file.read(9)[8:] == b"{"  # eight bytes of length, then a JSON header


def names_head(path: str | PathLike[str]) -> bool:
    """Whether a vankit file names a head, as those of detectors and segmenters do; the rest of it is not looked at."""
    if not is_safetensors(Path(path)):
        return False
    with suppress(safetensors.SafetensorError), safetensors.safe_open(path, "np") as file:
        return "head" in (file.metadata() or {})
    return False  # what is wrong with it is said when it is opened
