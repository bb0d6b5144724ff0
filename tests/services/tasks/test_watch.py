"""Watchers that do not keep up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import Busy
from pilotfleet.protocol.services.taskstate import Role, Status
from pilotfleet.services.tasks import watch as taskwatch
from pilotfleet.services.tasks.record import TaskRecord
from pilotfleet.services.tasks.watch import MAX_INLINE, MAX_WATCHERS, Watchers
from tests.services.tasks.support import Connection, until

if TYPE_CHECKING:
    from tests.services.tasks.support import TaskWorld


def record(
    task_id: str, status: Status = Status.SUCCEEDED, **fields: Any
) -> TaskRecord:
    return TaskRecord(
        agent="hub",
        role=Role.SUBMITTED,
        task_id=task_id,
        peer=7,
        from_addr="0:0000.0000.0001",
        to_addr="0:0000.0000.0007",
        description="text",
        created=time.time(),
        status=status,
        **fields,
    )


def ids(connection: Connection) -> list[str]:
    return [push["task_id"] for push in connection.pushes]


def test_ends_wait_for_a_full_connection_and_progress_does_not() -> None:
    watchers, slow, fast = Watchers(), Connection(room=1), Connection(room=99)
    for connection in (slow, fast):
        assert watchers.add("hub", connection)
    for each in (
        record("a", Status.EXECUTING),
        record("b", Status.EXECUTING),
        record("c"),
        record("d", Status.FAILED),
    ):
        watchers.tell(each, b"")
    assert ids(fast) == ["a", "b", "c", "d"]
    assert ids(slow) == ["a"]
    assert watchers.is_lagging
    slow.room = 2
    watchers.catch_up()
    assert ids(slow) == ["a", "c"]
    assert watchers.is_lagging
    slow.room = 9
    watchers.catch_up()
    assert ids(slow) == ["a", "c", "d"]
    assert not watchers.is_lagging


def test_what_was_collected_is_pushed_no_more() -> None:
    watchers, slow = Watchers(), Connection(room=0)
    watchers.add("hub", slow)
    for name in ("a", "b"):
        watchers.tell(record(name), b"")
    watchers.collected("hub", ["a", "unknown"])
    watchers.collected("other", ["b"])
    slow.room = 9
    watchers.catch_up()
    assert ids(slow) == ["b"]


def test_a_backlog_is_bounded_and_goes_with_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(taskwatch, "MAX_BACKLOG", 3)
    watchers, slow = Watchers(), Connection(room=0)
    watchers.add("hub", slow)
    for name in "abcde":
        watchers.tell(record(name), b"")
    slow.room = 9
    watchers.catch_up()
    assert ids(slow) == ["c", "d", "e"]
    slow.room = 0
    watchers.tell(record("f"), b"")
    slow.close()
    assert not watchers.is_lagging
    watchers.tell(record("g"), b"")
    assert ids(slow) == ["c", "d", "e"]


def test_watchers_of_one_agent_are_bounded() -> None:
    watchers = Watchers()
    connections = [Connection(room=1) for _ in range(MAX_WATCHERS)]
    assert all(watchers.add("hub", each) for each in connections)
    assert not watchers.add("hub", connections[0])
    with pytest.raises(Busy):
        watchers.add("hub", Connection(room=1))
    assert watchers.add("other", Connection(room=1))
    connections[0].close()
    assert watchers.add("hub", Connection(room=1))


def test_an_end_without_delivery_is_told_from_others() -> None:
    watchers, program = Watchers(), Connection(room=9)
    watchers.add("hub", program)
    watchers.tell(record("never", Status.EXPIRED), b"")
    watchers.tell(record("late", Status.EXPIRED, delivered=5.0), b"")
    watchers.tell(record("done"), b"")
    assert [push.get("delivered") for push in program.pushes] == [False, None, None]


def test_unreachable_workers_are_told_without_an_end() -> None:
    watchers, connection = Watchers(), Connection(room=9)
    watchers.add("hub", connection)
    watchers.tell_unreachable("hub", [record("a", Status.NEW)])
    watchers.tell_unreachable("other", [record("b", Status.NEW)])
    [push] = connection.pushes
    assert (push["task_id"], push["reachable"]) == ("a", False)


@pytest.mark.parametrize(
    ("fields", "content", "shown"),
    [
        ({"result_type": "text", "result_size": 3}, b"abc", "abc"),
        ({"result_type": "text", "result_size": 0}, b"", ""),
        # Not at hand: it is fetched.
        ({"result_type": "text", "result_size": 3}, b"", None),
        (
            {"result_type": "text", "result_size": MAX_INLINE + 1},
            bytes(MAX_INLINE + 1),
            None,
        ),
        (
            {"result_type": "file", "result_size": 3, "result_name": "a.csv"},
            b"abc",
            "a.csv",
        ),
    ],
)
def test_short_texts_are_shown_in_the_push(
    fields: dict[str, Any], content: bytes, shown: str | None
) -> None:
    push = taskwatch.update_push(record("a", **fields), content)
    assert push.get("results") == shown
    assert push["result_size"] == fields["result_size"]


async def test_more_results_than_a_connection_takes_at_once_all_come(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.service.RETRY_PUSH_S", 0.01)
    hub = await net.node("hub")
    for number in range(20):
        await hub.tasks.store.insert(record(f"t{number}"))
    slow = Connection(room=3)
    hub.tasks.watchers.add("hub", slow)
    await hub.tasks.push_uncollected("hub", slow)
    assert len(slow.pushes) == 3
    slow.room = 99

    await until(lambda: len(slow.pushes) == 20, "the rest is pushed")
    assert ids(slow) == [f"t{number}" for number in range(20)]
