"""Large kernel attention as a module: its kernel, its gate and its decomposition are there to choose."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, get_args

import torch
from torch import Tensor, nn

from vankit.errors import UserError
from vankit.models.leaves import is_depthwise, is_pointwise, run
from vankit.models.lka_settings import Form, Gate, Part
from vankit.ops.convolution import same_padding
from vankit.ops.lka import gated, large_kernel_attention

__all__ = ["LargeKernelAttention"]

# one node to torch.fx: inside, sizes decide which taps are computed
torch.fx.wrap("large_kernel_attention")

_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PARTS: dict[str, tuple[str, ...]] = {
    "lka": ("dw", "dw_d", "pw"), "lska": ("dw", "dw_d", "pw"), "strips": ("dw", "pw"), "dense": (),
}  # fmt: skip


class Chain(nn.Sequential):
    """Convolutions one after the other, each keeping the spatial size; none of them is the identity."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[nn.Conv2d]: ...

    def forward(self, x: Tensor) -> Tensor:
        for conv in self:
            x = conv(x) if torch.jit.is_scripting() else run(conv, x)
        return x


class LargeKernelAttention(nn.Module):
    """LKA(x) = x · conv1x1(dw_d(dw(x))), paper section 3.1, with its ablations (table 3) and its relatives.

    Forms, for a K x K kernel and dilation d:

    - `lka`: depth-wise (2d-1) x (2d-1), then depth-wise ⌈K/d⌉ x ⌈K/d⌉ with dilation d, then 1x1. With several K and d,
      each has a share of the channels before the common 1x1: the multi-scale structure that the paper leaves to future
      work (section 5), as in MAN (arXiv 2209.14145).
    - `lska`: the same with each depth-wise kernel as a row and a column, large separable kernel attention (arXiv
      2309.01439).
    - `strips`: depth-wise (2d-1) x (2d-1), then depth-wise 1 x K and K x 1, then 1x1: StripNet (arXiv 2501.03775) with
      K = 19. With several K, the sum of such pairs, of which K = 1 is the identity: with K = (1, 7, 11, 21) the
      multi-scale convolutional attention of SegNeXt (arXiv 2209.08575).
    - `dense`: one undivided K x K convolution of all channels, as in the last row of the paper's table 3.

    Args:
        dim: channels C; input and output are (B, C, H, W).
        kernel_size: K, or several.
        dilation: d; for `lka` and `lska` with several K as many d. Of no effect on `dense`.
        form: lka, lska, strips or dense.
        without: convolutions to leave out: dw, dw_d, pw.
        gate: how the attention meets the input: multiply, add, or none (the output is the attention).
        sigmoid: apply a sigmoid to the attention before the gate.
        ndim: spatial axes: 1 for (B, C, L), 2, or 3 for (B, C, D, H, W), where a row and a column become one kernel
            per axis.
        stride_dilation: factor on every dilation, above 1 where a stage's stride was traded for dilation
            (`output_stride`).

    Raises:
        ValueError: a setting is out of range, or the settings do not go together.
    """

    ndim: Final[int]
    gate: Final[str]
    sigmoid: Final[bool]
    undivided: Final[bool]
    shares: list[int]  # channels of each branch, or none: all branches take all channels, and are summed

    if TYPE_CHECKING:  # not seen at run time: TorchScript would take the annotations for the modules' types
        dw: Any  # a convolution, a Chain or None
        dw_d: Any
        pw: Any

    def __init__(
        self,
        dim: int,
        kernel_size: int | Sequence[int] = 21,
        dilation: int | Sequence[int] = 3,
        *,
        form: Form = "lka",
        without: Sequence[Part] = (),
        gate: Gate = "multiply",
        sigmoid: bool = False,
        ndim: int = 2,
        stride_dilation: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        _check(form, without, gate, sigmoid, ndim)
        scales = _scales(kernel_size, dilation, form, dim)
        kept = [part for part in _PARTS[form] if part not in without]
        self.ndim = ndim
        self.dim, self.gate, self.sigmoid = dim, gate, sigmoid
        self.undivided = form == "lka" and len(scales) == 1  # which the operator may compute in one call
        self.shown = f"form={form}, scales={scales}"  # by extra_repr
        conv = partial(_conv, ndim=ndim, factor=stride_dilation, device=device, dtype=dtype)
        self.dw = self.dw_d = self.pw = None
        self.shares = []
        self.branches = nn.ModuleList()
        if self.undivided:
            for part, kernel in _kernels(*scales[0]).items():
                setattr(self, part, conv(dim, *kernel) if part in kept else None)
        elif form == "strips":
            if "dw" in kept:
                self.dw = Chain(conv(dim, _kernels(*scales[0])["dw"][0]))
            self.branches.extend(Chain(*_rows(conv, dim, size, 1, ndim)) for size, _ in scales)
        elif form == "dense":
            self.branches.append(Chain(conv(dim, scales[0][0], groups=1)))
        else:
            self.shares = [len(share) for share in torch.arange(dim, device="cpu").tensor_split(len(scales))]
            for share, scale in zip(self.shares, scales, strict=True):
                layers: list[nn.Module] = []
                for size, d in (kernel for part, kernel in _kernels(*scale).items() if part in kept):
                    layers += _rows(conv, share, size, d, ndim) if form == "lska" else [conv(share, size, d)]
                self.branches.append(Chain(*layers))
        if "pw" in kept:
            self.pw = conv(dim, 1, groups=1)
        if next(self.parameters(), None) is None:
            raise UserError(
                f"without is {without!r}, kernel_size {kernel_size!r}: nothing would be left of the attention"
            )

    def extra_repr(self) -> str:
        return f"{self.shown}, gate={self.gate}, sigmoid={self.sigmoid}"

    def attention(self, x: Tensor) -> Tensor:
        """The attention that gates `x`, before sigmoid and gate: (B, C, H, W) → (B, C, H, W)."""
        if not torch.jit.is_scripting() and self._is_plain():
            return self._operator(x, "none", False)
        attn = x
        if self.dw is not None:
            attn = self.dw(attn) if torch.jit.is_scripting() else run(self.dw, attn)
        if self.dw_d is not None:
            attn = self.dw_d(attn) if torch.jit.is_scripting() else run(self.dw_d, attn)
        if len(self.shares) > 0:
            parts = attn.split(self.shares, -self.ndim - 1)
            attn = torch.cat([branch(parts[i]) for i, branch in enumerate(self.branches)], -self.ndim - 1)
        else:
            whole = attn
            for i, branch in enumerate(self.branches):
                attn = branch(whole) if i == 0 else attn + branch(whole)
        if self.pw is not None:
            attn = self.pw(attn) if torch.jit.is_scripting() else run(self.pw, attn)
        return attn

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and self._is_plain():
            return self._operator(x, self.gate, self.sigmoid)
        return gated(x, self.attention(x), self.gate, self.sigmoid)

    @torch.jit.unused
    def _is_plain(self) -> bool:
        """Whether the operator computes what calling the modules would."""
        return (
            self.undivided
            and (self.dw is None or is_depthwise(self.dw))
            and (self.dw_d is None or is_depthwise(self.dw_d))
            and (self.pw is None or is_pointwise(self.pw))
        )

    @torch.jit.unused
    def _operator(self, x: Tensor, gate: str, sigmoid: bool) -> Tensor:
        return large_kernel_attention(
            x,
            *_tensors(self.dw),
            *_tensors(self.dw_d),
            *_tensors(self.pw),
            dw_dilation=1 if self.dw is None else self.dw.dilation[0],
            dw_d_dilation=1 if self.dw_d is None else self.dw_d.dilation[0],
            gate=gate,
            sigmoid=sigmoid,
        )


def _tensors(conv: Any) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if conv is None else (conv.weight, conv.bias)


def _conv(
    dim: int,
    kernel_size: int | Sequence[int],
    dilation: int = 1,
    groups: int | None = None,
    *,
    ndim: int,
    factor: int,
    **factory: Any,
) -> Any:
    """Depth-wise unless `groups` is given. Its own padding keeps the size, so that it may be called as a module."""
    dilation *= factor
    lengths = [kernel_size] * ndim if isinstance(kernel_size, int) else kernel_size
    sides = [same_padding(length, dilation) for length in lengths]
    even = all(before == after for before, after in sides)
    padding = tuple(before for before, _ in sides) if even else "same"
    options = {"dilation": dilation, "groups": groups or dim, "padding": padding, **factory}
    conv = _CONV[ndim](dim, dim, tuple(lengths), **options)  # type: ignore[arg-type]
    if not even:
        # zeros by F.pad, since ONNX Runtime refuses "same" with a dilation
        conv.padding_mode = "constant"  # type: ignore[assignment]
    return conv


def _rows(conv: Any, dim: int, size: int, dilation: int, ndim: int) -> Iterator[nn.Module]:
    """A kernel along each axis in turn, the last axis first; of one pixel it is the identity."""
    for axis in reversed(range(ndim)):
        if size > 1:
            yield conv(dim, [size if i == axis else 1 for i in range(ndim)], dilation)


def _kernels(size: int, dilation: int) -> dict[str, tuple[int, int]]:
    """(size, dilation) of the local and of the dilated kernel that make up K x K, by the paper's rule (section 3.1)."""
    return {"dw": (2 * dilation - 1, 1), "dw_d": (-(-size // dilation), dilation)}


def _scales(
    kernel_size: int | Sequence[int], dilation: int | Sequence[int], form: str, dim: int
) -> list[tuple[int, int]]:
    """(K, d) of every scale."""
    sizes, dilations = (tuple(value) if isinstance(value, Sequence) else (value,) for value in (kernel_size, dilation))
    for name, values in (("kernel_size", sizes), ("dilation", dilations)):
        if not values or not all(isinstance(value, int) and value > 0 for value in values):
            raise UserError(f"{name} is {values}, expected a positive whole number, or several")
    if form == "dense" and len(sizes) > 1:
        raise UserError(f"kernel_size is {sizes}, but form 'dense' has one kernel: expected one number")
    if len(dilations) > 1 and (form in ("strips", "dense") or len(dilations) != len(sizes)):
        raise UserError(
            f"dilation is {dilations} and kernel_size {sizes}: expected one dilation, or one per kernel for lka, lska"
        )
    if form in ("lka", "lska") and len(sizes) > dim:
        raise UserError(f"kernel_size is {sizes} for {dim} channels: expected at least one channel per kernel")
    return list(zip(sizes, dilations * len(sizes) if len(dilations) == 1 else dilations, strict=True))


def _check(form: str, without: Sequence[str], gate: str, sigmoid: bool, ndim: int) -> None:
    choices: dict[str, tuple[Any, Iterable[Any]]] = {
        "form": (form, get_args(Form)), "gate": (gate, get_args(Gate)), "sigmoid": (sigmoid, (False, True)),
        "ndim": (ndim, _CONV),
    }  # fmt: skip
    for name, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"{name} is {value!r}, expected one of {', '.join(map(str, known))}")
    parts = _PARTS[form]
    if not isinstance(without, list | tuple) or set(without) - set(parts):
        raise UserError(f"without is {without!r}, but form {form!r} has the parts {parts}: expected a list of those")
