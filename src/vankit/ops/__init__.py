"""Operators of the Visual Attention Network."""

from vankit.ops.gelu import depthwise_gelu
from vankit.ops.lka import large_kernel_attention

__all__ = ["depthwise_gelu", "large_kernel_attention"]
