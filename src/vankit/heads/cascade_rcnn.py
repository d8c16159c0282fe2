"""Cascade Mask R-CNN (Cai & Vasconcelos, arXiv 1712.00726 and 1906.09756) over a VAN."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vankit.heads.backbone import VanFPN, input_transform
from vankit.heads.rcnn import TorchvisionDetector, roi_pool

Sizes = list[tuple[int, int]]
Targets = list[dict[str, Tensor]]

_IOUS = (0.5, 0.6, 0.7)
_BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
_LOSS_WEIGHTS = (1.0, 0.5, 0.25)


def cascade_mask_rcnn(
    features: Any, num_classes: int, *, short_sides: Sequence[int] = (800,), long_side: int = 1333
) -> TorchvisionDetector:
    """Cascade Mask R-CNN on pyramid levels 2 to 6: three stages, each with a box head and a mask head.

    A stage matches at IoU 0.5, 0.6 or 0.7 and refines the boxes for the next. Detections are the last stage's boxes
    with the class logits averaged over the stages; masks are averaged over the mask heads (MMDetection's reading of
    the papers). Training returns `loss_objectness`, `loss_rpn_box_reg` and, for i from 1 to 3, `stage{i}_class`,
    `stage{i}_box` and `stage{i}_mask`, weighted by 1, 0.5 and 0.25.

    Args:
        features: see `vankit.heads.backbone.van_features`.
        num_classes: object classes.
        short_sides, long_side: see `vankit.heads.backbone.input_transform`.
    """
    backbone = VanFPN(features, extra=LastLevelMaxPool())
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(backbone.out_channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2000, "testing": 1000},
        post_nms_top_n={"training": 2000, "testing": 1000},
        nms_thresh=0.7,
    )
    roi_heads = CascadeRoIHeads(backbone.out_channels, num_classes)
    detector = GeneralizedRCNN(backbone, rpn, roi_heads, input_transform(short_sides, long_side))
    return TorchvisionDetector(detector, background=True)


class CascadeStage(RoIHeads):
    """One stage: torchvision's RoI heads with one box regression for all classes.

    Args:
        in_channels: of the pyramid.
        num_classes: object classes.
        iou: a proposal is foreground from this overlap on, else background, 0 to 1.
        box_weights: scale of the regression of x, y, width and height.
    """

    def __init__(self, in_channels: int, num_classes: int, iou: float, box_weights: Sequence[float]) -> None:
        predictor = FastRCNNPredictor(1024, num_classes + 1)
        predictor.bbox_pred = nn.Linear(1024, 4)
        super().__init__(
            box_roi_pool=roi_pool(7),
            box_head=TwoMLPHead(in_channels * 7**2, 1024),
            box_predictor=predictor,
            fg_iou_thresh=iou,
            bg_iou_thresh=iou,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=tuple(box_weights),
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
            mask_roi_pool=roi_pool(14),
            mask_head=MaskRCNNHeads(in_channels, (256,) * 4, dilation=1),
            mask_predictor=MaskRCNNPredictor(256, 256, num_classes),
        )

    def predict(self, features: Mapping[str, Tensor], boxes: list[Tensor], sizes: Sizes) -> tuple[Tensor, Tensor]:
        """Class logits (N, 1 + classes), background first, and box regression (N, 4) of the boxes of all images."""
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes, sizes)))
        return logits.float(), deltas.float()

    def predict_masks(self, features: Mapping[str, Tensor], boxes: list[Tensor], sizes: Sizes) -> Tensor:
        """Mask logits (N, classes, 28, 28) of the boxes of all images."""
        return self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, sizes)))

    def refine(self, deltas: Tensor, boxes: list[Tensor], sizes: Sizes) -> list[Tensor]:
        """Apply the box regression, clip to the image, cut the gradient."""
        refined = self.box_coder.decode(deltas.detach(), boxes).reshape(-1, 4)
        return [
            clip_boxes_to_image(b, size) for b, size in zip(refined.split([len(b) for b in boxes]), sizes, strict=True)
        ]

    def losses(
        self, features: Mapping[str, Tensor], proposals: list[Tensor], sizes: Sizes, targets: Targets
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Sample proposals, compare with the targets, refine.

        Args:
            features: the pyramid.
            proposals: by image, (P, 4); the true boxes are added here.
            sizes: (H, W) of the images.
            targets: boxes, labels (from 1) and masks.

        Returns:
            The losses `class`, `box` and `mask`, and the refined samples (the true boxes left out).
        """
        boxes, matches, labels, wanted = self.select_training_samples(proposals, targets)
        logits, deltas = self.predict(features, boxes, sizes)
        all_labels, all_wanted = torch.cat(labels), torch.cat(wanted)
        foreground = all_labels > 0
        count = max(len(all_labels), 1)  # no proposals at all would give a mean over nothing
        class_loss = F.cross_entropy(logits, all_labels, reduction="sum") / count
        box_loss = F.smooth_l1_loss(deltas[foreground], all_wanted[foreground], reduction="sum") / count

        positive = [label > 0 for label in labels]
        mask_boxes = [b[p] for b, p in zip(boxes, positive, strict=True)]
        mask_loss = maskrcnn_loss(
            self.predict_masks(features, mask_boxes, sizes),
            mask_boxes,
            [target["masks"] for target in targets],
            [target["labels"] - 1 for target in targets],
            [match[p] for match, p in zip(matches, positive, strict=True)],
        )
        # only a true box has nothing to correct
        refined = [b[w.any(1)] for b, w in zip(self.refine(deltas, boxes, sizes), wanted, strict=True)]
        return {"class": class_loss, "box": box_loss, "mask": mask_loss}, refined


class CascadeRoIHeads(nn.Module):
    """The three stages, in the place of torchvision's RoIHeads.

    Args:
        in_channels: of the pyramid.
        num_classes: object classes.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stages: Any = nn.ModuleList(
            CascadeStage(in_channels, num_classes, iou, weights)
            for iou, weights in zip(_IOUS, _BOX_WEIGHTS, strict=True)
        )

    def forward(
        self, features: Mapping[str, Tensor], proposals: list[Tensor], sizes: Sizes, targets: Targets | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections in eval mode, or losses in training mode, the other empty; labels from 1, see GeneralizedRCNN."""
        if not self.training:
            return self._detect(features, proposals, sizes), {}
        assert targets is not None
        losses: dict[str, Tensor] = {}
        for i, (stage, weight) in enumerate(zip(self.stages, _LOSS_WEIGHTS, strict=True), 1):
            stage_losses, proposals = stage.losses(features, proposals, sizes, targets)
            losses |= {f"stage{i}_{name}": weight * loss for name, loss in stage_losses.items()}
        return [], losses

    def _detect(self, features: Mapping[str, Tensor], proposals: list[Tensor], sizes: Sizes) -> list[dict[str, Tensor]]:
        logits = []
        refined = proposals
        for stage in self.stages:
            proposals = refined
            stage_logits, deltas = stage.predict(features, proposals, sizes)
            refined = stage.refine(deltas, proposals, sizes)
            logits.append(stage_logits)
        mean = torch.stack(logits).mean(0)  # (P, 1 + classes)
        # torchvision expects a box per class
        boxes, scores, labels = stage.postprocess_detections(mean, deltas.repeat(1, mean.shape[1]), proposals, sizes)
        indices = [label - 1 for label in labels]
        masks = [maskrcnn_inference(stage.predict_masks(features, boxes, sizes), indices) for stage in self.stages]
        return [
            {"boxes": boxes[i], "scores": scores[i], "labels": labels[i], "masks": torch.stack(of_image).mean(0)}
            for i, of_image in enumerate(zip(*masks, strict=True))
        ]
