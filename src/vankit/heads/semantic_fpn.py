"""Semantic FPN (Kirillov et al., Panoptic Feature Pyramid Networks, arXiv 1901.02446), as the paper uses it (4.4)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vankit.data.semantic import IGNORE
from vankit.errors import UserError
from vankit.heads.backbone import VanFPN, normalise


class SemanticFPN(nn.Module):
    """A feature pyramid of width 256; each level is convolved and upsampled to stride 4, and the levels are summed.

    Args:
        features: see `vankit.heads.backbone.van_features`.
        num_classes: classes C.
        channels: width of the summed map.
        dropout: before the classifier, whole channels, 0 to 1.
    """

    def __init__(self, features: nn.Module, num_classes: int, channels: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone = VanFPN(features)
        self.scale_heads = nn.ModuleList(
            _scale_head(self.backbone.out_channels, channels, doublings) for doublings in range(4)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def logits(self, x: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) → logits (B, C, ⌈H/4⌉, ⌈W/4⌉)."""
        levels = list(self.backbone(x).values())
        total = self.scale_heads[0](levels[0])  # (B, 128, H/4, W/4)
        for head, level in zip(self.scale_heads[1:], levels[1:], strict=True):
            up = head(level)
            # sides that are not a multiple of 32; a trace is for all sides
            if torch.jit.is_tracing() or up.shape[2:] != total.shape[2:]:
                up = F.interpolate(up, total.shape[2:], mode="bilinear")
            total = total + up
        return self.classifier(self.dropout(total))

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """See `vankit.heads`; training images have one size.

        Raises:
            ValueError: there are no targets in training.
        """
        if not self.training:
            return [{"logits": _resize(self.logits(normalise(x[None])), x.shape[-2:])[0]} for x in images]
        if targets is None:
            raise UserError("no targets: expected the semantic labels of every image in training")
        x = normalise(torch.stack(list(images)))
        return {"segmentation": segmentation_loss(self.logits(x), torch.stack([t["semantic"] for t in targets]))}


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the labelled pixels, 0 where there are none.

    Args:
        logits: (B, C, h, w), upsampled to the labels' size.
        labels: (B, H, W) int64, 0 to C - 1 or 255.
    """
    logits = _resize(logits.float(), labels.shape[-2:])
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


def _resize(logits: Tensor, size: Any) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear")


def _scale_head(in_channels: int, channels: int, doublings: int) -> nn.Sequential:
    """3x3 conv → BatchNorm → ReLU → x2, as often as it takes to come to stride 4; once without the x2 at stride 4."""
    layers: list[nn.Module] = []
    for i in range(max(1, doublings)):
        layers += [
            nn.Conv2d(in_channels if i == 0 else channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
    return nn.Sequential(*layers)
