"""What /metrics says, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from pipeline.serving.limits import Load

SECONDS = 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0


class Metrics:
    """Counters of one server, and what its process takes of memory and processor."""

    def __init__(self, load: Load, ready: Callable[[], bool], model: dict[str, str]) -> None:
        """model: labels that say which one is served."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "plumage_requests", "requests that were answered", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "plumage_request_seconds",
            "from the head of a request to the end of its answer",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self.pictures = Counter(
            "plumage_pictures", "pictures: answered, none_of_these or refused", ["outcome"], registry=registry
        )
        self.batches = Histogram(
            "plumage_batch_pictures",
            "pictures that the model took at once",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        for name, words, value in (
            ("plumage_requests_in_hand", "requests that are being read or answered", lambda: load.requests),
            (
                "plumage_pictures_in_hand",
                "pictures that are decoded or wait for the model",
                lambda: load.pictures,
            ),
            ("plumage_request_bytes_in_hand", "bytes of their bodies", lambda: load.bytes),
            ("plumage_ready", "1 where /readyz says so", ready),
        ):
            Gauge(name, words, registry=registry).set_function(value)
        Info("plumage_model", "what is served", registry=registry).info(model)

    def text(self) -> bytes:
        """All of it as it is now."""
        return generate_latest(self._registry)

    def totals(self) -> dict[str, int]:
        """How many requests and pictures there were."""
        counted = {"requests": self.requests, "pictures": self.pictures}
        return {
            name: int(sum(s.value for m in counter.collect() for s in m.samples if s.name.endswith("_total")))
            for name, counter in counted.items()
        }
