"""A classifier with its class names and preprocessing, from a model name, a checkpoint or a network."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn

from vankit.data.preprocessing import Preprocessing
from vankit.errors import UserError
from vankit.files import reading
from vankit.models import weights
from vankit.models.description import Description
from vankit.models.van import ALIASES, VARIANTS, architecture, check_name, create_model, variant_of
from vankit.schema import shown

logger = logging.getLogger(__name__)

_IMAGENET = {1000: "ImageNet-1k", 21841: "ImageNet-22k"}

Classifier = tuple[nn.Module, Description]  # in eval mode, (B, C, H, W) → (B, classes)


def classifier_by_name(name: str, pretrained: bool = True, classes: Sequence[str] | None = None) -> Classifier:
    """A timm model, also by one of `ALIASES`.

    Args:
        name: such as van_b0 or van_b0.cifar10.
        pretrained: load its public weights (else they are random).
        classes: names by index, over those of the weights.

    Raises:
        ValueError, vankit.DownloadError: there is no such model, the weights cannot be had, or the number of names is
            not that of the network's outputs.
    """
    name = ALIASES.get(name, name)
    network: Any = create_model(name, pretrained=pretrained)
    config = network.pretrained_cfg
    if names := weights.label_names(config):
        metadata: dict[str, Any] = {"classes": names}
    elif ":" not in name and network.num_classes in _IMAGENET:
        metadata = {"classes": _imagenet(network.num_classes)}  # what timm's own names of 1,000 or 21,841 outputs mean
    else:
        metadata = {}
    if pretrained and (file := config.get("file")):
        metadata |= weights.read_metadata(file)
    return described(network, name, metadata, classes)


def classifier_in_file(
    file: weights.TensorFile, model: str | None = None, classes: Sequence[str] | None = None
) -> Classifier:
    """The classifier that a checkpoint holds.

    Args:
        file: of any public format.
        model: name of its network; what the file says, or its shapes show, if None.
        classes: names by index, over those of the file.

    Raises:
        ValueError: the file is not a classifier of that model, or the names do not fit.
    """
    if model is not None:
        check_name(model)
    with reading(file.path):
        return _in_file(file, model, classes)


def _in_file(file: weights.TensorFile, model: str | None, classes: Sequence[str] | None) -> Classifier:
    found = weights.checkpoint_of(file)
    if not found.num_classes:
        others = f" (left out: {', '.join(found.left_out[:3])}, …)" if found.left_out else ""
        raise UserError(
            f"{file.path} holds no classification head, only a backbone{others}: give it one with vankit train DATA "
            "--checkpoint"
        )
    variant = variant_of(found.state_dict)
    if model is not None and architecture(model) not in (VARIANTS if variant is None else (variant,)):
        what = variant or "VAN of widths or depths of its own"
        raise UserError(f"{file.path} is a {what}, not a {model}: leave out model (--model), or pass another file")
    wanted = model or _own_name(found, variant) or variant
    name = ALIASES.get(wanted, wanted) if wanted else None
    options: dict[str, Any] = {"num_classes": found.num_classes, "lka": found.metadata.get("lka")}
    if variant is None:
        name, options = None, options | weights.sizes_of(found.state_dict)  # of widths or depths of its own
    with torch.device("meta"):  # it has no more numbers than its file, whatever that says
        network = create_model(name or "van_b0", **options)
    weights.load_checkpoint(network, found)
    return described(network, name, found.metadata, classes)


def _own_name(checkpoint: weights.Checkpoint, variant: str | None) -> str | None:
    """The name that a file gives its network, without a tag that timm does not know; None if it is not that of a VAN.

    Any other name that timm takes could make it fetch a repository, or read a folder.
    """
    said = checkpoint.metadata.get("model")
    if said is not None and architecture(said) not in VARIANTS:
        logger.warning("%s says that its model is %s, which is not a VAN: passed over", checkpoint.path, shown(said))
        return None
    if said is None or variant not in (None, architecture(said)):  # a name that its writer gave to another VAN
        return None
    return said if timm.is_model_pretrained(said) else architecture(said)


def _imagenet(outputs: int) -> list[str]:
    return ImageNetInfo(_IMAGENET[outputs].lower()).label_descriptions()


def described(
    network: Any, model: str | None, metadata: Mapping[str, Any], classes: Sequence[str] | None = None
) -> Classifier:
    """A network in eval mode, with its description.

    Args:
        network: (B, C, H, W) → (B, classes).
        model: its name; None for a network passed as such.
        metadata: what its weights say of themselves.
        classes: names by index, over those of the metadata.

    Raises:
        ValueError: the number of names is not that of the network's outputs.
    """
    own = metadata.get("classes")
    outputs = getattr(network, "num_classes", len(classes or ()))
    if own is None and classes is None and outputs in _IMAGENET:
        own = _imagenet(outputs)
        logger.warning(
            "the weights do not say what their %s classes are: assumed %s's, in its order; if they are others, "
            "pass classes= in Python", f"{outputs:,}", _IMAGENET[outputs],
        )  # fmt: skip
    names = list(classes or own or (str(i) for i in range(outputs)))
    if not outputs or len(names) != outputs:
        raise UserError(
            f"the network has {outputs} outputs and there are {len(names)} class names: expected as many names as "
            "outputs, and at least one; pass classes=, or a checkpoint with a classification head"
        )
    config = resolve_model_data_config(network)
    default = Description(
        model=model,
        lka=getattr(network, "lka", None) or {},
        preprocessing=Preprocessing(**{field.name: config[field.name] for field in fields(Preprocessing)}),
    )
    given = {name: metadata[name] for name in ("preprocessing", "held_out") if metadata.get(name)}
    found = Description.from_metadata(given, default)
    thresholds = metadata.get("thresholds") or ()
    return network.eval(), replace(
        found, classes=names, named=bool(classes or own), thresholds=thresholds, things=(), category_ids=()
    )
