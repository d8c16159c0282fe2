"""Launches the Triton kernels: which taps, tiles and scratch memory a map of some size takes."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vankit.errors import UserError
from vankit.ops.convolution import reachable


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


class Tile(NamedTuple):
    """What one program of a kernel holds in registers."""

    columns: int
    channels: int
    warps: int


ROWS = (3, 5, 7)  # rows a program of `convolve` may compute: each is a kernel of its own, and 10 spill registers


def rows_of(lines: int, taps: int) -> int:
    """How many of `lines` rows a program computes: the least work of multiply-adds, loads and conversions together."""
    return min(ROWS, key=lambda rows: _cdiv(lines, rows) * (rows * taps + 2 * (rows + taps - 1)))


def convolve_tile(width: int, channels: int, bytes_each: int) -> Tile:
    """More threads than channels, or Triton would pass the weights through shared memory to give each thread its own.

    Unmeasured: `benchmarks/lka_gpu.py --parts tune` compares the alternatives. By the machine code for a Hopper GPU,
    32 columns of 16-bit values spend 55 % of the instructions on multiply-adds, 16 columns 47 %.
    """
    if width <= 8 and channels > 32:
        return Tile(8, 64, 4)
    return Tile(32 if width > 16 and bytes_each == 2 else 16, 32 if channels > 16 else 16, 2)


def gradient_tile(taps: int) -> Tile:
    """So many values per thread that its sums stay at about 100 registers. Unmeasured, as above."""
    if taps > 25:
        return Tile(8, 32, 4)
    return Tile(8, 32, 2) if taps > 9 else Tile(16, 32, 2)


class Limits(NamedTuple):
    """What the launchers take from the device: multiprocessors, and bytes of scratch that stay in its L2 cache."""

    processors: int
    scratch: int


@lru_cache(maxsize=64)
def limits(device: torch.device) -> Limits:
    if device.type != "cuda":  # Triton's interpreter
        return Limits(2, 1 << 20)
    properties = torch.cuda.get_device_properties(device)
    return Limits(properties.multi_processor_count, properties.L2_cache_size // 2)


def allocate(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised memory; every result and scratch array comes from here, so that tests can poison it."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)


class Convolution:
    """A depth-wise "same" convolution on maps of one size: kernels' arguments, and the three passes.

    Args:
        weight: (C, 1, k, l); it is rounded to the dtype of `x`, as autocast would.
        bias: (C,) or None, of any dtype.
        dilation: pixels between taps.
        x: a map of the size, dtype and device in question, (B, H, W, C).

    Raises:
        ValueError: weight or bias have other channels than `x`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dilation: int, x: Tensor) -> None:
        _, self.height, self.width, self.channels = x.shape
        shapes = [tuple(t.shape[:2]) for t in (weight, bias) if t is not None]
        if shapes != [(self.channels, 1), (self.channels,)][: len(shapes)]:  # a kernel would read past the end
            raise UserError(f"weight and bias begin with {shapes}: expected (C, 1) and (C,) for C = {self.channels}")
        self.weight, self.bias, self.dilation = weight, bias, dilation
        self.rows = reachable(weight.shape[-2], dilation, self.height)
        self.cols = reachable(weight.shape[-1], dilation, self.width)
        self.residues = min(dilation, self.height)
        packed = allocate((self.rows.length, self.cols.length, self.channels), x)
        self.packed = packed.copy_(self._reached(weight).permute(1, 2, 0))

    def _reached(self, weight: Tensor) -> Tensor:
        """The reachable part of (C, 1, k, l), (C, rows, cols)."""
        rows = slice(self.rows.first, self.rows.first + self.rows.length)
        return weight[:, 0, rows, self.cols.first : self.cols.first + self.cols.length]

    def _kernel(self, flip: bool = False) -> dict[str, Any]:
        ends = (self.rows, self.cols)
        top, left = (self.dilation * (a.length - 1) - a.before if flip else a.before for a in ends)
        return {
            "KH": self.rows.length,
            "KW": self.cols.length,
            "DILATION": self.dilation,
            "TOP": top,
            "LEFT": left,
        }

    def _launch(
        self, x: Tensor, bias: Tensor | None, out: Tensor, flip: bool, epilogue: str = "", gate: Tensor | None = None
    ) -> Tensor:
        from vankit.ops.kernels import triton_kernels

        tile = convolve_tile(self.width, self.channels, x.element_size())
        lines = _cdiv(self.height, self.dilation)
        rows = rows_of(lines, self.rows.length)
        groups = self.residues * _cdiv(lines, rows)
        strips, blocks = _cdiv(self.width, tile.columns), _cdiv(self.channels, tile.channels)
        triton_kernels.convolve[(x.shape[0] * groups * strips * blocks,)](
            x,
            self.packed,
            bias,
            gate,
            out,
            self.height,
            self.width,
            self.channels,
            groups,
            strips,
            blocks,
            self.residues,
            **self._kernel(flip),
            FLIP=flip,
            EPILOGUE=epilogue,
            ROWS=rows,
            COLUMNS=tile.columns,
            CHANNELS=tile.channels,
            num_warps=tile.warps,
        )
        return out

    def forward(self, x: Tensor, out: Tensor, epilogue: str = "", gate: Tensor | None = None) -> Tensor:
        """Convolve (B, H, W, C) into `out`; then "gelu", or "gelu_gradient": gelu'(result) * gate."""
        return self._launch(x, self.bias, out, False, epilogue, gate)

    def input_gradient(self, grad: Tensor, out: Tensor) -> Tensor:
        """The transposed convolution: the flipped kernel, padded the other way round."""
        return self._launch(grad, None, out, True)

    def weight_partials(self, x: Tensor, grad: Tensor) -> Tensor:
        """Partial sums of the gradients of weight and bias, (programs, taps + 1, C) float32."""
        from vankit.ops.kernels import triton_kernels

        tile = gradient_tile(self.rows.length * self.cols.length)
        strips, blocks = _cdiv(self.width, tile.columns), _cdiv(self.channels, tile.channels)
        units = x.shape[0] * self.residues * strips
        # one wave, at the three programs of about 170 registers a thread that a multiprocessor holds
        programs = min(units, _cdiv(12 // tile.warps * limits(x.device).processors, blocks))
        taps = self.rows.length * self.cols.length
        partials = allocate((programs, taps + 1, self.channels), x, torch.float32)
        triton_kernels.weight_gradient[(blocks, programs)](
            x,
            grad,
            partials,
            self.height,
            self.width,
            self.channels,
            units,
            strips,
            self.residues,
            **self._kernel(),
            COLUMNS=tile.columns,
            CHANNELS=tile.channels,
            num_warps=tile.warps,
        )
        return partials

    def weight_gradients(self, partials: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Of weight (C, 1, k, l), zero where no tap meets the map, and bias (C,), in the weight's dtype."""
        total = (torch.cat(partials) if len(partials) > 1 else partials[0]).sum(0)
        taps = total[:-1].view(self.rows.length, self.cols.length, self.channels)
        grad = torch.zeros_like(self.weight)
        self._reached(grad).copy_(taps.permute(2, 0, 1))
        return grad, total[-1].to(self.weight.dtype, copy=True)


def _chunks(x: Tensor) -> list[slice]:
    """Slices of the batch whose scratch map stays in the L2 cache."""
    batch = x.shape[0]
    count = min(batch, _cdiv(x.numel() * x.element_size(), limits(x.device).scratch))
    size = _cdiv(batch, count)
    return [slice(i, min(i + size, batch)) for i in range(0, batch, size)]


def pair_forward(
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dw_d_bias: Tensor | None,
    dw_dilation: int,
    dw_d_dilation: int,
) -> Tensor:
    """dw_d(dw(x)) of a contiguous, non-empty (B, H, W, C)."""
    dw = Convolution(dw_weight, dw_bias, dw_dilation, x)
    dw_d = Convolution(dw_d_weight, dw_d_bias, dw_d_dilation, x)
    out, chunks = allocate(tuple(x.shape), x), _chunks(x)
    scratch = allocate(tuple(x[chunks[0]].shape), x)
    for chunk in chunks:
        part = x[chunk]
        dw_d.forward(dw.forward(part, scratch[: len(part)]), out[chunk])
    return out


def pair_backward(
    grad: Tensor,
    x: Tensor,
    dw_weight: Tensor,
    dw_bias: Tensor | None,
    dw_d_weight: Tensor,
    dw_d_bias: Tensor | None,
    dw_dilation: int,
    dw_d_dilation: int,
    need_x: bool,
    need_weights: bool,
) -> list[Tensor]:
    """Gradients of x (if needed), then of dw's weight and bias and dw_d's weight and bias (if needed).

    `grad` and `x` are contiguous, non-empty (B, H, W, C). dw(x) is computed again rather than stored.
    """
    dw = Convolution(dw_weight, dw_bias, dw_dilation, x)
    dw_d = Convolution(dw_d_weight, dw_d_bias, dw_d_dilation, x)
    chunks = _chunks(x)
    grad_x = allocate(tuple(x.shape), x) if need_x else None
    scratch, grad_scratch = (allocate(tuple(x[chunks[0]].shape), x) for _ in range(2))
    partials: tuple[list[Tensor], list[Tensor]] = ([], [])
    for chunk in chunks:
        part, grad_part = x[chunk], grad[chunk]
        middle = dw_d.input_gradient(grad_part, grad_scratch[: len(part)])
        if need_weights:
            partials[0].append(dw.weight_partials(part, middle))
            partials[1].append(dw_d.weight_partials(dw.forward(part, scratch[: len(part)]), grad_part))
        if grad_x is not None:
            dw.input_gradient(middle, grad_x[chunk])
    found = [] if grad_x is None else [grad_x]
    return [*found, *dw.weight_gradients(partials[0]), *dw_d.weight_gradients(partials[1])] if need_weights else found


def gelu_forward(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """gelu(dw(x)) of a contiguous, non-empty (B, H, W, C)."""
    return Convolution(weight, bias, dilation, x).forward(x, allocate(tuple(x.shape), x), "gelu")


def gelu_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, need_x: bool, need_weights: bool
) -> list[Tensor]:
    """Gradients of x (if needed), weight and bias (if needed); dw(x) is computed again rather than stored."""
    dw, chunks = Convolution(weight, bias, dilation, x), _chunks(x)
    grad_x = allocate(tuple(x.shape), x) if need_x else None
    scratch = allocate(tuple(x[chunks[0]].shape), x)
    partials = []
    for chunk in chunks:
        part = x[chunk]
        middle = dw.forward(part, scratch[: len(part)], "gelu_gradient", grad[chunk])
        if need_weights:
            partials.append(dw.weight_partials(part, middle))
        if grad_x is not None:
            dw.input_gradient(middle, grad_x[chunk])
    found = [] if grad_x is None else [grad_x]
    return [*found, *dw.weight_gradients(partials)] if need_weights else found
