"""The job of `vankit predict` on a Ray cluster: the images in shards, one Parquet file per shard."""

import hashlib
import json
import logging
import math
import os
import re
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from itertools import islice
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vankit.data.tree import is_junk
from vankit.data.walk import IMAGE_SUFFIXES, find_images, is_image
from vankit.deploy.folder import is_exported
from vankit.deploy.opening import is_path
from vankit.errors import MissingFileError, MissingPackageError, UserError
from vankit.files import check_folder, sha256_of, to_json
from vankit.locks import check_free, held, making
from vankit.prediction.jobs import row_of, text_of
from vankit.prediction.labels import Prediction, Predictor
from vankit.prediction.parquet import parquet_schema

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"shard-[0-9]{6,}\.parquet")
_MANIFEST = "_manifest.json"  # readers of Parquet folders pass over names that start with _ or .
_ATTEMPTS = 4
_FETCHES = 16


class ShardError(UserError, RuntimeError):
    """A shard cannot be done: its worker dies again and again, or its file cannot be written."""


def predict_on_ray(
    inputs: str | PathLike[str] | Iterable[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    address: str | None = None,
    workers: int | None = None,
    shard_size: int = 1024,
    **predictor_options: Any,
) -> Generator[tuple[int, int], None, None]:
    """Label images on a Ray cluster, as the iterator is consumed; call again after a failure to do what is missing.

    The images are listed first, then cut into shards. A shard is there whole or not at all, as `shard-000042.parquet`
    with the columns of `vankit.prediction.tables.Row`; rows are in the order of the listing within a shard and over
    them. One that is there but is broken, or has rows of other images, is made anew. A shard whose worker dies is done
    again by another, four times at most. The output also gets a `_manifest.json` of what the job is.

    Args:
        inputs: what `vankit.predict` takes, or URLs of files and folders that fsspec knows, such as s3://bucket/folder;
            fsspec's own configuration holds credentials. Local files, the checkpoint too, must be on every node.
        output: a folder or the URL of one; it is made.
        address: of a running cluster: auto or host:port. None starts one on this machine, for as long as the job takes,
            unless the program is connected to one already.
        workers: processes, each with a `Predictor`, which uses all cores of its node or one GPU. None: one per node, or
            one per GPU if the cluster has any and the options allow it.
        shard_size: images per shard.
        predictor_options: arguments of `vankit.Predictor`; names, numbers and paths.

    Yields:
        (rows, rows with an error) of each shard as it is finished; shards that were there already are left out.

    Raises:
        FileNotFoundError: an input holds no image; nothing is labelled then.
        ValueError: the output is that of another job, of which the message says what differs, or holds other files, or
            another job is writing it (which is only seen in a local folder); or see `Predictor`.
        ShardError: a shard cannot be done.
        ImportError: without ray, fsspec, pyarrow, or what fsspec needs for the kind of URL.
    """
    try:
        import pyarrow
        import ray
        import ray.data
        from fsspec import url_to_fs
    except ImportError as error:
        raise MissingPackageError(f"a cluster job needs {error.name}: pip install 'vankit[ray]'") from None
    if shard_size < 1 or (workers is not None and workers < 1):
        raise UserError(f"shard_size is {shard_size} and workers {workers}, expected 1 or more")
    if address is not None and address.startswith("ray://"):
        raise UserError(f"Ray Data does not run over {address}: on a node of the cluster, give auto as the address")
    job = {"shard_size": shard_size, **_describe(predictor_options)}
    fs, root = url_to_fs(os.fspath(output), use_listings_cache=False)
    _check_folder(fs, root)
    predictor = Predictor(**predictor_options)  # what is wrong with them is said before a cluster starts
    if predictor_options.get("device", "auto") == "auto":  # a device may be one of the cluster's only
        _ = predictor.engine
    with _made(fs, root):
        connected = ray.is_initialized()
        if not connected:
            _connect(ray, address)
        try:
            missing = _missing(ray, pyarrow, fs, root, inputs, job)
            _remove_unfinished(fs, root)
            if missing:
                worker = (fs, root, os.getcwd(), predictor_options)
                yield from _run(ray.data, missing, worker, *_resources(ray.nodes(), workers, predictor_options))
                _remove_unfinished(fs, root)
        finally:
            if not connected:
                ray.shutdown()


def _is_local(fs: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(fs, LocalFileSystem)


@contextmanager
def _made(fs: Any, root: str) -> Iterator[None]:
    """Make the output, and hold it where that can be."""
    if _is_local(fs):
        with making(root), held(root):
            yield
    else:
        fs.makedirs(root, exist_ok=True)
        yield


def _check_folder(fs: Any, root: str) -> None:
    """Refuse, before the work is done, an output that cannot be written, or which others write or use."""
    if _is_local(fs):
        check_folder(root)
        check_free(root)
    _check_names(root, [name for name in _visible(fs, root) if not _SHARD.fullmatch(name)])


def _visible(fs: Any, root: str) -> set[str]:
    """What readers of a Parquet folder would read in it."""
    found = fs.ls(root, detail=False) if fs.exists(root) else []
    # stores may list an empty object of the folder itself
    names = {Path(name).name for name in found if name.rstrip("/") != root.rstrip("/")}
    return {name for name in names if not name.startswith(("_", "."))}


def _check_names(root: str, others: Collection[str]) -> None:
    if others:
        raise UserError(
            f"{root} holds other files, such as {min(others)}, which would be read with the predictions: choose "
            "another output"
        )


def _missing(ray: Any, pyarrow: Any, fs: Any, root: str, inputs: Any, job: dict[str, Any]) -> list[Any]:
    """The shards without a file of theirs, for Ray Data: references to tables of a shard's number and names.

    Ray's object store, which can spill to disk, is the only place that holds all names.
    """
    schema = pyarrow.schema({"shard": pyarrow.int64(), "names": pyarrow.list_(pyarrow.binary())})
    shards, images, digest = [], 0, hashlib.sha256()
    listing = map(os.fsencode, _list(inputs))
    for shard, names in enumerate(iter(lambda: list(islice(listing, job["shard_size"])), [])):
        images += len(names)
        digest.update(b"\0".join([*names, b""]))
        shards.append(ray.put(pyarrow.Table.from_pylist([{"shard": shard, "names": names}], schema=schema)))
    finished = _visible(fs, root)
    _check(fs, root, {"images": images, "names_sha256": digest.hexdigest(), **job}, bool(finished))
    _check_names(root, finished - {_file(shard) for shard in range(len(shards))})

    def is_done(shard: int) -> bool:
        return _file(shard) in finished and _holds(fs, f"{root}/{_file(shard)}", ray.get(shards[shard])["names"][0])

    with ThreadPoolExecutor(_FETCHES) as pool:
        return [shards[shard] for shard, done in enumerate(pool.map(is_done, range(len(shards)))) if not done]


def _holds(fs: Any, path: str, names: Any) -> bool:
    """Whether a file has the rows of these images, rather than that it is there."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with fs.open(path, "rb") as file, ParquetFile(file, page_checksum_verification=True) as rows:
            expected = [text_of(os.fsdecode(name)) for name in names.as_py()]
            same = rows.schema_arrow.equals(parquet_schema()) and rows.metadata.num_rows == len(expected)
            why = "" if same and rows.read()["image"].to_pylist() == expected else "it has other rows"
    except (ArrowException, OSError, UnicodeError) as error:
        why = str(error)
    if why:
        logger.warning("%s is not what this job wrote (%s): it is made anew", path, why)
    return not why


def _describe(options: dict[str, Any]) -> dict[str, Any]:
    """The predictor's options for the manifest, with the content of the files they name."""
    try:
        found: dict[str, Any] = {"options": json.loads(json.dumps(options, default=os.fspath))}
    except TypeError as error:
        raise UserError(f"a cluster job takes options that are names, numbers and paths: {error}") from None
    model, files = options.get("model"), []
    if is_exported(model):
        files = sorted(Path(model).rglob("*"))
    elif checkpoint := options.get("checkpoint") or (model if model and is_path(model) else None):
        from vankit.models.weights import file_in

        files = [file_in(Path(checkpoint))]
    found["files_sha256"] = [sha256_of(file) for file in files if file.is_file()]
    return found


def _check(fs: Any, root: str, job: dict[str, Any], begun: bool) -> None:
    path = f"{root}/{_MANIFEST}"
    if fs.exists(path):
        before = _read_manifest(fs, path)
        changed = [key for key in job | before if before.get(key) != job.get(key)]
        if changed:
            changes = ", ".join(f"{key} (was {before.get(key)}, is {job.get(key)})" for key in changed)
            raise UserError(f"{root} holds another job, which differs in {changes}: choose another output")
    elif begun:
        raise UserError(f"{root} holds Parquet files but no {_MANIFEST} of their job: choose another output")
    else:
        fs.pipe_file(f"{root}/.{_MANIFEST}", to_json(job).encode())
        fs.mv(f"{root}/.{_MANIFEST}", path)


def _read_manifest(fs: Any, path: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        if isinstance(job := json.loads(fs.cat_file(path)), dict):
            return job
    raise UserError(f"{path} is damaged: choose another output")


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    local = {"include_dashboard": False} if address is None else {}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)


def _resources(
    nodes: Sequence[dict[str, Any]], workers: int | None, options: dict[str, Any]
) -> tuple[int, dict[str, float]]:
    """The number of workers, and what each asks of its node."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = int(sum(each.get("GPU", 0) for each in resources))
    if gpus and options.get("device", "auto") != "cpu" and options.get("engine", "auto") in ("auto", "torch"):
        return workers or gpus, {"num_cpus": 1, "num_gpus": 1}
    cores = [each["CPU"] for each in resources if each.get("CPU", 0) >= 1]
    if not cores:
        raise UserError("no node of the Ray cluster offers a CPU")
    workers = workers or len(cores)
    share = min(cores) / math.ceil(workers / len(cores))
    return workers, {"num_cpus": math.floor(share) if share >= 1 else math.floor(1e4 * share) / 1e4}


def _run(
    data: Any, shards: list[Any], worker: tuple[Any, ...], workers: int, resources: dict[str, float]
) -> Iterator[tuple[int, int]]:
    """Ray Data starts a worker that dies again, and its shard with it, as often as it takes."""
    dataset = data.from_arrow_refs(shards)
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s = -1  # a large shard takes its time
    pool = data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1)
    dataset = dataset.map(_Worker, fn_constructor_args=worker, compute=pool, **resources)
    for block in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
        for done in block.to_pylist():
            if done["error"] is not None:
                raise ShardError(f"{_file(done['shard'])} cannot be processed: {done['error']}")
            yield done["rows"], done["failed"]


class _Worker:
    """Makes a shard's file of a shard's names; Ray Data keeps it for as many shards as come."""

    def __init__(self, fs: Any, root: str, folder: str, options: dict[str, Any]) -> None:
        self.fs, self.root, self.options = fs, root, options
        with suppress(OSError):  # where the nodes share files, relative paths mean the same
            os.chdir(folder)

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor(**self.options)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        import pyarrow
        from pyarrow.parquet import write_table

        done = {"shard": shard["shard"], "rows": 0, "failed": 0, "error": None}
        try:
            unfinished = self._claim(shard["shard"])
            rows = [row_of(each) for each in _label(self.predictor, [os.fsdecode(name) for name in shard["names"]])]
            with self.fs.open(unfinished, "wb") as file:
                write_table(pyarrow.Table.from_pylist(rows, schema=parquet_schema()), file)
            self.fs.mv(unfinished, f"{self.root}/{_file(shard['shard'])}")
        except Exception as error:  # Ray Data would bury it under its own frames and advice
            return done | {"error": f"{type(error).__name__}: {error}"}
        return done | {"rows": len(rows), "failed": sum(row["error"] is not None for row in rows)}

    def _claim(self, shard: int) -> str:
        """A file of this attempt's own. Those of workers that died stay, so that a shard that kills them ends."""
        for attempt in range(_ATTEMPTS):
            path = f"{self.root}/.{_file(shard)}.{attempt}"
            if not self.fs.exists(path):
                self.fs.pipe_file(path, b"")
                return path
        raise RuntimeError(
            f"its worker died {_ATTEMPTS} times; too little memory, or an image that crashes the decoder"
        )


def _label(predictor: Predictor, names: Sequence[str]) -> Iterator[Prediction]:
    """`Predictor.stream` over paths and URLs; what a URL names is fetched to a file, a few ahead."""
    waiting: deque[tuple[str, str, str | None]] = deque()

    def images() -> Iterator[str]:
        for fetched in _fetch_all(names, folder):
            waiting.append(fetched)
            yield fetched[1]

    with TemporaryDirectory() as folder:
        for prediction in predictor.stream(images()):
            name, path, error = waiting.popleft()
            if path != name:
                Path(path).unlink(missing_ok=True)
                error = error or (prediction.error and prediction.error.replace(path, name))
                prediction = replace(prediction, source=name, error=error)
            yield prediction


def _fetch_all(names: Sequence[str], folder: str) -> Iterator[tuple[str, str, str | None]]:
    """Name, local path, and why there is no file at that path; in order."""
    ahead: deque[Future[tuple[str, str, str | None]]] = deque()
    with ThreadPoolExecutor(_FETCHES) as pool:
        for at, name in enumerate(names):
            ahead.append(pool.submit(_fetch, name, f"{folder}/{at}"))
            if len(ahead) > _FETCHES:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _fetch(name: str, path: str) -> tuple[str, str, str | None]:
    from fsspec import url_to_fs

    if "://" not in name:
        return name, name, None
    try:
        fs, remote = url_to_fs(name)
        fs.get_file(remote, path)
    except Exception as error:  # each kind of store has its own
        return name, path, f"{name} cannot be fetched ({type(error).__name__}: {error})"
    return name, path, None


def _list(inputs: str | PathLike[str] | Iterable[str | PathLike[str]]) -> Iterator[str]:
    """Paths as `find_images` gives them, and URLs in the same order."""
    for each in [inputs] if isinstance(inputs, str | PathLike) else inputs:
        found = _list_url(each) if isinstance(each, str) and "://" in each else map(str, find_images(each))
        first = next(found, None)
        if first is None:
            raise MissingFileError(f"no images in {each}: expected names ending in {' '.join(sorted(IMAGE_SUFFIXES))}")
        yield first
        yield from found


def _list_url(url: str) -> Iterator[str]:
    from fsspec import url_to_fs

    fs, path = url_to_fs(url, use_listings_cache=False)
    if fs.isdir(path):
        yield from map(fs.unstrip_protocol, _walk(fs, path))
    else:
        yield url


def _walk(fs: Any, folder: str) -> Iterator[str]:
    for path, kind in sorted((entry["name"].rstrip("/"), entry["type"]) for entry in fs.ls(folder, detail=True)):
        if is_junk(Path(path).name):
            continue
        if kind == "directory":
            if path != folder.rstrip("/"):  # object stores may hold an empty object in a folder's name
                yield from _walk(fs, path)
        elif is_image(path):
            yield path


def _file(shard: int) -> str:
    return f"shard-{shard:06d}.parquet"


def _remove_unfinished(fs: Any, root: str) -> None:
    for name in fs.ls(root, detail=False):
        if Path(name).name.startswith(".shard-"):
            fs.rm_file(name)
