"""Fetching checkpoints, against a hub on loopback that breaks off, lies and forgets."""

import hashlib
import io
import json
import logging
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from fake_hub import FILE, REPO, FakeHub
from huggingface_hub import constants

from vankit.data.preprocessing import Preprocessing
from vankit.errors import UserError
from vankit.models import hub, transfer
from vankit.models.classifier import classifier_by_name
from vankit.models.van import VAN, VARIANTS, create_model
from vankit.models.weights import write_checkpoint


@pytest.fixture
def closed() -> str:
    """An endpoint where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def content(size: int = 3_000_000) -> bytes:
    return np.random.default_rng(0).bytes(size)


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*.incomplete")]


def test_download_then_cache(server: FakeHub, tmp_path: Path, closed: str) -> None:
    data = server.add(content())
    path = hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    assert path.name == FILE and path.read_bytes() == data
    assert server.gets() == [""]
    asked = len(server.requests)
    assert hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint) == path
    assert hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=closed) == path
    assert hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=closed, local_files_only=True) == path
    assert len(server.requests) == asked
    assert leftovers(tmp_path) == []


def test_content_from_another_host(server: FakeHub, tmp_path: Path) -> None:
    data = server.add(content())
    server.redirect, server.cuts = True, [1_500_000]
    assert hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint).read_bytes() == data
    assert "bytes=1500000-" in server.gets()


def test_broken_connection_is_resumed(server: FakeHub, tmp_path: Path) -> None:
    data = server.add(content())
    server.cuts = [1_500_000, 400_000]
    path = hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    assert path.read_bytes() == data
    assert server.gets() == ["", "bytes=1500000-", "bytes=1900000-"]
    assert server.sent == len(data)


def test_reset_connection_is_resumed(server: FakeHub, tmp_path: Path) -> None:
    data = server.add(content())
    server.cuts, server.reset = [1_500_000], tmp_path
    path = hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    assert path.read_bytes() == data
    first, second = server.gets()
    assert first == "" and 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 1_500_000


def test_partial_file_outlives_the_call(server: FakeHub, tmp_path: Path) -> None:
    data = server.add(content())
    server.cuts = [1_000_000] + [0] * 20
    with pytest.raises(hub.DownloadError, match=FILE):
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    [partial] = leftovers(tmp_path)
    assert next(tmp_path.rglob(partial)).read_bytes() == data[:1_000_000]

    server.cuts, before = [], len(server.requests)
    assert hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint).read_bytes() == data
    assert [range_ for method, range_ in server.requests[before:] if method == "GET"] == ["bytes=1000000-"]
    assert server.sent == len(data)
    assert leftovers(tmp_path) == []


def test_endless_breaking_ends(server: FakeHub, tmp_path: Path) -> None:
    server.add(content())
    server.cuts = [0] * 100
    with pytest.raises(hub.DownloadError):
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    assert len(server.gets()) < 15


def test_server_without_ranges_starts_over(server: FakeHub, tmp_path: Path) -> None:
    data = server.add(content())
    server.cuts, server.ranges = [1_000_000], False
    assert hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint).read_bytes() == data


@pytest.mark.parametrize("left", ["other bytes", "too long"])
def test_bad_partial_file_is_discarded(server: FakeHub, tmp_path: Path, left: str) -> None:
    data = server.add(content())
    server.cuts = [1_000_000] + [0] * 20
    with pytest.raises(hub.DownloadError):
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    partial = next(tmp_path.rglob("*.incomplete"))
    partial.write_bytes(bytes(1_000_000 if left == "other bytes" else len(data) + 1))
    server.cuts = []
    assert hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint).read_bytes() == data


def test_wrong_content_is_refused(server: FakeHub, tmp_path: Path) -> None:
    data = server.add(content(1000))
    stated = hashlib.sha256(data + b"!").hexdigest()
    server.stated[f"{REPO}/{FILE}"] = stated
    with pytest.raises(hub.DownloadError, match=f"states sha256 {stated}.*{hashlib.sha256(data).hexdigest()}"):
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    assert len(server.gets()) == 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() == data]


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_cache_is_fetched_again(
    server: FakeHub, tmp_path: Path, damage: str, closed: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = server.add(content(100_000))
    path = hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    bad = data[:-1] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1])
    path.resolve().write_bytes(bad)
    again = hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    assert again == path and again.read_bytes() == data
    assert len(server.gets()) == 2
    assert "damaged in the cache" in caplog.text

    path.resolve().write_bytes(bad)
    with pytest.raises(hub.DownloadError):  # offline: an error, and not the damaged file
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=closed)


def test_small_file_without_sha256(server: FakeHub, tmp_path: Path) -> None:
    data = server.add(b"{}", f"{REPO}/config.json")
    server.stated[f"{REPO}/config.json"] = "0" * 40  # git's sha1, as the hub states it for files in git itself
    path = hub.fetch(REPO, "config.json", cache_dir=tmp_path, endpoint=server.endpoint)
    assert path.read_bytes() == data


def test_no_network_fails_fast_and_says_what_to_do(tmp_path: Path, closed: str) -> None:
    with pytest.raises(hub.DownloadError) as caught:
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=closed + "/")
    assert isinstance(caught.value, OSError)
    for part in (
        f"could not fetch {FILE} of {REPO} from {closed}: ",
        "refused",
        f"https://huggingface.co/{REPO}",
        "--checkpoint FILE",
        "vankit.load_checkpoint(model, path)",
        "pretrained_cfg_overlay=dict(file=path)",
        "HF_ENDPOINT",
        "HF_HOME",
        "van_b0.cifar10",
    ):
        assert part in str(caught.value)


def test_silent_host_fails_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_DEADLINE", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(hub.DownloadError, match=r"no answer within 0\.2 s"):
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_absent_file_and_broken_hub(server: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(hub.DownloadError, match=f"could not fetch none.pth of {REPO}.*: .*404"):
        hub.fetch(REPO, "none.pth", cache_dir=tmp_path, endpoint=server.endpoint)
    server.add(content(10))
    server.status = 503
    with pytest.raises(hub.DownloadError, match="503"):
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint)
    with pytest.raises(hub.DownloadError, match="local_files_only"):
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=server.endpoint, local_files_only=True)
    assert server.gets() == []


def test_malformed_repo_id(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a/b/c/d"):
        hub.fetch("a/b/c/d", FILE, cache_dir=tmp_path, endpoint="http://127.0.0.1:9")


# timm's models


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hugging Face cache, empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["hf-hub:user/name", "hf_hub:user/name@v2"])
@pytest.mark.parametrize("offline", [False, True])
def test_a_model_that_cannot_be_reached_is_said_in_a_line(
    name: str, offline: bool, cache: Path, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", closed)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(timm, "create_model", None)  # which would try for half a minute
    with pytest.raises(hub.DownloadError) as caught:
        classifier_by_name(name)
    why = "HF_HUB_OFFLINE is set" if offline else "[Errno 111] Connection refused"
    assert str(caught.value) == (
        f"could not fetch {name} from {closed}: {why}, and it is not in the cache, {cache} (HF_HOME); fetch it there "
        "with a network, or pass a file of weights (--checkpoint FILE)"
    )


def test_a_model_whose_weights_are_not_in_the_cache(
    server: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"architecture": "van_b0", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    server.add(json.dumps(own).encode(), "user/name/config.json")
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    hub.fetch("user/name", "config.json")
    elsewhere = hub.fetch("user/name", "config.json", cache_dir=cache / "elsewhere")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert create_model("hf-hub:user/name").num_classes == 7
    with pytest.raises(hub.DownloadError, match=f"not in the cache, {cache / 'empty'};"):
        create_model("hf-hub:user/name", cache_dir=cache / "empty")
    assert elsewhere.is_relative_to(cache / "elsewhere")
    assert create_model("hf-hub:user/name", cache_dir=cache / "elsewhere").num_classes == 7
    with pytest.raises(hub.DownloadError, match="fetch hf-hub:user/name from .*: HF_HUB_OFFLINE is set, and"):
        create_model("hf-hub:user/name", pretrained=True)


def test_what_is_on_the_hub_is_not_timms(server: FakeHub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    with pytest.raises(hub.DownloadError, match="fetch hf-hub:user/name from .*: the answer is 404 Not Found;"):
        create_model("hf-hub:user/name")
    server.add(b'{"model_type": "van"}', "user/name/config.json")
    with pytest.raises(UserError, match=r"hf-hub:user/name is not a model of timm's, its config.json names no arch"):
        create_model("hf-hub:user/name")


# from other hosts


def add_file(server: FakeHub, data: bytes) -> str:
    """URL of a file whose name states the start of its sha256."""
    name = f"van/van-b9_in1k-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    server.add(data, name)
    return f"{server.endpoint}/{name}"


def test_a_url_is_fetched_once(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = content()
    url = add_file(server, data)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    path = hub.fetch_url(url)
    assert path == tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2] and path.read_bytes() == data
    server.status = 503
    assert hub.fetch_url(url) == path
    assert len(server.requests) == 2
    assert server.tokens == [] and leftovers(tmp_path) == []


def test_a_file_that_torch_hub_has_fetched_is_used(server: FakeHub, tmp_path: Path) -> None:
    url = add_file(server, content(1000))
    own = tmp_path / url.rpartition("/")[2]
    torch.hub.download_url_to_file(url, str(own), progress=False)
    asked = len(server.requests)
    assert hub.fetch_url(url, tmp_path) == own
    assert len(server.requests) == asked


def test_a_broken_download_of_a_url_is_resumed(server: FakeHub, tmp_path: Path) -> None:
    data = content()
    url = add_file(server, data)
    server.redirect, server.cuts = True, [1_000_000, 500_000] + [0] * 20
    with pytest.raises(hub.DownloadError):
        hub.fetch_url(url, tmp_path)
    assert [path.read_bytes() for path in tmp_path.glob("*.incomplete")] == [data[:1_500_000]]
    server.cuts = []
    assert hub.fetch_url(url, tmp_path).read_bytes() == data
    assert server.sent == len(data)


def test_a_url_whose_content_is_another(server: FakeHub, tmp_path: Path) -> None:
    url = add_file(server, content(1000))
    server.files = dict.fromkeys(server.files, b"<html>Please log in</html>")
    with pytest.raises(hub.DownloadError, match=r"states sha256 [0-9a-f]{8}, the content received twice has "):
        hub.fetch_url(url, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size] == []


def test_a_damaged_file_of_a_url_is_never_used(
    server: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = content(1000)
    url = add_file(server, data)
    path = hub.fetch_url(url, tmp_path)
    path.write_bytes(data[:-1])
    server.status = 503
    with pytest.raises(hub.DownloadError, match="503"):
        hub.fetch_url(url, tmp_path)
    assert "damaged in the cache" in caplog.text
    server.status = 200
    assert hub.fetch_url(url, tmp_path).read_bytes() == data


@pytest.mark.parametrize("left", [b"", b"other bytes", bytes(2000)])
def test_a_url_without_a_size_starts_over(
    left: bytes, server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(1000)
    url = add_file(server, data)
    (tmp_path / f"{url.rpartition('/')[2]}.vankit.incomplete").write_bytes(left)
    monkeypatch.setattr(hub, "size_of", lambda *_: None)
    assert hub.fetch_url(url, tmp_path).read_bytes() == data


def test_a_url_offline_says_what_to_do(tmp_path: Path, closed: str) -> None:
    url = f"{closed}/van/van-b9_in1k-01234567.pth"
    with pytest.raises(hub.DownloadError) as caught:
        hub.fetch_url(url, tmp_path)
    for part in (
        f"could not fetch van-b9_in1k-01234567.pth from {url}: ", "refused", f"Get the file from {url}",
        "--checkpoint FILE", "pretrained_cfg_overlay=dict(file=path)", "TORCH_HOME", "van_b0.cifar10",
    ):  # fmt: skip
        assert part in str(caught.value)


def test_a_url_of_a_silent_host_fails_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_DEADLINE", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(hub.DownloadError, match=r"no answer within 0\.2 s"):
        hub.fetch_url(f"http://127.0.0.1:{silent.getsockname()[1]}/x.pth", tmp_path)


@pytest.mark.parametrize("name", ["van-20240131.pth", "van-b0.pth", "van.pth"])
def test_a_url_that_states_no_sha256(name: str, server: FakeHub, tmp_path: Path) -> None:
    data = server.add(content(1000), name)
    assert hub.fetch_url(f"{server.endpoint}/{name}", tmp_path).read_bytes() == data


def test_an_absent_url_and_one_that_is_none(server: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(hub.DownloadError, match="404"):
        hub.fetch_url(f"{server.endpoint}/none.pth", tmp_path)
    assert server.gets() == [""]
    with pytest.raises(hub.DownloadError, match=r"could not fetch x\.pth from van/x\.pth"):
        hub.fetch_url("van/x.pth", tmp_path)


# through timm


@pytest.fixture
def published(server: FakeHub, golden_state_dict: Any, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The fake hub with van_b0's official file, named by HF_ENDPOINT."""
    file = io.BytesIO()
    torch.save({"state_dict": golden_state_dict("van_b0")}, file)
    server.add(file.getvalue())
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    return server


@pytest.mark.parametrize("name", ["van_b0", "van_b0.in1k"])
def test_create_model_pretrained(
    name: str, published: FakeHub, tmp_path: Path, golden_outputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = timm.create_model(name, pretrained=True).eval()
    x = torch.from_numpy(np.random.default_rng(2).standard_normal((1, 3, 161, 227)).astype(np.float32))
    with torch.inference_mode():
        assert np.abs(model(x).double().numpy() - golden_outputs("van_b0")["logits_b"]).max() < 2e-6
    assert model.pretrained_cfg["hf_hub_id"] == REPO
    assert Path(model.pretrained_cfg["file"]).is_relative_to(tmp_path)
    assert model.pretrained_cfg["tag"] == "in1k" and model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    timm.create_model(name, pretrained=True, num_classes=10)
    assert published.gets() == [""]


def test_create_model_honours_cache_dir_and_features_only(published: FakeHub, tmp_path: Path) -> None:
    model = timm.create_model("van_b0", pretrained=True, features_only=True, cache_dir=tmp_path)
    assert model.feature_info.channels() == [32, 64, 160, 256]
    assert len(list(tmp_path.rglob(FILE))) == 1


def test_create_model_offline(tmp_path: Path, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", closed)
    with pytest.raises(hub.DownloadError, match=FILE):
        timm.create_model("van_b0", pretrained=True, cache_dir=tmp_path)


def test_a_configuration_without_weights() -> None:
    with pytest.raises(UserError, match=r"of van_b4 names no weights.*van_b3\.in1k.*van_b6\.in22k.*dict\(file=path\)"):
        timm.create_model("van_b4", pretrained=True, pretrained_cfg={"num_classes": 3})


def test_source_named_in_the_overlay_outranks_the_registry(server: FakeHub, tmp_path: Path) -> None:
    assert hub.resolve("van_b4", None, {"file": "x.pth"})["file"] == "x.pth"
    server.add(b"own", "x.pth")
    url = hub.resolve("van_b0", None, {"url": f"{server.endpoint}/x.pth", "mean": (0, 0, 0)}, tmp_path)
    assert url["custom_load"] and url["hf_hub_id"] is None and url["mean"] == (0, 0, 0)
    path = Path(url["file"])
    assert path.parent == tmp_path and path.name.endswith("-x.pth")
    server.add(b"another", "other/x.pth")
    assert hub.fetch_url(f"{server.endpoint}/other/x.pth", tmp_path).read_bytes() == b"another"
    assert hub.fetch_url(f"{server.endpoint}/x.pth", tmp_path).read_bytes() == b"own"
    server.add(b"step", "step-00010000.pth")  # no hash
    assert hub.fetch_url(f"{server.endpoint}/step-00010000.pth", tmp_path).read_bytes() == b"step"
    own = {"state_dict": {"a": 1}}
    assert hub.resolve("van_b0", None, own).items() >= own.items()
    assert not hub.resolve("van_b0", None, own).get("custom_load")
    timm_hub = {"hf_hub_id": "me/van", "source": "hf-hub", "architecture": "van_b0"}
    assert hub.resolve("van_b0", timm_hub, None) == {}


def test_revision_after_an_at_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(hub, "fetch", lambda *args, **kwargs: calls.append((args, kwargs)) or Path("x"))
    hub.resolve("van_b4", None, {"hf_hub_id": "me/van@v2", "hf_hub_filename": "b4.pth"})
    assert calls == [(("me/van", "b4.pth"), {"revision": "v2", "cache_dir": None})]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("van_b4", "van-b4_3rdparty_in1k_20220909-f4665b92.pth"),
        ("van_b4.in1k", "van-b4_3rdparty_in1k_20220909-f4665b92.pth"),
        ("van_b4.in22k", "van-b4_3rdparty_in21k_20220909-db926b18.pth"),
        ("van_b5", "van-b5_3rdparty_in21k_20220909-18e904e3.pth"),
        ("van-b6_3rdparty_in21k", "van-b6_3rdparty_in21k_20220909-96c2cb3a.pth"),
    ],
)
def test_openmmlabs_files(name: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(url: str, cache_dir: object) -> Path:
        asked.append(url)
        raise hub.DownloadError("no network")

    monkeypatch.setattr(hub, "fetch_url", refuse)
    with pytest.raises(hub.DownloadError, match="no network"):
        create_model(name, pretrained=True)
    assert asked == [f"https://download.openmmlab.com/mmclassification/v0/van/{file}"]


@pytest.fixture
def converted(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VAN:
    """A VAN-B0 with 7 classes that `van_b4.in22k` is made to name: in OpenMMLab's layout, at a URL."""
    model = VAN(num_classes=7, **VARIANTS["van_b0"])
    write_checkpoint(model.state_dict(), tmp_path / "mm.pth", "mmpretrain")
    monkeypatch.setitem(VARIANTS, "van_b4", VARIANTS["van_b0"])
    cfg = timm.get_pretrained_cfg("van_b4.in22k")
    named = replace(cfg, url=add_file(server, (tmp_path / "mm.pth").read_bytes()), num_classes=7)
    monkeypatch.setitem(timm.models._registry._model_pretrained_cfgs, "van_b4.in22k", named)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return model


def test_a_tag_with_a_url(converted: VAN, server: FakeHub) -> None:
    network, description = classifier_by_name("van-b4_3rdparty_in21k")
    for name, tensor in converted.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    assert description.model == "van_b4.in22k" and len(description.classes) == 7
    assert description.preprocessing == Preprocessing((3, 224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.9, "bicubic")
    features = timm.create_model("van_b4.in22k", pretrained=True, features_only=True)
    assert torch.equal(features.stage4.norm.weight, converted.stage4.norm.weight)
    assert server.gets() == [""]


def test_a_head_for_other_classes_is_left_out(converted: VAN, caplog: pytest.LogCaptureFixture) -> None:
    network = timm.create_model("van_b4.in22k", pretrained=True, num_classes=3)
    assert torch.equal(network.stage4.norm.weight, converted.stage4.norm.weight)
    assert network.head.fc.weight.shape == (3, 256)
    assert "has 7 classes and the model 3: loaded the backbone only" in caplog.text


def test_state_dict_passed_directly(golden_state_dict: Any, caplog: pytest.LogCaptureFixture) -> None:
    own = timm.create_model("van_b0").state_dict()
    overlay = {"state_dict": own}
    with caplog.at_level(logging.WARNING):
        model = timm.create_model("van_b0", pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.head.fc.weight, own["head.fc.weight"])
    assert caplog.records == []
