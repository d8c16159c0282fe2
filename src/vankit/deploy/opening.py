"""The one place that detects what a name, a file or a folder is, and opens the network in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vankit.deploy.folder import Exported, is_exported, read_exported
from vankit.errors import UserError
from vankit.files import check_named
from vankit.models.description import Description, Weights

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Network:
    """A network that was found.

    Attributes:
        description: what it is.
        source: what it was found by, for messages.
        module: of PyTorch, in eval mode; None of an exported folder.
        exported: the folder, or None.
    """

    description: Description
    source: str
    module: "nn.Module | None" = None
    exported: Exported | None = None

    @property
    def dense(self) -> bool:
        """Whether it is a detector or segmenter."""
        return self.description.task != "classify"

    def __getstate__(self) -> dict[str, Any]:
        if self.module is None:
            return vars(self)
        from vankit.models.portable import Portable

        return vars(self) | {"module": Portable(self.module)}


def open_network(
    model: "str | PathLike[str] | nn.Module | Network | None" = None,
    checkpoint: str | PathLike[str] | None = None,
    pretrained: bool = True,
    classes: Sequence[str] | None = None,
    weights: Weights | None = None,
) -> Network:
    """Open a network. An exported folder is opened without PyTorch.

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
    from torch import nn

    from vankit.heads.checkpoints import is_dense, network_in_file
    from vankit.models.classifier import classifier_by_name, classifier_in_file, described
    from vankit.models.weights import load_checkpoint, read_tensors

    if weights is not None and checkpoint is None:
        raise UserError("weights (--weights) chooses among those of a checkpoint: pass one")
    if isinstance(model, nn.Module):
        found = load_checkpoint(model, checkpoint, weights).metadata if checkpoint is not None else {}
        module, description = described(model, None, found, classes)
        return Network(description, type(model).__name__, module)
    name = str(model) if model is not None else None
    if checkpoint is None:
        name = "van_b0" if name is None else name
        module, description = classifier_by_name(name, pretrained, classes)
        return Network(description, name, module)
    file = read_tensors(checkpoint, weights)
    if not is_dense(file):
        module, description = classifier_in_file(file, name, classes)
    elif model is not None or classes is not None:
        raise UserError(f"{checkpoint} is a detector or segmenter with its own classes: leave out model and classes")
    else:
        module, description = network_in_file(file)
    return Network(description, str(checkpoint), module)


def says_dense(model: str | PathLike[str] | None = None, checkpoint: str | PathLike[str] | None = None) -> bool:
    """Whether a checkpoint says that it is a detector or segmenter; those of other projects do not.

    Args:
        model, checkpoint: see `open_network`.

    Raises:
        FileNotFoundError, ValueError: there is no such file.
    """
    if checkpoint is None and model is not None and not is_exported(model) and is_path(model):
        checkpoint = model
    if checkpoint is None:
        return False
    from vankit.models.weights.files import file_in, names_head

    return names_head(file_in(Path(checkpoint)))


def is_path(model: str | PathLike[str]) -> bool:
    """Whether it is a file or folder, or can only have been meant for one, rather than a model's name."""
    path = Path(model)
    if isinstance(model, str) and path.name == model and path.is_dir():
        from vankit.models.van import is_model

        return not is_model(model)
    return path.exists() or str(model).endswith(("/", "\\"))


def _folder(path: str | PathLike[str], classes: Sequence[str] | None) -> Network:
    exported = read_exported(path)
    description = exported.description
    if classes is not None:
        if len(classes) != len(description.classes):
            raise UserError(f"classes has {len(classes)} names, and {path} {len(description.classes)} outputs")
        description = replace(description, classes=classes, named=True)
    return Network(description, str(path), exported=exported)
