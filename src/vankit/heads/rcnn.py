"""RetinaNet, Faster R-CNN and Mask R-CNN: torchvision's detectors over a VAN."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.poolers import LevelMapper

from vankit.errors import UserError
from vankit.heads.backbone import VanFPN, input_transform


class TorchvisionDetector(nn.Module):
    """A detector of torchvision behind the interface of `vankit.heads`.

    Args:
        detector: torchvision's network.
        background: whether its class 0 is the background, as in the R-CNN family.
    """

    def __init__(self, detector: nn.Module, background: bool) -> None:
        super().__init__()
        self.detector = detector
        self.first = int(background)
        for module in detector.modules():
            if isinstance(module, _IN_FLOAT32):
                module.register_forward_hook(_to_float32)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See `vankit.heads`.

        Raises:
            ValueError: there are no targets in training.
        """
        if self.training:
            if targets is None:
                raise UserError("no targets: expected boxes and labels of every image in training")
            return self.detector(list(images), [self._shifted(target) for target in targets])
        results = []
        for result in self.detector(list(images)):
            result["labels"] = result["labels"] - self.first
            if "masks" in result:
                result["masks"] = result["masks"][:, 0] >= 0.5  # (N, 1, H, W) probabilities → (N, H, W)
            results.append(result)
        return results

    def _shifted(self, target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        shifted = {"boxes": target["boxes"], "labels": target["labels"] + self.first}
        if "masks" in target:
            shifted["masks"] = target["masks"].to(torch.uint8)
        return shifted


def retinanet(
    features: Any, num_classes: int, *, short_sides: Sequence[int] = (800,), long_side: int = 1333
) -> TorchvisionDetector:
    """RetinaNet (Lin et al., arXiv 1708.02002) on pyramid levels 3 to 7.

    Args:
        features: see `vankit.heads.backbone.van_features`.
        num_classes: object classes.
        short_sides, long_side: see `vankit.heads.backbone.input_transform`.
    """
    top = features.feature_info.channels()[-1]
    backbone = VanFPN(features, (1, 2, 3), _P6P7FromC5(top, 256))
    anchors = AnchorGenerator(
        tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512)),
        ((0.5, 1.0, 2.0),) * 5,
    )
    detector = RetinaNet(backbone, num_classes, anchor_generator=anchors, detections_per_img=100)
    return _with_transform(detector, short_sides, long_side, background=False)


def faster_rcnn(
    features: Any, num_classes: int, *, short_sides: Sequence[int] = (800,), long_side: int = 1333
) -> TorchvisionDetector:
    """Faster R-CNN (Ren et al., arXiv 1506.01497) on pyramid levels 2 to 6; arguments as for `retinanet`."""
    detector = FasterRCNN(VanFPN(features, extra=LastLevelMaxPool()), num_classes + 1, box_roi_pool=roi_pool(7))
    return _with_transform(detector, short_sides, long_side, background=True)


def mask_rcnn(
    features: Any, num_classes: int, *, short_sides: Sequence[int] = (800,), long_side: int = 1333
) -> TorchvisionDetector:
    """Mask R-CNN (He et al., arXiv 1703.06870) on pyramid levels 2 to 6; arguments as for `retinanet`."""
    backbone = VanFPN(features, extra=LastLevelMaxPool())
    detector = MaskRCNN(backbone, num_classes + 1, box_roi_pool=roi_pool(7), mask_roi_pool=roi_pool(14))
    return _with_transform(detector, short_sides, long_side, background=True)


# under autocast torchvision makes anchors of the pyramid's type and boxes of the heads', which rounds coordinates above
# 256 to 2, 4 or 8 pixels in bfloat16
_IN_FLOAT32 = (VanFPN, RPNHead, RetinaNetHead, FastRCNNPredictor, MaskRCNNPredictor)


def _to_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: value.float() for name, value in outputs.items()}
    return type(outputs)(_to_float32(module, inputs, value) for value in outputs)


def roi_pool(side: int) -> MultiScaleRoIAlign:
    """Features of boxes from pyramid levels 2 to 5, (N, 256, side, side)."""
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], side, sampling_ratio=2)
    # torchvision infers the strides once, from the first batch, wrongly where padding is much of the image
    pool.scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    pool.map_levels = LevelMapper(2, 5)
    return pool


class _P6P7FromC5(LastLevelP6P7):
    """P6 from the stage's own output. torchvision takes P5 where the widths happen to agree, as VAN-B0's 256 do."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.use_P5 = False


def _with_transform(detector: Any, short_sides: Sequence[int], long_side: int, background: bool) -> TorchvisionDetector:
    detector.transform = input_transform(short_sides, long_side)
    return TorchvisionDetector(detector, background)
