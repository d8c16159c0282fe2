"""A network of PyTorch to be explained, whether classifier, detector or segmenter: pictures in, scores out."""

from dataclasses import fields, replace
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from vankit.data.preprocessing import MEAN_STD, Preprocessing
from vankit.deploy.opening import Network, open_network
from vankit.engines.choose import device_for
from vankit.errors import UserError, check_output
from vankit.explanation import maps
from vankit.explanation.subjects import Evidence, Subject
from vankit.heads.backbone import backbone_of
from vankit.heads.checkpoints import is_dense
from vankit.models.description import Description, Weights
from vankit.models.van import create_model, variant_of
from vankit.models.weights import checkpoint_of, load_checkpoint, read_tensors
from vankit.prediction.scenes import DensePredictor
from vankit.tasks.inference import infer

Scores = tuple[Tensor, NDArray[np.float64]]

_GENERATED_SIZE = 224  # pixels per side of the input generated for a detector or segmenter


class NetworkSubject(Subject):
    """A network of PyTorch.

    Attributes:
        network: answers for a picture.
        body: the part whose layers are looked at: the network itself, or a detector's VAN.
        input_size: (3, height, width) of generated input to the body.
        fixed_size: whether the body sees every picture at that size.
    """

    network: nn.Module
    body: nn.Module
    input_size: tuple[int, ...]
    fixed_size: bool
    device: str

    def prepare(self, image: Image.Image) -> Tensor:
        """An RGB picture as `scores` takes it, (1, 3, H, W)."""
        raise NotImplementedError

    def scores(self, x: Tensor) -> Scores:
        """What Grad-CAM explains, (classes,), and what is shown for it, 0 to 1, NaN for a class that was not found.

        Raises:
            ValueError: the network's output is not finite.
        """
        raise NotImplementedError

    def seen(self, x: Tensor) -> NDArray[np.float32]:
        """The body's input (1, 3, h, w) as a picture (h, w, 3), 0 to 1."""
        return self.picture(x[0].float().cpu().numpy())

    def place(self, stage: int | None, layer: str | None) -> tuple[str, str]:
        if layer is None and stage is None:
            stage = 4
        return next(iter(maps.layers_of(self.body, stage, layer).items()))

    def grad_cam(self, image: Image.Image, layer: str, target: int | None) -> Evidence:
        found: list[tuple[NDArray[np.float64], int]] = []

        def score(x: Tensor) -> Tensor:
            scores, shown = self.scores(x)
            index = self.choose(shown, target)
            found.append((shown, index))
            return scores[index][None]

        with maps.inputs_of(self.body) as inputs:
            heat = maps.grad_cam(self.body, layer, self.prepare(image), score)[0]
        return Evidence(heat.float().cpu().numpy(), self.seen(inputs[0]), *found[0])


class _Classifier(NetworkSubject):
    def __init__(self, opened: Network, img_size: int | None, device: str, name: str | None) -> None:
        description, network = opened.description, opened.module
        assert network is not None and description.preprocessing is not None
        described: Any = getattr(network, "pretrained_cfg", None) or {}
        self.name = name or description.model or described.get("architecture") or opened.source
        self.network = self.body = network.to(device)
        self.classes, self.device = list(description.classes), device
        self.multi_label = description.multi_label
        self.preprocessing = description.preprocessing
        if img_size is not None:
            self.preprocessing = replace(self.preprocessing, input_size=(3, img_size, img_size))
        self.mean, self.std = self.preprocessing.mean, self.preprocessing.std
        self.input_size, self.fixed_size = tuple(self.preprocessing.input_size), True

    def prepare(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(self.preprocessing(image))[None].to(self.device)

    def scores(self, x: Tensor) -> Scores:
        logits = self.network(x)[0]
        check_output(logits)
        own = logits.detach().double()
        return logits, (own.sigmoid() if self.multi_label else own.softmax(0)).cpu().numpy()


class _Dense(NetworkSubject):
    def __init__(self, opened: Network, img_size: int | None, device: str, name: str | None) -> None:
        predictor = DensePredictor(opened, engine="torch", device=device)
        self.name = name or f"{predictor.head} {predictor.description.model}"
        self.network, self.body = predictor.network, backbone_of(predictor.network)
        self.classes, self.description, self.device = predictor.classes, predictor.description, device
        self.mean = self.std = MEAN_STD
        self.input_size, self.fixed_size = (3, *2 * (img_size or _GENERATED_SIZE,)), False

    def prepare(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(self.device) / 255

    def scores(self, x: Tensor) -> Scores:
        """Of a detector or panoptic segmenter the best score of each class's objects; of a semantic one the mean logit
        over the class's pixels (Seg-Grad-CAM, arXiv 2002.11434), shown as their share of the picture."""
        result = infer(self.network, [x[0]], self.description)[0]
        numbers = range(len(self.classes))
        if "logits" in result:
            labels = result["logits"].argmax(0)  # (H, W)
            shares = np.array([float((labels == i).double().mean()) for i in numbers])
            means = [x[labels == i].mean() if shares[i] else x.mean() for i, x in enumerate(result["logits"])]
            return torch.stack(means), shares
        missing = result["scores"].new_full((1,), torch.nan)
        own = [result["scores"][result["labels"] == i] for i in numbers]
        best = torch.stack([(scores if len(scores) else missing).amax() for scores in own])
        return best, best.detach().double().cpu().numpy()


def _backbone_in(checkpoint: str | PathLike[str], weights: Weights | None) -> Network | None:
    """A VAN whose checkpoint has no head; None if it has one, or is another network."""
    file = read_tensors(checkpoint, weights)
    found = None if is_dense(file) else checkpoint_of(file)
    variant = variant_of(found.state_dict) if found is not None and not found.num_classes else None
    if found is None or variant is None:
        return None
    network: Any = create_model(variant, num_classes=0, lka=found.metadata.get("lka"))
    load_checkpoint(network, found)
    config = resolve_model_data_config(network)
    own = Preprocessing(**{field.name: config[field.name] for field in fields(Preprocessing)})
    given = {name: value for name, value in found.metadata.items() if name == "preprocessing"}
    description = Description.from_metadata(given, Description(model=variant, preprocessing=own))
    return Network(description, str(checkpoint), network.eval())


def open_subject(
    model: "str | PathLike[str] | nn.Module | Network | None" = None,
    checkpoint: str | PathLike[str] | None = None,
    pretrained: bool = True,
    img_size: int | None = None,
    device: str = "auto",
    name: str | None = None,
    weights: Weights | None = None,
    needs_classes: bool = True,
) -> NetworkSubject:
    """The network to explain.

    Args:
        model, checkpoint, pretrained, weights: see `vankit.Predictor`; also the checkpoint alone of a detector or
            segmenter.
        img_size: side in pixels of the input; the model's own if None. Detectors and segmenters choose their own, and
            this is of generated input only.
        device: torch's name, or 'auto' for CUDA where there is one.
        name: instead of the model's.
        needs_classes: whether a class is to be explained; else a VAN without a head will do, too.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: the weights cannot be had, or are an exported folder's.
    """
    opened = None if needs_classes or checkpoint is None else _backbone_in(checkpoint, weights)
    opened = opened or open_network(model, checkpoint, pretrained, weights=weights)
    if opened.exported is not None:
        raise UserError(
            f"{opened.source} is an exported folder, which has no gradients: pass the model or its checkpoint"
        )
    kind = _Dense if opened.dense else _Classifier
    return kind(opened, img_size, device_for("torch", device), name)
