"""Alerts as a monitor runs them: saved, then told; over restarts; out of a source."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from pilotfleet.fleet.monitor.alerts.desk import AlertDesk
from pilotfleet.fleet.monitor.alerts.rules import (
    AGENT_METRICS,
    FLEET_METRICS,
    TAG_METRICS,
)
from pilotfleet.fleet.monitor.alerts.values import SourceValues
from pilotfleet.fleet.monitor.history.history import History
from pilotfleet.fleet.monitor.view.topicclock import TopicClock
from tests.fleet.monitor.alertsupport import MadeValues, rule
from tests.fleet.monitor.madefleet import MadeFleet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.fleet.monitor.alerts.rules import Rule

T0 = 1_800_000_000.0


class Receiver:
    """Takes what is published, when it is there."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.is_asked = asyncio.Event()
        self.is_there = asyncio.Event()
        self.is_there.set()

    async def publish(self, fleet: str, topic: str, payload: bytes) -> None:
        self.is_asked.set()
        await self.is_there.wait()
        alert = json.loads(payload)
        self.told.append((alert["id"], alert["state"]))


class FullStore:
    """A disk that refuses."""

    async def store_alerts(self, state: bytes) -> bool:
        return False

    async def load_alerts(self) -> bytes | None:
        return None


@pytest.fixture
async def history(tmp_path: Path) -> AsyncIterator[History]:
    async with History(tmp_path / "monitor.db") as history:
        yield history


def made_rule() -> Rule:
    return rule('metric = "error_rate"\nabove = 0.1\nto = ["topic:alerts.x"]')


async def drain(desk: AlertDesk) -> None:
    tasks = [queue.task for queue in desk.actions._queues.values()]
    await asyncio.gather(*(task for task in tasks if task is not None))


async def open_desk(
    history: History, receiver: Receiver, values: MadeValues
) -> AlertDesk:
    desk = AlertDesk(
        [made_rule()],
        values,
        store=history,
        publish=receiver.publish,
        wall=lambda: T0,
    )
    await desk.load()
    return desk


async def test_what_was_not_confirmed_is_told_again(history: History) -> None:
    receiver, values = Receiver(), MadeValues({"error_rate": 1})
    receiver.is_there.clear()
    first = await open_desk(history, receiver, values)
    await first.step()
    await first.actions.aclose()  # Killed before anybody had it.
    receiver.is_there.set()
    second = await open_desk(history, receiver, values)
    await second.step()
    await drain(second)
    assert [state for _, state in receiver.told] == ["firing"]
    await second.actions.aclose()  # Killed before the confirmation was saved.
    third = await open_desk(history, receiver, values)
    await third.step()
    await drain(third)
    # Told twice, which its id shows; fired once.
    assert len(set(receiver.told)) == 1
    assert len(receiver.told) == 2
    await third.step()
    fourth = await open_desk(history, receiver, values)
    await fourth.step()
    values.metrics["error_rate"] = 0
    await fourth.step()
    await drain(fourth)
    assert [state for _, state in receiver.told] == ["firing", "firing", "resolved"]
    assert len({name for name, _ in receiver.told}) == 1
    assert [row.state for row in fourth.rows()] == ["resolved"]


async def test_full_disk_does_not_keep_it_from_telling() -> None:
    receiver = Receiver()
    desk = AlertDesk(
        [made_rule()],
        MadeValues({"error_rate": 1}),
        store=FullStore(),
        publish=receiver.publish,
    )
    await desk.load()
    await desk.step()
    await drain(desk)
    assert len(receiver.told) == 1


async def test_damaged_state_begins_anew(
    history: History, caplog: pytest.LogCaptureFixture
) -> None:
    await history.store_alerts(b"what is this")
    receiver = Receiver()
    desk = await open_desk(history, receiver, MadeValues({"error_rate": 1}))
    assert "alerts begin anew" in caplog.text
    await desk.step()
    await drain(desk)
    assert len(receiver.told) == 1


async def test_reload_resolves_what_has_no_rule(history: History) -> None:
    receiver = Receiver()
    desk = await open_desk(history, receiver, MadeValues({"error_rate": 1}))
    await desk.step()
    desk.reload([])
    await desk.step()
    await drain(desk)
    assert [state for _, state in receiver.told] == ["firing", "resolved"]


async def test_run_saves_at_its_end(history: History) -> None:
    receiver = Receiver()
    receiver.is_there.clear()
    desk = await open_desk(history, receiver, MadeValues({"error_rate": 1}))
    task = asyncio.create_task(desk.run())
    await receiver.is_asked.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    again = await open_desk(history, receiver, MadeValues())
    assert again.actions.waiting == 1


def test_every_metric_is_read_from_a_source() -> None:
    source = MadeFleet(agents=2_500, wall=lambda: T0)
    clock = TopicClock()
    clock.take("fleet.health", T0 - 5)
    values = SourceValues(source, lambda fleet: clock)
    values.read(T0)
    [fleet] = values.fleets()
    figures = source.figures(fleet)
    assert values.is_current(fleet, T0)
    for metric in FLEET_METRICS:
        assert isinstance(values.fleet_value(fleet, metric), float), metric
    assert values.fleet_value(fleet, "agents_total") == figures.agents.total
    assert values.fleet_value(fleet, "completed") == figures.tasks.completed
    assert values.fleet_value(fleet, "polo_total") == figures.polo.total
    tag = source.tags(fleet)[0]
    for metric in TAG_METRICS:
        value = values.tag_value(fleet, tag.tag, metric)
        assert value is None or isinstance(value, float), metric
    assert values.tag_value(fleet, tag.tag, "agents_late") == tag.agents.late
    assert values.tag_value(fleet, "no such tag", "p99_ms") is None
    for metric in AGENT_METRICS:
        rows = list(values.agent_values(fleet, metric))
        assert len({row.name for row, _ in rows}) == len(rows)
        assert len(rows) == figures.agents.total
    assert values.last_event_at(fleet, "fleet.*") == T0 - 5
    assert values.last_event_at(fleet, "other") is None
    assert values.last_health_at(fleet, tag.tag) is not None
    assert values.last_health_at(fleet, "no such tag") is None


def test_fleet_that_catches_up_is_not_current_but_a_slow_clock_is() -> None:
    behind = 600.0
    now = T0
    source = MadeFleet(agents=10, wall=lambda: now - behind)
    values = SourceValues(source, lambda fleet: TopicClock())
    said = []
    for second in range(200):
        now = T0 + second
        # It catches up for a minute, ten times as fast as time; 60 s stay.
        behind = max(60.0, 600.0 - 9 * second)
        values.read(now)
        [fleet] = values.fleets()
        said.append(values.is_current(fleet, now))
        assert values.behind_s(fleet) == pytest.approx(behind, abs=2.1)
    assert not any(said[:85])
    assert all(said[95:])
    stalled = T0 + 200
    source = MadeFleet(agents=10, wall=lambda: stalled)
    values = SourceValues(source, lambda fleet: TopicClock())
    for second in range(200):
        values.read(stalled + second)
    assert not values.is_current(fleet, stalled + 199)
