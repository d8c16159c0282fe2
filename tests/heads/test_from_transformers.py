"""transformers' detectors and UPerNet over a VAN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from vankit.data.shapes import render_scene
from vankit.errors import UserError
from vankit.heads.backbone import backbone_of, install_backbone, van_features
from vankit.heads.from_transformers import d_fine, deformable_detr, rt_detr, upernet

pytest.importorskip("transformers")

SIZES = ((64, 64), (48, 64))
CLASSES = 10
DETECTORS: dict[str, Callable[..., Any]] = {"rt_detr": rt_detr, "d_fine": d_fine, "deformable_detr": deformable_detr}
COMPONENTS = {
    "rt_detr": {"vfl", "bbox", "giou"},
    "d_fine": {"vfl", "bbox", "giou", "fgl", "ddf"},
    "deformable_detr": {"ce", "bbox", "giou"},
}


def small(build: Callable[..., Any], **options: Any) -> Any:
    torch.manual_seed(0)
    return build(van_features("van_b0"), CLASSES, **{"queries": 20, "short_sides": (64,), "long_side": 96, **options})


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request: pytest.FixtureRequest) -> Any:
    return small(DETECTORS[request.param])


@pytest.fixture(scope="module")
def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    scenes = [render_scene(i, size=size, objects=2) for i, size in enumerate(SIZES)]
    images = [torch.from_numpy(scene.image).permute(2, 0, 1) / 255 for scene in scenes]
    return images, [
        {"boxes": torch.from_numpy(scene.boxes), "labels": torch.from_numpy(scene.labels)} for scene in scenes
    ]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def nothing() -> dict[str, Tensor]:
    return {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}


def gradients(network: nn.Module, losses: dict[str, Tensor]) -> dict[str, Tensor | None]:
    network.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def train_mode_loss(network: nn.Module, *inputs: Any) -> Any:
    """The same random numbers at every call."""
    torch.manual_seed(1)
    return network.train()(*inputs)


@pytest.mark.parametrize(
    ("build", "millions"), [(rt_detr, 22.4), (d_fine, 20.7), (deformable_detr, 16.3)], ids=list(DETECTORS)
)
def test_parameters_of_the_full_detector(build: Callable[..., Any], millions: float) -> None:
    network = build(van_features("van_b0"), 80)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_every_parameter_learns(detector: Any, batch: Any) -> None:
    found = gradients(detector, train_mode_loss(detector, *batch))
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    for stage in range(1, 5):
        assert any(g.abs().sum() > 0 for name, g in found.items() if f"stage{stage}." in name and g is not None)


def test_the_losses_add_up_to_that_of_transformers(request: pytest.FixtureRequest, detector: Any, batch: Any) -> None:
    losses = train_mode_loss(detector, *batch)
    assert set(losses) == COMPONENTS[request.node.callspec.params["detector"]]
    with record(detector.network) as calls:
        train_mode_loss(detector, *batch)
    assert sum(losses.values()).item() == pytest.approx(calls[0][1].loss.item(), rel=1e-5)


@pytest.mark.parametrize("empty", [1, 2], ids=["an_image", "the_batch"])
def test_training_without_objects(detector: Any, batch: Any, empty: int) -> None:
    images, targets = batch
    losses = train_mode_loss(detector, images, targets[: 2 - empty] + [nothing()] * empty)
    found = gradients(detector, losses)
    assert all(loss.isfinite() for loss in losses.values())
    assert all(gradient.isfinite().all() for gradient in found.values() if gradient is not None)
    assert any(gradient.abs().sum() > 0 for gradient in found.values() if gradient is not None)


def test_detections_are_in_the_pixels_of_their_image(detector: Any, batch: Any) -> None:
    detector.eval()
    with torch.no_grad():
        results = detector(batch[0])
    for result, (height, width) in zip(results, SIZES, strict=True):
        assert result["boxes"].shape == (100, 4) and result["labels"].shape == result["scores"].shape == (100,)
        assert result["boxes"].min() >= 0
        assert result["boxes"][:, ::2].max() <= width and result["boxes"][:, 1::2].max() <= height
        assert result["scores"].min() >= 0 and result["scores"].max() <= 1
        assert (result["scores"].diff() <= 0).all()
        assert result["labels"].min() >= 0 and result["labels"].max() < CLASSES


class record:
    """Inputs and outputs of a module's calls."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> list[Any]:
        calls: list[Any] = []
        self.handle = self.module.register_forward_hook(
            lambda module, args, kwargs, output: calls.append((kwargs, output)), with_kwargs=True
        )
        return calls

    def __exit__(self, *problem: object) -> None:
        self.handle.remove()


def test_a_predicted_target_is_a_perfect_detection(detector: Any, batch: Any) -> None:
    """What the network is taught comes back, where the images differ in size, scale and padding."""
    images, targets = batch
    with record(detector.network) as calls:
        detector.train()(images, targets)
    labels = calls[0][0]["labels"]
    certain = [F.one_hot(target["class_labels"], CLASSES) * 20.0 - 10 for target in labels]

    def answer(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        output.logits, output.pred_boxes = torch.stack(certain), torch.stack([t["boxes"] for t in labels])
        return output

    handle = detector.network.register_forward_hook(answer, with_kwargs=True)
    with torch.no_grad():
        results = detector.eval()(images)
    handle.remove()
    for result, target in zip(results, targets, strict=True):
        best = result["boxes"][:2], result["labels"][:2]
        order = [best[1].tolist().index(label) for label in target["labels"].tolist()]
        torch.testing.assert_close(best[0][order], target["boxes"], atol=1e-3, rtol=0)


def test_padding_is_masked_and_counted_as_the_network_counts_it(batch: Any) -> None:
    images, targets = batch
    for build, area in ((rt_detr, (64, 96)), (deformable_detr, (64, 85))):
        detector = small(build)
        with record(detector.network) as calls:
            detector.train()(images, targets)
        mask, labels = calls[0][0]["pixel_mask"], calls[0][0]["labels"][1]
        assert mask.shape == (2, 64, 96)
        assert mask[1].sum() == 64 * 85 and mask[1, :64, :85].all()  # 48x64, its shorter side at 64
        height, width = area
        pixels = box_convert(labels["boxes"], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        scale = torch.tensor([85 / 64, 64 / 48] * 2)
        torch.testing.assert_close(pixels / scale, targets[1]["boxes"], atol=1e-3, rtol=0)


@pytest.mark.slow  # bfloat16 is emulated on most CPUs
def test_boxes_stay_in_float32_under_autocast(detector: Any, batch: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16), record(detector.network) as calls:
        losses = train_mode_loss(detector, *batch)
    assert calls[0][1].pred_boxes.dtype is torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients(detector, losses).values() if gradient is not None)


def test_training_goes_on_after_validation_in_inference_mode(batch: Any) -> None:
    detector = small(rt_detr)
    with torch.inference_mode():
        detector.eval()(batch[0])
    gradients(detector, train_mode_loss(detector, *batch))


def test_more_queries_than_tokens_are_refused(batch: Any) -> None:
    with pytest.raises(UserError, match="64x96 pixels have 126 tokens for 127 queries"):
        small(rt_detr, queries=127).eval()(batch[0])
    small(rt_detr, queries=126).eval()(batch[0])


def test_training_needs_targets(detector: Any, batch: Any) -> None:
    with pytest.raises(UserError, match="no targets"):
        detector.train()(batch[0])


@pytest.fixture(params=[*DETECTORS, "upernet"])
def given(request: pytest.FixtureRequest) -> tuple[Any, Any, int]:
    """Features with running statistics of their own, the network over them, and how many maps it takes."""
    features: Any = van_features("van_b0")
    for name, buffer in features.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    before = {name: tensor.clone() for name, tensor in features.state_dict().items()}
    build = {**DETECTORS, "upernet": upernet}[request.param]
    return before, build(features, CLASSES), 4 if request.param == "upernet" else 3


def test_the_given_van_arrives_whole(given: tuple[Any, Any, int]) -> None:
    before, network, levels = given
    van = backbone_of(network)
    after = van.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], before[name]) for name in before)
    # BatchNorm stays BatchNorm
    assert [type(module) for module in van.modules()] == [type(m) for m in van_features("van_b0").modules()]
    assert all(p.requires_grad for p in van.parameters())
    with torch.no_grad():
        maps = van(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (width, 64 // stride, 96 // stride) for width, stride in zip((32, 64, 160, 256), (4, 8, 16, 32), strict=True)
    ][-levels:]


def test_running_statistics_follow_the_data(batch: Any) -> None:
    detector = small(rt_detr)
    norm = next(m for n, m in detector.named_modules() if "stage4" in n and isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    detector.train()(*batch)
    assert not torch.equal(norm.running_mean, before)


def test_a_network_without_a_timm_backbone_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has 0 timm feature extractors"):
        install_backbone(nn.Linear(1, 1), van_features("van_b0"))


def test_rt_detr_starts_with_unit_batchnorms() -> None:
    norms = [m for m in small(rt_detr).network.model.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all((norm.weight == 1).all() for norm in norms)


def test_deformable_detr_starts_as_in_the_paper(batch: Any) -> None:
    """Queries spread over the image, boxes of sigmoid(-2) of its sides, scores of 0.01, layers of their own."""
    detector = small(deformable_detr, queries=100).eval()
    with torch.no_grad(), record(detector.network) as calls:
        detector(batch[0])
    output = calls[0][1]
    assert (output.init_reference_points.std(1) > 0.1).all()
    torch.testing.assert_close(output.pred_boxes[..., 2:], torch.full((2, 100, 2), -2.0).sigmoid())
    assert output.logits.sigmoid().median().item() == pytest.approx(0.01, rel=0.2)
    classifiers = detector.network.class_embed
    assert classifiers[0].weight is not classifiers[1].weight
    refining = detector.network.model.decoder.bbox_embed
    for ours, theirs in zip(detector.network.bbox_embed.parameters(), refining.parameters(), strict=True):
        assert ours is theirs


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    torch.manual_seed(0)
    return upernet(van_features("van_b0"), 5)


def test_upernet_trains_with_its_auxiliary_head(segmenter: Any) -> None:
    images, labels = torch.rand(2, 3, 64, 96), torch.randint(0, 5, (2, 64, 96))
    labels[0, :10] = 255
    targets = [{"semantic": label} for label in labels]
    losses = segmenter.train()(list(images), targets)
    assert set(losses) == {"segmentation", "auxiliary"}
    expected = segmenter.network(pixel_values=2 * images - 1, labels=labels)
    total = losses["segmentation"] + losses["auxiliary"]
    expected_total = expected.loss  # of class 255 where transformers ignores it
    assert segmenter.network.config.loss_ignore_index == 255
    assert total.item() == pytest.approx(expected_total.item(), rel=1e-4)
    found = gradients(segmenter, losses)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    assert torch.equal(segmenter(images, targets)["auxiliary"] > 0, torch.tensor(True))  # a batch tensor will do


def test_upernet_trains_on_unlabelled_images(segmenter: Any) -> None:
    targets = [{"semantic": torch.full((64, 64), 255)}] * 2
    losses = segmenter.train()([torch.rand(3, 64, 64)] * 2, targets)
    assert [loss.item() for loss in losses.values()] == [0, 0]
    assert all(gradient.abs().sum() == 0 for gradient in gradients(segmenter, losses).values() if gradient is not None)


def test_upernet_returns_logits_of_each_size(segmenter: Any) -> None:
    images = [torch.rand(3, 64, 64), torch.rand(3, 45, 70)]
    with torch.no_grad():
        mixed = segmenter.eval()(images)
        equal = segmenter(torch.stack([images[0]] * 2))
    assert [tuple(result["logits"].shape) for result in mixed] == [(5, 64, 64), (5, 45, 70)]
    torch.testing.assert_close(mixed[0]["logits"], equal[1]["logits"], atol=1e-4, rtol=1e-4)


def test_upernet_says_what_is_wrong_with_a_batch(segmenter: Any) -> None:
    image, target = torch.rand(3, 64, 64), {"semantic": torch.zeros(64, 64, dtype=torch.int64)}
    segmenter.train()
    with pytest.raises(UserError, match="2 or more per process"):
        segmenter([image], [target])
    with pytest.raises(UserError, match="of 2 sizes"):
        segmenter([image, torch.rand(3, 32, 64)], [target, target])
    with pytest.raises(UserError, match="no targets"):
        segmenter([image, image])
