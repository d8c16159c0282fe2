"""Where the Triton kernels run: Triton's interpreter, and a CUDA device if there is one."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import interpreted
import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with interpreted.executor() as pool:
        yield pool


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Factory: a function of `interpreted` by name, with its arguments, results on the CPU."""
    if request.param == "interpreter":
        pytest.importorskip("triton", reason="Triton is published for Linux and Windows")
        pool = request.getfixturevalue("interpreter")
        return lambda function, *args: pool.submit(getattr(interpreted, function), *args).result()
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    request.getfixturevalue("monkeypatch").setattr(torch.backends.cudnn, "allow_tf32", False)  # plain convolutions
    return lambda function, *args: _map(Tensor.cpu, getattr(interpreted, function)(*_map(_to_cuda, args)))


def _map(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    return type(value)(_map(change, v) for v in value) if isinstance(value, list | tuple) else value


def _to_cuda(tensor: Tensor) -> Tensor:
    return tensor.detach().cuda().requires_grad_(tensor.requires_grad)
