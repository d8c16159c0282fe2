"""What of the dense tasks needs PyTorch: a network's results as arrays."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def arrays(given: Mapping[str, Any]) -> dict[str, Any]:
    """A network's result or a target, see `vankit.heads`, as arrays on the CPU; floats as float32.

    In place of a segmenter's `logits` there is the best class per pixel, `semantic` (H, W) int64.
    """
    if "logits" in given:
        return {"semantic": given["logits"].argmax(0).cpu().numpy()}
    return {name: _array(value) if isinstance(value, Tensor) else value for name, value in given.items()}


def _array(value: Tensor) -> Any:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16
