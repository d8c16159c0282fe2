"""Figures for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from vankit.serving.pool import Pool

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """What happened since the start, in a registry of its own."""

    def __init__(self, pool: Pool) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "vankit_requests", "Requests answered", ("endpoint", "model", "status"), registry=registry
        )
        self._seconds = Histogram(
            "vankit_request_seconds",
            "From the last byte of a request's head to the last one of its answer",
            ("endpoint", "model"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._pictures = Counter("vankit_pictures", "Pictures answered", ("model", "outcome"), registry=registry)
        self._loads = Gauge("vankit_model_load_seconds", "That the network took to load", ("model",), registry=registry)
        self._gauge("vankit_queue_length", "Pictures that wait", lambda: pool.waiting)
        self._gauge("vankit_queue_limit", "Pictures that may wait", lambda: pool.queue)
        self._gauge("vankit_running", "Pictures that are worked on", lambda: pool.running)

    def _gauge(self, name: str, text: str, value: object) -> None:
        Gauge(name, text, registry=self._registry).set_function(value)  # type: ignore[arg-type]

    def answered(self, endpoint: str, model: str, status: int, seconds: float) -> None:
        """Count a request; of a model that is not served `model` is empty, so that clients make no labels."""
        self._requests.labels(endpoint, model, str(status)).inc()
        self._seconds.labels(endpoint, model).observe(seconds)

    def pictures(self, model: str, good: int, bad: int) -> None:
        """Count pictures of a request."""
        self._pictures.labels(model, "answered").inc(good)
        self._pictures.labels(model, "refused").inc(bad)

    def loaded(self, model: str, seconds: float) -> None:
        """Note how long a network took to load."""
        self._loads.labels(model).set(seconds)

    def text(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)
