"""Sparse R-CNN (Sun et al., arXiv 2011.12450): detection from a few learned proposals, without anchors or NMS."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import (
    box_convert,
    clip_boxes_to_image,
    generalized_box_iou,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from vankit.errors import UserError
from vankit.heads.backbone import VanFPN, input_transform
from vankit.heads.rcnn import roi_pool

STAGES = 6
WIDTH = 256
_KERNEL_WIDTH = 64
_POOLED = 7
_PRIOR = 0.01
_ALPHA, _GAMMA = 0.25, 2.0
_WEIGHTS = {"class": 2.0, "box": 5.0, "giou": 2.0}  # of the matching costs and of the losses alike (section 4.1)

Target = dict[str, Tensor]
Match = tuple[Tensor, Tensor]


def sparse_rcnn(
    features: nn.Module,
    num_classes: int,
    *,
    proposals: int = 100,
    short_sides: Sequence[int] = (800,),
    long_side: int = 1333,
) -> nn.Module:
    """Sparse R-CNN over a VAN and a feature pyramid of strides 4 to 32.

    Args:
        features: see `vankit.heads.backbone.van_features`.
        num_classes: number of labels, from 1.
        proposals: learned boxes, which is also the number of detections per image; 100 or 300 in the paper.
        short_sides, long_side: see `vankit.heads.backbone.input_transform`.

    Returns:
        A detector (see `vankit.heads`). Its losses are stage1_class, stage1_box and stage1_giou to stage6_giou.

    Raises:
        ValueError: `num_classes` or `proposals` is less than 1.
    """
    if min(num_classes, proposals) < 1:
        raise UserError(f"{num_classes} classes and {proposals} proposals: expected at least 1 of each")
    return SparseRCNN(features, num_classes, proposals, short_sides, long_side)


class SparseRCNN(nn.Module):
    """See `sparse_rcnn`."""

    def __init__(
        self, features: nn.Module, num_classes: int, proposals: int, short_sides: Sequence[int], long_side: int
    ) -> None:
        super().__init__()
        self.transform = input_transform(short_sides, long_side)
        self.backbone = VanFPN(features, out_channels=WIDTH)
        # cx, cy, w, h in units of the image: every box starts as the whole of it.
        self.proposal_boxes = nn.Parameter(torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(proposals, 1))
        self.proposal_features = nn.Parameter(torch.randn(proposals, WIDTH))
        self.roi_align = roi_pool(_POOLED)
        self.stages = nn.ModuleList(DynamicHead(num_classes) for _ in range(STAGES))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> dict[str, Tensor] | list[Target]:
        """See `vankit.heads`."""
        if self.training:
            if targets is None:
                raise UserError("training mode without targets: expected a dict of boxes and labels per image")
            targets = [{"boxes": target["boxes"], "labels": target["labels"]} for target in targets]
        batch, targets = self.transform(list(images), targets if self.training else None)
        sizes = batch.image_sizes
        logits, boxes = self.refine(self.backbone(batch.tensors), sizes)
        if targets is not None:
            return losses(logits, boxes, targets, sizes)
        found = [detections(*outputs) for outputs in zip(logits[-1], boxes[-1], strict=True)]
        originals = [(image.shape[-2], image.shape[-1]) for image in images]
        found = self.transform.postprocess(found, sizes, originals)
        return [
            {**image, "boxes": clip_boxes_to_image(image["boxes"], size)}
            for image, size in zip(found, originals, strict=True)
        ]

    def refine(self, pyramid: dict[str, Tensor], sizes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Logits (stages, B, P, classes) and boxes (stages, B, P, 4), xyxy in pixels of the batch, float32.

        Args:
            pyramid: what VanFPN returns.
            sizes: height and width of every image of the batch.
        """
        scale = self.proposal_boxes.new_tensor([[w, h, w, h] for h, w in sizes])
        boxes = box_convert(self.proposal_boxes, "cxcywh", "xyxy") * scale[:, None]  # (B, P, 4)
        objects = self.proposal_features.expand(len(sizes), -1, -1)  # (B, P, 256)
        outputs: list[tuple[Tensor, Tensor]] = []
        for stage in self.stages:
            rois = self.roi_align(pyramid, list(boxes.detach()), list(sizes))  # (B P, 256, 7, 7)
            logits, boxes, objects = stage(rois, boxes, objects)
            outputs.append((logits, boxes))
            boxes = boxes.detach()
        return torch.stack([logits for logits, _ in outputs]), torch.stack([boxes for _, boxes in outputs])


class DynamicHead(nn.Module):
    """One stage: proposals attend to each other, then each to its own region; classes and finer boxes (section 3.1).

    Args:
        num_classes: number of labels.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, num_heads=8, batch_first=True)
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.interaction = DynamicInteraction()
        self.interaction_norm = nn.LayerNorm(WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 2048), nn.ReLU(), nn.Linear(2048, WIDTH))
        self.ffn_norm = nn.LayerNorm(WIDTH)
        self.class_branch = nn.Sequential(*_layer())
        self.class_logits = nn.Linear(WIDTH, num_classes)
        self.box_branch = nn.Sequential(*_layer(), *_layer(), *_layer())
        self.box_deltas = nn.Linear(WIDTH, 4)
        self.coder = BoxCoder((2.0, 2.0, 1.0, 1.0))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - _PRIOR) / _PRIOR))
        # As in Fast R-CNN (section 2.3): larger deltas, compounded over six stages, throw the boxes off the picture.
        nn.init.normal_(self.box_deltas.weight, std=0.001)
        nn.init.zeros_(self.box_deltas.bias)

    def forward(self, rois: Tensor, boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Finer boxes of better known objects.

        Args:
            rois: (B P, 256, 7, 7), the pyramid inside the boxes.
            boxes: (B, P, 4).
            objects: (B, P, 256), proposal features.

        Returns:
            Logits (B, P, classes), boxes and proposal features.
        """
        objects = self.attention_norm(objects + self.attention(objects, objects, objects, need_weights=False)[0])
        objects = self.interaction_norm(objects + self.interaction(objects, rois))
        objects = self.ffn_norm(objects + self.ffn(objects))
        logits = self.class_logits(self.class_branch(objects)).to(boxes.dtype)
        deltas = self.box_deltas(self.box_branch(objects)).to(boxes.dtype)  # autocast must not round pixels
        boxes = self.coder.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1)).view_as(boxes)
        return logits, boxes, objects


class DynamicInteraction(nn.Module):
    """Each proposal filters its own region by two 1×1 convolutions made from its features (section 3.1, figure 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.Linear(WIDTH, 2 * WIDTH * _KERNEL_WIDTH)
        self.norm1 = nn.LayerNorm(_KERNEL_WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH * _POOLED**2, WIDTH)
        self.out_norm = nn.LayerNorm(WIDTH)

    def forward(self, objects: Tensor, rois: Tensor) -> Tensor:
        """Proposal features (B, P, 256) and regions (B P, 256, 7, 7) → (B, P, 256)."""
        first, second = self.kernels(objects).flatten(0, 1).chunk(2, dim=-1)
        x = rois.flatten(2).transpose(1, 2)  # (B P, 49, 256)
        x = self.norm1(x @ first.unflatten(-1, (WIDTH, _KERNEL_WIDTH))).relu()  # (B P, 49, 64)
        x = self.norm2(x @ second.unflatten(-1, (_KERNEL_WIDTH, WIDTH))).relu()  # (B P, 49, 256)
        return self.out_norm(self.out(x.flatten(1))).relu().view_as(objects)


def _layer() -> tuple[nn.Module, ...]:
    return nn.Linear(WIDTH, WIDTH, bias=False), nn.LayerNorm(WIDTH), nn.ReLU()


def detections(logits: Tensor, boxes: Tensor) -> Target:
    """The P best pairs of proposal and class of one image, best first, of logits (P, classes) and boxes (P, 4)."""
    scores, pairs = logits.sigmoid().flatten().topk(len(boxes))
    classes = logits.shape[-1]
    return {"boxes": boxes[pairs // classes], "labels": pairs % classes, "scores": scores}


def losses(
    logits: Tensor, boxes: Tensor, targets: Sequence[Target], sizes: Sequence[tuple[int, int]]
) -> dict[str, Tensor]:
    """The weighted set prediction losses of every stage (section 3.2), each stage matched on its own.

    Args:
        logits: (stages, B, P, classes) float32.
        boxes: (stages, B, P, 4) float32 x1, y1, x2, y2 in pixels.
        targets: per image, boxes (N, 4) in the same pixels and labels (N,).
        sizes: height and width of every image, the unit of the L1 distance.

    Raises:
        ValueError: a label is not a class.
    """
    _check_labels(targets, logits.shape[-1])
    units = [boxes.new_tensor([w, h, w, h]) for h, w in sizes]
    matches = [match(logits[:, i], boxes[:, i], targets[i], unit) for i, unit in enumerate(units)]
    count = _object_count(targets, boxes.device)
    result: dict[str, Tensor] = {}
    for s in range(len(logits)):
        matched = [(i, *pairs[s]) for i, pairs in enumerate(matches)]
        wanted = torch.zeros_like(logits[s])
        for i, rows, columns in matched:
            wanted[i, rows, targets[i]["labels"][columns]] = 1
        found = torch.cat([boxes[s, i, rows] for i, rows, _ in matched])
        true = torch.cat([targets[i]["boxes"][columns] for i, _, columns in matched])
        unit = torch.cat([units[i].expand(len(rows), 4) for i, rows, _ in matched])
        parts = {
            "class": sigmoid_focal_loss(logits[s], wanted, _ALPHA, _GAMMA, reduction="sum"),
            "box": l1_loss(found / unit, true / unit, reduction="sum"),
            "giou": generalized_box_iou_loss(found, true, reduction="sum"),
        }
        result |= {f"stage{s + 1}_{name}": _WEIGHTS[name] * part / count for name, part in parts.items()}
    return result


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, target: Target, unit: Tensor) -> list[Match]:
    """The cheapest one-to-one assignment of proposals to the objects of one image, in every stage.

    Args:
        logits: (stages, P, classes).
        boxes: (stages, P, 4) x1, y1, x2, y2 in pixels.
        target: boxes (N, 4) and labels (N,).
        unit: (4,) width, height, width, height of the image.

    Returns:
        Per stage, the indices of min(P, N) proposals and of their objects.
    """
    from scipy.optimize import linear_sum_assignment

    positive = sigmoid_focal_loss(logits, torch.ones_like(logits), _ALPHA, _GAMMA)
    negative = sigmoid_focal_loss(logits, torch.zeros_like(logits), _ALPHA, _GAMMA)
    overlap = generalized_box_iou(boxes.flatten(0, 1), target["boxes"]).view(*boxes.shape[:2], -1)
    cost = (
        _WEIGHTS["class"] * (positive - negative)[..., target["labels"]]
        + _WEIGHTS["box"] * torch.cdist(boxes / unit, target["boxes"] / unit, p=1)
        - _WEIGHTS["giou"] * overlap
    )  # (stages, P, N)
    pairs = [linear_sum_assignment(stage) for stage in cost.cpu().numpy()]
    return [(torch.as_tensor(rows).to(boxes.device), torch.as_tensor(cols).to(boxes.device)) for rows, cols in pairs]


def _object_count(targets: Sequence[Target], device: torch.device) -> Tensor:
    """Objects per process, at least 1, as DETR normalises."""
    count = torch.tensor(float(sum(len(target["labels"]) for target in targets)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count /= torch.distributed.get_world_size()
    return count.clamp(min=1)


def _check_labels(targets: Sequence[Target], classes: int) -> None:
    labels = torch.cat([target["labels"] for target in targets])
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise UserError(f"labels {labels.min()} to {labels.max()}: expected 0 to {classes - 1}")
