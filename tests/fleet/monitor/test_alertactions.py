"""Alerts reach a real HTTP server, real commands and a publisher, at least once."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import ConnectionFailed, DecodeError
from pilotfleet.fleet.monitor.alerts import actions as alertactions
from pilotfleet.fleet.monitor.alerts.actions import AlertActions
from pilotfleet.fleet.monitor.alerts.book import AlertBook
from pilotfleet.fleet.monitor.outputs.health import OutputCounters
from tests.fleet.monitor.alertsupport import FLEET, MadeValues, rule
from tests.services.webhooksupport import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from pilotfleet.fleet.monitor.alerts.book import AlertChange
    from pilotfleet.fleet.monitor.alerts.rules import Rule

T0 = 1_800_000_000.0
SECRET = "hunter2"


class World:
    """Actions with a clock and a publisher of the test."""

    def __init__(self) -> None:
        self.now = T0
        self.pauses: list[float] = []
        self.published: list[tuple[str, str, dict[str, Any]]] = []
        self.failures = 0
        self.counters = OutputCounters()
        self.actions = self.make()

    def make(self) -> AlertActions:
        return AlertActions(
            self.publish,
            counters=self.counters,
            wall=lambda: self.now,
            sleep=self.sleep,
        )

    async def publish(self, fleet: str, topic: str, payload: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionFailed("the broker is away")
        self.published.append((fleet, topic, json.loads(payload)))

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    async def drain(self) -> None:
        """Deliver what waits."""
        self.actions.start()
        tasks = [queue.task for queue in self.actions._queues.values()]
        await asyncio.gather(*(task for task in tasks if task is not None))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.actions.aclose()


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as made:
        yield made


def changes(*targets: str, text: str = "") -> tuple[Rule, list[AlertChange]]:
    """Return a rule and what is told when it fires and is resolved."""
    to = json.dumps(list(targets))
    made = rule(f'metric = "error_rate"\nabove = 0.1\nto = {to}\n{text}', name="errs")
    book = AlertBook([made])
    fired = book.evaluate(MadeValues({"error_rate": 0.5}), T0)
    return made, fired + book.evaluate(MadeValues({"error_rate": 0.0}), T0 + 1)


def script(path: Path, text: str) -> str:
    """Return a target that runs Python."""
    program = path / "program.py"
    program.write_text(text)
    return f"command:{shlex.quote(sys.executable)} {shlex.quote(str(program))} a 'b c'"


async def test_webhook_is_posted_to(world: World, recorder: Recorder) -> None:
    _, told = changes(f"webhook:{recorder.url}")
    for change in told:
        world.actions.offer(change)
    await world.drain()
    assert [event["state"] for event in recorder.events] == ["firing", "resolved"]
    assert recorder.events == [change.payload() for change in told]
    assert recorder.deliveries[0].headers["content-type"] == "application/json"
    assert (world.actions.delivered, world.actions.waiting) == (2, 0)


@pytest.mark.parametrize("answer", [500, 503, 429, 408])
async def test_webhook_that_fails_is_posted_to_again(
    world: World, recorder: Recorder, answer: int
) -> None:
    recorder.answers = [answer] * 9
    _, told = changes(f"webhook:{recorder.url}")
    for change in told:
        world.actions.offer(change)
    await world.drain()
    # In order, and each with its own id and state however often it comes.
    states = [event["state"] for event in recorder.events]
    assert states == ["firing"] * 10 + ["resolved"]
    assert len({event["id"] for event in recorder.events}) == 1
    assert len(world.pauses) == 9
    assert 0.5 <= world.pauses[0] <= 1
    assert 30 <= max(world.pauses) <= 60


@pytest.mark.parametrize("answer", [301, 400, 401, 404, 410])
async def test_webhook_that_refuses_is_left_alone(
    world: World, recorder: Recorder, answer: int
) -> None:
    recorder.answers, recorder.location = [answer], recorder.url
    world.actions.offer(changes(f"webhook:{recorder.url}")[1][0])
    await world.drain()
    assert len(recorder.events) == 1
    assert world.actions.given_up == 1


async def test_nobody_there_is_given_up_after_a_day(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Recorder() as gone:
        url = gone.url.replace("http://", f"http://u:{SECRET}@") + SECRET
    world.actions.offer(changes(f"webhook:{url}")[1][0])
    await world.drain()
    assert T0 + 86_400 < world.now < T0 + 86_400 + 61
    assert (world.actions.given_up, world.actions.waiting) == (1, 0)
    assert "alert is given up" in caplog.text
    assert SECRET not in caplog.text
    # One line when it begins to fail, one when it is given up.
    loud = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert len(loud) == 2


async def test_slow_target_holds_up_no_other(world: World, recorder: Recorder) -> None:
    recorder.hold = threading.Event()
    world.actions.offer(changes(f"webhook:{recorder.url}", "topic:alerts.x")[1][0])
    world.actions.start()
    [topic] = [q.task for q in world.actions._queues.values() if q.action.topic]
    assert topic is not None
    await topic
    assert len(world.published) == 1
    assert world.actions.waiting == 1
    recorder.hold.set()
    await world.drain()
    assert world.actions.waiting == 0


async def test_command_gets_json_and_variables(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOT_ADMIN_TOKEN", SECRET)
    target = script(
        tmp_path,
        "import json, os, sys\n"
        f"with open({str(tmp_path / 'out')!r}, 'w') as out:\n"
        "    alert = {k: v for k, v in os.environ.items() if k[:6] == 'ALERT_'}\n"
        "    secrets = [v for v in os.environ.values() if v == 'hunter2']\n"
        "    json.dump([sys.argv[1:], json.load(sys.stdin), alert, secrets], out)\n",
    )
    _, told = changes(target)
    world.actions.offer(told[0])
    await world.drain()
    argv, body, alert, secrets = json.loads((tmp_path / "out").read_text())
    assert argv == ["a", "b c"]
    assert body == told[0].payload()
    assert alert["ALERT_RULE"] == "errs"
    assert alert["ALERT_STATE"] == "firing"
    assert alert["ALERT_VALUE"] == "0.5"
    assert alert["ALERT_ID"] == told[0].id
    assert set(alert) == {f"ALERT_{key.upper()}" for key in body}
    assert secrets == []
    assert world.actions.delivered == 1


@pytest.mark.parametrize("target", ["command:/no/such/program", "command:false"])
async def test_command_that_fails_runs_five_times(world: World, target: str) -> None:
    world.actions.offer(changes(target)[1][0])
    await world.drain()
    assert len(world.pauses) == 4
    assert world.actions.given_up == 1


async def test_command_that_hangs_is_killed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alertactions, "COMMAND_S", 0.05)
    monkeypatch.setattr(alertactions, "MAX_RUNS", 1)
    world.actions.offer(changes("command:sleep 1000")[1][0])
    await world.drain()
    assert world.actions.given_up == 1


async def test_no_shell_reads_the_command(world: World, tmp_path: Path) -> None:
    target = f"command:echo x > {tmp_path / 'made'}"
    world.actions.offer(changes(target)[1][0])
    await world.drain()
    assert world.actions.delivered == 1
    assert not (tmp_path / "made").exists()


async def test_topic_is_published_to(world: World) -> None:
    world.failures = 3
    _, told = changes("topic:alerts.errors")
    world.actions.offer(told[0])
    await world.drain()
    assert world.published == [(FLEET, "alerts.errors", told[0].payload())]
    assert len(world.pauses) == 3


async def test_queue_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alertactions, "MAX_WAITING", 3)
    _, told = changes("topic:alerts.errors")
    for change in told * 5:
        world.actions.offer(change)
    assert (world.actions.waiting, world.actions.given_up) == (3, 7)
    assert world.counters.dropped == 7
    await world.drain()
    states = [payload["state"] for _, _, payload in world.published]
    assert states == ["resolved", "firing", "resolved"]


async def test_what_is_not_confirmed_outlives_the_program(world: World) -> None:
    made, told = changes("topic:alerts.errors", f"webhook:https://h/{SECRET}")
    for change in told:
        world.actions.offer(change)
    state = world.actions.save()
    assert SECRET.encode() not in state
    next_one = World()
    next_one.actions.load(state, [made])
    assert next_one.actions.waiting == 4
    # The webhook is not in the file any more.
    other = World()
    other.actions.load(state, [changes("topic:alerts.errors")[0]])
    assert (other.actions.waiting, other.actions.given_up) == (2, 2)
    await other.drain()
    assert [payload["id"] for _, _, payload in other.published] == [
        change.id for change in told
    ]


@given(data=st.binary(max_size=60))
def test_damaged_state_is_refused(data: bytes) -> None:
    actions = World().actions
    try:
        actions.load(data, [])
    except DecodeError:
        assert actions.waiting == 0
