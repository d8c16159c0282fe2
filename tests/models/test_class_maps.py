"""Class maps against Grad-CAM by PyTorch's gradients, and which networks have them."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import vankit
from vankit.explanation.maps import grad_cam
from vankit.models.class_maps import WithClassMaps, folded, has_class_maps


def small(**options: object) -> vankit.VAN:
    torch.manual_seed(0)
    sizes = {"embed_dims": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "mlp_ratios": (2, 2, 2, 2)}
    network = vankit.VAN(**{**sizes, "num_classes": 3, "drop_rate": 0.5, **options}).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0, 0.3)
    return network


@pytest.mark.parametrize(("height", "width"), [(64, 64), (50, 171), (33, 20)])
@pytest.mark.parametrize("options", [{}, {"num_classes": 1}, {"output_stride": 8}])
def test_they_are_grad_cam(options: dict[str, int], height: int, width: int) -> None:
    network, x = small(**options).double(), torch.randn(2, 3, height, width, dtype=torch.double)
    logits, maps = WithClassMaps(network)(x)
    torch.testing.assert_close(logits, network(x))
    for i in range(network.num_classes):
        expected = grad_cam(network, "stage4", x, lambda x, i=i: network(x)[:, i])
        torch.testing.assert_close(maps[:, i], expected)
    assert maps.max() > 1e-3
    torch.testing.assert_close(folded(network, True)(x), (logits, maps))
    torch.testing.assert_close(folded(network, False)(x), logits)


class Doubled(vankit.VAN):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(network: nn.Module) -> nn.Module:
    network.register_forward_hook(lambda _module, _args, y: 2 * y)
    return network


def pruned(network: nn.Module) -> nn.Module:
    prune.l1_unstructured(network.head.fc, "weight", 0.5)
    return network


def parametrised(network: nn.Module) -> nn.Module:
    parametrizations.weight_norm(network.head.fc)
    return network


def pooled_otherwise(network: nn.Module) -> nn.Module:
    network.reset_classifier(3, "max")
    return network


@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubled(num_classes=2),
        lambda: hooked(small()),
        lambda: pruned(small()),
        lambda: parametrised(small()),
        lambda: pooled_otherwise(small()),
        lambda: small(num_classes=0),
        lambda: timm.create_model("resnet10t", num_classes=2),
        nn.Identity,
    ],
)
def test_other_networks_have_none(make: Callable[[], nn.Module]) -> None:
    assert has_class_maps(small()) and not has_class_maps(make())
