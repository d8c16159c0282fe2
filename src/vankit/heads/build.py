"""The heads by name: which task each serves, and how it is built over a VAN."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vankit.heads.backbone import van_features
from vankit.heads.cascade_rcnn import cascade_mask_rcnn
from vankit.heads.from_transformers import d_fine, deformable_detr, rt_detr, upernet
from vankit.heads.mask2former import mask2former
from vankit.heads.rcnn import faster_rcnn, mask_rcnn, retinanet
from vankit.heads.semantic_fpn import SemanticFPN
from vankit.heads.sparse_rcnn import sparse_rcnn


@dataclass(frozen=True)
class HeadOptions:
    """What a network is built from, beside its backbone and number of classes.

    Attributes:
        task: detect, segment or panoptic.
        head: one of `HEADS`.
        model: van_b0 to van_b6.
        short_sides, long_side: see `vankit.heads.backbone.input_transform`; detectors and panoptic heads resize by
            themselves, semantic ones take images as they come.
        queries: object queries or proposals, for heads that have them.
        things: for panoptic, whether each class is countable.
        lka: settings of the backbone's attention, see `vankit.LargeKernelAttention`.
    """

    task: str
    head: str
    model: str = "van_b0"
    short_sides: Sequence[int] = (800,)
    long_side: int = 1333
    queries: int = 100
    things: Sequence[bool] | None = None
    lka: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sides(self) -> dict[str, Any]:
        return {"short_sides": self.short_sides, "long_side": self.long_side}


@dataclass(frozen=True)
class Head:
    """An entry of `HEADS`.

    Attributes:
        tasks: the tasks it serves.
        masks: whether as a detector it predicts masks, and so is trained on them.
        build: (features, number of classes, options) → network.
    """

    tasks: tuple[str, ...]
    masks: bool
    build: Callable[[Any, int, HeadOptions], nn.Module]


def _detr(build: Any) -> Head:
    return Head(("detect",), False, lambda f, n, o: build(f, n, model=o.model, queries=o.queries, **o.sides))


_OUTPUTS: dict[str, Any] = {"panoptic": "panoptic", "detect": "instance", "segment": "semantic"}  # Mask2Former's words

HEADS: dict[str, Head] = {
    "retinanet": Head(("detect",), False, lambda f, n, o: retinanet(f, n, **o.sides)),
    "faster_rcnn": Head(("detect",), False, lambda f, n, o: faster_rcnn(f, n, **o.sides)),
    "mask_rcnn": Head(("detect",), True, lambda f, n, o: mask_rcnn(f, n, **o.sides)),
    "cascade_mask_rcnn": Head(("detect",), True, lambda f, n, o: cascade_mask_rcnn(f, n, **o.sides)),
    "sparse_rcnn": Head(("detect",), False, lambda f, n, o: sparse_rcnn(f, n, proposals=o.queries, **o.sides)),
    "rt_detr": _detr(rt_detr),
    "d_fine": _detr(d_fine),
    "deformable_detr": _detr(deformable_detr),
    "semantic_fpn": Head(("segment",), False, lambda f, n, o: SemanticFPN(f, n)),
    "upernet": Head(("segment",), False, lambda f, n, o: upernet(f, n, model=o.model)),
    "mask2former": Head(
        ("panoptic", "detect", "segment"),
        True,
        lambda f, n, o: mask2former(
            f,
            n,
            model=o.model,
            things=o.things,
            output=_OUTPUTS[o.task],
            queries=o.queries,
            **o.sides,
        ),
    ),
}


def build_network(
    options: HeadOptions,
    num_classes: int,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    grad_checkpointing: bool = False,
) -> nn.Module:
    """A network for a dense task: a VAN and a head, with the interface of `vankit.heads`.

    Args:
        options: which head, and its settings.
        num_classes: classes of the data.
        pretrained, drop_path_rate, grad_checkpointing: of the backbone, see `vankit.heads.backbone.van_features`.

    Raises:
        FileNotFoundError, ValueError, vankit.DownloadError: there is no such head for the task, or see `van_features`.
        ImportError: the head needs transformers.
    """
    serving = [name for name, head in HEADS.items() if options.task in head.tasks]
    if not serving:
        raise ValueError(f"unknown task {options.task!r}: expected detect, segment or panoptic")
    if options.head not in serving:
        raise ValueError(f"unknown head {options.head!r} for {options.task}: expected one of {', '.join(serving)}")
    features = van_features(options.model, pretrained, drop_path_rate, grad_checkpointing, options.lka)
    try:
        return HEADS[options.head].build(features, num_classes, options)
    except ImportError as error:
        if error.name != "transformers":
            raise
        raise ImportError(f"{options.head} needs transformers: pip install 'vankit[heads]'") from None
