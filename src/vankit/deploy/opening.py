"""The one place that detects what a name, a file or a folder is, and opens the network in it."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vankit.deploy.folder import Exported, is_exported, read_exported
from vankit.deploy.remembered import Entry, Remembered
from vankit.engines.base import CLASS_MAPS
from vankit.engines.cache import source_code, versions
from vankit.engines.choose import network_key, on_torch
from vankit.errors import UserError
from vankit.files import check_named
from vankit.models.description import Description, Weights
from vankit.models.locate import file_in, names_head

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """A network that was found.

    Attributes:
        description: what it is.
        source: what it was found by, for messages.
        network: of PyTorch, in eval mode; None if it is not open.
        exported: the folder, or None.
        remembered: what an earlier start knew of it, or None.
        own: whether it was opened by a name or file, so that its type and weights tell it from all others.
    """

    description: Description
    source: str
    network: "nn.Module | None" = None
    exported: Exported | None = None
    remembered: Remembered | None = None
    own: bool = False

    @property
    def module(self) -> "nn.Module | None":
        """Of PyTorch, in eval mode, opened now if it was remembered; None of an exported folder."""
        return self.network if self.remembered is None else self.remembered.module

    @property
    def dense(self) -> bool:
        """Whether it is a detector or segmenter."""
        return self.description.task != "classify"

    @property
    def class_maps(self) -> bool:
        """Whether what runs it can give `CLASS_MAPS`, see `vankit.models.class_maps`."""
        if self.exported is not None:
            return CLASS_MAPS in self.exported.outputs
        if self.remembered is not None and not self.remembered.is_open:
            return self.remembered.class_maps
        from vankit.models.class_maps import has_class_maps

        return self.module is not None and has_class_maps(self.module)

    def check_class_maps(self) -> None:
        """
        Raises:
            ValueError: it cannot.
        """
        if not self.class_maps:
            of_folder = (
                ", exported to openvino or onnx by this version or a later one: export it again, or pass the model or "
                "its checkpoint"
            )
            raise UserError(
                f"{self.source} gives no class maps: expected a VAN with a head{of_folder if self.exported else ''}"
            )

    @property
    def key(self) -> bytes:
        """Of what is compiled of it, see `vankit.engines.choose.network_key`; of a detector or segmenter as a whole."""
        if self.remembered is not None and not self.remembered.is_open:
            return self.remembered.key
        assert self.module is not None
        if not self.dense:
            assert self.description.preprocessing is not None
            return network_key(self.module, self.description.preprocessing.input_size)
        about = self.description.to_metadata(), versions("torchvision", "transformers"), source_code("**/*.py")
        return hashlib.sha256(network_key(self.module, ()) + repr(about).encode()).digest()

    def __getstate__(self) -> dict[str, Any]:
        if self.module is None:
            return vars(self)
        from vankit.models.portable import Portable

        return vars(self) | {"network": Portable(self.module), "remembered": None}


def open_network(
    model: "str | PathLike[str] | nn.Module | Network | None" = None,
    checkpoint: str | PathLike[str] | None = None,
    pretrained: bool = True,
    classes: Sequence[str] | None = None,
    weights: Weights | None = None,
    engine: str = "torch",
    device: str = "auto",
) -> Network:
    """Open a network. An exported folder is opened without PyTorch, and so is what an earlier start has remembered.

    Args:
        model: a timm model name such as van_b0, van_b0.cifar10 or one of `vankit.models.van.ALIASES`; a folder that
            `vankit export` wrote; a checkpoint, or a folder with one; a network (B, 3, H, W) → (B, classes); or what
            this function returned. None takes the checkpoint's.
        checkpoint: a file of any public format, or of a detector or segmenter, which is opened by its file alone; or
            the folder of a training run, of transformers' save_pretrained or timm's save_for_hf. Its classes and
            preprocessing are used where it, or a JSON file beside it, names them.
        pretrained: without a checkpoint, load the model's public weights (else they are random).
        classes: names by index, over those of the weights.
        weights: of a checkpoint, raw or ema for their moving average; None takes the average where there are both.
        engine, device: what will run it, see `vankit.Predictor`. Where that is not PyTorch, the next start finds
            remembered what this one opens, see `vankit.deploy.remembered`.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the weights cannot be had, or what is given does not go
            together.
        ImportError: a detector's or segmenter's head needs transformers.
    """
    check_named(model=model, checkpoint=checkpoint)
    if isinstance(model, Network):
        if (checkpoint, classes, weights) != (None, None, None):
            raise UserError(f"{model.source} is open: leave out checkpoint, classes and weights")
        return model
    if is_exported(model):
        if (checkpoint, weights) != (None, None):
            raise UserError(
                f"{model} is an exported folder, which contains its weights: leave out checkpoint and weights"
            )
        return _folder(model, classes)
    if checkpoint is None and isinstance(model, str | PathLike) and is_path(model):
        model, checkpoint = None, model
    if weights is not None and checkpoint is None:
        raise UserError("weights (--weights) chooses among those of a checkpoint: pass one")
    if model is None and checkpoint is None:
        model = "van_b0"
    opening = partial(_open, pretrained=pretrained, classes=classes, weights=weights)
    if not _may_be_remembered(model, checkpoint, pretrained) or on_torch(engine, device):
        return opening(model, checkpoint)
    entry = Entry(None if model is None else str(model), checkpoint, classes, weights)
    later = None if checkpoint is None else Path(checkpoint).absolute()  # perhaps from another folder
    if (remembered := entry.read(lambda: _module_of(opening(model, later)))) is not None:
        return Network(remembered.description, str(checkpoint or model), remembered=remembered, own=True)
    with entry.listening():
        opened = opening(model, checkpoint)
    _remember(entry, opened)
    return opened


def _may_be_remembered(
    model: "str | PathLike[str] | nn.Module | None", checkpoint: str | PathLike[str] | None, pretrained: bool
) -> bool:
    """Not a network that was passed, nor random weights."""
    return isinstance(model, str | PathLike | None) and (pretrained or checkpoint is not None)


def _open(
    model: "str | PathLike[str] | nn.Module | None",
    checkpoint: str | PathLike[str] | None,
    pretrained: bool,
    classes: Sequence[str] | None,
    weights: Weights | None,
) -> Network:
    from torch import nn

    from vankit.heads.checkpoints import is_dense, network_in_file
    from vankit.models.classifier import classifier_by_name, classifier_in_file, described
    from vankit.models.weights import load_checkpoint, read_tensors

    if isinstance(model, nn.Module):
        found = load_checkpoint(model, checkpoint, weights).metadata if checkpoint is not None else {}
        module, description = described(model, None, found, classes)
        return Network(description, type(model).__name__, module)
    name = str(model) if model is not None else None
    if checkpoint is None:
        assert name is not None
        module, description = classifier_by_name(name, pretrained, classes)
        return Network(description, name, module, own=True)
    file = read_tensors(checkpoint, weights)
    if not is_dense(file):
        module, description = classifier_in_file(file, name, classes)
    elif model is not None or classes is not None:
        raise UserError(f"{checkpoint} is a detector or segmenter with its own classes: leave out model and classes")
    else:
        module, description = network_in_file(file)
    return Network(description, str(checkpoint), module, own=True)


def _module_of(opened: Network) -> "nn.Module":
    assert opened.network is not None
    return opened.network


def _remember(entry: Entry, opened: Network) -> None:
    """What comes from a checkpoint, or by the name of a VAN of vankit's own from files that are known."""
    from vankit.models.hub import files_behind
    from vankit.models.van import VARIANTS, architecture

    files: list[Path] = []
    if not entry.of_file:
        file: Any = (getattr(opened.network, "pretrained_cfg", None) or {}).get("file")
        if not file or architecture(opened.description.model or "") not in VARIANTS:
            return
        files = files_behind(Path(file))
    entry.write(opened.description, opened.key, opened.class_maps, files)


def says_dense(model: str | PathLike[str] | None = None, checkpoint: str | PathLike[str] | None = None) -> bool:
    """Whether a checkpoint or a folder says that it is a detector or segmenter; checkpoints of other projects do not.

    Args:
        model, checkpoint: see `open_network`.

    Raises:
        FileNotFoundError, ValueError: there is no such file.
    """
    if is_exported(model):
        return read_exported(model).dense
    if checkpoint is None and model is not None and is_path(model):
        checkpoint = model
    if checkpoint is None:
        return False
    return names_head(file_in(Path(checkpoint)))


def is_path(model: str | PathLike[str]) -> bool:
    """Whether it is a file or folder, or can only have been meant for one, rather than a model's name."""
    path = Path(model)
    if isinstance(model, str) and path.name == model and path.is_dir():
        from vankit.models.van import is_model

        return not is_model(model)
    meant = path.is_absolute() or str(model).startswith(("./", "../")) or str(model).endswith(("/", "\\"))
    return meant or path.exists()


def _folder(path: str | PathLike[str], classes: Sequence[str] | None) -> Network:
    exported = read_exported(path)
    description = exported.description
    if classes is not None:
        if len(classes) != len(description.classes):
            raise UserError(f"classes has {len(classes)} names, and {path} {len(description.classes)} outputs")
        description = replace(description, classes=classes, named=True)
    return Network(description, str(path), exported=exported)
