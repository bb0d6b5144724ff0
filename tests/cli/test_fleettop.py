"""`pilotctl fleet top --monitor`: what a monitor knows, on a terminal."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from pilotfleet.cli.fleetfigures import figure_lines
from pilotfleet.cli.main import main
from pilotfleet.fleet.monitor.figures import AgentCounts, Figures, TaskFigures
from pilotfleet.fleet.monitor.view.fleetview import FleetView
from pilotfleet.fleet.monitor.web.app import make_app
from pilotfleet.web.access import Access
from pilotfleet.web.guard import guard
from pilotfleet.web.server import HttpServer
from tests.fleet.monitor.madefleet import MadeFleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "t" * 32


@contextmanager
def monitor(*, token: str | None = None, names: tuple[str, ...]) -> Iterator[str]:
    """Serve the pages of a made-up fleet in a thread; yield their URL."""
    ready, stop = threading.Event(), asyncio.Event()
    found: dict[str, Any] = {}

    async def serve() -> None:
        source = MadeFleet(agents=30, wall=time.time, names=names)
        access = Access(token)
        app = make_app(source, access=access, started=time.time())
        bind = ("127.0.0.1", 0)
        async with HttpServer(guard(app, bind=bind, access=access), bind) as server:
            found.update(loop=asyncio.get_running_loop(), port=server.address[1])
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield f"http://127.0.0.1:{found['port']}"
    finally:
        if found:
            found["loop"].call_soon_threadsafe(stop.set)
        thread.join(20)


def top(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run ``fleet top``; return its exit code, output and errors."""
    code = main(["fleet", "top", *words])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_figures_of_a_monitor(capsys: pytest.CaptureFixture[str]) -> None:
    with monitor(names=("batch",)) as url:
        code, out, _ = top(capsys, "--monitor", url + "/")
        assert code == 0
        lines = [line.split()[0] for line in out.splitlines() if line.strip()]
        assert lines[:7] == [
            *("batch", "FIGURE", "agents", "tasks/min", "errors", "trust", "polo")
        ]
        assert "alive" in out
        assert "\x1b" not in out
        assert main(["--json", "fleet", "top", "--monitor", url, "--once"]) == 0
        answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "ok"
    assert msgspec.convert(answer["data"]["figures"], Figures).fleet == "batch"


def test_token_and_name_are_needed_where_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    with monitor(token=TOKEN, names=("one", "two")) as url:
        words: tuple[str, ...] = ("--monitor", url)
        code, _, error = top(capsys, *words)
        assert (code, "wants another token" in error) == (1, True)
        words = (*words, "--token-file", str(file))
        code, _, error = top(capsys, *words)
        assert (code, "one, two" in error, TOKEN in error) == (1, True, False)
        code, out, _ = top(capsys, *words, "--name", "two")
        assert (code, out.split()[0]) == (0, "two")
        code, _, error = top(capsys, *words, "--name", "a/b c")
        assert (code, "watches no 'a/b c'" in error) == (1, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--monitor", "ftp://x"), "not an http or https URL"),
        (("--monitor", "http://[x"), "not an http or https URL"),
        (("--monitor", "http://x:99999999"), "not an http or https URL"),
        (("--monitor", "http://127.0.0.1:1"), "cannot reach the monitor"),
        (("--monitor", "http://127.0.0.1:1/\nx"), "cannot reach the monitor"),
        (("f.toml", "--monitor", "http://127.0.0.1:1"), "not a SPEC"),
        (("--monitor", "http://x", "--token-file", "/nowhere"), "cannot read"),
        (("--token-file", "x"), "goes with --monitor"),
        (("--interval", "1ms"), "at least 0.1s"),
        (("--interval", "99999999999999h"), "at most 24h"),
        (("--monitor", "http://127.0.0.1:1/\u00fc"), "not an http"),
        (("--monitor", "http://a..b"), "not an http"),
        (("--monitor", f"http://{'a' * 300}"), "not an http"),
        (("--monitor", "http://me:sesame@127.0.0.1:1"), "--token-file"),
    ],
)
def test_what_cannot_be_asked(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    code, out, error = top(capsys, *words)
    assert (code, out) == (1, "")
    assert message in error
    assert "Traceback" not in error


def test_figures_in_words() -> None:
    view = FleetView("batch")
    words = dict(figure_lines(view.figures()))
    assert words["agents"] == "0 alive, 0 late, 0 lost"
    assert words["polo"] == "not known yet"
    assert "no broker" in words["note"]
    figures = msgspec.structs.replace(
        view.figures(),
        following=True,
        agents=AgentCounts(alive=180, late=1, lost=19, left=4),
        tasks=TaskFigures(
            *(1_860.0, 140.0, 0.07, 1_860, 140),
            *(12.345, 1_234.5, 150_000.0),
        ),
    )
    assert figure_lines(figures)[:3] == [
        ("agents", "180 alive, 1 late, 19 lost"),
        ("tasks/min", "1860 completed, 140 failed  (since up 1860 and 140)"),
        ("errors", "7.0% in five minutes; times p50 12.3 ms, p95 1.23 s, p99 2m30s"),
    ]
