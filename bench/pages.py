"""The web pages with very many agents: how fast they load, change and scroll."""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import random
import shutil
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.directory import name_of, tag_of
from bench.fleets import percentile
from bench.history import times_ms
from bench.processmemory import MIB, memory_of
from bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.options import Options
    from bench.report import Cell
    from tests.pages.browser import Chromium

MONITORED = 10_000
LISTED = (10_000, 100_000)
REQUESTS = 1_000
WAIT_S = 120
SPEEDS = {
    "idle": "nothing",
    "scroll": "3,000 pixels/s",
    "throw": "120,000 pixels/s",
}


def measure(options: Options) -> list[Table]:
    """Measure the monitor's pages, then the Polo dashboard."""
    has_driver = importlib.util.find_spec("playwright") is not None
    if shutil.which("chromium") is None or not has_driver:
        raise FileNotFoundError(
            "no Chromium and Playwright: `make pages` installs them"
        )
    # Only here: the other benchmarks do without it.
    from tests.pages.browser import Chromium
    from tests.pages.measuring import measure as measure_monitor

    agents = options.scaled(MONITORED)
    print(f"  monitor of {agents} agents", file=sys.stderr, flush=True)
    with Chromium() as chromium:
        found = measure_monitor(chromium, agents)
    pages: list[tuple[Cell, ...]] = []
    requests: list[tuple[Cell, ...]] = []
    for listed in map(options.scaled, LISTED):
        print(f"  directory of {listed} agents", file=sys.stderr, flush=True)
        with _directory(listed) as (port, pid):
            requests += _ask(port, listed, options.scaled(REQUESTS))
            with Chromium() as chromium:
                load_ms = _load_ms(chromium, port)
            pages.append((listed, load_ms, *memory_of(pid).mib))
    return [
        _monitor_pages(found),
        _scrolling(found),
        _polo_pages(pages),
        _polo_api(requests),
    ]


# The monitor


def _monitor_pages(found: dict[str, Any]) -> Table:
    overview, table = found["overview"], found["table"]
    row: tuple[Cell, ...] = (
        *(found["agents"], overview["load_ms"], table["load_ms"]),
        *(overview["change_ms"]["p50"], overview["change_ms"]["longest"]),
        *(table["window_ms"]["p50"], table["window_ms"]["p99"], table["search_ms"]),
        *(overview["busy_ms_per_s"], table["busy_ms_per_s"]),
        *(overview["file_bytes"] / 1024, table["rows_in_page"]),
    )
    columns = (
        *("agents", "overview loaded ms", "table loaded ms"),
        *("event to figure p50 ms", "longest ms"),
        *("rows fetched p50 ms", "p99 ms", "search ms"),
        *("overview busy ms/s", "table busy ms/s", "files KiB", "rows in the page"),
    )
    note = (
        "Headless Chromium on the same machine; all agents tell their health every 10 s"
        " meanwhile. Loaded: with figures and charts, or rows, on the page. Event to"
        " figure: from the event at the monitor to the number on the page, which is"
        " sent once a second. Search: from the last key to the rows, 150 ms of it a"
        " pause. Busy: the page's thread. Files: packed, what a first visit fetches."
    )
    return Table("The monitor's pages", columns, [row], note)


def _scrolling(found: dict[str, Any]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, speed in SPEEDS.items():
        frames = found["table"][name]
        times = (frames[key] for key in ("p50_ms", "p95_ms", "p99_ms", "longest_ms"))
        rows.append((found["agents"], speed, frames["frames_per_s"], *times))
    columns = (
        *("agents", "scrolled", "frames/s"),
        *("frame p50 ms", "p95 ms", "p99 ms", "longest ms"),
    )
    note = (
        "The table of agents, down and up again; a screen has 60 frames a second, and"
        " Chromium draws without a graphics card here."
    )
    return Table("Scrolling the table of agents", columns, rows, note)


# The Polo dashboard


@contextlib.contextmanager
def _directory(agents: int) -> Iterator[tuple[int, int]]:
    """Yield port and process of a dashboard."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench.directory", str(agents)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.stdin.close()


def _ask(port: int, agents: int, count: int) -> list[tuple[Cell, ...]]:
    """Return a row for each kind of request."""
    rng = random.Random(agents)
    kinds: dict[str, Callable[[], str]] = {
        "figures": lambda: "/figures",
        "polo": lambda: "/polo",
        "tags": lambda: "/tags",
        "one agent": lambda: f"/agents/{name_of(rng.randint(1, agents))}",
        "50 of a tag": lambda: f"/agents?tag={tag_of(rng)}",
        "50 of two tags": lambda: f"/agents?tag=all&tag={tag_of(rng)}",
        "100 by polo": lambda: (
            f"/agents?sort=-polo&limit=100&offset={rng.randrange(agents)}"
        ),
        "100 by name": lambda: (
            f"/agents?sort=name&limit=100&offset={rng.randrange(agents)}"
        ),
        "100 of a tag by polo": lambda: (
            f"/agents?sort=-polo&limit=100&tag={tag_of(rng)}"
        ),
        "100 of a prefix": lambda: (
            f"/agents?sort=-polo&limit=100&prefix=worker-0{rng.randrange(100):02}"
        ),
    }
    rows: list[tuple[Cell, ...]] = []
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    with contextlib.closing(connection):
        # The first one waits until the directory was surveyed.
        _get(connection, lambda: "/figures")
        for name, path in kinds.items():
            times = times_ms(partial(_get, connection, path), count)
            shares = (percentile(times, 0.5), percentile(times, 0.99), max(times))
            rows.append((agents, name, *shares))
    return rows


def _get(connection: http.client.HTTPConnection, path: Callable[[], str]) -> None:
    connection.request("GET", f"/api/v1{path()}")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == http.HTTPStatus.OK, answer.status


def _load_ms(chromium: Chromium, port: int) -> float:
    with chromium.page() as page:
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector(".vrow:not(.waiting)")
        page.wait_for_selector("#live.good")
        page.wait_for_selector("#polo-bars .bar-column")
        loaded: float = page.evaluate("() => performance.now()")
    return loaded


def _polo_pages(rows: list[tuple[Cell, ...]]) -> Table:
    columns = ("public agents", "page loaded ms", *MIB)
    note = (
        "Loaded: figures, bars and the first rows are there. RSS: directory and"
        " dashboard in one program, without what a rendezvous has beside them."
    )
    return Table("The Polo dashboard", columns, rows, note)


def _polo_api(rows: list[tuple[Cell, ...]]) -> Table:
    columns = ("public agents", "request", "p50 ms", "p99 ms", "longest ms")
    note = (
        "One request after the other on one connection, client and server each in a"
        " program of its own; the limit of requests is off, and the survey of the"
        " directory is made every few seconds as always."
    )
    return Table("The public API", columns, rows, note)
