"""The service on a local cluster of Ray: two replicas, of which one dies under load, and a full queue."""

import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients import Answer, Client, encoded

import vankit
from vankit.errors import MissingPackageError, UserError
from vankit.serving import ray as cluster

MODEL = "van_b0.cifar10"
PREDICT = "/predict/animals"
TOKEN = "c0ffee-and-more"
APPLICATION = f"vankit-{os.getpid()}"  # is in the titles of its processes


@pytest.fixture(scope="module")
def serve() -> Iterator[Any]:
    """Ray Serve on a cluster of this machine, of three cores that need not be there."""
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        stack.callback(ray.shutdown)
        ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        stack.callback(serve.shutdown)
        serve.start(http_options={"port": free_port(), "request_timeout_s": 60})
        yield serve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vankit.export(MODEL, out=tmp_path_factory.mktemp("ray") / "animals").folder


@pytest.fixture(scope="module")
def client(serve: Any, folder: Path) -> Client:
    """Of two replicas."""
    serve.run(cluster.application(f"animals={folder}"), name=APPLICATION)
    return Client(port_of(serve))


def port_of(serve: Any) -> int:
    return serve.context._get_global_client().http_config.port


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def replicas() -> set[int]:
    """Processes of the application."""
    title = f"ray::ServeReplica:{APPLICATION}:vankit".encode()
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(title):
                found.add(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


def running(serve: Any) -> int:
    return serve.status().applications[APPLICATION].deployments["vankit"].replica_states.get("RUNNING", 0)


@pytest.mark.slow
def test_the_whole_service_is_behind_the_proxy(client: Client, folder: Path, photograph: bytes) -> None:
    answer = client.post(PREDICT, photograph, content_type="image/png", x_request_id="mine")
    (row,) = answer.json["pictures"]
    (expected,) = vankit.Predictor(folder)([photograph])
    assert [label["name"] for label in row["labels"]] == [label.name for label in expected.labels]
    assert [label["score"] for label in row["labels"]] == pytest.approx(
        [label.score for label in expected.labels], abs=1e-5
    )
    assert answer.headers.get_all("x-request-id") == ["mine"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/openapi.json", "application/json")):
        found = client.get(path)
        assert found.status == 200 and found.headers["content-type"].startswith(kind)
    assert client.post(PREDICT, bytes(20_000_001), content_type="image/png").status == 413
    assert client.post(PREDICT, b"no picture", content_type="image/png").status == 422


@pytest.mark.slow
def test_what_one_replica_cannot_do_for_all_is_refused(client: Client) -> None:
    load = client.post("/v2/repository/models/animals/load")
    assert load.status == 501 and "deploy the application again" in load.json["error"]
    figures = client.get("/metrics")
    assert figures.status == 501 and "metrics" in figures.json["error"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to find the replica")
def test_a_killed_replica_costs_no_request_that_is_not_answered(client: Client, serve: Any, photograph: bytes) -> None:
    right = client.post(PREDICT, photograph, content_type="image/png").content
    over, answers, slowest = threading.Event(), Counter[int](), [0.0]

    def ask() -> None:
        while not over.is_set():
            start = time.monotonic()
            answer = client.post(PREDICT, photograph, content_type="image/png")
            slowest[0] = max(slowest[0], time.monotonic() - start)
            answers[answer.status] += 1
            assert answer.content == right if answer.status == 200 else answer.status >= 500 or answer.status == 429

    with ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(ask) for _ in range(8)]
        try:
            time.sleep(1)
            before = replicas()
            lost = min(before)
            os.kill(lost, signal.SIGKILL)
            time.sleep(2)
        finally:
            over.set()
    for each in asking:
        each.result()  # an answer that is wrong, or a connection that broke
    assert len(before) == 2 and answers[200] > 20 and slowest[0] < 20
    assert answers.total() - answers[200] <= 8 + 8  # those that it had, and such as were on their way to it
    end = time.monotonic() + 60
    while running(serve) < 2 or len(replicas() - {lost}) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert {client.post(PREDICT, photograph, content_type="image/png").content for _ in range(20)} == {right}


@pytest.mark.slow
def test_a_full_queue_is_refused_and_a_prefix_and_a_token_work(serve: Any, folder: Path) -> None:
    name = f"{APPLICATION}-small"
    app = cluster.application([f"animals={folder}"], replicas=1, queue=1, token=TOKEN)
    serve.run(app, name=name, route_prefix="/small")
    client = Client(port_of(serve))
    assert client.get("/small/").status == client.get("/small/style.css").status == 200
    assert client.get("/small/models").status == 401
    client.headers["authorization"] = f"Bearer {TOKEN}"
    assert client.get("/small/models").json["models"][0]["name"] == "animals"
    large = encoded(np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8), "JPEG")

    def ask(_: int) -> Answer:
        return client.post(f"/small{PREDICT}", large, content_type="image/jpeg")

    start = time.monotonic()
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(ask, range(24)))
    assert time.monotonic() - start < 20
    assert {answer.status for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status == 429)
    serve.delete(name)


def test_a_number_of_replicas_or_bounds() -> None:
    assert cluster._bounds(3) == (3, 3)
    assert cluster._bounds((0, 4)) == cluster._bounds([0, 4]) == (0, 4)
    for wrong in (0, -1, True, (2, 1), (0, 0), (1, 2, 3), "12", (1.0, 2)):
        with pytest.raises(UserError, match="replicas is .*, expected a number, 1 or more, or the fewest and the most"):
            cluster._bounds(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 0}, "replicas is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"queue": -1}, "queue is -1"),
        ({"token": "with space"}, "token has other characters"),
        ({"engine": "steam"}, "engine"),
        ({"models": []}, "there is no model to serve"),
        ({"models": ["a=x", "a=y"]}, "would both be called a"),
    ],
)
def test_mistakes_are_told_before_a_cluster_is_asked(options: dict[str, Any], message: str) -> None:
    if "models" in options:
        pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)
    with pytest.raises(UserError, match=message):
        cluster.application(**{"models": MODEL, **options})


def test_the_deployment_that_ray_gets() -> None:
    pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)
    fixed = cluster.application(MODEL, workers=2, gpus=0.5, queue=10, grace=3)._bound_deployment
    assert (fixed.name, fixed.num_replicas, fixed.max_ongoing_requests, fixed.max_queued_requests) == (
        "vankit",
        2,
        12,
        10,
    )
    assert fixed.ray_actor_options == {"num_cpus": 2, "num_gpus": 0.5}
    adapted = cluster.application(MODEL, replicas=(1, 4), workers=2)._bound_deployment._deployment_config
    assert adapted.autoscaling_config.max_replicas == 4
    assert adapted.autoscaling_config.target_ongoing_requests == 4


def test_a_configuration_file_builds_it() -> None:
    pytest.importorskip("ray.serve", reason="needs ray[serve]", exc_type=ImportError)
    assert cluster.build({"models": [MODEL], "replicas": [1, 3]})._bound_deployment.name == "vankit"
    with pytest.raises(UserError, match="a token cannot be one of them: call vankit.serving.ray.application"):
        cluster.build({"models": [MODEL], "token": TOKEN})


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r'serving on Ray needs ray: pip install "vankit\[ray-serve\]"'):
        cluster.application(MODEL)
