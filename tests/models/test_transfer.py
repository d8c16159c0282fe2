"""Hosts that send too much, too slowly, packed, the wrong part, or from elsewhere."""

import gzip
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from fake_hub import FILE, REPO, FakeHub

from vankit.errors import UserError
from vankit.models import hub, transfer

NAME = f"{REPO}/{FILE}"
TOKEN = "hf_" + "s" * 34
DATA = bytes(range(256)) * 4000


def fetch(server: FakeHub, cache: Path, filename: str = FILE) -> Path:
    return hub.fetch(REPO, filename, cache_dir=cache, endpoint=server.endpoint)


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_more_than_was_stated_is_not_taken(server: FakeHub, tmp_path: Path) -> None:
    server.add(DATA)
    server.endless = True
    with pytest.raises(hub.DownloadError, match=r"it sends more than 1,024,000 bytes, which is what it was stated to"):
        fetch(server, tmp_path)
    assert len(server.gets()) == 1 and server.sent < 20_000_000 and stored(tmp_path) == 0


@pytest.mark.parametrize(("name", "most"), [("x.pth", "_LARGEST"), ("x.json", "_LARGEST_TEXT")])
def test_there_is_a_most_without_a_stated_size(
    name: str, most: str, server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(DATA, name)
    monkeypatch.setattr(transfer, most, len(DATA) - 1)
    monkeypatch.setattr(hub, "size_of", lambda *_: None)
    with pytest.raises(hub.DownloadError, match=r"more than 1,023,999 bytes, which is the most that vankit takes"):
        hub.fetch_url(f"{server.endpoint}/{name}", tmp_path)
    assert stored(tmp_path) == 0


def test_a_size_beyond_all_measure_is_refused_before_it_is_sent(server: FakeHub, tmp_path: Path) -> None:
    server.add(DATA)
    server.sizes[NAME] = 2**40
    with pytest.raises(hub.DownloadError, match=r"it has 1,099,511,627,776 bytes, and vankit takes at most"):
        fetch(server, tmp_path)
    server.add(b"{}", f"{REPO}/config.json")
    server.sizes[f"{REPO}/config.json"] = 10**9
    with pytest.raises(hub.DownloadError, match=r"it has 1,000,000,000 bytes"):
        fetch(server, tmp_path, "config.json")
    assert server.gets() == []


@pytest.mark.parametrize("small", [False, True])
def test_what_is_packed_is_not_unpacked(small: bool, server: FakeHub, tmp_path: Path) -> None:
    name = "config.json" if small else FILE
    packed = server.add(gzip.compress(bytes(2**24)), f"{REPO}/{name}")
    server.encoding = "gzip"
    if small:
        server.stated[f"{REPO}/{name}"] = "0" * 40
    with pytest.raises(hub.DownloadError, match=r"127\.0\.0\.1 sends it encoded as 'gzip', although it was asked not"):
        fetch(server, tmp_path, name)
    assert len(server.gets()) == 1 and len(packed) < 2**17 and stored(tmp_path) == 0


def test_a_trickle_ends(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(DATA)
    server.trickle = 0.05
    monkeypatch.setattr(transfer, "_WINDOW", 0.3)
    monkeypatch.setattr(transfer, "_ATTEMPTS", 2)
    with pytest.raises(hub.DownloadError, match=r"only \d+ bytes came in \d s"):
        fetch(server, tmp_path)
    assert server.sent < 1000


def test_a_slow_line_finishes(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(DATA[:30])
    server.trickle = 0.05
    monkeypatch.setattr(transfer, "_WINDOW", 0.3)
    monkeypatch.setattr(transfer, "_SLOWEST", 2.0)
    started = time.monotonic()
    assert fetch(server, tmp_path).read_bytes() == DATA[:30]
    assert time.monotonic() - started > 2 * transfer._WINDOW and len(server.gets()) == 1


def test_a_whole_file_has_a_deadline(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(DATA[:30])
    server.trickle = 0.05
    monkeypatch.setattr(transfer, "_SPARE", 0.3)
    with pytest.raises(hub.DownloadError, match="after 0 s only .* bytes have come"):
        fetch(server, tmp_path)


def test_what_frames_the_content_may_not_trickle_either(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def silent():  # type: ignore[no-untyped-def]
        yield b"x"
        ended.wait()

    monkeypatch.setattr(transfer, "_WINDOW", 0.1)
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        list(transfer._in_time(silent()))
    ended.set()


@pytest.mark.parametrize("wrong", ["bytes 0-9/1024000", "bytes 500000-1023999/2000000", "bytes", "items 1-2/3"])
def test_another_part_than_was_asked_for_is_thrown_away(wrong: str, server: FakeHub, tmp_path: Path) -> None:
    server.add(DATA)
    server.cuts, server.content_range = [500_000], wrong
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.gets() == ["", "bytes=500000-", ""]


def test_the_body_of_a_redirect_is_not_read(server: FakeHub, tmp_path: Path) -> None:
    server.add(DATA)
    server.redirect = server.endless = True
    server.location = f"{server.endpoint}/{NAME}"  # to itself, for ever
    with pytest.raises(hub.DownloadError, match="more than 10 redirects"):
        hub.fetch_url(f"{server.endpoint}/{NAME}", tmp_path)
    assert server.sent < 60_000_000


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_a_redirect_to_no_web_page(location: str, server: FakeHub, tmp_path: Path) -> None:
    server.add(DATA)
    server.redirect, server.location = True, location
    with pytest.raises(hub.DownloadError, match=f"redirects to '{location}', expected http or https"):
        hub.fetch_url(f"{server.endpoint}/{NAME}", tmp_path)


Handler = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], list[httpx2.Request]]:
    """Factory: the real client, whose requests to any host are answered by a function; the requests are kept."""

    def answer_with(handler: Handler) -> list[httpx2.Request]:
        seen: list[httpx2.Request] = []

        def answer(request: httpx2.Request) -> httpx2.Response:
            seen.append(request)
            return handler(request)

        client = httpx2.Client(transport=httpx2.MockTransport(answer))
        for module in (transfer, huggingface_hub.utils._http):
            monkeypatch.setattr(module, "get_session", lambda: client)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(transfer, "_PAUSE", 0)
        return seen

    return answer_with


def the_hub(location: str) -> Handler:
    """A hub that has DATA at a place of its own."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        stated = {
            "X-Linked-Etag": hashlib.sha256(DATA).hexdigest(), "X-Linked-Size": str(len(DATA)), "X-Repo-Commit": "c0",
        }  # fmt: skip
        if "/resolve/" in request.url.path:
            return httpx2.Response(302, headers={"Location": location, **stated})
        return httpx2.Response(200, content=iter([DATA]))  # a stream

    return answer


def test_a_redirect_from_https_to_http(web: Callable[[Handler], list[httpx2.Request]], tmp_path: Path) -> None:
    seen = web(the_hub("http://cdn.example/x"))
    with pytest.raises(hub.DownloadError, match=r"hub\.example redirects from https to http") as caught:
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint="https://hub.example")
    assert {request.url.host for request in seen} == {"hub.example"}
    assert TOKEN not in str(caught.value) and stored(tmp_path) == 0


def test_the_token_goes_to_the_hub_alone(web: Callable[[Handler], list[httpx2.Request]], tmp_path: Path) -> None:
    seen = web(the_hub("https://cdn.example/x"))
    assert hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint="https://hub.example").read_bytes() == DATA
    sent = {request.url.host: request.headers.get("Authorization") for request in seen}
    assert sent == {"hub.example": f"Bearer {TOKEN}", "cdn.example": None}


@pytest.mark.parametrize("fault", ["endless", "gzip", "file", "trickle", "etag", "broken"])
def test_the_token_is_never_shown(
    fault: str, server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server.add(DATA)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(transfer, "_ATTEMPTS", 2)
    if fault == "file":
        server.redirect, server.location = True, "file:///etc/passwd"
    elif fault == "trickle":
        monkeypatch.setattr(transfer, "_WINDOW", 0.2)
        server.trickle = 0.05
    elif fault == "etag":
        server.stated[NAME] = "../x"
    elif fault == "broken":
        server.cuts = [100] * 9
    else:
        server.endless, server.encoding = fault == "endless", fault * (fault == "gzip")
    endpoint = server.endpoint.replace("//", "//me:pass-word@")
    with pytest.raises(hub.DownloadError) as caught:
        hub.fetch(REPO, FILE, cache_dir=tmp_path, endpoint=endpoint)
    shown = f"{caught.value} {caplog.text}"
    assert TOKEN not in shown and "pass-word" not in shown


@pytest.mark.parametrize("wrong", ["../../x", "/tmp/x", "..", ".hidden", "a/b", ""])
def test_a_hub_names_no_place_outside_of_the_cache(wrong: str, server: FakeHub, tmp_path: Path) -> None:
    server.add(DATA)
    server.commit = wrong
    with pytest.raises(hub.DownloadError, match="as the file's commit, expected letters and digits"):
        fetch(server, tmp_path / "cache")
    server.commit, server.stated[NAME] = "c0", wrong or "W/"
    with pytest.raises(hub.DownloadError, match="as the file's ETag, expected letters and digits"):
        fetch(server, tmp_path / "cache")
    assert stored(tmp_path) == 0


@pytest.mark.parametrize(("filename", "revision"), [("../x.pth", None), ("/x.pth", None), ("x.pth", "../../x")])
def test_nor_does_the_caller(filename: str, revision: str | None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leads out of a repository"):
        hub.fetch(REPO, filename, revision=revision, cache_dir=tmp_path, endpoint="http://127.0.0.1:9")


def test_huggingface_hub_finds_what_was_fetched(server: FakeHub, tmp_path: Path) -> None:
    for name, etag in ((FILE, None), ("config.json", "0" * 40)):
        server.add(DATA, f"{REPO}/{name}")
        if etag:
            server.stated[f"{REPO}/{name}"] = etag
        path = fetch(server, tmp_path, name)
        theirs = huggingface_hub.hf_hub_download(REPO, name, cache_dir=tmp_path, local_files_only=True)
        assert Path(theirs) == path and path.read_bytes() == DATA
    [repository] = huggingface_hub.scan_cache_dir(tmp_path).repos
    assert [(r.commit_hash, r.refs, r.nb_files) for r in repository.revisions] == [(server.commit, {"main"}, 2)]
    path.resolve().unlink()  # and a link to nothing is replaced
    assert fetch(server, tmp_path, "config.json").read_bytes() == DATA


def test_a_disk_without_links(server: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError("no links here")

    server.add(DATA)
    monkeypatch.setattr(Path, "symlink_to", no_links)
    path = fetch(server, tmp_path)
    assert not path.is_symlink() and path.read_bytes() == DATA
    assert fetch(server, tmp_path) == path and len(server.gets()) == 1
