"""Networks as one function of one image: the same as the heads, also converted, at every size."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vankit.data.shapes import render_scene
from vankit.engines.convert import whole_to_onnx, whole_to_openvino
from vankit.errors import UserError
from vankit.heads.backbone import van_features
from vankit.heads.from_transformers import d_fine, deformable_detr, rt_detr, upernet
from vankit.heads.mask2former import Mask2Former, Masks, mask2former
from vankit.heads.semantic_fpn import SemanticFPN
from vankit.heads.whole import as_whole
from vankit.heads.whole_transformers import AdaptiveAveragePool, LevelsConvolution, merge_branches

pytest.importorskip("transformers")

CLASSES = 10
EXAMPLE = (70, 101)
SIZES = (EXAMPLE, (101, 70), (96, 96), (64, 128), (33, 200), (200, 33), (20, 24), (161, 161), (240, 320))
SETTINGS = {"queries": 20, "short_sides": (96,), "long_side": 160}


def detector(build: Callable[..., Any]) -> Any:
    """Two decoder layers, and weights that give clear answers: random ones give every box the same score."""
    head = build(van_features("van_b0"), CLASSES, **SETTINGS)
    decoder = head.network.model.decoder
    decoder.layers, decoder.eval_idx = decoder.layers[:2], 1
    spread = {"class_embed": 0.3, "enc_score_head": 0.3, "sampling_offsets": 0.02, "bbox": 0.05}
    for name, weight in head.network.named_parameters():
        for part, std in spread.items():
            if part in name and weight.ndim == 2:
                nn.init.normal_(weight, std=std)
    return head


def universal(output: Any) -> Any:
    """Each of the three levels is attended to, the first twice."""
    head = mask2former(
        van_features("van_b0"), CLASSES, things=[i < 5 for i in range(CLASSES)], output=output, **SETTINGS
    )
    model = head.network.model
    model.transformer_module.decoder.layers = model.transformer_module.decoder.layers[:4]
    encoder = model.pixel_level_module.decoder.encoder
    encoder.layers = encoder.layers[:1]
    nn.init.normal_(head.network.class_predictor.weight, std=2)
    return head


def trained(network: nn.Module) -> Any:
    """With norms that change what they get."""
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return network


HEADS: dict[str, Callable[[], Any]] = {
    "rt_detr": lambda: detector(rt_detr),
    "d_fine": lambda: detector(d_fine),
    "deformable_detr": lambda: detector(deformable_detr),
    "upernet": lambda: trained(upernet(van_features("van_b0"), CLASSES)),
    "semantic_fpn": lambda: SemanticFPN(van_features("van_b0"), CLASSES),
    "semantic": lambda: universal("semantic"),
    "instance": lambda: universal("instance"),
    "panoptic": lambda: universal("panoptic"),
}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    scenes = [render_scene(i, size=size, objects=3) for i, size in enumerate(SIZES)]
    return [torch.from_numpy(scene.image).permute(2, 0, 1) / 255 for scene in scenes]


@pytest.fixture(scope="module", params=HEADS)
def head(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return HEADS[request.param]().eval()


Run = Callable[..., list[np.ndarray]]


def on_openvino(module: nn.Module, names: Sequence[str], example: Tensor) -> Run:
    from vankit.engines.openvino import openvino_core

    model = whole_to_openvino(module, names, example)
    assert model.input("image").partial_shape.to_string() == "[1,3,?,?]"
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: [compiled(image.numpy())[name] for name in names]


def on_onnxruntime(module: nn.Module, names: Sequence[str], example: Tensor) -> Run:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(whole_to_onnx(module, dict.fromkeys(names, (None,)), example))
    return lambda image: session.run(list(names), {"image": image.numpy()})


ATOL = {"boxes": 1e-2, "scores": 1e-4, "labels": 0}


def check(found: Any, expected: dict[str, Tensor]) -> None:
    """Boxes to 0.01 pixels, scores to 1e-4, the same labels, 99.99 % of pixels, logits to 1e-3 of the largest."""
    assert list(found) == list(expected)
    for name, truth in expected.items():
        value = torch.as_tensor(found[name])
        value = value[0] if name == "logits" else value
        assert value.shape == truth.shape and value.dtype == truth.dtype, name
        if name in ("masks", "segments"):
            assert (value != truth).float().mean().nan_to_num() <= 1e-4
        else:
            atol = ATOL[name] if name in ATOL else 1e-3 * truth.abs().max().item()
            torch.testing.assert_close(value, truth, atol=atol, rtol=0)


@torch.no_grad()
def test_as_whole_is_the_head(head: Any, images: list[Tensor]) -> None:
    module, names = as_whole(head)
    assert not module.training
    for image in images[1:6]:
        check(dict(zip(names, module(image[None]), strict=True)), head([image])[0])


@pytest.mark.parametrize("head", ["upernet", "semantic_fpn", "semantic"], indirect=True)
@torch.no_grad()
def test_logits_of_another_size(head: Any, images: list[Tensor]) -> None:
    module, names = as_whole(head)
    for image, size in zip(images[1:4], [(30, 47), (200, 24), (96, 96)], strict=True):
        logits = head([image])[0]["logits"][None]
        expected = F.interpolate(logits, size, mode="bilinear", antialias=True)[0]
        check(dict(zip(names, module(image[None], size), strict=True)), {"logits": expected})


@pytest.mark.parametrize("sizes", [((12, 17), (6, 9), (3, 4), (1, 1)), ((1, 1), (6, 6), (2, 2)), ((2, 3),)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_levels_are_resized_and_concatenated(sizes: Sequence[tuple[int, int]], bias: bool) -> None:
    channels = range(3, 3 + len(sizes))
    conv = nn.Conv2d(sum(channels), 7, 3, padding=1, bias=bias)
    maps = [torch.randn(1, n, *size) for n, size in zip(channels, sizes, strict=True)]
    expected = conv(torch.cat([F.interpolate(x, sizes[0], mode="bilinear") for x in maps], 1))
    torch.testing.assert_close(LevelsConvolution(conv, channels)(maps), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_two_branches_become_one() -> None:
    from transformers import DFineConfig, RTDetrConfig
    from transformers.models.d_fine.modeling_d_fine import DFineRepVggBlock
    from transformers.models.rt_detr.modeling_rt_detr import RTDetrRepVggBlock

    width = RTDetrConfig().encoder_hidden_dim
    network = nn.Sequential(RTDetrRepVggBlock(RTDetrConfig()), DFineRepVggBlock(DFineConfig(), width, 24)).double()
    trained(network)
    x = torch.randn(2, width, 7, 5, dtype=torch.float64)
    expected = network.eval()(x)
    merge_branches(network)
    assert [module.kernel_size for module in network.modules() if isinstance(module, nn.Conv2d)] == [(3, 3), (3, 3)]
    torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize(
    ("head", "convert"),  # one runtime each: a conversion takes up to half a minute
    [
        ("rt_detr", on_openvino),
        ("d_fine", on_onnxruntime),
        ("deformable_detr", on_onnxruntime),
        ("upernet", on_onnxruntime),
        ("upernet", on_openvino),
        ("semantic_fpn", on_openvino),
        ("semantic", on_openvino),
    ],
    indirect=["head"],
)
@torch.no_grad()
def test_converted_once_it_is_the_head_at_every_size(
    head: Any, images: list[Tensor], convert: Callable[..., Run]
) -> None:
    module, names = as_whole(head)
    run = convert(module, names, torch.rand(1, 3, *EXAMPLE))
    for image in images:
        check(dict(zip(names, run(image[None]), strict=True)), head([image])[0])


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("head", ["semantic"], indirect=True)
@torch.no_grad()
def test_masked_attention_in_bf16(head: Any, images: list[Tensor]) -> None:
    """Which OpenVINO refuses at the first image where it knows the batch; and Winograd's algorithm has to know it."""
    from vankit.engines.openvino import openvino_core
    from vankit.engines.winograd import with_winograd

    module, names = as_whole(head)
    model = whole_to_openvino(module, names, torch.rand(1, 3, *EXAMPLE))
    run = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    for image in images:
        expected = head([image])[0]["logits"]
        assert np.mean(run(image[None].numpy())[0][0].argmax(0) == expected.argmax(0).numpy()) > 0.9
    assert with_winograd(model) > 0


def test_other_networks_have_no_such_form() -> None:
    with pytest.raises(UserError, match=r"`network` is Linear: expected a network of vankit\.heads"):
        as_whole(nn.Linear(1, 1))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (7, 6), (13, 40)])
@pytest.mark.parametrize("side", [1, 2, 3, 6])
def test_adaptive_pooling_is_that_of_pytorch(side: int, height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width)
    torch.testing.assert_close(AdaptiveAveragePool(side)(x), nn.functional.adaptive_avg_pool2d(x, side))


class Answers(nn.Module):
    """What Mask2Former makes of its class and mask logits, which come as an image would."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.head = Mask2Former(None, None, [i < 5 for i in range(CLASSES)], output)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: see `queries`."""
        classes, masks = x[0, 1, :, :11], x[0, 0].reshape(-1, 4, 6)
        return tuple(self.head.answer(classes, Masks(masks, (32, 48), (30, 41), (37, 53))).values())


def queries(scale: float, count: int = 20) -> Tensor:
    """Logits (1, 3, `count`, 24): of masks of 4 x 6 pixels; of 11 classes and no more; nothing."""
    masks = torch.randn(count, 24) * 6 - 8  # few pixels in each
    return torch.stack([masks, torch.randn(count, 24) * scale, torch.zeros(count, 24)])[None]


@pytest.mark.slow
@pytest.mark.export
@pytest.mark.parametrize("convert", [on_openvino, on_onnxruntime])
@pytest.mark.parametrize("output", ["instance", "panoptic"])
@torch.no_grad()
def test_converted_answers_are_mask2formers(output: str, convert: Callable[..., Run]) -> None:
    """Also where no query is sure, or no mask has a pixel."""
    module = Answers(output).eval()
    names = ("segments", "labels", "scores") if output == "panoptic" else ("boxes", "labels", "scores", "masks")
    run = convert(module, names, queries(6))
    nothing = queries(6)
    nothing[:, 0] = -1
    found = 0
    for case in (*(queries(6) for _ in range(6)), queries(0.01), nothing, queries(6, 33)):
        check(dict(zip(names, run(case), strict=True)), dict(zip(names, module(case), strict=True)))
        found += len(module(case)[1])
    assert found > 20
