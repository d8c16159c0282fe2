"""Predictors in threads, forked and spawned processes, pools and event loops: the same answers, and no waiting."""

import asyncio
import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vankit
from vankit.data.preprocessing import Preprocessing
from vankit.deploy.folder import Exported, read_exported
from vankit.deploy.opening import Network, open_network
from vankit.engines.openvino import _THREADS
from vankit.errors import UserError
from vankit.models.description import Description

PICTURES = [np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8) for i in range(6)]
PREPROCESSING = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, 1.0, "bilinear")


class Means(torch.nn.Module):
    """Logits of three classes: how much of each colour there is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * self.scale


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(Description(classes=["red", "green", "blue"], preprocessing=PREPROCESSING), "means", Means().eval())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported folder."""
    import openvino
    from openvino import opset13

    path = tmp_path_factory.mktemp("exported")
    description = Description(classes=["red", "green", "blue"], preprocessing=PREPROCESSING)
    exported = Exported(path, "openvino", "float32", False, description)
    x = opset13.parameter(openvino.PartialShape([1, 3, 8, 8]), np.float32)
    openvino.save_model(openvino.Model([opset13.reduce_mean(x, [2, 3])], [x]), exported.path)
    exported.write_description()
    return path


@pytest.fixture(
    scope="module", params=["openvino", pytest.param("onnxruntime", marks=pytest.mark.slow), "torch", "folder"]
)
def used(request: pytest.FixtureRequest, network: Network, folder: Path) -> vankit.Predictor:
    """A predictor that has answered."""
    name = request.param
    predictor = vankit.Predictor(folder) if name == "folder" else vankit.Predictor(network, engine=name)
    predictor(PICTURES)
    predictor(PICTURES[0])
    return predictor


def close(found: list[vankit.Prediction], expected: list[vankit.Prediction]) -> None:
    assert [row.error for row in found] == [None] * len(expected) == [row.error for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert [label.name for label in row.labels] == [label.name for label in other.labels]
        assert [label.score for label in row.labels] == pytest.approx([label.score for label in other.labels], abs=1e-5)


def refusal(predictor: vankit.Predictor) -> Exception | None:
    try:
        predictor(PICTURES)
    except UserError as error:
        return error
    return None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child(used: vankit.Predictor, in_a_child: Callable[[Callable[[], Any]], Any]) -> None:
    expected = used(PICTURES)
    if used.engine.name == "openvino":  # here other tests have freed networks; whole processes are tested below
        _THREADS.leave()
        with pytest.raises(UserError, match=r"would hang in this forked process.*get_context\('spawn'\)"):
            raise in_a_child(lambda: refusal(used))
    else:
        many, one = in_a_child(lambda: (used(PICTURES), used(PICTURES[0])))
        close(many, expected)
        close([one], expected[:1])
    close(used(PICTURES), expected)  # and the parent goes on


def test_a_pickle_and_a_copy(used: vankit.Predictor) -> None:
    expected = used(PICTURES)
    data = pickle.dumps(used)
    assert len(data) < 10_000  # no engine
    for other in (pickle.loads(data), copy.deepcopy(used)):
        assert other.description == used.description
        close(other(PICTURES), expected)


def test_threads_and_event_loops(used: vankit.Predictor) -> None:
    expected = used(PICTURES)
    with ThreadPoolExecutor(6) as pool:
        close(list(pool.map(used, PICTURES)), expected)
        for found in pool.map(used, [PICTURES] * 3):
            close(found, expected)

    async def serve() -> list[vankit.Prediction]:
        return await asyncio.gather(*(asyncio.to_thread(used, picture) for picture in PICTURES))

    close(asyncio.run(serve()), expected)


def test_the_first_calls_at_once_make_one_engine(network: Network) -> None:
    fresh = vankit.Predictor(network, engine="torch")
    with ThreadPoolExecutor(6) as pool:
        assert len({id(engine) for engine in pool.map(lambda _: fresh.engine, range(6))}) == 1


def test_a_pickle_names_the_exported_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = shutil.copytree(folder, tmp_path / "own")
    monkeypatch.chdir(tmp_path)
    pickles = [pickle.dumps(each) for each in (vankit.Predictor("own"), open_network("own"), read_exported("own"))]
    monkeypatch.chdir(folder)
    predictor, network, exported = map(pickle.loads, pickles)
    for other in (predictor, vankit.Predictor(network)):
        close(other(PICTURES), vankit.Predictor(folder)(PICTURES))
    assert exported == read_exported(own)
    (own / "model.bin").write_bytes(b"changed since")
    with pytest.raises(vankit.UserError, match=r"model\.bin is damaged or was changed"):
        pickle.loads(pickles[0])(PICTURES)


def test_what_an_exported_folder_needs_no_pytorch_for(folder: Path) -> None:
    data = pickle.dumps(vankit.Predictor(folder))
    code = f"import pickle, sys; pickle.loads({data!r}); print([n for n in ('torch', 'timm') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_network_that_was_opened(network: Network) -> None:
    other = pickle.loads(pickle.dumps(network))
    assert other.description == network.description and torch.equal(other.module.scale, network.module.scale)


def test_a_dense_predictor(
    dense_checkpoint: Callable[[str, str], Path], in_a_child: Callable[[Callable[[], Any]], Any]
) -> None:
    predictor = vankit.DensePredictor(dense_checkpoint("semantic_fpn", "segment"), engine="torch")
    expected = predictor(PICTURES[0]).to_coco(0, predictor.category_ids)
    assert in_a_child(lambda: predictor(PICTURES[0]).to_coco(0, predictor.category_ids)) == expected
    other = pickle.loads(pickle.dumps(predictor))
    assert other(PICTURES[0]).to_coco(0, other.category_ids) == expected
    assert next(other.network.parameters()).device == next(predictor.network.parameters()).device


SCRIPT = """
import multiprocessing, subprocess, sys
import numpy as np
import vankit

PICTURES = [np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8) for i in range(3)]

def answers(predictors):
    found = []
    for each in predictors:
        if isinstance(each, vankit.Predictor):
            rows = [*each(PICTURES), each(PICTURES[0])]
            found += [[label.name for label in row.labels] for row in rows]
            assert not any(row.error for row in rows), rows
        else:
            found += [each(picture).to_coco(0, each.category_ids) for picture in PICTURES]
    return found

def keep(given):
    global predictors
    predictors = given

def in_pool(_):
    return answers(predictors)

def main():
    import joblib, torch
    torch.set_num_threads(2)  # OpenMP's threads, too, are lost to a forked child
    classifiers = [vankit.Predictor("van_b0.cifar10", engine=e) for e in ("torch", "openvino", "onnxruntime")]
    export = [sys.executable, "-m", "vankit", "export", "van_b0.cifar10", "--output", "exported"]
    subprocess.run(export, stdout=subprocess.DEVNULL, check=True)
    given = [*classifiers, vankit.Predictor("exported")]
    given += [vankit.DensePredictor(sys.argv[1], engine=e) for e in ("torch", "auto")]
    fresh = vankit.Predictor("van_b0.cifar10", engine="torch")
    expected = answers(given)
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(1, keep, (given,)) as pool:
            assert pool.map_async(in_pool, [0]).get(240) == [expected], method
        print(method, "ok", flush=True)
    with multiprocessing.get_context("fork").Pool(1, keep, ([fresh],)) as pool:
        assert pool.map_async(in_pool, [0]).get(120) == [expected[:4]]
    rows = joblib.Parallel(n_jobs=2, timeout=240)(joblib.delayed(given[3])(picture) for picture in PICTURES)
    assert [[label.name for label in row.labels] for row in rows] == answers(given[3:4])[:3]
    print("joblib ok", flush=True)
    assert answers(given) == expected  # the parent goes on

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
@pytest.mark.export
def test_pools_of_every_kind(dense_checkpoint: Callable[[str, str], Path], tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    command = [sys.executable, "script.py", str(dense_checkpoint("semantic_fpn", "segment"))]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=600, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split("\n") == ["fork ok", "spawn ok", "joblib ok", ""]
