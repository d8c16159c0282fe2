"""Detectors and segmenters of PyTorch, as predictors run them: the VAN on an engine, the head on PyTorch."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import FeatureListNet
from torch import Tensor, nn

from vankit.deploy.opening import Network
from vankit.engines.base import Engine
from vankit.engines.choose import device_for, engine_for
from vankit.engines.processes import PerProcess
from vankit.engines.torch import TorchEngine
from vankit.errors import UserError, check_output
from vankit.heads.build import HEADS
from vankit.models.portable import Portable
from vankit.tasks.inference import arrays, infer
from vankit.tasks.results import Arrays
from vankit.tasks.segment import Test

_EXAMPLE = (3, 96, 128)  # the exported backbone takes any other size too


class DenseNetwork:
    """uint8 (H, W, 3), RGB → what is in the picture, see `vankit.DensePredictor.results`.

    Args:
        opened: with a module.
        score, test, engine, precision, device: see `vankit.DensePredictor`.

    Attributes:
        network: a copy, in eval mode.
        masks: whether it gives a mask per object.

    Raises:
        ValueError: the options do not go together.
    """

    def __init__(self, opened: Network, score: float, test: Test, engine: str, precision: str, device: str) -> None:
        if precision == "int8":
            raise UserError(
                "a checkpoint of a detector or segmenter has no int8: export it (vankit export --int8 --calibrate DATA)"
            )
        assert opened.module is not None
        self.description, self.test, network = opened.description, test, copy.deepcopy(opened.module)
        device = device_for(engine, device)
        self.device = torch.device(device)
        _put_backbone_on(network, engine, precision, device)
        for module in network.modules():
            if isinstance(module, _Backbone | FeatureListNet):
                module.register_forward_hook(_check_maps)
            if hasattr(module, "score_thresh"):
                _keep_from(module, score)
        self.network = self._placed(network)
        self.masks = HEADS[self.description.head or ""].masks

    def _placed(self, network: nn.Module) -> nn.Module:
        return network.to(memory_format=torch.channels_last).to(self.device)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"network": Portable(self.network)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.network = self._placed(self.network)

    def __call__(self, picture: NDArray[np.uint8], score: float = 0.0) -> Arrays:
        """Objects of all scores that the head keeps: `score` is for what runs without PyTorch."""
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1).to(self.device) / 255
        with torch.inference_mode():
            return arrays(infer(self.network, [x], self.description, self.test)[0])


def _keep_from(detector: Any, score: float) -> None:
    """torchvision's detectors leave out what scores 0.05 or less by themselves."""
    detector.score_thresh = min(detector.score_thresh, score)


class _Backbone(nn.Module):
    """A VAN's feature maps from an engine that is not PyTorch's.

    Args:
        engine: made of the VAN already.
        make: an engine of it, for other processes.
    """

    features: FeatureListNet

    def __init__(self, features: FeatureListNet, engine: Engine, make: Callable[[nn.Module], Engine]) -> None:
        super().__init__()
        self.feature_info, self.return_layers = features.feature_info, features.return_layers
        self.engine, self.make = PerProcess(engine), make
        vars(self)["features"] = features  # not a module of the network, which does not run it

    def forward(self, x: Tensor) -> list[Tensor]:
        engine = self.engine.get(lambda: self.make(self.features))
        return [torch.from_numpy(y) for y in engine.outputs(x.float().contiguous().numpy())]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"features": Portable(self.features)}


def _check_maps(_module: nn.Module, _images: Any, maps: list[Tensor]) -> None:
    """In the results of a detector broken maps would only be missing: their scores are above no threshold."""
    for each in maps:
        check_output(each)


def _put_backbone_on(network: nn.Module, engine: str, precision: str, device: str) -> None:
    if engine == "torch" or (engine == "auto" and device != "cpu"):
        if precision == "bf16":
            raise UserError("bf16 is for engine openvino: leave out precision, or set engine='openvino'")
        return
    make = partial(
        engine_for, input_size=_EXAMPLE, engine=engine, precision=precision, device=device, cached=True, dynamic=True
    )
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, FeatureListNet):
                found = make(child)
                if not isinstance(found, TorchEngine):  # else it could not be exported, and stays what it is
                    setattr(parent, name, _Backbone(child, found, make))
