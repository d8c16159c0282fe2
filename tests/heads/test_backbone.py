"""A VAN under a head: weights, levels, and the preparation of images."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vankit.errors import UserError
from vankit.heads.backbone import (
    VanFPN,
    backbone_of,
    input_transform,
    keep_training_size,
    normalise,
    van_features,
)
from vankit.models.van import VAN

WIDTHS = {"van_b0": [32, 64, 160, 256], "van_b1": [64, 128, 320, 512]}
BLOCKS = 3 + 3 + 5 + 2  # of van_b0


@pytest.fixture(scope="module")
def features() -> Any:
    torch.manual_seed(0)
    return van_features("van_b0").eval()


@pytest.fixture(scope="module")
def published() -> Any:
    """The classifier whose weights ship in the package."""
    return timm.create_model("van_b0.cifar10", pretrained=True).eval()


def drop_rates(features: nn.Module) -> list[float]:
    blocks = [block for stage in features.children() for block in stage.blocks]
    return [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]


def test_published_weights_and_running_statistics_arrive(published: Any) -> None:
    found = van_features("van_b0.cifar10", pretrained=True).state_dict()
    expected = {name: t for name, t in published.state_dict().items() if not name.startswith("head.")}
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    means = [tensor for name, tensor in found.items() if name.endswith("running_mean")]
    assert len(means) == 4 + 2 * BLOCKS and all(mean.any() for mean in means)  # a fresh BatchNorm has zeros


def test_outputs_are_those_of_the_classifiers_stages(published: Any) -> None:
    images = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps = van_features("van_b0.cifar10", pretrained=True).eval()(images)
        expected = published.forward_intermediates(images, intermediates_only=True)
    for found, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_without_pretrained_the_weights_are_fresh(published: Any, features: Any) -> None:
    name = "stage2.patch_embed.proj.weight"
    assert not torch.equal(features.state_dict()[name], published.state_dict()[name])
    assert not features.state_dict()["stage2.patch_embed.norm.running_mean"].any()


@settings(max_examples=10)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_every_size_has_four_maps_of_rounded_up_sides(features: Any, height: int, width: int) -> None:
    with torch.inference_mode():
        maps = features(torch.rand(1, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (1, dim, -(-height // stride), -(-width // stride))
        for dim, stride in zip(WIDTHS["van_b0"], (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("model", WIDTHS)
def test_widths_and_strides_are_told(model: str) -> None:
    with torch.device("meta"):
        info = van_features(model).feature_info
    assert info.channels() == WIDTHS[model]
    assert info.reduction() == [4, 8, 16, 32]


def test_drop_path_rises_to_the_given_rate(features: Any) -> None:
    rates = drop_rates(van_features("van_b0", drop_path_rate=0.24))
    assert rates == pytest.approx([0.24 * i / (BLOCKS - 1) for i in range(BLOCKS)])
    assert not any(drop_rates(features))


def test_checkpointing_recomputes_with_the_same_gradients_and_statistics() -> None:
    plain, saving = van_features("van_b0"), van_features("van_b0", grad_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    calls = []
    for network in (plain, saving):
        seen: list[None] = []
        for stage in network.children():
            for block in stage.blocks:
                block.mlp.register_forward_hook(lambda *_, seen=seen: seen.append(None))
        sum(m.square().mean() for m in network.train()(images)).backward()
        calls.append(len(seen))
    assert calls == [BLOCKS, 2 * BLOCKS]
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and p.grad.any(), name
        torch.testing.assert_close(p.grad, q.grad)
    for buffer, other in zip(plain.buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(buffer, other)


def test_the_network_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[VAN] = []
    build = VAN.__init__

    def count(self: VAN, *args: Any, **kwargs: Any) -> None:
        built.append(self)
        build(self, *args, **kwargs)

    monkeypatch.setattr(VAN, "__init__", count)
    van_features("van_b0.cifar10", pretrained=True)
    assert len(built) == 1


def test_the_attention_has_its_settings() -> None:
    features: Any = van_features("van_b0", lka={"form": "dense", "kernel_size": (9,)})
    kernels = [m.kernel_size for m in features.modules() if isinstance(m, nn.Conv2d)]
    assert kernels.count((9, 9)) == BLOCKS


def test_other_models_are_refused() -> None:
    with pytest.raises(UserError, match="resnet18 is not a VAN: expected van_b0 to van_b6"):
        van_features("resnet18")
    with pytest.raises(UserError, match="unknown model 'van_b7': expected one of van_b0"):
        van_features("van_b7")


def test_the_van_is_found_wherever_it_is(features: Any, published: Any) -> None:
    assert backbone_of(features) is features
    assert backbone_of(published) is published
    assert backbone_of(nn.ModuleDict({"a": nn.Linear(1, 1), "b": VanFPN(features)})) is features


def test_pyramid_levels_by_hand(features: Any) -> None:
    network = VanFPN(features, levels=(1, 3), out_channels=24)
    images = torch.rand(2, 3, 72, 40, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        maps, levels = features(images), network(images)
    fpn = network.fpn.state_dict()

    def conv(x: Tensor, block: str, padding: int) -> Tensor:
        return F.conv2d(x, fpn[f"{block}.0.weight"], fpn[f"{block}.0.bias"], padding=padding)

    top = conv(maps[3], "inner_blocks.1", 0)  # 3 × 2
    side = conv(maps[1], "inner_blocks.0", 0)  # 9 × 5
    rows, columns = torch.arange(9) * 3 // 9, torch.arange(5) * 2 // 5  # nearest neighbour
    assert list(levels) == ["1", "3"]
    torch.testing.assert_close(levels["3"], conv(top, "layer_blocks.1", 1))
    torch.testing.assert_close(levels["1"], conv(side + top[:, :, rows][..., columns], "layer_blocks.0", 1))


def test_the_pyramid_has_one_width_and_all_levels_unless_told_otherwise(features: Any) -> None:
    network = VanFPN(features, extra=LastLevelMaxPool())
    with torch.inference_mode():
        levels = network(torch.rand(1, 3, 64, 96))
    assert network.out_channels == 256
    assert {name: tuple(level.shape[1:]) for name, level in levels.items()} == {
        "0": (256, 16, 24), "1": (256, 8, 12), "2": (256, 4, 6), "3": (256, 2, 3), "pool": (256, 1, 2)
    }  # fmt: skip


def test_gradients_pass_the_pyramid_into_every_stage() -> None:
    network = VanFPN(van_features("van_b0"), levels=(1, 2, 3))
    sum(level.square().mean() for level in network(torch.rand(2, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((40, 60), (64, 96), (64, 96)),  # the short side decides: x1.6
        ((60, 40), (96, 64), (96, 64)),
        ((40, 200), (25, 128), (32, 128)),  # the long side does: x0.64
        ((100, 100), (64, 64), (64, 64)),
        ((50, 70), (64, 89), (64, 96)),  # 89.6 is rounded down
    ],
)
def test_sizes_by_hand(size: tuple[int, int], resized: tuple[int, int], padded: tuple[int, int]) -> None:
    batch, _ = input_transform((32, 64), 128).eval()([torch.rand(3, *size)])
    assert batch.image_sizes == [resized]
    assert tuple(batch.tensors.shape) == (1, 3, *padded)


def test_images_are_normalised_and_padded_with_zeros() -> None:
    images = [torch.full((3, 64, 64), 0.25), torch.full((3, 64, 80), 1.0)]
    batch, _ = input_transform((64,), 128).eval()(images)
    assert tuple(batch.tensors.shape) == (2, 3, 64, 96)
    torch.testing.assert_close(batch.tensors[0, :, :, :64], torch.full((3, 64, 64), -0.5))
    torch.testing.assert_close(batch.tensors[1, :, :, :80], torch.full((3, 64, 80), 1.0))
    assert not batch.tensors[0, :, :, 64:].any() and not batch.tensors[1, :, :, 80:].any()


def test_training_draws_a_side_and_scales_the_targets_with_it() -> None:
    torch.manual_seed(0)
    transform = input_transform((64, 96), 512).train()
    box = torch.tensor([[2.0, 4.0, 16.0, 30.0]])
    sides = []
    for _ in range(20):
        target = {"boxes": box, "masks": torch.ones(1, 32, 32, dtype=torch.uint8)}
        batch, targets = transform([torch.rand(3, 32, 32)], [target])
        assert targets is not None
        side = batch.image_sizes[0][0]
        torch.testing.assert_close(targets[0]["boxes"], box * side / 32)
        assert targets[0]["masks"].shape == (1, side, side)
        sides.append(side)
    assert set(sides) == {64, 96}


def test_normalise_by_hand() -> None:
    x = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2).expand(2, 3, 2, 2)
    torch.testing.assert_close(normalise(x), torch.tensor([-1.0, -0.5, 0.0, 1.0]).view(1, 1, 2, 2).expand(2, 3, 2, 2))
    assert normalise(x.bfloat16()).dtype == torch.bfloat16


def test_normalise_agrees_with_the_detectors_and_with_the_published_preprocessing(published: Any) -> None:
    image = torch.rand(3, 64, 64)
    config = published.pretrained_cfg
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close(normalise(image[None])[0], (image - mean) / std)
    torch.testing.assert_close(input_transform((64,)).eval()([image])[0].tensors, normalise(image[None]))


def test_a_cropped_image_is_trained_on_as_it_is() -> None:
    network = nn.Sequential(input_transform((64,), 128))
    image = torch.rand(3, 48, 48)
    keep_training_size(network)
    assert network.train()[0]([image])[0].image_sizes == [(48, 48)]
    assert network.eval()[0]([image])[0].image_sizes == [(64, 64)]
