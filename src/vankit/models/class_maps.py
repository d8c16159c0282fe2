"""Grad-CAM at a VAN's last stage as a second output: behind it are a mean and a linear layer, so the gradient of a
class's logit is the class's weights, and no gradient need be computed."""

from typing import Any

import torch.nn.functional as F
from timm.layers import ClassifierHead
from torch import Tensor, nn

from vankit.models.fold import fold
from vankit.models.leaves import has_hooks
from vankit.models.van import VAN


class WithClassMaps(nn.Module):
    """(B, 3, H, W) → logits (B, classes), and of every class Grad-CAM (B, classes, h, w), 0 or more.

    Args:
        network: one that `has_class_maps`, in eval mode, folded or not.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        network: Any = self.network
        features = network.forward_features(x)  # (B, C, h, w)
        batch, channels, height, width = features.shape
        # rows and the weights as they are: exporters then store the weights once, for both outputs
        rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
        maps = F.relu(F.linear(rows, network.head.fc.weight)) / (height * width)
        maps = maps.reshape(batch, height, width, maps.shape[1]).permute(0, 3, 1, 2)  # (B, classes, h, w)
        return network.forward_head(features), maps


def folded(network: nn.Module, class_maps: bool) -> nn.Module:
    """A copy for inference, see `fold`; on request with class maps, where the network has them."""
    found = fold(network)
    return WithClassMaps(found).eval() if class_maps and has_class_maps(network) else found


def has_class_maps(network: nn.Module) -> bool:
    """Whether it is a VAN with a head, on which nobody has hung anything that would change what its head computes."""
    if type(network) is not VAN:
        return False
    head: Any = network.head
    plain = type(head) is ClassifierHead and type(head.fc) is nn.Linear and head.global_pool.pool_type == "avg"
    return plain and not any(map(has_hooks, (network, *head.modules())))
