"""torchvision's detectors, the cascade and Sparse R-CNN for one image of any size, in a form that tracing follows.

torchvision's own code, when traced, keeps some sizes of the example as constants, loops over images and levels with
scripted branches, and gives masks as pictures of the image's size. Here everything that depends on the size or on what
is found is a tensor operation. What is learned, and how, is still theirs: the forms call the heads' own modules.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign, box_convert, nms, remove_small_boxes, roi_align

from vankit.heads.resizing import Resize

Boxes = tuple[Tensor, Tensor, Tensor]  # (N, 4) x1, y1, x2, y2; labels (N,) from 0; scores (N,), best first


class WholeRetinaNet(nn.Module):
    """(1, 3, H, W), 0 to 1 → boxes, labels and scores; see `vankit.heads.whole.as_whole`."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        self.resize = Resize(detector.transform)

    def forward(self, image: Tensor) -> Boxes:
        x, size = self.resize(image)
        pyramid = list(self.detector.backbone(x).values())
        anchors = place_anchors(self.detector.anchor_generator, x, pyramid)
        levels = [self._candidates(*level, corners(size)) for level in zip(pyramid, anchors, strict=True)]
        boxes, labels, scores = (torch.cat(parts) for parts in zip(*levels, strict=True))
        keep = suppress(boxes, labels, scores, self.detector.nms_thresh)[: self.detector.detections_per_img]
        return to_image(boxes[keep], size, image), labels[keep], scores[keep]

    def _candidates(self, features: Tensor, anchors: Tensor, edge: Tensor) -> Boxes:
        """The best of a level."""
        found = self.detector.head([features])
        logits, deltas = found["cls_logits"][0], found["bbox_regression"][0]  # (A, classes) and (A, 4)
        scores = logits.sigmoid()
        places, labels = torch.where(scores > self.detector.score_thresh)
        scores, best = top(scores[places, labels], self.detector.topk_candidates)
        places, labels = places[best], labels[best]
        boxes = self.detector.box_coder.decode_single(deltas[places], anchors[places])
        return clip(boxes, edge), labels, scores


class WholeRCNN(nn.Module):
    """(1, 3, H, W), 0 to 1 → boxes, labels, scores and, of Mask R-CNN, masks; see `vankit.heads.whole.as_whole`."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        self.resize = Resize(detector.transform)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x, size = self.resize(image)
        pyramid = list(self.detector.backbone(x).values())
        proposals = propose(self.detector.rpn, x, pyramid, corners(size))
        boxes, *others = self.detect(pyramid, proposals, corners(size))
        return to_image(boxes, size, image), *others

    def detect(self, pyramid: Sequence[Tensor], proposals: Tensor, edge: Tensor) -> tuple[Tensor, ...]:
        """Boxes in pixels of the resized image, labels, scores, masks."""
        heads = self.detector.roi_heads
        pooled, order = pool(heads.box_roi_pool, pyramid, proposals)
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        boxes, labels, scores = decide(heads, logits, deltas, proposals[order], edge)
        if not heads.has_mask():
            return boxes, labels, scores
        return boxes, labels, scores, draw_masks(heads, pyramid, boxes, labels + 1)


class WholeCascade(WholeRCNN):
    """As `WholeRCNN`, of `vankit.heads.cascade_rcnn`."""

    def detect(self, pyramid: Sequence[Tensor], proposals: Tensor, edge: Tensor) -> tuple[Tensor, ...]:
        stages = self.detector.roi_heads.stages
        refined, total = proposals, torch.zeros(())
        for stage in stages:
            pooled, order = pool(stage.box_roi_pool, pyramid, refined)
            logits, deltas = stage.box_predictor(stage.box_head(pooled))
            back = torch.argsort(order)
            proposals, total, deltas = refined, total + logits[back], deltas[back]
            refined = clip(stage.box_coder.decode_single(deltas, proposals), edge)
        boxes, labels, scores = decide(stage, total / len(stages), deltas, proposals, edge)
        masks = [draw_masks(stage, pyramid, boxes, labels) for stage in stages]
        return boxes, labels, scores, torch.stack(masks).mean(0)


class WholeSparseRCNN(nn.Module):
    """(1, 3, H, W), 0 to 1 → boxes, labels and scores; see `vankit.heads.whole.as_whole`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.resize = Resize(network.transform)

    def forward(self, image: Tensor) -> Boxes:
        x, size = self.resize(image)
        pyramid = list(self.network.backbone(x).values())
        boxes = box_convert(self.network.proposal_boxes, "cxcywh", "xyxy") * corners(size)  # (P, 4)
        objects = self.network.proposal_features[None]  # (1, P, 256)
        for stage in self.network.stages:
            pooled, order = pool(self.network.roi_align, pyramid, boxes)
            logits, refined, objects = stage(pooled[torch.argsort(order)], boxes[None], objects)
            boxes = refined[0]
        classes = logits.shape[-1]
        scores, pairs = logits.sigmoid().flatten().topk(boxes.shape[0])
        return to_image(boxes[pairs // classes], size, image), pairs % classes, scores


def corners(size: Tensor) -> Tensor:
    """(height, width) as (width, height, width, height), float32: what boxes reach to."""
    return size.flip(0).repeat(2).float()


def clip(boxes: Tensor, edge: Tensor) -> Tensor:
    """Boxes (N, 4) within 0 and `edge` (4,), see `corners`."""
    return torch.minimum(boxes.clamp(min=0), edge)


def to_image(boxes: Tensor, size: Tensor, image: Tensor) -> Tensor:
    """Boxes in an image resized to `size` (height, width), for the image (1, 3, H, W) as it was given."""
    edge = corners(torch._shape_as_tensor(image)[2:])
    return clip(boxes * (edge / corners(size)), edge)


def place_anchors(generator: Any, x: Tensor, pyramid: Sequence[Tensor]) -> list[Tensor]:
    """torchvision's anchors for a batch (1, 3, H, W), by level, (H_l · W_l · A, 4)."""
    placed = []
    for features, cell in zip(pyramid, generator.cell_anchors, strict=True):
        height, width = features.shape[2:]
        y = torch.arange(height) * (x.shape[2] // height)
        x_ = torch.arange(width) * (x.shape[3] // width)
        shifts = torch.stack(torch.meshgrid(x_, y, indexing="xy"), 2).repeat(1, 1, 2)  # (H_l, W_l, 4)
        placed.append((shifts[:, :, None] + cell).flatten(0, 2))
    return placed


def top(scores: Tensor, count: int) -> Any:
    """The best so many of (N,), or all of them; values and indices."""
    return scores.topk(torch.minimum(torch._shape_as_tensor(scores)[0], torch.tensor(count)))  # type: ignore[arg-type]


def suppress(boxes: Tensor, labels: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of what is left by non-maximum suppression within each label, best first; no box is below 0.

    As torchvision does for few boxes, other labels are moved out of reach. For more than 1000, it goes label by label.
    """
    reach = F.pad(boxes.flatten(), (0, 1)).max() + 1  # there may be no boxes
    return nms(boxes + (labels * reach)[:, None], scores, threshold)


def propose(rpn: Any, x: Tensor, pyramid: Sequence[Tensor], edge: Tensor) -> Tensor:
    """The region proposal network's boxes (P, 4), best first."""
    levels = [
        _propose(rpn, features, anchors, edge)
        for features, anchors in zip(pyramid, place_anchors(rpn.anchor_generator, x, pyramid), strict=True)
    ]
    boxes, scores = (torch.cat(parts) for parts in zip(*levels, strict=True))
    return boxes[top(scores, rpn.post_nms_top_n())[1]]


def _propose(rpn: Any, features: Tensor, anchors: Tensor, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes and scores of one level."""
    # OpenVINO 2026.4 cannot compile maps in 8 bits that lose their first dimension
    logits, deltas = (maps[0].permute(0, 2, 3, 1) for maps in rpn.head([features]))  # (1, H, W, A) and (1, H, W, 4 A)
    logits, best = top(logits.flatten(), rpn.pre_nms_top_n())
    boxes = clip(rpn.box_coder.decode_single(deltas.reshape(-1, 4)[best], anchors[best]), edge)
    large = remove_small_boxes(boxes, rpn.min_size)
    boxes, scores = boxes[large], logits[large].sigmoid()
    keep = nms(boxes, scores, rpn.nms_thresh)
    return boxes[keep], scores[keep]


def pool(align: MultiScaleRoIAlign, pyramid: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
    """RoIAlign of boxes (N, 4), each in its level.

    Returns:
        (N, 256, side, side), level by level, and (N,) which box is in which row: reordering what comes of the features
        is cheaper than reordering them.
    """
    assert align.scales is not None and align.map_levels is not None
    levels = align.map_levels([boxes])
    rois = F.pad(boxes, (1, 0))  # of image 0
    order = [torch.where(levels == i)[0] for i in range(len(align.scales))]
    pooled = [
        roi_align(features, rois[here], align.output_size, scale, align.sampling_ratio)
        for features, here, scale in zip(pyramid, order, align.scales, strict=False)  # the coarsest is for proposals
    ]
    return torch.cat(pooled), torch.cat(order)


def decide(heads: Any, logits: Tensor, deltas: Tensor, proposals: Tensor, edge: Tensor) -> Boxes:
    """Detections, in pixels of the resized image.

    Args:
        heads: torchvision's RoIHeads.
        logits: (P, 1 + classes), background first.
        deltas: (P, 4 · (1 + classes)), or (P, 4) for all classes alike.
        proposals: (P, 4).
        edge: (4,), see `corners`.
    """
    scores = logits.softmax(1)[:, 1:]
    rows, labels = torch.where(scores > heads.score_thresh)
    scores = scores[rows, labels]
    by_class = deltas.unflatten(1, (-1, 4))
    chosen = by_class[rows, labels + 1] if by_class.shape[1] > 1 else by_class[rows, 0]
    boxes = clip(heads.box_coder.decode_single(chosen, proposals[rows]), edge)
    large = remove_small_boxes(boxes, 1e-2)
    boxes, labels, scores = boxes[large], labels[large], scores[large]
    keep = suppress(boxes, labels, scores, heads.nms_thresh)[: heads.detections_per_img]
    return boxes[keep], labels[keep], scores[keep]


def draw_masks(heads: Any, pyramid: Sequence[Tensor], boxes: Tensor, channels: Tensor) -> Tensor:
    """Probabilities (N, 28, 28) within boxes (N, 4), of one output channel each."""
    pooled, order = pool(heads.mask_roi_pool, pyramid, boxes)
    predictor = heads.mask_predictor
    features = predictor.relu(predictor.conv5_mask(heads.mask_head(pooled)))  # (N, 256, 28, 28)
    classify, channels = predictor.mask_fcn_logits, channels[order]
    # only the object's own class is computed; ONNX could not reshape what has no objects for a matrix product
    logits = (classify.weight[channels] * features).sum(1) + classify.bias[channels][:, None, None]
    return logits.sigmoid()[torch.argsort(order)]
