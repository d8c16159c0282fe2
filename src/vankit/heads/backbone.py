"""A VAN as the backbone of a head: four feature maps, at strides 4, 8, 16 and 32."""

from collections.abc import Mapping, Sequence
from typing import Any

from timm.models import FeatureListNet
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from vankit.data.preprocessing import MEAN_STD
from vankit.errors import UserError
from vankit.models.van import VAN, Stage, create_model


def van_features(
    model: str,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    grad_checkpointing: bool = False,
    lka: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A VAN that returns its four stages' outputs.

    Args:
        model: such as van_b0, or van_b0.cifar10 for those weights with `pretrained`.
        pretrained: load the model's public weights.
        drop_path_rate: stochastic depth of the last block, 0 to 1.
        grad_checkpointing: recompute activations in the backward pass.
        lka: settings of its attention, see `vankit.VAN`.

    Returns:
        timm's feature extractor: (B, 3, H, W) → list of (B, C_i, ⌈H/s⌉, ⌈W/s⌉) for s = 4, 8, 16, 32, widths in
        `feature_info.channels()`.

    Raises:
        ValueError, vankit.DownloadError: the model is not a VAN, or its weights cannot be had.
    """
    options: dict[str, Any] = {"drop_path_rate": drop_path_rate, "lka": lka}
    network: Any = create_model(model, pretrained=pretrained, num_classes=0, **options)
    if not isinstance(network, VAN):
        raise UserError(f"{model} is not a VAN: expected van_b0 to van_b6")
    features: Any = create_model(model, features_only=True, **options)
    features.load_state_dict(network.state_dict())
    for stage in features.children():
        stage.grad_checkpointing = grad_checkpointing
    return features


def install_backbone(network: nn.Module, features: Any) -> None:
    """Put a VAN into a transformers network, in place of the timm feature extractor that it was built with.

    transformers 5 initialises what it builds, running statistics included, and its DETR family replaces BatchNorm by
    frozen copies; so the feature extractor goes in whole, after the network stands.

    Args:
        network: built over a `TimmBackboneConfig` of the same VAN.
        features: see `van_features`; from here on it returns the stages of that configuration's `out_indices` only.

    Raises:
        ValueError: the network has no timm feature extractor, or several.
    """
    # Not the TimmBackbone around it, which Deformable DETR takes off.
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, FeatureListNet)
    ]
    if len(found) != 1:
        raise UserError(f"{type(network).__name__} has {len(found)} timm feature extractors: expected one")
    parent, name, placeholder = found[0]
    features.return_layers = placeholder.return_layers
    setattr(parent, name, features)


def backbone_of(network: nn.Module) -> nn.Module:
    """The VAN inside a network: the module that has `stage1` to `stage4`."""
    return next(m for m in network.modules() if isinstance(getattr(m, "stage1", None), Stage))


class VanFPN(nn.Module):
    """A VAN under a feature pyramid, as torchvision's detectors take it.

    Args:
        features: see `van_features`.
        levels: stages that enter the pyramid, 0 to 3, finest first.
        extra: torchvision's block for coarser levels, such as LastLevelMaxPool.
        out_channels: width of every level.
    """

    def __init__(
        self,
        features: Any,
        levels: Sequence[int] = (0, 1, 2, 3),
        extra: ExtraFPNBlock | None = None,
        out_channels: int = 256,
    ) -> None:
        super().__init__()
        self.body = features
        self.levels = tuple(levels)
        widths = features.feature_info.channels()
        self.fpn = FeaturePyramidNetwork([widths[i] for i in self.levels], out_channels, extra)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x)
        return self.fpn({str(i): maps[i] for i in self.levels})


def input_transform(short_sides: Sequence[int] = (800,), long_side: int = 1333) -> GeneralizedRCNNTransform:
    """torchvision's preparation of a list of images: resize, normalise with VAN's mean and std, pad to multiples of 32.

    Args:
        short_sides: target length of the shorter side in pixels; one is drawn per image in training, the last is used
            in eval mode.
        long_side: upper limit of the longer side.
    """
    return GeneralizedRCNNTransform(tuple(short_sides), long_side, list(MEAN_STD), list(MEAN_STD))


class AsTheyCome(GeneralizedRCNNTransform):
    """`input_transform` without the resizing."""

    def __init__(self) -> None:
        super().__init__(1, 1, list(MEAN_STD), list(MEAN_STD))

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


def keep_training_size(network: nn.Module) -> None:
    """Let a network train on images of the size they come in, cropped by the data; it still resizes in eval mode."""
    for module in network.modules():
        if isinstance(module, GeneralizedRCNNTransform):
            module._skip_resize = True


def normalise(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) of 0 to 1 as the network was trained to see them."""
    mean = images.new_tensor(MEAN_STD)[:, None, None]
    return (images - mean) / mean  # VAN's standard deviation equals its mean
