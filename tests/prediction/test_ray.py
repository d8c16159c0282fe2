"""Cluster jobs against the same images labelled in this process; workers die on the way."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vankit
from vankit.data.walk import find_images
from vankit.errors import MissingFileError, UserError
from vankit.locks import held
from vankit.models.van import create_model
from vankit.prediction import ray as cluster
from vankit.prediction.ray import predict_on_ray

fsspec = pytest.importorskip("fsspec")
parquet = pytest.importorskip("pyarrow.parquet")

MODEL = "van_b0.cifar10"


@pytest.fixture(autouse=True)
def _at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker goes to its driver's folder, and in these tests so does their process."""
    monkeypatch.chdir(Path.cwd())


@pytest.fixture(scope="module")
def predictor() -> vankit.Predictor:
    return vankit.Predictor(MODEL)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """30 pictures; number 3 is none."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "photos" / f"{i:02}.png" for i in range(30)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(path)
    paths[3].write_bytes(b"no picture")
    return paths


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.mark.slow
def test_a_shard_of_a_multi_label_network(photos: list[Path], tmp_path: Path) -> None:
    """In this process, as a worker makes it."""
    network = create_model(MODEL, pretrained=True)
    metadata = {**vankit.read_checkpoint(network.pretrained_cfg["file"]).metadata, "thresholds": [0.0] * 2 + [1.0] * 8}
    vankit.save_checkpoint(network, tmp_path / "x.safetensors", metadata=metadata)
    worker = cluster._Worker(
        fsspec.filesystem("file"), str(tmp_path), str(tmp_path), {"model": tmp_path / "x.safetensors"}
    )
    done = worker({"shard": 0, "names": [os.fsencode(path) for path in photos[:4]]})
    assert done == {"shard": 0, "rows": 4, "failed": 1, "error": None}
    rows = parquet.read_table(tmp_path / "shard-000000.parquet").to_pylist()
    assert [sorted(row["indices"]) for row in rows] == [[0, 1], [0, 1], [0, 1], []]


def expect(predictor: vankit.Predictor, output: Path, names: list[str], paths: list[Path], shard_size: int) -> None:
    """The files of the job hold each name once, in order, and what this process says of its path."""
    files = sorted(output.glob("*.parquet"))
    assert [file.name for file in output.iterdir() if file not in files] == ["_manifest.json"]
    shards = [parquet.read_table(file).to_pylist() for file in files]
    assert all(len(shard) == shard_size for shard in shards[:-1])
    rows = list(chain.from_iterable(shards))
    assert [row["image"] for row in rows] == names
    for name, row, answer in zip(names, rows, predictor(paths), strict=True):
        assert row["error"] == (answer.error and answer.error.replace(answer.source, name))
        assert row["labels"] == [label.name for label in answer.labels]
        assert row["indices"] == [label.index for label in answer.labels]
        assert row["scores"] == pytest.approx([label.score for label in answer.labels], abs=1e-5)


def kill_the_reader(photo: Path, instead: Path, killed: list[int]) -> None:
    """Once another process has the photo open: put another file in its place and kill the process."""
    while not killed:
        time.sleep(0.1)
        for pid in {int(name) for name in os.listdir("/proc") if name.isdigit()} - {os.getpid()}:
            with contextlib.suppress(OSError):  # processes end while they are listed
                if str(photo) in {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}:
                    killed.append(pid)
    os.replace(instead, photo)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to find the worker")
def test_a_killed_worker_costs_no_row_and_a_restart_does_what_is_missing(
    predictor: vankit.Predictor, photos: list[Path], tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray")
    large, small, killed = photos[13], tmp_path / "small.png", []
    large.rename(small)
    Image.merge("RGB", [Image.effect_noise((8000, 8000), 100)] * 3).save(large, "JPEG")  # a second of decoding
    killer = threading.Thread(target=kill_the_reader, args=(large, small, killed), daemon=True)
    killer.start()
    output = tmp_path / "labels"
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        done = list(predict_on_ray(photos, output, workers=2, shard_size=8, model=MODEL))
        killer.join(20)
        assert len(killed) == 1
        assert sorted(done) == [(6, 0), (8, 0), (8, 0), (8, 1)]
        names = [str(path) for path in photos]
        expect(predictor, output, names, photos, 8)

        kept = {name: (output / name).stat().st_mtime_ns for name in ("shard-000000.parquet", "shard-000002.parquet")}
        (output / "shard-000001.parquet").unlink()
        (output / "shard-000003.parquet").unlink()
        (output / ".shard-000003.parquet.0").write_bytes(b"PAR1")
        assert sorted(predict_on_ray(photos, output, shard_size=8, model=MODEL)) == [(6, 0), (8, 0)]
        assert {name: (output / name).stat().st_mtime_ns for name in kept} == kept
        expect(predictor, output, names, photos, 8)

        broken = output / "shard-000002.parquet"
        broken.write_bytes(broken.read_bytes()[:-9])
        os.replace(output / "shard-000001.parquet", output / "shard-000000.parquet")
        assert sorted(predict_on_ray(photos, output, shard_size=8, model=MODEL)) == [(8, 0), (8, 0), (8, 1)]
        expect(predictor, output, names, photos, 8)
        (output / "shard-000004.parquet").write_bytes(broken.read_bytes())
        with pytest.raises(UserError, match="holds other files, such as shard-000004.parquet"):
            list(predict_on_ray(photos, output, shard_size=8, model=MODEL))
        (output / "shard-000004.parquet").unlink()

        for other, difference in (
            ({"inputs": photos[1:]}, r"images \(was 30, is 29\), names_sha256"),
            ({"shard_size": 9}, r"differs in shard_size \(was 8, is 9\):"),
            ({"top_k": 2}, r"differs in options \(was .*top_k': 2"),
        ):
            with pytest.raises(UserError, match=difference):
                list(predict_on_ray(**{"inputs": photos, "output": output, "shard_size": 8, "model": MODEL, **other}))
        assert list(predict_on_ray(photos, output, shard_size=8, model=MODEL)) == []
        (output / "_manifest.json").unlink()
        with pytest.raises(UserError, match="no _manifest.json of their job"):
            list(predict_on_ray(photos, output, shard_size=8, model=MODEL))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_cluster_by_its_address_loses_a_node(predictor: vankit.Predictor, photos: list[Path], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = nodes.add_node(num_cpus=1)
    try:
        inputs, output = photos[0].parent.as_uri(), tmp_path / "labels"
        jobs = predict_on_ray(inputs, output.as_uri(), address=nodes.address, shard_size=2, model=MODEL)
        done = [next(jobs)]
        nodes.remove_node(lost, allow_graceful=False)
        done += jobs
        assert not ray.is_initialized()
    finally:
        nodes.shutdown()
    assert sorted(done) == [(2, 0)] * 14 + [(2, 1)]
    expect(predictor, output, [path.as_uri() for path in photos], photos, 2)


@pytest.mark.slow
def test_a_cluster_of_this_machine_ends_with_the_job(
    predictor: vankit.Predictor, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    assert sum(rows for rows, _ in predict_on_ray("photos", "labels", model=MODEL)) == 30
    assert not ray.is_initialized()
    expect(predictor, tmp_path / "labels", [f"photos/{path.name}" for path in photos], photos, 30)


def test_urls_are_listed_like_folders(tmp_path: Path, memory: Any) -> None:
    names = ["a/2.png", "a/10.JPG", "a-b/1.png", "a.png", "b/c/d.webp", ".hidden/1.png", ".1.png", "b/notes.txt", "z"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        memory.pipe_file(f"/set/{name}", b"")
    expected = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert len(expected) == 5
    assert list(cluster._list(["memory://set", tmp_path])) == [
        *(f"memory:///set/{name}" for name in expected),
        *(f"{tmp_path}/{name}" for name in expected),
    ]
    assert list(cluster._list(tmp_path.as_uri())) == [(tmp_path / name).as_uri() for name in expected]
    assert list(cluster._list("memory://set/z")) == ["memory://set/z"]
    memory.pipe_file("/empty/notes.txt", b"")
    with pytest.raises(MissingFileError, match="no images in memory://empty"):
        list(cluster._list(["memory://set", "memory://empty"]))


def test_images_of_urls_and_files_are_labelled_alike(
    photos: list[Path], memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fetched").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "fetched"))
    names = []
    for i, path in enumerate(photos):
        names.append(str(path) if i % 3 == 2 else f"memory:///set/{path.name}")
        memory.pipe_file(f"/set/{path.name}", path.read_bytes())
    memory.rm_file("/set/04.png")
    predictor = vankit.Predictor(MODEL, engine="torch")
    answers = list(cluster._label(predictor, [*names, "nothing://set/1.png"]))
    assert list((tmp_path / "fetched").iterdir()) == []
    assert [answer.source for answer in answers] == [*names, "nothing://set/1.png"]
    assert [i for i, answer in enumerate(answers) if answer.error] == [3, 4, 30]
    assert str(answers[3].error).startswith("memory:///set/03.png is not an image")
    assert str(answers[4].error).startswith("memory:///set/04.png cannot be fetched (FileNotFoundError")
    assert "Protocol not known" in str(answers[30].error)
    for answer, path in zip(answers, photos, strict=False):
        if answer.error is None:
            expected = predictor(path)
            assert [label.index for label in answer.labels] == [label.index for label in expected.labels]
            assert [label.score for label in answer.labels] == pytest.approx(
                [label.score for label in expected.labels], abs=1e-5
            )


def test_fetching_stays_a_little_ahead(memory: Any, tmp_path: Path) -> None:
    memory.pipe_file("/set/1.png", b"")
    asked: list[str] = []

    def names() -> Iterator[str]:
        while True:
            asked.append("memory:///set/1.png")
            yield asked[-1]

    fetched = cluster._fetch_all(names(), str(tmp_path))  # type: ignore[arg-type]
    for _ in range(3):
        next(fetched)
    assert len(asked) < 50
    fetched.close()


def worker(output: Path) -> cluster._Worker:
    fs, root = fsspec.url_to_fs(str(output))
    return cluster._Worker(fs, root, os.getcwd(), {"model": MODEL, "engine": "torch"})


def test_a_finished_shard_is_one_with_its_images(
    photos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    fs, path = fsspec.filesystem("file"), tmp_path / "shard-000000.parquet"
    names = [os.fsencode(photo) for photo in photos[:4]]

    def holds(names: list[bytes]) -> bool:
        caplog.clear()
        return cluster._holds(fs, str(path), pyarrow.scalar(names, pyarrow.list_(pyarrow.binary())))

    assert not holds(names) and "shard-000000.parquet is not what this job wrote" in caplog.text
    worker(tmp_path)({"shard": 0, "names": names})
    assert holds(names) and not caplog.text
    for others in (names[:3], [*names[:3], b"other.png"], names[::-1]):
        assert not holds(others) and "(it has other rows): it is made anew" in caplog.text
    whole = path.read_bytes()
    for content in (b"", whole[:-9], b"PAR1" + whole[4:-60] + b"x" * 60):
        path.write_bytes(content)
        assert not holds(names) and "it is made anew" in caplog.text
    parquet.write_table(pyarrow.table({"image": [os.fsdecode(name) for name in names]}), path)
    assert not holds(names) and "other rows" in caplog.text
    worker(tmp_path)({"shard": 0, "names": names})
    assert path.read_bytes() == whole and holds(names)


def test_an_output_is_of_one_job_and_one_driver(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Any
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "Predictor", None)
    output = tmp_path / "labels"
    output.mkdir()
    with held(output), pytest.raises(UserError, match=f"{output} is being written by process {os.getpid()}"):
        next(predict_on_ray(photos, output.as_uri(), model=MODEL))
    (output / "notes.txt").write_text("mine")
    (output / "more").mkdir()
    with pytest.raises(UserError, match="holds other files, such as more, which would be read with the predictions"):
        next(predict_on_ray(photos, output, model=MODEL))
    memory.pipe_file("/labels/part-0.parquet", b"")
    with pytest.raises(UserError, match="holds other files, such as part-0.parquet"):
        next(predict_on_ray(photos, "memory://labels", model=MODEL))
    with pytest.raises(UserError, match="is a file: pass a folder"):
        next(predict_on_ray(photos, photos[0], model=MODEL))
    assert (output / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff"])
def test_a_damaged_manifest_is_named(content: bytes, memory: Any) -> None:
    memory.pipe_file("/labels/_manifest.json", content)
    with pytest.raises(UserError, match="/labels/_manifest.json is damaged: choose another output"):
        cluster._check(memory, "/labels", {}, False)


def test_a_shard_that_kills_its_workers_is_given_up(photos: list[Path], tmp_path: Path) -> None:
    shard = {"shard": 7, "names": [os.fsencode(path) for path in photos[:4]]}
    for died in range(4):
        (tmp_path / f".shard-000007.parquet.{died}").write_bytes(b"")
        done = worker(tmp_path)(shard)
        if died < 3:
            assert done == {"shard": 7, "rows": 4, "failed": 1, "error": None}
    assert done["rows"] == 0
    assert "its worker died 4 times" in done["error"]


def test_a_shard_that_cannot_be_written_says_why(photos: list[Path], tmp_path: Path) -> None:
    shard = {"shard": 0, "names": [os.fsencode(photos[0])]}
    done = worker(tmp_path / "removed")(shard)
    assert done["rows"] == 0
    assert "FileNotFoundError" in done["error"] and "removed" in done["error"]


def test_names_that_are_no_text(photos: list[Path], tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        os.rename(photos[0], name)
    except OSError:
        pytest.skip("this file system has no such names")
    assert worker(tmp_path)({"shard": 0, "names": [name]})["error"] is None
    (row,) = parquet.read_table(tmp_path / "shard-000000.parquet").to_pylist()
    assert row["image"] == f"{tmp_path}/\\udcff.png"
    assert row["error"] is None


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": {"memory": 1e9, **resources}}


@pytest.mark.parametrize(
    ("nodes", "workers", "options", "expected"),
    [
        ([node(CPU=16)], None, {}, (1, {"num_cpus": 16})),
        ([node(CPU=16), node(CPU=4), node(memory=1)], None, {}, (2, {"num_cpus": 4})),
        ([node(CPU=16), {"Alive": False, "Resources": {"CPU": 4}}], None, {}, (1, {"num_cpus": 16})),
        ([node(CPU=2)], 2, {}, (2, {"num_cpus": 1})),
        ([node(CPU=8), node(CPU=8)], 5, {}, (5, {"num_cpus": 2})),
        ([node(CPU=2)], 3, {}, (3, {"num_cpus": 0.6666})),
        ([node(CPU=16, GPU=2), node(CPU=4)], None, {}, (2, {"num_cpus": 1, "num_gpus": 1})),
        ([node(CPU=16, GPU=2)], 1, {"device": "cuda"}, (1, {"num_cpus": 1, "num_gpus": 1})),
        ([node(CPU=16, GPU=2)], None, {"device": "cpu"}, (1, {"num_cpus": 16})),
        ([node(CPU=16, GPU=2)], None, {"engine": "openvino"}, (1, {"num_cpus": 16})),
    ],
)
def test_workers_fit_the_nodes(nodes: list[Any], workers: int | None, options: dict[str, Any], expected: Any) -> None:
    assert cluster._resources(nodes, workers, options) == expected


@pytest.mark.parametrize("option", ["checkpoint", "model"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_the_manifest_knows_the_weights(tmp_path: Path, option: str, what: str) -> None:
    weights = tmp_path / "exported" / "weights.bin"
    weights.parent.mkdir()
    value = weights if what == "file" else weights.parent
    described = []
    for content in (b"1", b"2", b"1"):
        weights.write_bytes(content)
        described.append(json.loads(json.dumps(cluster._describe({option: value, "classes": ("a", "b")}))))
    assert described[0] == described[2] != described[1]
    assert described[0]["options"] == {option: str(value), "classes": ["a", "b"]}


def test_mistakes_are_told_before_a_cluster_starts(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    for options, message in (
        ({"model": torch.nn.Identity()}, "names, numbers and paths"),
        ({"model": "van_b0.cifar10", "top_k": 0}, "top_k is 0"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"workers": 0}, "workers 0"),
        ({"address": "ray://head:10001"}, "Ray Data does not run over ray://head:10001"),
    ):
        with pytest.raises(UserError, match=message):
            next(predict_on_ray(photos, tmp_path / "labels", **options))
    assert not (tmp_path / "labels").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"a cluster job needs ray: pip install 'vankit\[ray\]'"):
        next(predict_on_ray(photos, tmp_path / "labels"))
