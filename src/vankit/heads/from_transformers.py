"""transformers' RT-DETR, D-FINE, Deformable DETR and UPerNet over a VAN, trained from scratch; see `vankit.heads`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_convert, clip_boxes_to_image

from vankit.errors import UserError
from vankit.heads.backbone import input_transform, install_backbone, normalise
from vankit.heads.semantic_fpn import segmentation_loss

Targets = Sequence[Mapping[str, Tensor]]

_MAX_DETECTIONS = 100  # per image, COCO's limit
_PRIOR = 0.01  # of an object, at the start of training with focal loss (arXiv 1708.02002, section 4.1)
_AUXILIARY_STAGE = 2
_AUXILIARY_WEIGHT = 0.4


def rt_detr(
    features: Any,
    num_classes: int,
    *,
    model: str = "van_b0",
    queries: int = 300,
    short_sides: Sequence[int] = (640,),
    long_side: int = 1333,
) -> nn.Module:
    """RT-DETR (Zhao et al., DETRs Beat YOLOs on Real-time Object Detection, arXiv 2304.08069).

    Args:
        features: see `vankit.heads.backbone.van_features`; it becomes part of the network.
        num_classes: classes C, labels 0 to C - 1.
        model: name of the VAN that `features` is.
        queries: detections before the best 100 are taken, at most the tokens of an image: 21 for 32x32 pixels.
        short_sides, long_side: see `vankit.heads.backbone.input_transform`.
    """
    from transformers import RTDetrConfig, RTDetrForObjectDetection

    transform = input_transform(short_sides, long_side)
    return _real_time(RTDetrConfig, RTDetrForObjectDetection, features, num_classes, model, queries, transform)


def d_fine(
    features: Any,
    num_classes: int,
    *,
    model: str = "van_b0",
    queries: int = 300,
    short_sides: Sequence[int] = (640,),
    long_side: int = 1333,
) -> nn.Module:
    """D-FINE (Peng et al., Redefine Regression Task in DETRs, arXiv 2410.13842).

    Args: as `rt_detr`.
    """
    from transformers import DFineConfig, DFineForObjectDetection

    transform = input_transform(short_sides, long_side)
    return _real_time(DFineConfig, DFineForObjectDetection, features, num_classes, model, queries, transform)


def deformable_detr(
    features: Any,
    num_classes: int,
    *,
    model: str = "van_b0",
    queries: int = 300,
    short_sides: Sequence[int] = (640,),
    long_side: int = 1333,
) -> nn.Module:
    """Deformable DETR with iterative box refinement (Zhu et al., arXiv 2010.04159).

    The paper's two-stage variant is left out: transformers trains no proposals.

    Args: as `rt_detr`, but `queries` has no upper limit.
    """
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

    config = DeformableDetrConfig(
        backbone_config=backbone_config(model, (1, 2, 3)),
        num_queries=queries,
        auxiliary_loss=True,
        with_box_refine=True,
        tie_word_embeddings=False,  # else every decoder layer has the same classifier
    )
    config.num_labels = num_classes
    network = DeformableDetrForObjectDetection(config)
    network.model.decoder.bbox_embed = network.bbox_embed
    _start_deformable_detr(network)
    _keep_boxes_in_float32(network)
    install_backbone(network, features)
    weights = {"bbox": config.bbox_loss_coefficient, "giou": config.giou_loss_coefficient}
    return DETR(network, input_transform(short_sides, long_side), padded=False, loss_weights=weights)


def upernet(features: Any, num_classes: int, *, model: str = "van_b0") -> nn.Module:
    """UPerNet (Xiao et al., Unified Perceptual Parsing, arXiv 1807.10221), width 512, with an auxiliary head.

    Args:
        features: see `vankit.heads.backbone.van_features`; it becomes part of the network.
        num_classes: classes C, labels 0 to C - 1, and 255 where a pixel has none.
        model: name of the VAN that `features` is.
    """
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    config = UperNetConfig(
        backbone_config=backbone_config(model, (0, 1, 2, 3)),
        hidden_size=512,
        auxiliary_in_channels=features.feature_info.channels()[_AUXILIARY_STAGE],
    )
    config.num_labels = num_classes
    network = UperNetForSemanticSegmentation(config)
    install_backbone(network, features)
    return UPerNet(network)


def backbone_config(model: str, stages: Sequence[int]) -> Any:
    """transformers' description of a VAN without weights, for `install_backbone`.

    Args:
        model: such as van_b0.
        stages: which of the four feature maps the head takes, 0 to 3.
    """
    from transformers import TimmBackboneConfig

    config = TimmBackboneConfig(backbone=model)
    config.out_indices = list(stages)
    return config


class DETR(nn.Module):
    """A transformers detector under the interface of `vankit.heads`.

    Args:
        network: its `ForObjectDetection` class.
        transform: prepares the images.
        padded: the network's boxes are fractions of the padded batch, else of each image in it.
        token_strides: of the maps whose tokens become queries; none where queries are learned.
        loss_weights: of the components that transformers reports without their weight.
    """

    def __init__(
        self,
        network: Any,
        transform: GeneralizedRCNNTransform,
        *,
        padded: bool,
        token_strides: Sequence[int] = (),
        loss_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.transform = transform
        self.padded = padded
        self.token_strides = tuple(token_strides)
        self.loss_weights = dict(loss_weights or {})

    def forward(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See `vankit.heads`.

        Raises:
            ValueError: there are no targets in training, or the images are too small for the queries.
        """
        if self.training:
            if targets is None:
                raise UserError("no targets: expected boxes and labels of every image in training")
            targets = [{"boxes": target["boxes"], "labels": target["labels"]} for target in targets]
        batch, targets = self.transform(list(images), targets if self.training else None)
        self._check_tokens(batch.tensors)
        mask = torch.zeros_like(batch.tensors[:, 0], dtype=torch.long)  # (B, H, W)
        for row, (height, width) in zip(mask, batch.image_sizes, strict=True):
            row[:height, :width] = 1
        padded = [tuple(mask.shape[1:])] * len(images)
        extents = [mask.new_tensor([w, h, w, h]) for h, w in (padded if self.padded else batch.image_sizes)]
        if targets is None:
            outputs = self.network(batch.tensors, pixel_mask=mask)
            found = best_detections(outputs.logits.float(), outputs.pred_boxes.float(), torch.stack(extents))
            sizes = [(image.shape[-2], image.shape[-1]) for image in images]
            found = self.transform.postprocess(found, batch.image_sizes, sizes)
            return [{**f, "boxes": clip_boxes_to_image(f["boxes"], size)} for f, size in zip(found, sizes, strict=True)]
        labels = [
            {"class_labels": target["labels"], "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / extent}
            for target, extent in zip(targets, extents, strict=True)
        ]
        return self._by_component(self.network(batch.tensors, pixel_mask=mask, labels=labels).loss_dict)

    def _by_component(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """transformers' losses, one per component and decoder layer, summed over the layers."""
        sums: dict[str, Tensor] = {}
        for name, loss in losses.items():
            if name.startswith("loss_"):  # else it is a statistic
                component = name.split("_")[1]
                sums[component] = sums.get(component, 0) + self.loss_weights.get(component, 1) * loss
        return sums

    def _check_tokens(self, images: Tensor) -> None:
        height, width = images.shape[-2:]
        tokens = sum((height // stride) * (width // stride) for stride in self.token_strides)
        queries = self.network.config.num_queries
        if self.token_strides and tokens < queries:
            raise UserError(
                f"images of {height}x{width} pixels have {tokens} tokens for {queries} queries: "
                "expected larger short_sides or fewer queries"
            )


class UPerNet(nn.Module):
    """transformers' UPerNet under the interface of `vankit.heads`."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def logits(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → logits (B, C, ⌈H/4⌉, ⌈W/4⌉)."""
        return self.network.decode_head(self.network.backbone(x).feature_maps)

    def forward(
        self, images: Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See `vankit.heads`; training images have one size.

        Raises:
            ValueError: in training there are no targets, images of several sizes, or less than two images.
        """
        sizes = {tuple(image.shape[-2:]) for image in images}
        if not self.training:
            batches = [torch.stack(list(images))] if len(sizes) == 1 else [image[None] for image in images]
            return [{"logits": logits} for batch in batches for logits in self.network(normalise(batch)).logits]
        if targets is None:
            raise UserError("no targets: expected the semantic labels of every image in training")
        if len(sizes) > 1:
            raise UserError(f"training images of {len(sizes)} sizes: expected one, crop them")
        if len(images) < 2:
            raise UserError(
                "a batch of one image: UPerNet normalises a single pooled pixel per image, expected a batch size of 2 "
                "or more per process in training"
            )
        maps = self.network.backbone(normalise(torch.stack(list(images)))).feature_maps
        labels = torch.stack([target["semantic"] for target in targets])
        return {
            "segmentation": segmentation_loss(self.network.decode_head(maps), labels),
            "auxiliary": _AUXILIARY_WEIGHT * segmentation_loss(self.network.auxiliary_head(maps), labels),
        }


def _real_time(
    config_class: Any,
    network_class: Any,
    features: Any,
    num_classes: int,
    model: str,
    queries: int,
    transform: GeneralizedRCNNTransform,
) -> nn.Module:
    config = config_class(
        backbone_config=backbone_config(model, (1, 2, 3)),
        encoder_in_channels=features.feature_info.channels()[1:],
        num_labels=num_classes,
        num_queries=queries,
    )
    network = network_class(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # transformers draws RT-DETR's around 0, its authors start at 1
    _keep_boxes_in_float32(network)
    install_backbone(network, features)
    return DETR(network, transform, padded=True, token_strides=config.feat_strides)


class _Float32(nn.Module):
    """A box head outside autocast: bfloat16 has steps of 2.5 pixels in a side of 640."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.head(x.float())


def _keep_boxes_in_float32(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if name in ("enc_bbox_head", "pre_bbox_head"):
                setattr(parent, name, _Float32(child))
            elif name == "bbox_embed":
                setattr(parent, name, nn.ModuleList(_Float32(head) for head in child.children()))


def best_detections(logits: Tensor, boxes: Tensor, extents: Tensor) -> list[dict[str, Tensor]]:
    """The best detections of each image, best first.

    Args:
        logits: (B, Q, C).
        boxes: (B, Q, 4) cx, cy, w, h as fractions of `extents`.
        extents: (B, 4) width, height, width, height.
    """
    found = []
    for logit, box, extent in zip(logits, boxes, extents, strict=True):
        scores, index = logit.sigmoid().flatten().topk(min(_MAX_DETECTIONS, logit.numel()))
        query = index.div(logit.shape[1], rounding_mode="floor")
        corners = box_convert(box[query], "cxcywh", "xyxy") * extent
        found.append({"boxes": corners, "labels": index % logit.shape[1], "scores": scores})
    return found


@torch.no_grad()
def _start_deformable_detr(network: Any) -> None:
    """Start from the paper's initial state; transformers leaves it to its checkpoints.

    Queries spread over the image, small boxes at their reference points, and few objects.
    """
    nn.init.normal_(network.model.query_position_embeddings.weight)
    for classifier in network.class_embed:
        nn.init.constant_(classifier.bias, -math.log((1 - _PRIOR) / _PRIOR))
    for head in network.bbox_embed:
        nn.init.zeros_(head.layers[-1].weight)
        nn.init.zeros_(head.layers[-1].bias)
    network.bbox_embed[0].layers[-1].bias[2:] = -2
