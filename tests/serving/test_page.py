"""The page of the service in a real browser: against the service itself, and for what needs other networks against
made-up answers."""

import ast
import json
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from browser import Browser, start_browser
from PIL import Image
from pycocotools import mask as coco

import vankit
from vankit.web import ASSETS, asset

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
WIDTH, HEIGHT = 160, 120
MODEL = "van_b0.cifar10"


# The files


def test_every_file_that_is_referred_to_is_there() -> None:
    names = set(re.findall(r'(?:src|href)="([^"#]+)"', asset("index.html").decode()))
    for name in ASSETS:
        if name.endswith(".js"):
            names |= set(re.findall(r'(?:from|import\(?)\s*"([^"]+)"', asset(name).decode()))
    assert {"./page.js", "./style.css", "./backend.js", "./icon.svg"} <= names
    assert all(name.startswith("./") for name in names)
    assert names - {"./backend.js"} <= {f"./{name}" for name in ASSETS}
    assert "server.js" in ASSETS  # which is served as backend.js


def test_nothing_is_fetched_from_elsewhere_and_nothing_is_inline() -> None:
    page = asset("index.html").decode()
    assert not re.search(r"\sstyle=|<style|\son\w+=|javascript:|<base|<script(?![^>]*\ssrc=)", page)
    assert "url(" not in asset("style.css").decode() and "@import" not in asset("style.css").decode()
    for name in ("index.html", "style.css", "page.js", "picture.js", "server.js", "answers.js", "icon.svg"):
        absolute = re.findall(r"https?://[^\s\"']+|[\"'(]//[^\s\"']+", asset(name).decode())
        assert absolute == (["http://www.w3.org/2000/svg"] if name == "icon.svg" else [])


def test_what_a_service_says_is_never_markup() -> None:
    for name in ASSETS:
        if name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", asset(name).decode()
            )


def test_media_types() -> None:
    assert ASSETS["index.html"] == "text/html; charset=utf-8"
    assert ASSETS["page.js"] == "text/javascript; charset=utf-8"
    assert ASSETS["style.css"] == "text/css; charset=utf-8"
    assert ASSETS["icon.svg"] == "image/svg+xml"
    with pytest.raises(KeyError):
        asset("../__init__.py")
    with pytest.raises(KeyError):
        asset("__init__.py")


def test_the_page_is_made_for_screen_readers() -> None:
    page = asset("index.html").decode()
    assert '<html lang="en"' in page and 'name="viewport"' in page
    named = set(re.findall(r'<label[^>]*\sfor="([^"]+)"', page))
    assert {"file", "camera", "model", "score", "heat", "target", "token"} <= named


# Modules without a browser


@pytest.fixture(scope="module")
def in_node(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Any]:
    """Factory: what lines of JavaScript that import the page's modules make of `given`, as the JSON of `made`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node: on Debian, apt-get install nodejs")
    folder = tmp_path_factory.mktemp("modules")
    (folder / "package.json").write_text('{"type": "module"}')
    for name in ASSETS:
        (folder / name).write_bytes(asset(name))

    def run(lines: str, given: Any) -> Any:
        read = "import { readFileSync } from 'node:fs'; const given = JSON.parse(readFileSync(0, 'utf8'));"
        (folder / "run.js").write_text(f"{lines}\n{read}\nconsole.log(JSON.stringify(made(given)));")
        done = subprocess.run(
            [node, folder / "run.js"], input=json.dumps(given), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (7, 5), (40, 61), (300, 200)]
    noise = [rng.random(shape) < share for shape in shapes for share in (0.02, 0.5, 0.98)]
    whole = [np.full((9, 4), value) for value in (False, True)]
    large = np.zeros((3000, 2001), bool)
    large[10:2990, 5:1990] = True
    columns = np.zeros((6, 6), bool)
    columns[4:, 2] = columns[:2, 3] = True  # one run over the end of a column
    return [*noise, *whole, large, columns]


@pytest.mark.parametrize("step", [1, 3])
def test_masks_are_those_of_coco(in_node: Callable[[str, Any], Any], step: int) -> None:
    expected = masks()
    lines = f"""
        import {{ decodeMask }} from "./rle.js";
        const made = (masks) => masks.map((mask) => {{
            const {{ bits, ...place }} = decodeMask(mask, {step});
            return {{ ...place, bits: Buffer.from(bits).toString("latin1") }};
        }});"""
    for mask, got in zip(expected, in_node(lines, [rle(mask) for mask in expected]), strict=True):
        drawn = np.zeros_like(mask[::step, ::step])
        rows, columns = slice(got["top"], got["top"] + got["height"]), slice(got["left"], got["left"] + got["width"])
        bits = np.frombuffer(got["bits"].encode("latin1"), np.uint8)
        drawn[rows, columns] = bits.reshape(got["height"], got["width"])
        assert np.array_equal(drawn, mask[::step, ::step])
        if mask[::step, ::step].any():
            x, y = (int(place) for place in got["middle"])
            assert mask[y, x]


NAMES = ["photo.jpg", 'it\'s $HOME `x` "y".png', "é 写真.heic", "back\\slash\n.tif", "no_ending", "a & b; c.webp"]


@pytest.mark.parametrize("name", NAMES)
def test_commands_keep_odd_names(in_node: Callable[[str, Any], Any], name: str) -> None:
    model = 'van\'s/b0 "x" $1'
    lines = """
        import { commands, useToken } from "./server.js";
        const made = ([name, model]) => { useToken("secret"); return commands({ name: model }, name); };"""
    made = in_node(lines, [name, model])
    command = shlex.split(made["curl"].replace("\\\n", ""))
    assert command[:2] == ["curl", "--data-binary"] and command[2] == f"@{name}"
    assert "secret" not in made["curl"] + made["python"]
    assert '-H "Authorization: Bearer $TOKEN"' in made["curl"]
    assert unquote(command[-1]).endswith(f"/predict/{model}")
    texts = [node.value for node in ast.walk(ast.parse(made["python"])) if isinstance(node, ast.Constant)]
    assert name in texts and command[-1] in [text.replace("'", "%27") for text in texts if isinstance(text, str)]


def test_heat_is_bilinear_between_the_centres_of_cells(in_node: Callable[[str, Any], Any]) -> None:
    lines = """
        import { heatColour } from "./colours.js";
        import { heatLayer } from "./layers.js";
        const drawn = {};
        globalThis.document = { createElement: () => Object.assign(drawn, { getContext: () => ({
            createImageData: (width, height) => ({ data: new Float64Array(4 * width * height) }),
            putImageData: ({ data }) => { drawn.data = [...data]; },
        }) }) };
        const made = (map) => {
            heatLayer(map);
            return [drawn.width, drawn.height, drawn.data, [0, 0.5, 1].map(heatColour)];
        };
    """
    width, height, data, (cold, middle, hot) = in_node(lines, [[0, 4], [0, 4]])
    pixels = np.reshape(data, (height, width, 4))
    quarter = width // 4
    assert np.allclose(pixels[:, :quarter, :3], cold, atol=3) and np.allclose(pixels[:, -quarter:, :3], hot, atol=3)
    assert np.allclose(pixels[:, width // 2 - 1 : width // 2 + 1, :3].mean(1), middle, atol=3)
    assert in_node(lines, [[0, 0], [0, 0]])[2][:3] == cold  # nothing speaks for the class


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as started:
        yield started


@pytest.fixture
def page(browser: Browser) -> Browser:
    """The browser as it was at its start, with nothing in its log."""
    browser.resize(1200, 900)
    browser.prefer(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    browser.errors()
    return browser


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    """The address of `vankit serve`, which has to end by itself."""
    command = [sys.executable, "-m", "vankit", "serve", MODEL, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 60)
        line = process.stdout.readline() if ready else ""
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, f"no address in {line!r}"
        yield found[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pictures whose labels are neither certain nor alike."""
    folder = tmp_path_factory.mktemp("photographs")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.stack([128 + 90 * np.sin(x / 9), 90 + 80 * np.cos(y / 14), 60 + 0 * x + y], -1)
    disc = waves.copy()
    disc[(x - 60) ** 2 + (y - 50) ** 2 < 900] = 240, 30, 20
    paths = {"waves": folder / "waves.png", "disc": folder / "a disc.png", "scan": folder / "scan.tif"}
    for name, pixels in {"waves": waves, "disc": disc, "scan": disc}.items():
        Image.fromarray(pixels.astype(np.uint8)).save(paths[name])
    paths["text"] = folder / "notes.txt"
    paths["text"].write_text("no picture\n")
    paths["turned"] = folder / "turned.jpg"
    turned = Image.fromarray(np.zeros((60, 120, 3), np.uint8))
    turned.paste((255, 255, 255), (0, 0, 60, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned.save(paths["turned"], exif=exif)
    return paths


@pytest.fixture(scope="module")
def expected(photographs: dict[str, Path]) -> Callable[[str], list[tuple[str, float]]]:
    """Factory: names and scores of a photograph, by Python."""
    predictor = vankit.Predictor(MODEL, top_k=10)
    return lambda name: [(label.name, label.score) for label in predictor(str(photographs[name])).labels]


def assert_labels(page: Browser, labels: list[tuple[str, float]]) -> None:
    shown = page.items("labels")
    assert [each["name"] for each in shown] == [name for name, _ in labels]
    assert [float(each["score"]) for each in shown] == pytest.approx([score for _, score in labels], abs=1e-4)


@pytest.mark.slow
def test_a_photograph_is_labelled(
    page: Browser, service: str, photographs: dict[str, Path], expected: Callable[[str], list[tuple[str, float]]]
) -> None:
    page.open(service)
    assert page.text("facts") == "classifier · 10 classes · version 1"
    assert not page.shows("answer") and not page.shows("code")
    page.choose(photographs["disc"])
    page.wait("done")
    assert_labels(page, expected("disc"))
    best, score = expected("disc")[0]
    assert page.text("message").startswith(f"{best} {score:.1%}")
    assert f"a disc.png: {best} {score:.1%}" in page.element("stage").get_attribute("aria-label")
    assert json.loads(page.text("json"))["labels"][0]["name"] == best
    page.drop(photographs["waves"])
    page.wait("done")
    assert_labels(page, expected("waves"))
    page.paste(photographs["disc"])
    page.until(
        lambda: page.state == "done" and "a disc.png" in page.element("stage").get_attribute("aria-label"), "paste"
    )
    assert_labels(page, expected("disc"))
    assert page.errors() == []
    assert all(each.startswith(f"{service}/") for each in page.requests()) and len(page.requests()) > 10


@pytest.mark.slow
def test_what_is_no_picture_gets_the_services_reason(
    page: Browser, service: str, photographs: dict[str, Path], expected: Callable[[str], list[tuple[str, float]]]
) -> None:
    page.open(service)
    page.choose(photographs["waves"])
    page.wait("done")
    page.choose(photographs["text"])
    page.wait("failed")
    assert "is not an image: expected one of JPEG, PNG" in page.text("message")
    assert page.element("message").get_attribute("role") == "alert"
    assert not page.shows("answer") and not page.shows("stage") and not page.shows("again")
    page.choose(photographs["waves"])
    page.wait("done")
    assert page.element("message").get_attribute("role") == "status" and page.shows("stage")
    assert_labels(page, expected("waves"))


@pytest.mark.slow
def test_pictures_are_upright_and_those_that_only_the_service_reads_get_labels(
    page: Browser, service: str, photographs: dict[str, Path], expected: Callable[[str], list[tuple[str, float]]]
) -> None:
    page.open(service)
    page.choose(photographs["turned"])
    page.wait("done")
    assert_labels(page, expected("turned"))
    width, height = page.run("const c = document.getElementById('stage'); return [c.width, c.height]")
    pixels = np.frombuffer(page.pixels(), np.uint8).reshape(height, width, 4)[..., 0]
    assert height == 2 * width and pixels[: height // 2 - 20].mean() > 240 and pixels[height // 2 + 20 :].mean() < 15
    page.choose(photographs["scan"])
    page.wait("done")
    assert_labels(page, expected("scan"))
    assert page.shows("unseen") and "cannot show" in page.text("unseen")
    page.choose(photographs["waves"])
    page.wait("done")
    assert not page.shows("unseen")


@pytest.mark.slow
def test_grad_cam_fades_in(page: Browser, service: str, photographs: dict[str, Path]) -> None:
    page.open(service)
    page.choose(photographs["disc"])
    page.wait("done")
    plain, best = page.pixels(), page.items("labels")[0]["name"]
    page.slide("heat", 0.5)
    page.wait("done")
    assert best in page.text("message") and f"what speaks for {best}" in page.element("stage").get_attribute(
        "aria-label"
    )
    half = page.pixels()
    asked = len(page.requests())
    page.slide("heat", 1)
    assert len({plain, half, page.pixels()}) == 3
    page.slide("heat", 0)
    assert page.pixels() == plain
    assert len(page.requests()) == asked
    other = page.items("labels")[-1]
    page.slide("heat", 0.5)
    page.select("target", other["index"])
    page.until(lambda: other["name"] in page.text("message") and page.state == "done", "another class")
    assert page.pixels() not in (half, plain)
    assert page.requests()[-1].endswith(f"/explain/{MODEL}?target={other['index']}")
    page.element("labels").find_elements("tag name", "button")[0].click()
    page.until(lambda: page.pixels() == half, "the best label's map, by its button")
    assert page.errors() == []


@pytest.mark.slow
def test_commands_ask_the_same(page: Browser, service: str, photographs: dict[str, Path]) -> None:
    page.open(service)
    page.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"], "origin": service})
    page.choose(photographs["disc"])
    page.wait("done")
    copied = {}
    for button in page.driver.find_elements("css selector", "button[data-copy]"):
        name = button.get_attribute("data-copy")
        button.click()
        page.until(lambda button=button: button.text.startswith("Copied"), "the button says that it is done")
        copied[name] = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
        assert copied[name] == page.text(name)
    labels = [each["name"] for each in json.loads(copied["json"])["labels"]]
    folder = photographs["disc"].parent
    for command in (["bash", "-c", copied["curl"]], [sys.executable, "-c", copied["python"]]):
        if shutil.which(command[0]):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            answer = json.loads(done.stdout) if command[0] == "bash" else ast.literal_eval(done.stdout)
            assert [each["name"] for each in answer["pictures"][0]["labels"]] == labels[:5]
    page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as without https
    page.run("document.addEventListener('copy', () => (window.taken = String(getSelection())))")
    page.driver.find_element("css selector", "button[data-copy=curl]").click()
    assert page.until(lambda: page.run("return window.taken"), "a copy") == page.text("curl")


# Against made-up answers


CANNED = ["boxes", "scene", "holding", "thresholds", "plain"]
EVIL = '<img src="x" onerror="document.title=1">'


class Canned(ThreadingHTTPServer):
    """A service by the contract, whose models answer the same for every picture.

    Attributes:
        asked: the models that predict was asked for, in order.
        gone: is set when the client of `holding`, which never answers, is gone.
        token: that it wants, or None.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[str] = []
        self.gone = threading.Event()
        self.token: str | None = None
        self.address = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Canned

    def do_GET(self) -> None:
        name = urlsplit(self.path).path.removeprefix("/") or "index.html"
        if name == "models":
            self._answer({"models": [_model(each) for each in CANNED]})
        else:
            name = "server.js" if name == "backend.js" else name
            self._send(200, asset(name), ASSETS[name])

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        name = unquote(urlsplit(self.path).path).rpartition("/")[2]
        self.server.asked.append(name)
        if name == "holding":
            _until_gone(self.connection)
            self.server.gone.set()
        else:
            self._answer({"pictures": [{"source": "picture", "width": WIDTH, "height": HEIGHT, **_entry(name)}]})

    def _answer(self, content: Any) -> None:
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self._send(401, b'{"error": "a token is needed"}', "application/json")
        else:
            self._send(200, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, content: bytes, media_type: str) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", media_type), ("Content-Security-Policy", POLICY)):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def _until_gone(connection: Any) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if select.select([connection], [], [], 0.5)[0] and not connection.recv(1):
            return


def _model(name: str) -> dict[str, Any]:
    task = {"boxes": "detect", "scene": "segment"}.get(name, "classify")
    classes = ["cat", "dog", EVIL] if task == "classify" else ["sky", "cat", "dog", EVIL]
    facts = {"task": task, "version": "1", "classes": classes, "multi_label": name == "thresholds", "explains": False}
    return {"name": name, **facts}


def _entry(name: str) -> dict[str, Any]:
    if name == "boxes":
        boxes = [([10, 10, 60, 50], 0.9, "cat"), ([80, 30, 70, 60], 0.5, "dog"), ([5, 70, 40, 40], 0.2, EVIL)]
        return {"objects": [_object(box, score, label) for box, score, label in boxes]}
    if name == "scene":
        upper = np.arange(HEIGHT)[:, None] < HEIGHT // 2
        masks = {"sky": np.tile(upper, (1, WIDTH)), "dog": np.tile(~upper, (1, WIDTH))}
        segments = [
            {"name": label, "category_id": i, "area": int(mask.sum()), "segmentation": rle(mask)}
            for i, (label, mask) in enumerate(masks.items())
        ]
        return {"segments": segments}
    labels = [] if name == "thresholds" else [(EVIL, 2, 0.8), ("cat", 0, 0.15), ("dog", 1, 0.0001)]
    return {"labels": [{"name": label, "index": index, "score": score} for label, index, score in labels]}


def _object(box: list[int], score: float, label: str) -> dict[str, Any]:
    x, y, width, height = box
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + height, x : x + width] = True
    return {"name": label, "category_id": 1, "bbox": box, "score": score, "segmentation": rle(mask)}


@contextmanager
def canned_service() -> Iterator[Canned]:
    with Canned() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def canned() -> Iterator[Canned]:
    with canned_service() as server:
        yield server


@pytest.mark.slow
def test_the_slider_filters_without_a_request(page: Browser, canned: Canned, photographs: dict[str, Path]) -> None:
    page.open(canned.address)
    page.choose(photographs["waves"])
    page.wait("done")
    asked = len(page.requests())
    assert [each["name"] for each in page.items("found")] == ["cat", "dog"]
    assert page.text("message").startswith("cat, dog ·")
    drawn = {0.3: page.pixels()}
    for value, names in ((0.05, ["cat", "dog", EVIL]), (0.6, ["cat"]), (1, [])):
        page.slide("score", value)
        assert [each["name"] for each in page.items("found")] == names
        drawn[value] = page.pixels()
    assert len(set(drawn.values())) == 4
    assert page.shows("nothing") and "slider" in page.text("nothing")
    page.slide("score", 0.3)
    assert page.pixels() == drawn[0.3]
    page.element("found").find_elements("tag name", "button")[1].send_keys("\n")
    page.until(lambda: page.pixels() != drawn[0.3], "the dog stands out")
    pressed = [each.get_attribute("aria-pressed") for each in page.element("found").find_elements("tag name", "button")]
    assert pressed == ["false", "true"]
    assert len(page.requests()) == asked and canned.asked == ["boxes"]
    page.select("model", "scene")
    page.until(lambda: page.state == "done" and canned.asked[-1] == "scene", "the other model")
    assert [each["name"] for each in page.items("found")] == ["sky", "dog"]
    assert (
        not page.shows("scoring")
        and page.text("heading") == "Shares of the picture"
        and page.text("found") == "sky50.0%dog50.0%"
    )
    assert page.errors() == []


@pytest.mark.slow
def test_another_picture_or_model_takes_the_place_of_what_is_under_way(
    page: Browser, canned: Canned, photographs: dict[str, Path]
) -> None:
    page.open(canned.address)
    page.select("model", "holding")
    for change in (lambda: page.select("model", "plain"), lambda: page.choose(photographs["waves"])):
        page.select("model", "holding")
        page.choose(photographs["disc"])
        page.wait("working")
        assert "Looking at a disc.png" in page.text("message")
        page.until(lambda: canned.asked[-1:] == ["holding"], "the request")
        canned.gone.clear()
        change()
        assert canned.gone.wait(10), "the request goes on"
    page.prefer(prefers_reduced_motion="reduce")
    assert page.run("return getComputedStyle(document.getElementById('viewer'), '::before').animationName") == "none"
    page.select("model", "plain")
    page.wait("done")
    assert [each["name"] for each in page.items("labels")] == [EVIL, "cat", "dog"]
    assert page.text("labels").endswith("<0.1%") and page.driver.title == "vankit"
    page.select("model", "thresholds")
    page.until(lambda: page.shows("nothing"), "no label")
    assert page.text("nothing") == "No label reaches its threshold."
    assert page.errors() == []


@pytest.mark.slow
def test_a_token_is_asked_for_and_kept_with_the_tab(
    page: Browser, canned: Canned, photographs: dict[str, Path]
) -> None:
    canned.token = "open sesame"
    page.open(canned.address, "failed")
    assert page.text("message") == "a token is needed" and page.shows("token")
    page.element("token").send_keys("wrong\n")
    page.until(lambda: page.state == "failed" and not page.element("token").get_attribute("value"), "a refusal")
    page.element("token").send_keys("open sesame\n")
    page.wait("ready", "failed")
    page.wait("ready")
    assert not page.shows("token")
    page.choose(photographs["waves"])
    page.wait("done")
    assert '-H "Authorization: Bearer $TOKEN"' in page.text("curl") and 'os.environ["TOKEN"]' in page.text("python")
    assert "sesame" not in page.run("return document.documentElement.outerHTML")
    page.open(canned.address)
    assert page.run("return [localStorage.length, document.cookie]") == [0, ""]
    canned.token = "changed"
    page.choose(photographs["waves"])
    page.wait("failed")
    page.element("token").send_keys("changed\n")
    page.wait("done")  # of the picture that was chosen before


@pytest.mark.slow
def test_a_service_that_ends_is_asked_again(page: Browser, photographs: dict[str, Path]) -> None:
    with canned_service() as server:
        page.open(server.address)
        server.asked.append("nothing")
    page.choose(photographs["waves"])
    page.wait("failed")
    assert page.text("message") == "The service does not answer. Is it still running?" and page.shows("again")
    page.element("again").click()
    page.wait("failed")
    page.run("""
        const dataTransfer = new DataTransfer();
        dataTransfer.setData("text/plain", "words");
        document.body.dispatchEvent(new DragEvent("drop", {bubbles: true, cancelable: true, dataTransfer}));
    """)
    assert page.text("message").startswith("That is not a file.")


# For everyone


@pytest.mark.slow
def test_everything_is_reached_by_the_keyboard(page: Browser, canned: Canned, photographs: dict[str, Path]) -> None:
    page.open(canned.address)
    page.choose(photographs["waves"])
    page.wait("done")
    page.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    reached: list[str] = []
    while (name := _next(page)) not in reached:
        reached.append(name)
    wanted = ["file", "model", "cat", "dog", "score", "copy curl", "curl", "copy python", "python", "copy json", "json"]
    assert set(wanted) <= set(reached)
    while _next(page) != "score":
        pass
    before = page.pixels()
    for _ in range(25):
        page.press("ARROW_RIGHT")
    assert float(page.element("score").get_attribute("value")) == pytest.approx(0.55)
    assert page.pixels() != before and len(page.items("found")) == 1
    while _next(page) != "model":
        pass
    page.press("ARROW_DOWN")
    page.until(lambda: page.state == "done" and canned.asked[-1] == "scene", "the next model")


def _next(page: Browser) -> str:
    """What the tabulator key leads to: its id or text; it is seen to be there."""
    page.press("TAB")
    name, width = page.run("""
        const at = document.activeElement;
        const marked = at.classList.contains("visually-hidden") ? at.nextElementSibling : at;
        const said = at.id || at.querySelector(".name")?.textContent || at.tagName;
        const outline = at === document.body ? 3 : parseFloat(getComputedStyle(marked).outlineWidth);
        return [at.dataset.copy ? `copy ${at.dataset.copy}` : said, outline];
    """)
    assert width >= 2, f"the focus on {name} is not seen"
    return name


_CONTRASTS = """
    const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
    const solid = (text) => { const [, , , alpha = 1] = numbers(text); return alpha > 0.99; };
    const light = (text) => {
        const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const [r, g, b] = numbers(text).map((each) => linear(each / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const under = (at) => { for (; at; at = at.parentElement) {
        const colour = getComputedStyle(at).backgroundColor; if (solid(colour)) return colour; } };
    const poor = [];
    for (const at of document.body.querySelectorAll("*")) {
        const worded = [...at.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!worded || !at.checkVisibility() || at.closest(".visually-hidden, option")) continue;
        const [a, b] = [light(getComputedStyle(at).color), light(under(at))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) poor.push([at.tagName, at.id, at.textContent, (a + 0.05) / (b + 0.05)]);
    }
    return poor;
"""


@pytest.mark.slow
def test_light_and_dark_are_both_easy_to_read(page: Browser, canned: Canned, photographs: dict[str, Path]) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        page.prefer(prefers_color_scheme=scheme)
        page.open(canned.address)
        for name, end in (("waves", "done"), ("text", "done")):
            page.choose(photographs[name])
            page.wait(end)
            assert page.run(_CONTRASTS) == []
        page.select("model", "plain")
        page.wait("done")
        assert page.run(_CONTRASTS) == []
        page.run("document.documentElement.dataset.state = 'failed'")
        assert page.run(_CONTRASTS) == []
        grounds.add(page.run("return getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2


@pytest.mark.slow
def test_a_phones_width(page: Browser, canned: Canned, photographs: dict[str, Path]) -> None:
    page.resize(360, 740, density=3)
    page.open(canned.address)
    assert _fits(page)
    for model in CANNED:
        if model == "holding":
            continue
        page.select("model", model)
        page.choose(photographs["waves"])
        page.until(lambda model=model: page.state == "done" and canned.asked[-1] == model, model)
        assert _fits(page)
    width, shown = page.run("const c = document.getElementById('stage'); return [c.width, c.clientWidth]")
    assert width == pytest.approx(3 * shown, abs=3)  # sharp


def _fits(page: Browser) -> bool:
    return page.run(
        "const all = document.scrollingElement; return all.scrollWidth <= innerWidth && all.clientWidth <= 360"
    )


@pytest.mark.slow
def test_controls_have_names(page: Browser, canned: Canned, photographs: dict[str, Path]) -> None:
    page.open(canned.address)
    page.choose(photographs["waves"])
    page.wait("done")
    controls = page.driver.find_elements("css selector", "input, select, button, canvas, pre")
    named = {each.get_attribute("id") or each.text: each.accessible_name for each in controls if each.is_displayed()}
    assert len(named) >= 9 and all(named.values())
    assert named["stage"] == "waves.png: cat, dog"
