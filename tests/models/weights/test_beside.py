"""What checkpoints and the JSON files beside them say of classes and preprocessing."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from torch import Tensor

import vankit
from vankit.deploy.opening import open_network
from vankit.errors import MissingFileError, UserError
from vankit.models import weights

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SMALL: dict[str, Any] = {"embed_dims": (4, 6, 8, 10), "depths": (1, 1, 1, 1), "mlp_ratios": (2, 2, 1, 1)}


def tensors(classes: int, fmt: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return weights.rename(vankit.VAN(num_classes=classes, **SMALL).state_dict(), "vankit", fmt)


def write(folder: Path, content: Any, name: str = "pytorch_model.bin", **beside: Any) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    torch.save(content, folder / name)
    for each, values in beside.items():
        (folder / f"{each}.json").write_text(json.dumps(values))
    return folder


def transformers_config(names: list[str], **values: Any) -> dict[str, Any]:
    return {"model_type": "van", "id2label": {str(i): name for i, name in enumerate(names)}, **values}


def processor(**values: Any) -> dict[str, Any]:
    return {
        "image_mean": list(IMAGENET["mean"]), "image_std": list(IMAGENET["std"]), "crop_pct": 0.875, "resample": 2,
        "size": {"shortest_edge": 256}, **values,
    }  # fmt: skip


@pytest.mark.parametrize("by", ["model", "checkpoint", "file"])
def test_a_transformers_folder(by: str, tmp_path: Path) -> None:
    folder = write(
        tmp_path / "x", tensors(3, "hf"), config=transformers_config(["cat", "dog", "owl"]),
        preprocessor_config=processor(),
    )  # fmt: skip
    options = {"file": {"checkpoint": folder / "pytorch_model.bin"}}.get(by, {by: folder})
    description = open_network(**options).description
    assert description.classes == ("cat", "dog", "owl") and description.named
    found = description.preprocessing
    assert found is not None and (found.input_size, found.crop_pct, found.interpolation) == (
        (3, 256, 256), 0.875, "bilinear"
    )  # fmt: skip
    assert (found.mean, found.std) == (IMAGENET["mean"], IMAGENET["std"])


@pytest.mark.parametrize(
    ("values", "size", "crop"),
    [
        ({"size": 224}, 224, 0.875),
        ({"size": 224, "crop_pct": None}, 224, 224 / 256),
        ({"size": {"shortest_edge": 384}, "crop_pct": None}, 384, 1.0),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, 224, 0.875),
        ({"size": {"height": 192, "width": 192}, "crop_pct": 1.0}, 192, 1.0),
    ],
)
def test_sizes_in_all_of_transformers_forms(values: dict[str, Any], size: int, crop: float, tmp_path: Path) -> None:
    folder = write(tmp_path, tensors(2, "hf"), config=transformers_config(["a", "b"]),
                   preprocessor_config=processor(**values))  # fmt: skip
    found = open_network(folder).description.preprocessing
    assert found is not None and (found.input_size[1], found.crop_pct) == (size, crop)


@pytest.mark.parametrize(
    ("values", "mean", "std"),
    [
        ({"image_mean": 0.5, "image_std": 0.25}, 0.5, 0.25),
        ({"do_normalize": False}, 0.0, 1.0),
        ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51.0] * 3}, 0.5, 0.2),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 0.5, 0.5),
    ],
)
def test_normalisation_in_all_of_transformers_forms(
    values: dict[str, Any], mean: float, std: float, tmp_path: Path
) -> None:
    folder = write(tmp_path, tensors(2, "hf"), preprocessor_config=processor(**values),
                   config=transformers_config(["a", "b"]))  # fmt: skip
    found = open_network(folder).description.preprocessing
    assert found is not None
    np.testing.assert_allclose([found.mean, found.std], [[mean] * 3, [std] * 3])


def test_placeholders_are_no_names(tmp_path: Path) -> None:
    folder = write(tmp_path, tensors(2, "hf"), config=transformers_config(["LABEL_0", "LABEL_1"], image_size=64))
    description = open_network(folder).description
    assert not description.named and description.preprocessing is not None
    assert description.preprocessing.input_size == (3, 64, 64) and description.preprocessing.mean == HALF["mean"]


@pytest.mark.parametrize("where", ["top", "pretrained_cfg"])
def test_a_timm_folder(where: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "architecture": "van_b0", "num_classes": 2,
        "pretrained_cfg": {"input_size": [3, 64, 64], **IMAGENET, "crop_pct": 1.0, "interpolation": "bilinear"},
    }  # fmt: skip
    (config if where == "top" else config["pretrained_cfg"])["label_names"] = ["ant", "bee"]
    torch.manual_seed(0)
    official = weights.rename(timm.create_model("van_b0", num_classes=2).state_dict(), "vankit", "official")
    description = open_network(checkpoint=write(tmp_path, official, config=config)).description
    assert (description.model, description.classes) == ("van_b0", ("ant", "bee"))
    found = description.preprocessing
    assert found is not None and (found.input_size, found.mean, found.crop_pct) == ((3, 64, 64), IMAGENET["mean"], 1.0)


def test_a_folder_that_timm_wrote(tmp_path: Path) -> None:
    """By its own writer, and opened by the name that timm gives it."""
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model("van_b0", num_classes=2)
    save_for_hf(model, str(tmp_path / "x"), model_config={"label_names": ["ant", "bee"]})
    by_folder = open_network(tmp_path / "x")
    by_name = open_network(f"local-dir:{tmp_path / 'x'}")
    for opened in (by_folder, by_name):
        assert opened.description.classes == ("ant", "bee") and opened.module is not None
        assert torch.equal(opened.module.state_dict()["head.fc.weight"], model.state_dict()["head.fc.weight"])


def test_the_authors_four_networks_keep_their_statistics(
    golden_state_dict: Callable[[str], dict[str, Tensor]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their JSON says ImageNet's mean, but they were trained at 0.5."""
    names = ImageNetInfo("imagenet-1k").label_descriptions()
    hf = weights.rename(golden_state_dict("van_b0"), "official", "hf")
    folder = write(tmp_path, hf, config=transformers_config(names), preprocessor_config=processor(size=224))
    found = open_network(folder).description.preprocessing
    assert found is not None and (found.mean, found.std, found.crop_pct) == (HALF["mean"], HALF["std"], 0.9)
    assert "one of the authors' four networks" in caplog.text


CONFIG = """
model = dict(type='ImageClassifier', backbone=dict(type='VAN', arch='tiny'))
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=248, edge='short'),
    dict(type='CenterCrop', crop_size=224),
]
"""


@pytest.mark.parametrize(
    "meta",
    [
        {"dataset_meta": {"classes": ("a", "b")}, "cfg": CONFIG},
        {"dataset_meta": {"CLASSES": ["a", "b"]}, "config": CONFIG},
        {"CLASSES": ("a", "b"), "config": CONFIG},
    ],
    ids=["mmengine", "capitals", "mmcls"],
)
def test_what_openmmlab_states(meta: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, {"meta": meta, "state_dict": tensors(2, "mmpretrain")}, "epoch_3.pth") / "epoch_3.pth"
    description = open_network(path).description
    found = description.preprocessing
    assert description.classes == ("a", "b") and found is not None
    np.testing.assert_allclose([found.mean, found.std], [IMAGENET["mean"], IMAGENET["std"]], atol=1e-6)
    assert found.input_size == (3, 224, 224) and min(found.resized(1000, 500)) == 248


@pytest.mark.parametrize("text", ["x = (" * 5000, "import os; os.system('x')", "mean = [1]\0", "", "dict(mean=f())"])
def test_a_config_that_says_nothing(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, {"meta": {"cfg": text}, "state_dict": tensors(2, "mmpretrain")}, "x.pth") / "x.pth"
    found = open_network(path).description.preprocessing
    assert found is not None and found.mean == HALF["mean"]


def test_assumed_names_are_said(
    golden_state_dict: Callable[[str], dict[str, Tensor]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, {"state_dict": golden_state_dict("van_b0")}, "x.pth") / "x.pth"
    assert open_network(path).description.classes[0].startswith("tench")
    assert "do not say what their 1,000 classes are: assumed ImageNet-1k's" in caplog.text
    caplog.clear()
    open_network(path, classes=[f"c{i}" for i in range(1000)])
    assert open_network("van_b0", pretrained=False).description.classes[0].startswith("tench")  # that is its name
    assert not caplog.messages
    write(tmp_path, tensors(21841, "official"), "22k.pth")
    names = open_network(tmp_path / "22k.pth").description.classes
    assert list(names) == ImageNetInfo("imagenet-22k").label_descriptions() and "ImageNet-22k" in caplog.text


def test_damaged_json_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, tensors(2, "hf"))
    (tmp_path / "config.json").write_text("{")
    assert not open_network(tmp_path).description.named
    assert "config.json is not JSON" in caplog.text


# folders


def test_folders_without_a_checkpoint_or_with_several(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no checkpoint in the folder"):
        open_network(checkpoint=tmp_path)
    with pytest.raises(MissingFileError, match="no checkpoint at .*nowhere"):
        open_network(f"{tmp_path}/nowhere/")
    write(tmp_path, tensors(2, "hf"), "a.pth")
    assert open_network(tmp_path).source == str(tmp_path)
    write(tmp_path, tensors(2, "hf"), "b.pth")
    with pytest.raises(UserError, match=r"has 2 checkpoints \(a\.pth, b\.pth\): pass the path of one"):
        open_network(tmp_path)


# for transformers


@pytest.mark.parametrize("suffix", ["/", "/model.safetensors", "/pytorch_model.bin"])
def test_what_is_written_for_transformers_says_the_same(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vankit.VAN(num_classes=3, **SMALL).eval()
    said = {
        "classes": ["cat", "dog", "owl"],
        "preprocessing": {"input_size": [3, 64, 64], **IMAGENET, "crop_pct": 1.0, "interpolation": "bilinear"},
    }
    vankit.save_checkpoint(model, tmp_path / "x.safetensors", metadata=said)
    vankit.convert(tmp_path / "x.safetensors", f"{tmp_path}/hf{suffix}", "hf")
    before, after = open_network(tmp_path / "x.safetensors"), open_network(tmp_path / "hf")
    assert before.description == after.description
    x = torch.rand(1, 3, 64, 64)
    assert before.module is not None and after.module is not None
    assert torch.equal(before.module(x), after.module(x))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["hidden_sizes"], config["depths"], config["mlp_ratios"]) == ([4, 6, 8, 10], [1] * 4, [2, 2, 1, 1])
    assert config["label2id"] == {"cat": 0, "dog": 1, "owl": 2}


def test_another_models_config_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    vankit.save_checkpoint(vankit.VAN(num_classes=3, **SMALL), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"config\.json is of another model"):
        vankit.convert(tmp_path / "x.safetensors", tmp_path, "hf")
    assert (tmp_path / "config.json").read_text() == '{"model_type": "bert"}'


def test_a_checkpoint_is_not_converted_onto_itself(tmp_path: Path) -> None:
    own = tmp_path / "model.safetensors"
    vankit.save_checkpoint(vankit.VAN(num_classes=3, **SMALL), own)
    before = own.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(own)
    link = tmp_path / "link.safetensors"
    for source, target, to in ((own, own, "vankit"), (tmp_path, link, "vankit"), (own, tmp_path, "hf")):
        with pytest.raises(UserError, match="is what is to be converted: name another file to write"):
            vankit.convert(source, target, to)
    assert own.read_bytes() == before


@pytest.mark.parametrize(
    ("to", "name"),
    [
        ("official", "x.safetensors"),
        ("mmpretrain", "x.safetensors"),
        ("vankit", "x.pth"),
        ("vankit", "x.pth.tar"),
        ("vankit", "x.bin"),
        ("vankit", "x.xyz"),
        ("vankit", "x"),
        ("official", "x.onnx"),
        ("hf", "x.h5"),
    ],
)
def test_a_name_that_promises_another_kind_of_file(to: str, name: str, tmp_path: Path) -> None:
    vankit.save_checkpoint(vankit.VAN(num_classes=3, **SMALL), tmp_path / "own.safetensors")
    with pytest.raises(UserError, match="expected a name that ends in"):
        vankit.convert(tmp_path / "own.safetensors", tmp_path / "out" / name, to)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arch", "options", "expected"),
    [
        ("van_b0.cifar10", {"img_size": None, "mean": None, "interpolation": ""}, (64, 0.5, 1.0, "bicubic")),
        ("van_tiny", {"img_size": 96}, (96, 0.5, 0.9, "bicubic")),
        (
            "van_b0",
            {"input_size": [3, 32, 32], "mean": [0.4] * 3, "std": [0.2] * 3, "crop_pct": 1, "interpolation": "nearest"},
            (32, 0.4, 1, "nearest"),
        ),
        ("van_b0", {"input_size": [1, 48, 48], "mean": [0.4], "crop_pct": 0.0}, (48, 0.4, 0.9, "bicubic")),
        ("van_b0.mine", {"img_size": [64, 64]}, (64, 0.5, 0.9, "bicubic")),
        ("resnet18", {"img_size": 96}, (224, 0.5, 0.9, "bicubic")),
    ],
)  # fmt: skip
def test_a_checkpoint_of_timms_train_script(
    arch: str, options: dict[str, Any], expected: tuple[Any, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    state = timm.create_model("van_b0", num_classes=2).state_dict()
    content = {"epoch": 3, "arch": arch, "state_dict": state, "args": argparse.Namespace(lr=1, **options)}
    description = open_network(write(tmp_path, content, "model_best.pth.tar") / "model_best.pth.tar").description
    found = description.preprocessing
    assert found is not None and description.model is not None and description.model.startswith("van_b0")
    assert (found.input_size[-1], found.mean[0], found.crop_pct, found.interpolation) == expected


def test_a_model_that_the_file_names_wrongly_is_that_of_its_shapes(tmp_path: Path) -> None:
    model = timm.create_model("van_b0", num_classes=2)
    vankit.save_checkpoint(model, tmp_path / "x.safetensors", metadata={"model": "van_b1"})
    assert open_network(tmp_path / "x.safetensors").description.model == "van_b0"


def test_the_short_side_of_openmmlab(tmp_path: Path) -> None:
    text = "p = [dict(type='Resize', size=(256, -1)), dict(type='CenterCrop', crop_size=224)]"
    path = write(tmp_path, {"meta": {"cfg": text}, "state_dict": tensors(2, "mmpretrain")}, "x.pth") / "x.pth"
    found = open_network(path).description.preprocessing
    assert found is not None and min(found.resized(1000, 500)) == 256 and found.input_size == (3, 224, 224)


def test_images_of_other_channel_order_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for order in ("True", "False"):
        half = f"dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb={order})"
        said = f"train = {half}\nval = {half}"
        write(tmp_path, {"meta": {"config": said}, "state_dict": tensors(2, "mmpretrain")}, f"{order}.pth")
        open_network(tmp_path / f"{order}.pth")
        assert caplog.text.count("feeds the network BGR images") == (order == "False")


@pytest.mark.parametrize(
    ("header", "passed_over"),
    [
        ({"epoch": "3"}, ""), ({"classes": "3"}, "classes"), ({"classes": "a,b"}, "classes"), ({"model": "5"}, "model"),
        ({"preprocessing": "0.5", "classes": '["a", 1]'}, "preprocessing, classes"), ({"notes": "[" * 100_000}, ""),
    ],
)  # fmt: skip
def test_headers_of_other_writers_hide_nothing(
    header: dict[str, str], passed_over: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, tensors(2, "hf"), config=transformers_config(["a", "b"]), preprocessor_config=processor())
    (tmp_path / "pytorch_model.bin").unlink()
    save_file(tensors(2, "hf"), tmp_path / "model.safetensors", {"format": "pt", **header})
    description = open_network(tmp_path).description
    assert description.classes == ("a", "b") and description.preprocessing is not None
    assert description.preprocessing.mean == IMAGENET["mean"]
    assert (f"{passed_over} were not written by vankit" in caplog.text) == bool(passed_over)


def test_a_config_of_another_trainer_beside_lightnings_file(tmp_path: Path) -> None:
    content = {
        "state_dict": {f"model.{k}": t for k, t in tensors(2, "vankit").items()},
        "pytorch-lightning_version": "2",
    }
    write(tmp_path, content, "x.ckpt", config={"model": {"name": "x"}, "data": "y", "task": "classify"})
    assert open_network(tmp_path / "x.ckpt").description.classes == ("0", "1")


def test_what_a_format_has_no_place_for_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {**weights.beside.PUBLISHED, "input_size": [3, 64, 64]}
    metadata = {"classes": ["a", "b"], "preprocessing": settings}
    vankit.models.weights.write_checkpoint(tensors(2, "vankit"), tmp_path / "x.pth", "mmpretrain", metadata)
    assert "mmpretrain files have no place for preprocessing (input_size [3, 64, 64]): keep" in caplog.text
    assert open_network(tmp_path / "x.pth").description.classes == ("a", "b")
    caplog.clear()
    metadata["preprocessing"] = weights.beside.PUBLISHED
    vankit.models.weights.write_checkpoint(tensors(2, "vankit"), tmp_path / "x.pth", "mmpretrain", metadata)
    assert not caplog.messages
    vankit.models.weights.write_checkpoint(tensors(2, "vankit"), tmp_path / "x.pth", "official", metadata)
    assert "official files have no place for class names: keep" in caplog.text


def test_a_model_says_its_preprocessing(tmp_path: Path) -> None:
    """Where it is saved, and where it was loaded by timm."""
    model = timm.create_model("van_b0.cifar10", pretrained=True)
    vankit.save_checkpoint(model, tmp_path / "x.safetensors")
    found = open_network(tmp_path / "x.safetensors").description.preprocessing
    assert found is not None and (found.input_size, found.crop_pct) == ((3, 64, 64), 1.0)
    again = timm.create_model("van_b0", pretrained=True, num_classes=10,
                              pretrained_cfg_overlay={"file": str(tmp_path / "x.safetensors")})  # fmt: skip
    assert timm.data.resolve_model_data_config(again)["input_size"] == (3, 64, 64)


def test_weights_of_another_normalisation_are_adapted_to_training(tmp_path: Path) -> None:
    folder = write(tmp_path, tensors(2, "hf"), config=transformers_config(["a", "b"]), preprocessor_config=processor())
    found = weights.read_checkpoint(folder)
    adapted = weights.for_training(found)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    stems = []
    for checkpoint, mean, std in ((found, IMAGENET["mean"], IMAGENET["std"]), (adapted, HALF["mean"], HALF["std"])):
        network = vankit.VAN(num_classes=2, **SMALL).double()
        network.load_state_dict(checkpoint.state_dict)
        normalised = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        stems.append(network.stage1.patch_embed.proj(normalised)[..., 1:-1, 1:-1])  # exact but at the padding
    torch.testing.assert_close(*stems, atol=1e-5, rtol=1e-5)
    assert weights.for_training(adapted) is adapted
    unstated = replace(found, metadata={})
    assert weights.for_training(unstated) is unstated


def test_a_neighbours_json_is_not_of_vankits_own_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model("van_b0", num_classes=2)
    names = [f"c{i}" for i in range(1000)]
    write(tmp_path, tensors(2, "official"), config={"architecture": "van_b0", "label_names": names})
    vankit.save_checkpoint(model, tmp_path / "mine.safetensors")
    assert open_network(tmp_path / "mine.safetensors").description.classes == ("0", "1")
    assert not caplog.messages


def test_an_overlay_outranks_what_the_file_says(tmp_path: Path) -> None:
    vankit.save_checkpoint(timm.create_model("van_b0.cifar10", pretrained=True), tmp_path / "x.safetensors")
    overlay = {"file": str(tmp_path / "x.safetensors"), **IMAGENET}
    model = timm.create_model("van_b0", pretrained=True, num_classes=10, pretrained_cfg_overlay=overlay)
    found = timm.data.resolve_model_data_config(model)
    assert (found["input_size"], found["mean"], found["std"]) == ((3, 64, 64), IMAGENET["mean"], IMAGENET["std"])


def test_what_was_loaded_is_saved_again(tmp_path: Path) -> None:
    vankit.save_checkpoint(timm.create_model("van_b0.cifar10", pretrained=True), tmp_path / "x.safetensors")
    model = timm.create_model("van_b0", num_classes=10)
    vankit.load_checkpoint(model, tmp_path / "x.safetensors")
    vankit.save_checkpoint(model, tmp_path / "y.safetensors")
    again = open_network(tmp_path / "y.safetensors").description.preprocessing
    assert again is not None and again.input_size == (3, 64, 64)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_are_not_adapted(channels: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = vankit.VAN(in_chans=channels, num_classes=2, **SMALL).state_dict()
    found = weights.Checkpoint(state, "vankit", tmp_path, {"preprocessing": IMAGENET})
    assert weights.for_training(found) is found


def test_a_multi_label_network_in_every_format(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metadata = {"classes": ["a", "b"], "thresholds": [0.3, 0.8]}
    found = {}
    for fmt, name in (
        ("vankit", "x.safetensors"), ("hf", "x"), ("official", "x.pth"), ("mmpretrain", "y.pth")
    ):  # fmt: skip
        (tmp_path / fmt).mkdir()
        path = tmp_path / fmt / name
        caplog.clear()
        vankit.models.weights.write_checkpoint(tensors(2, "vankit"), path, fmt, metadata)
        assert ("no place for thresholds" in caplog.text or "and thresholds" in caplog.text) == (fmt != "vankit")
        found[fmt] = open_network(path).description.thresholds
    assert found == {"vankit": (0.3, 0.8), "hf": (0.5, 0.5), "official": (), "mmpretrain": ()}
    config = json.loads((tmp_path / "hf" / "x" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"


def test_thresholds_of_another_writer_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(tensors(2, "vankit"), tmp_path / "x.safetensors", {"thresholds": '["low", "high"]'})
    assert not open_network(tmp_path / "x.safetensors").description.multi_label
    assert "thresholds were not written by vankit" in caplog.text
