"""transformers' networks and Semantic FPN for one image of any size, in a form that tracing follows; see `whole`.

They are traced as they are, but for what would stay as the example had it: sizes that become tensors in a way that
forgets where they are from (`SizesStayVariable`), and pooling to a fixed size, which ONNX has for known sizes only.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode

from vankit.heads.backbone import normalise
from vankit.heads.from_transformers import DETR, UPerNet, best_detections
from vankit.heads.mask2former import Mask2Former, Masks
from vankit.heads.resizing import Resize, bilinear
from vankit.heads.semantic_fpn import SemanticFPN


class WholeDETR(nn.Module):
    """(1, 3, H, W), 0 to 1 → boxes, labels and scores; see `vankit.heads.whole.as_whole`."""

    def __init__(self, head: DETR) -> None:
        super().__init__()
        self.network, self.padded = head.network, head.padded
        self.resize = Resize(head.transform)
        merge_branches(self.network)
        _forget_losses(self)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, size = self.resize(image)
        whole, given = torch._shape_as_tensor(x)[2:], torch._shape_as_tensor(image)[2:]
        below = whole - size
        pixels = torch.ones_like(x[:, 0, : size[0], : size[1]], dtype=torch.long)
        with SizesStayVariable():
            outputs = self.network(x, pixel_mask=F.pad(pixels, (0, below[1], 0, below[0])))
        extent = _corners(whole if self.padded else size)
        found = best_detections(outputs.logits, outputs.pred_boxes, extent[None])[0]
        boxes = found["boxes"] * _corners(given.float() / size.float())
        return torch.minimum(boxes.clamp(min=0), _corners(given).float()), found["labels"], found["scores"]


class WholeMask2Former(nn.Module):
    """(1, 3, H, W), 0 to 1 → what `Mask2Former` gives in eval mode; see `vankit.heads.whole.as_whole`."""

    def __init__(self, head: Mask2Former) -> None:
        super().__init__()
        self.head = head
        self.resize = Resize(head.transform)
        _forget_losses(self)

    def forward(self, image: Tensor, size: Sequence[Any] | None = None) -> tuple[Tensor, ...]:
        """With `size`, height and width, logits of the image's size are brought to that one."""
        x, resized = self.resize(image)
        if self.head.output == "semantic":
            # hides that the batch is 1, else OpenVINO 2026.4 fuses masked attention and fails in bf16; in other output
            # the resizing hides it
            x = x[: torch._shape_as_tensor(image)[2].clamp(max=1)]
        with SizesStayVariable():
            outputs = self.head.network(x)
        masks = Masks(outputs.masks_queries_logits[0], x.shape[-2:], (resized[0], resized[1]), image.shape[-2:])
        found = self.head.answer(outputs.class_queries_logits[0], masks)
        if self.head.output != "semantic":
            return tuple(found.values())
        logits = found["logits"][None]
        return (logits if size is None else F.interpolate(logits, tuple(size), mode="bilinear", antialias=True),)


class WholeSegmenter(nn.Module):
    """(1, 3, H, W), 0 to 1 → logits (1, C, H, W), of `UPerNet` and `SemanticFPN`.

    The heads' own logits have a quarter of the image's size. From there they are brought to the image's and then to
    `size` in one step, by the product of the matrices of both.
    """

    def __init__(self, head: SemanticFPN | UPerNet) -> None:
        super().__init__()
        self.head = head
        if isinstance(head, UPerNet):
            _forget_losses(self)
            head.network.decode_head = UPerHead(head.network.decode_head)

    def forward(self, image: Tensor, size: Sequence[Any] | None = None) -> tuple[Tensor]:
        """With `size`, height and width, the logits of the image's size are brought to that one."""
        logits = self.head.logits(normalise(image))
        rows, columns = (bilinear(*sides) for sides in zip(logits.shape[2:], image.shape[2:], strict=True))
        if size is not None:
            again = (bilinear(*sides, antialias=True) for sides in zip(image.shape[2:], size, strict=True))
            rows, columns = (second @ first for first, second in zip((rows, columns), again, strict=True))
        return (rows @ (logits @ columns.T),)


class UPerHead(nn.Module):
    """transformers' UperNetHead; its convolutions of several levels take each as it comes, see `LevelsConvolution`."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.lateral_convs, self.fpn_convs, self.classifier = head.lateral_convs, head.fpn_convs, head.classifier
        self.pools = nn.ModuleList(
            nn.Sequential(AdaptiveAveragePool(block.layers[0].output_size), *block.layers[1:])
            for block in head.psp_modules.blocks
        )
        pooled = [head.in_channels[-1], *[head.channels] * len(self.pools)]
        self.bottleneck = _of_levels(head.bottleneck, pooled)
        self.fpn_bottleneck = _of_levels(head.fpn_bottleneck, [head.channels] * len(head.in_channels))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """VAN's four maps (1, C, H, W) → logits (1, classes, H, W) of the first one's size."""
        *fine, last = maps
        above = F.relu(self.bottleneck([last, *(pool(last) for pool in self.pools)]))
        levels = [above]
        for x, lateral, conv in list(zip(fine, self.lateral_convs, self.fpn_convs, strict=True))[::-1]:
            above = lateral(x) + F.interpolate(above, x.shape[2:], mode="bilinear")
            levels.insert(0, conv(above))
        return self.classifier(F.relu(self.fpn_bottleneck(levels)))


class LevelsConvolution(nn.Module):
    """A 3×3 convolution of maps that are brought bilinearly to the first one's size and concatenated.

    It is computed without resizing them, since 1×1 convolutions and resizing commute: each of the nine taps is a 1×1
    convolution of the map as it comes, and what they give is resized and summed one place apart, as products with
    matrices. It makes UPerNet at 512 pixels 1.7 times as fast in bf16, and 1.3 times in float32, where Winograd's
    algorithm would help the resized maps too.

    Args:
        conv: with padding 1.
        channels: of each map.
    """

    def __init__(self, conv: nn.Conv2d, channels: Sequence[int]) -> None:
        super().__init__()
        first, *others = conv.weight.detach().split(list(channels), 1)
        self.weight, self.bias = nn.Parameter(first.clone()), conv.bias
        # output channels and taps (9 O, C, 1, 1)
        self.taps = nn.ParameterList(w.permute(0, 2, 3, 1).reshape(-1, w.shape[1], 1, 1) for w in others)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(1, C, H, W), C and size each their own → (1, O, H, W) of the first one's size."""
        first, *others = maps
        y = F.conv2d(first, self.weight, self.bias, padding=1)
        for x, weight in zip(others, self.taps, strict=True):
            height, width = x.shape[2:]
            taps = F.conv2d(x, weight).reshape(len(self.weight), 3, 3, height, width).transpose(2, 3)
            rows, columns = (_beside(*sides) for sides in zip((height, width), y.shape[2:], strict=True))
            y = y + rows @ (taps.reshape(len(self.weight), 3 * height, 3 * width) @ columns.T)
        return y


def _of_levels(module: Any, channels: Sequence[int]) -> LevelsConvolution:
    """Of a UperNetConvModule, without its ReLU."""
    conv: Any = fuse_conv_bn_eval(module.conv, module.batch_norm)
    return LevelsConvolution(conv, channels)


def _beside(given: Any, made: Any) -> Tensor:
    """`bilinear` for the place before, the place itself and the one after, (made, 3 · given); 0 beyond the ends."""
    weights = bilinear(given, made)
    return torch.cat([F.pad(weights, (0, 0, 1, 0))[:-1], weights, F.pad(weights, (0, 0, 0, 1))[1:]], 1)


class AdaptiveAveragePool(nn.Module):
    """nn.AdaptiveAvgPool2d as two matrix products: (B, C, H, W) → (B, C, side, side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return self._means(x.shape[2]) @ x @ self._means(x.shape[3]).T

    def _means(self, length: int) -> Tensor:
        """(side, length): the weight of every place in every mean."""
        i = torch.arange(self.side)[:, None]
        first, end = i * length // self.side, ((i + 1) * length + self.side - 1) // self.side
        place = torch.arange(length)
        return ((place >= first) & (place < end)).float() / (end - first)


class SizesStayVariable(TorchFunctionMode):
    """In a trace, sizes are tensors. Here tensors that transformers makes of them depend on them, and are no constants
    as they would be otherwise."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _holds_tensors(args[0]):
            return _stacked(args[0])
        if func is torch.linspace and isinstance(args[2], Tensor):  # of reference points: steps of 1
            return args[0] + torch.arange(args[2], dtype=kwargs["dtype"])  # type: ignore[call-overload]
        return func(*args, **kwargs)


def _holds_tensors(data: Any) -> bool:
    return isinstance(data, list | tuple) and any(isinstance(x, Tensor) or _holds_tensors(x) for x in data)


def _stacked(data: Any) -> Tensor:
    return torch.stack([_stacked(x) if isinstance(x, list | tuple) else torch.as_tensor(x) for x in data])


def _corners(size: Tensor) -> Tensor:
    """(2,) height, width → (4,) width, height, width, height, as boxes are scaled."""
    return size.flip(0).repeat(2)


def merge_branches(network: nn.Module) -> None:
    """Make one convolution of the two in each RepVGG block of RT-DETR and D-FINE (arXiv 2101.03697), which is exact."""
    from transformers.models.d_fine.modeling_d_fine import DFineRepVggBlock
    from transformers.models.rt_detr.modeling_rt_detr import RTDetrRepVggBlock

    for parent in list(network.modules()):
        for name, block in list(parent.named_children()):
            if not isinstance(block, RTDetrRepVggBlock | DFineRepVggBlock):
                continue
            merged: Any = fuse_conv_bn_eval(block.conv1.conv, block.conv1.norm)
            point: Any = fuse_conv_bn_eval(block.conv2.conv, block.conv2.norm)
            merged.weight.data += F.pad(point.weight.data, (1, 1, 1, 1))  # 1×1 in the middle of 3×3
            merged.bias.data += point.bias.data
            setattr(parent, name, nn.Sequential(merged, block.activation))


def _forget_losses(form: Any) -> None:
    """Tracing reads every attribute, and transformers warns of losses whose name it does not know."""
    for module in form.modules():
        if hasattr(type(module), "loss_function"):
            module._loss_function = None
