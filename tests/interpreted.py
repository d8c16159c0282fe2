"""Calls the fused operators with their Triton kernels: on CUDA, or by Triton's interpreter in a process of its own.

The interpreter is chosen by an environment variable before triton is imported, which the tests' process may have done.
"""

import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint


def executor() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start)


def _start() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


def operator(name: str) -> Any:
    from vankit.ops.gelu import depthwise_gelu
    from vankit.ops.lka import depthwise_pair

    return {"pair": depthwise_pair, "gelu": depthwise_gelu}[name]


def outputs_and_gradients(
    name: str, args: list[Tensor | None], options: dict[str, Any], how: str = "eager", scratch: int | None = None
) -> list[Tensor]:
    """The operator's output, and the gradients in `direction` of those of `args` that require one.

    Memory that the kernels should write is NaN before.

    Args:
        how: 'eager', 'compile', 'checkpoint', or 'autocast' (bfloat16).
        scratch: bytes of scratch memory that the launchers may take, instead of what suits the device.
    """
    from vankit.ops.kernels import launch

    kept = launch.allocate, launch.limits
    launch.allocate = lambda *a: kept[0](*a).fill_(math.nan)
    if scratch is not None:
        launch.limits = lambda device: kept[1](device)._replace(scratch=scratch)
    try:
        device = next(a for a in args if a is not None).device.type
        with torch.autocast(device, torch.bfloat16, enabled=how == "autocast"):
            out = _call(operator(name), args, options, how)
        wanted = [a for a in args if a is not None and a.requires_grad]
        return [out.detach(), *(torch.autograd.grad(out, wanted, direction(out)) if wanted else ())]
    finally:
        launch.allocate, launch.limits = kept


def _call(function: Any, args: list[Tensor | None], options: dict[str, Any], how: str) -> Tensor:
    def run(*tensors: Tensor | None) -> Tensor:
        return function(*tensors, **options, backend="triton")

    if how == "compile":
        run = torch.compile(run, backend="aot_eager", fullgraph=True)
    return checkpoint(run, *args, use_reentrant=False) if how == "checkpoint" else run(*args)


def direction(out: Tensor) -> Tensor:
    """A gradient to start from: the same for any dtype, device and memory format."""
    return torch.linspace(-1, 2, out.numel(), dtype=torch.float64).view(out.shape).to(out)


def second_gradients(name: str, args: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """Of the sum of all squared first gradients."""
    out = operator(name)(*args, **options, backend="triton")
    first = torch.autograd.grad(out, args, direction(out), create_graph=True)
    return list(torch.autograd.grad(sum(g.square().sum() for g in first), args, materialize_grads=True))


def transformed(name: str, args: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """By torch.func, of the sum of squares over the first image: the gradients by x and the first weight, a
    directional derivative of each kind, and the gradients by every image.
    """

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return operator(name)(x[None], weight, *args[2:], **options).square().sum()

    first, both = (args[0][0], args[1]), (0, 1)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(loss(forward_ad.make_dual(first[0], torch.ones_like(first[0])), first[1]))
    return [
        *torch.func.grad(loss, argnums=both)(*first),
        torch.func.jvp(loss, first, tuple(torch.ones_like(a) for a in first))[1],
        dual.tangent,
        torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(*args[:2]),
    ]


def exported_operators(name: str, args: list[Tensor], options: dict[str, Any]) -> list[set[str]]:
    """Names of the operators in what torch.export and torch.jit.trace make of a call with backend 'triton'."""

    class Wrapper(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return operator(name)(*tensors, **options, backend="triton")

    program = torch.export.export(Wrapper(), tuple(args))
    traced = torch.jit.trace(Wrapper(), tuple(args), check_trace=False)
    return [
        {str(node.target) for node in program.graph.nodes if node.op == "call_function"},
        {node.kind() for node in traced.inlined_graph.nodes()},
    ]
