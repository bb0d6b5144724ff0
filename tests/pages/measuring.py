"""How fast the monitor's pages are with very many agents.

Run as a program it prints what it measured, as JSON:
``python -m tests.pages.measuring [AGENTS]``.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.fleet.monitor.figures import Series
from tests.fleet.monitor.filledview import ViewSource, filled_source, publish
from tests.pages.browser import Chromium
from tests.pages.serving import serving

if TYPE_CHECKING:
    from collections.abc import Sequence

    from playwright.sync_api import CDPSession, Page

__all__ = ["BigFleet", "measure"]

SCROLL: Final = Path(__file__).with_name("scroll.js").read_text()
SCROLL_S: Final = 6.0
SPEEDS: Final = {"idle": 0, "scroll": 3_000, "throw": 120_000}
"""Pixels in a second: nothing, a wheel turned fast, and the bar drawn to the end."""
WATCH_S: Final = 10.0
FAILED: Final = 28
CHANGES: Final = 20
SEES_FAILED: Final = """(count) =>
  [...document.querySelectorAll("#figure-tasks .row div")]
    .some((item) => item.textContent === `failed${count}`)"""
INTERVAL_S: Final = 10.0
BATCHES: Final = 20
"""A second of events comes in so many pieces."""
LOADED: Final = "() => performance.now()"


class BigFleet(ViewSource):
    """A real view of very many agents; all tell their health each ten seconds."""

    def __init__(self, agents: int) -> None:
        tags = ("worker", "text", "gpu")
        super().__init__(
            filled_source(agents, completed=400, failed=FAILED, tags=tags).view
        )
        self._agents = agents
        self._at = self.view.now
        self._series = [float(n % 97) for n in range(900)]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failed = FAILED

    def fail_task(self) -> int:
        """Publish that a task failed; return how many have. From any thread."""
        assert self._loop is not None
        self._failed += 1
        row = {
            "agent": "worker-1",
            "task_id": f"failed-{self._failed}",
            "status": "FAILED",
            "ms": 12.0,
            "at": self._at,
        }
        self._loop.call_soon_threadsafe(
            lambda: publish(self.view, "fleet.task", at=self._at, tasks=[row])
        )
        return self._failed

    async def feed(self) -> None:
        """Let time go on."""
        self._loop = asyncio.get_running_loop()
        number, step = 0, 1 / BATCHES
        share = int(self._agents / INTERVAL_S / BATCHES)
        while True:
            began = time.perf_counter()
            self._at += step
            for _ in range(share):
                name = f"worker-{number % self._agents + 1}"
                done = number // self._agents
                publish(
                    self.view,
                    "fleet.health",
                    at=self._at,
                    agent=name,
                    status="idle",
                    tasks_completed=done,
                    interval_s=INTERVAL_S,
                )
                number += 1
            self.view.advance(self._at)
            self.view.collect()
            await asyncio.sleep(max(0.0, step - (time.perf_counter() - began)))

    async def series(
        self,
        fleet: str,
        metrics: Sequence[str],
        *,
        start: float,
        end: float,
        tag: str | None = None,
        points: int = 600,
    ) -> Series:
        """Return something to draw."""
        times = tuple(start + n for n in range(900))
        return Series(1, times, {metric: tuple(self._series) for metric in metrics})


def measure(
    chromium: Chromium,
    agents: int,
    *,
    watch_s: float = WATCH_S,
    scroll_s: float = SCROLL_S,
) -> dict[str, Any]:
    """Return what the pages took, in milliseconds.

    Args:
        chromium: What shows them.
        agents: How many they show.
        watch_s: How long a page is watched that nobody touches.
        scroll_s: How long each of the scrolls goes on.
    """
    source = BigFleet(agents)
    with serving(source, beside=source.feed) as url:
        return {
            "agents": agents,
            "overview": _measure_overview(chromium, url, source, watch_s),
            "table": _measure_table(chromium, url, agents, watch_s, scroll_s),
        }


def _measure_overview(
    chromium: Chromium, url: str, source: BigFleet, watch_s: float
) -> dict[str, Any]:
    with chromium.page() as page:
        page.goto(url)
        page.wait_for_selector("#figure-agents .states a:has-text('alive')")
        page.wait_for_selector("#live.good")
        page.wait_for_selector(".charts .u-legend .u-value >> nth=8")
        loaded: float = page.evaluate(LOADED)
        return {
            "load_ms": round(loaded),
            **_busy(page, watch_s),
            "change_ms": _change_times(page, source),
            **_sizes(page),
        }


def _change_times(page: Page, source: BigFleet) -> dict[str, float]:
    """Return how long it takes from an event to the changed figure on the page."""
    times = []
    for number in range(CHANGES):
        # Not in step with the stream of the page, which has a beat of its own.
        page.wait_for_timeout(1000 * number / CHANGES)
        began = time.perf_counter()
        page.wait_for_function(SEES_FAILED, arg=source.fail_task())
        times.append((time.perf_counter() - began) * 1000)
    return {"p50": round(_share(times, 0.5), 1), "longest": round(max(times), 1)}


def _measure_table(
    chromium: Chromium, url: str, agents: int, watch_s: float, scroll_s: float
) -> dict[str, Any]:
    with chromium.page() as page:
        page.goto(f"{url}/agents")
        page.wait_for_selector(".vrow .state")
        loaded: float = page.evaluate(LOADED)
        found: dict[str, Any] = {"load_ms": round(loaded), **_busy(page, watch_s)}
        for name, speed in SPEEDS.items():
            frames: list[float] = page.evaluate(SCROLL, [scroll_s, speed])
            found[name] = {
                "frames_per_s": round(len(frames) / scroll_s, 1),
                "p50_ms": round(_share(frames, 0.5), 1),
                "p95_ms": round(_share(frames, 0.95), 1),
                "p99_ms": round(_share(frames, 0.99), 1),
                "longest_ms": round(max(frames), 1),
            }
        found["rows_in_page"] = page.locator(".vrow").count()
        found["search_ms"] = _search(page, agents)
        found["window_ms"] = _window_times(page)
        return found


def _search(page: Page, agents: int) -> int:
    """Return the time from the last key to the rows; 150 ms of it are a pause."""
    began = time.perf_counter()
    page.get_by_label("Search agents by name").fill(f"worker-{agents}")
    page.locator(".vfoot").get_by_text("1 agent", exact=True).wait_for()
    return round((time.perf_counter() - began) * 1000)


def _window_times(page: Page) -> dict[str, float]:
    """Return how long requests for rows took, as the page saw it."""
    times: list[float] = page.evaluate(
        "() => performance.getEntriesByType('resource')"
        ".filter((entry) => entry.name.includes('/agents?'))"
        ".map((entry) => entry.duration)"
    )
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {name: round(_share(times, share), 1) for name, share in shares.items()}


def _busy(page: Page, watch_s: float) -> dict[str, Any]:
    """Return how much of a second the page's thread is at work, with live figures."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    before, began = _task_time(session), time.perf_counter()
    page.wait_for_timeout(watch_s * 1000)
    took = time.perf_counter() - began
    return {"busy_ms_per_s": round((_task_time(session) - before) / took * 1000, 1)}


def _task_time(session: CDPSession) -> float:
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(float(m["value"]) for m in metrics if m["name"] == "TaskDuration")


def _sizes(page: Page) -> dict[str, int]:
    """Return the bytes that came for files, packed."""
    size: int = page.evaluate(
        "() => performance.getEntriesByType('resource').concat("
        "performance.getEntriesByType('navigation'))"
        ".filter((entry) => /static|shared|\\/$/.test(entry.name))"
        ".reduce((sum, entry) => sum + entry.encodedBodySize, 0)"
    )
    return {"file_bytes": size}


def _share(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


if __name__ == "__main__":
    with Chromium() as started:
        count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
        sys.stdout.write(json.dumps(measure(started, count), indent=2) + "\n")
