"""A classifier as a page that needs no server: the network runs in the visitor's browser, in onnxruntime-web."""

import base64
import hashlib
import shutil
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vankit.deploy.folder import Exported
from vankit.engines.base import CLASS_MAPS
from vankit.errors import MissingFileError, UserError, check_output
from vankit.files import open_file, read_json, to_json, write_text
from vankit.web import ASSETS, asset

VERSION = "1.30.0"
_PUBLIC = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{VERSION}/dist/"
# script and binary: the first runs everywhere, the second, twice as large, on GPUs
BUILDS = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
# of npm's package, whose files the public address serves
INTEGRITY = {
    "ort.wasm.bundle.min.mjs": "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG",
    "ort-wasm-simd-threaded.wasm": "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM",
    "ort.webgpu.bundle.min.mjs": "sha384-1ntMeyj+z5diX6vBR5h+zlJBPc4iNvhCxE6nlammh8daBYcLBZkzrwDkuJjhwI+f",
    "ort-wasm-simd-threaded.asyncify.wasm": "sha384-EPVDLTxuO663dkZO/pcKJF6vOyyfq/5z9FY1oksN0UWFX2ABH4wDDZQHeNoUleWR",
}
_SITE = "site.json"
_OF_SERVICE = "server.js"
_BACKENDS = {"browser.js": "backend.js"}
_PAGE = {name: _BACKENDS.get(name, name) for name in ASSETS if name != _OF_SERVICE}
SITE_FILES = frozenset({_SITE, *_PAGE.values(), *INTEGRITY})
"""Names of what a site has beside the model and its description."""


@dataclass(frozen=True)
class Runtime:
    """onnxruntime-web, as the page loads it.

    Attributes:
        version: of npm's package.
        base: the address before the names of its files: a public one, or the site's own.
        integrity: of each file by its name, as browsers check it.
        folder: where the files are to be copied from; None for the public address.
    """

    version: str
    base: str
    integrity: dict[str, str]
    folder: Path | None = None

    @property
    def origin(self) -> str:
        """What the page's policy has to allow for it beside the site itself; empty for files of the site."""
        return "" if self.folder else self.base


def find_runtime(folder: str | PathLike[str] | None) -> Runtime:
    """Look at the files of onnxruntime-web, before anything is exported.

    Args:
        folder: npm's package, or the folder dist in it; None takes the public address.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be read, or package.json is of another package.
    """
    if folder is None:
        return Runtime(VERSION, _PUBLIC, INTEGRITY)
    given = Path(folder)
    files = given / "dist" if (given / "dist").is_dir() else given
    if missing := [name for name in INTEGRITY if not (files / name).is_file()]:
        raise MissingFileError(
            f"runtime is {given}, in which {missing[0]} is missing: expected the folder of npm's onnxruntime-web "
            f"{VERSION} (npm pack onnxruntime-web@{VERSION}), or dist in it"
        )
    version = _version(given / "package.json", files.parent / "package.json")
    return Runtime(version, "./", {name: integrity_of(files / name) for name in INTEGRITY}, files)


def _version(*descriptions: Path) -> str:
    found = next((read_json(path) for path in descriptions if path.is_file()), {"name": "onnxruntime-web"})
    if found.get("name") != "onnxruntime-web":
        raise UserError(f"runtime is npm's package {found.get('name')!r}: expected onnxruntime-web")
    return str(found.get("version", "of an unknown version"))


def integrity_of(path: str | PathLike[str]) -> str:
    """A file's SHA-384 as browsers write it; errors see `vankit.files.open_file`."""
    with open_file(path) as file:
        return f"sha384-{base64.b64encode(hashlib.file_digest(file, 'sha384').digest()).decode()}"


def write_site(exported: Exported, runtime: Runtime) -> None:
    """Add to an exported folder what makes it a site: the page, site.json, and the runtime if it is not a public one.

    Args:
        exported: in format web, with its model and facts.
        runtime: see `find_runtime`.
    """
    folder = exported.folder
    for name, target in _PAGE.items():
        (folder / target).write_bytes(asset(name))
    _insert_policy(folder / "index.html", runtime)
    if runtime.folder:
        for name in runtime.integrity:
            shutil.copyfile(runtime.folder / name, folder / name)
    write_text(folder / _SITE, to_json(_description(exported, runtime)) + "\n")
    write_text(folder / "README.md", _card(exported, runtime))


def _description(exported: Exported, runtime: Runtime) -> dict[str, Any]:
    """What the page has to know."""
    network = exported.description
    builds = {
        name: [{"file": file, "integrity": runtime.integrity[file]} for file in files] for name, files in BUILDS.items()
    }
    return {
        "name": exported.facts["name"],
        "classes": list(network.classes),
        "multi_label": network.multi_label,
        "thresholds": list(network.thresholds),
        "explains": CLASS_MAPS in exported.outputs,
        "preprocessing": asdict(exported.preprocessing),
        "model": {"file": exported.path.name, "integrity": integrity_of(exported.path)},
        "check": _answer(exported).tolist(),
        "runtime": {"version": runtime.version, "base": runtime.base, **builds},
    }


def _answer(exported: Exported) -> NDArray[np.float32]:
    """The logits for an input that runtime.js makes, too: a browser that computes others is found out."""
    size = exported.preprocessing.input_size
    pattern = np.arange(np.prod(size), dtype=np.int64) * 7919 % 2003 / 1001 - 1
    logits = exported.engine(cached=False)(pattern.astype(np.float32).reshape(1, *size))[0]
    check_output(logits)
    return logits


def policy(runtime: Runtime) -> str:
    """The page's Content-Security-Policy: what it loads comes from the site or from the runtime's address, and nothing
    can be sent elsewhere, pictures least of all.

    Scripts from blobs are the runtime, once its hash is found right, and the worker, see runtime.js and browser.js;
    what the worker imports counts as a worker, too.
    """
    rules = {
        "default-src": "'none'",
        "script-src": "'self' blob: 'wasm-unsafe-eval'",
        "worker-src": "'self' blob:",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": f"'self' {runtime.origin}".strip(),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in rules.items())


_CHARSET = '<meta charset="utf-8">'  # browsers want it first; the policy holds for what comes after it


def _insert_policy(page: Path, runtime: Runtime) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.count(_CHARSET) == 1
    meta = f'{_CHARSET}\n  <meta http-equiv="Content-Security-Policy" content="{policy(runtime)}">'
    write_text(page, text.replace(_CHARSET, meta))


def _card(exported: Exported, runtime: Runtime) -> str:
    """README.md."""
    facts = exported.facts
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    partners = "the site itself" if runtime.folder else "the site and the address of the runtime"
    return f"""# {facts["name"]} in the browser

This folder is a web page that classifies pictures in the visitor's browser. Pictures never leave the visitor's device:
nothing in the page sends them, and its Content-Security-Policy lets it talk to nobody but
{partners}.

Made on {facts["date"]} with {versions} by

```bash
{facts["command"]}
```

## Try it

```bash
python -m http.server --bind 127.0.0.1 8000
```

in this folder, and open <http://127.0.0.1:8000>. Opened as a file, without a server, no browser starts the page.

## Host it

Copy the folder to any static host, at any address; https is needed for browsers to use the GPU. The page does without
`README.md`, `export.json`, `preprocessing.json` and `labels.txt`. They are for vankit, to which this is an exported
folder like others (`vankit predict photo.jpg --model FOLDER`).

## What it loads

{_loads(exported, runtime)}

The runtime and the model are checked against their SHA-384 in `site.json` before they are used. Browsers with WebGPU
compute on the GPU, others in WebAssembly: on one core, unless the host sends the headers
`Cross-Origin-Opener-Policy: same-origin` and `Cross-Origin-Embedder-Policy: require-corp`. `?device=wasm` after the
page's address leaves the GPU out.

## Checks

In float32 no logit of `model.onnx` was further than {facts["largest_difference"]:.1e} from eager PyTorch's, and every
top-1 was the same. In the visitor's browser the answer to one input is compared with what it was here, to a thousandth;
a GPU that gives another is not used.
"""


def _loads(exported: Exported, runtime: Runtime) -> str:
    model = f"- from the site itself the page, {_megabytes(exported.path)} of `model.onnx`"
    if not runtime.folder:
        return f"""{model};
- from <{runtime.base}> onnxruntime-web {runtime.version}
  (MIT licence): 14.3 MB, 3.7 MB compressed, or with WebGPU 26.9 MB, 6.7 MB compressed."""
    wasm, webgpu = (_megabytes(*(runtime.folder / file for file in files)) for files in BUILDS.values())
    return f"""{model}, and
  onnxruntime-web {runtime.version} (MIT licence): {wasm}, or with WebGPU {webgpu}, less where the host compresses;
- from elsewhere nothing."""


def _megabytes(*files: Path) -> str:
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"
