"""A classifier as a page without a server: its files, its arithmetic in node, and the page in a real browser."""

import base64
import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import browser as browsers
import numpy as np
import PIL
import pytest
import timm
import torch
from browser import Browser, start_browser
from PIL import Image

import vankit
from vankit import web
from vankit.data.preprocessing import INTERPOLATIONS, Preprocessing
from vankit.deploy.folder import Exported, Format
from vankit.deploy.web import BUILDS, INTEGRITY, VERSION, find_runtime, integrity_of, policy
from vankit.errors import MissingFileError, UserError
from vankit.tasks.multilabel import sigmoid

CLASSES = ["ant", "bee", "cat"]
PUBLIC = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"

NEEDS_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="no node")
NEEDS_PILLOW_13 = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13, reason="older Pillow resizes tall pictures otherwise"
)


def small() -> vankit.VAN:
    torch.manual_seed(0)
    network = vankit.VAN(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=3).eval()
    torch.nn.init.normal_(network.head.fc.weight)
    half = (0.5, 0.5, 0.5)
    network.pretrained_cfg = {
        "input_size": (3, 64, 64), "crop_pct": 0.9, "interpolation": "bilinear", "mean": half, "std": half,
    }  # fmt: skip
    return network


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site that loads its runtime from the public address; not to be changed."""
    out = tmp_path_factory.mktemp("public") / "site"
    return vankit.export(small(), out=out, format="web", classes=CLASSES).folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder like npm's, with other content."""
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    for name in INTEGRITY:
        (folder / "dist" / name).write_text(name)
    (folder / "package.json").write_text('{"name": "onnxruntime-web", "version": "1.30.1"}')
    return folder


def test_a_site_is_a_page_and_a_network(public: Path) -> None:
    site = json.loads((public / "site.json").read_text())
    assert site | {"name": "VAN", "classes": CLASSES, "multi_label": False, "thresholds": [], "explains": True} == site
    assert site["preprocessing"] == json.loads((public / "preprocessing.json").read_text())
    assert site["model"] == {"file": "model.onnx", "integrity": integrity_of(public / "model.onnx")}
    assert site["runtime"]["version"] == VERSION and site["runtime"]["base"] == PUBLIC
    assert {each["file"]: each["integrity"] for name in BUILDS for each in site["runtime"][name]} == INTEGRITY
    assert not set(INTEGRITY) & {path.name for path in public.iterdir()}
    assert (public / "backend.js").read_bytes() == web.asset("browser.js")
    assert not (public / "server.js").exists() and not (public / "browser.js").exists()
    everything = "".join(path.read_text() for path in public.iterdir() if path.suffix in (".json", ".md", ".html"))
    assert str(public.parent) not in everything  # for all to read


def test_vankit_reads_a_site(public: Path) -> None:
    predictor = vankit.Predictor(public)
    assert {label.name for label in predictor(np.zeros((9, 9, 3), np.uint8)).labels} == set(CLASSES)
    assert predictor.class_maps(np.zeros((3, 64, 64), np.float32))[1].shape == (3, 2, 2)


def test_what_the_page_loads_is_in_the_site(public: Path) -> None:
    loaded = {"index.html", "site.json", "worker.js"}
    for file in public.glob("*.js"):
        loaded |= set(re.findall(r'from "\./([^"]+)"', file.read_text()))
    page = (public / "index.html").read_text()
    loaded |= set(re.findall(r'(?:src|href)="\./([^"]+)"', page))
    assert {name for name in loaded if not (public / name).is_file()} == set()
    assert page.count(policy(find_runtime(None))) == 1
    # what the policy refuses
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]*src=)|https?://", page.replace(PUBLIC, ""))


def test_a_site_with_its_runtime_takes_the_place_of_another(public: Path, tmp_path: Path, package: Path) -> None:
    shutil.copytree(public, tmp_path / "site")
    folder = vankit.export(small(), out=tmp_path / "site", format="web", runtime=package).folder
    site = json.loads((folder / "site.json").read_text())
    assert (site["runtime"]["base"], site["runtime"]["version"]) == ("./", "1.30.1")
    for file in (each for name in BUILDS for each in site["runtime"][name]):
        assert (folder / file["file"]).read_text() == file["file"]
        assert integrity_of(folder / file["file"]) == file["integrity"]
    assert "http" not in re.findall(r'Policy" content="([^"]+)"', (folder / "index.html").read_text())[0]
    assert find_runtime(package / "dist") == find_runtime(package)


def test_a_runtime_that_is_none(tmp_path: Path, package: Path) -> None:
    def export(runtime: Path, format: Format = "web") -> None:
        vankit.export(small(), out=tmp_path / "site", format=format, runtime=runtime)

    with pytest.raises(MissingFileError, match=f"nowhere, in which ort.wasm.bundle.min.mjs is missing.*{VERSION}"):
        export(tmp_path / "nowhere")
    (package / "package.json").write_text('{"name": "react"}')
    with pytest.raises(UserError, match="npm's package 'react': expected onnxruntime-web"):
        export(package)
    (package / "dist" / BUILDS["webgpu"][1]).unlink()
    with pytest.raises(MissingFileError, match=r"asyncify\.wasm is missing"):
        export(package)
    with pytest.raises(UserError, match="`runtime` is for format web, not onnx"):
        export(package, "onnx")
    assert not (tmp_path / "site").exists()


def test_other_files_stay(public: Path, tmp_path: Path) -> None:
    shutil.copytree(public, tmp_path / "site")
    (tmp_path / "site" / "CNAME").write_text("example.org")
    with pytest.raises(UserError, match="holds other files, such as CNAME"):
        vankit.export(small(), out=tmp_path / "site", format="web")


def test_networks_that_are_not_van_do_not_explain(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=3).eval()
    folder = vankit.export(network, out=tmp_path / "site", format="web").folder
    assert json.loads((folder / "site.json").read_text())["explains"] is False


@pytest.mark.slow
def test_a_site_does_not_tell_where_the_weights_lay(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    network = timm.create_model("van_b0", num_classes=3)
    vankit.save_checkpoint(network, path, metadata={"classes": CLASSES})
    folder = vankit.export(path, out=tmp_path / "site", format="web").folder
    everything = "".join(path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md", ".html"))
    assert str(tmp_path) not in everything
    assert "vankit export mine.safetensors --format web --output site" in everything


NODE = """
import { readFileSync, writeFileSync } from "node:fs";
import { prepare } from "./preprocessing.js";
import { resizedCrop } from "./resize.js";

const pixels = readFileSync("pixels.bin");
const found = JSON.parse(readFileSync("jobs.json")).map(({ width, height, at, size, settings, interpolation }) => {
  const read = (left, top, across, down) => {
    const part = new Uint8Array(across * down * 4);
    for (let y = 0; y < down; y++) {
      const from = at + 4 * ((top + y) * width + left);
      part.set(pixels.subarray(from, from + 4 * across), 4 * y * across);
    }
    return part;
  };
  const picture = { width, height, read };
  if (settings) return prepare(settings, picture);
  return resizedCrop(picture, size, { left: 0, top: 0, width: size[0], height: size[1] }, interpolation);
});
writeFileSync("found.bin", Buffer.concat(found.map(({ buffer }) => Buffer.from(buffer))));
"""


class Jobs:
    """Pictures for the page's own arithmetic, and what Pillow makes of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs, self.pixels, self.expected = folder, [], b"", []

    def add(self, picture: np.ndarray, expected: np.ndarray, **job: Any) -> None:
        height, width, _ = picture.shape
        self.jobs.append({"width": width, "height": height, "at": len(self.pixels), **job})
        self.pixels += np.dstack([picture, np.full((height, width), 255, np.uint8)]).tobytes()
        self.expected.append(expected)

    def run(self) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
        for name in ("resize.js", "preprocessing.js"):
            (self.folder / name).write_bytes(web.asset(name))
        (self.folder / "package.json").write_text('{"type": "module"}')
        (self.folder / "run.js").write_text(NODE)
        (self.folder / "jobs.json").write_text(json.dumps(self.jobs))
        (self.folder / "pixels.bin").write_bytes(self.pixels)
        subprocess.run(["node", "run.js"], cwd=self.folder, check=True)
        found, at = (self.folder / "found.bin").read_bytes(), 0
        for job, expected in zip(self.jobs, self.expected, strict=True):
            yield job, np.frombuffer(found, expected.dtype, expected.size, at).reshape(expected.shape), expected
            at += expected.nbytes
        assert at == len(found)


@NEEDS_NODE
@NEEDS_PILLOW_13
def test_resizing_is_pillows_pixel_by_pixel(tmp_path: Path) -> None:
    rng, jobs = np.random.default_rng(0), Jobs(tmp_path)
    names = list(INTERPOLATIONS)
    for i in range(120):
        height, width = rng.integers(1, 200, 2)
        picture = (
            rng.integers(0, 256, (height, width, 3), np.uint8) // (1 + 254 * (i % 3 == 0)) * (1 + 254 * (i % 3 == 0))
        )
        after = [(width, height), (width, rng.integers(1, 200)), rng.integers(1, 200, 2)][min(i % 9, 2)]
        size = tuple(map(int, after))
        expected = np.asarray(Image.fromarray(picture).resize(size, INTERPOLATIONS[names[i % 6]]))
        jobs.add(picture, expected, size=size, interpolation=names[i % 6])
        sides = (32, 32) if i % 2 else tuple(map(int, rng.integers(2, 80, 2)))
        part = float(rng.choice([0.5, 0.875, 0.9, 1, 1.3]))
        settings = Preprocessing((3, *sides), (0.4, 0.5, 0.6), (0.3, 0.2, 0.25), part, names[i % 6])
        jobs.add(picture, settings(Image.fromarray(picture)), settings=asdict(settings))
    assert [job for job, found, expected in jobs.run() if not np.array_equal(found, expected)] == []


BACKEND = """
import { writeFileSync } from "node:fs";

const site = { name: "m", classes: ["a", "b", "c"], multi_label: true, thresholds: [0.9, 0.5, 0.2], explains: true };
site.preprocessing = { input_size: [3, 64, 64], crop_pct: 1, interpolation: "bilinear" };
let runs = 0;
globalThis.location = "http://localhost/?device=wasm";
globalThis.fetch = async () => ({ json: async () => site });
globalThis.Worker = class {
  postMessage({ number, kind, site: { device }, file }) {
    if (kind === "run") runs++;
    const error = file?.broken && "no picture";
    const maps = { values: Float32Array.from({ length: 6 }, (_, i) => i), height: 1, width: 2 };
    const value = { width: 128, height: 64, logits: Float32Array.of(1, 0, 2), maps, device };
    setTimeout(() => this.onmessage({ data: error ? { number, error } : { number, value } }), 10);
  }
};
const { connect, explain, predict } = await import("./browser.js");
const said = async (work) => work().then((value) => value, (error) => `${error.name}: ${error.message}`);
const { models: [model], remote } = await connect();
const file = { name: "x.png" };
const stopped = new AbortController();
const late = said(() => predict(model, { name: "y.png" }, stopped.signal));
stopped.abort();
const found = {
  model, remote, aborted: await late,
  entry: await predict(model, file, new AbortController().signal),
  best: await explain(model, file, null), second: await explain(model, file, 1),
  broken: await said(() => predict(model, { broken: true })),
  again: await said(() => predict(model, { broken: true })),
  runs,
};
writeFileSync("found.json", JSON.stringify(found));
"""


@NEEDS_NODE
def test_what_the_page_makes_of_a_networks_answer(tmp_path: Path) -> None:
    for name in ("browser.js", "resize.js", "preprocessing.js"):
        (tmp_path / name).write_bytes(web.asset(name))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(BACKEND)
    subprocess.run(["node", "run.js"], cwd=tmp_path, check=True)
    found = json.loads((tmp_path / "found.json").read_text())
    scores = sigmoid(np.array([1, 0, 2]))
    c = {"name": "c", "index": 2, "score": pytest.approx(scores[2])}
    b = {"name": "b", "index": 1, "score": pytest.approx(scores[1])}
    assert found["model"] == {
        "name": "m", "task": "classify", "version": "1", "classes": ["a", "b", "c"], "multi_label": True,
        "explains": True,
    }  # fmt: skip
    assert found["remote"] is False
    assert found["entry"] == {
        "source": "x.png",
        "width": 128,
        "height": 64,
        "labels": [c, b],
    }  # a is below its threshold
    assert found["best"]["maps"] == [{**c, "map": [[4, 5]]}] and found["best"]["region"] == [32, 0, 64, 64]
    assert found["second"]["maps"] == [{**b, "map": [[2, 3]]}] and found["second"]["labels"] == [c, b]
    assert found["aborted"].startswith("AbortError")
    assert found["broken"] == found["again"] == "Error: no picture"
    assert found["runs"] == 4  # x once, y once, and what failed each time it is asked for


@pytest.fixture(scope="module")
def onnxruntime_web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """npm's package, from $VANKIT_ONNXRUNTIME_WEB or from npm."""
    if folder := os.environ.get("VANKIT_ONNXRUNTIME_WEB"):
        return Path(folder)
    if shutil.which("npm") is None:
        pytest.skip("no npm, and VANKIT_ONNXRUNTIME_WEB does not name the folder of its package onnxruntime-web")
    folder = tmp_path_factory.mktemp("npm")
    run = subprocess.run(["npm", "pack", f"onnxruntime-web@{VERSION}"], cwd=folder, capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"npm has no onnxruntime-web: {run.stderr.strip()[-200:]}")
    with tarfile.open(folder / f"onnxruntime-web-{VERSION}.tgz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


@pytest.fixture(scope="module")
def site(onnxruntime_web: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    out = tmp_path_factory.mktemp("web") / "site"
    return vankit.export("van_b0.cifar10", out=out, format="web", runtime=onnxruntime_web)


Serve = Callable[[Path], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Factory: a folder's address, as `python -m http.server` serves it."""
    servers = []

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def browser() -> Iterator[Browser]:
    with start_browser() as found:
        yield found


@pytest.fixture
def photographs(tmp_path: Path) -> dict[str, Path]:
    """Smooth pictures with some noise, as files of many kinds, by name."""
    rng, folder = np.random.default_rng(1), tmp_path / "photographs"
    folder.mkdir()

    def photograph(width: int, height: int, channels: int = 3) -> Image.Image:
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, channels), np.uint8)).resize((width, height))
        noisy = np.asarray(coarse) + rng.normal(0, 6, (height, width, channels))
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    turned = Image.Exif()
    turned[0x0112] = 6
    photograph(640, 480).save(folder / "wide.png")
    photograph(640, 480).save(folder / "wide.jpg", quality=85)
    photograph(301, 1203).save(folder / "tall.jpg", quality=92, subsampling=0)
    photograph(333, 251).save(folder / "turned.jpg", exif=turned)
    photograph(20, 30).save(folder / "tiny.png")
    photograph(200, 150, 4).save(folder / "glass.png")
    photograph(300, 200).save(folder / "photo.webp", quality=80)
    return {path.name: path for path in sorted(folder.iterdir())}


EXPLAIN = """
const [content, target, done] = arguments;
const file = new File([Uint8Array.from(atob(content), (each) => each.charCodeAt(0))], "wide.png");
import("./backend.js").then(async ({connect, explain}) => {
  const {models: [model]} = await connect();
  return explain(model, file, target, new AbortController().signal);
}).then(done, (error) => done(String(error)));
"""
ELSEWHERE = """
const [address, done] = arguments;
const code = `fetch(${JSON.stringify(address)}).then(() => postMessage("sent"), () => postMessage("refused"))`;
const worker = new Worker(URL.createObjectURL(new Blob([code], {type: "text/javascript"})));
worker.onmessage = ({data}) => fetch(address).then(() => done("sent"), () => done(data));
"""


@pytest.mark.slow
@pytest.mark.export
@NEEDS_PILLOW_13
def test_the_browser_says_what_predict_says(
    site: Exported, serve: Serve, browser: Browser, photographs: dict[str, Path]
) -> None:
    predictor, address = vankit.Predictor(site.folder), f"{serve(site.folder.parent)}{site.folder.name}/"
    browser.open(address)
    for name, path in photographs.items():
        browser.choose(path)
        browser.until(lambda name=name: browser.state == "done" and name in browser.text("json"), name)
        shown = {item["name"]: float(item["score"]) for item in browser.items("labels")}
        expected = predictor(str(path)).labels
        assert next(iter(shown)) == expected[0].name
        assert [shown[label.name] for label in expected] == pytest.approx([label.score for label in expected], abs=1e-4)
    content = photographs["wide.png"].read_bytes()
    logits, maps = predictor.class_maps(predictor.preprocess(content))
    for target in (None, 3):
        found = browser.driver.execute_async_script(EXPLAIN, base64.b64encode(content).decode(), target)
        index = int(logits.argmax()) if target is None else target
        assert found["maps"][0]["index"] == index
        np.testing.assert_allclose(found["maps"][0]["map"], maps[index], atol=1e-4)
        assert found["maps"][0]["score"] == pytest.approx(float(predictor.scores(logits[None])[0, index]), abs=1e-4)
    # 640 × 480 becomes 85 × 64, of which 64 × 64 are seen
    assert found["region"] == pytest.approx([10 * 640 / 85, 0, 64 * 640 / 85, 480])
    assert all(each.startswith(address) for each in browser.requests())
    assert browser.errors() == []


@pytest.mark.slow
@pytest.mark.export
def test_nothing_can_leave_the_page(site: Exported, serve: Serve, browser: Browser, tmp_path: Path) -> None:
    browser.open(serve(site.folder))
    other = serve(tmp_path)
    assert browser.driver.execute_async_script(ELSEWHERE, other) == "refused"  # by the page and by its workers


@pytest.mark.slow
@pytest.mark.export
def test_what_the_browser_cannot_use(
    site: Exported, serve: Serve, browser: Browser, photographs: dict[str, Path], tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    browser.open(serve(site.folder))
    browser.choose(text)
    browser.wait("failed")
    assert "notes.txt" in browser.text("message")

    changed = tmp_path / "changed"
    shutil.copytree(site.folder, changed)
    script = changed / BUILDS["wasm"][0]
    script.write_bytes(script.read_bytes() + b" ")
    browser.open(serve(changed))
    browser.choose(photographs["tiny.png"])
    browser.wait("failed")
    assert f"{script.name} cannot be loaded, or is not the file that belongs to this page" in browser.text("message")


@pytest.mark.slow
@pytest.mark.export
def test_a_gpu_says_the_same(
    site: Exported, serve: Serve, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:  # one that chromium imitates, which the page takes only when it is told to
    flags = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-unsafe-swiftshader")
    monkeypatch.setattr(browsers, "_FLAGS", (*(flag for flag in browsers._FLAGS if flag != "--disable-gpu"), *flags))
    path = photographs["wide.jpg"]
    with start_browser() as browser:
        browser.open(f"{serve(site.folder)}?device=webgpu")
        browser.choose(path)
        browser.wait("done", seconds=90)
        shown = {item["name"]: float(item["score"]) for item in browser.items("labels")}
        warnings = [each["message"] for each in browser.driver.get_log("browser")]
    if any("No available adapters" in each for each in warnings):
        pytest.skip("chromium has no WebGPU here")
    assert not any("WebGPU" in each for each in warnings)
    expected = vankit.Predictor(site.folder)(str(path)).labels
    assert [shown[label.name] for label in expected] == pytest.approx([label.score for label in expected], abs=1e-4)


@pytest.mark.slow
def test_the_pinned_hashes_are_those_of_npms_files(onnxruntime_web: Path) -> None:
    assert find_runtime(onnxruntime_web).integrity == INTEGRITY
    assert find_runtime(onnxruntime_web).version == VERSION
