"""Triton compiles the kernels for a Hopper GPU, without one: what its interpreter cannot show.

Their results are tested by test_pair.py and test_gelu.py.
"""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vankit.ops.kernels import launch

triton = pytest.importorskip("triton", reason="Triton is published for Linux and Windows")

pytestmark = pytest.mark.slow  # minutes of compiling

Compiled = list[tuple[str, Any, dict[str, int]]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Compiled]]:
    """Factory: calls a function of `launch` whose launches only compile, for a Hopper GPU; gives the name, the
    compiled kernel and the resources a thread takes of each.
    """
    from triton.backends.compiler import GPUTarget

    from vankit.ops.kernels import triton_kernels

    folder = tmp_path_factory.mktemp("triton")
    found: Compiled = []

    class Launcher:
        def __init__(self, name: str) -> None:
            self.name, self.kernel = name, getattr(triton_kernels, name)

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def compile_only(*args: Any, **options: Any) -> None:
                assert all(0 < n < 2**31 for n in grid)
                kernel = self.kernel.run(*args, grid=grid, warmup=True, **options)
                found.append((self.name, kernel, resources(kernel.asm["cubin"], folder)))

            return compile_only

    def call(function: Callable[..., Any], *args: Any) -> Compiled:
        found.clear()
        function(*args)
        return list(found)

    driver = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder))
        patch.setattr(triton.runtime.driver, "_active", driver)
        for name in ("convolve", "weight_gradient"):
            patch.setattr(triton_kernels, name, Launcher(name))
        yield call


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers and bytes of stack, local and shared memory, by the names of NVIDIA's tool."""
    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    pairs = (word.split(":") for word in report.split() if word.count(":") == 1)
    return {name: int(value) for name, value in pairs if value.isdigit()}


def weights(dim: int, *sizes: int) -> list[torch.Tensor]:
    shapes = [shape for k in sizes for shape in ((dim, 1, k, k), (dim,))]
    return [torch.zeros(shape) for shape in shapes]


def assert_lean(kernels: Compiled, count: int) -> None:
    """Next to nothing spilled, no weights through shared memory, and room for eight warps on a multiprocessor."""
    assert len(kernels) == count
    for name, kernel, used in kernels:
        assert used["LOCAL"] + used["STACK"] <= 8, name  # Triton 3.6 spills two registers of one kernel, 3.8 none
        if name == "convolve":
            assert "convert_layout" not in kernel.asm["ttgir"]
            assert used["REG"] <= 232
        else:
            assert used["REG"] <= 192


@pytest.mark.parametrize(
    ("size", "dim", "dtype"),
    [
        (56, 64, torch.bfloat16),
        (56, 64, torch.float16),
        (56, 64, torch.float32),
        (28, 96, torch.bfloat16),
        (14, 160, torch.bfloat16),
        (7, 256, torch.bfloat16),
        (7, 256, torch.float32),
    ],
)
def test_the_pair(compiled: Callable[..., Compiled], size: int, dim: int, dtype: torch.dtype) -> None:
    x = torch.zeros(1, size, size, dim, dtype=dtype)
    dw, b, dw_d, b_d = weights(dim, 5, 7)
    assert_lean(compiled(launch.pair_forward, x, dw, b, dw_d, b_d, 1, 3), 2)
    assert_lean(compiled(launch.pair_backward, x, x, dw, b, dw_d, b_d, 1, 3, True, True), 5)


@pytest.mark.parametrize(
    ("size", "dim", "dtype"),
    [(56, 512, torch.bfloat16), (7, 1024, torch.float32)],
)
def test_the_convolution_with_gelu(compiled: Callable[..., Compiled], size: int, dim: int, dtype: torch.dtype) -> None:
    x = torch.zeros(1, size, size, dim, dtype=dtype)
    assert_lean(compiled(launch.gelu_forward, x, *weights(dim, 3), 1), 1)
    assert_lean(compiled(launch.gelu_backward, x, x, *weights(dim, 3), 1, True, True), 3)


def test_odd_shapes(compiled: Callable[..., Compiled]) -> None:
    """Channels that vectors do not divide, no bias, even kernels and taps further apart than the map."""
    for dim, size, (k, k_d), dilations in ((3, 1, (5, 7), (1, 3)), (33, 9, (4, 2), (2, 12)), (70, 20, (1, 3), (1, 1))):
        x = torch.zeros(2, size, size + 1, dim, dtype=torch.float16)
        dw, _, dw_d, _ = weights(dim, k, k_d)
        assert len(compiled(launch.pair_forward, x, dw, None, dw_d, None, *dilations)) == 2
        assert len(compiled(launch.pair_backward, x, x, dw, None, dw_d, None, *dilations, True, True)) == 5
