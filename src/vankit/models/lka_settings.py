"""The settings of large kernel attention. Without PyTorch, so that recipes and the command line may name them."""

from typing import Literal, TypedDict

Form = Literal["lka", "lska", "strips", "dense"]
Part = Literal["dw", "dw_d", "pw"]
Gate = Literal["multiply", "add", "none"]


class LkaSettings(TypedDict, total=False):
    """Settings of `vankit.LargeKernelAttention`; what is left out is as in VAN.

    Attributes:
        kernel_size: K; or several, each for a share of the channels (lka, lska) or as parallel branches (strips).
        dilation: d; for lka and lska with several K as many d.
        form: lka (VAN), lska (rows and columns), strips (StripNet, SegNeXt) or dense (one undivided convolution).
        without: convolutions to leave out: dw, dw_d, pw.
        gate: how the attention meets its input: multiply, add, or none.
        sigmoid: put the attention through a sigmoid before the gate.
    """

    kernel_size: tuple[int, ...]
    dilation: tuple[int, ...]
    form: Form
    without: tuple[Part, ...]
    gate: Gate
    sigmoid: bool
