"""Pictures in, figures out: what is shown lies where it was put, and one bad picture spoils nothing."""

import csv
import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import vankit
from vankit.data.preprocessing import Preprocessing
from vankit.deploy.folder import Exported
from vankit.errors import MissingFileError, MissingPackageError, UserError
from vankit.explanation import iter_explanations, maps
from vankit.explanation.networks import open_subject
from vankit.explanation.results import Explanation
from vankit.explanation.subjects import Subject
from vankit.heads.backbone import backbone_of
from vankit.heads.build import build_network
from vankit.models.description import Description
from vankit.models.van import VAN
from vankit.models.weights import write_tensors

CIFAR = "van_b0.cifar10"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


class Colours(nn.Module):
    """Logits of three classes: how much red, green and blue a picture has."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(8)
        self.pretrained_cfg = {"input_size": (3, 64, 64), "crop_pct": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x).mean((2, 3))


def test_grad_cam_finds_what_was_put_there() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[8:16, 40:48, 0] = 255  # red
    picture[32:48, 0:16, 2] = 255  # blue, more of it
    (predicted,) = vankit.explain(picture, Colours(), layer="cells")
    (red,) = vankit.explain(Image.fromarray(picture), Colours(), layer="cells", target=0)
    both = vankit.explain([picture], Colours(), layer="cells", target=["2", 1])[0]
    assert [row["index"] for row in (predicted.rows[0], red.rows[0], *both.rows)] == [2, 0, 2, 1]
    heat = red.maps["Colours 0"]
    assert heat.shape == (8, 8) and heat[1, 5] == heat.max() > 0 and (heat > 0).sum() == 1
    assert (both.maps["Colours 2"] > 0).sum() == 4
    assert not both.maps["Colours 1"].any()  # no green
    titles = [axes.get_title() for axes in both.figure.axes]
    assert "no positive evidence" in titles[2] and "evidence" not in titles[1]
    assert red.source == "image 64x64" and predicted.source == "array (64, 64, 3)"
    assert predicted.rows[0]["score"] == pytest.approx(torch.tensor([1 / 64, 0, 1 / 16]).softmax(0)[2].item())


class Divided(Colours):
    """`Colours`, infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / torch.zeros(3)


def test_what_is_not_finite_is_not_explained(photo: Path, tmp_path: Path) -> None:
    (found,) = vankit.explain(photo, Divided(), output=tmp_path / "out", layer="cells")
    assert "the network's output is NaN or infinite" in found.error
    assert not (tmp_path / "out").exists()
    van = VAN(num_classes=2).eval()
    with torch.no_grad():
        van.stage1.patch_embed.norm.weight.fill_(3e38)
    with pytest.raises(UserError, match="the network's output is NaN or infinite"):
        vankit.explain(model=van, method="receptive-field", img_size=64)


def test_the_picture_is_the_one_the_network_saw() -> None:
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:, 64:, 0] = 255
    (found,) = vankit.explain(picture, Colours(), layer="cells", target=0)
    shown, under, over = (found.figure.axes[i].images[-j] for i, j in ((0, 1), (1, 2), (1, 1)))
    assert shown.get_array().shape == (64, 64, 3)  # the centre, half of it red
    np.testing.assert_allclose(shown.get_array()[:, 32:, 0], 1, atol=1e-6)
    np.testing.assert_allclose(shown.get_array()[:, :31, 0], 0, atol=1e-6)
    assert over.get_extent() == under.get_extent()
    np.testing.assert_array_equal(over.get_array(), found.maps["Colours 0"] / found.maps["Colours 0"].max())


def test_networks_side_by_side(photo: Path) -> None:
    torch.manual_seed(0)
    small = VAN(num_classes=10, embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), mlp_ratios=(1, 1, 1, 1))
    options = {"compare": [small, small, "resnet10t"], "img_size": 96, "stage": 3, "pretrained": False}
    (found,) = vankit.explain(photo, "van_b0", **options)
    assert [row["model"] for row in found.rows] == ["van_b0", "VAN", "VAN (3)", "resnet10t"]
    assert [heat.shape for heat in found.maps.values()] == [(6, 6), (14, 14), (14, 14), (11, 11)]
    assert len(found.figure.axes) == 1 + 4 + 1  # the picture, four maps, the colour bar


def test_a_bad_picture_spoils_nothing(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"hello")
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "photo.png").write_bytes(photo.read_bytes())
    inputs = [tmp_path / "broken.jpg", tmp_path / "missing.jpg", photo, tmp_path / "again", np.zeros((9, 9), np.uint8)]
    found = vankit.explain(inputs, CIFAR, output=tmp_path / "out")
    assert [isinstance(one, vankit.Failure) for one in found] == [True, True, False, False, False]
    assert "is not an image" in found[0].error and "no such image file" in found[1].error
    names = [one.path.name for one in found[2:]]
    assert names == ["photo.png", "photo-4.png", "array (9, 9).png"]
    for name in names:
        with Image.open(tmp_path / "out" / name) as image:
            assert image.width > 600
    label = vankit.Predictor(CIFAR, engine="torch")(photo).labels[0]
    assert (found[2].rows[0]["class"], found[2].rows[0]["index"]) == (label.name, label.index)
    assert found[2].rows[0]["score"] == pytest.approx(label.score, abs=1e-3)
    again = vankit.explain(tmp_path, CIFAR, output=tmp_path / "out")  # what it holds is no input
    assert len(again) == 3


def test_it_is_shown_by_a_notebook_and_leaves_pyplot_alone(photo: Path) -> None:
    (found,) = vankit.explain(photo, CIFAR)
    assert isinstance(found, vankit.Explanation) and isinstance(found.figure, Figure)
    with Image.open(io.BytesIO(found._repr_png_())) as picture:
        assert min(picture.size) > 300
    pyplot = sys.modules.get("matplotlib.pyplot")  # captum imports it
    assert pyplot is None or pyplot.get_fignums() == []


def test_attention_of_every_block(photo: Path) -> None:
    (found,) = vankit.explain(photo, CIFAR, method="attention")
    assert list(found.maps) == [f"stage {s} block {b + 1}" for s, n in enumerate((3, 3, 5, 2), 1) for b in range(n)]
    assert [found.maps[f"stage {s} block 1"].shape for s in range(1, 5)] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    subject = open_subject(CIFAR)
    network: Any = subject.network
    with torch.no_grad():
        stage2 = network.stage2
        block = stage2.blocks[0]
        x = block.norm1(stage2.patch_embed(network.stage1(subject.prepare(Image.open(photo)))))
        x = nn.functional.gelu(block.attn.proj_1(x))
        gate = block.attn.lka.pw(block.attn.lka.dw_d(block.attn.lka.dw(x)))
    np.testing.assert_allclose(found.maps["stage 2 block 1"], gate[0].abs().mean(0), rtol=1e-5)
    row = next(row for row in found.rows if (row["stage"], row["block"]) == (2, 1))
    assert row["max"] == pytest.approx(gate[0].abs().mean(0).max().item(), rel=1e-5)
    (one,) = vankit.explain(photo, CIFAR, method="attention", stage=3)
    assert list(one.maps) == [f"stage 3 block {b}" for b in range(1, 6)]


@pytest.mark.parametrize("method", ["attention", "statistics", "receptive-field"])
def test_a_van_without_a_head(method: str, photo: Path, tmp_path: Path) -> None:
    """It is looked at as the same one with a head is, by what asks for no class."""
    subject: Any = open_subject(CIFAR)
    whole = subject.network
    bare = vankit.VAN(num_classes=0)
    bare.load_state_dict(whole.state_dict(), strict=False)
    vankit.save_checkpoint(
        bare, tmp_path / "bare.safetensors", metadata={"preprocessing": asdict(subject.preprocessing)}
    )
    vankit.save_checkpoint(whole, tmp_path / "whole.safetensors")
    found, expected = (
        vankit.explain(photo, None, tmp_path / name, method=method, stage=1, img_size=32)[0]
        for name in ("bare.safetensors", "whole.safetensors")
    )
    assert len(found.rows) == len(expected.rows) > 0
    for ours, other in zip(found.maps.values(), expected.maps.values(), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-5, atol=1e-7)
    if method == "attention":
        assert "no head" in found.summary
    with pytest.raises(UserError, match="holds no classification head"):
        vankit.explain(photo, None, tmp_path / "bare.safetensors")


def test_of_many_blocks_six_are_drawn(photo: Path) -> None:
    sizes = {"embed_dims": (4, 4, 4, 4), "depths": (1, 9, 1, 1), "mlp_ratios": (1, 1, 1, 1)}
    (found,) = vankit.explain(photo, VAN(num_classes=2, **sizes), method="attention", img_size=32)
    assert len(found.maps) == 12
    titles = [axes.get_title() for axes in found.figure.axes if "stage 2" in axes.get_title()]
    assert [int(title.split("block ")[1].split(" of 9")[0]) for title in titles] == [1, 3, 4, 6, 7, 9]


def test_the_receptive_field_over_images_is_their_mean(photo: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (90, 20, 200)).save(tmp_path / "b.png")
    options = {"method": "receptive-field", "stage": 2}
    (found,) = vankit.explain([photo, tmp_path / "b.png"], CIFAR, **options)
    subject = open_subject(CIFAR)
    fields = [
        maps.receptive_fields(subject.network, ["stage2"], subject.prepare(Image.open(path)), seed)[0]
        for seed, path in enumerate((photo, tmp_path / "b.png"))
    ]
    np.testing.assert_allclose(found.maps[f"{CIFAR} stage 2"], sum(fields) / 2, rtol=1e-5, atol=1e-9)
    assert found.source == "2 images" and found.rows[0]["height"] == 64
    (tmp_path / "empty").mkdir()
    explanations = iter_explanations([photo, tmp_path / "empty"], CIFAR, **options)
    assert next(explanations).source == "1 image"
    with pytest.raises(MissingFileError, match="no images in"):
        next(explanations)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"")
    assert [type(one) for one in vankit.explain([broken], CIFAR, **options)] == [vankit.Failure]


def test_the_receptive_field_over_generated_input(tmp_path: Path) -> None:
    sizes = {"embed_dims": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "mlp_ratios": (1, 1, 1, 1)}
    network = VAN(num_classes=2, **sizes)
    options = {"method": "receptive-field", "img_size": 160, "output": tmp_path}
    (found,) = vankit.explain((), network, **options)
    assert found.source == "20 generated inputs" and [row["place"] for row in found.rows][-1] == "stage 4"
    assert (found.rows[0]["height"], found.rows[0]["width"]) == (103, 103)
    assert 0 < found.rows[0]["effective"] <= 103
    with (tmp_path / "receptive-field.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["effective"]) for row in rows] == [row["effective"] for row in found.rows]
    assert found.path == tmp_path / "receptive-field.png"
    (again,) = vankit.explain((), network, method="receptive-field", img_size=160, stage=1)
    np.testing.assert_array_equal(again.maps["VAN stage 1"], found.maps["VAN stage 1"])
    (layer,) = vankit.explain((), network, method="receptive-field", img_size=64, layer="stage1.patch_embed")
    assert layer.rows[0]["height"] == 7


def test_statistics_are_over_all_images(photo: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (90, 20, 200)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"")
    paths = [photo, tmp_path / "b.png", tmp_path / "c.png"]
    failure, found = vankit.explain(paths, CIFAR, method="statistics", output=tmp_path / "out")
    assert isinstance(failure, vankit.Failure) and found.source == "2 images"
    assert len(found.rows) == 3 * 32 + 3 * 64 + 5 * 160 + 2 * 256
    subject, taken = open_subject(CIFAR), []
    with torch.no_grad(), maps.watching(maps.blocks_of(subject.network), lambda block, x: taken.append((block, x))):
        subject.network(torch.cat([subject.prepare(Image.open(path).convert("RGB")) for path in paths[:2]]))
    values = dict(taken)[3, 4][:, 7].double()
    row = next(row for row in found.rows if (row["stage"], row["block"], row["channel"]) == (3, 4, 8))
    assert row["mean"] == pytest.approx(values.mean().item(), rel=1e-4)
    assert row["positive"] == pytest.approx((values > 0).double().mean().item())
    with (tmp_path / "out" / "statistics.csv").open(newline="") as file:
        assert [row["std"] for row in csv.DictReader(file)] == [str(row["std"]) for row in found.rows]


def dense(path: Path, task: str, head: str, classes: int = 3) -> Path:
    """An untrained network's checkpoint."""
    torch.manual_seed(0)
    names = ["grass", "sky", "cow"][:classes]
    found = Description(task, head, "van_b0", names, short_sides=(64,), long_side=128, crop=64)
    write_tensors(build_network(found).state_dict(), path, found.to_metadata())
    return path


def test_grad_cam_of_a_segmenter_by_hand(photo: Path, tmp_path: Path) -> None:
    checkpoint = dense(tmp_path / "s.safetensors", "segment", "semantic_fpn")
    (found,) = vankit.explain(photo, checkpoint=checkpoint)
    predictor = vankit.DensePredictor(checkpoint, engine="torch")
    labels = predictor(photo).labels
    best = int(np.bincount(labels.ravel()).argmax())
    assert found.rows[0]["class"] == ["grass", "sky", "cow"][best]
    assert found.rows[0]["score"] == pytest.approx((labels == best).mean())
    kept: list[Tensor] = []
    backbone_of(predictor.network).stage4.register_forward_hook(lambda _module, _args, y: kept.append(y))
    x = torch.from_numpy(np.array(Image.open(photo))).permute(2, 0, 1) / 255
    x = nn.functional.interpolate(x[None], (64, 85), mode="bilinear", antialias=False)
    logits = nn.functional.interpolate(
        predictor.network(list(x))[0]["logits"][None], (48, 64), mode="bilinear", antialias=True
    )
    (gradient,) = torch.autograd.grad(logits[0, best][torch.from_numpy(labels == best)].mean(), kept[0])
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).clamp(min=0)[0].detach()
    heat = found.maps["semantic_fpn van_b0 " + found.rows[0]["class"]]
    np.testing.assert_allclose(heat, expected, rtol=1e-3, atol=1e-3 * float(expected.max()))


@pytest.mark.parametrize(("task", "head"), [("detect", "faster_rcnn"), ("detect", "retinanet")])
def test_grad_cam_of_a_detector(task: str, head: str, photo: Path, tmp_path: Path) -> None:
    checkpoint = dense(tmp_path / "d.safetensors", task, head)
    (found,) = vankit.explain(photo, checkpoint=checkpoint, stage=3)
    if head == "retinanet":  # untrained, it is sure of no object
        assert isinstance(found, vankit.Failure) and "found nothing here" in found.error
        return
    best = vankit.DensePredictor(checkpoint, engine="torch", score=0.0)(photo)
    assert found.rows[0]["score"] == pytest.approx(float(best.scores[0]), rel=1e-4)
    assert found.rows[0]["index"] == best.labels[0]
    (heat,) = found.maps.values()
    assert heat.max() > 0 and heat.shape == (4, 6)  # of 64 x 85 pixels, padded to 64 x 96


def test_attention_and_field_of_a_detector(photo: Path, tmp_path: Path) -> None:
    checkpoint = dense(tmp_path / "d.safetensors", "detect", "retinanet")
    (found,) = vankit.explain(photo, checkpoint=checkpoint, method="attention")
    assert len(found.maps) == 13 and found.maps["stage 1 block 1"].shape == (16, 24)
    assert found.figure.axes[0].images[0].get_array().shape == (64, 96, 3)
    (field,) = vankit.explain((), checkpoint=checkpoint, method="receptive-field", img_size=64, stage=1)
    assert field.maps["retinanet van_b0 stage 1"].shape == (64, 64)
    with pytest.raises(UserError, match="retinanet van_b0 takes pictures of all sizes"):
        vankit.explain(photo, checkpoint=checkpoint, method="receptive-field")
    with pytest.raises(UserError, match="with its own classes: leave out model and classes"):
        vankit.explain(photo, "van_b0", checkpoint)


class Named(Subject):
    def __init__(self, classes: list[str]) -> None:
        self.name, self.classes = "net", classes


@given(
    names=st.lists(
        st.text(min_size=1).filter(str.strip), min_size=1, max_size=8, unique_by=lambda n: n.strip().casefold()
    ),
    data=st.data(),
)
@settings(max_examples=60)
def test_a_class_by_its_name(names: list[str], data: st.DataObject) -> None:
    names = [name.strip() for name in names]
    index = data.draw(st.integers(0, len(names) - 1))
    assert Named(names).class_number(names[index]) == index
    if str(index) not in names and not any(str(index) in name.split(",") for name in names):
        assert Named(names).class_number(index) == Named(names).class_number(str(index)) == index


def test_one_of_several_names() -> None:
    subject = Named(["tench, Tinca tinca", "crane", "crane", "maillot", "maillot, tank suit"])
    assert subject.class_number("tinca TINCA") == 0
    assert subject.class_number("maillot") == 3
    assert subject.class_number("4") == 4
    with pytest.raises(UserError, match="target 'crane' stands for 1 crane, 2 crane: pass the number"):
        subject.class_number("crane")
    expected = r"net knows no class 'mailot': as `target` expected.* such as maillot, .* or 0 to 4"
    with pytest.raises(UserError, match=expected):
        subject.class_number("mailot")
    with pytest.raises(UserError, match="knows no class -1"):
        subject.class_number(-1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "gradcam"}, "method is 'gradcam', expected one of grad-cam, "),
        ({"method": "attention", "target": "cat"}, "target .* leave it out with attention"),
        ({"method": "statistics", "layer": "stage1"}, "layer .* leave it out with statistics"),
        ({"method": "attention", "compare": ["van_b1"]}, "compare .* leave it out with attention"),
        ({"layer": "stage1", "stage": 1}, "leave out one"),
        ({"layer": "stage1", "compare": ["van_b1"]}, "`compare`, pass a `stage`"),
        ({"method": "attention", "model": "resnet10t"}, "ResNet has no large kernel attention"),
        ({"stage": 0}, "stage is 0"),
        ({"target": "kitten"}, "knows no class 'kitten'"),
        ({"img_size": 0}, "img_size is 0, which a network cannot take"),
        ({"max_pixels": 0}, "max_pixels is 0, expected 1 or more"),
        ({"compare": ["van_b7"]}, "unknown model 'van_b7'"),
    ],
)
def test_mistakes(options: dict[str, Any], says: str, photo: Path) -> None:
    with pytest.raises(UserError, match=says):
        vankit.explain(photo, **{"model": CIFAR, "pretrained": options.get("model") is None, **options})


def test_an_output_folder_has_one_writer(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    first = iter_explanations([photo, photo], CIFAR, output=out, method="attention")
    next(first)
    with monkeypatch.context() as patch:
        patch.setattr("vankit.explanation.networks.open_subject", None)
        with pytest.raises(UserError, match=f"{out} is being written by process"):
            next(iter_explanations(photo, CIFAR, output=out, method="attention"))
    first.close()
    assert not (out / ".lock").exists()


def test_more_mistakes(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for inputs in (None, 5):
        with pytest.raises(UserError, match=f"^inputs is {inputs}: expected a path"):
            vankit.explain(inputs, CIFAR)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="^model is empty"):
        vankit.explain(photo, "")
    (empty,) = vankit.explain(np.zeros((0, 0, 3), np.uint8), CIFAR, method="attention")
    assert isinstance(empty, vankit.Failure) and empty.error == "array (0, 0, 3) has no pixels"
    with pytest.raises(UserError, match="method grad-cam looks at images"):
        vankit.explain((), CIFAR)
    with pytest.raises(UserError, match="lies in the output folder"):
        vankit.explain(photo, CIFAR, output=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="no images in"):
        list(iter_explanations(tmp_path / "empty", CIFAR))
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"pip install 'vankit\[explain\]'"):
        vankit.explain(photo, CIFAR, stage=3)


SMALL = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear")


@pytest.mark.parametrize(
    ("options", "outputs", "says"),
    [
        ({}, ["logits"], "gives no class maps: expected .*: export it again, or pass the model or its checkpoint$"),
        ({}, ["logits", "saliency_map"], "model.onnx is damaged or was changed"),  # said once, not of each picture
        ({"stage": 3}, ["logits", "saliency_map"], "which has no gradients, and stage 3 needs the network in PyTorch"),
        ({"layer": "stage4"}, ["logits", "saliency_map"], "no gradients, and `layer` needs"),
        ({"compare": "van_b0"}, ["logits", "saliency_map"], "no gradients, and `compare` needs"),
        ({"img_size": 64}, ["logits", "saliency_map"], "no gradients, and `img_size` needs"),
        ({"method": "attention"}, ["logits", "saliency_map"], "no gradients, and method attention needs"),
        ({}, ["boxes", "labels"], "no gradients, and a retinanet needs .*: pass the model or its checkpoint$"),
        ({"compare": "folder"}, [], "is an exported folder, which has no gradients"),
    ],
)
def test_what_a_folder_cannot_explain(
    options: dict[str, Any], outputs: list[str], says: str, photo: Path, tmp_path: Path
) -> None:
    description = Description(classes=["a"], preprocessing=SMALL)
    if "boxes" in outputs:
        description = Description("detect", "retinanet", "van_b0", ["a"])
    exported = Exported(tmp_path / "folder", "onnx", "float32", False, description, outputs=outputs or ["logits"])
    exported.folder.mkdir()
    exported.path.write_bytes(b"")
    exported.write_description()
    exported.path.write_bytes(b"damaged")
    if options.get("compare") == "folder":
        options = {"compare": [str(exported.folder)]}
    with pytest.raises(UserError, match=says):
        vankit.explain(photo, exported.folder if outputs else CIFAR, **options)


def test_where_openvino_cannot_run_pytorch_explains(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingPackageError("engine openvino needs OpenVINO")

    monkeypatch.setattr("vankit.engines.openvino.openvino_core", missing)
    (found,) = vankit.explain(photo, CIFAR)
    assert isinstance(found, Explanation)


def test_a_class_that_was_not_found_is_said_to_be_so() -> None:
    subject = Named(["cat", "dog"])
    with pytest.raises(UserError, match="net found no dog here"):
        subject.choose(np.array([0.5, np.nan]), 1)
    assert subject.choose(np.array([0.5, np.nan]), None) == 0
    assert subject.verdict(np.array([np.nan, np.nan])) == "nothing found"


def test_scores_of_a_multi_label_network_are_by_class(tmp_path: Path) -> None:
    van = VAN(num_classes=2, embed_dims=(8, 8, 8, 8), depths=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        van.head.fc.weight.zero_()
        van.head.fc.bias.copy_(torch.tensor([1.0, 2.0]))
    metadata = {"classes": ["cat", "dog"], "thresholds": [0.5, 0.5]}
    vankit.save_checkpoint(van, tmp_path / "x.safetensors", metadata=metadata)
    subject = open_subject(checkpoint=tmp_path / "x.safetensors", img_size=32)
    _, shown = subject.scores(torch.zeros(1, 3, 32, 32))
    assert shown.tolist() == pytest.approx(torch.tensor([1.0, 2.0]).double().sigmoid().tolist())
