"""A network of `vankit.heads` as one function of one image, resizing included, for conversion to other runtimes."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torchvision.models.detection import RetinaNet

from vankit.errors import UserError
from vankit.heads.cascade_rcnn import CascadeRoIHeads
from vankit.heads.from_transformers import DETR, UPerNet
from vankit.heads.mask2former import Mask2Former
from vankit.heads.rcnn import TorchvisionDetector
from vankit.heads.semantic_fpn import SemanticFPN
from vankit.heads.sparse_rcnn import SparseRCNN
from vankit.heads.whole_rcnn import WholeCascade, WholeRCNN, WholeRetinaNet, WholeSparseRCNN
from vankit.heads.whole_transformers import WholeDETR, WholeMask2Former, WholeSegmenter
from vankit.models.fold import fold

Whole = tuple[nn.Module, tuple[str, ...]]

_OBJECTS = ("boxes", "labels", "scores")
_MASK2FORMER = {
    "semantic": ("logits",),
    "instance": (*_OBJECTS, "masks"),
    "panoptic": ("segments", "labels", "scores"),
}


def as_whole(network: nn.Module) -> Whole:
    """A copy of a network that is one function of one image, with the VAN inside folded.

    Args:
        network: of `vankit.heads`; it is not changed.

    Returns:
        A module in eval mode, image (1, 3, H, W) float32, RGB, 0 to 1 → tuple of tensors, and their names.

        - Of a detector: `boxes` (N, 4) float32 x1, y1, x2, y2 in the image's pixels, within it; `labels` (N,) int64
          from 0; `scores` (N,) float32, best first; with masks also `masks`: of Mask2Former (N, H, W) bool, of the
          others (N, 28, 28) float32, the probability of each object within its box, which
          `vankit.tasks.masks.paste_masks` turns into pixels.
        - Semantic: `logits` (1, C, H, W); as a second argument the module takes another
          height and width for them.
        - Panoptic: `segments` (H, W) int64, 0 for none, i + 1 for segment i; `labels` (S,), `scores` (S,).

    Raises:
        ValueError: there is no such form of this network.
    """
    for kind, form in _FORMS.items():
        if isinstance(network, kind):
            module, names = form(fold(network).eval())
            return module.eval(), names
    raise UserError(f"`network` is {type(network).__name__}: expected a network of vankit.heads")


def _torchvision(network: Any) -> Whole:
    detector = network.detector
    if isinstance(detector, RetinaNet):
        return WholeRetinaNet(detector), _OBJECTS
    if isinstance(detector.roi_heads, CascadeRoIHeads):
        return WholeCascade(detector), (*_OBJECTS, "masks")
    return WholeRCNN(detector), (*_OBJECTS, "masks") if detector.roi_heads.has_mask() else _OBJECTS


_FORMS: dict[type[nn.Module], Callable[[Any], Whole]] = {
    TorchvisionDetector: _torchvision,
    SparseRCNN: lambda head: (WholeSparseRCNN(head), _OBJECTS),
    DETR: lambda head: (WholeDETR(head), _OBJECTS),
    UPerNet: lambda head: (WholeSegmenter(head), ("logits",)),
    SemanticFPN: lambda head: (WholeSegmenter(head), ("logits",)),
    Mask2Former: lambda head: (WholeMask2Former(head), _MASK2FORMER[head.output]),
}
