"""The application: which address does what. Any ASGI server runs it; that of vankit is `vankit.serving.server`."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from os import PathLike
from typing import Any, TypeVar

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from vankit.data.images import MAX_PIXELS
from vankit.engines.base import cores
from vankit.errors import UserError, out_of_memory
from vankit.prediction.request import check_request
from vankit.serving import openapi, protocol
from vankit.serving.bodies import Bodies, Picture, pictures_in
from vankit.serving.errors import CLIENT_GONE, BadRequestError, Refusal
from vankit.serving.guard import ABOUT, Guard
from vankit.serving.metrics import CONTENT_TYPE, Metrics
from vankit.serving.models import LOWEST_SCORE, Ask, Models, Served, Settings, named_sources
from vankit.serving.pool import FullError, Job, Pool
from vankit.serving.query import Query
from vankit.web import ASSETS, asset

T = TypeVar("T")

_MOST_TARGETS = 20
_LAST_PICTURE = 5  # seconds for what is still at work at the end, though nobody waits for it any more


@dataclass(frozen=True)
class Limits:
    """What clients may ask for at once; see `vankit.serve`."""

    queue: int = 64
    max_body: int = 20_000_000
    timeout: float = 30.0


class Service:
    """The networks, the threads that run them, and an endpoint for each thing that can be asked for.

    Args:
        sources: networks by name.
        settings: how they are run.
        limits: for clients.
    """

    def __init__(self, sources: Mapping[str, str | PathLike[str]], settings: Settings, limits: Limits) -> None:
        self.limits = limits
        self.pool = Pool(settings.workers, limits.queue)
        self.metrics = Metrics(self.pool)
        self.bodies = Bodies(limits.max_body, limits.timeout)
        self.models = Models(sources, settings, lambda served: self.metrics.loaded(served.name, served.seconds))
        self._loading = asyncio.Lock()
        # requests that are large, apart from the threads for networks that are loaded
        self._readers = ThreadPoolExecutor(2, "vankit-reading")
        for name in sources:
            self.models.load(name)

    # what there is

    async def list_models(self, request: Request) -> Response:
        return _json({"models": [served.about() for served in self.models.all()]})

    async def figures(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def description(self, request: Request) -> Response:
        return _json(openapi.document(self.limits.max_body))

    async def manual(self, request: Request) -> Response:
        return Response(openapi.page(openapi.document(self.limits.max_body)), media_type="text/html")

    async def page_file(self, request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in ASSETS and name != "backend.js":
            raise HTTPException(HTTPStatus.NOT_FOUND)
        found = "server.js" if name == "backend.js" else name
        return Response(asset(found), media_type=ASSETS[found], headers={"cache-control": "no-cache"})

    # pictures

    async def predict(self, request: Request) -> Response:
        served, query = self._model(request), Query(request, "top_k", "score", "draw")
        ask = Ask(query.count("top_k"), query.number("score", LOWEST_SCORE, 1.0, 0.3))
        draw = query.flag("draw")
        if "score" in request.query_params and served.task != "detect":
            raise BadRequestError(f"score is for detectors, and {served.name} is not one: leave it out")
        if "top_k" in request.query_params and served.task != "classify":
            raise BadRequestError(f"top_k is for classifiers, and {served.name} is not one: leave it out")
        if draw and served.task == "classify":
            raise BadRequestError(
                f"draw is for detectors and segmenters, and {served.name} is a classifier: leave it out"
            )
        async with self._body(request) as body:
            pictures = await self._pictures(request, body)
            if draw:
                return await self._drawn(request, served, pictures, ask)
            return await self._entries(
                request, served, pictures, lambda worker, data: served.predict(worker, data, ask)
            )

    async def explain(self, request: Request) -> Response:
        served, query = self._model(request), Query(request, "target")
        try:
            targets = served.targets(query.several("target", _MOST_TARGETS))
        except UserError as error:
            raise BadRequestError(str(error).replace("`target`", "target")) from None
        async with self._body(request) as body:
            pictures = await self._pictures(request, body)
            look = lambda worker, data: served.explain(worker, data, targets)  # noqa: E731
            return await self._entries(request, served, pictures, look)

    async def _pictures(self, request: Request, body: bytes) -> list[Picture]:
        found = await self._aside(pictures_in, body, request.headers.get("content-type", ""))
        request.scope[ABOUT] |= {"pictures": len(found), "bytes": len(body)}
        return found

    async def _entries(
        self,
        request: Request,
        served: Served,
        pictures: Sequence[Picture],
        look: Callable[[int, bytes], dict[str, Any]],
    ) -> Response:
        """An entry per picture, with its error if it is bad; a single bad one is refused."""
        rows = await self._run(request, [partial(_entry, picture, look) for picture in pictures])
        bad = sum("error" in row for row in rows)
        self.metrics.pictures(served.name, len(rows) - bad, bad)
        if bad == len(rows):
            reason = rows[0]["error"] if bad == 1 else "; ".join(f"{row['source']}: {row['error']}" for row in rows[:5])
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, reason)
        about = {"model": served.name, "version": served.version, "task": served.task}
        return _json({**about, "pictures": rows})

    async def _drawn(self, request: Request, served: Served, pictures: Sequence[Picture], ask: Ask) -> Response:
        if len(pictures) > 1:
            raise BadRequestError(f"draw is for one picture, and there are {len(pictures)}: send them one by one")
        content = pictures[0].content
        (row,) = await self._run(request, [lambda worker: _tried(lambda: served.draw(worker, content, ask))])
        self.metrics.pictures(served.name, int(not isinstance(row, str)), int(isinstance(row, str)))
        if isinstance(row, str):
            raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, row)
        return Response(row, media_type="image/jpeg")

    # the Open Inference Protocol

    async def server_metadata(self, request: Request) -> Response:
        return _json({"name": "vankit", "version": version("vankit"), "extensions": protocol.EXTENSIONS})

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        return _json({"ready": True})

    async def model_metadata(self, request: Request) -> Response:
        return _json(protocol.metadata(self._model(request)))

    async def model_ready(self, request: Request) -> Response:
        served = self._model(request)
        return _json({"name": served.name, "ready": True})

    async def infer(self, request: Request) -> Response:
        served = self._model(request)
        async with self._body(request) as body:
            header = request.headers.get(protocol.HEADER_LENGTH)
            inference = await self._aside(protocol.read_request, body, header, served)
            names = [wanted.name for wanted in inference.wanted]
            jobs: list[Job] = [partial(_inferred, served, row, names) for row in inference.rows]
            request.scope[ABOUT] |= {"pictures": len(jobs), "bytes": len(body)}
            rows = await self._run(request, jobs)
            bad = [row for row in rows if isinstance(row, str)]
            self.metrics.pictures(served.name, len(rows) - len(bad), len(bad))
            if bad:
                raise Refusal(HTTPStatus.UNPROCESSABLE_ENTITY, bad[0])
            content, headers = await self._aside(protocol.write_answer, inference, rows, served)
            return Response(content, headers=headers)

    async def repository(self, request: Request) -> Response:
        found = self.models.all()
        return _json([{"name": each.name, "version": each.version, "state": "READY"} for each in found])

    async def load(self, request: Request) -> Response:
        name = self._model(request).name
        if self._loading.locked():  # each would take a thread, and the memory of a network
            busy = "a network is being loaded: try again"
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, busy, {"retry-after": "1"})
        async with self._loading:
            try:
                served = await asyncio.to_thread(self.models.load, name)
            except (UserError, OSError) as error:
                raise BadRequestError(f"{name} was not replaced: {error}") from None
        return _json({"name": served.name, "version": served.version, "state": "READY"})

    # the ways of a request

    def _model(self, request: Request) -> Served:
        name, wanted = request.path_params["model"], request.path_params.get("version")
        try:
            served = self.models[name]
        except KeyError:
            known = ", ".join(each.name for each in self.models.all())
            raise Refusal(HTTPStatus.NOT_FOUND, f"there is no model {name[:100]!r}: expected one of {known}") from None
        if wanted not in (None, served.version):
            raise Refusal(HTTPStatus.NOT_FOUND, f"{name} has version {served.version}, not {wanted[:20]!r}")
        return served

    async def _aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call what may take long for large requests, so that the event loop goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        body = await self.bodies.read(request)
        try:
            yield body
        finally:
            self.bodies.release(len(body))

    async def _run(self, request: Request, jobs: Sequence[Job]) -> list[Any]:
        """Have jobs done, unless the client goes or the time is over.

        Raises:
            Refusal: there is no room for them, or they were not done in time.
        """
        try:
            work = [asyncio.wrap_future(future) for future in self.pool.submit(jobs)]
        except FullError as full:
            raise self._too_many(full, len(jobs)) from None
        gone = asyncio.ensure_future(_disconnected(request))
        done = asyncio.ensure_future(_all(work))
        try:
            waiting: set[asyncio.Future[Any]] = {done, gone}
            await asyncio.wait(waiting, timeout=self.limits.timeout, return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return done.result()
            if gone.done():
                raise Refusal(CLIENT_GONE, "the client is gone")
            reason = f"there was no answer within {self.limits.timeout:g} s: try again later"
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, reason, {"retry-after": str(math.ceil(self.limits.timeout))})
        finally:
            for each in (gone, done, *work):
                each.cancel()

    def _too_many(self, full: FullError, count: int) -> Refusal:
        if full.never:
            most = self.pool.queue + self.pool.workers
            return Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"there are {count} pictures in one request: send {most} at most"
            )
        seconds = max(1, math.ceil(full.seconds))
        return Refusal(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"the queue is full, {self.pool.queue} pictures: try again in {seconds} s",
            {"retry-after": str(seconds)},
        )


async def _all(work: Sequence[Awaitable[Any]]) -> list[Any]:
    return [await each for each in work]


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _tried(look: Callable[[], Any]) -> Any:
    """What comes of a picture, or as text why it cannot be used."""
    try:
        return look()
    except (UserError, OSError) as error:
        return str(error) or type(error).__name__
    except Exception as error:
        if out_of_memory(error):
            return "there is not enough memory for this picture"
        raise


def _entry(picture: Picture, look: Callable[[int, bytes], dict[str, Any]], worker: int) -> dict[str, Any]:
    found = _tried(lambda: look(worker, picture.content))
    return {"source": picture.source, **({"error": found} if isinstance(found, str) else found)}


def _inferred(served: Served, row: Any, names: Sequence[str], worker: int) -> Any:
    return _tried(lambda: served.infer(worker, row, names))


def _json(content: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _json({"error": str(error)}, error.status, error.headers)


def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path[:100]}: {error.detail.lower()}; see /docs"
    return _json({"error": said}, error.status_code, error.headers)


def _failed(request: Request, error: Exception) -> Response:
    return _json({"error": "this is a bug in vankit, which its log says more about"}, 500)


def _routes(service: Service) -> list[Route]:
    get, post = ["GET"], ["POST"]
    model = "/v2/models/{model}"
    named = [
        Route(f"{model}{version}{path}", endpoint, methods=methods)
        for version in ("", "/versions/{version}")
        for path, endpoint, methods in (
            ("", service.model_metadata, get),
            ("/ready", service.model_ready, get),
            ("/infer", service.infer, post),
        )
    ]
    return [
        Route("/", service.page_file, methods=get),
        Route("/models", service.list_models, methods=get),
        Route("/predict/{model}", service.predict, methods=post),
        Route("/explain/{model}", service.explain, methods=post),
        Route("/metrics", service.figures, methods=get),
        Route("/openapi.json", service.description, methods=get),
        Route("/docs", service.manual, methods=get),
        Route("/v2", service.server_metadata, methods=get),
        Route("/v2/health/live", service.live, methods=get),
        Route("/v2/health/ready", service.ready, methods=get),
        *named,
        Route("/v2/repository/index", service.repository, methods=post),
        Route("/v2/repository/models/{model}/load", service.load, methods=post),
        Route("/{name}", service.page_file, methods=get),
    ]


_EXPOSED = ("retry-after", "x-request-id", protocol.HEADER_LENGTH)  # headers that other pages may read
_OPEN = frozenset({"/", "/openapi.json", "/docs", "/v2/health/live", "/v2/health/ready", "/backend.js"})


def application(
    models: Iterable[str],
    *,
    token: str | None = None,
    workers: int | None = None,
    limits: Limits = Limits(),
    allow_origins: Collection[str] = (),
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> ASGIApp:
    """The ASGI application, with its networks loaded; for other servers than that of `vankit.serve`.

    Args:
        models: see `vankit.serve`, as the other arguments.

    Raises:
        FileNotFoundError, ValueError, ImportError: see there.
    """
    check_request(engine=engine, precision=precision, device=device, max_pixels=max_pixels)
    settings = Settings(workers or cores(), engine, precision, device, max_pixels)
    service = Service(named_sources(models), settings, limits)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.pool.close, _LAST_PICTURE)

    routes = Starlette(
        routes=_routes(service),
        exception_handlers={Refusal: _refused, HTTPException: _not_found, Exception: _failed},
        lifespan=lifespan,
    )  # fmt: skip
    routes.router.redirect_slashes = False  # to an address that a client's Host header would say
    open_paths = _OPEN | {f"/{name}" for name in ASSETS}
    guarded = Guard(routes, token, service.metrics, service.models.sources, open_paths, allow_origins)
    if not allow_origins:
        return guarded
    return CORSMiddleware(
        guarded, allow_origins=list(allow_origins), allow_methods=["*"], allow_headers=["*"], expose_headers=_EXPOSED
    )
