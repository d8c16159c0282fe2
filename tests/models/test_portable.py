"""Networks through every kind of pickle."""

import copy
import os
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune

from vankit.models.portable import Portable


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in /proc")
def test_multiprocessing_opens_no_file_per_tensor() -> None:
    network = timm.create_model("van_b0", num_classes=3).eval()
    before = len(os.listdir("/proc/self/fd"))
    data = ForkingPickler.dumps(Portable(network))
    assert len(os.listdir("/proc/self/fd")) == before
    found = pickle.loads(data)
    assert type(found) is type(network) and not found.training
    for (name, expected), (other, tensor) in zip(network.state_dict().items(), found.state_dict().items(), strict=True):
        assert name == other and torch.equal(tensor, expected), name
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(found(x), network(x))


class Odd(nn.Module):
    """Types, layouts and ties that a list of numbers does not tell of."""

    def __init__(self) -> None:
        super().__init__()
        self.bf16 = nn.Parameter(torch.randn(3).to(torch.bfloat16), requires_grad=False)
        self.nhwc = nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last))
        self.tied = self.nhwc
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("empty", torch.zeros(0, 3, dtype=torch.bool))
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("unsaved", torch.rand(2), persistent=False)
        self.plain = [self.unsaved, torch.rand(2)]
        self.conv = nn.Conv2d(3, 3, 3)
        prune.random_unstructured(self.conv, "weight", 0.5)
        self.register_parameter("none", None)


@pytest.mark.parametrize("way", [pickle.dumps, ForkingPickler.dumps, None])
def test_all_that_a_tensor_is_comes_back(way: object) -> None:
    network = Odd()
    found = pickle.loads(way(Portable(network))) if callable(way) else copy.deepcopy(Portable(network))
    for name, tensor in {**dict(network.named_parameters()), **dict(network.named_buffers())}.items():
        other = found.get_parameter(name) if isinstance(tensor, nn.Parameter) else found.get_buffer(name)
        assert (type(other), other.dtype, other.layout) == (type(tensor), tensor.dtype, tensor.layout), name
        assert other.requires_grad == tensor.requires_grad and other.is_leaf
        assert torch.equal(other.to_dense(), tensor.to_dense()), name
    assert found.nhwc.is_contiguous(memory_format=torch.channels_last)
    assert (
        found.tied is found.nhwc and found.plain[0] is found.unsaved and torch.equal(found.plain[1], network.plain[1])
    )
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(found.conv(x), network.conv(x))
    found.nhwc.data.zero_()
    assert network.nhwc.abs().sum() > 0  # which is no part of the other
