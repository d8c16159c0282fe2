"""From a network and its input to maps: Grad-CAM, LKA attention, the effective receptive field."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vankit.errors import MissingPackageError, UserError, check_output
from vankit.models.lka import LargeKernelAttention

Block = tuple[int, int]  # stage and block, both from 1

_LUO_THRESHOLD = 1 - 0.9545  # of the largest value: a Gaussian's part beyond two standard deviations


def layers_of(network: nn.Module, stage: int | None = None, layer: str | None = None) -> dict[str, str]:
    """Where to look: what a place is called, and its module's name.

    Args:
        network: a timm model or feature extractor.
        stage: 1 to 4, of VAN and other pyramids; of any network, its level of timm's `feature_info` counted from the
            last, which is 4. None for all.
        layer: a module's name instead.

    Returns:
        `stage 4` → `stage4`, and so on, from input to output.

    Raises:
        ValueError: there is no such stage or module, or the network does not say where its levels are.
    """
    known = {name for name, _ in network.named_modules() if name}
    if layer is not None:
        if layer not in known:
            children = ", ".join(name for name, _ in network.named_children())
            raise UserError(
                f"{type(network).__name__} has no module {layer!r} (--layer): expected a name in {children}"
            )
        return {layer: layer}
    levels: Any = getattr(network, "feature_info", None) or []
    names: list[Any] = [level.get("module") for level in getattr(levels, "info", levels)][-4:]
    if not names or not known.issuperset(names):
        raise UserError(f"{type(network).__name__} does not say where its stages are: pass layer (--layer NAME)")
    places = {f"stage {i}": _before_class_token(network, name) for i, name in enumerate(names, 5 - len(names))}
    if stage is None:
        return places
    if f"stage {stage}" not in places:
        raise UserError(f"stage is {stage}, expected {5 - len(names)} to 4")
    return {f"stage {stage}": places[f"stage {stage}"]}


def _before_class_token(network: Any, name: str) -> str:
    """A block whose class token alone goes on to the head leaves no gradient at its patches; what enters it has one."""
    pooled_by_token = getattr(network, "num_prefix_tokens", 0) and getattr(network, "global_pool", "") == "token"
    return f"{name}.norm1" if pooled_by_token and hasattr(network.get_submodule(name), "norm1") else name


def to_maps(y: Any, size: Sequence[int], prefix: int = 0) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A layer's output as maps.

    Args:
        y: (B, C, h, w), (B, h, w, C), or tokens (B, prefix + h w, C); which of the first two, and h and w, follow from
            the picture's proportions.
        size: height and width of the network's input.
        prefix: class and register tokens before the others.

    Returns:
        (B, C, h, w), and the function that arranges such maps as y is.

    Raises:
        ValueError: y is none of these.
    """
    if isinstance(y, Tensor) and y.ndim == 4:
        if _distortion(y.shape[1], y.shape[2], size) < _distortion(y.shape[2], y.shape[3], size):
            return y.permute(0, 3, 1, 2), lambda maps: maps.permute(0, 2, 3, 1)
        return y, lambda maps: maps
    if isinstance(y, Tensor) and y.ndim == 3 and (count := y.shape[1] - prefix) > 0:
        height = min((n for n in range(1, count + 1) if count % n == 0), key=lambda n: _distortion(n, count // n, size))
        if _distortion(height, count // height, size) < math.log(1.5):
            maps = y[:, prefix:].transpose(1, 2).unflatten(2, (height, count // height))
            return maps, lambda maps: torch.cat([y[:, :prefix], maps.flatten(2).transpose(1, 2)], 1)
    shape = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
    raise UserError(
        f"the layer's output is {shape} for a picture of {size[0]}x{size[1]} pixels, expected a map or tokens that "
        "make one: pass another layer (--layer NAME)"
    )


def _distortion(height: int, width: int, size: Sequence[int]) -> float:
    """How far the proportions are from the picture's; 0 where they are the same."""
    return abs(math.log(height * size[1] / (width * size[0])))


def grad_cam(network: nn.Module, layer: str, x: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391): ReLU of the layer's channels, weighted by their mean gradient.

    Args:
        network: holds the layer.
        layer: its name; its output is as `to_maps` takes it.
        x: (B, 3, H, W).
        score: x → (B,), what the maps explain, by way of the network.

    Returns:
        (B, h, w), 0 or more, at the layer's resolution.

    Raises:
        ImportError: captum is not installed.
        ValueError: the layer's output is no map, or the maps are not finite.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise MissingPackageError("Grad-CAM needs captum: pip install 'vankit[explain]'") from None
    probe = nn.Identity()  # captum takes a layer's second axis for its channels, so it is shown maps

    def rearranged(_module: nn.Module, _args: Any, y: Any) -> Tensor:
        maps, back = to_maps(y, x.shape[-2:], getattr(network, "num_prefix_tokens", 0))
        return back(probe(maps))

    with _hooked(network.get_submodule(layer).register_forward_hook(rearranged)):
        found = LayerGradCam(score, probe).attribute(x.detach().requires_grad_(), relu_attributions=True)
    check_output(found)
    return found[:, 0].detach()


def blocks_of(network: nn.Module, stage: int | None = None) -> dict[Block, LargeKernelAttention]:
    """The network's LKAs by stage and block; those of another network than VAN are blocks of one stage.

    Args:
        stage: this one alone.

    Raises:
        ValueError: it has none.
    """
    found: dict[Block, LargeKernelAttention] = {}
    for name, module in network.named_modules():
        if isinstance(module, LargeKernelAttention):
            place = re.search(r"stage(\d+)\.blocks\.(\d+)\.", name)
            found[(int(place[1]), int(place[2]) + 1) if place else (1, len(found) + 1)] = module
    if not found:
        raise UserError(
            f"{type(network).__name__} has no large kernel attention: use method grad-cam or receptive-field"
        )
    chosen = {block: lka for block, lka in found.items() if stage in (None, block[0])}
    if not chosen:
        raise UserError(f"stage is {stage}, expected 1 to {max(found)[0]}")
    return chosen


@contextmanager
def watching(blocks: dict[Block, LargeKernelAttention], take: Callable[[Block, Tensor], None]) -> Iterator[None]:
    """Hand each block's attention (B, C, h, w) to `take` whenever the network runs in this context."""

    def watch(block: Block) -> Callable[..., None]:
        return lambda module, args: take(block, module.attention(args[0]))

    with _hooked(*(module.register_forward_pre_hook(watch(block)) for block, module in blocks.items())):
        yield


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs of every call of a module in this context."""
    inputs: list[Tensor] = []

    def keep(_module: nn.Module, args: Any) -> None:
        inputs.append(args[0].detach())

    with _hooked(module.register_forward_pre_hook(keep)):
        yield inputs


@contextmanager
def _hooked(*handles: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


class ChannelStatistics:
    """Figures of every channel's attention over images and positions."""

    def __init__(self) -> None:
        self._sums: dict[Block, Tensor] = {}

    def add(self, block: Block, attention: Tensor) -> None:
        """Take a block's attention, (B, C, h, w)."""
        values = attention.detach().transpose(0, 1).flatten(1).double()  # (C, N)
        sums = torch.stack(
            [torch.full_like(values[:, 0], values.shape[1]), values.sum(1), (values**2).sum(1), (values > 0).sum(1)]
        ).cpu()  # (4, C)
        low, high = values.amin(1).cpu(), values.amax(1).cpu()
        if block in self._sums:
            before = self._sums[block]
            sums, low, high = sums + before[:4], torch.minimum(low, before[4]), torch.maximum(high, before[5])
        self._sums[block] = torch.cat([sums, low[None], high[None]])

    def rows(self) -> list[dict[str, Any]]:
        """A row per channel: stage, block, channel (all from 1), mean, std, min, max, positive (share, 0 to 1)."""
        rows = []
        for (stage, block), sums in sorted(self._sums.items()):
            count, total, squares, positive, low, high = sums
            mean = total / count
            std = (squares / count - mean**2).clamp(min=0).sqrt()
            figures = {"mean": mean, "std": std, "min": low, "max": high, "positive": positive / count}
            for i in range(len(mean)):
                numbers = {name: float(values[i]) for name, values in figures.items()}
                rows.append({"stage": stage, "block": block, "channel": i + 1, **numbers})
        return rows


def receptive_fields(network: nn.Module, layers: Sequence[str], x: Tensor, seed: int = 0) -> list[NDArray[np.float64]]:
    """Which pixels the units in the middle of some layers depend on, and how much (Luo et al., arXiv 1701.04128).

    The gradient of the middle unit with respect to the picture. Its channels are summed with standard normal weights: a
    plain sum would be constant after a LayerNorm. So a pixel's value is in proportion to the length of its Jacobian.

    Args:
        network: in eval mode; holds the layers.
        layers: modules whose output `to_maps` takes; "" is the network itself.
        x: (B, C, H, W).
        seed: of the weights.

    Returns:
        For each layer (H, W): mean absolute gradient over pictures and colours, exactly 0 where there is no path.

    Raises:
        ValueError: a layer's output is no map, or its middle depends on no pixel, or not by finite numbers.
    """
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, y: Any) -> None:
            found, _ = to_maps(y, x.shape[-2:], getattr(network, "num_prefix_tokens", 0))
            maps[name] = found.clone()  # what follows may work in place

        return hook

    x = x.detach().requires_grad_()
    with _hooked(*(network.get_submodule(name).register_forward_hook(keep(name)) for name in layers)):
        network(x)
    generator = torch.Generator().manual_seed(seed)
    fields = []
    for name in layers:
        middle = maps[name][:, :, maps[name].shape[2] // 2, maps[name].shape[3] // 2]  # (B, C)
        weights = torch.randn(middle.shape, generator=generator).to(middle)
        (gradient,) = torch.autograd.grad((middle * weights).sum(), x, retain_graph=True)
        check_output(gradient)
        if not gradient.any():
            raise UserError(f"the middle of {name!r} depends on no pixel: pass another layer (--layer NAME)")
        fields.append(gradient.abs().mean((0, 1)).double().cpu().numpy())
    return fields


def extent(field: NDArray[np.float64]) -> dict[str, float]:
    """How far a receptive field reaches.

    Args:
        field: (H, W), 0 or more, not 0 everywhere.

    Returns:
        In pixels: `height` and `width` of the rectangle outside which it is exactly 0 (the theoretical receptive field,
        as far as the picture goes), and `effective`: the square root of the number of pixels above 4.55 % of the
        largest, which is Luo et al.'s size.
    """
    rows, columns = np.nonzero(field)
    return {
        "height": int(np.ptp(rows)) + 1,
        "width": int(np.ptp(columns)) + 1,
        "effective": float(np.sqrt((field > _LUO_THRESHOLD * field.max()).sum())),
    }
