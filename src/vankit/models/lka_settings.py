"""The settings of large kernel attention. Without PyTorch, so that recipes and the command line may name them."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta

from vankit.errors import UserError
from vankit.schema import check, shown

Form = Literal["lka", "lska", "strips", "dense"]
Part = Literal["dw", "dw_d", "pw"]
Gate = Literal["multiply", "add", "none"]


class LkaSettings(TypedDict, total=False):
    """Settings of `vankit.LargeKernelAttention`; what is left out is as in VAN.

    Attributes:
        kernel_size: size K of the whole kernel; several share the channels (lka, lska) or are parallel branches
            (strips).
        dilation: d of the dilated convolution; for lka and lska one per kernel.
        form: lka (VAN), lska (rows and columns), strips (StripNet, SegNeXt) or dense (one undivided convolution).
        without: convolutions to leave out: dw, dw_d, pw.
        gate: how the attention is combined with its input: multiply, add, or none.
        sigmoid: apply a sigmoid to the attention before the gate.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    form: Form
    without: tuple[Part, ...]
    gate: Gate
    sigmoid: bool


LARGEST = 1023  # kernel and dilation, in pixels
_Size = Annotated[int, Meta(ge=1, le=LARGEST)]
_Sizes = Annotated[
    _Size | Annotated[Sequence[_Size], Meta(min_length=1, max_length=100)],
    Meta(description=f"a whole number from 1 to {LARGEST}, or several"),
]


class _Limits(TypedDict, total=False):
    """`LkaSettings` as JSON has them."""

    kernel_size: _Sizes
    dilation: _Sizes
    form: Form
    without: Sequence[Part]
    gate: Gate
    sigmoid: bool


def check_lka(settings: Any) -> None:
    """Check the types and ranges of the settings, but not whether they go together, nor those of other names.

    Args:
        settings: of `LkaSettings`, as a file or a caller has them.

    Raises:
        ValueError: a value cannot be.
    """
    if not isinstance(settings, Mapping):
        raise UserError(
            f"lka is {shown(settings)}: expected settings by name, some of {', '.join(_Limits.__annotations__)}"
        )
    check(settings, _Limits)
