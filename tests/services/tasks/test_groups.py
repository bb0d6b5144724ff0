"""Many submissions and outcomes in one call, and answers that travel together."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.services.tasks import SESSION_PORT
from pilotfleet.services.tasks import link
from tests.services.tasks.support import (
    LIMIT_S,
    Node,
    Program,
    TaskWorld,
    frame,
    pair,
    read_frame,
    submission,
    submit,
    until,
)

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream

pytestmark = pytest.mark.timeout(60)


def given(worker: Node, task_id: str, **more: Any) -> dict[str, Any]:
    fields = {"target": str(worker.agent.address), "task": f"do {task_id}"}
    return {"task_id": task_id, **fields, **more}


async def offers(program: Program, count: int) -> list[str]:
    return sorted([await program.offer() for _ in range(count)])


async def test_tasks_submitted_together_are_done_each(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, crew = await hub.program(), await worker.program()
    await crew.call("serve", agents=["worker"], concurrency=10)
    await boss.call("watch")
    tasks = [given(worker, f"t{n}", deadline_s=60, priority=n) for n in range(5)]
    assert await boss.call("submit-all", tasks=tasks) == {"refused": {}}
    ids = [f"t{n}" for n in range(5)]
    assert await offers(crew, 5) == ids
    outcomes = [
        {"agent": "worker", "task_id": task_id, "ok": True, "result": f"<{task_id}>"}
        for task_id in ids
    ]
    assert await crew.call("finish-all", outcomes=outcomes) == {"refused": {}}
    for task_id in ids:
        push = await boss.expect("update", task_id=task_id, status="SUCCEEDED")
        assert push["results"] == f"<{task_id}>"


async def test_what_is_wrong_with_one_submission_is_its_own(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, crew = await hub.program(), await worker.program()
    await crew.call("serve", agents=["worker"], concurrency=10)
    known = given(worker, "known")
    await boss.call("submit-all", tasks=[known])
    tasks = [
        given(worker, "good"),
        known,
        given(worker, "good"),
        given(worker, "known", task="another"),
        given(worker, "urgent", priority=101),
        given(worker, "late", deadline_s=-1),
        given(worker, "../evil"),
        given(worker, "long", task="x" * 20_000),
        given(worker, "nobody", target="nobody"),
        given(worker, ""),
    ]
    refused = (await boss.call("submit-all", tasks=tasks))["refused"]
    assert {task_id: error["code"] for task_id, error in refused.items()} == {
        "known": "already_exists",
        "urgent": "invalid_argument",
        "late": "invalid_argument",
        "../evil": "invalid_argument",
        "long": "invalid_argument",
        "nobody": "connection_failed",
        "": "invalid_argument",
    }
    assert await offers(crew, 2) == ["good", "known"]


async def test_what_is_wrong_with_one_outcome_is_its_own(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, crew = await hub.program(), await worker.program()
    await crew.call("serve", agents=["worker"], concurrency=10)
    first, second = await submit(boss, worker), await submit(boss, worker)
    await offers(crew, 2)
    outcomes = [
        {"task_id": first, "ok": True, "result": "x" * 400_000},
        {"task_id": "none", "ok": True},
        {"task_id": second, "ok": False, "error": "no", "agent": "worker"},
        {"task_id": second, "ok": True},
    ]
    refused = (await crew.call("finish-all", outcomes=outcomes))["refused"]
    assert {place: error["code"] for place, error in refused.items()} == {
        "1": "not_found",
        "3": "invalid_state",
    }
    await boss.until(second, "submitted", "FAILED")
    assert await boss.status(first, "submitted") == "SUCCEEDED"


async def test_a_group_has_a_bound(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss = await hub.program()
    tasks = [given(worker, f"t{n}") for n in range(1_001)]
    with pytest.raises(InvalidArgument, match="length"):
        await boss.call("submit-all", tasks=tasks)
    with pytest.raises(InvalidArgument, match="length"):
        await boss.call("finish-all", outcomes=[{"task_id": "t", "ok": True}] * 1_001)


def patiently(data: bytes) -> bytes:
    """Return a submission whose answer nobody waits for."""
    return frame(1, {**json.loads(data[8:]), "patient": True})


async def test_a_quick_result_comes_with_the_answer_to_its_submission(
    net: TaskWorld,
) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    crew = await worker.program()
    await crew.call("serve", agents=["worker"])
    async with await open_session(peer, worker) as stream:
        await stream.write(patiently(submission("t", peer, worker.agent, "x")))
        await crew.call("finish", task_id=await crew.offer(), ok=True, result="y")
        # In one packet, unless a slow test took longer than the answer may wait.
        assert await types_of(stream, 2) == [1, 4]


async def test_many_answers_do_not_wait_for_results(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ANSWER_DELAY_S", 3600.0)
    worker, peer = await net.node("worker"), await net.bare("peer")
    crew = await worker.program()
    await crew.call("serve", agents=["worker"])
    async with await open_session(peer, worker) as stream:
        for number in range(200):
            data = submission(f"t{number}", peer, worker.agent, "x")
            await stream.write(patiently(data))
        # The last of them wait, for a result or for an hour.
        assert await types_of(stream, 100) == [1] * 100


@pytest.mark.parametrize("is_served", [True, False])
async def test_an_answer_does_not_wait_for_a_slow_result(
    net: TaskWorld, *, is_served: bool
) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    crew = await worker.program()
    if is_served:
        await crew.call("serve", agents=["worker"])
    async with await open_session(peer, worker) as stream:
        for task_id in ("a", "b"):
            data = submission(task_id, peer, worker.agent, "x")
            await stream.write(patiently(data) if task_id == "a" else data)
        assert await types_of(stream, 2) == [1, 1]


async def open_session(peer: Agent, node: Node) -> Stream:
    remote = SocketAddress(node.agent.address, SESSION_PORT)
    return await peer.dial(remote, timeout=LIMIT_S)


async def types_of(stream: Stream, count: int) -> list[int]:
    async with asyncio.timeout(LIMIT_S):
        return [(await read_frame(stream))[0] for _ in range(count)]


async def test_that_a_task_was_delivered_is_on_the_disk_soon(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss = await hub.program()
    task_id = await submit(boss, worker)
    [record] = list(hub.tasks.table)
    assert record.delivered
    find = hub.tasks.store.get
    kept = await find(record.key)
    while kept is None or not kept.delivered:
        kept = await find(record.key)
    await boss.call("cancel", task_id=task_id)
    await until(lambda: not list(worker.tasks.table), "the task is over")
