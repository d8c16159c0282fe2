"""transformers' Mask2Former over a VAN, trained from scratch, for panoptic, instance and semantic segmentation."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from vankit.data.semantic import IGNORE
from vankit.errors import UserError
from vankit.heads.backbone import AsTheyCome, input_transform, install_backbone
from vankit.heads.from_transformers import backbone_config

Output = Literal["panoptic", "instance", "semantic"]
Size = Sequence[int]

_MAX_INSTANCES = 100  # per image, COCO's limit


def mask2former(
    features: Any,
    num_classes: int,
    *,
    model: str = "van_b0",
    things: Sequence[bool] | None = None,
    output: Output = "panoptic",
    queries: int = 100,
    short_sides: Sequence[int] = (800,),
    long_side: int = 1333,
) -> nn.Module:
    """Mask2Former (Cheng et al., Masked-attention Mask Transformer, arXiv 2112.01527).

    Args:
        features: see `vankit.heads.backbone.van_features`; it becomes part of the network.
        num_classes: classes C, labels 0 to C - 1.
        model: name of the VAN that `features` is.
        things: per class, whether it is counted: its segments stay apart in panoptic output, and it is part of instance
            output. None for all of them.
        output: what eval mode returns, and for "semantic" also what training takes.
        queries: segments at most.
        short_sides, long_side: see `vankit.heads.backbone.input_transform`; semantic output takes images as they come.

    Raises:
        ValueError: `things` has not one entry per class.
    """
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    countable = (True,) * num_classes if things is None else tuple(things)
    if len(countable) != num_classes:
        raise UserError(f"things has {len(countable)} entries: expected one for each of {num_classes} classes")
    # It warns of every backbone but Swin.
    logging.getLogger("transformers.models.mask2former.configuration_mask2former").setLevel(logging.ERROR)
    config = Mask2FormerConfig(backbone_config=backbone_config(model, (0, 1, 2, 3)), num_queries=queries)
    config.num_labels = num_classes
    network = Mask2FormerForUniversalSegmentation(config)
    install_backbone(network, features)
    transform = AsTheyCome() if output == "semantic" else input_transform(short_sides, long_side)
    return Mask2Former(network, transform, countable, output)


class Mask2Former(nn.Module):
    """transformers' Mask2Former under the interface of `vankit.heads`.

    Args:
        network: Mask2FormerForUniversalSegmentation.
        transform: prepares images and masks.
        things: per class, whether it is counted.
        output: what eval mode returns.
    """

    things: Tensor

    def __init__(
        self, network: Any, transform: GeneralizedRCNNTransform, things: Sequence[bool], output: Output
    ) -> None:
        super().__init__()
        self.network = network
        self.transform = transform
        self.register_buffer("things", torch.tensor(things), persistent=False)
        self.output = output

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See `vankit.heads`.

        Raises:
            ValueError: there are no targets in training.
        """
        if not self.training:
            batch, _ = self.transform(list(images))
            outputs = self.network(batch.tensors)
            return [
                self.answer(classes, Masks(logits, batch.tensors.shape[-2:], size, image.shape[-2:]))
                for classes, logits, size, image in zip(
                    outputs.class_queries_logits.float(),
                    outputs.masks_queries_logits.float(),
                    batch.image_sizes,
                    images,
                    strict=True,
                )
            ]
        if targets is None:
            raise UserError("no targets: expected labels and masks of every image in training")
        labels, masks = zip(*(self._segments(target) for target in targets), strict=True)
        # The transform asks for boxes wherever there are masks.
        batch, resized = self.transform(list(images), [{"boxes": m.new_zeros(0, 4), "masks": m} for m in masks])
        return self._losses(batch.tensors, list(labels), [_pad(r["masks"], batch.tensors) for r in resized])

    def _segments(self, target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Labels (N,) and masks (N, H, W) of an image; in semantic segmentation a class is one segment."""
        if self.output != "semantic":
            return target["labels"], target["masks"]
        semantic = target["semantic"]
        labels = semantic.unique()
        labels = labels[labels != IGNORE]
        return labels, semantic == labels[:, None, None]

    def _losses(self, pixels: Tensor, labels: list[Tensor], masks: list[Tensor]) -> dict[str, Tensor]:
        outputs = self.network(pixels, output_auxiliary_logits=True)
        # Matching is scipy's, which has no bfloat16.
        with torch.autocast(pixels.device.type, enabled=False):
            weighted = self.network.get_loss_dict(
                masks_queries_logits=outputs.masks_queries_logits.float(),
                class_queries_logits=outputs.class_queries_logits.float(),
                mask_labels=masks,
                class_labels=labels,
                auxiliary_predictions=[
                    {name: logits.float() for name, logits in layer.items()} for layer in outputs.auxiliary_logits
                ],
            )
        names = {"class": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
        return {
            ours: torch.stack([loss for name, loss in weighted.items() if name.startswith(theirs)]).sum()
            for ours, theirs in names.items()
        }

    def answer(self, logits: Tensor, masks: "Masks") -> dict[str, Tensor]:
        """What `output` asks for, of an image's class logits (Q, C + 1) and masks."""
        probabilities = logits.softmax(1)[:, :-1]  # (Q, C)
        if self.output == "semantic":
            scores = torch.einsum("qc,qhw->chw", probabilities, masks.logits().sigmoid())
            return {"logits": scores.clamp(min=torch.finfo(scores.dtype).tiny).log()}
        if self.output == "instance":
            return instances(probabilities * self.things, masks)
        return panoptic(probabilities, masks, self.things)


class Masks:
    """An image's mask logits (Q, h, w), brought to its size in pixels on demand.

    Args:
        logits: of the padded image, at a lower resolution.
        padded: height and width of the padded image.
        size: height and width of the resized image, in its top left corner.
        original: height and width before that.
    """

    def __init__(self, logits: Tensor, padded: Size, size: Size, original: Size) -> None:
        self._logits, self._padded, self._size, self._original = logits, padded, size, original

    def logits(self, queries: Tensor | slice = slice(None)) -> Tensor:
        """The logits (N, H, W) of N queries."""
        height, width = self._size
        chosen = self._logits[queries][:, None]  # (N, 1, h, w): N may be 0
        whole = F.interpolate(chosen, list(self._padded), mode="bilinear")[..., :height, :width]
        return F.interpolate(whole, list(self._original), mode="bilinear")[:, 0]


def instances(probabilities: Tensor, masks: Masks) -> dict[str, Tensor]:
    """The best instances of an image, best first (section 4.1, and the paper's code for the score of a mask).

    Args:
        probabilities: (Q, C), 0 where a class is not counted.
        masks: Q of them.

    Returns:
        `boxes` (N, 4) tight around `masks` (N, H, W) bool, `labels` (N,), `scores` (N,).
    """
    scores, index = probabilities.flatten().topk(min(_MAX_INSTANCES, probabilities.numel()))
    logits = masks.logits(index.div(probabilities.shape[1], rounding_mode="floor"))  # (N, H, W)
    found = logits > 0
    area = found.sum((1, 2))
    scores = scores * (logits.sigmoid() * found).sum((1, 2)) / area.clamp(min=1)
    order = scores.argsort(descending=True)
    order = order[(area > 0)[order] & (scores > 0)[order]]
    found = found[order]
    labels = (index % probabilities.shape[1])[order]
    return {"boxes": _boxes_around(found), "labels": labels, "scores": scores[order], "masks": found}


def _boxes_around(masks: Tensor) -> Tensor:
    """(N, H, W) bool, none of them empty → (N, 4) float32 x1, y1, x2, y2, edges of pixels.

    As torchvision's masks_to_boxes, which OpenVINO cannot run.
    """
    starts, ends = [], []
    for occupied in (masks.any(1), masks.any(2)):  # columns (N, W), rows (N, H)
        place = torch.arange(occupied.shape[1], device=masks.device)
        starts.append(torch.where(occupied, place, occupied.shape[1]).amin(1))
        ends.append(torch.where(occupied, place + 1, 0).amax(1))
    return torch.stack(starts + ends, 1).float()


def panoptic(
    probabilities: Tensor, masks: Masks, things: Tensor, min_score: float = 0.8, min_visible: float = 0.8
) -> dict[str, Tensor]:
    """Segments of an image that do not overlap (Cheng et al., MaskFormer, arXiv 2107.06278, section 3.4).

    Each pixel goes to the query of highest class probability x mask probability. A query that keeps less of its mask
    than `min_visible` is dropped. Stuff of one class is one segment.

    Args:
        probabilities: (Q, C), summing to less than 1: the rest is no object's.
        masks: Q of them.
        things: (C,) bool.
        min_score: class probability that a query needs, 0 to 1.
        min_visible: share of its mask that a query has to keep, 0 to 1.

    Returns:
        `segments` (H, W) int64, 0 for none and i + 1 for segment i; `labels` (S,), `scores` (S,).
    """
    scores, labels = probabilities.max(1)
    kept = ((scores > min_score) & (scores > 1 - probabilities.sum(1))).nonzero()[:, 0]
    # the last of K queries is nobody's and is never seen: there may be no other
    scores, labels = F.pad(scores[kept], (0, 1), value=1), F.pad(labels[kept], (0, 1))
    heat = F.pad(masks.logits(kept).sigmoid(), (0, 0, 0, 0, 0, 1), value=-1)  # (K, H, W)
    place = torch.arange(heat.shape[0], device=heat.device)
    owner = (scores[:, None, None] * heat).argmax(0)
    claimed = heat >= 0.5
    seen = claimed & (owner == place[:, None, None])
    visible = (seen.sum((1, 2)) >= min_visible * claimed.sum((1, 2))) & seen.flatten(1).any(1)
    same = visible & (labels[:, None] == labels)  # (K, K)
    first = torch.where(same, place, place[-1]).amin(1)  # of the class
    first = torch.where(things[labels], place, first)
    opens = visible & (first == place)  # a segment
    number = opens.long().cumsum(0)[first] * visible
    return {"segments": number[owner] * seen.any(0), "labels": labels[opens], "scores": scores[opens]}


def _pad(masks: Tensor, images: Tensor) -> Tensor:
    """(N, h, w) → float (N, H, W) of the padded images."""
    height, width = images.shape[-2:]
    return F.pad(masks.float(), (0, width - masks.shape[2], 0, height - masks.shape[1]))
