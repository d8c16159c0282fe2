"""`vankit serve` as a process: its start, its end, and what it needs."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from clients import Client

import vankit
from vankit.errors import UserError
from vankit.serving.server import address, listen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vankit.export("van_b0.cifar10", out=tmp_path_factory.mktemp("exported") / "animals").folder


class Running(Client):
    """A service in a process of its own."""

    process: subprocess.Popen
    line: str

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(*words: object, port: int = 0) -> Iterator[Running]:
    command = [sys.executable, "-m", "vankit", "serve", *map(str, words), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, process.stderr.read()
        client = Running(int(found[1]))
        client.process, client.line = process, line
        yield client
    finally:
        process.kill()
        process.communicate()


def test_a_folder_is_served_without_pytorch_and_ends_when_it_is_told(folder: Path, photograph: bytes) -> None:
    with serving(folder) as client:
        assert client.line == f"serving animals at http://127.0.0.1:{client.port} (Ctrl-C ends it)\n"
        found = client.post("/predict/animals", photograph).json["pictures"][0]["labels"]
        assert found[0]["name"] == vankit.Predictor(folder)(photograph).labels[0].name
        client.post("/explain/animals", photograph)
        client.get("/docs")
        if (maps := Path(f"/proc/{client.process.pid}/maps")).exists():
            loaded = maps.read_text()
            assert "libopenvino" in loaded and "libtorch" not in loaded
        assert client.end() == 0
        lines = client.process.stderr.read().splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["/predict/animals", "/explain/animals", "/docs"]


def test_what_was_begun_is_answered_and_nothing_new(folder: Path, photograph: bytes) -> None:
    with serving(folder, "--grace", 10) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=10) as slow:
            head = f"POST /predict/animals HTTP/1.1\r\nHost: x\r\nContent-Length: {len(photograph)}\r\n\r\n"
            slow.sendall(head.encode() + photograph[:100])
            time.sleep(0.3)
            client.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(OSError):
                client.get("/models")
            slow.sendall(photograph[100:])
            answer = b""
            while chunk := slow.recv(65536):
                answer += chunk
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert client.process.wait(10) == 0


@pytest.mark.slow
def test_who_does_not_finish_within_the_grace_is_left(folder: Path) -> None:
    with serving(folder, "--grace", 0.5) as client, socket.create_connection(("127.0.0.1", client.port)) as slow:
        slow.sendall(b"POST /predict/animals HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        time.sleep(0.3)
        start = time.monotonic()
        assert client.end() == 0
        assert time.monotonic() - start < 8
        assert slow.recv(65536).startswith(b"HTTP/1.1 503 ")
        assert "Traceback" not in client.process.stderr.read()


@pytest.mark.slow
def test_ctrl_c(folder: Path) -> None:
    with serving(folder) as client:
        assert client.end(signal.SIGINT) == 130
        assert "Traceback" not in client.process.stderr.read()


@pytest.mark.slow
def test_after_a_kill_the_same_address_serves_again(folder: Path, photograph: bytes) -> None:
    with serving(folder) as client:
        before = sorted(path.name for path in folder.iterdir())
        client.post("/predict/animals", photograph)
        client.end(signal.SIGKILL)
        with serving(folder, port=client.port) as again:
            assert again.post("/predict/animals", photograph).status == 200
        assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.slow
def test_a_token_from_a_file(folder: Path, photograph: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    with serving(folder, "--token-file", tmp_path / "token") as client:
        assert client.post("/predict/animals", photograph).status == 401
        assert client.post("/predict/animals", photograph, authorization="Bearer s3cret").status == 200
        client.end()
        assert "s3cret" not in client.process.stderr.read()


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as found:
        found.listen()
        port = found.getsockname()[1]
        assert address(found) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1 port {port}: .*in use; pass another `port`"):
            listen("127.0.0.1", port)
    with listen("0.0.0.0", 0) as found:
        assert address(found) == f"http://127.0.0.1:{found.getsockname()[1]}"
    with pytest.raises(UserError, match="host is 'no.such.host.invalid', which is no address of this machine"):
        listen("no.such.host.invalid", 0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"workers": 0}, "workers is 0, expected a whole number, 1 or more"),
        ({"workers": 1.5}, "workers is 1.5, expected a whole number"),
        ({"queue": -1}, "queue is -1, expected a whole number, 0 or more"),
        ({"max_body": 0}, "max_body is 0, expected a whole number, 1 or more"),
        ({"timeout": 0}, "timeout is 0, expected 0.1 seconds or more"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"grace": -1}, "grace is -1"),
        ({"port": 70000}, "port is 70000, expected 0 to 65535"),
        ({"token": ""}, "token has other characters"),
        ({"token": "two words"}, "token has other characters"),
        ({"allow_origins": ["https://a.org/"]}, "allow_origin is 'https://a.org/', expected an address without a path"),
        ({"engine": "fast"}, "engine is 'fast'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        vankit.serve("van_b0.cifar10", **{"port": 0, **options})


def test_what_is_missing_is_named() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; import vankit; vankit.serve('van_b0.cifar10', port=0)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'serving needs uvicorn: pip install "vankit[serve]"' in found.stderr.splitlines()[-1]
