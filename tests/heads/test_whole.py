"""torchvision's detectors and Sparse R-CNN as one function of one image: the same objects, also in other runtimes.

Weights at random find nothing. Here the last layers are scaled so that their outputs on noise have a given spread: some
hundred candidates of several classes, boxes away from their anchors.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from vankit.engines.convert import UnsupportedNetworkError, whole_to_onnx, whole_to_openvino
from vankit.errors import UserError
from vankit.heads.backbone import van_features
from vankit.heads.cascade_rcnn import cascade_mask_rcnn
from vankit.heads.rcnn import faster_rcnn, mask_rcnn, retinanet
from vankit.heads.sparse_rcnn import sparse_rcnn
from vankit.heads.whole import as_whole
from vankit.tasks.masks import paste_masks

BUILD: dict[str, Callable[..., Any]] = {
    "retinanet": retinanet,
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "cascade_mask_rcnn": cascade_mask_rcnn,
    "sparse_rcnn": sparse_rcnn,
}
MASKS = {"mask_rcnn", "cascade_mask_rcnn"}

# by the end of its name, the spread and the middle of what a layer gives
LAYERS = {
    "classification_head.cls_logits": (2.0, -6.0), "regression_head.bbox_reg": (0.3, 0.0),
    "rpn.head.cls_logits": (3.0, 0.0), "rpn.head.bbox_pred": (0.3, 0.0),
    "cls_score": (2.0, 0.0), "box_predictor.bbox_pred": (1.0, 0.0), "mask_fcn_logits": (3.0, 0.0),
    "class_logits": (2.0, -3.0), "box_deltas": (0.03, 0.0),
}  # fmt: skip

# height and width: resized by the short side, by the long one, not at all; down and up; 65 → 64 falls short as a float
EXAMPLE = torch.rand(1, 3, 70, 100, generator=torch.Generator().manual_seed(0))
SIZES = [(64, 96), (40, 60), (33, 200), (120, 65)]


def noise(height: int, width: int) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))


@torch.inference_mode()
def spread(network: nn.Module, image: Tensor) -> None:
    """Give the layers of `LAYERS` the outputs that are wanted on an image, first layers first."""
    for name, layer in network.named_modules():
        for std, mean in (value for end, value in LAYERS.items() if name.endswith(end)):
            seen: list[Tensor] = []
            hook = layer.register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(output.flatten()))
            network([image])
            hook.remove()
            outputs, bias = torch.cat(seen), layer.bias.mean()
            layer.weight.mul_(std / outputs.std())
            layer.bias.fill_(mean - (outputs.mean() - bias) * std / outputs.std())


@pytest.fixture(scope="module")
def built() -> Callable[[str], Any]:
    """Factory: a head over VAN-B0 that finds objects of 20 classes."""

    @cache
    def build(name: str) -> Any:
        torch.manual_seed(0)
        network = BUILD[name](van_features("van_b0"), 20, short_sides=(64,), long_side=96).eval()
        for key, tensor in network.state_dict().items():
            if key.endswith("running_mean"):
                nn.init.normal_(tensor, 0, 0.1)
            elif key.endswith("running_var"):
                nn.init.uniform_(tensor, 0.5, 1.5)
        for module in network.modules():  # to be quick
            if isinstance(module, RegionProposalNetwork):
                module._post_nms_top_n["testing"] = 200
            elif isinstance(module, RoIHeads):
                module.detections_per_img = 20
        spread(network, noise(64, 96))
        return network

    return build


def assert_same(found: dict[str, Any], wanted: dict[str, Tensor], pixels: float, score: float) -> None:
    """The same objects in the same order but where scores are as good as equal, where the last may be others."""
    boxes, labels, scores = (torch.as_tensor(np.asarray(found[key])) for key in ("boxes", "labels", "scores"))
    assert boxes.dtype == scores.dtype == torch.float32 and labels.dtype == torch.int64
    torch.testing.assert_close(scores, wanted["scores"], atol=score, rtol=0)
    assert (scores.diff() <= 0).all()
    away = (boxes[None] - wanted["boxes"][:, None]).abs().amax(2) / pixels  # (wanted, found), in tolerances
    away = away.maximum((scores[None] - wanted["scores"][:, None]).abs() / score)
    away[labels[None] != wanted["labels"][:, None]] = torch.inf
    nearest, chosen = away.min(1) if len(labels) else (torch.zeros(0), torch.zeros(0))
    sure = wanted["scores"] > wanted["scores"][-1:] + score
    assert nearest[sure].le(1).all()
    assert len(chosen[sure].unique()) == sure.sum()
    if "masks" in wanted:
        pasted = paste_masks(np.asarray(found["masks"]), boxes.numpy(), wanted["masks"].shape[1:])
        assert (pasted[chosen[sure]] == wanted["masks"][sure].numpy()).mean() >= 0.9999


@torch.inference_mode()
def run(network: nn.Module, image: Tensor) -> dict[str, Any]:
    module, names = as_whole(network)
    return dict(zip(names, module(image[None]), strict=True))


# the others in other runtimes, below
@pytest.mark.parametrize("name", ["retinanet", pytest.param("mask_rcnn", marks=pytest.mark.slow)])
def test_the_form_finds_what_the_head_finds(built: Any, name: str) -> None:
    network = built(name)
    module, names = as_whole(network)
    assert names == ("boxes", "labels", "scores", "masks")[: 4 if name in MASKS else 3]
    for size in SIZES:
        with torch.inference_mode():
            (wanted,) = network([noise(*size)])
            found = dict(zip(names, module(noise(*size)[None]), strict=True))
        assert len(wanted["labels"]) >= 20 and len(wanted["labels"].unique()) > 2
        assert_same(found, wanted, pixels=1e-2, score=1e-4)
        assert (found["boxes"] >= 0).all() and (found["boxes"] <= torch.tensor([*size[::-1]] * 2)).all()


def test_nothing_in_the_image(built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    network = built("mask_rcnn")
    monkeypatch.setattr(network.detector.roi_heads, "score_thresh", 1.0)
    shapes = {name: tuple(value.shape) for name, value in run(network, noise(40, 60)).items()}
    assert shapes == {"boxes": (0, 4), "labels": (0,), "scores": (0,), "masks": (0, 28, 28)}


def test_the_network_stays_as_it_is(built: Any) -> None:
    network = built("retinanet")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    run(network, noise(40, 60))
    after = network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_other_networks_have_no_such_form() -> None:
    with pytest.raises(UserError, match="`network` is Linear: expected a network of vankit.heads"):
        as_whole(nn.Linear(1, 1))


class Unknown(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor]:
        raise RuntimeError("an operator that nobody knows")


@pytest.mark.parametrize(("convert", "to"), [(whole_to_openvino, "OpenVINO"), (whole_to_onnx, "ONNX")])
def test_what_cannot_be_converted_says_why(convert: Any, to: str) -> None:
    with pytest.raises(UnsupportedNetworkError, match=f"{to} cannot take the network: an operator that nobody knows"):
        convert(Unknown(), {"boxes": (None, 4)}, EXAMPLE)


def openvino(network: nn.Module) -> Callable[[Tensor], dict[str, Any]]:
    from vankit.engines.openvino import openvino_core

    module, names = as_whole(network)
    compiled = openvino_core().compile_model(
        whole_to_openvino(module, names, EXAMPLE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    assert [compiled.input(0).any_name, *(o.any_name for o in compiled.outputs)] == ["image", *names]

    def infer(image: Tensor) -> dict[str, Any]:
        found = compiled([image[None].numpy()])
        return {name: found[name] for name in names}

    return infer


def onnx(network: nn.Module) -> Callable[[Tensor], dict[str, Any]]:
    from onnxruntime import InferenceSession

    module, names = as_whole(network)
    content = whole_to_onnx(module, dict.fromkeys(names, (None,)), EXAMPLE)
    assert b"site-packages" not in content and str(Path(__file__).parents[2]).encode() not in content
    session = InferenceSession(content)
    return lambda image: dict(zip(names, session.run(list(names), {"image": image[None].numpy()}), strict=True))


@pytest.fixture(scope="module")
def photographs(shared_data: Callable[..., Path]) -> list[Tensor]:
    paths = sorted(shared_data("coco_panoptic_200", r"\.jpg$").rglob("*.jpg"))[:4]
    return [torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1) / 255 for p in paths]


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize(
    ("name", "runtime"),  # one runtime each: a conversion takes up to half a minute
    [
        ("retinanet", openvino),
        ("faster_rcnn", openvino),
        ("mask_rcnn", onnx),
        ("cascade_mask_rcnn", openvino),
        ("sparse_rcnn", onnx),
    ],
)
def test_other_runtimes_find_what_the_head_finds(
    built: Any, name: str, runtime: Any, photographs: list[Tensor]
) -> None:
    network = built(name)
    infer = runtime(network)
    for image in [*photographs, *(noise(*size) for size in (*SIZES, (385, 640))), torch.zeros(3, 50, 70)]:
        with torch.inference_mode():
            (wanted,) = network([image])
        # resizing noise of 640 pixels is off by 1e-4 in either, for its coordinates are float32
        assert_same(infer(image), wanted, pixels=5e-2, score=1e-3)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("runtime", [openvino, onnx])
@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn"])
def test_nothing_in_the_image_of_other_runtimes(
    built: Any, name: str, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = built(name)
    decides = network.detector if name == "retinanet" else network.detector.roi_heads
    monkeypatch.setattr(decides, "score_thresh", 1.0)
    shapes = {key: value.shape for key, value in runtime(network)(noise(40, 60)).items()}
    wanted = {"boxes": (0, 4), "labels": (0,), "scores": (0,), "masks": (0, 28, 28)}
    assert shapes == {key: wanted[key] for key in shapes}
