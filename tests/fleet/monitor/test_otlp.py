"""OTLP to a receiver that reads it as a collector does."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.monitor.outputs.health import MonitorHealth
from pilotfleet.fleet.monitor.outputs.metrics import BOUNDS_S, FleetCollector
from pilotfleet.fleet.monitor.outputs.otlp import OtlpOutput
from tests.fleet.monitor.filledview import START, filled_source

if TYPE_CHECKING:
    from collections.abc import Iterator

SOON_S = 0.01


class Receiver(ThreadingHTTPServer):
    """Keeps what is sent to it, and answers as it is told."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.location = ""
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.came = threading.Semaphore(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    async def wait(self, requests: int = 1) -> None:
        for _ in range(requests):
            assert await asyncio.to_thread(self.came.acquire, timeout=30)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): text for name, text in self.headers.items()}
        self.server.requests.append((self.path, headers, body))
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.came.release()

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def receiver(status: int = 200) -> Iterator[Receiver]:
    server = Receiver(status)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def output(url: str) -> tuple[OtlpOutput, MonitorHealth]:
    source, health = filled_source(completed=93, failed=7), MonitorHealth()
    collector = FleetCollector(source, health, clock=lambda: START + 5)
    return OtlpOutput(url, collector, health.output("otlp")), health


async def send(url: str, server: Receiver, requests: int = 1) -> MonitorHealth:
    """Send until the receiver has so many requests."""
    otlp, health = output(url)
    sending = asyncio.create_task(otlp.run(SOON_S))
    try:
        await server.wait(requests)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return health


async def test_a_collector_gets_the_figures() -> None:
    with receiver() as server:
        health = await send(server.url, server)
    path, headers, body = server.requests[0]
    assert path == "/v1/metrics"
    assert headers["content-type"] == "application/x-protobuf"
    [resource] = ExportMetricsServiceRequest.FromString(body).resource_metrics
    about = resource.resource.attributes
    names = {entry.key: entry.value.string_value for entry in about}
    assert names["service.name"] == "pilot-monitor"
    [scope] = resource.scope_metrics
    metrics = {metric.name: metric for metric in scope.metrics}
    tasks = metrics["pilot.fleet.tasks"].sum
    assert tasks.is_monotonic
    assert tasks.aggregation_temporality == 2
    found = {
        point.attributes[1].value.string_value: point.as_double
        for point in tasks.data_points
    }
    assert found == {"completed": 93, "failed": 7}
    [times] = metrics["pilot.fleet.task_duration"].histogram.data_points
    assert metrics["pilot.fleet.task_duration"].unit == "s"
    assert times.count == sum(times.bucket_counts) == 100
    assert list(times.explicit_bounds) == [*BOUNDS_S]
    assert len(times.bucket_counts) == len(BOUNDS_S) + 1
    assert times.sum == pytest.approx(5.05)
    [ratio] = metrics["pilot.fleet.task_error"].gauge.data_points
    assert ratio.as_double == pytest.approx(0.07)
    assert metrics["pilot.fleet.sent"].unit == "By"
    assert health.output("otlp").errors == 0


async def test_a_path_that_is_given_is_the_path() -> None:
    with receiver() as server:
        await send(f"{server.url}/otlp/v1/metrics", server)
    assert server.requests[0][0] == "/otlp/v1/metrics"


async def test_failures_are_counted_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with receiver(status=400) as server:
        health = await send(server.url, server, requests=4)
    assert health.output("otlp").errors >= 3
    assert caplog.text.count("cannot send the figures") == 1
    assert [r.name for r in caplog.records] == ["pilotfleet.fleet.monitor.outputs.otlp"]


async def test_nothing_goes_to_where_the_collector_points() -> None:
    with receiver() as other, receiver(status=307) as server:
        server.location = f"{other.url}/v1/metrics"
        await send(server.url, server, requests=2)
    assert other.requests == []


async def test_no_proxy_and_no_endpoint_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with receiver() as other, receiver() as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, other.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", other.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", other.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20T")
        await send(server.url, server)
    assert other.requests == []
    assert server.requests[0][1]["authorization"] == "Bearer T"


async def test_a_collector_that_does_not_answer_does_not_hold_up_the_end() -> None:
    async def silent(reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        arrived.set()
        await reader.read()
        out.close()
        closed.set()

    arrived, closed = asyncio.Event(), asyncio.Event()
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        otlp, _ = output(f"http://127.0.0.1:{port}")
        sending = asyncio.create_task(otlp.run(SOON_S))
        await arrived.wait()
        sending.cancel()
        async with asyncio.timeout(20):
            await asyncio.gather(sending, return_exceptions=True)
            await closed.wait()


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "ftp://h", "http://", "http://h:99999", "http://[::1"),
        *("http://user:secret@h", "http://h?token=secret"),
    ],
)
def test_what_is_no_plain_http_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        output(url)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_logging_of_the_library_is_as_before() -> None:
    assert logging.getLogger("opentelemetry.exporter").propagate
    assert not logging.getLogger("opentelemetry.exporter").handlers
