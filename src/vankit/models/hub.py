"""Public checkpoints from the Hugging Face hub: fetched once, resumed, checked against their sha256."""

import logging
import os
import queue
import re
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO

import timm
from huggingface_hub import (
    HfFileMetadata,
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

_REQUEST_TIMEOUT = 5.0  # seconds until the hub must have answered a request for a file's metadata,
_DEADLINE = 8.0  # and for all of them: a host behind a silent firewall costs a timeout for each of its addresses
_READ_TIMEOUT = 10.0  # seconds without a byte
_ATTEMPTS = 6
_PAUSE = 1.0  # seconds after an attempt that brought no byte
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SOURCES = ("source", "state_dict", "file", "hf_hub_id", "url")


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
        metadata = _metadata(url, endpoint)
        if metadata.etag and _SHA256.fullmatch(metadata.etag):
            _download(url, metadata.etag, metadata.size, cache, repo_folder_name(repo_id=repo_id, repo_type="model"))
        # with the content in place this only files it under its revision and name
        path = Path(hf_hub_download(repo_id, filename, revision=revision, cache_dir=cache, endpoint=endpoint))
    except ValueError as error:  # a malformed repo_id or endpoint
        raise UserError(str(error)) from None
    except Exception as error:  # huggingface_hub lets its HTTP client's errors through, which are not OSErrors
        raise DownloadError(_advice(repo_id, filename, endpoint, error)) from error
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


def _metadata(url: str, endpoint: str) -> HfFileMetadata:
    """The hub's etag and size of a file, or an error soon: `hf_hub_download` takes 23 s to find that it is offline."""
    answers: queue.SimpleQueue[HfFileMetadata | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(get_hf_file_metadata(url, timeout=_REQUEST_TIMEOUT, library_name="vankit", endpoint=endpoint))
        except Exception as error:  # raised in the caller's thread
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_DEADLINE)
    except queue.Empty:
        raise TimeoutError(f"no answer within {_DEADLINE:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _download(url: str, sha256: str, size: int | None, cache: Path, folder: str) -> None:
    """Put a file's content into the cache as `<folder>/blobs/<sha256>`, where huggingface_hub looks for it."""
    blob = cache / folder / "blobs" / sha256
    lock = cache / ".locks" / folder / f"{sha256}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{sha256}.vankit.incomplete")
    with WeakFileLock(lock):
        if blob.exists() and sha256_of(blob) == sha256:
            return
        for _ in range(2):  # what a broken transfer left may be bad: once more from the start
            _transfer(url, partial, size)
            found = sha256_of(partial)
            if found == sha256:
                partial.replace(blob)
                return
            partial.unlink()
    raise OSError(f"the hub states sha256 {sha256}, the content received twice has {found}")


def _transfer(url: str, partial: Path, size: int | None) -> None:
    """Append to `partial` what it lacks, and go on after a broken connection.

    huggingface_hub's own transfer deletes its partial file when a call fails and loses up to 10 MB at each break.
    """
    for attempt in range(_ATTEMPTS):
        with partial.open("ab") as file:
            if size is not None and file.tell() > size:
                file.truncate(0)
            start = file.seek(0, os.SEEK_END)
            try:
                return _append(url, file, start, size)
            except HfHubHTTPError:  # an answer, and it will not change
                raise
            except Exception as error:
                if attempt == _ATTEMPTS - 1:
                    raise
                logger.warning("the download of %s broke off at byte %d (%s): continuing", url, file.tell(), error)
                if file.tell() <= start:
                    time.sleep(_PAUSE)


def _append(url: str, file: BinaryIO, start: int, size: int | None) -> None:
    if start == size:
        return
    headers = build_hf_headers(library_name="vankit") | {"Accept-Encoding": "identity"}
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


def _advice(repo_id: str, filename: str, endpoint: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return (
        f"could not fetch {filename} of {repo_id} from {endpoint}: {reason}\n"
        f"Get the file from https://huggingface.co/{repo_id} on a machine that can, and pass it: `--checkpoint FILE`, "
        "or in Python `vankit.load_checkpoint(model, path)` or `pretrained_cfg_overlay=dict(file=path)`. "
        "HF_ENDPOINT names another hub, HF_HOME the folder of cached files. "
        "`van_b0.cifar10` ships with vankit and needs no network."
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
        cache_dir: Hugging Face cache.

    Returns:
        The overlay with which `build_model_with_cfg` calls `VAN.load_pretrained` on the file.

    Raises:
        ValueError: the variant has no public weights.
        DownloadError: see `fetch`.
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
        return {**overlay, "custom_load": True}
    public = ", ".join(timm.list_models("van_*", module="van", pretrained=True))
    raise UserError(
        f"{variant} has no public weights; these have: {public}. Use pretrained=False, or pass a file of your own: "
        "`pretrained_cfg_overlay=dict(file=path)`, or `--checkpoint FILE` on the command line"
    )
