"""The service on a Ray cluster: replicas of it, behind the proxies of Ray Serve."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from vankit.data.images import MAX_PIXELS
from vankit.errors import MissingPackageError, UserError
from vankit.prediction.request import check_request
from vankit.serving import check_limits

_REFUSED = (
    ("/metrics", "a replica counts for itself alone: see Ray's own metrics, whose names begin with ray_serve_"),
    ("/v2/repository/models/[^/]+/load", "it would reach one replica of several: deploy the application again"),
)


def application(
    models: str | Iterable[str],
    *,
    replicas: int | Sequence[int] = 2,
    workers: int = 1,
    gpus: float = 0,
    token: str | None = None,
    queue: int = 64,
    max_body: int = 20_000_000,
    timeout: float = 30.0,
    grace: float = 20.0,
    allow_origins: Collection[str] = (),
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
) -> Any:
    """The service as an application of Ray Serve, for `ray.serve.run`; each replica opens the networks by itself.

    It answers as `vankit.serve` does, but for /metrics and the loading of models, which it refuses with 501.

    Args:
        models: see `vankit.serve`; files and folders have to be there, by the same path, on every node.
        replicas: processes that answer; or the fewest and the most, between which Ray adapts their number to the load.
        workers: cores of each replica, which works on so many pictures at the same time.
        gpus: of each replica; 0.5 lets two share one.
        token: see `vankit.serve`. It is stored in the cluster, as all arguments are.
        queue: pictures that may wait in each replica, and requests in each proxy until a replica takes them; more are
            refused with 429.
        max_body, allow_origins, engine, precision, device, max_pixels: see `vankit.serve`.
        timeout: seconds that a replica waits for a request's body (else 408), and then takes to answer it (else 503).
            For all that comes before, Ray Serve's HTTP options have request_timeout_s.
        grace: seconds in which a replica that is not needed any more may finish what it has begun.

    Returns:
        A `ray.serve.Application` with one deployment, which is called vankit.

    Raises:
        ValueError: an option is out of range. What is wrong with the networks is found by the replicas: then
            `ray.serve.run` fails, and `ray.serve.status()` has the reason.
        ImportError: the packages of the extra ray-serve are missing.
    """
    check_limits(
        workers=workers, queue=queue, max_body=max_body, timeout=timeout, grace=grace, token=token,
        allow_origins=allow_origins,
    )  # fmt: skip
    check_request(engine=engine, precision=precision, max_pixels=max_pixels)  # the device is one of another machine
    fewest, most = _bounds(replicas)
    try:
        from ray import serve

        from vankit.serving.app import Limits
        from vankit.serving.models import named_sources
    except ImportError as error:
        raise MissingPackageError(f'serving on Ray needs {error.name}: pip install "vankit[ray-serve]"') from None
    models = [models] if isinstance(models, str) else list(models)
    named_sources(models)
    options: dict[str, Any] = {
        "token": token, "workers": workers, "limits": Limits(queue, max_body, timeout),
        "allow_origins": list(allow_origins), "engine": engine, "precision": precision, "device": device,
        "max_pixels": max_pixels,
    }  # fmt: skip

    def replica() -> Replica:
        from vankit.serving import app

        return Replica(app.application(models, **options))

    adapted = {"min_replicas": fewest, "max_replicas": most, "target_ongoing_requests": 2 * workers}
    deployment = serve.deployment(
        name="vankit",
        ray_actor_options={"num_cpus": workers, "num_gpus": gpus},
        max_ongoing_requests=workers + queue,  # a request counts from its head on, so slow senders need room
        max_queued_requests=max(queue, 1),  # 0 would be refused by Ray
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_period_s=2,  # so that one that died is replaced soon
        graceful_shutdown_timeout_s=grace,
        **({"autoscaling_config": adapted} if fewest < most else {"num_replicas": fewest}),
    )
    return deployment(serve.ingress(replica)()).bind()


def _bounds(replicas: int | Sequence[int]) -> tuple[int, int]:
    """The fewest and the most."""
    found = [replicas, replicas] if isinstance(replicas, int) else list(replicas)
    if [type(count) for count in found] != [int, int] or not 0 <= found[0] <= found[1] or not found[1]:
        raise UserError(f"replicas is {replicas!r}, expected a number, 1 or more, or the fewest and the most")
    return found[0], found[1]


class Replica:
    """ASGI middleware around a replica's application, which need not know that it is behind a proxy.

    It takes the route prefix off the path, leaves request ids to the proxy, and refuses what one replica of several
    cannot do for all.

    Args:
        app: of `vankit.serving.app.application`.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope["root_path"]) or "/"
        for pattern, reason in _REFUSED:
            if re.fullmatch(pattern, path):
                await JSONResponse({"error": reason}, HTTPStatus.NOT_IMPLEMENTED)(scope, receive, send)
                return

        async def without_id(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
            await send(message)

        await self._app({**scope, "path": path, "root_path": ""}, receive, without_id)


def build(arguments: Mapping[str, Any]) -> Any:
    """`application` for a configuration file of Ray Serve: `import_path: vankit.serving.ray:build`, and `args`.

    Args:
        arguments: of `application`, but for the token.

    Raises:
        ValueError, ImportError: see there.
    """
    if "token" in arguments:
        raise UserError(
            "Ray logs the args of a configuration file, so a token cannot be one of them: call "
            "vankit.serving.ray.application in a module of your own"
        )
    return application(**arguments)
