"""A classifier with its class names and preprocessing, from a model name, a checkpoint or a network."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn

from vankit.data.preprocessing import Preprocessing
from vankit.models import weights
from vankit.models.van import VARIANTS, create_model, variant_of

# MMPretrain's names of the four published classifiers
ALIASES = {
    "van-tiny_3rdparty_in1k": "van_b0.in1k",
    "van-small_3rdparty_in1k": "van_b1.in1k",
    "van-base_3rdparty_in1k": "van_b2.in1k",
    "van-large_3rdparty_in1k": "van_b3.in1k",
}


@dataclass(frozen=True)
class Classifier:
    """A network that names what it sees.

    Attributes:
        network: in eval mode, (B, C, H, W) → (B, classes).
        classes: names by index; the indices as text where the weights name none (`named` is False).
        named: whether the classes have names.
        preprocessing: from an image to the network's input.
        model: the name that made the network, None for a network passed as such.
    """

    network: nn.Module
    classes: list[str]
    named: bool
    preprocessing: Preprocessing
    model: str | None


def load_classifier(
    model: str | nn.Module | None,
    checkpoint: str | PathLike[str] | None = None,
    pretrained: bool = True,
    classes: Sequence[str] | None = None,
) -> Classifier:
    """A classifier ready to be exported or run.

    Args:
        model, checkpoint, pretrained, classes: see `vankit.Predictor`.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the weights cannot be had, or the number of names is not
            that of the network's outputs.
    """
    name, network, metadata = _load(model, checkpoint, pretrained)
    config = {**resolve_model_data_config(network), **metadata.get("preprocessing", {})}
    preprocessing = Preprocessing(**{field.name: config[field.name] for field in fields(Preprocessing)})
    own_classes = metadata.get("classes")
    if own_classes is None and getattr(network, "num_classes", 0) == 1000:
        own_classes = ImageNetInfo("imagenet-1k").label_descriptions()
    outputs = getattr(network, "num_classes", len(classes or ()))
    names = list(classes or own_classes or (str(i) for i in range(outputs)))
    if not outputs or len(names) != outputs:
        raise ValueError(
            f"the network has {outputs} outputs and there are {len(names)} class names: expected as many names as "
            "outputs, and at least one; pass classes=, or a checkpoint with a classification head"
        )
    return Classifier(network.eval(), names, bool(classes or own_classes), preprocessing, name)


def _load(
    model: str | nn.Module | None, checkpoint: str | PathLike[str] | None, pretrained: bool
) -> tuple[str | None, Any, dict[str, Any]]:
    """The model's name, the network, and what its weights say of themselves."""
    metadata: dict[str, Any] = {}
    network: Any
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            metadata = weights.load_checkpoint(model, checkpoint).metadata
        return None, model, metadata
    if checkpoint is None:
        name = ALIASES.get(model or "van_b0", model or "van_b0")
        network = create_model(name, pretrained=pretrained)
        file = network.pretrained_cfg.get("file")
        return name, network, weights.read_metadata(file) if pretrained and file else {}
    if "head" in weights.read_metadata(checkpoint):
        raise ValueError(f"{checkpoint} is a detector or segmenter: use vankit.DensePredictor")
    found = weights.read_checkpoint(checkpoint)
    metadata = found.metadata
    wanted = model or metadata.get("model") or variant_of(found.state_dict)
    if wanted is None:
        raise ValueError(f"{checkpoint} is none of {', '.join(VARIANTS)}: pass the network itself as model")
    if not found.num_classes:
        raise ValueError(f"{checkpoint} holds no classification head, only a backbone")
    name = ALIASES.get(wanted, wanted)
    network = create_model(name, num_classes=found.num_classes, lka=metadata.get("lka"))
    weights.load_checkpoint(network, found)
    return name, network, metadata


def class_index(names: list[str], known: list[str], named: bool = True) -> NDArray[np.int64]:
    """The network's index of each of the data's classes; by order for a network whose outputs have no names.

    Args:
        names: the data's classes.
        known: the network's; of ImageNet's thousand the WordNet ids are known too.
        named: whether the network's have names.

    Raises:
        ValueError: the network does not know a class.
    """
    if not named and len(names) == len(known):
        return np.arange(len(names))
    places = {name: i for i, name in enumerate(known)}
    if len(known) == 1000:
        places |= {name: i for i, name in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    missing = [name for name in names if name not in places]
    if not missing:
        return np.array([places[name] for name in names])
    raise ValueError(
        f"the network does not know {len(missing)} of the data's {len(names)} classes ({', '.join(missing[:5])}); it "
        f"knows {', '.join(known[:5])}{', …' if len(known) > 5 else ''}: pass a checkpoint trained on these classes"
    )
