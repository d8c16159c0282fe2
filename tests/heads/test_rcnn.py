"""RetinaNet, Faster R-CNN and Mask R-CNN: what is ours around torchvision's networks, on small pictures."""

from collections.abc import Callable, Iterator
from math import ceil, floor, log, log2
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from vankit.errors import UserError
from vankit.heads.backbone import van_features
from vankit.heads.rcnn import TorchvisionDetector, faster_rcnn, mask_rcnn, retinanet, roi_pool

CLASSES = 3
BUILD: dict[str, Callable[..., Any]] = {"retinanet": retinanet, "faster_rcnn": faster_rcnn, "mask_rcnn": mask_rcnn}
RPN_LOSSES = {"loss_objectness", "loss_rpn_box_reg"}
BOX_LOSSES = {"loss_classifier", "loss_box_reg"}
LOSSES = {
    "retinanet": {"classification", "bbox_regression"},
    "faster_rcnn": RPN_LOSSES | BOX_LOSSES,
    "mask_rcnn": RPN_LOSSES | BOX_LOSSES | {"loss_mask"},
}


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    """Every detector over VAN-B0, with few boxes, to be quick; RetinaNet reports its weak first guesses too."""
    networks = {}
    for name, build in BUILD.items():
        torch.manual_seed(0)
        networks[name] = build(van_features("van_b0"), CLASSES, short_sides=(64,), long_side=96)
        detector = networks[name].detector
        if name == "retinanet":
            detector.score_thresh, detector.detections_per_img = 0.0, 8
        else:
            detector.rpn._post_nms_top_n = {"training": 50, "testing": 20}
            detector.roi_heads.fg_bg_sampler.batch_size_per_image = 16
            detector.roi_heads.detections_per_img = 8
    return networks


@pytest.fixture(params=BUILD)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def network(built: dict[str, Any], name: str) -> Iterator[Any]:
    torch.manual_seed(0)
    state = {key: tensor.clone() for key, tensor in built[name].state_dict().items()}
    built[name].zero_grad()
    yield built[name].train()
    built[name].load_state_dict(state)


def target(boxes: list[list[float]], labels: list[int], size: tuple[int, int] = (64, 64)) -> dict[str, Tensor]:
    """Boxes with masks that fill them."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, box in zip(masks, boxes, strict=True):
        x1, y1, x2, y2 = (int(v) for v in box)
        mask[y1:y2, x1:x2] = True
    return {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
    }


def constant(layer: Any, bias: list[float]) -> None:
    """Make a layer answer its bias whatever it sees."""
    nn.init.zeros_(layer.weight)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(bias))


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    return [torch.rand(3, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]


# labels and masks on their way in and out


class Recorder(nn.Module):
    """In the place of torchvision's network: keeps what it is given, and answers what it is told."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.given: Any = None

    def forward(self, *inputs: Any) -> Any:
        self.given = inputs
        return self.answer


@pytest.mark.parametrize(("background", "first"), [(False, 0), (True, 1)])
def test_labels_are_shifted_by_the_background_both_ways(background: bool, first: int) -> None:
    network = TorchvisionDetector(Recorder({"loss": torch.zeros(())}), background)
    given = target([[1.0, 2.0, 30.0, 40.0], [5.0, 5.0, 9.0, 9.0]], [0, 2])
    given["iscrowd"] = torch.zeros(2, dtype=torch.bool)
    assert set(network.train()(images((64, 64)), [given])) == {"loss"}
    (seen,) = network.detector.given[1]
    assert seen["labels"].tolist() == [first, 2 + first]
    assert torch.equal(seen["boxes"], given["boxes"])
    assert seen["masks"].dtype == torch.uint8 and torch.equal(seen["masks"].bool(), given["masks"])
    assert set(seen) == {"boxes", "labels", "masks"}
    assert given["labels"].tolist() == [0, 2]  # the caller's are untouched

    network.detector.answer = [{"labels": torch.tensor([first, 2 + first]), "scores": torch.tensor([0.9, 0.1])}]
    (result,) = network.eval()(images((64, 64)))
    assert result["labels"].tolist() == [0, 2]
    assert len(network.detector.given) == 1


def test_masks_are_probabilities_of_a_half_or_more() -> None:
    probabilities = torch.tensor([[[[0.49, 0.5, 0.51]]], [[[0.0, 1.0, 0.0]]]])  # (2, 1, 1, 3)
    network = TorchvisionDetector(Recorder([{"labels": torch.tensor([1, 1]), "masks": probabilities}]), True).eval()
    (result,) = network(images((1, 3)))
    assert result["masks"].tolist() == [[[False, True, True]], [[False, True, False]]]


def test_targets_are_needed_in_training(network: Any) -> None:
    with pytest.raises(UserError, match="no targets: expected boxes and labels of every image in training"):
        network(images((64, 64)))


def test_a_head_that_knows_one_class_reports_it(network: Any, name: str) -> None:
    if name == "retinanet":  # 9 anchors a place, classes innermost
        constant(network.detector.head.classification_head.cls_logits, [-9.0, -9.0, 5.0] * 9)
    else:
        constant(network.detector.roi_heads.box_predictor.cls_score, [0.0, -9.0, -9.0, 5.0])
    with torch.inference_mode():
        (result,) = network.eval()(images((64, 64)))
    assert len(result["labels"]) and set(result["labels"].tolist()) == {2}
    assert result["scores"].min() > 0.9


def test_a_head_that_knows_the_class_has_no_loss_for_it(network: Any, name: str) -> None:
    classes = [20.0 if i == 1 else -20.0 for i in range(CLASSES)]
    if name == "retinanet":
        constant(network.detector.head.classification_head.cls_logits, classes * 9)
    else:
        constant(network.detector.roi_heads.box_predictor.cls_score, [-20.0, *classes])
        network.detector.rpn._post_nms_top_n = {"training": 0, "testing": 20}  # the true boxes are the only samples
    losses = [
        network(images((64, 64)), [target([[0.0, 0.0, 64.0, 64.0]], [label])])[
            "classification" if name == "retinanet" else "loss_classifier"
        ].item()
        for label in (0, 1, 2)
    ]
    if name == "retinanet":  # the background is wrong everywhere else
        assert losses[1] < min(losses[0], losses[2]) - 5
    else:
        network.detector.rpn._post_nms_top_n = {"training": 50, "testing": 20}
        assert losses == pytest.approx([40.0, 0.0, 40.0], abs=1e-3)


# training


def test_a_training_step_reaches_every_part(network: Any, name: str) -> None:
    targets = [target([[4, 4, 40, 44], [20, 30, 60, 60]], [0, 2]), target([[10, 5, 65, 45]], [1], (50, 70))]
    losses = network(images((64, 64), (50, 70)), targets)
    assert set(losses) == LOSSES[name]
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    detector = network.detector
    parts = [*detector.backbone.body.children(), detector.backbone.fpn]
    if name == "retinanet":
        parts += [detector.head.classification_head, detector.head.regression_head]
    else:
        heads = detector.roi_heads
        parts += [detector.rpn.head, heads.box_head, heads.box_predictor.cls_score, heads.box_predictor.bbox_pred]
    if name == "mask_rcnn":
        parts += [detector.roi_heads.mask_head, detector.roi_heads.mask_predictor]
    assert all(any(p.grad.any() for p in part.parameters()) for part in parts)


@pytest.mark.parametrize("objects", [[0], [0, 1]])
def test_images_without_objects_train(network: Any, name: str, objects: list[int]) -> None:
    targets = [target([[4.0, 4.0, 40.0, 44.0]][:n], [1][:n]) for n in objects]
    losses = network(images(*[(64, 64)] * len(objects)), targets)
    assert set(losses) == LOSSES[name] and all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# detections


def test_detections_are_sorted_and_inside_each_image(network: Any, name: str) -> None:
    sizes = [(75, 61), (33, 90)]
    given = images(*sizes)
    with torch.inference_mode():
        results = network.eval()(given)
    for (height, width), result in zip(sizes, results, strict=True):
        count = len(result["scores"])
        assert 1 < count <= 8
        assert set(result) == {"boxes", "labels", "scores"} | ({"masks"} if name == "mask_rcnn" else set())
        assert result["boxes"].shape == (count, 4) and result["boxes"].dtype == torch.float32
        x1, y1, x2, y2 = result["boxes"].unbind(1)
        assert (x1 >= 0).all() and (x1 <= x2).all() and (x2 <= width + 1e-4).all()
        assert (y1 >= 0).all() and (y1 <= y2).all() and (y2 <= height + 1e-4).all()
        assert result["labels"].dtype == torch.int64
        assert (result["labels"] >= 0).all() and (result["labels"] < CLASSES).all()
        assert (result["scores"] >= 0).all() and (result["scores"] <= 1).all()
        assert torch.equal(result["scores"], result["scores"].sort(descending=True).values)
        if name == "mask_rcnn":
            assert result["masks"].shape == (count, height, width) and result["masks"].dtype == torch.bool
    assert torch.equal(given[0], images(*sizes)[0])


@pytest.mark.parametrize("size", [(40, 200), (200, 40), (3, 90), (7, 5), (1, 1)])
def test_any_size_is_taken(network: Any, name: str, size: tuple[int, int]) -> None:
    with torch.inference_mode():
        (result,) = network.eval()(images(size))
    assert all(value.isfinite().all() for value in result.values())
    assert (result["boxes"] <= torch.tensor([size[1], size[0]] * 2) + 1e-4).all()
    pools = [module for module in network.modules() if isinstance(module, MultiScaleRoIAlign)]
    assert all(pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32] for pool in pools)
    assert len(pools) == {"retinanet": 0, "faster_rcnn": 1, "mask_rcnn": 2}[name]
    if "masks" in result:
        assert result["masks"].shape[1:] == size


def test_a_thin_image_trains(network: Any) -> None:
    losses = network(images((40, 200)), [target([[20.0, 4.0, 180.0, 36.0]], [1], (40, 200))])
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("name", ["mask_rcnn"])
def test_a_found_box_and_its_mask_are_in_the_images_pixels(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    only = torch.tensor([[16.0, 8.0, 48.0, 40.0]])
    monkeypatch.setattr(network.detector.rpn, "filter_proposals", lambda *_: ([only], [torch.ones(1)]))
    heads = network.detector.roi_heads
    constant(heads.box_predictor.cls_score, [0.0, -9.0, 9.0, -9.0])
    constant(heads.box_predictor.bbox_pred, [0.0] * 16)
    constant(heads.mask_predictor.mask_fcn_logits, [-9.0, -9.0, 9.0, -9.0])
    with torch.inference_mode():
        (result,) = network.eval()(images((128, 160)))  # seen at 64 × 80
    assert result["labels"].tolist() == [1]
    torch.testing.assert_close(result["boxes"], 2 * only)
    expected = torch.zeros(128, 160, dtype=torch.bool)
    expected[16:80, 32:96] = True
    assert int((result["masks"][0] ^ expected).sum()) <= 4 * 64 + 4  # torchvision's pasting may add a pixel a side


def test_the_network_sees_normalised_images_of_the_given_side(network: Any) -> None:
    seen: list[Tensor] = []
    hook = network.detector.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        network.eval()([torch.full((3, 128, 100), 0.75)])
    hook.remove()
    assert seen[0].shape == (1, 3, 96, 64)  # 81 × 64, padded
    torch.testing.assert_close(seen[0][:, :, :81], torch.full((1, 3, 81, 64), 0.5))
    assert not seen[0][:, :, 81:].any()


# the pyramid


@pytest.mark.parametrize("model", ["van_b0", "van_b1"])
def test_p6_comes_from_the_last_stage(model: str) -> None:
    """VAN-B0's last stage is as wide as the pyramid, and there torchvision's own block takes P5."""
    torch.manual_seed(0)
    features = van_features(model).eval()
    top = features.feature_info.channels()[-1]
    assert LastLevelP6P7(top, 256).use_P5 is (model == "van_b0")
    backbone = retinanet(features, CLASSES).detector.backbone
    x = torch.rand(1, 3, 96, 128)
    with torch.inference_mode():
        c5 = features(x)[3]
        levels = backbone(x)
        extra = backbone.fpn.extra_blocks
        from_c5 = extra.p6(c5)
    assert extra.p6.in_channels == top
    torch.testing.assert_close(levels["p6"], from_c5)
    torch.testing.assert_close(levels["p7"], extra.p7(from_c5.relu()))
    if model == "van_b0":
        extra.use_P5 = True
        assert not torch.allclose(backbone(x)["p6"], from_c5)


@pytest.mark.parametrize(
    ("name", "names"), [("retinanet", ["1", "2", "3", "p6", "p7"]), ("faster_rcnn", ["0", "1", "2", "3", "pool"])]
)
def test_the_detectors_pyramids_have_the_papers_levels(network: Any, names: list[str]) -> None:
    with torch.inference_mode():
        levels = network.detector.backbone(torch.rand(1, 3, 128, 96))
    assert list(levels) == names
    strides = (8, 16, 32, 64, 128) if "p6" in names else (4, 8, 16, 32, 64)
    for level, stride in zip(levels.values(), strides, strict=True):
        assert tuple(level.shape) == (1, 256, ceil(128 / stride), ceil(96 / stride))


@pytest.mark.parametrize("name", ["retinanet"])
def test_retinanets_anchors_are_the_papers(network: Any) -> None:
    for i, anchors in enumerate(network.detector.anchor_generator.cell_anchors):
        width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
        side = (width * height).sqrt()
        wanted = torch.tensor([2 ** (5 + i + j / 3) for j in range(3)])  # three octave steps from 32 on P3
        torch.testing.assert_close(side.view(3, 3), wanted.expand(3, 3), rtol=0.06, atol=0)  # rounded to pixels
        torch.testing.assert_close(
            (height / width).view(3, 3), torch.tensor([[0.5], [1.0], [2.0]]).expand(3, 3), rtol=0.1, atol=0
        )


# pooling


@pytest.mark.parametrize("side", [8, 56, 111, 113, 223, 225, 447, 449, 900])
def test_boxes_are_pooled_from_the_level_of_their_size(side: float) -> None:
    pyramid = {str(i): torch.full((1, 2, 256 // 2**i, 256 // 2**i), float(i)) for i in range(4)}
    pooled = roi_pool(7)(pyramid, [torch.tensor([[0.0, 0.0, side, side]])], [(1024, 1024)])
    assert pooled.shape == (1, 2, 7, 7)
    # equation 1 of arXiv 1612.03144: 224 pixels are level 4, levels go from 2 to 5
    assert set(pooled.round(decimals=3).flatten().tolist()) == {min(max(floor(4 + log2(side / 224)), 2), 5) - 2}


@pytest.mark.parametrize("side", [14, 7])
def test_pooling_knows_its_strides_whatever_the_padding(side: int) -> None:
    """Maps whose value is the x of the pixel; torchvision would infer the strides from 13 × 400, padded to 32 × 416."""
    ramps = {str(i): (4 * 2**i * torch.arange(104 // 2**i)).float().expand(1, 1, 8 // 2**i, -1) for i in range(4)}
    boxes = torch.tensor([[100.0, 1.0, 180.0, 12.0], [10.0, 0.0, 390.0, 13.0], [200.0, 3.0, 208.0, 11.0]])
    pooled = roi_pool(side)(ramps, [boxes], [(13, 400)])
    torch.testing.assert_close(pooled.mean((1, 2, 3)), boxes[:, [0, 2]].mean(1), atol=0.5, rtol=0)


# autocast, which is emulated on most CPUs: Mask R-CNN is slow

slow_masks = pytest.mark.parametrize(
    "name", ["retinanet", "faster_rcnn", pytest.param("mask_rcnn", marks=pytest.mark.slow)]
)


def precise(boxes: Tensor) -> bool:
    """float32, and in use: bfloat16 could not hold them."""
    return boxes.dtype == torch.float32 and not torch.equal(boxes, boxes.bfloat16().float())


def watch(module: nn.Module, kept: list[Tensor]) -> Any:
    return module.register_forward_hook(lambda _, inputs, outputs: kept.extend(outputs))


@slow_masks
def test_anchors_are_the_same_under_autocast(network: Any) -> None:
    network.detector.transform.min_size, network.detector.transform.max_size = (32,), 320
    generator = next(m for m in network.modules() if isinstance(m, AnchorGenerator))
    plain: list[Tensor] = []
    rounded: list[Tensor] = []
    for kept, enabled in ((plain, False), (rounded, True)):
        hook = watch(generator, kept)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            network.eval()(images((32, 320)))
        hook.remove()
    network.detector.transform.min_size, network.detector.transform.max_size = (64,), 96
    assert rounded[0].dtype == torch.float32 and torch.equal(plain[0], rounded[0])
    assert not torch.equal(plain[0], plain[0].bfloat16().float())  # which it could not be in bfloat16


@pytest.mark.parametrize("name", ["faster_rcnn", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_proposals_are_exact_under_autocast(network: Any) -> None:
    given: list[Tensor] = []
    hook = network.detector.roi_heads.box_roi_pool.register_forward_pre_hook(lambda _, inputs: given.extend(inputs[1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = network(images((64, 64)), [target([[4.0, 4.0, 40.0, 44.0]], [1])])
        with torch.inference_mode():
            network.eval()(images((64, 64)))
    hook.remove()
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert len(given) == 2 and all(precise(boxes) for boxes in given)


@slow_masks
def test_detections_are_exact_under_autocast(network: Any, name: str) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (result,) = network.eval()(images((75, 61)))
    assert precise(result["boxes"]) and precise(result["scores"])
    if name == "mask_rcnn":
        assert result["masks"].dtype == torch.bool


@slow_masks
def test_the_backbone_does_run_in_bfloat16(network: Any) -> None:
    seen: list[Tensor] = []
    hook = watch(network.detector.backbone.fpn.layer_blocks[0][0], seen)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network.eval()(images((64, 64)))
    hook.remove()
    assert seen[0].dtype == torch.bfloat16


def test_a_first_guess_of_retinanet_is_one_in_a_hundred(built: dict[str, Any]) -> None:
    bias = built["retinanet"].detector.head.classification_head.cls_logits.bias
    torch.testing.assert_close(bias, torch.full_like(bias, -log(99)))
