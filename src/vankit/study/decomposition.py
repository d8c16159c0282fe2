"""What the paper's decomposition of a large convolution saves."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from vankit.errors import UserError
from vankit.files import save_figure

_LARGEST = 1_000_000


@dataclass(frozen=True)
class Decomposition:
    """Parameters of a K x K convolution of C channels, biases aside (paper section 3.1, table 1).

    Attributes:
        channels: C.
        standard: one undivided convolution, K²C².
        mobilenet: a depth-wise K x K and a 1x1 convolution.
        lka: (2d-1)²C + ⌈K/d⌉²C + C².
    """

    channels: int
    standard: int
    mobilenet: int
    lka: int


def decomposition(
    kernel_size: int = 21, dilation: int | None = None, channels: Sequence[int] = (32, 64, 128, 256, 512)
) -> list[Decomposition]:
    """What the paper's decomposition of a large convolution saves.

    Args:
        kernel_size: K.
        dilation: d; the one with the fewest parameters if None.
        channels: C of each row.

    Raises:
        ValueError: a number is not from 1 to a million.
    """
    for name, values in (
        ("kernel_size", [kernel_size]),
        ("dilation", [] if dilation is None else [dilation]),
        ("channels", channels),
    ):
        if wrong := [value for value in values if not 1 <= value <= _LARGEST]:
            raise UserError(f"{name} is {wrong[0]}, expected 1 to {_LARGEST:,}")
    d, area = dilation or best_dilation(kernel_size), kernel_size**2
    return [
        Decomposition(c, area * c * c, area * c + c * c, depthwise_params(kernel_size, d) * c + c * c) for c in channels
    ]


def depthwise_params(kernel_size: int, dilation: int) -> int:
    """Parameters per channel of the two depth-wise kernels: (2d-1)² + ⌈K/d⌉²."""
    return (2 * dilation - 1) ** 2 + (-(-kernel_size // dilation)) ** 2


def best_dilation(kernel_size: int) -> int:
    """The d for which LKA has the fewest parameters; 3 for K = 21."""
    return min(range(1, kernel_size + 1), key=lambda d: depthwise_params(kernel_size, d))


def plot_decomposition(kernel_size: int, rows: Sequence[Decomposition], path: str | PathLike[str]) -> None:
    """Draw parameters by channels (left), and those of the two depth-wise kernels by dilation (right).

    Args:
        kernel_size: K.
        rows: see `decomposition`.
        path: image file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    channels = [row.channels for row in rows]
    for name, values in (
        (f"standard {kernel_size}x{kernel_size}", [row.standard for row in rows]),
        ("MobileNet", [row.mobilenet for row in rows]),
        ("LKA", [row.lka for row in rows]),
    ):
        left.loglog(channels, values, "o-", label=name)
    left.set(xlabel="channels", ylabel="parameters, biases aside")
    left.set_xticks(channels, [str(c) for c in channels])
    left.minorticks_off()
    left.legend()
    dilations = range(1, 11)
    for k in dict.fromkeys((7, 14, 21, 28, kernel_size)):
        right.plot(dilations, [depthwise_params(k, d) for d in dilations], "o-", markersize=4, label=f"K = {k}")
        right.plot(best_dilation(k), depthwise_params(k, best_dilation(k)), "*", color="black", zorder=3)
    right.set(xlabel="dilation d", ylabel="depth-wise parameters per channel", yscale="log", xticks=list(dilations))
    right.set_yticks([25, 50, 100, 200, 400, 800], ["25", "50", "100", "200", "400", "800"])
    right.minorticks_off()
    right.legend(title="★ fewest")
    save_figure(figure, path, dpi=110)
