"""The figures as Prometheus metrics.

No series is of one agent: what grows is the number of fleets, tags (at most 50 and
``other``), versions (at most 20 and ``other``) and alert rules. The same metrics go out
by OTLP. docs/reference/metrics.md lists them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.routing import Route

from pilotfleet.fleet.monitor.figures import AlertState
from pilotfleet.fleet.monitor.outputs.tagtotals import TagTotals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric
    from starlette.requests import Request

    from pilotfleet.fleet.monitor.figures import Figures
    from pilotfleet.fleet.monitor.outputs.health import MonitorHealth
    from pilotfleet.fleet.monitor.source import MonitorSource
    from pilotfleet.fleet.monitor.times import TimeHistogram

__all__ = ["BOUNDS_S", "FleetCollector", "metrics_route"]

BOUNDS_S: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0),
)
"""Of task times: from a shell command to a long turn of a model."""
MAX_LABEL: Final = 128
"""Characters of a label that came from outside."""
BROKER_GAUGES: Final = ("subscribers", "publishers")
BROKER_EVENTS: Final = (
    *("published", "delivered", "dropped", "rate_limited"),
    *("malformed", "logged", "log_lost", "forwarded"),
)
_BOUNDS_MS: Final = tuple(bound * 1_000 for bound in BOUNDS_S)
_LABELS: Final = [*map(str, BOUNDS_S), "+Inf"]


def metrics_route(collector: Collector) -> Route:
    """Return the route ``/metrics``. It asks the collector within the event loop."""
    registry = CollectorRegistry()
    registry.register(collector)

    async def metrics(request: Request) -> Response:
        text = generate_latest(registry)
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return Route("/metrics", metrics)


class FleetCollector(Collector):
    """Turns the figures into metrics when somebody asks."""

    def __init__(
        self,
        source: MonitorSource,
        health: MonitorHealth,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._health = health
        self._clock = clock
        self._tags: dict[str, TagTotals] = {}

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: to register must not ask a source that starts."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return all metrics."""
        figures = [self._source.figures(fleet) for fleet in self._source.fleets()]
        yield from _agents(figures)
        yield from self._tasks(figures)
        yield from _trust_and_polo(figures)
        yield from _traffic(figures)
        yield from self._by_tag(figures)
        yield from _brokers(figures)
        yield from self._monitor(figures)
        yield self._alerts()

    def _tasks(self, figures: Iterable[Figures]) -> Iterable[Metric]:
        ends = _counter("pilot_fleet_tasks", "Tasks that ended", "status")
        times = HistogramMetricFamily(
            "pilot_fleet_task_duration_seconds",
            "Time from start to end of a task",
            labels=["fleet"],
        )
        recent = _gauge(
            "pilot_fleet_task_duration_recent_seconds",
            "Percentiles of task times in the last five minutes, within 1 %",
            "rank",
        )
        errors = _gauge(
            "pilot_fleet_task_error_ratio",
            "Share of the tasks that failed in the last five minutes",
        )
        for now in figures:
            tasks = now.tasks
            ends.add_metric([now.fleet, "completed"], tasks.completed)
            ends.add_metric([now.fleet, "failed"], tasks.failed)
            histogram = self._source.task_times(now.fleet)
            total_s = histogram.total_ms / 1_000
            times.add_metric([now.fleet], _cumulated(histogram), total_s)
            for rank in ("p50", "p95", "p99"):
                value_ms = getattr(tasks, f"{rank}_ms")
                if value_ms is not None:
                    recent.add_metric([now.fleet, rank], value_ms / 1_000)
            errors.add_metric([now.fleet], tasks.error_rate)
        yield from (ends, times, recent, errors)

    def _by_tag(self, figures: Iterable[Figures]) -> Iterable[Metric]:
        agents = _gauge(
            "pilot_fleet_tag_agents", "Agents that have a tag, by state", "tag", "state"
        )
        tasks = _counter(
            "pilot_fleet_tag_tasks",
            "Tasks that ended at agents that have a tag",
            *("tag", "status"),
        )
        for now in figures:
            totals = self._tags.setdefault(now.fleet, TagTotals())
            totals.take(self._source.tags(now.fleet))
            for tag, counts in totals.agents.items():
                for state, count in counts.items():
                    agents.add_metric([now.fleet, _clean(tag), state], count)
            for tag, (completed, failed) in totals.tasks.items():
                label = _clean(tag)
                tasks.add_metric([now.fleet, label, "completed"], completed)
                tasks.add_metric([now.fleet, label, "failed"], failed)
        yield from (agents, tasks)

    def _monitor(self, figures: Iterable[Figures]) -> Iterable[Metric]:
        health, at = self._health, self._clock()
        events = _counter("pilot_monitor_events", "Events taken")
        refused = _counter(
            "pilot_monitor_events_refused", "Events of another form than they should be"
        )
        lost = _counter(
            "pilot_monitor_events_lost", "Events that did not reach this monitor"
        )
        following = _gauge(
            "pilot_monitor_following", "Whether a broker of the fleet is heard"
        )
        age = _gauge(
            "pilot_monitor_last_event_age_seconds", "Time since the last event came"
        )
        for now in figures:
            labels = [now.fleet]
            events.add_metric(labels, now.events)
            refused.add_metric(labels, now.events_refused)
            lost.add_metric(labels, now.events_lost)
            following.add_metric(labels, now.following)
            last = health.last_event.get(now.fleet)
            if last is not None:
                age.add_metric(labels, max(0.0, at - last))
        yield from (events, refused, lost, following, age)
        yield from self._outputs()

    def _outputs(self) -> Iterable[Metric]:
        health = self._health
        yield CounterMetricFamily(
            "pilot_monitor_history_errors",
            "Writes to the history that failed",
            health.history_errors,
        )
        errors = CounterMetricFamily(
            "pilot_monitor_output_errors", "Faults of an output", labels=["output"]
        )
        dropped = CounterMetricFamily(
            "pilot_monitor_output_dropped",
            "Records that an output could not take in time",
            labels=["output"],
        )
        for name, counters in health.outputs.items():
            errors.add_metric([name], counters.errors)
            dropped.add_metric([name], counters.dropped)
        yield from (errors, dropped)
        yield GaugeMetricFamily(
            "pilot_monitor_start_time_seconds",
            "When the monitor started, since 1970",
            health.started,
        )

    def _alerts(self) -> Metric:
        firing = _gauge(
            "pilot_monitor_alerts_firing", "Alerts that fire", "rule", "severity"
        )
        counts: dict[tuple[str, str, str], int] = {}
        for row in self._source.alerts():
            key = (row.fleet, row.rule, row.severity)
            # One that was resolved is a zero, so that a chart shows its end.
            counts[key] = counts.get(key, 0) + (row.state is AlertState.FIRING)
        for (fleet, rule, severity), count in counts.items():
            firing.add_metric([_clean(fleet), _clean(rule), _clean(severity)], count)
        return firing


def _agents(figures: Iterable[Figures]) -> Iterable[Metric]:
    agents = _gauge("pilot_fleet_agents", "Agents by state", "state")
    versions = _gauge(
        "pilot_fleet_agents_by_version", "Agents by version of their daemon", "version"
    )
    for now in figures:
        for state in ("alive", "late", "lost", "left"):
            agents.add_metric([now.fleet, state], getattr(now.agents, state))
        for version, count in now.versions.items():
            versions.add_metric([now.fleet, _clean(version)], count)
    yield from (agents, versions)


def _trust_and_polo(figures: Iterable[Figures]) -> Iterable[Metric]:
    links = _gauge("pilot_fleet_trust_links", "Pairs of agents that trust each other")
    changes = _counter(
        "pilot_fleet_trust_changes", "Trust links made and revoked", "change"
    )
    polo = _gauge("pilot_fleet_polo", "Polo scores, by rank", "rank")
    agents = _gauge("pilot_fleet_polo_agents", "Agents whose score is known")
    points = _gauge("pilot_fleet_polo_points", "Sum of all polo scores")
    for now in figures:
        links.add_metric([now.fleet], now.trust_links)
        changes.add_metric([now.fleet, "linked"], now.trust_linked_total)
        changes.add_metric([now.fleet, "revoked"], now.trust_revoked_total)
        agents.add_metric([now.fleet], now.polo.agents)
        points.add_metric([now.fleet], now.polo.total)
        if now.polo.agents:
            for rank in ("lowest", "p10", "p50", "p90", "p99", "highest"):
                polo.add_metric([now.fleet, rank], getattr(now.polo, rank))
    yield from (links, changes, polo, agents, points)


def _traffic(figures: Iterable[Figures]) -> Iterable[Metric]:
    tunnels = _gauge("pilot_fleet_tunnels", "Open tunnels, counted at each end")
    sent = _counter("pilot_fleet_sent_bytes", "Bytes that agents sent in tunnels")
    received = _counter("pilot_fleet_received_bytes", "Bytes that agents received")
    for now in figures:
        tunnels.add_metric([now.fleet], now.traffic.tunnels)
        sent.add_metric([now.fleet], now.traffic.bytes_sent)
        received.add_metric([now.fleet], now.traffic.bytes_received)
    yield from (tunnels, sent, received)


def _brokers(figures: Iterable[Figures]) -> Iterable[Metric]:
    gauges = {
        kind: _gauge(f"pilot_fleet_broker_{kind}", f"A broker's {kind}", "broker")
        for kind in BROKER_GAUGES
    }
    events = _counter(
        "pilot_fleet_broker_events", "Events at a broker, by kind", "broker", "kind"
    )
    for now in figures:
        for broker, counters in now.brokers.items():
            labels = [now.fleet, _clean(broker)]
            for kind, family in gauges.items():
                family.add_metric(labels, counters.get(kind, 0))
            for kind in BROKER_EVENTS:
                events.add_metric([*labels, kind], counters.get(kind, 0))
    yield from (*gauges.values(), events)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["fleet", *labels])


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, labels=["fleet", *labels])


def _cumulated(histogram: TimeHistogram) -> list[tuple[str, float]]:
    counts = [*histogram.cumulated(_BOUNDS_MS), histogram.count]
    return [(label, float(n)) for label, n in zip(_LABELS, counts, strict=True)]


def _clean(text: str) -> str:
    """Return a label that can be written, whoever chose it."""
    return text[:MAX_LABEL].encode("utf-8", "replace").decode()
