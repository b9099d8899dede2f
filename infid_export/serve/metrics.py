"""What a server counts and times, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from infid_engines.meters import meter

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


class Metrics:
    """The server's metrics, in a registry of their own.

    Args:
        device: `cpu`, or the GPU whose memory is shown.
    """

    def __init__(self, device: str) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "infid_requests", "Requests by route and status", ["method", "route", "status"], registry=registry
        )
        self.images = Counter(
            "infid_images", "Images by outcome: done, cancelled, rejected, failed", ["outcome"], registry=registry
        )
        self.templates = Counter(
            "infid_template_images", "Images by template: hit, made, none", ["template"], registry=registry
        )
        self.queue = Gauge("infid_queue_length", "Requests that wait", registry=registry)
        self.ready = Gauge("infid_ready", "1 if the engines are loaded and intact", registry=registry)
        self.people = Gauge("infid_people_bytes", "Bytes of the people in memory", registry=registry)
        self.template_bytes = Gauge("infid_template_bytes", "Bytes of the templates", registry=registry)
        self.waiting = Histogram(
            "infid_wait_seconds", "Seconds from a request to its first step", buckets=_SECONDS, registry=registry
        )
        self.drawing = Histogram("infid_round_seconds", "Seconds of a round", buckets=_SECONDS, registry=registry)
        self.batch = Histogram(
            "infid_round_images", "Images of a round", buckets=(1, 2, 3, 4, 6, 8, 16), registry=registry
        )
        ProcessCollector(registry=registry)
        if device != "cpu":
            gpu = meter(device)
            memory = Gauge("infid_gpu_memory_bytes", "GPU memory in use, by all processes", registry=registry)
            memory.set_function(lambda: float(gpu.memory() or 0))

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


def merged(texts: Mapping[str, bytes]) -> bytes:
    """Return the metrics of several servers as one text, with the label `replica`.

    Args:
        texts: of `Metrics.text`, by the server's name.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Merged(texts))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts = texts

    def collect(self) -> list[Metric]:
        families: dict[str, Metric] = {}
        for server, text in self._texts.items():
            for family in text_string_to_metric_families(text.decode()):
                found = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    found.add_sample(sample.name, {**sample.labels, "replica": server}, sample.value)
        return list(families.values())
