"""How many pictures a second does `vankit serve` answer, beside other servers, and does it survive its clients?

    python benchmarks/serving.py throughput --rivals PYTHON [--seconds 20] [--rounds 3]
    python benchmarks/serving.py mixed [--minutes 10]

throughput   1, 8 and 64 connections, each of which asks again as soon as it is answered. In turns: `vankit serve` of an
             exported folder, LitServe with the same network in eager PyTorch and with vankit.Predictor, FastAPI with
             eager PyTorch as a tutorial writes it; and, as the ceiling, `vankit predict` on the same photographs, which
             needs no server. One that does not give eager PyTorch's label, and its score to 1e-3, is not timed. Also:
             from the start to the first answer, and the memory. The client has a process of its own, but takes its
             share of the same cores: how much is in the CSV as client_cpu, and its own ceiling is printed first.
             PYTHON is of an environment that has beside vankit also litserve==0.2.19 and fastapi[standard].
mixed        minutes of good pictures among all that clients may do wrong, see serving_traffic.py: the answers have to
             stay right, and memory, files and threads as they were. The exit status is 1 if anything was not.

Everything is asked at 127.0.0.1. Run this on a machine that does nothing else. Results of throughput:
benchmarks/results/serving.csv, where rows of other CPUs are kept.
"""

import argparse
import base64
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from inference import RESULTS, VANKIT, apart, export, machine, random_weights, rounded, wait_until_quiet, write
from PIL import Image, ImageOps
from serving_mixed import mixed_traffic
from serving_process import ServerProcess, free_port
from serving_traffic import KINDS
from serving_wire import Known, Target, form

from vankit.data.shapes import render_scene

HERE = Path(__file__).parent
DATA = Path(os.environ.get("VANKIT_DATA", HERE.parents[1] / "shared" / "data"))
SIZE = (640, 480)
NAME = "van"
OURS, CEILING = "vankit serve", "vankit predict (no server)"
TOLERANCE = 1e-3  # of scores

Best = tuple[int, float]  # index and score of the best class
Message = tuple[str, bytes]  # content type and body


# the same photographs and the same network for all


def make_photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs of SIZE, of photographs where there are any, else of rendered scenes."""
    folder.mkdir()
    for i, image in enumerate(originals(count)):
        ImageOps.fit(image.convert("RGB"), SIZE).save(folder / f"{i:03}.jpg", quality=90)
    return sorted(folder.iterdir())


def originals(count: int) -> Iterator[Image.Image]:
    archive = DATA / "coco_instances_128.zip"
    if not archive.is_file():
        print(f"there is no {archive}: rendered scenes in place of photographs")
        for i in range(count):
            yield Image.fromarray(render_scene(i, size=SIZE[::-1], objects=12).image)
        return
    with zipfile.ZipFile(archive) as content:
        names = sorted(name for name in content.namelist() if name.endswith(".jpg"))
        for name in names[:count]:
            yield Image.open(io.BytesIO(content.read(name)))


def make_network(folder: Path) -> tuple[str, str]:
    """The weights of van_b0, and the folder that was exported from them."""
    weights, exported = str(folder / "weights.safetensors"), str(folder / NAME)
    apart(random_weights, "van_b0", str(folder))
    apart(export, weights, exported)
    return weights, exported


def eager_answers(weights: str, photographs: Sequence[Path]) -> list[Best]:
    """What eager PyTorch says of each photograph."""
    command = [sys.executable, str(HERE / "serving_rivals.py"), "expected", weights, str(photographs[0].parent)]
    return [(index, score) for index, score in printed_json(command, 60)]


# who is compared


def as_it_is(photograph: bytes) -> Message:
    return "image/jpeg", photograph


def as_form(photograph: bytes) -> Message:
    body, kind = form(photograph)
    return kind, body


def as_json(photograph: bytes) -> Message:
    return "application/json", json.dumps({"image_data": base64.b64encode(photograph).decode()}).encode()


def our_best(answer: Any) -> Best:
    return rival_best(answer["pictures"][0]["labels"][0])


def rival_best(answer: Any) -> Best:
    return answer["index"], answer["score"]


@dataclass(frozen=True)
class Server:
    """A contender that is asked over HTTP.

    Attributes:
        command: that starts it, but for the port, which comes last.
        path: to ask at.
        message: a photograph in the way that it takes.
        best: what its answer says.
    """

    command: Sequence[str]
    path: str
    message: Callable[[bytes], Message]
    best: Callable[[Any], Best] = rival_best


def contenders(weights: str, exported: str, rivals: str | None) -> dict[str, Server]:
    found = {OURS: Server([VANKIT, "serve", exported, "--port"], f"/predict/{NAME}", as_it_is, our_best)}
    if rivals is not None:
        fastapi, litserve = ([rivals, str(HERE / f"serving_{name}.py")] for name in ("rivals", "litserve"))
        found |= {
            "LitServe, vankit.Predictor": Server([*litserve, "vankit", exported], "/predict", as_json),
            "LitServe, eager PyTorch": Server([*litserve, "eager", weights], "/predict", as_json),
            "FastAPI, eager PyTorch": Server([*fastapi, "fastapi", weights], "/predict", as_form),
        }
    return found


def ask(server: Server, photograph: bytes, connection: HTTPConnection) -> tuple[int, bytes]:
    kind, body = server.message(photograph)
    connection.request("POST", server.path, body, {"content-type": kind})
    answer = connection.getresponse()
    return answer.status, answer.read()


def check(server: Server, port: int, photographs: Sequence[bytes], expected: Sequence[Best]) -> None:
    """
    Raises:
        RuntimeError: an answer is another than eager PyTorch's.
    """
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    for photograph, (index, score) in zip(photographs, expected, strict=True):
        status, content = ask(server, photograph, connection)
        found = server.best(json.loads(content)) if status == 200 else content
        if status != 200 or found[0] != index or abs(found[1] - score) > TOLERANCE:
            raise RuntimeError(f"{' '.join(server.command)} answers {status} {found!r}: expected {index}, {score:.4f}")
    connection.close()


# timed


def write_requests(server: Server, photographs: Sequence[bytes], folder: Path) -> Path:
    """A request per photograph as it goes over the wire, for serving_client.py."""
    folder.mkdir()
    for i, photograph in enumerate(photographs):
        kind, body = server.message(photograph)
        head = f"POST {server.path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}"
        (folder / f"{i:03}").write_bytes(head.encode() + b"\r\n\r\n" + body)
    return folder


def printed_json(command: Sequence[str], seconds: float) -> Any:
    """What a process prints that works for so long."""
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=seconds + 120)
    return json.loads(done.stdout)


def load(port: int, requests: Path, connections: int, seconds: float) -> dict[str, Any]:
    client = [sys.executable, str(HERE / "serving_client.py")]
    found = printed_json([*client, str(port), str(requests), str(connections), str(seconds)], seconds)
    statuses = found.pop("statuses")
    return {**found, "errors": sum(count for status, count in statuses.items() if status != "200")}


class Runs:
    """What was measured: for each contender and number of connections a row per round."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
        paths = make_photographs(folder / "photographs", args.photographs)
        weights, self.exported = make_network(folder)
        self.expected = eager_answers(weights, paths)
        print(f"{len(paths)} photographs, {len({index for index, _ in self.expected})} different labels")
        self.photographs = [path.read_bytes() for path in paths]
        self.servers = contenders(weights, self.exported, args.rivals)
        self.requests = {
            name: write_requests(server, self.photographs, folder / f"{i} requests")
            for i, (name, server) in enumerate(self.servers.items())
        }

    def run(self, name: str) -> None:
        """One contender, once."""
        if name == CEILING:
            command = [sys.executable, str(HERE / "serving_rivals.py"), "predict", self.exported]
            command += [str(self.folder / "photographs"), str(self.args.seconds)]
            self.keep(name, 0, printed_json(command, self.args.seconds))
            return
        server, port = self.servers[name], free_port()
        with ServerProcess([*server.command, str(port)], port, self.folder, name) as process:
            start = process.first_answer(lambda connection: ask(server, self.photographs[0], connection)[0])
            check(server, port, self.photographs, self.expected)
            for connections in self.args.connections:
                found = load(port, self.requests[name], connections, self.args.seconds)
                memory = {"peak_mb": process.status("VmHWM"), "own_mb": process.own_memory()}
                self.keep(name, connections, found | memory | {"first_answer_s": start})

    def keep(self, name: str, connections: int, row: dict[str, Any]) -> None:
        self.rows.setdefault((name, connections), []).append(row)
        print(f"{name}, {connections}:", {key: rounded(value) for key, value in row.items()}, flush=True)

    def summary(self) -> list[dict[str, Any]]:
        """A row per contender and number of connections: medians of the rounds."""
        return [self._summed(name, connections, rows) for (name, connections), rows in self.rows.items()]

    def _summed(self, name: str, connections: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rates = [row["requests_per_s"] for row in rows]
        medians = {key: statistics.median(row.get(key) or 0.0 for row in rows) for key in _MEDIANS if key in rows[0]}
        return {
            "contender": name,
            "connections": connections or None,
            "requests_per_s": statistics.median(rates),
            "requests_per_s_low": min(rates),
            "requests_per_s_high": max(rates),
            **dict.fromkeys(_MEDIANS),
            **medians,
            "errors": sum(row.get("errors", 0) for row in rows),
            "of_ceiling": self._ratio(rates, (CEILING, 0)),
            "vankit_serve_over_it": self._ratio(rates, (OURS, connections), turned=True),
            "rounds": len(rows),
        }

    def _ratio(self, rates: Sequence[float], other: tuple[str, int], turned: bool = False) -> float | None:
        """Median of the ratios round by round, for what disturbs a round disturbs all in it."""
        others = [row["requests_per_s"] for row in self.rows.get(other, ())]
        ratios = [b / a if turned else a / b for a, b in zip(rates, others, strict=False) if a and b]
        return statistics.median(ratios) if ratios else None


_MEDIANS = ("p50_ms", "p99_ms", "first_answer_s", "peak_mb", "own_mb", "client_cpu")


def clients_ceiling(requests: Path, seconds: float) -> None:
    """What the client manages with a server that does nothing, and what a request costs it."""
    port = free_port()
    with ServerProcess([sys.executable, __file__, "nothing", str(port)], port, requests.parent, "nothing") as process:
        process.first_answer(lambda connection: ask(Server([], "/", as_it_is), b"", connection)[0])
        found = load(port, requests, 8, seconds)
    cost = 1000 * found["client_cpu"] / found["requests_per_s"]
    print(f"the client alone: {found['requests_per_s']:.0f} requests/s; each takes it {cost:.2f} ms of a core")


def nothing(args: argparse.Namespace) -> None:
    """A server that answers every request without a look at it."""
    import asyncio

    class Protocol(asyncio.Protocol):
        left = 0

        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            if not self.left:  # a head, which comes in one piece here
                head, _, rest = data.lower().partition(b"\r\n\r\n")
                self.left = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(rest)
            else:
                self.left -= len(data)
            if not self.left:
                self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", args.port)
        await asyncio.wait_for(server.serve_forever(), 600)

    asyncio.run(main())


def versions(rivals: str | None) -> dict[str, str | None]:
    """Of what the rivals are made of."""
    names = ("litserve", "fastapi", "uvicorn", "starlette")
    if rivals is None:
        return dict.fromkeys(names)
    script = f"import json, importlib.metadata as m; print(json.dumps({{name: m.version(name) for name in {names}}}))"
    return printed_json([rivals, "-c", script], 10)


def throughput(args: argparse.Namespace) -> None:
    facts = machine(wait_until_quiet(args.patience)) | versions(args.rivals)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VANKIT_CACHE"] = f"{folder}/cache"
        runs = Runs(args, Path(folder))
        clients_ceiling(runs.requests[OURS], min(5.0, args.seconds))
        order, shuffle = [*runs.servers, CEILING], random.Random(0).shuffle
        for _ in range(args.rounds):
            shuffle(order)
            for name in order:
                runs.run(name)
    rows = runs.summary()
    for row in rows:
        print({key: rounded(value) for key, value in row.items() if value is not None})
    write(args.output, rows, facts)


# broken


def mixed(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["VANKIT_CACHE"] = f"{folder}/cache"
        paths = make_photographs(root / "photographs", 12)
        weights, exported = make_network(root)
        answers = eager_answers(weights, paths)
        known = [Known(path.read_bytes(), *best) for path, best in zip(paths, answers, strict=True)]
        token, port = root / "token", free_port()
        token.write_text("of-this-benchmark\n")
        command = [VANKIT, "serve", exported, "--port", str(port), "--token-file", str(token), "--max-body", "2MB"]
        command += ["--timeout", "3", "--queue", "16"]
        target = Target(port, NAME, known, largest=2_000_000, timeout=3.0, queue=16, token="of-this-benchmark")
        report = mixed_traffic(command, target, 60 * args.minutes, root, seed=args.seed, only=args.kinds)
        print(report.text())
        if args.keep:
            Path(args.keep).write_bytes((root / "mixed.err").read_bytes())
        return int(bool(report.faults))


def main() -> int | None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("throughput")
    part.set_defaults(run=throughput)
    part.add_argument("--rivals", metavar="PYTHON", help="that has litserve==0.2.19 and fastapi[standard]")
    part.add_argument("--seconds", type=float, default=20, help="of every measurement")
    part.add_argument("--rounds", type=int, default=3)
    part.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    part.add_argument("--photographs", type=int, default=32)
    part.add_argument("--patience", type=float, default=300, help="seconds to wait for a quiet machine")
    part.add_argument("--output", type=Path, default=RESULTS / "serving.csv")
    part = parts.add_parser("mixed")
    part.set_defaults(run=mixed)
    part.add_argument("--minutes", type=float, default=10)
    part.add_argument("--seed", type=int, default=0)
    part.add_argument("--kinds", nargs="+", choices=KINDS, metavar="KIND", help="of traffic. Default: all")
    part.add_argument("--keep", metavar="FILE", help="to keep the log of the server in")
    part = parts.add_parser("nothing")
    part.set_defaults(run=nothing)
    part.add_argument("port", type=int)
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
