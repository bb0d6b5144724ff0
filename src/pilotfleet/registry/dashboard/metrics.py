"""The numbers of a rendezvous as Prometheus metrics (registry.md section 11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from pilotfleet.registry.metrics import BUCKETS_S

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from pilotfleet.registry.dashboard.view import RendezvousView

__all__ = ["RendezvousCollector"]


class RendezvousCollector(Collector):
    """Turns the numbers into metrics when somebody asks."""

    def __init__(self, view: RendezvousView) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        """Return all metrics."""
        yield from self._directory()
        yield from self._requests()
        yield from self._connections()
        yield from self._watches()
        yield from self._beacon()

    def _directory(self) -> Iterable[Metric]:
        view, directory = self._view, self._view.directory
        yield _gauge("pilot_nodes_online", "Nodes heard lately", view.online)
        yield _gauge("pilot_nodes_total", "Registered nodes", view.registered)
        pairs = directory.trust.pairs
        yield _gauge("pilot_trust_links", "Trust pairs", pairs)
        yield _gauge("pilot_networks_total", "Networks", view.networks)
        invites = sum(map(len, directory.networks.invites.values()))
        yield _gauge("pilot_invites_pending", "Invitations that wait", invites)
        keys = len(directory.nodes.by_key)
        yield _gauge("pilot_pubkeys_total", "Public keys that were ever seen", keys)
        yield _gauge("pilot_uptime_seconds", "Since the start", view.uptime_s)

    def _requests(self) -> Iterable[Metric]:
        requests = CounterMetricFamily(
            "pilot_requests_total", "Requests answered", labels=["type"]
        )
        errors = CounterMetricFamily(
            "pilot_errors_total", "Requests refused", labels=["type"]
        )
        durations = HistogramMetricFamily(
            "pilot_request_duration_seconds", "Time to answer", labels=["type"]
        )
        for kind, stats in self._view.stats.requests.items():
            requests.add_metric([kind], stats.count)
            errors.add_metric([kind], stats.errors)
            durations.add_metric([kind], _cumulated(stats.buckets), stats.total_s)
        yield from (requests, errors, durations)
        yield _counter(
            "pilot_batched_requests_total",
            "Requests and heartbeats in messages of many",
            self._view.stats.batched,
        )
        for name, kind in _NAMED_COUNTERS.items():
            named = self._view.stats.requests.get(kind)
            done = named.count - named.errors if named is not None else 0
            yield _counter(name, f"Successful {kind} requests", done)

    def _connections(self) -> Iterable[Metric]:
        stats = self._view.stats
        yield _gauge("pilot_connections", "Open connections", self._view.connections())
        yield _counter(
            "pilot_connections_total", "Connections accepted", stats.connections
        )
        yield _counter(
            "pilot_connections_refused_total",
            "Connections above the limit",
            stats.connections_refused,
        )
        yield _counter(
            "pilot_garbage_total", "Connections closed for bad bytes", stats.garbage
        )
        denied = CounterMetricFamily(
            "pilot_ratelimit_denied_total", "Held back", labels=["kind"]
        )
        denied.add_metric(["request"], stats.rate_limited)
        denied.add_metric(["beacon"], self._view.beacon.limited)
        yield denied

    def _watches(self) -> Iterable[Metric]:
        stats = self._view.watches
        yield _gauge("pilot_watches", "Watches that are remembered", stats.kept)
        yield _gauge(
            "pilot_watches_waiting", "Watches that wait for news", stats.waiting
        )
        yield _gauge(
            "pilot_watch_bytes", "Memory of what watches were told", stats.size_bytes
        )
        answers = CounterMetricFamily(
            "pilot_watch_answers_total", "Answers with something new", labels=["kind"]
        )
        answers.add_metric(["delta"], stats.deltas)
        answers.add_metric(["reset"], stats.resets)
        answers.add_metric(["refused"], stats.refused)
        yield answers

    def _beacon(self) -> Iterable[Metric]:
        counters = self._view.beacon
        nodes = self._view.beacon_nodes()
        yield _gauge("pilot_beacon_nodes", "Nodes the beacon knows", nodes)
        messages = CounterMetricFamily(
            "pilot_beacon_messages_total", "Datagrams by kind", labels=["kind"]
        )
        for kind in (
            "discovers",
            "punches",
            "relayed",
            "notifies",
            "unknown",
            "malformed",
        ):
            messages.add_metric([kind], getattr(counters, kind))
        yield messages


_NAMED_COUNTERS: Final = {
    "pilot_registrations_total": "register",
    "pilot_deregistrations_total": "deregister",
    "pilot_trust_reports_total": "report_trust",
    "pilot_trust_revocations_total": "revoke_trust",
    "pilot_handshake_requests_total": "request_handshake",
    "pilot_invites_sent_total": "invite_to_network",
    "pilot_key_rotations_total": "rotate_key",
}
"""Metrics that count the successful requests of one type."""


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _cumulated(buckets: list[int]) -> list[tuple[str, float]]:
    bounds = [*map(str, BUCKETS_S), "+Inf"]
    total = 0
    result: list[tuple[str, float]] = []
    for bound, count in zip(bounds, buckets, strict=True):
        total += count
        result.append((bound, total))
    return result
