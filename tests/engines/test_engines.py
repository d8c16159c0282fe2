"""Engines against the eager network, and a cache that is never trusted."""

import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vankit
from vankit.engines import choose, convert
from vankit.engines.base import Engine, check_options
from vankit.engines.cache import _sign, cache_folder, user_secret
from vankit.engines.choose import engine_for
from vankit.engines.convert import OPSETS, UnsupportedNetworkError, to_onnx, to_openvino, whole_to_onnx
from vankit.engines.onnxruntime import OnnxRuntimeEngine, without_class_maps
from vankit.engines.openvino import OpenVinoEngine, openvino_core
from vankit.engines.torch import TorchEngine
from vankit.errors import UserError

SIZE = (3, 64, 64)
ENGINES = ["torch", "openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small(0)


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = vankit.VAN(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=10).eval()
    nn.init.normal_(network.head.fc.weight)  # logits of some size
    return network


def tiny(seed: int) -> nn.Module:
    """What is quick to export, where any network will do."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((5, *SIZE), dtype=np.float32)


@pytest.fixture(scope="module")
def expected(network: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(images)).numpy()


@pytest.fixture(scope="module")
def ready(network: nn.Module) -> Callable[[str], Engine]:
    """Factory: a float32 engine by name, made once."""
    return cache(lambda name: engine_for(network, SIZE, name))


@pytest.fixture(scope="module")
def model_of() -> Callable[[str], Any]:
    """Factory: a network as the engine's own kind of model, made once."""
    return cache(lambda name: {"openvino": to_openvino, "onnxruntime": to_onnx}[name](tiny(0), SIZE))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("VANKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def count_exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: calls.append(name) or function(*args)

    for name in ("to_openvino", "to_onnx"):
        monkeypatch.setattr(convert, name, counted(name, getattr(convert, name)))
    return calls


@pytest.mark.parametrize("name", ENGINES)
def test_float32_agrees_with_eager(
    name: str, ready: Callable[[str], Engine], images: np.ndarray, expected: np.ndarray
) -> None:
    engine = ready(name)
    assert (engine.name, engine.precision) == (name, "float32")
    for found in (engine(images), engine(images[:1]), engine.worker()(images), engine.outputs(images[:1])[0]):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-4)
        assert (found.argmax(1) == expected[: len(found)].argmax(1)).all()
    assert engine(images[:0]).shape == engine.worker()(images[:0]).shape == (0, 10)


@pytest.mark.parametrize("name", ENGINES)
def test_workers_at_once(name: str, ready: Callable[[str], Engine], images: np.ndarray, expected: np.ndarray) -> None:
    engine = ready(name)
    found: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        run = engine.worker()
        for _ in range(3):
            found[i] = run(images[i : i + 1])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.stack([found[i] for i in range(5)]), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_bf16_is_close_and_not_float32(name: str, network: nn.Module, images: np.ndarray, expected: np.ndarray) -> None:
    if name == "openvino" and "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    found = engine_for(network, SIZE, name, "bf16")(images)
    difference = np.abs(found - expected).max()
    assert 1e-3 < difference < 0.05 * np.abs(expected).max() + 0.1


def test_auto_is_openvino_in_float32_on_cpus() -> None:
    engine = engine_for(tiny(0), SIZE, device="cpu")
    assert isinstance(engine, OpenVinoEngine)
    assert engine.precision == "float32"


def test_auto_is_torch_for_a_network_that_cannot_be_exported(
    images: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    class Awkward(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([image.mean((1, 2)) if image.sum().item() > 0 else image.amax((1, 2)) for image in x])

    engine = engine_for(Awkward(), SIZE)
    assert isinstance(engine, TorchEngine)
    assert "torch.export cannot take the network" in caplog.text
    means = torch.from_numpy(images)
    np.testing.assert_allclose(engine(images), Awkward()(means).numpy(), atol=1e-6)
    with pytest.raises(UnsupportedNetworkError):
        engine_for(Awkward(), SIZE, "openvino")


def test_onnx_runtime_runs_without_the_package_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert without_class_maps(b"any") == b"any"


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_dynamic_sizes_and_several_outputs(name: str) -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x.mean(1), x.relu()]

    engine = engine_for(Two(), SIZE, name, dynamic=True)
    for shape in [(1, 3, 40, 50), (2, 3, 64, 33)]:
        x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32)
        mean, relu = engine.outputs(x)
        np.testing.assert_allclose(mean, x.mean(1), atol=1e-6)
        np.testing.assert_array_equal(relu, x.clip(0))


@pytest.mark.slow
def test_the_opsets_that_are_offered() -> None:
    import onnx

    network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = np.random.default_rng(0).standard_normal((1, *SIZE), np.float32)
    for opset in (OPSETS[0], OPSETS[-1]):
        content = to_onnx(network, SIZE, opset=opset)
        assert {each.version for each in onnx.load_from_string(content).opset_import} == {opset}
        with torch.inference_mode():
            expected = network(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(OnnxRuntimeEngine(lambda found=content: found, None)(x), expected, atol=1e-5)
    for opset in (OPSETS[0] - 1, OPSETS[-1] + 1):
        with pytest.raises(UnsupportedNetworkError, match=f"its operators are not in opset {opset}, only in 18$"):
            to_onnx(network, SIZE, opset=opset)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_second_start_does_not_export(
    name: str, images: np.ndarray, count_exports: list[str], own_cache: Path
) -> None:
    network = tiny(0)
    first = engine_for(network, SIZE, name, cached=True)(images[:1])
    assert len(count_exports) == 1
    again = engine_for(network, SIZE, name, cached=True)
    np.testing.assert_array_equal(first, again(images[:1]))
    np.testing.assert_allclose(first, again(images)[:1], atol=1e-5)  # on more streams, which it was not compiled for
    assert len(count_exports) == 1
    assert len(list(own_cache.iterdir())) == {"openvino": 3, "onnxruntime": 1}[name]


def test_no_pytorch_is_asked_for_a_gpu_where_there_is_no_sign_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(1) or True)
    assert choose.on_torch("auto", "auto") and asked == [1]  # it is imported here, and knows
    monkeypatch.setattr(choose, "sys", SimpleNamespace(platform="linux", modules={}))
    monkeypatch.setattr(choose, "_DEVICES", ("nowhere*",))
    if not Path("/proc/driver/nvidia").exists():
        assert not choose.on_torch("auto", "auto") and asked == [1]
    monkeypatch.setattr(choose, "_DEVICES", ("nul*",))
    assert choose.on_torch("auto", "auto") and asked == [1, 1]
    assert not choose.on_torch("auto", "cpu") and not choose.on_torch("openvino", "auto")
    assert choose.on_torch("torch", "cpu") and choose.on_torch("auto", "cuda:0") and asked == [1, 1]


def test_what_is_cached_depends_on_weights_and_size(images: np.ndarray, count_exports: list[str]) -> None:
    network = tiny(0)
    engine_for(network, SIZE, "openvino", cached=True)(images[:1])
    for changed, size in [(tiny(1), SIZE), (network, (3, 32, 64))]:
        before = len(count_exports)
        x = np.zeros((1, *size), np.float32)
        found = engine_for(changed, size, "openvino", cached=True)(x)
        assert len(count_exports) == before + 1
        with torch.no_grad():
            np.testing.assert_allclose(found, changed(torch.from_numpy(x)).numpy(), atol=1e-4)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:1000], "empty": b"", "flipped": content}[how])


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("how", ["cut", "empty", "flipped"])
def test_a_damaged_cache_is_rebuilt(
    name: str,
    how: str,
    model_of: Callable[[str], Any],
    images: np.ndarray,
    own_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = model_of(name)
    build = {"openvino": OpenVinoEngine, "onnxruntime": OnnxRuntimeEngine}[name]
    first = build(lambda: model, b"key")(images[:1])
    (kept,) = own_cache.iterdir()
    damage(kept, how)
    np.testing.assert_allclose(build(lambda: model, b"key")(images[:1]), first, atol=1e-5)
    assert "is damaged and will be rebuilt" in caplog.text
    caplog.clear()
    np.testing.assert_allclose(build(lambda: pytest.fail("built again"), b"key")(images[:1]), first, atol=1e-5)
    assert not caplog.text


def test_a_whole_file_that_is_no_model_is_rebuilt(
    model_of: Callable[[str], Any], images: np.ndarray, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of("openvino")
    first = OpenVinoEngine(lambda: model, b"key")(images[:1])
    (kept,) = own_cache.iterdir()
    signature = _sign(user_secret(), kept.name.encode(), b"no model")
    kept.write_bytes(signature + b"no model")
    np.testing.assert_allclose(OpenVinoEngine(lambda: model, b"key")(images[:1]), first, atol=1e-5)
    assert "cannot be used and will be rebuilt" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be made read-only this way")
def test_a_cache_that_cannot_be_written(
    model_of: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VANKIT_CACHE", str(tmp_path / "file"))
    engine = OpenVinoEngine(lambda: model_of("openvino"), b"key")
    assert engine(np.zeros((1, *SIZE), np.float32)).shape == (1, 10)
    assert "cannot keep the compiled model" in caplog.text


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VANKIT_CACHE")
    assert cache_folder().name == "vankit"


@pytest.mark.parametrize(("engine", "precision"), [("tensorrt", "auto"), ("auto", "fp8")])
def test_unknown_options(engine: str, precision: str) -> None:
    with pytest.raises(UserError, match=r"is '(tensorrt|fp8)', expected one of auto, "):
        check_options(engine, precision)
    with pytest.raises(UserError, match="expected one of"):
        vankit.Predictor("van_b0.cifar10", engine=engine, precision=precision)


def test_options_that_do_not_go_together(network: nn.Module) -> None:
    with pytest.raises(UserError, match="vankit export MODEL --int8"):
        engine_for(network, SIZE, precision="int8")
    with pytest.raises(UserError, match="ONNX Runtime has no bf16"):
        engine_for(network, SIZE, "onnxruntime", "bf16")
    with pytest.raises(UserError, match="runs on the CPU and device is 'cuda'"):
        engine_for(network, SIZE, "openvino", device="cuda")


@pytest.mark.gpu
def test_cuda_is_compiled_torch(network: nn.Module, images: np.ndarray, expected: np.ndarray) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    engine: Engine = engine_for(network, SIZE)
    assert isinstance(engine, TorchEngine)
    np.testing.assert_allclose(engine(images), expected, atol=1e-4)


def test_a_network_that_does_not_compile_runs_uncompiled(
    network: nn.Module, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(images: torch.Tensor) -> torch.Tensor:
        raise torch._dynamo.exc.TorchDynamoException("no Triton here\nlong advice")

    engine = TorchEngine(network, "cpu")
    expected = engine(images)
    monkeypatch.setattr(engine, "_network", compiled)
    for _ in range(2):
        np.testing.assert_array_equal(engine(images), expected)
    assert [record.message for record in caplog.records] == ["running uncompiled: no Triton here"]


class Smaller(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = torch._shape_as_tensor(x)[2:] * 37 // 100
        return nn.functional.interpolate(x, (size[0], size[1]), mode="bilinear", antialias=True)  # type: ignore[arg-type]


def test_antialiasing_in_onnx_is_pytorchs() -> None:
    import onnxruntime

    content = whole_to_onnx(Smaller(), {"small": (1, 3, None, None)}, torch.rand(1, 3, 70, 100))
    session = onnxruntime.InferenceSession(content)
    for height, width in ((100, 130), (70, 100), (333, 47)):
        x = torch.rand(1, 3, height, width)
        np.testing.assert_allclose(session.run(None, {"image": x.numpy()})[0], Smaller()(x).numpy(), atol=1e-4)


@pytest.mark.parametrize("name", ["openvino", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_an_engine_is_freed_with_its_last_user(name: str) -> None:
    """Not when garbage is collected, which may be much later: it has threads, and a copy of the weights."""
    predictor = vankit.Predictor("van_b0.cifar10", engine=name)
    run = predictor.engine.worker()
    x = np.zeros((1, 3, 64, 64), np.float32)
    assert predictor.engine(x).shape == run(x).shape == (1, 10)
    freed = weakref.ref(predictor.engine)
    gc.collect()
    gc.disable()
    try:
        del predictor, run
        assert freed() is None
    finally:
        gc.enable()
