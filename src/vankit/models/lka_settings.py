"""The settings of large kernel attention. Without PyTorch, so that recipes and the command line may name them."""

from typing import Literal, TypedDict

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
