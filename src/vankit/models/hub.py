"""Public checkpoints from the Hugging Face hub and other hosts: fetched once, resumed, checked by their sha256."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import timm
import torch
from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers
from timm.models._builder import resolve_pretrained_cfg
from timm.models._hub import hf_split

from vankit.errors import UserError
from vankit.files import read_json, sha256_of, write_text
from vankit.models.transfer import REQUEST_TIMEOUT, Refused, download, shown, size_of, soon

logger = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
# the first digits, as torch.hub and OpenMMLab put them: name-0123abcd.pth; a number is a date or a step
_SHA256_IN_NAME = re.compile(r"-(?!\d+\.)([0-9a-f]{8,64})\.")
_FILE_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)
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
    endpoint = _endpoint(endpoint)
    cache = Path(cache_dir or constants.HF_HUB_CACHE)
    _check_inside(filename, revision or "main")
    try:
        if path := _cached(repo_id, filename, revision, cache):
            return path
        if local_files_only:
            raise FileNotFoundError(f"it is not in {cache}, and local_files_only is set")
        url = hf_hub_url(repo_id, filename, revision=revision, endpoint=endpoint)
        metadata = soon(
            lambda: get_hf_file_metadata(url, timeout=REQUEST_TIMEOUT, library_name="vankit", endpoint=endpoint)
        )
        etag, commit = (
            _file_name(name, of) for name, of in ((metadata.etag, "ETag"), (metadata.commit_hash, "commit"))
        )
        folder = repo_folder_name(repo_id=repo_id, repo_type="model")
        blob, lock = cache / folder / "blobs" / etag, cache / ".locks" / folder / f"{etag}.lock"
        sha256 = etag if _SHA256.fullmatch(etag) else ""
        download(url, blob, lock, sha256, metadata.size, build_hf_headers(library_name="vankit"))
        path = _file_under(cache / folder, blob, commit, revision or "main", filename)
    except ValueError as error:  # a malformed repo_id or endpoint
        raise UserError(str(error)) from None
    except Exception as error:  # huggingface_hub lets its HTTP client's errors through, which are not OSErrors
        source, page = f"of {repo_id} from {shown(endpoint)}", f"https://huggingface.co/{repo_id}"
        hint = "HF_ENDPOINT names another hub, HF_HOME the folder of cached files. "
        raise DownloadError(_advice(filename, source, page, hint, error)) from error
    return path


def _endpoint(given: str | None = None) -> str:
    return (given or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


_FROM_HUB = ("hf-hub", "hf_hub")


@contextmanager
def reached(name: str, cache_dir: str | Path | None = None) -> Iterator[None]:
    """Say in a line what timm, which fetches a model `hf-hub:user/name` in the block, could not have of it; and say it
    soon, since timm tries for half a minute.

    Args:
        name: of any timm model.
        cache_dir: where timm looks for it; None for the hub's own cache.

    Raises:
        ValueError: timm has not put a model there.
        DownloadError: there is no network, or no such repository.
    """
    source, _, repository = name.partition(":")
    if source not in _FROM_HUB:
        yield
        return
    repo_id, _, revision = repository.partition("@")
    try:
        if "architecture" not in read_json(
            fetch(repo_id, "config.json", revision=revision or None, cache_dir=cache_dir)
        ):
            raise UserError(
                f"{name} is not a model of timm's, its config.json names no architecture: download its weights, and "
                "pass the file (--checkpoint FILE)"
            )
        yield
    except (DownloadError, EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise DownloadError(
            f"could not fetch {name} from {shown(_endpoint())}: {_what_to_do(error, cache_dir)}"
        ) from error


def _what_to_do(error: BaseException, cache_dir: str | Path | None) -> str:
    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    or_file = "or pass a file of weights (--checkpoint FILE)"
    if isinstance(error, HfHubHTTPError):
        answer = f"the answer is {error.response.status_code} {error.response.reason_phrase}".rstrip()
        return f"{answer}; check the name, log in (hf auth login) if it is not public, {or_file}"
    offline = constants.is_offline_mode()
    why = "HF_HUB_OFFLINE is set" if offline else " ".join(str(error).split()) or type(error).__name__
    cache = f"it is not in the cache, {cache_dir or f'{constants.HF_HUB_CACHE} (HF_HOME)'}"
    return f"{why}, and {cache}; fetch it there with a network, {or_file}"


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
        download(url, path, path.parent / ".locks" / f"{own}.lock", sha256, size_of(url, headers), headers)
    except Exception as error:
        hint = "TORCH_HOME names the folder of cached files. "
        raise DownloadError(_advice(name, f"from {shown(url)}", shown(url), hint, error)) from error
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


def files_behind(path: Path) -> list[Path]:
    """What decides that a name leads to a file that `resolve` has found: it, and the branch in the hub's cache."""
    snapshot = path.parent
    branch = snapshot.parent.parent / "refs" / "main"
    return [path, branch] if snapshot.parent.name == "snapshots" else [path]


def _check_inside(*names: str) -> None:
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise UserError(f"{name!r} leads out of a repository: expected a path in it, or a branch, tag or commit")


def _file_name(stated: str | None, what: str) -> str:
    """What a hub states, if it can be the name of a file of the cache and of none elsewhere."""
    if stated is None or not _FILE_NAME.fullmatch(stated):
        raise Refused(f"the hub states {stated!r} as the file's {what}, expected letters and digits")
    return stated


def _file_under(folder: Path, blob: Path, commit: str, revision: str, filename: str) -> Path:
    """Give a blob its place among the cached files, where huggingface_hub looks for it.

    Its own function for this would ask the hub again, and fetch without bounds what it then named.
    """
    path = folder / "snapshots" / commit / filename
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.unlink(missing_ok=True)  # a link to nothing
        try:
            path.symlink_to(os.path.relpath(blob, path.parent))
        except FileExistsError:  # another process was first
            pass
        except OSError:  # a disk without links
            blob.replace(path)
    if revision != commit:
        write_text(folder / "refs" / revision, commit)
    return path


def _advice(filename: str, source: str, page: str, hint: str, error: Exception) -> str:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return (
        f"could not fetch {filename} {source}: {reason}. "
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
