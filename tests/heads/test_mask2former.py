"""Mask2Former over a VAN: its losses, and segments put together by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import masks_to_boxes

from vankit.data.shapes import render_scene
from vankit.errors import UserError
from vankit.heads.backbone import backbone_of, van_features
from vankit.heads.mask2former import Masks, instances, mask2former, panoptic

pytest.importorskip("transformers")

SIZES = ((64, 64), (48, 64))
CLASSES = 10
STUFF_FROM = 5


def small(**options: Any) -> Any:
    torch.manual_seed(0)
    return mask2former(
        van_features("van_b0"), CLASSES, **{"queries": 20, "short_sides": (64,), "long_side": 96, **options}
    )


@pytest.fixture(scope="module")
def network() -> Any:
    return small(things=[label < STUFF_FROM for label in range(CLASSES)])


@pytest.fixture(scope="module")
def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    scenes = [render_scene(i, size=size, objects=2) for i, size in enumerate(SIZES)]
    images = [torch.from_numpy(scene.image).permute(2, 0, 1) / 255 for scene in scenes]
    return images, [
        {"labels": torch.from_numpy(scene.labels), "masks": torch.from_numpy(scene.masks)} for scene in scenes
    ]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def nothing(size: tuple[int, int]) -> dict[str, Tensor]:
    return {"labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, *size, dtype=torch.bool)}


def gradients(network: Any, losses: dict[str, Tensor]) -> dict[str, Tensor | None]:
    network.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def exact(logits: Tensor) -> Masks:
    """Masks at the resolution of their logits."""
    size = logits.shape[1:]
    return Masks(logits, size, size, size)


def test_parameters_of_the_full_network() -> None:
    full = mask2former(van_features("van_b0"), 133)
    assert sum(p.numel() for p in full.parameters()) / 1e6 == pytest.approx(23.5, abs=0.1)


def test_every_parameter_learns(network: Any, batch: Any) -> None:
    losses = network.train()(*batch)
    assert set(losses) == {"class", "mask", "dice"}
    found = gradients(network, losses)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    for stage in range(1, 5):
        assert any(g.abs().sum() > 0 for name, g in found.items() if f"stage{stage}." in name and g is not None)


def test_the_losses_add_up_to_that_of_transformers(network: Any, batch: Any) -> None:
    images, targets = batch
    torch.manual_seed(1)
    ours = sum(network.train()(images, targets).values())
    pixels, resized = network.transform(images, [{"boxes": torch.zeros(0, 4), **target} for target in targets])
    padded = [F.pad(t["masks"].float(), (0, 96 - t["masks"].shape[2])) for t in resized]
    torch.manual_seed(1)
    theirs = network.network(pixels.tensors, mask_labels=padded, class_labels=[t["labels"] for t in targets]).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("empty", [1, 2], ids=["an_image", "the_batch"])
def test_training_without_objects(network: Any, batch: Any, empty: int) -> None:
    images, targets = batch
    losses = network.train()(images, targets[: 2 - empty] + [nothing(size) for size in SIZES[2 - empty :]])
    found = gradients(network, losses)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in found.values() if gradient is not None)
    assert (losses["mask"] == 0) == (empty == 2)


@pytest.mark.slow
def test_training_under_autocast(network: Any, batch: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        losses = network.train()(*batch)
    assert all(gradient.isfinite().all() for gradient in gradients(network, losses).values() if gradient is not None)


def test_training_goes_on_after_validation_in_inference_mode(batch: Any) -> None:
    fresh = small()
    with torch.inference_mode():
        fresh.eval()(batch[0])
    gradients(fresh, fresh.train()(*batch))


def test_semantic_labels_are_one_segment_per_class() -> None:
    semantic = torch.full((4, 6), 255)
    semantic[0], semantic[2, :3] = 7, 1
    labels, masks = small(output="semantic")._segments({"semantic": semantic})
    assert labels.tolist() == [1, 7]
    assert torch.equal(masks[0], semantic == 1) and torch.equal(masks[1], semantic == 7)


def test_semantic_training_and_output(batch: Any) -> None:
    segmenter = small(output="semantic")
    targets = [{"semantic": torch.full(size, 255)} for size in SIZES]
    targets[0]["semantic"][:20] = 3
    assert all(loss.isfinite() for loss in segmenter.train()(batch[0], targets).values())
    with torch.no_grad():
        results = segmenter.eval()(batch[0])
    assert [tuple(result["logits"].shape) for result in results] == [(CLASSES, *size) for size in SIZES]
    assert all(result["logits"].isfinite().all() for result in results)


def teach(network: Any, batch: Any) -> Any:
    """Make the network answer with what it is taught: labels, and masks in the padded images."""
    _, targets = batch
    resized = network.transform(batch[0], [{"boxes": torch.zeros(0, 4), **target} for target in targets])[1]
    classes, masks = torch.zeros(2, 20, CLASSES + 1), torch.full((2, 20, 64, 96), -10.0)
    classes[..., -1] = 20
    for i, target in enumerate(resized):
        for j, (label, mask) in enumerate(zip(target["labels"], target["masks"], strict=True)):
            classes[i, j, label] = 40
            masks[i, j, : mask.shape[0], : mask.shape[1]] = mask * 20.0 - 10

    def answer(module: Any, args: Any, output: Any) -> Any:
        output.class_queries_logits, output.masks_queries_logits = classes, masks
        return output

    return network.network.register_forward_hook(answer)


def test_a_predicted_target_comes_back_as_panoptic_segments(batch: Any) -> None:
    network = small().eval()
    handle = teach(network, batch)
    results = network(batch[0])
    handle.remove()
    for result, target, size in zip(results, batch[1], SIZES, strict=True):
        assert result["segments"].shape == size and result["segments"].dtype is torch.int64
        assert result["labels"].tolist() == target["labels"].tolist()
        truth = (torch.arange(1, 3)[:, None, None] * target["masks"]).sum(0)
        assert (result["segments"] == truth).float().mean() > 0.97


def test_a_predicted_target_comes_back_as_instances(batch: Any) -> None:
    network = small(output="instance").eval()
    handle = teach(network, batch)
    results = network(batch[0])
    handle.remove()
    for result, target, size in zip(results, batch[1], SIZES, strict=True):
        best = result["labels"][:2].tolist()
        assert sorted(best) == sorted(target["labels"].tolist())
        assert result["masks"].shape[1:] == size and result["masks"].dtype is torch.bool
        for label, mask in zip(target["labels"].tolist(), target["masks"], strict=True):
            found = result["masks"][best.index(label)]
            assert (found & mask).sum() / (found | mask).sum() > 0.9


def test_panoptic_gives_each_pixel_to_the_likeliest_query() -> None:
    logits = torch.full((6, 2, 10), -9.0)
    logits[0, 0, :6] = 9  # thing 0
    logits[1, 0, 4:] = 3  # thing 0, 2 of its 6 pixels lost to the first: below 0.8 of them are left
    logits[2, 1, :5] = 9  # stuff 1
    logits[3, 1, 5:9] = 9  # stuff 1 again: one segment
    logits[4, 1, 9:] = 9  # thing 2, too unlikely
    logits[5, 1, 9:] = 9  # nothing, at 0.9
    probabilities = torch.zeros(6, 3)
    for query, (label, probability) in enumerate([(0, 0.99), (0, 0.9), (1, 0.9), (1, 0.95), (2, 0.7), (2, 0.1)]):
        probabilities[query, label] = probability
    result = panoptic(probabilities, exact(logits), torch.tensor([True, False, True]))
    assert result["segments"].tolist() == [[1] * 6 + [0] * 4, [2] * 9 + [0]]
    assert result["labels"].tolist() == [0, 1]
    torch.testing.assert_close(result["scores"], torch.tensor([0.99, 0.9]))


def test_things_of_one_class_stay_apart() -> None:
    logits = torch.tensor([[[9.0, -9]], [[-9, 9]]])
    result = panoptic(torch.tensor([[0.9], [0.9]]), exact(logits), torch.tensor([True]))
    assert result["segments"].tolist() == [[1, 2]] and result["labels"].tolist() == [0, 0]


def test_panoptic_of_nothing_is_all_void() -> None:
    result = panoptic(torch.zeros(5, 3), exact(torch.randn(5, 4, 6)), torch.ones(3, dtype=torch.bool))
    assert result["segments"].shape == (4, 6) and not result["segments"].any()
    assert len(result["labels"]) == len(result["scores"]) == 0


def one_by_one(probabilities: Tensor, masks: Tensor, things: Tensor) -> dict[str, Any]:
    """`panoptic` as a loop over the queries."""
    scores, labels = probabilities.max(1)
    kept = ((scores > 0.8) & (scores > 1 - probabilities.sum(1))).nonzero()[:, 0].tolist()
    heat = masks.sigmoid()
    segments = torch.zeros(masks.shape[1:], dtype=torch.int64)
    openers: list[int] = []
    for i in kept:
        owned = torch.stack([scores[j] * heat[j] for j in kept]).argmax(0) == kept.index(i)
        seen, claimed = owned & (heat[i] >= 0.5), heat[i] >= 0.5
        if not seen.any() or seen.sum() < 0.8 * claimed.sum():
            continue
        same = [n for n, j in enumerate(openers) if labels[j] == labels[i] and not things[labels[i]]]
        if not same:
            openers.append(i)
        segments[seen] = same[0] + 1 if same else len(openers)
    return {"segments": segments, "labels": labels[openers], "scores": scores[openers]}


def test_panoptic_is_what_a_loop_over_the_queries_gives() -> None:
    things = torch.arange(4) < 2
    counts = []
    for _ in range(200):
        probabilities = (torch.randn(12, 5) * 4).softmax(1)[:, :-1]
        logits = torch.randn(12, 3, 4) * 4 - 4
        expected = one_by_one(probabilities, logits, things)
        result = panoptic(probabilities, exact(logits), things)
        assert all(torch.equal(result[name], expected[name]) for name in expected)
        counts.append((expected["segments"].unique().numel(), len(expected["labels"])))
    assert len(set(counts)) > 5


def test_boxes_are_around_their_masks() -> None:
    masks = torch.rand(30, 7, 9) > 0.9
    masks = masks[masks.flatten(1).any(1)]
    probabilities = torch.rand(len(masks), 1)
    result = instances(probabilities, exact(masks * 2.0 - 1))
    expected = masks_to_boxes(result["masks"]) + torch.tensor([0, 0, 1, 1])
    assert len(result["boxes"]) == len(masks) and torch.equal(result["boxes"], expected)


def test_instances_are_ranked_by_class_and_mask() -> None:
    logits = torch.full((3, 4, 5), -20.0)
    logits[0, 1:3, 2:4] = 0.5  # an unsure mask, sigmoid 0.6225
    logits[1, 3, 0] = 20  # a sure one
    probabilities = torch.tensor([[0.8, 0.1], [0.6, 0.0], [0.9, 0.0]])  # the third has no pixel
    result = instances(probabilities, exact(logits))
    assert result["labels"].tolist() == [0, 0, 1]
    torch.testing.assert_close(result["scores"], torch.tensor([0.6, 0.8 * 0.62246, 0.1 * 0.62246]))
    assert result["boxes"].tolist() == [[0, 3, 1, 4], [2, 1, 4, 3], [2, 1, 4, 3]]
    assert torch.equal(result["masks"][1], logits[0] > 0)


def test_uncounted_classes_are_no_instances(network: Any, batch: Any) -> None:
    network.output = "instance"
    with torch.no_grad():
        results = network.eval()(batch[0])
    network.output = "panoptic"
    for result in results:
        assert len(result["labels"]) and result["labels"].max() < STUFF_FROM
        assert (result["scores"].diff() <= 0).all() and 0 < result["scores"].min() <= result["scores"].max() <= 1
        assert (result["boxes"][:, 2:] > result["boxes"][:, :2]).all()


def test_no_instance_at_all() -> None:
    result = instances(torch.full((2, 3), 0.5), exact(torch.full((2, 4, 5), -1.0)))
    assert result["boxes"].shape == (0, 4) and result["masks"].shape == (0, 4, 5)


def test_padding_is_cut_off_before_masks_are_enlarged() -> None:
    logits = torch.randn(2, 8, 8)
    whole = F.interpolate(logits[None], (32, 32), mode="bilinear")[..., :20, :28]
    expected = F.interpolate(whole, (40, 56), mode="bilinear")[0]
    torch.testing.assert_close(Masks(logits, (32, 32), (20, 28), (40, 56)).logits(), expected)


def test_the_given_van_arrives_whole() -> None:
    features: Any = van_features("van_b0")
    for name, buffer in features.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    before = {name: tensor.clone() for name, tensor in features.state_dict().items()}
    van = backbone_of(mask2former(features, CLASSES))
    after = van.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)
    with torch.no_grad():
        assert [m.shape[-1] for m in van(torch.rand(1, 3, 64, 64))] == [16, 8, 4, 2]


def test_mistakes_are_told(network: Any, batch: Any) -> None:
    with pytest.raises(UserError, match="things has 3 entries: expected one for each of 10 classes"):
        small(things=[True] * 3)
    with pytest.raises(UserError, match="no targets"):
        network.train()(batch[0])
