"""Tasks that outlive their nodes, and limits of number, right and time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pilotfleet.errors import InvalidArgument, NotFound, Unavailable
from pilotfleet.protocol.services.taskstate import Status
from pilotfleet.services.tasks.gate import GateMode
from pilotfleet.services.tasks.table import Bounds
from tests.services.tasks.support import OPEN, Node, TaskWorld, pair, submit, until

pytestmark = pytest.mark.timeout(60)


# Restarts


async def test_a_task_is_delivered_when_its_worker_comes_back(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    await worker.close()
    boss = await hub.program()
    task_id = await submit(boss, worker, wait=False)
    assert await boss.status(task_id, "submitted") == "NEW"
    program = await (await net.node("worker")).program()
    await program.call("serve", agents=["worker"])
    assert await program.offer() == task_id


async def test_a_restarted_submitter_goes_on_delivering(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    await worker.close()
    task_id = await submit(await hub.program(), worker, wait=False)
    await hub.close()
    worker = await net.node("worker")
    hub = await net.node("hub")
    program = await worker.program()
    await program.call("serve", agents=["worker"])
    assert await program.offer() == task_id


async def test_a_restarted_worker_offers_again_what_it_had(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await boss.call("watch")
    await program.call("serve", agents=["worker"], concurrency=2)
    ids = [await submit(boss, worker) for _ in range(4)]
    assert [await program.offer(), await program.offer()] == ids[:2]
    await program.call("finish", task_id=ids[0], ok=True, result="x")
    assert await program.offer() == ids[2]
    await worker.close()
    program = await (await net.node("worker")).program()
    await program.call("serve", agents=["worker"], concurrency=9)
    assert [await program.offer() for _ in ids[1:]] == ids[1:]
    for task_id in ids[1:]:
        await program.call("finish", task_id=task_id, ok=True, result="x")
    for task_id in ids:
        await boss.expect("update", status="SUCCEEDED", task_id=task_id)


async def test_results_of_an_absent_submitter_are_delivered_when_it_is_back(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    program = await worker.program()
    await program.call("serve", agents=["worker"], concurrency=2)
    boss = await hub.program()
    early, late = await submit(boss, worker), await submit(boss, worker)
    await hub.close()
    await program.call("finish", task_id=early, ok=True, result="early")
    await worker.close()
    worker = await net.node("worker")
    program = await worker.program()
    await program.call("serve", agents=["worker"])
    assert await program.offer() == late
    await program.call("finish", task_id=late, ok=False, error="no", retryable=True)
    boss = await (await net.node("hub")).program()
    await boss.call("watch")
    push = await boss.expect("update", task_id=early, status="SUCCEEDED")
    assert push["results"] == "early"
    push = await boss.expect("update", task_id=late, status="FAILED")
    assert push["retryable"] is True


async def test_a_cancel_is_delivered_after_a_restart(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss = await hub.program()
    task_id = await submit(boss, worker)
    await worker.close()
    await boss.call("cancel", task_id=task_id)
    await hub.close()
    worker = await net.node("worker")
    await net.node("hub")
    program = await worker.program()
    await program.until(task_id, "received", "CANCELLED")


# Bounds and gates


async def test_a_submitter_with_too_many_open_tasks_has_to_wait(net: TaskWorld) -> None:
    bounds = Bounds(open_per_agent=2)
    hub = await net.node("hub", config=replace(OPEN, bounds=bounds))
    worker = await net.node("worker")
    boss, program = await hub.program(), await worker.program()
    ids = [await submit(boss, worker) for _ in range(2)]
    with pytest.raises(Unavailable, match="2 open tasks"):
        await submit(boss, worker)
    await program.call("serve", agents=["worker"])
    assert await program.offer() == ids[0]
    await program.call("finish", task_id=ids[0], ok=True, result="x")
    await boss.until(ids[0], "submitted", "SUCCEEDED")
    await submit(boss, worker)


@pytest.mark.parametrize("bounds", [Bounds(open_per_agent=1), Bounds(open_bytes=5)])
async def test_a_worker_with_too_many_open_tasks_says_so(
    net: TaskWorld, bounds: Bounds
) -> None:
    worker = await net.node("worker", config=replace(OPEN, bounds=bounds))
    boss = await (await net.node("hub")).program()
    await boss.call("watch")
    await submit(boss, worker, "12345")
    target = worker.agent.node_id
    refused = await boss.call("submit", target=target, task="6", task_id="a")
    assert (refused["accepted"], refused["status"]) == (False, 400)
    assert "open tasks" in refused["message"]
    assert await boss.status("a", "submitted") == ""
    await submit(boss, worker, "6", task_id="b", wait=False)
    push = await boss.expect("update", task_id="b", status="DECLINED")
    assert "open tasks" in push["justification"]


async def test_a_public_worker_takes_tasks_of_trusted_peers_only(
    net: TaskWorld,
) -> None:
    hub = await net.node("hub")
    worker = await net.node("worker", config=replace(OPEN, gate=GateMode.TRUSTED))
    boss = await hub.program()
    refused = await boss.call("submit", target="worker", task="x")
    assert refused["message"] == "Task rejected: submitter is not trusted"
    worker.agent.trust.trust(hub.agent.node_id, wall=0.0, mutual=True)
    await submit(boss, worker)


async def test_one_registry_answer_serves_many_submissions(net: TaskWorld) -> None:
    hub = await net.node("hub")
    worker = await net.node("worker", config=replace(OPEN, gate=GateMode.TRUSTED))
    boss = await hub.program()
    for agent, peer in ((hub.agent, worker.agent), (worker.agent, hub.agent)):
        await agent.registry(
            "report_trust", node_id=agent.node_id, peer_id=peer.node_id
        )
    for _ in range(3):
        await submit(boss, worker)


# Time limits


def pass_time(seconds: float, *nodes: Node) -> None:
    for node in nodes:
        node.wall.ahead += seconds


async def test_nobody_accepts_for_a_minute_and_both_sides_cancel(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    await boss.call("watch")
    task_id = await submit(boss, worker)
    pass_time(61.0, hub, worker)
    push = await boss.expect("update", status="CANCELLED")
    assert push["justification"] == "Task cancelled: no response within 1 minute"
    await hand.until(task_id, "received", "CANCELLED")
    with pytest.raises((InvalidArgument, NotFound)):
        await hand.call("accept", task_id=task_id)


async def test_a_task_at_the_head_for_an_hour_expires_and_the_next_has_its_own_hour(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    first, second = await submit(boss, worker), await submit(boss, worker)
    await hand.call("accept", task_id=first)
    await hand.call("accept", task_id=second)
    worker.wall.ahead += 3601.0
    await hand.until(first, "received", "EXPIRED")
    await boss.until(first, "submitted", "EXPIRED")
    assert await hand.status(second, "received") == "ACCEPTED"
    worker.wall.ahead += 3601.0
    await hand.until(second, "received", "EXPIRED")


async def test_the_time_of_executing_does_not_count_as_waiting(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"])
    task_id = await submit(boss, worker)
    assert await program.offer() == task_id
    await boss.until(task_id, "submitted", "EXECUTING")
    pass_time(7200.0, hub, worker)
    await program.close()
    await boss.until(task_id, "submitted", "ACCEPTED")
    await worker.close()
    wall = worker.wall
    program = await (await net.node("worker", wall=wall)).program()
    assert (await program.call("queue"))["count"] == 1
    await program.call("serve", agents=["worker"])
    assert await program.offer() == task_id
    await boss.until(task_id, "submitted", "EXECUTING")


async def test_results_count_after_the_submitter_has_given_up(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    await boss.call("watch")
    task_id = await submit(boss, worker)
    await hand.call("accept", task_id=task_id)
    await boss.until(task_id, "submitted", "ACCEPTED")
    hub.wall.ahead += 3601.0
    push = await boss.expect("update", status="EXPIRED")
    assert push["retryable"] is True
    await hand.call("send-results", task_id=task_id, results="late")
    push = await boss.expect("update", status="SUCCEEDED")
    assert push["results"] == "late"


async def test_what_cannot_be_delivered_in_time_expires(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    await worker.close()
    boss = await hub.program()
    await boss.call("watch")
    await submit(boss, worker, task_id="a", wait=False, deliver_within_s=100)
    hub.wall.ahead += 101.0
    push = await boss.expect("update", status="EXPIRED")
    assert "not delivered" in push["justification"]
    assert push["retryable"] is True


async def test_nothing_stays_open_for_ever(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"], concurrency=3)
    endless, untold = await submit(boss, worker), await submit(boss, worker)
    await boss.until(endless, "submitted", "EXECUTING")
    await program.offer()
    await program.offer()
    await hub.close()
    await program.call("finish", task_id=untold, ok=True, result="x")
    worker.wall.ahead += 8 * 86_400.0
    assert (await program.expect("cancel"))["task_id"] == endless
    await until(lambda: not list(worker.tasks.table), "the worker gives up")
    hub = await net.node("hub", wall=worker.wall)
    await until(lambda: not list(hub.tasks.table), "the submitter gives up")


async def test_tasks_of_an_agent_that_is_hosted_no_more_end_quietly(
    net: TaskWorld,
) -> None:
    host, hub = await net.node("one", "two"), await net.node("hub")
    boss = await hub.program()
    answer = await boss.call("submit", target="two", task="x")
    await host.close()
    host = await net.node("one", wall=host.wall)
    host.wall.ahead += 61.0
    [record] = host.tasks.table
    await until(lambda: record.status is Status.CANCELLED, "the limit of a minute")
    await boss.call("cancel", task_id=answer["task_id"])
