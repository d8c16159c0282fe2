"""Fixtures shared by all tests."""

import ctypes
import gc
import gzip
import json
import math
import mmap
import multiprocessing
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # a process a core; read as torch is imported

import numpy as np
import pytest
import torch
from fake_hub import FILE, REPO, serve
from hypothesis import HealthCheck, settings
from torch import Tensor

torch.set_num_threads(1)
settings.register_profile(
    "vankit", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("vankit")

OWNER = REPO.partition("/")[0]
GOLDEN = Path(__file__).parent / "golden"

# official name, MMPretrain name, transformers name, shape
NameRow = tuple[str, str, str, list[int]]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What collecting imports and makes stays, so that searching it for garbage is in vain: a third of its time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow pages of the docs start first, so that no process is left alone with them."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


def pytest_collection_finish() -> None:
    """The garbage collector need not search what is imported by now, and stays: that took a tenth of the time."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled models of the tests are kept apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("VANKIT_CACHE", str(folder))
        patch.setenv("XDG_DATA_HOME", str(folder))  # of the secret that the cache is signed with
        yield


@pytest.fixture(autouse=True)
def signal_stack() -> Iterator[None]:
    """The stack on which signals are handled is still there, or the process would die, without a word, at the next.

    What a fixture of the module held is freed after that, so the fault may lie in the test before.
    """
    yield
    if sys.platform != "linux":
        return
    libc, stack = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(stack))
    page = (stack.start or 0) // mmap.PAGESIZE * mmap.PAGESIZE
    if page and libc.msync(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 1):
        libc.sigaltstack(ctypes.byref(_SignalStack(None, 2, 0)), None)  # none from now on
        pytest.fail("the stack is gone: use `vankit.engines.openvino.openvino_core`, and no core beside it")


class _SignalStack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(scope="session")
def golden_names() -> dict[str, list[NameRow]]:
    """By variant, the public names and the shape of every tensor, in the order of the official files."""
    return json.loads(gzip.decompress((GOLDEN / "names.json.gz").read_bytes()))


@pytest.fixture(scope="session")
def costs() -> dict[str, Any]:
    """By variant, what it costs: seconds to count."""
    from vankit.study.complexity import complexity

    return {f"van_b{i}": complexity(f"van_b{i}") for i in range(7)}


@pytest.fixture(scope="session")
def golden_outputs() -> Callable[[str], dict[str, np.ndarray]]:
    """Factory: what the paper's implementation computes with `golden_state_dict`, see tests/golden/README.md."""

    def load(variant: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{variant}.npz") as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="session")
def golden_state_dict(golden_names: dict[str, list[NameRow]]) -> Callable[[str], dict[str, Tensor]]:
    """Factory: deterministic float32 weights of a variant under their official names; fresh tensors a call."""

    def make(variant: str) -> dict[str, Tensor]:
        return {official: _tensor(official, shape) for official, _, _, shape in golden_names[variant]}

    return make


@pytest.fixture(scope="session")
def public_files(
    golden_state_dict: Callable[[str], dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Made-up official files of van_b0 and van_b2, by their path on the hub."""
    folder = tmp_path_factory.mktemp("public")
    files = {}
    for variant, name in (("van_b0", f"{REPO}/{FILE}"), ("van_b2", f"{OWNER}/VAN-Base-original/van_base_828.pth.tar")):
        files[name] = folder / Path(name).name
        torch.save({"state_dict": golden_state_dict(variant)}, files[name])
    return files


@pytest.fixture
def public_hub(
    public_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Path]]:
    """`public_files`, served as the hub that HF_ENDPOINT names, with an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with serve() as hub:
        for name, path in public_files.items():
            hub.add(path.read_bytes(), name)
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield public_files


@pytest.fixture
def blank_run_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a run's report, whose plots take as long as the training of a test."""
    monkeypatch.setattr("vankit.training.run.write_run_report", lambda out, *_: (out / "report.html").touch())


@pytest.fixture
def files_up_to() -> Callable[[int], AbstractContextManager[None]]:
    """Factory: while it is entered, no file can grow beyond so many bytes, as if the disk were full."""
    resource = pytest.importorskip("resource", reason="no limits to files")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def in_a_child() -> Callable[[Callable[[], Any]], Any]:
    """Factory: what a function returns in a forked child, within a minute."""

    def call(function: Callable[[], Any]) -> Any:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=lambda: theirs.send(function()))
        child.start()
        theirs.close()  # so that its end is seen
        try:
            assert ours.poll(60), "the child hangs"
            return ours.recv()
        finally:
            child.kill()
            child.join()

    return call


@pytest.fixture
def opened_files() -> Iterator[list[str]]:
    """What Python opens during the test, by path."""
    files: list[str] = []
    watching = True

    def note(event: str, args: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(args[0], str | Path):
            files.append(os.fspath(args[0]))

    sys.addaudithook(note)  # which stays, and does nothing any more
    yield files
    watching = False


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`shapes` with two batches to train on."""
    monkeypatch.setattr("vankit.data.folders._SHAPES_LENGTH", {"train": 256, "val": 32})
    monkeypatch.setattr("vankit.data.scenes._SHAPES_LENGTH", {"train": 8, "val": 2})


@pytest.fixture(scope="session")
def dense_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Factory: the checkpoint of an untrained head for a task of `shapes`; made once, not to be changed."""

    @cache
    def make(head: str, task: str) -> Path:
        from vankit.data.scenes import ShapeScenes
        from vankit.heads.build import build_network
        from vankit.models.description import Description
        from vankit.models.weights import write_tensors

        torch.manual_seed(0)
        scenes = ShapeScenes(task)
        description = Description(
            task, head, "van_b0", scenes.classes, things=scenes.things, category_ids=scenes.category_ids,
            short_sides=(64,), long_side=96, crop=64 if task == "segment" else 0, queries=10,
        )  # fmt: skip
        network = build_network(description)
        for name, tensor in network.state_dict().items():
            if name.endswith("running_mean"):
                torch.nn.init.normal_(tensor, 0, 0.1)
            elif name.endswith("running_var"):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
        path = tmp_path_factory.mktemp("dense") / f"{head}-{task}.safetensors"
        write_tensors(network.state_dict(), path, description.to_metadata())
        return path

    return make


@pytest.fixture
def few_proposals(monkeypatch: pytest.MonkeyPatch) -> None:
    """R-CNNs that are built take a tenth of their proposals, and train on an eighth: most of their time.

    Of proposals there are still more than these, so that choosing among them is tested as well.
    """
    from torchvision.models.detection.roi_heads import RoIHeads
    from torchvision.models.detection.rpn import RegionProposalNetwork

    def fewer(network: RegionProposalNetwork, *args: Any, **options: Any) -> None:
        propose(network, *args, **options)
        network._post_nms_top_n = {"training": 200, "testing": 100}

    def sampling_fewer(heads: RoIHeads, *args: Any, **options: Any) -> None:
        choose(heads, *args, **options)
        heads.fg_bg_sampler.batch_size_per_image = 64

    propose, choose = RegionProposalNetwork.__init__, RoIHeads.__init__
    monkeypatch.setattr(RegionProposalNetwork, "__init__", fewer)
    monkeypatch.setattr(RoIHeads, "__init__", sampling_fewer)


@pytest.fixture(scope="session")
def write_clip() -> Callable[..., Path]:
    """Factory: a video of a red square, 20 pixels wide, that moves right by 5 pixels per frame over grey and green.

    The times of its frames are in milliseconds. `options` are those of FFmpeg's writer of the format.
    """
    import av

    def write(
        path: Path, times: Sequence[int] = range(0, 1000, 100), size: tuple[int, int] = (128, 96), codec: str = "h264",
        options: dict[str, str] | None = None, aspect: Fraction | None = None,
    ) -> Path:  # fmt: skip
        with av.open(path, "w", container_options=options or {}) as video:
            stream = video.add_stream(codec, rate=10, width=size[0], height=size[1], pix_fmt="yuv420p")
            stream.codec_context.time_base = Fraction(1, 10 if codec == "mpeg4" else 1000)
            if aspect is not None:
                stream.codec_context.sample_aspect_ratio = aspect
            for i, time in enumerate(times):
                frame = av.VideoFrame.from_ndarray(clip_frame(i, size))
                frame.time_base = stream.codec_context.time_base
                frame.pts = int(time * frame.time_base.denominator // 1000)
                video.mux(stream.encode(frame))
            video.mux(stream.encode())
        return path

    return write


def clip_frame(i: int, size: tuple[int, int]) -> np.ndarray:
    """Frame i of `write_clip`: (H, W, 3)."""
    frame = np.full((size[1], size[0], 3), 40, np.uint8)
    frame[size[1] // 2 :] = 30, 150, 60
    frame[10:30, 5 * i : 5 * i + 20] = 220, 20, 30
    return frame


@pytest.fixture(scope="session")
def shared_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Factory: the folder of an image set of ../shared/data, the files whose names match unpacked; skips without it."""

    def unpack(name: str, pattern: str = "") -> Path:
        archive = Path(os.environ.get("VANKIT_DATA", Path(__file__).parents[2] / "shared" / "data")) / f"{name}.zip"
        if not archive.is_file():
            pytest.skip(f"no {archive}: set VANKIT_DATA to the folder of the image sets")
        folder = tmp_path_factory.mktemp(name)
        with zipfile.ZipFile(archive) as content:
            content.extractall(folder, [each for each in content.namelist() if re.search(pattern, each)])
        return folder / name

    return unpack


@pytest.fixture
def cases() -> Callable[[str, Path], None]:
    """Factory: inputs of one kind that users reported, by ../shared/cases; skips without it."""
    build = Path(__file__).parents[2] / "shared" / "cases" / "build.py"
    if not build.is_file():
        pytest.skip(f"no {build}")
    return lambda kind, folder: subprocess.run([sys.executable, build, kind, folder], check=True)  # type: ignore[return-value]


def _tensor(name: str, shape: list[int]) -> Tensor:
    """Values drawn from a generator seeded by the CRC-32 of the official name, scaled to keep activations near 1."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if name.endswith("running_var") or (name.endswith("weight") and "norm" in name):
        values = rng.uniform(0.5, 1.5, shape)
    elif ".layer_scale_" in name:
        values = rng.uniform(0.01, 0.04, shape)
    elif name.endswith(("running_mean", "bias")):
        values = rng.normal(0.0, 0.1, shape)
    else:
        values = rng.normal(0.0, math.sqrt(1 / math.prod(shape[1:])), shape)
    return torch.from_numpy(values.astype(np.float32))
