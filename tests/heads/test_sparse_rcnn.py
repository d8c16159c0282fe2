"""Sparse R-CNN against hand computation, brute force and torchvision."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou

from vankit.errors import UserError
from vankit.heads.backbone import van_features
from vankit.heads.sparse_rcnn import STAGES, DynamicHead, detections, losses, match, sparse_rcnn

PROPOSALS = 10
CLASSES = 3


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return sparse_rcnn(van_features("van_b0"), CLASSES, proposals=PROPOSALS, short_sides=(64,), long_side=96)


def target(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}


def random_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    low, size = torch.rand(2, *shape, 2, generator=generator, dtype=torch.float64)
    return torch.cat([low * 60, low * 60 + size * 40 + 1], dim=-1)


def focal(logit: float, positive: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


@pytest.mark.parametrize("proposals", [100, 300])
def test_size_is_the_published_one(proposals: int) -> None:
    network = sparse_rcnn(van_features("van_b0"), 80, proposals=proposals)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(85.8e6, rel=1e-3)


@pytest.mark.parametrize("objects", [0, 1, 3, 6])
def test_matching_is_the_cheapest_permutation(objects: int) -> None:
    generator = torch.Generator().manual_seed(objects)
    logits = torch.randn(2, 5, CLASSES, generator=generator, dtype=torch.float64)
    boxes = random_boxes(generator, 2, 5)
    true = random_boxes(generator, objects)
    labels = torch.randint(CLASSES, (objects,), generator=generator)
    unit = torch.tensor([120.0, 90.0, 120.0, 90.0], dtype=torch.float64)
    pairs = match(logits, boxes, {"boxes": true, "labels": labels}, unit)
    for stage, (rows, columns) in enumerate(pairs):
        giou = generalized_box_iou(boxes[stage], true)

        def cost(p: int, n: int, stage: int = stage, giou: Tensor = giou) -> float:
            logit = logits[stage, p, labels[n]].item()
            distance = ((boxes[stage, p] - true[n]) / unit).abs().sum().item()
            return 2 * (focal(logit, True) - focal(logit, False)) + 5 * distance - 2 * giou[p, n].item()

        count = min(5, objects)
        best = min(
            sum(cost(p, n) for p, n in zip(ps, ns, strict=True))
            for ps in itertools.combinations(range(5), count)
            for ns in itertools.permutations(range(objects), count)
        )
        assert len(rows) == len(set(rows.tolist())) == len(set(columns.tolist())) == count
        total = sum(cost(p, n) for p, n in zip(rows.tolist(), columns.tolist(), strict=True))
        assert total == pytest.approx(best, abs=1e-9)


def test_losses_by_hand() -> None:
    # Image 0 is 40 x 20 pixels with one object of class 1; image 1 is 100 x 100 with none.
    logits = torch.tensor([[[[0.5, -1.0], [-2.0, 1.5]], [[-3.0, -3.0], [0.0, 0.0]]]], dtype=torch.float64)
    boxes = torch.tensor([[[[0, 0, 40, 20], [4, 2, 14, 12]], [[0, 0, 9, 9], [1, 1, 5, 5]]]], dtype=torch.float64)
    targets = [target([[4.0, 2.0, 24.0, 12.0]], [1]), target([], [])]
    targets = [{**t, "boxes": t["boxes"].double()} for t in targets]
    result = losses(logits, boxes, targets, [(20, 40), (100, 100)])
    negatives = [0.5, -1.0, -2.0, -3.0, -3.0, 0.0, 0.0]
    classes = sum(focal(x, False) for x in negatives) + focal(1.5, True)
    assert list(result) == ["stage1_class", "stage1_box", "stage1_giou"]
    assert result["stage1_class"].item() == pytest.approx(2 * classes)
    assert result["stage1_box"].item() == pytest.approx(5 * 10 / 40)  # x2 is off by 10 of 40
    assert result["stage1_giou"].item() == pytest.approx(2 * (1 - 0.5))  # half the box, in no larger hull


def test_losses_are_per_object() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, boxes = (
        torch.randn(STAGES, 1, 4, CLASSES, generator=generator),
        random_boxes(generator, STAGES, 1, 4).float(),
    )
    one = target([[1.0, 2.0, 30.0, 40.0], [20.0, 20.0, 50.0, 60.0]], [0, 2])
    single = losses(logits, boxes, [one], [(64, 64)])
    triple = losses(logits.repeat(1, 3, 1, 1), boxes.repeat(1, 3, 1, 1), [one] * 3, [(64, 64)] * 3)
    assert len(single) == 3 * STAGES
    for name, loss in single.items():
        torch.testing.assert_close(triple[name], loss)


def test_labels_beyond_the_classes_are_refused() -> None:
    logits, boxes = torch.zeros(1, 1, 2, CLASSES), torch.rand(1, 1, 2, 4)
    with pytest.raises(UserError, match="labels 3 to 3: expected 0 to 2"):
        losses(logits, boxes, [target([[0.0, 0.0, 5.0, 5.0]], [3])], [(8, 8)])


def test_deltas_move_boxes_as_in_r_cnn() -> None:
    head = DynamicHead(CLASSES)
    nn.init.zeros_(head.box_deltas.weight)
    boxes = torch.tensor([[[10.0, 20.0, 30.0, 60.0]]])  # centre 20, 40, size 20 x 40
    for deltas, expected in (
        ([0.0, 0.0, 0.0, 0.0], [10.0, 20.0, 30.0, 60.0]),
        ([1.0, -0.5, math.log(2), -math.log(4)], [10.0, 25.0, 50.0, 35.0]),  # centre +20/2 and -40/4; x2, /4
        ([0.0, 0.0, 99.0, 0.0], [20 - 625.0, 20.0, 20 + 625.0, 60.0]),  # at most 1000/16 times as wide
    ):
        head.box_deltas.bias.data = torch.tensor(deltas)
        moved = head(torch.rand(1, 256, 7, 7), boxes, torch.randn(1, 1, 256))[1]
        torch.testing.assert_close(moved, torch.tensor([[expected]]))


def test_interaction_filters_each_region_by_its_own_proposal() -> None:
    torch.manual_seed(0)
    interaction = DynamicHead(CLASSES).interaction.double()
    objects, rois = torch.randn(1, 2, 256, dtype=torch.float64), torch.randn(2, 256, 7, 7, dtype=torch.float64)
    got = interaction(objects, rois)
    for i in range(2):
        kernels = interaction.kernels(objects[0, i])
        x = rois[i : i + 1]
        for kernel, norm in (
            (kernels[: 256 * 64].view(256, 64), interaction.norm1),
            (kernels[256 * 64 :].view(64, 256), interaction.norm2),
        ):
            x = nn.functional.conv2d(x, kernel.T[..., None, None])  # (1, C, 7, 7)
            x = norm(x.movedim(1, -1)).movedim(-1, 1).relu()
        flat = x[0].permute(1, 2, 0).flatten()
        torch.testing.assert_close(got[0, i], interaction.out_norm(interaction.out(flat)).relu())


def test_stages_refine_boxes_of_each_image_in_its_own_size(network: nn.Module) -> None:
    network.eval()
    seen: list[Tensor] = []
    hook = network.stages[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        pyramid = network.backbone(torch.rand(2, 3, 64, 96))
        logits, boxes = network.refine(pyramid, [(64, 96), (50, 70)])
    hook.remove()
    assert [tuple(level.shape) for level in pyramid.values()] == [(2, 256, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
    assert logits.shape == (STAGES, 2, PROPOSALS, CLASSES)
    assert boxes.shape == (STAGES, 2, PROPOSALS, 4)
    torch.testing.assert_close(seen[0][0], torch.tensor([0.0, 0.0, 96.0, 64.0]).expand(PROPOSALS, 4))
    torch.testing.assert_close(seen[0][1], torch.tensor([0.0, 0.0, 70.0, 50.0]).expand(PROPOSALS, 4))
    assert logits.sigmoid().median() == pytest.approx(0.01, abs=0.01)


def test_regions_are_taken_at_the_pyramids_strides(network: nn.Module) -> None:
    # 65 pixels padded to 96: strides read off the images' own size would come out halved.
    network.eval()
    with torch.no_grad():
        network([torch.rand(3, 64, 65)])
    assert network.roi_align.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_gradients_reach_everything(network: nn.Module) -> None:
    network.train().zero_grad()
    targets = [target([[5.0, 5.0, 40.0, 50.0]], [2]), target([[0.0, 10.0, 30.0, 40.0], [8.0, 8.0, 60.0, 30.0]], [0, 1])]
    result = network([torch.rand(3, 64, 64), torch.rand(3, 48, 80)], targets)
    assert set(result) == {f"stage{s}_{part}" for s in range(1, 7) for part in ("class", "box", "giou")}
    sum(result.values()).backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    still = [name for name, p in network.named_parameters() if p.dim() > 1 and not p.grad.any()]
    assert [name for name in still if "fpn.layer_blocks" not in name] == []  # a level may be without a box of its size
    assert network.proposal_boxes.grad.any() and network.proposal_features.grad.any()


def test_boxes_are_detached_between_stages(network: nn.Module) -> None:
    network.train().zero_grad()
    result = network([torch.rand(3, 64, 64)], [target([[5.0, 5.0, 40.0, 50.0]], [2])])
    (gradient,) = torch.autograd.grad(result["stage2_box"], [network.proposal_boxes], retain_graph=True)
    assert not gradient.any()
    (gradient,) = torch.autograd.grad(result["stage1_box"], [network.proposal_boxes])
    assert gradient.any()


def test_images_without_objects_train(network: nn.Module) -> None:
    network.train().zero_grad()
    result = network([torch.rand(3, 64, 64)] * 2, [target([], [])] * 2)
    assert all(loss.item() == 0 for name, loss in result.items() if not name.endswith("class"))
    assert all(loss.item() > 0 for name, loss in result.items() if name.endswith("class"))
    sum(result.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_targets_stay_as_they_were(network: nn.Module) -> None:
    targets = [{**target([[5.0, 5.0, 80.0, 90.0]], [1]), "masks": torch.ones(1, 128, 128, dtype=torch.bool)}]
    network.train()([torch.rand(3, 128, 128)], targets)
    assert targets[0]["boxes"].tolist() == [[5.0, 5.0, 80.0, 90.0]]
    assert targets[0]["masks"].shape == (1, 128, 128)


def test_detections_are_the_best_pairs_of_proposal_and_class() -> None:
    logits = torch.tensor([[3.0, -4.0, 2.0], [-5.0, -6.0, 1.0], [-7.0, -8.0, -9.0]])
    boxes = torch.arange(12.0).view(3, 4)
    found = detections(logits, boxes)
    assert found["labels"].tolist() == [0, 2, 2]
    torch.testing.assert_close(found["boxes"], boxes[[0, 0, 1]])
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 2.0, 1.0]).sigmoid())


def test_results_are_in_the_pixels_of_each_image(network: nn.Module) -> None:
    network.eval()
    sizes = [(37, 53), (131, 70), (64, 64)]
    with torch.no_grad():
        results = network([torch.rand(3, *size) for size in sizes])
    for (height, width), found in zip(sizes, results, strict=True):
        assert found["boxes"].shape == (PROPOSALS, 4)
        assert found["labels"].shape == found["scores"].shape == (PROPOSALS,)
        assert found["labels"].dtype == torch.int64 and found["labels"].min() >= 0 and found["labels"].max() < CLASSES
        assert found["scores"].min() > 0 and found["scores"].max() < 1
        assert (found["scores"].diff() <= 0).all()
        x1, y1, x2, y2 = found["boxes"].unbind(1)
        assert (x1 >= 0).all() and (x1 <= x2).all() and (x2 <= width).all()
        assert (y1 >= 0).all() and (y1 <= y2).all() and (y2 <= height).all()


def test_boxes_grow_back_with_the_image() -> None:
    # Heads that leave the whole-image boxes alone must return the whole image, whatever its size was resized to.
    frozen = sparse_rcnn(van_features("van_b0"), CLASSES, proposals=2, short_sides=(64,), long_side=96).eval()
    for stage in frozen.stages:
        nn.init.zeros_(stage.box_deltas.weight)
        nn.init.zeros_(stage.box_deltas.bias)
    with torch.no_grad():
        for found, size in zip(
            frozen([torch.rand(3, 37, 53), torch.rand(3, 131, 70)]), [(37, 53), (131, 70)], strict=True
        ):
            torch.testing.assert_close(found["boxes"], torch.tensor([0.0, 0.0, size[1], size[0]]).expand(2, 4))


@pytest.mark.slow
def test_bfloat16_keeps_matching_losses_and_boxes_in_float32(network: nn.Module) -> None:
    images, targets = [torch.rand(3, 64, 64)], [target([[5.0, 5.0, 40.0, 50.0]], [2])]
    network.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        sum(network(images, targets).values()).backward()
        pyramid = network.backbone(torch.rand(1, 3, 64, 64))
        logits, boxes = network.refine(pyramid, [(64, 64)])
        rounded = losses(logits, boxes, targets, [(64, 64)])
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert {level.dtype for level in pyramid.values()} == {torch.bfloat16}
    assert logits.dtype == boxes.dtype == torch.float32
    assert (boxes != boxes.bfloat16()).any()
    assert rounded == losses(logits, boxes, targets, [(64, 64)])


def test_losses_are_per_object_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, boxes = torch.zeros(1, 1, 2, CLASSES), torch.tensor([[[[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 5.0, 5.0]]]])
    arguments = logits, boxes, [target([[0.0, 0.0, 5.0, 5.0]], [1])], [(8, 8)]
    alone = losses(*arguments)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count: count.add_(5))  # the other process has five
    for name, loss in losses(*arguments).items():
        torch.testing.assert_close(loss, alone[name] / 3)


def test_training_needs_targets(network: nn.Module) -> None:
    with pytest.raises(UserError, match="without targets"):
        network.train()([torch.rand(3, 64, 64)])


@pytest.mark.parametrize(("classes", "proposals"), [(0, 10), (3, 0)])
def test_empty_networks_are_refused(classes: int, proposals: int) -> None:
    with pytest.raises(UserError, match="at least 1"):
        sparse_rcnn(nn.Identity(), classes, proposals=proposals)
