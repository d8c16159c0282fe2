"""A service among all that clients may do wrong, as benchmarks/serving.py has it for longer: its answers stay right."""

import io
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vankit
from vankit.data.shapes import render_scene

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SECONDS = 12
TOKEN = "of-these-tests"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks at the process in /proc"),
]


@pytest.fixture(scope="module")
def traffic() -> Iterator[Any]:
    """The module that sends it, which a folder of scripts is searched for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import serving_mixed

        yield serving_mixed


@pytest.fixture(scope="module")
def target(traffic: Any) -> Any:
    """A service of van_b0.cifar10 that is not there yet."""
    from serving_wire import Known, Target

    predictor, known = vankit.Predictor("van_b0.cifar10"), []
    for i in range(6):
        data = io.BytesIO()
        Image.fromarray(render_scene(i, size=(240, 320), objects=6).image).save(data, "JPEG", quality=95)
        best = predictor(data.getvalue()).labels[0]
        known.append(Known(data.getvalue(), best.index, best.score))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    side = predictor.preprocessing.input_size[-1]
    return Target(port, "animals", known, largest=2_000_000, timeout=2.0, queue=16, token=TOKEN, side=side)


def test_the_service_stands_what_clients_do_wrong(traffic: Any, target: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    options = {
        "port": target.port, "token-file": tmp_path / "token", "max-body": target.largest, "timeout": target.timeout,
        "queue": target.queue, "workers": 2,
    }  # fmt: skip
    command = [sys.executable, "-m", "vankit", "serve", "animals=van_b0.cifar10"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    report = traffic.mixed_traffic(command, target, SECONDS, tmp_path, check_memory=False)
    print(report.text())
    answered = {name for name, status in report.tally.counts if status == 200}
    assert report.faults == {}
    assert {name for name in traffic.KINDS if name.startswith("good ")} <= answered
