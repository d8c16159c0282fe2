"""Public checkpoints from the Hugging Face hub and other hosts: fetched once, resumed, checked by their sha256."""

import hashlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

import timm
import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    get_session,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, hf_raise_for_status, tqdm
from timm.models._builder import resolve_pretrained_cfg
from timm.models._hub import hf_split

from vankit.errors import UserError
from vankit.files import sha256_of

logger = logging.getLogger(__name__)

_REQUEST_TIMEOUT = 5.0  # seconds until a host must have answered a request for a file's metadata,
_DEADLINE = 8.0  # and for all of them: a host behind a silent firewall costs a timeout for each of its addresses
_READ_TIMEOUT = 10.0  # seconds without a byte
_ATTEMPTS = 6
_PAUSE = 1.0  # seconds after an attempt that brought no byte
_SHA256 = re.compile(r"[0-9a-f]{64}")
# the first digits, as torch.hub and OpenMMLab put them: name-0123abcd.pth; a number is a date or a step
_SHA256_IN_NAME = re.compile(r"-(?!\d+\.)([0-9a-f]{8,64})\.")
_SOURCES = ("source", "state_dict", "file", "hf_hub_id", "url")


Answer = TypeVar("Answer")


class DownloadError(UserError, OSError):
    """A checkpoint could not be fetched; the message says what was tried and how to pass a file instead."""


def fetch(
    repo_id: str,
    filename: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Path of a hub file in the Hugging Face cache, downloading it if it is not there.

    A cached file is used without asking the hub. A download that broke off is continued, in the same call and in
    later ones. Where the hub states a sha256 (all large files), the file has it, or it is not returned.

    Args:
        repo_id: such as 'Visual-Attention-Network/VAN-Tiny-original'.
        filename: path in the repository.
        revision: branch, tag or commit; None is 'main'.
        cache_dir: Hugging Face cache; None is HF_HOME's.
        endpoint: URL of the hub; None is HF_ENDPOINT's, else https://huggingface.co.
        local_files_only: use the cache alone.

    Raises:
        DownloadError: no network, no such file, or content that is not what the hub states.
    """
    endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    try:
        if path := _cached(repo_id, filename, revision, cache):
            return path
        if local_files_only:
            raise FileNotFoundError(f"it is not in {cache}, and local_files_only is set")
        url = hf_hub_url(repo_id, filename, revision=revision, endpoint=endpoint)
        metadata = _soon(
            lambda: get_hf_file_metadata(url, timeout=_REQUEST_TIMEOUT, library_name="vankit", endpoint=endpoint)
        )
        if (sha256 := metadata.etag) and _SHA256.fullmatch(sha256):
            folder = repo_folder_name(repo_id=repo_id, repo_type="model")
            blob = cache / folder / "blobs" / sha256  # where huggingface_hub looks for it
            lock = cache / ".locks" / folder / f"{sha256}.lock"
            _download(url, blob, lock, sha256, metadata.size, build_hf_headers(library_name="vankit"))
        # with the content in place this only files it under its revision and name
        path = Path(hf_hub_download(repo_id, filename, revision=revision, cache_dir=cache, endpoint=endpoint))
    except ValueError as error:  # a malformed repo_id or endpoint
        raise UserError(str(error)) from None
    except Exception as error:  # huggingface_hub lets its HTTP client's errors through, which are not OSErrors
        source, page = f"of {repo_id} from {endpoint}", f"https://huggingface.co/{repo_id}"
        hint = "HF_ENDPOINT names another hub, HF_HOME the folder of cached files. "
        raise DownloadError(_advice(filename, source, page, hint, error)) from error
    return path


def fetch_url(url: str, cache_dir: str | Path | None = None) -> Path:
    """Path of a file from any host in torch.hub's folder of checkpoints, downloading it if it is not there.

    MMPretrain and timm keep files of this kind there too, so that what they have fetched is used. As with `fetch`, the
    host is not asked for a cached file, and a download that broke off is continued. Where the file's name states the
    start of its sha256, the file has it, or it is not returned.

    Args:
        url: such as https://download.openmmlab.com/…/van-b4_3rdparty_in1k_20220909-f4665b92.pth.
        cache_dir: folder to keep it in; None is TORCH_HOME's `hub/checkpoints`.

    Raises:
        DownloadError: no network, no such file, or content that is not what the name states.
    """
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    stated = _SHA256_IN_NAME.search(name)
    sha256 = stated[1] if stated else ""
    # without a hash, another host may have another file of this name
    own = name if stated else f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    path = Path(cache_dir or Path(torch.hub.get_dir()) / "checkpoints") / own
    try:
        if path.is_file():
            if sha256_of(path).startswith(sha256):
                return path
            logger.warning("%s is damaged in the cache (its sha256 differs): fetching it again", path)
        headers = build_hf_headers(library_name="vankit", token=False)  # the user's token is for the hub alone
        _download(url, path, path.parent / ".locks" / f"{own}.lock", sha256, _size(url, headers), headers)
    except Exception as error:
        hint = "TORCH_HOME names the folder of cached files. "
        raise DownloadError(_advice(name, f"from {url}", url, hint, error)) from error
    return path


def _cached(repo_id: str, filename: str, revision: str | None, cache: Path) -> Path | None:
    """The file in the cache if it is there and sound; a damaged one is removed."""
    found = try_to_load_from_cache(repo_id, filename, cache_dir=cache, revision=revision)
    if not isinstance(found, str):
        return None
    path = Path(found)
    if not path.is_symlink():  # a file system without links: the cache does not keep the sha256
        return path
    blob = path.parent / path.readlink()  # named by its sha256; it may be a link into a store with other names
    if not _SHA256.fullmatch(blob.name) or sha256_of(blob) == blob.name:
        return path
    logger.warning("%s is damaged in the cache (its sha256 differs): fetching it again", path)
    path.unlink()
    blob.unlink()
    return None


def _soon(ask: Callable[[], Answer]) -> Answer:
    """An answer, or an error soon: `hf_hub_download` takes 23 s to find that it is offline."""
    answers: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def wait() -> None:
        try:
            answers.put(ask())
        except Exception as error:  # raised in the caller's thread
            answers.put(error)

    threading.Thread(target=wait, daemon=True).start()
    try:
        answer = answers.get(timeout=_DEADLINE)
    except queue.Empty:
        raise TimeoutError(f"no answer within {_DEADLINE:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _size(url: str, headers: dict[str, str]) -> int | None:
    """Bytes of a file; None where its host does not say, or answers with an error, which the download then meets."""
    identity = headers | {"Accept-Encoding": "identity"}
    response = _soon(lambda: get_session().head(url, headers=identity, timeout=_REQUEST_TIMEOUT, follow_redirects=True))
    length = response.headers.get("Content-Length")
    return int(length) if response.is_success and length else None


def _download(url: str, path: Path, lock: Path, sha256: str, size: int | None, headers: dict[str, str]) -> None:
    """Put a file's content at `path`, if its sha256 starts as stated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.vankit.incomplete")
    with WeakFileLock(lock):
        if path.exists() and sha256_of(path).startswith(sha256):
            return
        for _ in range(2):  # what a broken transfer left may be bad: once more from the start
            _transfer(url, partial, size, headers)
            found = sha256_of(partial)
            if found.startswith(sha256):
                partial.replace(path)
                return
            partial.unlink()
    raise OSError(f"its publisher states sha256 {sha256}, the content received twice has {found}")


def _transfer(url: str, partial: Path, size: int | None, headers: dict[str, str]) -> None:
    """Append to `partial` what it lacks, and go on after a broken connection.

    huggingface_hub's own transfer deletes its partial file when a call fails and loses up to 10 MB at each break.
    """
    for attempt in range(_ATTEMPTS):
        with partial.open("ab") as file:
            if size is None or file.tell() > size:  # without a size nobody can say what is lacking
                file.truncate(0)
            start = file.seek(0, os.SEEK_END)
            try:
                return _append(url, file, start, size, headers)
            except HfHubHTTPError:  # an answer, and it will not change
                raise
            except Exception as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                logger.warning("the download of %s broke off at byte %d (%s): continuing", url, file.tell(), error)
                if file.tell() <= start:
                    time.sleep(_PAUSE)


def _append(url: str, file: BinaryIO, start: int, size: int | None, headers: dict[str, str]) -> None:
    if start == size:
        return
    headers = headers | {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream("GET", url, headers=headers, timeout=_READ_TIMEOUT) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # a server that knows no ranges sends all of it
            file.truncate(0)
            start = 0
        with tqdm(total=size, initial=start, unit="B", unit_scale=True, desc=url.rpartition("/")[2]) as bar:
            for chunk in response.iter_bytes():
                file.write(chunk)
                bar.update(len(chunk))
    if size is not None and file.tell() != size:
        raise OSError(f"received {file.tell()} of {size} bytes")


def _advice(filename: str, source: str, page: str, hint: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"could not fetch {filename} {source}: {reason}\n"
        f"Get the file from {page} on a machine that can, and pass it: `--checkpoint FILE`, "
        "or in Python `vankit.load_checkpoint(model, path)` or `pretrained_cfg_overlay=dict(file=path)`. "
        f"{hint}`van_b0.cifar10` ships with vankit and needs no network."
    )


def resolve(
    variant: str,
    pretrained_cfg: str | dict[str, Any] | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
) -> dict[str, Any]:
    """Fetch the weights that timm's configuration names, and point timm at the file.

    Sources rank as in timm (state_dict, file, hub, url), except that one named in the overlay outranks the
    registry's. Models published in timm's own hub layout are left to timm.

    Args:
        variant: such as 'van_b0'.
        pretrained_cfg: tag or configuration, as timm's `create_model` takes it.
        pretrained_cfg_overlay: changes to it.
        cache_dir: folder to keep the file in, see `fetch` and `fetch_url`.

    Returns:
        The overlay with which `build_model_with_cfg` calls `VAN.load_pretrained` on the file.

    Raises:
        ValueError: the configuration names no weights.
        DownloadError: see `fetch` and `fetch_url`.
    """
    overlay = dict(pretrained_cfg_overlay or {})
    if any(overlay.get(key) for key in _SOURCES):
        unnamed = _SOURCES if overlay.get("hf_hub_id") else (*_SOURCES, "hf_hub_filename")
        overlay = {**dict.fromkeys(unnamed), **overlay}
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
    if cfg.source in ("hf-hub", "local-dir") or cfg.state_dict:
        return overlay
    if cfg.file:
        return {**overlay, "custom_load": True}
    if cfg.hf_hub_id and cfg.hf_hub_filename:
        repo_id, revision = hf_split(cfg.hf_hub_id)
        path = fetch(repo_id, cfg.hf_hub_filename, revision=revision, cache_dir=cache_dir)
        return {**overlay, "file": str(path), "custom_load": True}
    if cfg.hf_hub_id:
        return overlay
    if cfg.url:
        return {**overlay, "file": str(fetch_url(cfg.url, cache_dir)), "custom_load": True}
    public = ", ".join(timm.list_models("van_*", module="van", pretrained=True))
    raise UserError(
        f"this configuration of {variant} names no weights; public are {public}. Use pretrained=False, or pass a file: "
        "`pretrained_cfg_overlay=dict(file=path)`, or `--checkpoint FILE` on the command line"
    )
