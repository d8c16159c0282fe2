"""A whole detector or segmenter as one module, from a picture's bytes to what is in it, and its model as a file."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vankit.data.images import to_image
from vankit.data.shapes import render_scene
from vankit.deploy.agreement import EXACT, HALF, Agreement, Tolerance
from vankit.deploy.dense import DenseFolder, Stored, resized
from vankit.deploy.folder import OUTPUTS, Exported
from vankit.deploy.model_api import describe
from vankit.engines.convert import whole_to_executorch, whole_to_litert, whole_to_onnx, whole_to_openvino
from vankit.heads.whole import as_whole
from vankit.models.description import Description
from vankit.tasks.inference import arrays, infer

logger = logging.getLogger(__name__)

_EXAMPLE = (120, 160)  # height and width of the picture that exporters see
_SIZES = ((240, 320), (320, 240), (96, 96), (200, 510), (480, 640))  # of the scenes that are compared


def write_whole(
    exported: Exported,
    network: nn.Module,
    photographs: Iterable[Path],
    max_pixels: int,
    half: bool = False,
    opset: int | None = None,
) -> tuple[Exported, dict[str, Any]]:
    """Write a network's model for pictures of any size, or of one, and compare it with PyTorch.

    Args:
        exported: the folder; of format openvino or onnx, or, with a size, of a format of `ON_DEVICES`.
        network: of `vankit.heads`, in eval mode.
        photographs: image files to compare on, besides generated scenes.
        max_pixels: of the largest of them that is decoded.
        half, opset: see `vankit.export`.

    Returns:
        The folder with its model, and the figures of the comparison.

    Raises:
        UnsupportedNetworkError: the format cannot express the network.
        ValueError: the model finds something else, or a photograph cannot be read.
    """
    whole = Whole(network, exported.description, exported.size)
    exported = replace(exported, outputs=whole.names)
    own = (np.asarray(to_image(path, max_pixels)) for path in photographs)
    pictures: Iterator[NDArray[np.uint8]] = chain(scenes(), own)
    if exported.size:
        pictures = (resized(picture, exported.size) for picture in pictures)
        write = whole_to_executorch if exported.format == "executorch" else whole_to_litert
        exported.path.write_bytes(write(whole, torch.zeros(1, *exported.size, 3, dtype=torch.uint8)))
    elif exported.format == "onnx":
        exported.path.write_bytes(whole_to_onnx(whole, exported.shapes(), _example(), opset, half))
    else:
        import openvino

        model = whole.to_openvino()
        describe(model, exported)
        openvino.save_model(model, exported.path, compress_to_fp16=half)
    found = agreement(exported, network, pictures, HALF if half else EXACT)
    found.check()
    if found.is_empty:
        logger.warning(
            "nothing was found in the %d pictures that were compared: pass photographs (--check)", found.pictures
        )
    facts = {
        "half": half, "agreed": found.summary(), "agreement": asdict(found), "lowest_score": lowest_score(network),
    }  # fmt: skip
    return exported, facts


def lowest_score(network: nn.Module) -> float:
    """Of the objects that a detector keeps by itself."""
    return max(float(getattr(module, "score_thresh", 0.0)) for module in network.modules())


def agreement(
    exported: Stored,
    network: nn.Module,
    pictures: Iterable[NDArray[np.uint8]],
    tolerance: Tolerance = EXACT,
    cached: bool = False,
) -> Agreement:
    """Compare what a folder finds with what its network finds, in pictures (H, W, 3), RGB."""
    folder, result = DenseFolder(exported, cached=cached), Agreement(tolerance=tolerance)
    for picture in pictures:
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255
        with torch.inference_mode():
            # pictures of the one size are not resized
            (expected,) = network([x]) if exported.size else infer(network, [x], exported.description)
        result.add(arrays(expected), folder(picture))
    return result


def scenes() -> Iterator[NDArray[np.uint8]]:
    """Generated scenes (H, W, 3) to compare on, of sizes that a trace does not see."""
    return (_scene(size, seed) for seed, size in enumerate(_SIZES))


def _example() -> Tensor:
    return torch.from_numpy(_scene(_EXAMPLE, 0))[None]


def _scene(size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """A generated scene (H, W, 3): exporters see only what is run, and in noise a detector finds nothing."""
    return np.ascontiguousarray(render_scene(seed, size=size, objects=4).image)


class Whole(nn.Module):
    """A network behind the interface of an exported folder: uint8 (1, H, W, 3), RGB → tensors as `OUTPUTS` says.

    Boxes are fractions of the picture, with the score as a fifth number: so they need no word about sizes, and tools
    for OpenVINO read them.

    Args:
        network: of `vankit.heads`, in eval mode.
        description: of it.
        size: height and width of all pictures of a segmenter, which are then not resized; empty for any.
    """

    def __init__(self, network: nn.Module, description: Description, size: Sequence[int] = ()) -> None:
        super().__init__()
        self.network, found = as_whole(network)
        self.names = tuple(name for name in OUTPUTS[description.task] if name in found)
        self.found, self.task, self.fixed = found, description.task, bool(size)
        self.short_side, self.long_side = description.short_sides[-1], description.long_side

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image.permute(0, 3, 1, 2).float() / 255  # (1, 3, H, W)
        if self.fixed:
            return self.network(x)
        if self.task == "segment":
            # to a larger size antialiasing changes nothing
            small = F.interpolate(x, self._size(x), mode="bilinear", antialias=True)  # type: ignore[arg-type]
            return self.network(small, x.shape[-2:])
        results = dict(zip(self.found, self.network(x), strict=True))
        if self.task == "detect":
            extent = torch._shape_as_tensor(x)[2:].flip(0).repeat(2).float()  # W, H, W, H
            results["boxes"] = torch.cat([results["boxes"] / extent, results["scores"][:, None]], 1)
        return tuple(_countable(results[name])[None] for name in self.names)

    def to_openvino(self) -> Any:
        """An `openvino.Model` for pictures of any size.

        Raises:
            UnsupportedNetworkError: OpenVINO cannot take it.
        """
        return whole_to_openvino(self, self.names, _example())

    def _size(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Height and width that the picture is brought to, as `vankit.tasks.inference.segment_logits` does."""
        size = torch._shape_as_tensor(x)[2:]
        shorter, longer = size.min(), size.max()
        by_long = (self.short_side * longer > self.long_side * shorter).long()
        side = self.long_side * by_long + self.short_side * (1 - by_long)
        length = longer * by_long + shorter * (1 - by_long)  # which becomes `side`
        height, width = ((2 * size * side + length) // (2 * length)).clamp(min=1).unbind()
        return height, width


def _countable(values: Tensor) -> Tensor:
    """With uint8 for bool, which servers of models do not all know."""
    return values.to(torch.uint8) if values.dtype == torch.bool else values
