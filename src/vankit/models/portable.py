"""A network on its way to another process, with arrays for its tensors.

PyTorch has multiprocessing send every tensor as an open file, and VAN-B2 has more of them than the 1024 files that a
process may usually open.
"""

import copy
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vankit.models.fold import computed_tensors


class Portable:
    """A network that any pickler takes; what is unpickled is the network itself, on the CPU.

    Args:
        network: of classes that can be imported where it is unpickled.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def __reduce__(self) -> tuple[Any, ...]:
        stored = {id(tensor): tensor for tensor in chain(self.network.parameters(), self.network.buffers())}
        empty = {key: _without_data(tensor) for key, tensor in stored.items() if _is_plain(tensor)}
        arrays = [(empty[key], _to_array(stored[key])) for key in empty]
        computed = {id(tensor): tensor.detach() for tensor in computed_tensors(self.network)}
        return _fill, (copy.deepcopy(self.network, computed | empty), arrays)


def _fill(network: nn.Module, arrays: list[tuple[Tensor, NDArray[np.uint8]]]) -> nn.Module:
    for tensor, array in arrays:
        content = torch.from_numpy(array.copy()).view(tensor.dtype).reshape(tensor.shape)
        torch.utils.swap_tensors(tensor, _like(tensor, torch.empty_like(tensor, device="cpu").data.copy_(content)))
    return network


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is all in its type, shape and numbers; others are pickled as PyTorch does."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_quantized


def _without_data(tensor: Tensor) -> Tensor:
    return _like(tensor, torch.empty_like(tensor, device="meta").data)


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _to_array(tensor: Tensor) -> NDArray[np.uint8]:
    """Its bytes, for NumPy has no bfloat16."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
