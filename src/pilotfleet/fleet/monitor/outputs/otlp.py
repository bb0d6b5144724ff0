"""The figures to an OpenTelemetry collector, by OTLP over HTTP.

Needs the extra ``otlp``. The metrics are those of ``/metrics`` in OpenTelemetry's form:
``pilot_fleet_task_duration_seconds`` is ``pilot.fleet.task_duration`` in ``s``, which a
Prometheus that receives OTLP turns back into the former name.

The SDK's own reader is not used: it asks from a thread of its own, and the figures
belong to the event loop; nor has it an instrument for a histogram that exists already.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

import pilotfleet
from pilotfleet.errors import InvalidArgument
from pilotfleet.transport.threads import SerialThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from prometheus_client import metrics_core
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Sample

    from pilotfleet.fleet.monitor.outputs.health import OutputCounters

__all__ = ["OtlpOutput", "as_otlp"]

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 10.0
TIMEOUT_S: Final = 5.0
COMPLAIN_S: Final = 60.0
"""Between two log lines about a collector that does not take them."""
MAX_REASON: Final = 200
PATH: Final = "/v1/metrics"
NAMESPACES: Final = ("pilot_fleet_", "pilot_monitor_")
UNITS: Final = {"_seconds": "s", "_bytes": "By", "_ratio": "1"}


class OtlpOutput:
    """Sends all metrics to one URL, and nowhere else."""

    def __init__(
        self, url: str, collector: Collector, counters: OutputCounters
    ) -> None:
        """Prepare to send.

        Args:
            url: Of the collector: ``http://127.0.0.1:4318``, or with its whole path.
            collector: Asked within the event loop.
            counters: Where what fails is counted.

        Raises:
            InvalidArgument: It is no HTTP URL, or one with a password or query.
        """
        self.url = _endpoint(url)
        self._collector = collector
        self._counters = counters
        self._complained_at: float | None = None
        self._reasons = _LastMessage()

    async def run(self, interval_s: float = INTERVAL_S) -> None:
        """Send at each interval, until it is cancelled."""
        async with self._opened() as (exporter, thread):
            while True:
                data = as_otlp(self._collector.collect(), time.time_ns())
                result = await thread.run(exporter.export, data)
                if result is not MetricExportResult.SUCCESS:
                    self._complain()
                await asyncio.sleep(interval_s)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[OTLPMetricExporter, SerialThread]]:
        # No proxy, no .netrc and no redirection: the given URL, or nothing.
        session = requests.Session()
        session.trust_env = False
        session.max_redirects = 0
        exporter = OTLPMetricExporter(
            endpoint=self.url, session=session, timeout=TIMEOUT_S
        )
        thread = SerialThread("otlp")
        library = logging.getLogger("opentelemetry.exporter")
        propagates = library.propagate
        # It has a line for every failure; ours come once a minute.
        library.propagate = False
        library.addHandler(self._reasons)
        try:
            yield exporter, thread
        finally:
            # Ends the pause before another attempt, which the thread may be in.
            exporter.shutdown()
            await thread.aclose()
            library.removeHandler(self._reasons)
            library.propagate = propagates

    def _complain(self) -> None:
        self._counters.errors += 1
        now = time.monotonic()
        if self._complained_at is not None and now < self._complained_at + COMPLAIN_S:
            return
        self._complained_at = now
        reason = self._reasons.text[:MAX_REASON]
        logger.warning("cannot send the figures to %s: %s", self.url, reason)


def as_otlp(families: Iterable[metrics_core.Metric], at_ns: int) -> MetricsData:
    """Return Prometheus metrics as those of OpenTelemetry."""
    scope = InstrumentationScope("pilotfleet.monitor", pilotfleet.__version__)
    metrics = [_metric(family, at_ns) for family in families if family.samples]
    resource = Resource(
        {"service.name": "pilot-monitor", "service.version": pilotfleet.__version__}
    )
    return MetricsData(
        [ResourceMetrics(resource, [ScopeMetrics(scope, metrics, "")], "")]
    )


def _metric(family: metrics_core.Metric, at_ns: int) -> Metric:
    name, unit = _name(family.name)
    return Metric(name, family.documentation, unit, _data(family, at_ns))


def _name(prometheus: str) -> tuple[str, str]:
    """Return the name with dots between its parts, and the unit."""
    unit = ""
    for suffix, symbol in UNITS.items():
        if prometheus.endswith(suffix):
            prometheus, unit = prometheus.removesuffix(suffix), symbol
    for namespace in NAMESPACES:
        if prometheus.startswith(namespace):
            rest = prometheus.removeprefix(namespace)
            return namespace.replace("_", ".") + rest, unit
    return prometheus, unit


def _data(family: metrics_core.Metric, at_ns: int) -> Sum | Gauge | Histogram:
    # When counting began is not known (0): it was before the start of this process.
    cumulative = AggregationTemporality.CUMULATIVE
    if family.type == "histogram":
        return Histogram(_histograms(family.samples, at_ns), cumulative)
    points = [
        NumberDataPoint(dict(sample.labels), 0, at_ns, float(sample.value))
        for sample in family.samples
    ]
    if family.type == "counter":
        return Sum(points, cumulative, is_monotonic=True)
    return Gauge(points)


def _histograms(samples: Iterable[Sample], at_ns: int) -> list[HistogramDataPoint]:
    """Gather the samples of each histogram: buckets in order, count and sum."""
    groups: dict[tuple[tuple[str, str], ...], list[Sample]] = {}
    for sample in samples:
        labels = {key: text for key, text in sample.labels.items() if key != "le"}
        groups.setdefault(tuple(sorted(labels.items())), []).append(sample)
    return [_histogram(dict(key), group, at_ns) for key, group in groups.items()]


def _histogram(
    labels: Mapping[str, str], samples: Iterable[Sample], at_ns: int
) -> HistogramDataPoint:
    bounds: list[float] = []
    counts: list[int] = []
    below, total = 0, 0.0
    for sample in samples:
        if sample.name.endswith("_bucket"):
            counts.append(int(sample.value) - below)
            below = int(sample.value)
            bounds.append(float(sample.labels["le"]))
        elif sample.name.endswith("_sum"):
            total = sample.value
    return HistogramDataPoint(
        attributes=labels,
        start_time_unix_nano=0,
        time_unix_nano=at_ns,
        count=below,
        sum=total,
        bucket_counts=counts,
        # The last one is infinite, which goes without saying.
        explicit_bounds=bounds[:-1],
        # Optional on the wire, and not known.
        min=None,  # type: ignore[arg-type]
        max=None,  # type: ignore[arg-type]
    )


def _endpoint(url: str) -> str:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument(
            "the OTLP address is no HTTP URL", hint="for example http://127.0.0.1:4318"
        )
    if "@" in parts.netloc or parts.query:
        raise InvalidArgument(
            "the OTLP address is a host and a path, without a password or a query",
            hint="set OTEL_EXPORTER_OTLP_HEADERS, for example"
            ' "authorization=Bearer TOKEN"',
        )
    return url if parts.path.strip("/") else f"{url.rstrip('/')}{PATH}"


class _LastMessage(logging.Handler):
    """Keeps what a library said last."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = "no reason given"

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.text = record.getMessage()
