"""``pilot-monitor`` as a program, at a real broker."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.cli.monitorsupport import FLEET, Watched, publisher, start_hub
from tests.support.programs import BIN, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.programs import World

RULE = """
[[rule]]
name = "{name}"
severity = "critical"
metric = "agents_alive"
{condition}
summary = "{{value}} agents"
"""


def start_with_lines(watched: Watched, *flags: object) -> subprocess.Popen[bytes]:
    """Start a monitor whose standard output is ours."""
    net = watched.net
    with (net.home / "lines.log").open("wb") as log:
        return subprocess.Popen(
            [
                *(BIN / "pilot-monitor", "--socket", net.socket("hub")),
                *("--http", "127.0.0.1:0", "--ndjson", "events"),
                *map(str, (*watched.flags, *flags)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=net.environment(),
        )


@pytest.fixture(scope="module")
def hub() -> Iterator[World]:
    with world() as net:
        start_hub(net)
        yield net


@pytest.fixture
def watched(hub: World, tmp_path: Path) -> Iterator[Watched]:
    monitor = Watched(hub, flags=("--home", tmp_path / "monitor"))
    yield monitor
    if monitor.program is not None:
        monitor.program.kill()


async def test_every_event_is_counted_once_whatever_ends_between(
    watched: Watched,
) -> None:
    watched.start()
    base = watched.figures()["tasks"]
    done, failed = base["completed"], base["failed"]
    async with publisher(watched.net) as fleet:
        await fleet.health("worker-0", "worker-1", "worker-2")
        await fleet.tasks(10, failed=2)
        watched.wait_tasks(done + 8, failed + 2)
        # Killed: what was not stored comes again from the broker's log.
        watched.running().kill()
        await fleet.tasks(10, failed=3)
        watched.start()
        figures = watched.wait_tasks(done + 15, failed + 5)
        assert figures["agents"]["alive"] >= 3
        # Stopped in order: nothing comes again.
        await fleet.tasks(5, failed=1)
        watched.wait_tasks(done + 19, failed + 6)
        assert watched.running().terminate() == 0
        await fleet.tasks(7)
        watched.start()
        watched.wait_tasks(done + 26, failed + 6)
        await fleet.tasks(1)
        watched.wait_tasks(done + 27, failed + 6)


async def test_history_survives_a_restart(watched: Watched, tmp_path: Path) -> None:
    watched.start()
    async with publisher(watched.net) as fleet:
        await fleet.health("worker-0")
        await fleet.tasks(6)
    watched.wait(lambda now: now["tasks"]["completed"] >= 6)
    page = f"/api/fleets/{FLEET}/agents/worker-0"
    before = json.loads(watched.get(page))
    assert watched.running().terminate() == 0
    file = tmp_path / "monitor" / "monitor.db"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    watched.start()
    after = json.loads(watched.get(page))
    assert len(before["tasks"]) >= 2
    assert (after["tasks"], after["events"]) == (before["tasks"], before["events"])
    query = f"/api/fleets/{FLEET}/series?metric=completed_per_minute&range=600"

    def most() -> float:
        rates = json.loads(watched.get(query))["values"]["completed_per_minute"]
        return max(rate or 0.0 for rate in rates)

    # The second that was open at the end is written when time goes on.
    watched.running().wait_until(lambda: most() >= 6)


def test_metrics_are_those_of_a_scrape(watched: Watched) -> None:
    watched.start()
    text = watched.get("/metrics").decode()
    assert 'pilot_monitor_following{fleet="words"} 1.0' in text
    assert "pilot_monitor_history_errors_total 0.0" in text


def test_a_token_opens_pages_and_metrics(watched: Watched, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("open-sesame\n")
    watched.flags += ("--http-token-file", token)
    watched.start()
    assert watched.status("/metrics") == 401
    assert watched.status(f"/api/fleets/{FLEET}/figures") == 401
    assert watched.status("/healthz") == 200
    watched.token = "open-sesame"
    assert watched.status("/metrics") == 200
    assert "open-sesame" not in watched.running().log.read_text()


def test_what_cannot_be_is_refused_with_a_remedy(
    watched: Watched, tmp_path: Path
) -> None:
    said = watched.refusal("--http", "0.0.0.0:0")
    assert "others can reach 0.0.0.0:0" in said
    assert "--http-token-file FILE" in said
    assert "is no name of an agent" in watched.refusal("--broker", "../etc")
    assert "is not host:port" in watched.refusal("--http", "8787")
    assert "cannot read the token file" in watched.refusal(
        "--http-token-file", tmp_path / "none"
    )
    assert "Bearer" in watched.refusal("--otlp", "http://user:pw@127.0.0.1")
    assert "at least 1h" in watched.refusal("--retention", "5m")
    twice = ("--broker", "words-hub", "--broker", "words-hub")
    assert "two fleets are called words" in watched.refusal(*twice)
    rules = tmp_path / "rules.toml"
    rules.write_text("[[rule]]\nname = 1\n")
    assert str(rules) in watched.refusal("--alerts", rules)


def test_a_broker_that_is_not_there_is_told_at_the_first_start(
    watched: Watched,
) -> None:
    said = watched.refusal("--broker", "nobody-hub")
    assert "nobody-hub" in said


def test_a_port_or_home_of_another_is_refused(watched: Watched) -> None:
    watched.start()
    assert "is used by another program" in watched.refusal()
    home = ("--home", watched.net.home / "another")
    said = watched.refusal(*home, "--http", watched.http)
    assert "choose another port with --http" in said


def test_otlp_without_its_libraries_says_how_to_get_them(
    watched: Watched, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden" / "opentelemetry"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not installed')\n")
    watched.env["PYTHONPATH"] = str(hidden.parent)
    said = watched.refusal("--otlp", "http://127.0.0.1:4318")
    assert "pip install 'pilotfleet[otlp]'" in said


def test_a_dead_collector_stops_nothing(watched: Watched) -> None:
    watched.flags += ("--otlp", "http://127.0.0.1:9")
    watched.start()
    error = 'pilot_monitor_output_errors_total{output="otlp"} 1.0'
    watched.running().wait_until(lambda: error in watched.get("/metrics").decode())
    assert watched.figures()["following"]
    log = watched.running().log.read_text()
    assert log.count("cannot send the figures to http://127.0.0.1:9") == 1


async def test_rules_are_read_again_at_sighup_and_bad_ones_are_not(
    watched: Watched, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULE.format(name="few", condition="below = 1000"))
    watched.flags += ("--alerts", rules)
    watched.start()

    def names(state: str) -> set[str]:
        rows = json.loads(watched.get("/api/alerts"))["alerts"]
        return {row["rule"] for row in rows if row["state"] == state}

    async with publisher(watched.net) as fleet:
        await fleet.health("worker-0")
    program = watched.running()
    program.wait_until(lambda: names("firing") == {"few"})
    rules.write_text("not TOML")
    program.process.send_signal(signal.SIGHUP)
    program.wait_until(lambda: "the old rules" in program.log.read_text())
    assert names("firing") == {"few"}
    rules.write_text(RULE.format(name="less", condition="below = 2000"))
    program.process.send_signal(signal.SIGHUP)
    program.wait_until(lambda: names("firing") == {"less"})


async def test_events_are_lines_and_a_closed_output_ends_only_them(
    watched: Watched, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    process = start_with_lines(watched, "--ready-file", ready)
    assert process.stdout is not None
    try:
        async with publisher(watched.net) as fleet:
            while not ready.exists():
                assert process.poll() is None
                await asyncio.sleep(0.02)
            await fleet.health("worker-9")
            while b"worker-9" not in (line := process.stdout.readline()):
                assert line
            event = json.loads(line)
            assert set(event) == {"time", "topic", "data", "broker"}
            assert event["broker"] == "words-hub"
            assert event["topic"] == "fleet.health"
            process.stdout.close()
            watched.http = json.loads(ready.read_text())["http"]
            errors = 'pilot_monitor_output_errors_total{output="ndjson"} 1.0'
            deadline = time.monotonic() + 60
            while errors not in watched.get("/metrics").decode():
                assert time.monotonic() < deadline
                await fleet.health("worker-9")
        assert watched.figures()["following"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


async def test_without_pages_it_still_records(watched: Watched) -> None:
    watched.flags += ("--http", "")
    ready = watched.net.home / "quiet.ready.json"
    program = watched.launch("--ready-file", ready)
    program.wait_until(ready.exists)
    assert json.loads(ready.read_text()) == {"fleets": [FLEET], "http": ""}
    async with publisher(watched.net) as fleet:
        await fleet.tasks(4)
    assert program.terminate() == 0
    watched.flags = watched.flags[:-2]
    watched.start()
    watched.wait(lambda now: now["tasks"]["completed"] >= 4)
