"""Semantic FPN: its structure by count, its loss by PyTorch's, pictures of any size."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vankit.errors import UserError
from vankit.heads.backbone import normalise, van_features
from vankit.heads.semantic_fpn import SemanticFPN, segmentation_loss

CLASSES = 5


@pytest.fixture(scope="module")
def built() -> Any:
    torch.manual_seed(0)
    return SemanticFPN(van_features("van_b0"), CLASSES)


@pytest.fixture
def network(built: Any) -> Iterator[Any]:
    torch.manual_seed(0)
    state = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    built.zero_grad()
    yield built.train()
    built.load_state_dict(state)


def labels(*size: int) -> Tensor:
    found = torch.randint(CLASSES, size, generator=torch.Generator().manual_seed(1))
    found[..., : size[-1] // 3] = 255
    return found


def scene(*size: int) -> tuple[Tensor, dict[str, Tensor]]:
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(2)), {"semantic": labels(*size)}


# structure


@pytest.mark.parametrize(("model", "widths"), [("van_b0", (32, 64, 160, 256)), ("van_b1", (64, 128, 320, 512))])
def test_parameters_are_those_of_mmsegs_layout(model: str, widths: tuple[int, ...]) -> None:
    with torch.device("meta"):
        features = van_features(model)
        network = SemanticFPN(features, 150)
    lateral = sum(width * 256 + 256 for width in widths)
    smooth = 4 * (256 * 256 * 9 + 256)
    first = 4 * (256 * 128 * 9 + 2 * 128)  # no bias before BatchNorm
    further = (0 + 0 + 1 + 2) * (128 * 128 * 9 + 2 * 128)  # a convolution a doubling
    head = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in features.parameters())
    assert head == lateral + smooth + first + further + 128 * 150 + 150


def test_each_level_is_doubled_as_often_as_it_takes(network: Any) -> None:
    for i, head in enumerate(network.eval().scale_heads):
        with torch.inference_mode():
            assert head(torch.rand(1, 256, 3, 5)).shape == (1, 128, 3 * 2**i, 5 * 2**i)
        kinds = [type(layer).__name__ for layer in head]
        doubling = ["Conv2d", "BatchNorm2d", "ReLU", "Upsample"]
        assert kinds == (doubling * i or doubling[:3])


def test_levels_are_summed_at_stride_4(network: Any) -> None:
    x = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        levels = network.eval().backbone(x).values()
        total = sum(head(level) for head, level in zip(network.scale_heads, levels, strict=True))
        expected = F.conv2d(total, network.classifier.weight, network.classifier.bias)
        torch.testing.assert_close(network.logits(x), expected)


@settings(max_examples=10)
@given(height=st.integers(1, 75), width=st.integers(1, 75))
def test_logits_have_a_quarter_of_any_picture_rounded_up(built: Any, height: int, width: int) -> None:
    with torch.inference_mode():
        logits = built.eval().logits(torch.rand(1, 3, height, width))
        (result,) = built([torch.rand(3, height, width)])
    assert logits.shape == (1, CLASSES, -(-height // 4), -(-width // 4))
    assert result["logits"].shape == (CLASSES, height, width) and result["logits"].isfinite().all()


def test_width_and_dropout_are_settings() -> None:
    with torch.device("meta"):
        network = SemanticFPN(van_features("van_b0"), 2, channels=16, dropout=0.3)
    assert network.classifier.weight.shape == (2, 16, 1, 1)
    assert network.dropout.p == 0.3


def test_dropout_takes_whole_channels_in_training_alone(network: Any) -> None:
    seen: list[Tensor] = []
    hook = network.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image, target = scene(64, 64)
    network([image] * 4, [target] * 4)
    network.eval()([image])
    hook.remove()
    dropped = (seen[0] == 0).all((2, 3))  # (4, 128)
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.05)
    assert not (seen[1] == 0).all((2, 3)).any()


# loss


def test_loss_is_cross_entropys_mean_over_the_labelled_pixels() -> None:
    logits = torch.randn(2, CLASSES, 9, 13, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    wanted = labels(2, 9, 13)
    loss = segmentation_loss(logits, wanted)
    expected = F.cross_entropy(logits, wanted, ignore_index=255)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    (wished,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, wished, rtol=1e-4, atol=1e-8)
    assert not gradient[..., : 13 // 3].any()


def test_loss_by_hand() -> None:
    logits = torch.zeros(1, 4, 1, 2)
    logits[0, 2, 0, 0] = torch.tensor(3.0).log()  # probabilities 1/6, 1/6, 1/2, 1/6
    expected = (torch.tensor(2.0).log() + torch.tensor(4.0).log()) / 2
    torch.testing.assert_close(segmentation_loss(logits, torch.tensor([[[2, 1]]])), expected)
    torch.testing.assert_close(segmentation_loss(logits, torch.tensor([[[2, 255]]])), torch.tensor(2.0).log())


def test_logits_are_brought_to_the_labels_size() -> None:
    logits = torch.randn(2, CLASSES, 5, 7, generator=torch.Generator().manual_seed(0))
    wanted = labels(2, 18, 27)
    full = F.interpolate(logits, (18, 27), mode="bilinear", align_corners=False)
    torch.testing.assert_close(segmentation_loss(logits, wanted), F.cross_entropy(full, wanted, ignore_index=255))


def test_loss_is_0_where_nothing_is_labelled() -> None:
    logits = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 16, 16), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_loss_is_taken_in_float32() -> None:
    logits = torch.randn(1, CLASSES, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    wanted = labels(1, 8, 8)
    loss = segmentation_loss(logits, wanted)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), wanted, ignore_index=255))


# training and results


def test_a_training_step_reaches_every_parameter(network: Any) -> None:
    scenes = [scene(64, 64), scene(64, 64)]
    losses = network([image for image, _ in scenes], [target for _, target in scenes])
    assert set(losses) == {"segmentation"}
    # the classifier starts near 0: all classes are alike
    assert losses["segmentation"].item() == pytest.approx(torch.tensor(float(CLASSES)).log().item(), rel=0.1)
    losses["segmentation"].backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.any(), name


def test_the_loss_is_that_of_the_normalised_images(network: Any) -> None:
    image, target = scene(64, 48)
    network.dropout.p = 0.0
    loss = network([image, 1 - image], [target, target])["segmentation"]
    logits = network.logits(torch.stack([image * 2 - 1, 1 - image * 2]))
    network.dropout.p = 0.1
    torch.testing.assert_close(loss, segmentation_loss(logits, torch.stack([target["semantic"]] * 2)))


def test_images_without_labels_train(network: Any) -> None:
    image, _ = scene(64, 64)
    loss = network([image, image], [{"semantic": torch.full((64, 64), 255)}] * 2)["segmentation"]
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in network.parameters())


def test_each_image_is_answered_at_its_own_size_whatever_is_beside_it(network: Any) -> None:
    images = [scene(*size)[0] for size in ((40, 200), (33, 50), (64, 64))]
    with torch.inference_mode():
        results = network.eval()(images)
        for image, result in zip(images, results, strict=True):
            assert set(result) == {"logits"}
            wanted = F.interpolate(network.logits(normalise(image[None])), image.shape[1:], mode="bilinear")
            torch.testing.assert_close(result["logits"], wanted[0])


def test_targets_are_needed_in_training(network: Any) -> None:
    with pytest.raises(UserError, match="no targets: expected the semantic labels of every image in training"):
        network([torch.rand(3, 64, 64)])


def test_a_few_steps_learn_a_picture(network: Any) -> None:
    half = torch.zeros(64, 64, dtype=torch.int64)
    half[:, 32:] = 3
    images = [torch.where(half == 3, 0.9, 0.1).expand(3, 64, 64)] * 2
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        loss = network(images, [{"semantic": half}] * 2)["segmentation"]
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
