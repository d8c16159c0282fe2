"""The heads by name: parameters as published, settings that arrive, names that are refused."""

from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import vankit  # noqa: F401  (registers the models)
from vankit.errors import UserError
from vankit.heads.backbone import AsTheyCome, backbone_of
from vankit.heads.build import HEADS, build_network
from vankit.models.description import Description

CLASSES = 13
NEEDS_TRANSFORMERS = {"rt_detr", "d_fine", "deformable_detr", "upernet", "mask2former"}
PAIRS = [(name, task) for name, head in HEADS.items() for task in head.tasks]


def build(task: str, head: str, model: str = "van_b0", classes: int = 80, **options: Any) -> Any:
    """On no device, which is quick; Deformable DETR's start needs numbers."""
    if head in NEEDS_TRANSFORMERS:
        pytest.importorskip("transformers")
    with nullcontext() if head == "deformable_detr" else torch.device("meta"):
        return build_network(Description(task, head, model, [str(i) for i in range(classes)], **options))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("head", "model", "millions"),
    [
        ("retinanet", "van_b0", 13.4),  # the paper's figures on COCO
        ("retinanet", "van_b1", 23.6),
        ("retinanet", "van_b2", 36.3),
        ("retinanet", "van_b3", 54.5),
        ("mask_rcnn", "van_b0", 23.9),
        ("mask_rcnn", "van_b1", 33.5),
        ("mask_rcnn", "van_b2", 46.2),
        ("mask_rcnn", "van_b3", 64.4),
        ("cascade_mask_rcnn", "van_b0", 56.8),
        ("sparse_rcnn", "van_b0", 85.8),
    ],
)
def test_detectors_have_the_published_number_of_parameters(head: str, model: str, millions: float) -> None:
    assert parameters(build("detect", head, model)) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(
    ("head", "task", "millions"),
    [
        ("faster_rcnn", "detect", 21.2),
        ("rt_detr", "detect", 22.5),
        ("d_fine", "detect", 20.8),
        ("semantic_fpn", "segment", 8.0),
        ("upernet", "segment", 32.1),
        ("mask2former", "panoptic", 23.5),
    ],
)
def test_the_other_heads_have_the_number_of_parameters_in_the_docs(head: str, task: str, millions: float) -> None:
    assert round(parameters(build(task, head, "van_b0")) / 1e6, 1) == millions


@pytest.mark.parametrize(("head", "task"), PAIRS)
def test_every_head_takes_its_settings(head: str, task: str) -> None:
    things = [i % 2 == 0 for i in range(CLASSES)]
    network = build(task, head, classes=CLASSES, short_sides=(48, 64), long_side=96, queries=17, things=things)
    van = backbone_of(network)
    with torch.device("meta"):
        classifier = timm.create_model("van_b0", num_classes=0)
    assert {name: p.shape for name, p in van.named_parameters()} == {
        name: p.shape for name, p in classifier.named_parameters()
    }
    transforms = [m for m in network.modules() if isinstance(m, GeneralizedRCNNTransform)]
    if task == "segment":  # takes images as they come
        assert all(isinstance(transform, AsTheyCome) for transform in transforms)
    else:
        assert [(tuple(t.min_size), t.max_size) for t in transforms] == [((48, 64), 96)]
    shapes = {tuple(p.shape) for p in network.parameters()}
    assert any(shape[0] in (CLASSES, CLASSES + 1, 9 * CLASSES) for shape in shapes)
    if head in ("sparse_rcnn", "deformable_detr", "mask2former"):
        assert any(shape[0] == 17 for shape in shapes)  # learned queries
    if head in ("rt_detr", "d_fine"):
        assert network.network.config.num_queries == 17
    if head == "mask2former":
        assert network.output == {"panoptic": "panoptic", "detect": "instance", "segment": "semantic"}[task]
        assert tuple(network.things.shape) == (CLASSES,)


def test_more_classes_are_more_parameters_of_the_classifier_alone() -> None:
    per_class = parameters(build("segment", "semantic_fpn", classes=4)) - parameters(
        build("segment", "semantic_fpn", classes=3)
    )
    assert per_class == 128 + 1


@pytest.mark.parametrize(
    ("head", "masks"),
    [
        ("faster_rcnn", False),
        ("mask_rcnn", True),
        ("cascade_mask_rcnn", True),
    ],
)
def test_heads_with_masks_say_so(head: str, masks: bool) -> None:
    assert HEADS[head].masks is masks
    assert any("mask" in name for name, _ in build("detect", head, classes=2).named_parameters()) is masks


def test_backbone_settings_arrive() -> None:
    description = Description("segment", "semantic_fpn", "van_b0.cifar10", ["a", "b"])
    network = build_network(description, pretrained=True, drop_path_rate=0.2, grad_checkpointing=True)
    van: Any = backbone_of(network)
    published = timm.create_model("van_b0.cifar10", pretrained=True).state_dict()
    assert all(torch.equal(tensor, published[name]) for name, tensor in van.state_dict().items())
    assert van.stage4.blocks[-1].drop_path.drop_prob == pytest.approx(0.2)
    assert all(stage.grad_checkpointing for stage in van.children())
    plain: Any = backbone_of(build("segment", "semantic_fpn"))
    assert not any(stage.grad_checkpointing for stage in plain.children())


def test_transformers_heads_take_named_weights() -> None:
    pytest.importorskip("transformers")
    network = build_network(Description("segment", "upernet", "van_b0.cifar10", ["a", "b"]), pretrained=True)
    published = timm.create_model("van_b0.cifar10", pretrained=True).state_dict()
    found = backbone_of(network).state_dict()
    assert all(torch.equal(tensor, published[name]) for name, tensor in found.items())


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown task 'classify': expected detect, segment or panoptic"):
        build_network(Description("classify", "retinanet"))
    with pytest.raises(UserError, match="unknown head 'yolo' for detect: expected one of retinanet, faster_rcnn"):
        build_network(Description("detect", "yolo"))
    with pytest.raises(UserError, match="unknown head 'retinanet' for segment: expected one of semantic_fpn, upernet"):
        build_network(Description("segment", "retinanet"))
    with pytest.raises(UserError, match="unknown head 'semantic_fpn' for panoptic: expected one of mask2former$"):
        build_network(Description("panoptic", "semantic_fpn"))
    with pytest.raises(UserError, match="unknown model 'van_b9'"):
        build_network(Description("detect", "retinanet", "van_b9"))
