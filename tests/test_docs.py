"""What README and docs show is understood: every command line, every name of a python block, every link.

In the slow tests it runs: every bash and python block of a page, in order, in a folder with the files they name.
"""

import ast
import importlib.util
import inspect
import json
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cyclopts import CycloptsError
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_api

import vankit
from vankit.cli import app, main
from vankit.data.scenes import ShapeScenes
from vankit.engines.openvino import openvino_core
from vankit.tasks.panoptic import segments_of
from vankit.training.recipes import RECIPES

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# run as they are elsewhere: installing by .ci/run, the demo by test_demo.py, two processes by test_run.py, int8 by
# test_quantize.py and test_whole.py, since noise cannot show what it loses; the bench by test_timing.py, in less time;
# scripts by test_timm.py
INT8 = ("vankit export van_b0.cifar10 --int8", "vankit export --checkpoint runs/detect/best.safetensors --int8")
ELSEWHERE = ("pip install", "torchrun", "python -m vankit.timm", *INT8, "vankit bench")
EVERYBODY = "--host 0.0.0.0"  # whom tests do not serve


def blocks(page: Path) -> list[tuple[str, str]]:
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def bash_lines(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if shlex.split(line, comments=True)]


def commands(line: str) -> list[list[str]]:
    """The words after `vankit` of every command in a line."""
    found = []
    for part in line.split("&&"):
        words = shlex.split(part, comments=True)
        if words[0] in ("python", "torchrun"):
            words = words[words.index("-m") + 1 :]
        if words[0] in ("vankit.timm", "curl", "openssl"):
            continue
        if words[0] == "vankit":
            found.append(words[1:])
        else:
            assert words[:2] == ["pip", "install"] or words == ["pytest"], line
    return found


def understand(line: str) -> None:
    for words in commands(line):
        app.parse_args(words, exit_on_error=False, print_error=False)


LINES = [
    pytest.param(line, id=f"{page.name}: {line}")
    for page in PAGES
    for language, text in blocks(page)
    if language == "bash"
    for line in bash_lines(text)
]
SNIPPETS = [
    pytest.param(text, id=f"{page.name}-{i}")
    for page in PAGES
    for i, text in enumerate(text for language, text in blocks(page) if language == "python")
]


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_is_understood(line: str) -> None:
    understand(line)


@pytest.mark.parametrize(
    "line",
    [
        "vankit predcit photo.jpg",
        "vankit predict photo.jpg --topk 3",
        "pip install . && vankit predict photo.jpg --top-k three",
        "torchrun --nproc-per-node 2 -m vankit train shapes --task paint",
        "vankit train shapes --lka.kernel 7 --no-such 1",
    ],
)
def test_a_mistake_in_a_command_line_is_found(line: str) -> None:
    with pytest.raises(CycloptsError):
        understand(line)


@pytest.mark.parametrize("text", SNIPPETS)
def test_names_in_python_are_vankits(text: str) -> None:
    for node in ast.walk(compile(text, "snippet", "exec", ast.PyCF_ONLY_AST)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                assert hasattr(module, alias.name) or importlib.util.find_spec(name), ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("vankit."):
            assert_called_rightly(node)


def assert_called_rightly(call: ast.Call) -> None:
    function = vankit
    for name in ast.unparse(call.func).split(".")[1:]:
        function = getattr(function, name)
    given = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
    inspect.signature(function).bind_partial(*call.args, **given)


@pytest.fixture
def folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    public_hub: dict[str, Path],
    write_clip: Callable[..., Path],
    few_proposals: None,
) -> Path:
    """photo.jpg, clip.mp4, a public checkpoint, and the folders that the pages suppose: photos, flowers, coco, …"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vankit.cli.keeping.keep_whole", lambda opened: None)  # see tests/cli/conftest.py
    finetune = RECIPES["classify"]["finetune"]
    monkeypatch.setitem(RECIPES["classify"], "finetune", lambda model: replace(finetune(model), epochs=3))  # not 20
    rng = np.random.default_rng(0)
    places = ["photo.jpg", "photos/1.jpg", "photos/2.png", "more/deep/3.png"]
    places += [f"desert/images/{i}.jpg" for i in range(24)]
    places += [f"flowers/{s}/{c}/{i}.jpg" for s in ("train", "val") for c in ("rose", "tulip") for i in range(16)]
    places += [f"hymenoptera_data/train/{c}/{i}.jpg" for c in ("ants", "bees") for i in range(16)]
    places += [f"hymenoptera_data/val/{c}/0.jpg" for c in ("ants", "bees")]
    for place in places:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    for split, numbers in (("train", range(16)), ("val", range(16, 24))):
        rows = [f"{i},{';'.join(['dune', 'palm', 'camel'][: i % 4])}" for i in numbers]
        (tmp_path / "desert" / f"{split}.csv").write_text("\n".join(["id,tags", *rows]))
    write_clip(tmp_path / "clip.mp4")
    write_coco(tmp_path / "coco")
    write_streets(tmp_path / "streets")
    for path in public_hub.values():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def write_coco(root: Path) -> None:
    """Two generated scenes a split, with COCO's instances and panoptic annotations."""
    for split in ("train", "val"):
        images, segments = root / f"{split}2017", root / "annotations" / f"panoptic_{split}2017"
        images.mkdir(parents=True)
        segments.mkdir(parents=True)
        scenes = ShapeScenes("panoptic", split, 2, 64)
        categories = [
            {"id": i, "name": name, "isthing": int(thing)}
            for i, name, thing in zip(scenes.category_ids, scenes.classes, scenes.things, strict=True)
        ]
        pictures, objects, panoptic = [], [], []
        for i in range(2):
            image, target = scenes[i]
            image.save(images / f"{i}.jpg")
            pictures.append({"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 64})
            ids = segments_of(target["masks"])
            Image.fromarray(np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8)).save(segments / f"{i}.png")
            infos = [segment_info(ids, j + 1, label + 1) for j, label in enumerate(target["labels"].tolist())]
            panoptic.append({"image_id": i, "file_name": f"{i}.png", "segments_info": infos})
            for info in infos:
                if scenes.things[info["category_id"] - 1]:
                    rle = mask_api.encode(np.asfortranarray(ids == info["id"], np.uint8))
                    rle = {"size": list(ids.shape), "counts": rle["counts"].decode()}
                    objects.append({**info, "id": len(objects) + 1, "image_id": i, "segmentation": rle})
        things = [category for category in categories if category["isthing"]]
        for kind, annotations, known in (("instances", objects, things), ("panoptic", panoptic, categories)):
            content = {"images": pictures, "annotations": annotations, "categories": known}
            (root / "annotations" / f"{kind}_{split}2017.json").write_text(json.dumps(content))


def segment_info(ids: NDArray[np.int64], segment: int, category: int) -> dict[str, Any]:
    rows, columns = np.nonzero(ids == segment)
    x, y = int(columns.min()), int(rows.min())
    box = [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
    return {"id": segment, "category_id": category, "bbox": box, "iscrowd": 0, "area": len(rows)}


def write_streets(root: Path) -> None:
    for split in ("train", "val"):
        scenes = ShapeScenes("segment", split, 16, 64)
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for i in range(len(scenes)):
            image, target = scenes[i]
            image.save(root / "images" / split / f"{i}.jpg")
            Image.fromarray(target["semantic"]).save(root / "annotations" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(scenes.classes))


class Services:
    """What a page serves, one at a time, at another port than the page's, which may be taken."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])

    def start(self, words: list[str]) -> None:
        self.end()
        command = [sys.executable, "-m", "vankit", *words, "--port", self.port]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline().startswith("serving ")

    def end(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.communicate(timeout=30)
            assert self.process.returncode == 0
            self.process = None


@pytest.fixture
def services() -> Iterator[Services]:
    found = Services()
    yield found
    found.end()


def ask(line: str) -> None:
    """Of curl, which says with its status whether the answer was a good one."""
    run = subprocess.run(f"{line} --fail-with-body --silent", shell=True, capture_output=True, text=True)
    assert run.returncode == 0, f"{line}: {run.stdout}{run.stderr}"
    assert json.loads(run.stdout)


def run_line(line: str, services: Services) -> None:
    if line.startswith(ELSEWHERE) or EVERYBODY in line:
        return
    if line.startswith("curl"):
        ask(line)
        return
    if line.startswith("openssl"):
        subprocess.run(line, shell=True, check=True)
        return
    words = shlex.split(line, comments=True)
    if "bf16" in words and "BF16" not in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return
    assert words[0] == "vankit", line
    if words[1] == "serve":
        services.start(words[1:])
        return
    if "runs/coco/exported" in words and words[1] != "export":
        run_without_torch(words[1:])
        return
    with pytest.raises(SystemExit) as end:
        main(words[1:])
    assert end.value.code == 0, line


def run_without_torch(words: list[str]) -> None:
    absent = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm', 'lightning']))\n"
    code = f"{absent}from vankit.cli import main; main({words})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    if words[0] == "predict":
        assert json.loads(Path(words[-1], "predictions.json").read_text()), "no object was found"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page: Path, folder: Path, small_shapes: None, services: Services) -> None:
    scope: dict[str, object] = {"__name__": "__main__"}
    for language, text in blocks(page):
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{services.port}")
        if language == "python":
            exec(compile(text, f"{page.name} (python)", "exec"), scope)
        else:
            for line in bash_lines(text):
                run_line(line, services)


def test_no_place_is_left_to_fill_in() -> None:
    for page in PAGES:
        assert not re.findall(r"^[A-Z_]{6,}$|TODO|FIXME", page.read_text(encoding="utf-8"), re.M), page.name


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, *(ROOT / "docs" / "results").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_table_is_computed(costs: dict[str, Any]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, cost in costs.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        params, gmacs, published = (cell.strip() for cell in row.split("|")[2:5])
        assert params == f"{cost.params:,}"
        assert gmacs == f"{cost.macs / 1e9:.{len(gmacs.split('.')[1])}f}"
        assert published == f"{cost.macs_all / 1e9:.{len(published.split('.')[1])}f}"
