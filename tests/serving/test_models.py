"""The networks that are served: their names, and how they are replaced."""

import json
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from clients import Client

import vankit
from vankit.errors import UserError
from vankit.serving.models import named_sources

Start = Callable[..., AbstractContextManager[Client]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two exported folders of one network, of which the second has other names."""
    path = tmp_path_factory.mktemp("folders")
    one, two = (vankit.export("van_b0.cifar10", out=path / name, classes=classes).folder for name, classes in (
        ("one", None), ("two", [f"class {i}" for i in range(10)])
    ))  # fmt: skip
    return one, two


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = tmp_path / "one"
    exported.mkdir()
    (exported / "export.json").touch()
    run = tmp_path / "run-7"
    run.mkdir()
    for name in ("best.safetensors", "van=b0.pth"):
        (run / name).touch()
    monkeypatch.chdir(tmp_path)
    assert named_sources(["van_b0.cifar10"]) == {"van_b0.cifar10": "van_b0.cifar10"}
    assert named_sources([str(exported)]) == {"one": str(exported)}
    assert named_sources(["run-7/best.safetensors"]) == {"run-7": "run-7/best.safetensors"}
    assert named_sources(["a=run-7/van=b0.pth", "b=van_b0"]) == {"a": "run-7/van=b0.pth", "b": "van_b0"}
    monkeypatch.chdir(exported)
    assert named_sources(["."]) == {"one": "."}


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ([], "there is no model to serve"),
        (["van_b0", "van_b0"], "would both be called van_b0: pass NAME=MODEL"),
        (["a=van_b0", "a=van_b1"], "van_b1 and van_b0 would both be called a"),
        (["a b/c d.pth"], "'c d' cannot be the name of a model in an address"),
        (["..=van_b0"], "cannot be the name"),
    ],
)
def test_names_that_cannot_be(models: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "c d.pth").touch()
    with pytest.raises(UserError, match=re.escape(reason)):
        named_sources(models)


def replace(folder: Path, other: Path) -> None:
    """As `vankit export` does."""
    new = folder.with_name("new")
    shutil.copytree(other, new)
    folder.rename(folder.with_name("old"))
    new.rename(folder)
    shutil.rmtree(folder.with_name("old"))


@pytest.mark.slow
def test_a_folder_is_replaced_without_a_dropped_request(
    start: Start, folders: tuple[Path, Path], photograph: bytes, tmp_path: Path
) -> None:
    live, stop = tmp_path / "live", threading.Event()
    shutil.copytree(folders[0], live)
    found: list[tuple[int, str, str]] = []

    def ask() -> None:
        while not stop.is_set():
            answer = client.post("/predict/live?top_k=1", photograph)
            found.append((answer.status, answer.json["version"], answer.json["pictures"][0]["labels"][0]["name"]))

    with start([str(live)], workers=2) as client:
        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for other in (folders[1], folders[0], folders[1]):
                replace(live, other)
                assert client.post("/v2/repository/models/live/load").status == 200
        finally:
            stop.set()
            [thread.join(30) for thread in threads]
        assert client.get("/models").json["models"][0]["version"] == "4"
    assert {status for status, *_ in found} == {200}
    first = vankit.Predictor(folders[0])(photograph).labels[0]
    names = {"1": first.name, "2": f"class {first.index}", "3": first.name, "4": f"class {first.index}"}
    assert {(version, name) for _, version, name in found} <= names.items()  # never one network under another's version
    assert len({version for _, version, _ in found}) > 1


@pytest.mark.slow
def test_a_folder_that_cannot_be_opened_replaces_nothing(
    start: Start, folders: tuple[Path, Path], photograph: bytes, tmp_path: Path
) -> None:
    live = tmp_path / "live"
    shutil.copytree(folders[0], live)
    with start([str(live)], workers=1) as client:
        before = client.post("/predict/live", photograph).json
        (live / "model.bin").write_bytes(b"damaged")
        answer = client.post("/v2/repository/models/live/load")
        assert answer.status == 400 and "live was not replaced" in answer.json["error"]
        assert "damaged" in answer.json["error"]
        assert client.post("/predict/live", photograph).json == before


@pytest.mark.slow
def test_several_networks(start: Start, folders: tuple[Path, Path], photograph: bytes) -> None:
    with start([f"a={folders[0]}", f"b={folders[1]}", "c=van_b0.cifar10"], workers=1) as client:
        found = [client.post(f"/predict/{name}", photograph).json["pictures"][0]["labels"] for name in "abc"]
    assert [label["index"] for label in found[0]] == [label["index"] for label in found[1]]
    assert found[1][0]["name"] == f"class {found[0][0]['index']}"
    assert [label["name"] for label in found[2]] == [label["name"] for label in found[0]]
    assert json.dumps(found[0])
