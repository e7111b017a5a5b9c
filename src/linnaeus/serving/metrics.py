"""What the service tells Prometheus, summed over its workers."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus-client reads it when it is imported
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters and histograms of one process; those of all workers lie in one folder of $PROMETHEUS_MULTIPROC_DIR."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._requests = Counter(
            "linnaeus_requests", "Requests by route and status.", ("route", "status"), registry=own
        )
        self._request_seconds = Histogram(
            "linnaeus_request_seconds",
            "From a request's head to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=own,
        )
        self._stage_seconds = Histogram(
            "linnaeus_stage_seconds",
            "What an answered request waited for: decode, wait, compute.",
            ("stage",),
            buckets=_SECONDS,
            registry=own,
        )
        self._batch = Histogram(
            "linnaeus_batch_images", "In how large a batch each image was computed.", buckets=_SIZES, registry=own
        )
        self._images = Counter("linnaeus_images", "Images answered.", ("model",), registry=own)
        self._refused = Counter("linnaeus_refused", "Requests refused for want of room.", registry=own)
        self._bundles = Counter(
            "linnaeus_bundle_changes", "New bundles that were taken or refused.", ("model", "result"), registry=own
        )
        self._model = Gauge(
            "linnaeus_model_info",
            "1 for the version of each model that answers.",
            ("model", "version"),
            registry=own,
            multiprocess_mode="livemax",
        )
        self._images_inside = Gauge(
            "linnaeus_images_inside",
            "Images that are being decoded, waiting or computed.",
            registry=own,
            multiprocess_mode="livesum",
        )
        self._own = own

    def requested(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def answered(self, model: str, seconds: Mapping[str, float], together: Sequence[int]) -> None:
        """Count answered images, the seconds of each stage, and the size of the batch in which each was computed."""
        self._images.labels(model).inc(len(together))
        for stage, value in seconds.items():
            self._stage_seconds.labels(stage).observe(value)
        for size in together:
            self._batch.observe(size)

    def refused(self) -> None:
        """Count a request for which there was no room."""
        self._refused.inc()

    def changed(self, model: str, *, taken: bool) -> None:
        """Count a new bundle."""
        self._bundles.labels(model, "taken" if taken else "refused").inc()

    def serves(self, model: str, version: str, *, now: bool) -> None:
        """Tell that a version of a model answers, or no longer does."""
        self._model.labels(model, version).set(int(now))

    def holds(self, images: int) -> None:
        """Tell how many images are being decoded, waiting or computed in this worker."""
        self._images_inside.set(images)

    def render(self) -> bytes:
        """Return all in Prometheus's text format."""
        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._own)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
