"""The heads by name: which task each serves, and how it is built over a VAN."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vankit.errors import MissingPackageError, UserError
from vankit.heads.backbone import van_features
from vankit.heads.cascade_rcnn import cascade_mask_rcnn
from vankit.heads.from_transformers import d_fine, deformable_detr, rt_detr, upernet
from vankit.heads.mask2former import mask2former
from vankit.heads.rcnn import faster_rcnn, mask_rcnn, retinanet
from vankit.heads.semantic_fpn import SemanticFPN
from vankit.heads.sparse_rcnn import sparse_rcnn
from vankit.models.description import Description


@dataclass(frozen=True)
class Head:
    """An entry of `HEADS`.

    Attributes:
        tasks: the tasks it serves.
        masks: whether as a detector it predicts masks, and so is trained on them.
        build: (features, number of classes, description) → network.
    """

    tasks: tuple[str, ...]
    masks: bool
    build: Callable[[Any, int, Description], nn.Module]


def _model(description: Description) -> str:
    return description.model or "van_b0"


def _sides(description: Description) -> dict[str, Any]:
    return {"short_sides": description.short_sides, "long_side": description.long_side}


def _detr(build: Any) -> Head:
    return Head(("detect",), False, lambda f, n, d: build(f, n, model=_model(d), queries=d.queries, **_sides(d)))


_OUTPUTS: dict[str, Any] = {"panoptic": "panoptic", "detect": "instance", "segment": "semantic"}  # Mask2Former's words

HEADS: dict[str, Head] = {
    "retinanet": Head(("detect",), False, lambda f, n, d: retinanet(f, n, **_sides(d))),
    "faster_rcnn": Head(("detect",), False, lambda f, n, d: faster_rcnn(f, n, **_sides(d))),
    "mask_rcnn": Head(("detect",), True, lambda f, n, d: mask_rcnn(f, n, **_sides(d))),
    "cascade_mask_rcnn": Head(("detect",), True, lambda f, n, d: cascade_mask_rcnn(f, n, **_sides(d))),
    "sparse_rcnn": Head(("detect",), False, lambda f, n, d: sparse_rcnn(f, n, proposals=d.queries, **_sides(d))),
    "rt_detr": _detr(rt_detr),
    "d_fine": _detr(d_fine),
    "deformable_detr": _detr(deformable_detr),
    "semantic_fpn": Head(("segment",), False, lambda f, n, d: SemanticFPN(f, n)),
    "upernet": Head(("segment",), False, lambda f, n, d: upernet(f, n, model=_model(d))),
    "mask2former": Head(
        ("panoptic", "detect", "segment"),
        True,
        lambda f, n, d: mask2former(
            f,
            n,
            model=_model(d),
            things=d.things,
            output=_OUTPUTS[d.task],
            queries=d.queries,
            **_sides(d),
        ),
    ),
}


def check_head(task: str, head: str | None) -> None:
    """Refuse a head that does not serve a task.

    Raises:
        ValueError: there is no such task, or no such head for it.
    """
    serving = [name for name, entry in HEADS.items() if task in entry.tasks]
    if not serving:
        raise UserError(f"unknown task {task!r}: expected detect, segment or panoptic")
    if head not in serving:
        raise UserError(f"unknown head {head!r} for {task}: expected one of {', '.join(serving)}")


def build_network(
    description: Description,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    grad_checkpointing: bool = False,
) -> nn.Module:
    """A network for a dense task: a VAN and a head, with the interface of `vankit.heads`.

    Args:
        description: of the network; its task, head and classes at least.
        pretrained, drop_path_rate, grad_checkpointing: of the backbone, see `vankit.heads.backbone.van_features`.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: there is no such head for the task, or see `van_features`.
        ImportError: the head needs transformers.
    """
    check_head(description.task, description.head)
    features = van_features(_model(description), pretrained, drop_path_rate, grad_checkpointing, description.lka)
    try:
        return HEADS[description.head or ""].build(features, len(description.classes), description)
    except ImportError as error:
        if error.name != "transformers":
            raise
        raise MissingPackageError(f"{description.head} needs transformers: pip install 'vankit[heads]'") from None
