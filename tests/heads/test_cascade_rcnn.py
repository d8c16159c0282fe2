"""Cascade Mask R-CNN: the stages checked by hand, and the whole network on small pictures."""

import copy
from itertools import pairwise
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vankit.heads.backbone import van_features
from vankit.heads.cascade_rcnn import CascadeRoIHeads, CascadeStage, cascade_mask_rcnn

CLASSES = 3
LOSSES = {"loss_objectness", "loss_rpn_box_reg"} | {
    f"stage{i}_{name}" for i in (1, 2, 3) for name in ("class", "box", "mask")
}
SIZES = [(64, 64)]


@pytest.fixture(scope="module")
def built() -> Any:
    """A cascade over VAN-B0 that samples 24 boxes per image, to be quick."""
    torch.manual_seed(0)
    network = cascade_mask_rcnn(van_features("van_b0"), CLASSES, short_sides=(64,), long_side=96)
    for stage in network.detector.roi_heads.stages:
        stage.fg_bg_sampler.batch_size_per_image = 24
    network.detector.rpn._post_nms_top_n = {"training": 100, "testing": 20}
    return network


@pytest.fixture
def network(built: Any) -> Any:
    torch.manual_seed(0)
    return copy.deepcopy(built)


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


def pyramid(channels: int = 4, height: int = 64, width: int = 64) -> dict[str, Tensor]:
    return {str(i): torch.rand(1, channels, height // 4 // 2**i, width // 4 // 2**i) for i in range(4)}


def constant(layer: Any, bias: list[float]) -> None:
    """Make a layer answer its bias whatever it sees."""
    nn.init.zeros_(layer.weight)
    layer.bias.data = torch.tensor(bias)


def constant_heads() -> CascadeRoIHeads:
    """A cascade that answers zeros."""
    heads = CascadeRoIHeads(4, CLASSES)
    for stage in heads.stages:
        constant(stage.box_predictor.cls_score, [0.0] * (CLASSES + 1))
        constant(stage.box_predictor.bbox_pred, [0.0] * 4)
        constant(stage.mask_predictor.mask_fcn_logits, [0.0] * CLASSES)
    return heads


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_are_those_of_the_published_layout() -> None:
    with torch.device("meta"):
        heads = CascadeRoIHeads(256, 80)
    box = (256 * 49 + 1) * 1024 + 1025 * 1024 + 1025 * 81 + 1025 * 4
    mask = 4 * (256 * 9 + 1) * 256 + (256 * 4 * 256 + 256) + 257 * 80
    assert parameters(heads) == 3 * (box + mask)


def test_van_b0_has_56_8_million_parameters() -> None:
    assert parameters(cascade_mask_rcnn(van_features("van_b0"), 80)) == pytest.approx(56.8e6, rel=0.01)


@pytest.mark.parametrize(("overlap", "foreground"), [(0.45, 0), (0.55, 1), (0.65, 2), (0.75, 3)])
def test_each_stage_matches_at_its_own_overlap(overlap: float, foreground: int) -> None:
    proposal = torch.tensor([[0.0, 0.0, 100.0, 100 * overlap]])
    wanted = target([[0.0, 0.0, 100.0, 100.0]], [2], (100, 100))
    for i, stage in enumerate(CascadeRoIHeads(4, CLASSES).stages):
        _, _, labels, _ = stage.select_training_samples([proposal], [wanted])
        assert labels[0].tolist() == [2 if i < foreground else 0, 2]  # the true box is the last


def test_samples_are_512_with_a_quarter_of_foreground() -> None:
    true = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    proposals = torch.cat([true.expand(300, 4), true.expand(600, 4) + 32])
    _, _, labels, _ = (
        CascadeRoIHeads(4, CLASSES).stages[0].select_training_samples([proposals], [target(true.tolist(), [1])])
    )
    assert len(labels[0]) == 512 and int((labels[0] > 0).sum()) == 128


@pytest.mark.parametrize(("stage", "scale"), [(0, 1.0), (1, 2.0), (2, 3.0)])
def test_refinement_decodes_and_clips(stage: int, scale: float) -> None:
    boxes = [torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.zeros(0, 4), torch.tensor([[10.0, 20.0, 30.0, 60.0]])]
    # centre (20, 40) moves by half a width and a quarter of a height, the width doubles
    deltas = scale * torch.tensor([[10 * 0.5, 10 * 0.25, 5 * log(2), 0.0]]).repeat(2, 1).requires_grad_()
    refined = CascadeRoIHeads(4, CLASSES).stages[stage].refine(deltas, boxes, [(100, 100), (100, 100), (60, 45)])
    torch.testing.assert_close(refined[0], torch.tensor([[10.0, 30.0, 50.0, 70.0]]))
    assert refined[1].shape == (0, 4)
    torch.testing.assert_close(refined[2], torch.tensor([[10.0, 30.0, 45.0, 60.0]]))
    assert not refined[0].requires_grad


def test_losses_by_hand() -> None:
    stage = CascadeStage(4, CLASSES, 0.5, (10.0, 10.0, 5.0, 5.0))
    constant(stage.box_predictor.cls_score, [0.0] * 4)
    constant(stage.box_predictor.bbox_pred, [0.0] * 4)
    constant(stage.mask_predictor.mask_fcn_logits, [-20.0, 1.0, -20.0])
    true = target([[0.0, 0.0, 32.0, 32.0]], [2])
    true["masks"][:] = True
    proposals = torch.tensor([[2.0, 0.0, 34.0, 32.0], [40.0, 40.0, 60.0, 60.0]])  # foreground and background
    losses, refined = stage.losses(pyramid(), [proposals], SIZES, [true])
    assert losses["class"].item() == pytest.approx(log(4))
    wrong = 10 * 2 / 32  # the first proposal's x; of three samples, smooth L1 below 1
    assert losses["box"].item() == pytest.approx(0.5 * wrong**2 / 3)
    assert losses["mask"].item() == pytest.approx(log(1 + 1 / torch.tensor(1.0).exp().item()))
    assert torch.equal(refined[0], proposals)  # the true box is left out


def test_losses_are_weighted_by_stage() -> None:
    _, losses = constant_heads().train()(pyramid(), [torch.zeros(0, 4)], SIZES, [target([[0.0, 0.0, 32.0, 32.0]], [1])])
    for i, weight in enumerate((1.0, 0.5, 0.25), 1):
        assert losses[f"stage{i}_class"].item() == pytest.approx(weight * log(4))
        assert losses[f"stage{i}_mask"].item() == pytest.approx(weight * log(2))


def test_a_stage_starts_from_the_boxes_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = constant_heads()
    constant(heads.stages[0].box_predictor.bbox_pred, [10 * 0.5, 0.0, 0.0, 0.0])  # half a width to the right
    constant(heads.stages[1].box_predictor.bbox_pred, [0.0, 20 * 0.25, 0.0, 0.0])  # a quarter of a height down
    seen = []
    for stage in heads.stages:
        sample = stage.select_training_samples
        monkeypatch.setattr(stage, "select_training_samples", lambda p, t, f=sample: (seen.append(p[0]), f(p, t))[1])
    heads(pyramid(), [torch.tensor([[0.0, 0.0, 20.0, 20.0]])], SIZES, [target([[30.0, 30.0, 60.0, 60.0]], [1])])
    assert [boxes.tolist() for boxes in seen] == [[[0, 0, 20, 20]], [[10, 0, 30, 20]], [[10, 5, 30, 25]]]


def test_detections_average_the_stages_and_keep_the_last_boxes() -> None:
    heads = constant_heads().eval()
    logits = torch.tensor([[0.0, 3.0, 0.0, -9.0], [0.0, 0.0, 0.5, -9.0], [0.0, 0.0, 2.5, -9.0]])
    masks = torch.tensor([[1.0, 0.0, 0.0], [2.0, -1.0, 0.0], [3.0, -2.0, 0.0]])
    for i, stage in enumerate(heads.stages):
        constant(stage.box_predictor.cls_score, logits[i].tolist())
        constant(stage.box_predictor.bbox_pred, [(10.0, 20.0, 30.0)[i] * 0.25, 0.0, 0.0, 0.0])
        constant(stage.mask_predictor.mask_fcn_logits, masks[i].tolist())
    proposals = [torch.tensor([[0.0, 0.0, 20.0, 20.0], [1.0, 0.0, 21.0, 20.0]])]  # the second is a duplicate
    (result,), losses = heads(pyramid(), proposals, SIZES)
    assert losses == {}
    torch.testing.assert_close(result["boxes"], torch.tensor([[15.0, 0.0, 35.0, 20.0]] * 2))
    assert result["labels"].tolist() == [1, 2]
    torch.testing.assert_close(result["scores"], logits.mean(0).softmax(0)[[1, 2]])  # the third is below 0.05
    expected = masks.sigmoid().mean(0)[:2, None, None, None].expand(2, 1, 28, 28)
    torch.testing.assert_close(result["masks"], expected)


def test_pooling_knows_the_strides_of_a_thin_picture() -> None:
    features = {
        str(i): (2**i * 4 * torch.arange(416 // 4 // 2**i)).float().expand(1, 1, 32 // 4 // 2**i, -1) for i in range(4)
    }
    stage = CascadeStage(1, CLASSES, 0.5, (10.0, 10.0, 5.0, 5.0))
    for pool in (stage.box_roi_pool, stage.mask_roi_pool):  # of 13 × 400 pixels, padded to 32 × 416
        pooled = pool(features, [torch.tensor([[100.0, 1.0, 180.0, 12.0]])], [(13, 400)])
        assert pooled.mean().item() == pytest.approx(140, abs=0.5)


def test_without_proposals_nothing_is_found_and_training_goes_on() -> None:
    heads = CascadeRoIHeads(4, CLASSES)
    _, losses = heads(pyramid(), [torch.zeros(0, 4)], SIZES, [target([], [])])
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in heads.parameters())
    (result,), _ = heads.eval()(pyramid(), [torch.zeros(0, 4)], SIZES)
    assert {name: tuple(value.shape) for name, value in result.items()} == {
        "boxes": (0, 4), "scores": (0,), "labels": (0,), "masks": (0, 1, 28, 28)
    }  # fmt: skip


def test_a_training_step_reaches_every_part(network: Any) -> None:
    images = [torch.rand(3, 64, 64), torch.rand(3, 50, 70)]
    targets = [target([[4, 4, 40, 44], [20, 30, 60, 60]], [0, 2]), target([[10, 5, 65, 45]], [1], (50, 70))]
    losses = network(images, targets)
    assert set(losses) == LOSSES
    assert all(loss.ndim == 0 and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    detector = network.detector
    parts = [detector.backbone.body, detector.backbone.fpn, detector.rpn.head]
    for stage in detector.roi_heads.stages:
        parts += [stage.box_head, stage.box_predictor.cls_score, stage.box_predictor.bbox_pred, stage.mask_head]
        parts += [stage.mask_predictor]
    assert all(any(p.grad.any() for p in part.parameters()) for part in parts)


@pytest.mark.parametrize("objects", [[0], [0, 1], [1, 0]])
def test_images_without_objects_train(network: Any, objects: list[int]) -> None:
    targets = [target([[4.0, 4.0, 40.0, 44.0]][:n], [1][:n]) for n in objects]
    losses = network([torch.rand(3, 64, 64) for _ in objects], targets)
    assert set(losses) == LOSSES and all(loss.isfinite() for loss in losses.values())
    assert bool(losses["stage3_mask"]) == any(objects)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_results_are_in_the_pixels_of_each_image(network: Any) -> None:
    sizes = [(75, 61), (33, 90)]
    with torch.inference_mode():
        results = network.eval()([torch.rand(3, *size) for size in sizes])
    for (height, width), result in zip(sizes, results, strict=True):
        count = len(result["scores"])
        assert 0 < count <= 100
        assert result["boxes"].shape == (count, 4) and result["boxes"].dtype == torch.float32
        assert result["labels"].dtype == torch.int64 and set(result["labels"].tolist()) <= {0, 1, 2}
        assert result["masks"].shape == (count, height, width) and result["masks"].dtype == torch.bool
        assert all(a >= b for a, b in pairwise(result["scores"].tolist()))
        assert result["scores"].max() <= 1 and result["scores"].min() > 0.05
        assert (result["boxes"] >= 0).all()
        assert (result["boxes"] <= torch.tensor([width, height, width, height]) + 1e-3).all()


def test_masks_lie_in_their_boxes(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    only = torch.tensor([[16.0, 8.0, 48.0, 40.0]])
    monkeypatch.setattr(network.detector.rpn, "forward", lambda images, features, targets: ([only], {}))
    for stage in network.detector.roi_heads.stages:
        constant(stage.box_predictor.cls_score, [0.0, 9.0, 0.0, 0.0])
        constant(stage.box_predictor.bbox_pred, [0.0] * 4)
        constant(stage.mask_predictor.mask_fcn_logits, [9.0, -9.0, -9.0])
    with torch.inference_mode():
        (result,) = network.eval()([torch.rand(3, 128, 160)])  # seen at 64 × 80
    assert result["labels"].tolist() == [0]
    torch.testing.assert_close(result["boxes"], 2 * only)
    expected = torch.zeros(128, 160, dtype=torch.bool)
    expected[16:80, 32:96] = True
    assert int((result["masks"][0] ^ expected).sum()) <= 4 * 64 + 4  # torchvision's pasting may add a pixel a side


def test_images_without_proposals_survive(network: Any) -> None:
    network.detector.rpn.score_thresh = 2.0
    image = torch.rand(3, 40, 70)
    losses = network([image], [target([], [], (40, 70))])
    assert all(loss.isfinite() for loss in losses.values())
    with torch.inference_mode():
        (result,) = network.eval()([image])
    assert result["boxes"].shape == (0, 4) and result["masks"].shape == (0, 40, 70)
    assert result["masks"].dtype == torch.bool


@pytest.mark.slow
def test_boxes_stay_exact_under_autocast(network: Any) -> None:
    pooled: list[Tensor] = []
    for stage in network.detector.roi_heads.stages:
        stage.box_roi_pool.register_forward_pre_hook(lambda module, inputs: pooled.extend(inputs[1]))
    with torch.autocast("cpu", torch.bfloat16):
        losses = network([torch.rand(3, 64, 64)], [target([[4.0, 4.0, 40.0, 44.0]], [1])])
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    assert len(pooled) == 3
    assert all(boxes.dtype == torch.float32 for boxes in pooled)
    assert not any(torch.equal(boxes, boxes.bfloat16().float()) for boxes in pooled)


def test_a_box_without_area_is_refused(network: Any) -> None:
    with pytest.raises(AssertionError, match="positive height and width"):
        network([torch.rand(3, 64, 64)], [target([[4.0, 4.0, 4.0, 44.0]], [1])])
