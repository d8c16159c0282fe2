"""What a start has remembered: the same answers without PyTorch, and never those of another file."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vankit
from vankit.deploy import remembered
from vankit.deploy.opening import Network, open_network
from vankit.errors import UserError
from vankit.files import sha256_of
from vankit.models.weights import write_checkpoint

SIZES = {"embed_dims": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "mlp_ratios": (2, 2, 2, 2)}
METADATA = {
    "classes": ["cat", "dog"],
    "preprocessing": {"input_size": [3, 64, 64], "mean": [0.4] * 3, "std": [0.3] * 3, "crop_pct": 1.0,
                      "interpolation": "bilinear"},
}  # fmt: skip


def tensors(seed: int, classes: int = 2) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return vankit.VAN(num_classes=classes, **SIZES).state_dict()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two checkpoints of as many bytes, the second with other weights and another name for its first class."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = [folder / "first.safetensors", folder / "second.safetensors"]
    for seed, (path, name) in enumerate(zip(paths, ("cat", "cow"), strict=True)):
        write_checkpoint(tensors(seed), path, "vankit", METADATA | {"classes": [name, "dog"]})
    assert paths[0].stat().st_size == paths[1].stat().st_size
    return paths


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VANKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def checkpoint(files: list[Path], tmp_path: Path) -> Path:
    return shutil.copy(files[0], tmp_path / "own.safetensors")


def start(checkpoint: Path | None, model: str | None = None, **options: object) -> Network:
    """A network as a start finds it, to be run by OpenVINO."""
    return open_network(model, checkpoint, engine="openvino", **options)


def same(network: Network, checkpoint: Path) -> None:
    """It is the one that is in the file."""
    expected = open_network(checkpoint=checkpoint)
    assert network.description == expected.description and network.module is not None
    own = network.module.state_dict()
    for name, tensor in expected.module.state_dict().items():
        assert torch.equal(own[name], tensor)


def test_a_second_start_opens_what_is_asked_for_alone(checkpoint: Path) -> None:
    first, second = start(checkpoint), start(checkpoint)
    assert first.remembered is None and second.network is None
    assert (second.description, second.source, second.dense) == (first.description, first.source, False)
    assert not second.remembered.is_open
    same(second, checkpoint)
    assert second.remembered.is_open and second.module is second.module and not second.module.training


def test_who_wants_pytorch_has_it_at_once(checkpoint: Path) -> None:
    start(checkpoint)
    for options in ({}, {"engine": "torch"}, {"engine": "auto", "device": "meta"}):
        assert open_network(checkpoint=checkpoint, **options).network is not None


def test_random_weights_and_networks_that_are_passed_are_not_remembered() -> None:
    for _ in range(2):
        assert start(None, "van_b0", pretrained=False).remembered is None
        assert start(None, torch.nn.Flatten(), classes=["a", "b"]).remembered is None


@pytest.mark.parametrize("settled", [True, False])
def test_other_bytes_of_the_same_size_and_time(
    settled: bool, files: list[Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the file is told by its stamp, or is too new for that and is read."""
    if settled:
        monkeypatch.setattr(remembered, "_SETTLED", 50_000_000)
        monkeypatch.setattr(remembered, "_KEEP_TIMES", (remembered._file_system(checkpoint),))
        time.sleep(0.1)
    start(checkpoint)
    before = checkpoint.stat()
    assert start(checkpoint).remembered is not None
    with checkpoint.open("r+b") as file:
        file.write(files[1].read_bytes())
    os.utime(checkpoint, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = checkpoint.stat()
    assert [(s.st_ino, s.st_size, s.st_mtime_ns) for s in (before, after)] == [
        (before.st_ino, before.st_size, before.st_mtime_ns)
    ] * 2
    changed = start(checkpoint)
    assert changed.remembered is None
    same(changed, files[1])
    same(start(checkpoint), files[1])


def test_a_file_that_has_not_changed_is_not_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_SETTLED", 50_000_000)
    monkeypatch.setattr(remembered, "_KEEP_TIMES", (remembered._file_system(checkpoint),))
    time.sleep(0.1)
    start(checkpoint)
    checkpoint.touch()
    time.sleep(0.1)
    read: list[Path] = []
    monkeypatch.setattr(remembered, "sha256_of", lambda path: read.append(path) or vankit.files.sha256_of(path))
    for expected in (1, 1):  # its times are other ones: once it has to be read
        assert start(checkpoint).remembered is not None
        assert read.count(checkpoint) == expected


def test_where_times_say_nothing_every_start_reads_the_file(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_SETTLED", 0)
    monkeypatch.setattr(remembered, "_file_system", lambda path: "vfat")
    assert remembered._stamp(checkpoint) is None
    start(checkpoint)
    read: list[Path] = []
    monkeypatch.setattr(remembered, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    for count in (1, 2):
        assert start(checkpoint).remembered is not None
        assert read.count(checkpoint) == count


@pytest.mark.skipif(sys.platform != "linux", reason="it is asked of Linux")
def test_the_file_system_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "23 22 0:9 / /mnt/a\\040b rw,relatime shared:1 - fuse.sshfs host: rw\n"
        "24 22 8:2 / /mnt/c rw - vfat /dev/sdb1 rw\n"
        "25 24 8:2 / /mnt/c rw - xfs /dev/sdc1 rw\n"
    )
    monkeypatch.setattr(remembered, "Path", lambda path: mounts if path == "/proc/self/mountinfo" else Path(path))
    expected = {"/mnt/a b/x": "fuse.sshfs", "/mnt/a": "ext4", "/mnt/c/d/x": "xfs", "/mnt/cd": "ext4"}
    assert {path: remembered._file_system(Path(path)) for path in expected} == expected


def test_what_is_beside_a_checkpoint(tmp_path: Path, opened_files: list[str]) -> None:
    path = tmp_path / "hub" / "model.safetensors"
    path.parent.mkdir()
    write_checkpoint(tensors(0), path, "hf", METADATA)
    opened_files.clear()
    start(path)
    read = {Path(name).name for name in opened_files if Path(name).parent == path.parent}
    assert read == {path.name, *remembered.BESIDE}
    assert start(path).description.classes == ("cat", "dog")
    for name, changes in (("config.json", {"id2label": {"0": "cow", "1": "dog"}}), (remembered.BESIDE[1], None)):
        beside = path.with_name(name)
        if changes is None:
            beside.unlink()
        else:
            beside.write_text(json.dumps(json.loads(beside.read_text()) | changes))
        assert start(path).remembered is None
        known = start(path)
        assert known.remembered is not None
        same(known, path)
    assert known.description.classes == ("cow", "dog") and known.description.preprocessing.mean != (0.4,) * 3
    folder = start(path.parent)
    assert folder.remembered is None and start(path.parent).description == known.description
    (path.parent / "best.safetensors").write_bytes(path.read_bytes())  # a folder's first choice
    assert start(path.parent).remembered is None


def test_a_folder_where_a_file_is_read(checkpoint: Path) -> None:
    beside = checkpoint.with_name("config.json")
    beside.mkdir()
    assert [start(checkpoint).remembered is None for _ in range(2)] == [True, False]
    beside.rmdir()
    assert start(checkpoint).remembered is None


def test_raw_weights_and_their_average(tmp_path: Path) -> None:
    path = tmp_path / "both.pth"
    torch.save({"state_dict": tensors(0), "state_dict_ema": tensors(1)}, path)
    for weights, seed in (("raw", 0), ("ema", 1), (None, 1)):
        assert start(path, weights=weights).remembered is None
        found = start(path, weights=weights)
        assert found.remembered is not None and found.module is not None
        assert torch.equal(found.module.state_dict()["head.fc.weight"], tensors(seed)["head.fc.weight"])


def test_names_of_classes_are_part_of_the_question(checkpoint: Path) -> None:
    for names in (["x", "y"], ["y", "x"], None):
        assert start(checkpoint, classes=names).remembered is None
        assert start(checkpoint, classes=names).description.classes == tuple(names or ["cat", "dog"])
    with pytest.raises(UserError, match="2 outputs and there are 1 class names"):
        start(checkpoint, classes=["x"])


def test_what_is_said_is_said_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "official.pth"
    torch.save({"model": vankit.VAN(num_classes=1000, **SIZES)}, path)
    said = []
    for remembers in (False, True):
        caplog.clear()
        assert (start(path).remembered is not None) == remembers
        said.append([(record.name, record.levelno, record.message) for record in caplog.records])
    assert said[0] == said[1]
    assert "assumed ImageNet-1k's" in str(said[0]) and f"{path} also holds objects of" in str(said[0])


@pytest.mark.parametrize("what", ["versions", "code", "backend"])
def test_what_computes_it_has_to_be_the_same(what: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(checkpoint)
    if what == "versions":
        monkeypatch.setattr(remembered, "versions", lambda *names: dict.fromkeys(names, "99.0"))
    elif what == "code":
        monkeypatch.setattr(remembered, "source_code", lambda *patterns: b"other")
    else:
        monkeypatch.setenv("VANKIT_BACKEND", "torch")
    assert start(checkpoint).remembered is None
    assert start(checkpoint).remembered is not None


def test_a_file_that_is_refused_is_refused_at_every_start(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "nan.pth"
    torch.save({"state_dict": tensors(0) | {"head.fc.bias": torch.tensor([0.0, torch.nan])}}, broken)
    start(checkpoint)
    checkpoint.write_bytes(broken.read_bytes())
    for path in (broken, checkpoint) * 2:
        with pytest.raises(UserError, match="NaN or infinite"):
            start(path)


def test_a_damaged_entry(checkpoint: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(checkpoint)
    (entry,) = cache.iterdir()
    entry.write_bytes(entry.read_bytes().replace(b"cat", b"cow"))
    assert start(checkpoint).description.classes == ("cat", "dog")
    assert caplog.messages == [f"{entry} is damaged and will be rebuilt"]
    assert start(checkpoint).remembered is not None


def test_a_cache_that_cannot_be_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VANKIT_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        same(start(checkpoint), checkpoint)
    assert len(caplog.messages) == 1 and "cannot keep the compiled model for the next start" in caplog.text


def test_two_starts_at_once(checkpoint: Path, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(start, [checkpoint] * 4):
            same(found, checkpoint)
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_changes_while_the_network_is_used(files: list[Path], checkpoint: Path) -> None:
    start(checkpoint)
    known = start(checkpoint)
    checkpoint.write_bytes(files[1].read_bytes())
    with pytest.raises(UserError, match=r"own\.safetensors was changed after the network was opened: open it again"):
        _ = known.module


def test_a_file_that_changes_while_it_is_opened(
    files: list[Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = vankit.models.weights.load_checkpoint

    def overtaken(*args: object) -> object:
        checkpoint.write_bytes(files[1].read_bytes())
        return load(*args)

    with monkeypatch.context() as patch:
        patch.setattr("vankit.models.weights.load_checkpoint", overtaken)
        assert start(checkpoint).description.classes == ("cat", "dog")
    assert start(checkpoint).description.classes == ("cow", "dog")


def test_a_relative_name_and_another_process(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    start(Path(checkpoint.name))
    known, sent = start(Path(checkpoint.name)), start(Path(checkpoint.name))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    same(known, checkpoint)
    other = pickle.loads(pickle.dumps(sent))  # with its weights, as of any network
    checkpoint.unlink()
    assert torch.equal(other.module.state_dict()["head.fc.bias"], known.module.state_dict()["head.fc.bias"])


@pytest.mark.slow
def test_a_model_of_the_hub(public_hub: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = start(None, "van_b0.in1k")
    known = start(None, "van_b0.in1k")
    assert known.remembered is not None and known.description == first.description
    (branch,) = (tmp_path / "hub-cache").glob("models--*/refs/main")
    (file,) = (tmp_path / "hub-cache").glob("models--*/blobs/*")
    branch.write_text(branch.read_text() + "\n")
    assert start(None, "van_b0.in1k").remembered is None
    file.write_bytes(b"damaged")
    assert start(None, "van_b0.in1k").remembered is None and "is damaged in the cache" in caplog.text
    assert torch.equal(known.module.head.fc.weight, first.module.head.fc.weight)


WITHOUT = """
import sys
sys.modules.update(torch=None, timm=None)
from vankit.cli import main
sys.exit(main(["predict", *sys.argv[1:]]))
"""


@pytest.mark.export
def test_the_second_start_answers_without_pytorch(checkpoint: Path, tmp_path: Path) -> None:
    """As the command line does it, for more pictures at once than the first start had."""
    rng, pictures = np.random.default_rng(0), [tmp_path / f"{i}.png" for i in range(3)]
    for path in pictures:
        Image.fromarray(rng.integers(0, 255, (70, 90, 3), np.uint8)).save(path)
    first = vankit.Predictor(checkpoint=checkpoint)
    _ = first.engine
    table = tmp_path / "rows.jsonl"
    command = [sys.executable, "-c", WITHOUT, *map(str, pictures), "--checkpoint", str(checkpoint)]
    done = subprocess.run([*command, "--output", str(table)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows = list(map(json.loads, table.read_text().splitlines()))
    expected = vankit.Predictor(checkpoint=checkpoint, engine="torch")(pictures)
    for row, prediction in zip(rows, expected, strict=True):
        assert row["labels"] == [label.name for label in prediction.labels]
        assert row["scores"] == pytest.approx([label.score for label in prediction.labels], abs=1e-4)


@pytest.mark.slow
@pytest.mark.export
def test_a_named_model_with_every_engine_and_precision(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)).save(picture)
    reference = vankit.Predictor("van_b0.cifar10", engine="torch")(picture)
    for options in (["--engine", "openvino"], ["--engine", "onnxruntime"], ["--device", "cpu"]):
        vankit.predict([picture], "van_b0.cifar10", **{options[0].removeprefix("--"): options[1]})
        command = [sys.executable, "-c", WITHOUT, str(picture), "--model", "van_b0.cifar10", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), options
        assert done.stdout.splitlines()[1] == f"  {reference.labels[0].score:6.1%}  {reference.labels[0].name}"


@pytest.mark.slow
@pytest.mark.export
def test_a_network_that_was_changed_is_no_longer_the_files(checkpoint: Path) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    for change in (True, False):
        start(checkpoint)
        predictor = vankit.Predictor(checkpoint=checkpoint, engine="openvino")
        assert predictor._opened.remembered is not None
        if change:
            torch.nn.init.zeros_(predictor.network.head.fc.weight)
            torch.nn.init.zeros_(predictor.network.head.fc.bias)
        assert ([label.score for label in predictor(picture).labels] == [0.5, 0.5]) == change


@pytest.mark.parametrize(("head", "task"), [("semantic_fpn", "segment"), ("retinanet", "detect")])
def test_a_detector_or_segmenter(head: str, task: str, dense_checkpoint: Callable[[str, str], Path]) -> None:
    path = dense_checkpoint(head, task)
    first, second = start(path), start(path)
    assert first.remembered is None and second.network is None and second.dense
    key = second.key
    same(second, path)
    assert key == second.key == first.key
    torch.nn.init.zeros_(next(second.module.parameters()))
    assert second.key != key
