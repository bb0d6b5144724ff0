"""Prometheus as a program, and its HTTP API."""

from __future__ import annotations

import json
import shutil
import socket
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.programs import World

__all__ = ["Prometheus", "fetch", "program"]

REQUEST_S = 10


def program(name: str) -> str:
    """Return the path of a program; without it the test fails, and does not skip."""
    path = shutil.which(name)
    assert path is not None, f"{name} is not installed: make prometheus"
    return path


def fetch(url: str) -> bytes:
    """Return what a URL of this machine has."""
    with urllib.request.urlopen(url, timeout=REQUEST_S) as answer:
        data: bytes = answer.read()
    return data


class Prometheus:
    """Scrapes one target each second."""

    def __init__(self, net: World, target: str) -> None:
        """Start it; everything of the world ends with the world."""
        config = net.home / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\n"
            "scrape_configs:\n"
            f"- {{job_name: fleet, static_configs: [{{targets: ['{target}']}}]}}\n"
        )
        self.address = f"127.0.0.1:{_free_port()}"
        self._program = net.start(
            "prometheus",
            program("prometheus"),
            *("--config.file", config, "--web.listen-address", self.address),
            *("--storage.tsdb.path", net.home / "tsdb", "--log.level", "warn"),
        )
        self._program.wait_until(self._is_ready)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query."""
        words = urllib.parse.urlencode({"query": expression})
        answer = json.loads(fetch(f"http://{self.address}/api/v1/query?{words}"))
        assert answer["status"] == "success"
        rows: list[dict[str, Any]] = answer["data"]["result"]
        return rows

    def value(self, expression: str) -> float | None:
        """Return the value of the only series of a query; None without any."""
        rows = self.query(expression)
        assert len(rows) < 2, rows
        return float(rows[0]["value"][1]) if rows else None

    def wait_for(self, expect: Callable[[], dict[str, float]]) -> None:
        """Return when all queries have the values that are expected then."""
        found: dict[str, float | None] = {}
        expected: dict[str, float] = {}

        def is_so() -> bool:
            expected.update(expect())
            found.update({query: self.value(query) for query in expected})
            return found == expected

        try:
            self._program.wait_until(is_so)
        except AssertionError as error:
            raise AssertionError(f"{found} instead of {expected}") from error

    def _is_ready(self) -> bool:
        try:
            return bool(fetch(f"http://{self.address}/-/ready"))
        except (urllib.error.URLError, ConnectionError):
            return False


def _free_port() -> int:
    # It cannot choose one by itself and say which; no other test runs meanwhile.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
