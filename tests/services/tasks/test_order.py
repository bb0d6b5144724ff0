"""Priorities and deadlines of tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.services.tasks import SESSION_PORT, TASK_PORT
from pilotfleet.protocol.services.tasks import Submit as SubmitMessage
from pilotfleet.services.tasks.queue import TaskQueue
from pilotfleet.services.tasks.received import received_record
from tests.services.tasks.support import (
    LIMIT_S,
    TaskWorld,
    frame,
    pair,
    read_frame,
    submit,
    until,
)

if TYPE_CHECKING:
    from pilotfleet.node.stream import Stream
    from pilotfleet.services.tasks.record import TaskRecord

pytestmark = pytest.mark.timeout(60)


def task(task_id: str, priority: int = 0) -> TaskRecord:
    message = SubmitMessage(task_id, "x", priority=priority)
    return received_record("w1", 7, message, now=1000.0)


def ids(queue: TaskQueue) -> list[str]:
    return [record.task_id for record in queue]


# The queue


def test_the_urgent_goes_first_and_then_the_old() -> None:
    queue = TaskQueue()
    for name, priority in [("a", 0), ("b", 5), ("c", -5), ("d", 5), ("e", 0)]:
        queue.put(task(name, priority), wall=1.0)
    assert ids(queue) == ["b", "d", "a", "e", "c"]
    order = []
    while queue:
        assert queue.head is not None
        order.append(queue.head.task_id)
        queue.remove(queue.head, wall=2.0)
    assert order == ["b", "d", "a", "e", "c"]
    assert queue.head is None


def test_what_is_given_back_goes_before_its_equals_only() -> None:
    queue = TaskQueue()
    urgent = task("u", 1)
    for record in (task("a"), urgent, task("b")):
        queue.put(record, wall=1.0)
    queue.put(task("back"), wall=2.0, first=True)
    assert ids(queue) == ["u", "back", "a", "b"]


def test_only_the_head_is_staged() -> None:
    queue = TaskQueue()
    first, second, urgent = task("a"), task("b"), task("u", 9)
    queue.put(first, wall=1.0)
    queue.put(second, wall=2.0)
    assert (first.staged, second.staged) == (1.0, 0.0)
    queue.put(urgent, wall=3.0)
    assert (first.staged, urgent.staged) == (0.0, 3.0)
    queue.put(first, wall=4.0)
    assert first.staged == 0.0
    queue.remove(urgent, wall=5.0)
    # What leaves keeps the time that it became head at.
    assert (urgent.staged, first.staged) == (3.0, 5.0)
    assert ids(queue) == ["a", "b"]
    assert queue.head is first


@pytest.mark.parametrize(
    ("said", "kept"), [(5, 5), (101, 100), (-(1 << 80), -100), (1 << 80, 100)]
)
def test_a_priority_beyond_the_range_is_the_nearest(said: int, kept: int) -> None:
    assert task("a", said).priority == kept


@pytest.mark.parametrize(
    ("left_ms", "deadline"), [(0, 0.0), (-5, 0.0), (1500, 1001.5), (1 << 80, 1e9 + 1e3)]
)
def test_a_deadline_counts_from_the_arrival(left_ms: int, deadline: float) -> None:
    message = SubmitMessage("a", "x", deadline_ms=left_ms)
    assert received_record("w1", 7, message, now=1000.0).deadline == deadline


# Between hosts


async def test_urgent_tasks_are_offered_first(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    sent = {
        priority: await submit(boss, worker, priority=priority)
        for priority in (0, -3, 7, 2)
    }
    for task_id in sent.values():
        await program.call("accept", task_id=task_id)
    queue = (await program.call("queue"))["queue"]
    expected = [sent[priority] for priority in (7, 2, 0, -3)]
    assert [row["task_id"] for row in queue] == expected
    await program.call("serve", agents=["worker"])
    for task_id in expected:
        assert await program.offer() == task_id
        await program.call("finish", task_id=task_id, ok=True, result="x")
    shown = await boss.call("show", task_id=sent[7])
    assert shown["submitted"]["priority"] == 7


async def test_an_overdue_task_expires_on_both_sides_and_is_stopped(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await boss.call("watch")
    await program.call("serve", agents=["worker"], concurrency=1)
    running = await submit(boss, worker, deadline_s=60)
    waiting = await submit(boss, worker, deadline_s=60)
    calm = await submit(boss, worker, deadline_s=1000)
    assert await program.offer() == running
    shown = await program.call("show", task_id=running)
    assert shown["received"]["deadline"]
    worker.wall.ahead = 61.0
    push = await program.expect("cancel")
    assert push["task_id"] == running
    # The worker reports it, though by the submitter's clock there is time.
    for task_id in (running, waiting):
        push = await boss.expect("update", task_id=task_id, status="EXPIRED")
        assert push["justification"] == "Task expired: its deadline has passed"
        assert await program.status(task_id, "received") == "EXPIRED"
    assert await program.offer() == calm


async def test_a_submitter_expires_what_its_worker_does_not(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await boss.call("watch")
    await program.call("serve", agents=["worker"])
    task_id = await submit(boss, worker, deadline_s=60)
    assert await program.offer() == task_id
    hub.wall.ahead = 61.0
    await boss.expect("update", task_id=task_id, status="EXPIRED")
    # The worker's clock stands still, so it is told.
    assert (await program.expect("cancel"))["task_id"] == task_id
    assert await program.status(task_id, "received") == "CANCELLED"
    await until(lambda: not list(hub.tasks.table), "the worker is told")


async def test_a_task_that_cannot_be_delivered_in_time_expires(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    await worker.close()
    boss = await hub.program()
    await boss.call("watch")
    task_id = await submit(boss, worker, wait=False, deadline_s=60)
    hub.wall.ahead = 61.0
    push = await boss.expect("update", task_id=task_id, status="EXPIRED")
    assert "retryable" not in push
    assert list(hub.tasks.table) == []


async def test_a_deadline_outlives_a_restart(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    task_id = await submit(await hub.program(), worker, deadline_s=60)
    await worker.close()
    worker.wall.ahead = 61.0
    worker = await net.node("worker", wall=worker.wall)
    await (await worker.program()).until(task_id, "received", "EXPIRED")


@pytest.mark.parametrize(
    "wrong", [{"priority": 101}, {"priority": -101}, {"deadline_s": 0}]
)
async def test_what_no_task_may_have_is_refused(
    net: TaskWorld, wrong: dict[str, Any]
) -> None:
    hub, worker = await pair(net)
    boss = await hub.program()
    with pytest.raises(InvalidArgument):
        await submit(boss, worker, **wrong)


async def test_an_official_peer_gets_the_official_frame(net: TaskWorld) -> None:
    hub, peer = await net.node("hub"), await net.bare("peer")
    boss = await hub.program()
    frames: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def serve(stream: Stream) -> None:
        _, fields = await read_frame(stream)
        taken = {"task_id": fields["task_id"], "status": 200, "message": "taken"}
        await stream.write(frame(1, taken))
        await stream.close()
        frames.put_nowait(fields)

    tasks: list[asyncio.Future[None]] = []
    peer.listen(TASK_PORT, lambda s: tasks.append(asyncio.ensure_future(serve(s))))
    order: dict[str, Any] = {"priority": 5, "deadline_s": 60}
    await boss.call("submit", target=peer.node_id, task="x", **order)
    official = {"task_id", "task_description", "from_addr", "to_addr"}
    assert set(await frames.get()) == official
    await asyncio.gather(*tasks)


async def test_one_of_ours_gets_what_is_left_of_the_time(net: TaskWorld) -> None:
    hub, peer = await net.node("hub"), await net.bare("peer")
    streams: asyncio.Queue[Stream] = asyncio.Queue()
    peer.listen(SESSION_PORT, streams.put_nowait)
    boss = await hub.program()
    target = peer.node_id
    order: dict[str, Any] = {"priority": 5, "deadline_s": 60}
    await boss.call("submit", target=target, task="x", wait=False, **order)
    async with asyncio.timeout(LIMIT_S):
        _, fields = await read_frame(await streams.get())
    assert fields["priority"] == 5
    assert 0 < fields["deadline_ms"] <= 60_000


# Finding again


async def test_a_program_finds_again_what_it_has_given_away(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    for number in range(3):
        await submit(boss, worker, task_id=f"run-{number}", wait=False)
    await submit(boss, worker, task_id="other-1", wait=False)
    await program.call("serve", agents=["worker"], concurrency=9)
    for _ in range(4):
        await program.offer()
    for number in (0, 1):
        done: dict[str, Any] = {"task_id": f"run-{number}", "ok": True, "result": "x"}
        await program.call("finish", **done)
        await boss.until(f"run-{number}", "submitted", "SUCCEEDED")
    await boss.call("collect", task_ids=["run-0"])
    found = await boss.call("open", prefix="run-")
    to = str(worker.agent.address)
    assert found["next_cursor"] == ""
    assert [(row["task_id"], row["to"]) for row in found["tasks"]] == [
        ("run-1", to),
        ("run-2", to),
    ]
    assert found["tasks"][0]["status"] == "SUCCEEDED"
    everything = await boss.call("open")
    assert len(everything["tasks"]) == 3
    rest = await boss.call("open", prefix="run-", cursor="run-1")
    assert [row["task_id"] for row in rest["tasks"]] == ["run-2"]
    with pytest.raises(InvalidArgument):
        await boss.call("open", prefix="%")


async def test_open_tasks_come_in_pages(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.listing.MAX_LISTED", 2)
    hub, worker = await pair(net)
    boss = await hub.program()
    for number in range(3):
        await submit(boss, worker, task_id=f"a{number}", wait=False)
    first = await boss.call("open", prefix="a")
    assert [row["task_id"] for row in first["tasks"]] == ["a0", "a1"]
    rest = await boss.call("open", prefix="a", cursor=first["next_cursor"])
    assert [row["task_id"] for row in rest["tasks"]] == ["a2"]
    assert rest["next_cursor"] == ""
