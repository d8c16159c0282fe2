"""Depth-wise convolutions in Triton, forward and backward, for channels_last maps; see docs/kernels.md.

Imported only by `launch`, when it launches a kernel: this is the one module that needs triton. All sums are in float32
and in a fixed order (no atomics), so results repeat bit by bit on one device.

`_row_group` computes ROWS output rows that are a dilation apart: such rows share their input rows, so each loaded value
serves up to KH multiply-adds from a register. `weight_gradient` walks down a column and keeps all KH x KW sums in
registers. Lanes run along channels, which are contiguous.
"""

import triton
import triton.language as tl

# sizes that change from image to image: no new kernel for 1 or for a multiple of 16
_SIZES = ["height", "width", "groups", "strips", "blocks", "residues", "units"]


@triton.jit
def _gelu_gate(a):
    """Φ(a), the factor of GELU."""
    return 0.5 + 0.5 * tl.erf(a * 0.7071067811865476)


@triton.jit
def _row_group(
    x_ptr,  # an image, (height, width, channels), as are gate and out
    weight_ptr,  # (KH * KW, channels)
    bias_ptr,  # (channels,) or None
    gate_ptr,
    out_ptr,
    height,
    width,
    channels,
    first_row,
    columns,
    chans,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DILATION: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    FLIP: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    chan_ok = chans < channels
    start = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    if bias_ptr is not None:
        start += tl.load(bias_ptr + chans, chan_ok, other=0.0).to(tl.float32)[None, :]
    sums = ()
    for _ in tl.static_range(ROWS):
        sums = sums + (start,)
    stride = width * channels
    for j in range(KW):
        shifted = columns + (j * DILATION - LEFT)
        ok = ((shifted >= 0) & (shifted < width))[:, None] & chan_ok[None, :]
        offsets = shifted[:, None] * channels + chans[None, :]
        weights = ()
        for i in tl.static_range(KH):
            tap = i * KW + j
            if FLIP:
                tap = KH * KW - 1 - tap
            weights = weights + (tl.load(weight_ptr + tap * channels + chans, chan_ok, other=0.0).to(tl.float32),)
        for t in tl.static_range(ROWS + KH - 1):
            row = first_row + (t * DILATION - TOP)
            if (row >= 0) & (row < height):  # a uniform branch: rows of padding cost nothing
                value = tl.load(x_ptr + row * stride + offsets, ok, other=0.0).to(tl.float32)
                for i in tl.static_range(KH):
                    if t - i >= 0 and t - i < ROWS:
                        sums = sums[: t - i] + (sums[t - i] + value * weights[i][None, :],) + sums[t - i + 1 :]
    ok = (columns < width)[:, None] & chan_ok[None, :]
    offsets = columns[:, None] * channels + chans[None, :]
    for r in tl.static_range(ROWS):
        row = first_row + r * DILATION
        inside = ok & (row < height)
        result = sums[r]
        if EPILOGUE == "gelu":
            result = result * _gelu_gate(result)
        if EPILOGUE == "gelu_gradient":
            slope = _gelu_gate(result) + result * 0.3989422804014327 * tl.exp(-0.5 * result * result)
            result = slope * tl.load(gate_ptr + row * stride + offsets, inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + row * stride + offsets, result.to(out_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=_SIZES)
def convolve(
    x_ptr,
    weight_ptr,
    bias_ptr,
    gate_ptr,
    out_ptr,
    height,
    width,
    channels,
    groups,  # of rows in an image
    strips,  # of columns
    blocks,  # of channels
    residues,  # of the row modulo the dilation
    KH: tl.constexpr,
    KW: tl.constexpr,
    DILATION: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    FLIP: tl.constexpr,
    EPILOGUE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One row group of one strip and channel block a program; channel blocks are neighbours, then strips, then rows."""
    pid = tl.program_id(0)
    chans = pid % blocks * CHANNELS + tl.arange(0, CHANNELS)
    columns = pid // blocks % strips * COLUMNS + tl.arange(0, COLUMNS)
    pid = pid // blocks // strips
    image = (pid // groups).to(tl.int64) * height * width * channels
    group = pid % groups
    first_row = group // residues * (DILATION * ROWS) + group % residues
    gate_image = gate_ptr
    if gate_ptr is not None:
        gate_image += image
    _row_group(
        x_ptr + image,
        weight_ptr,
        bias_ptr,
        gate_image,
        out_ptr + image,
        height,
        width,
        channels,
        first_row,
        columns,
        chans,
        KH,
        KW,
        DILATION,
        TOP,
        LEFT,
        FLIP,
        EPILOGUE,
        ROWS,
        COLUMNS,
        CHANNELS,
    )


@triton.jit(do_not_specialize=_SIZES)
def weight_gradient(
    x_ptr,
    grad_ptr,
    partial_ptr,  # (programs, KH * KW + 1, channels) float32; the last row is the bias's
    height,
    width,
    channels,
    units,  # images x residues x strips
    strips,
    residues,
    KH: tl.constexpr,
    KW: tl.constexpr,
    DILATION: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums of grad times shifted x over every `programs`-th unit: the rows of one residue in one strip of columns."""
    pid, programs = tl.program_id(1), tl.num_programs(1)
    chans = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    chan_ok = chans < channels
    zero = tl.zeros((COLUMNS, CHANNELS), tl.float32)
    sums = ()
    for _ in tl.static_range(KH * KW):
        sums = sums + (zero,)
    bias = zero
    stride = width * channels
    for unit in range(pid, units, programs):
        columns = unit % strips * COLUMNS + tl.arange(0, COLUMNS)
        residue = unit // strips % residues
        image = (unit // strips // residues).to(tl.int64) * height * stride
        grad_ok = (columns < width)[:, None] & chan_ok[None, :]
        offsets = columns[:, None] * channels + chans[None, :]
        # input row t (counted in steps of the dilation from -TOP) meets tap i of output row t - i
        first = (tl.maximum(TOP - residue, 0) + DILATION - 1) // DILATION
        last = (height - 1 + TOP - residue) // DILATION
        window = ()  # output rows t - KH + 1 to t
        for i in tl.static_range(1, KH):
            row = residue + (first - KH + i) * DILATION
            inside = grad_ok & (row >= 0) & (row < height)
            grad = tl.load(grad_ptr + image + row * stride + offsets, inside, other=0.0).to(tl.float32)
            bias += grad
            window = window + (grad,)
        for t in range(first, last + 1):
            row = residue + t * DILATION
            inside = grad_ok & (row < height)
            grad = tl.load(grad_ptr + image + row * stride + offsets, inside, other=0.0).to(tl.float32)
            bias += grad
            window = window + (grad,)
            x_row = x_ptr + image + (row - TOP) * stride
            for j in tl.static_range(KW):
                shifted = columns + (j * DILATION - LEFT)
                ok = ((shifted >= 0) & (shifted < width))[:, None] & chan_ok[None, :]
                value = tl.load(x_row + shifted[:, None] * channels + chans[None, :], ok, other=0.0).to(tl.float32)
                for i in tl.static_range(KH):
                    product = value * window[KH - 1 - i]
                    sums = sums[: i * KW + j] + (sums[i * KW + j] + product,) + sums[i * KW + j + 1 :]
            window = window[1:]
    out = partial_ptr + pid.to(tl.int64) * (KH * KW + 1) * channels + chans
    for n in tl.static_range(KH * KW):
        tl.store(out + n * channels, tl.sum(sums[n], 0), chan_ok)
    tl.store(out + KH * KW * channels, tl.sum(bias, 0), chan_ok)
