"""Whatever a network comes as is opened, and described, in one place."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import vankit
from vankit.data.preprocessing import Preprocessing
from vankit.deploy.folder import Exported
from vankit.deploy.opening import open_network, says_dense
from vankit.errors import MissingFileError, UserError
from vankit.models import weights
from vankit.models.description import Description

PREPROCESSING = Preprocessing((3, 32, 32), (0.5,) * 3, (0.5,) * 3, 1.0, "bicubic")
CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "pets.safetensors"
    metadata = Description(model="van_b0", classes=CLASSES, preprocessing=PREPROCESSING).to_metadata()
    vankit.save_checkpoint(timm.create_model("van_b0", num_classes=2), path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder; opening it does not run its model, which is empty."""
    folder = tmp_path_factory.mktemp("exported")
    exported = Exported(folder, "onnx", "float32", False, Description(classes=CLASSES, preprocessing=PREPROCESSING), {})
    exported.path.write_bytes(b"")
    exported.write_description()
    return folder


def test_a_name() -> None:
    found = open_network("van_b0.cifar10")
    assert isinstance(found.module, vankit.VAN) and not found.module.training
    assert (found.source, found.description.model, found.dense) == ("van_b0.cifar10", "van_b0.cifar10", False)
    assert found.description.classes[:2] == ("airplane", "automobile")
    assert open_network(pretrained=False).description.model == "van_b0"
    assert open_network("van-small_3rdparty_in1k", pretrained=False).description.model == "van_b1.in1k"


def test_a_classifiers_checkpoint(checkpoint: Path) -> None:
    for found in (open_network(checkpoint=checkpoint), open_network("van_b0", checkpoint)):
        assert (found.source, found.description.model) == (str(checkpoint), "van_b0")
        assert (found.description.classes, found.description.preprocessing) == (CLASSES, PREPROCESSING)
    assert open_network(str(checkpoint)).description == open_network(checkpoint=checkpoint).description
    assert open_network(checkpoint=checkpoint, classes=["x", "y"]).description.classes == ("x", "y")


@pytest.mark.parametrize(("head", "task"), [("retinanet", "detect"), ("semantic_fpn", "segment")])
def test_a_detector_or_segmenter(dense_checkpoint: Callable[[str, str], Path], head: str, task: str) -> None:
    path = dense_checkpoint(head, task)
    found = open_network(checkpoint=path)
    assert found.dense and not found.module.training
    assert (found.source, found.description.head, found.description.task) == (str(path), head, task)
    for options in ({"model": "van_b0"}, {"classes": ["a"]}):
        with pytest.raises(UserError, match="with its own classes: leave out model and classes"):
            open_network(checkpoint=path, **options)


def test_a_network(checkpoint: Path) -> None:
    network = timm.create_model("van_b0", num_classes=2)
    found = open_network(network, classes=["a", "b"])
    assert found.module is network and found.source == "VAN"
    assert (found.description.model, found.description.classes) == (None, ("a", "b"))
    loaded = open_network(network, checkpoint)
    assert (loaded.description.classes, loaded.description.preprocessing) == (CLASSES, PREPROCESSING)


def test_other_networks_say_their_outputs_or_are_told_their_classes() -> None:
    assert open_network(nn.Flatten(), classes=["a", "b"]).description.classes == ("a", "b")
    with pytest.raises(UserError, match="0 outputs and there are 0 class names"):
        open_network(nn.Flatten())


def test_what_is_open_stays_as_it_is(folder: Path) -> None:
    found = open_network(folder)
    assert open_network(found) is found


def test_an_exported_folder(folder: Path, checkpoint: Path) -> None:
    found = open_network(folder)
    assert (found.module, found.exported.format, found.source, found.dense) == (None, "onnx", str(folder), False)
    assert (found.description.classes, found.description.preprocessing) == (CLASSES, PREPROCESSING)
    assert open_network(folder, classes=["x", "y"]).description.classes == ("x", "y")
    with pytest.raises(UserError, match="classes has 3 names, and .* 2 outputs"):
        open_network(folder, classes=["x", "y", "z"])
    with pytest.raises(UserError, match="is an exported folder, which contains its weights: leave out checkpoint"):
        open_network(folder, checkpoint)


def test_an_exported_folder_is_opened_without_torch(folder: Path) -> None:
    code = (
        "import sys; from vankit.deploy.opening import open_network; "
        "print(open_network(sys.argv[1]).description.classes, {'torch', 'timm'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "('cat', 'dog') set()"


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no checkpoint at"):
        open_network(checkpoint=tmp_path / "nowhere.pth")
    with pytest.raises(UserError, match="unknown model 'van_b9'"):
        open_network("van_b9")


@pytest.mark.parametrize("head", [None, "semantic_fpn"])
def test_the_state_of_a_run_is_opened_as_its_weights_are(
    head: str | None, checkpoint: Path, dense_checkpoint: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """resume.ckpt is Lightning's; what it is of, config.json beside it says."""
    best = open_network(checkpoint if head is None else dense_checkpoint(head, "segment"))
    assert best.module is not None
    tensors = {f"model.{name}": tensor for name, tensor in best.module.state_dict().items()}
    torch.save({"state_dict": tensors, "epoch": 1, "pytorch-lightning_version": "2.6.6"}, tmp_path / "resume.ckpt")
    record = {"data": "shapes", **best.description.to_metadata(), "lr": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(record))
    for path in (tmp_path / "resume.ckpt", tmp_path):
        opened = open_network(path)
        assert opened.description == best.description and opened.module is not None
        for name, tensor in opened.module.state_dict().items():
            assert torch.equal(tensor, tensors[f"model.{name}"])


def test_weights_are_chosen_of_checkpoints_alone(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"weights \(--weights\) chooses among those of a checkpoint: pass one"):
        open_network("van_b0.cifar10", weights="ema")
    with pytest.raises(UserError, match="holds only raw weights"):
        open_network(checkpoint=checkpoint, weights="ema")
    assert open_network(checkpoint=checkpoint, weights="raw").module is not None


def test_no_weights_are_chosen_of_what_is_open_or_exported(checkpoint: Path, folder: Path) -> None:
    for model in (open_network(checkpoint), folder):
        with pytest.raises(UserError, match="leave out checkpoint.* and weights"):
            open_network(model, weights="ema")


def test_a_models_name_is_not_a_folder(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "van_b0").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_network("van_b0", pretrained=False).source == "van_b0"
    with pytest.raises(MissingFileError, match="no checkpoint in the folder"):
        open_network("./van_b0")
    (tmp_path / "van_b0.pth").symlink_to(checkpoint)
    assert open_network("van_b0.pth").description.classes == CLASSES  # nor is a file a model's tag


def test_a_path_to_train_from_is_a_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="this is a path: pass it as the checkpoint"):
        vankit.train("shapes", str(checkpoint))


def test_a_checkpoint_of_another_variant_says_which(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="is a van_b0, not a van_b1: leave out model"):
        open_network("van_b1", checkpoint)


@pytest.mark.slow
@pytest.mark.data
def test_what_users_reported(
    golden_state_dict: Callable[[str], dict[str, Tensor]], tmp_path: Path, cases: Callable[[str, Path], None]
) -> None:
    cases("checkpoints", tmp_path)
    expected = weights.rename(golden_state_dict("van_b0"), "official", "vankit")
    classes = {"mmpretrain_classes.pth": "c", "hf_finetuned": "n", "timm_folder": "t"}
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 18
    for path in paths:
        found = vankit.read_checkpoint(path)
        headless = path.name in ("hf_bare_backbone.bin", "mmdet_retinanet.pth")
        assert found.num_classes == (0 if headless else 1000), path
        for name, tensor in found.state_dict.items():
            assert torch.equal(tensor, expected[name]) or name.endswith("num_batches_tracked"), (path, name)
        assert len(found.state_dict) == len(expected) - 2 * headless
        if headless:
            with pytest.raises(UserError, match="holds no classification head, only a backbone"):
                open_network(path)
            continue
        description = open_network(path).description
        letter = classes.get(path.name)
        assert description.classes[999] == (
            f"{letter}999" if letter else "toilet tissue, toilet paper, bathroom tissue"
        )
        assert description.preprocessing is not None
        side, mean = (64, 0.5) if letter == "t" else (256, 0.485) if letter == "n" else (224, 0.5)
        assert (description.preprocessing.input_size[-1], description.preprocessing.mean[0]) == (side, mean), path


def test_the_bare_name_of_a_folder_is_not_looked_up_among_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would import timm and PyTorch."""
    monkeypatch.setattr("vankit.models.van.is_model", lambda name: pytest.fail("looked up"))
    monkeypatch.chdir(folder.parent)
    assert not says_dense(folder.name)
    assert open_network(folder.name).exported is not None
