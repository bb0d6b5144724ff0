"""Tasks between two hosts: submit, serve, finish, watch, cancel."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import Any

import pytest

from pilotfleet.errors import (
    AlreadyExists,
    InvalidArgument,
    InvalidState,
    NotFound,
    NotSupported,
    Unavailable,
)
from pilotfleet.protocol.services.tasks import MAX_DESCRIPTION, MAX_SENT_FILE
from tests.services.tasks.support import Node, Program, TaskWorld, pair, submit

pytestmark = pytest.mark.timeout(60)


async def part(program: Program, task_id: str, data: bytes) -> None:
    for start in range(0, len(data), 400_000):
        piece = base64.b64encode(data[start : start + 400_000]).decode()
        await program.call("part", task_id=task_id, data=piece)


# By hand


async def test_a_task_is_accepted_executed_and_answered_by_hand(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    answer = await boss.call("submit", target="worker", task="do it")
    task_id = answer["task_id"]
    assert answer == {
        "task_id": task_id,
        "status": 200,
        "message": "Task received with status NEW",
        "accepted": True,
    }
    [row] = (await hand.call("list", type="received"))["tasks"]
    assert row["status_justification"] == "A new task was created"
    assert row["from"] == str(hub.agent.address)
    with pytest.raises(NotFound, match="no accepted tasks to execute"):
        await hand.call("execute")
    with pytest.raises(InvalidState, match="cannot receive results"):
        await hand.call("send-results", task_id=task_id, results="early")

    accepted = await hand.call("accept", task_id=task_id)
    assert accepted["status"] == "ACCEPTED"
    await boss.until(task_id, "submitted", "ACCEPTED")
    with pytest.raises(InvalidState, match=f"{task_id} is already ACCEPTED"):
        await hand.call("accept", task_id=task_id)
    queue = await hand.call("queue")
    assert queue["count"] == 1
    assert queue["queue"][0]["description"] == "do it"

    executed = await hand.call("execute")
    assert executed["task_description"] == "do it"
    await boss.until(task_id, "submitted", "EXECUTING")
    sent = await hand.call("send-results", task_id=task_id, results="done ok")
    assert sent["sent_to"] == str(hub.agent.address)
    await boss.until(task_id, "submitted", "SUCCEEDED")
    result = await boss.call("result", task_id=task_id)
    assert result["content"] == "done ok"
    assert await hand.status(task_id, "received") == "SUCCEEDED"
    with pytest.raises(InvalidState, match=f"{task_id} is already SUCCEEDED"):
        await hand.call("accept", task_id=task_id)
    with pytest.raises(InvalidState, match=f"{task_id} is already SUCCEEDED"):
        await hand.call("send-results", task_id=task_id, results="again")


async def test_a_declined_task_tells_why(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    await boss.call("watch")
    task_id = await submit(boss, worker)
    await hand.call("decline", task_id=task_id, justification="not today")
    push = await boss.expect("update", status="DECLINED")
    assert push["justification"] == "not today"
    with pytest.raises((InvalidArgument, NotFound)):
        await hand.call("accept", task_id=task_id)


async def test_a_peer_without_a_task_service_is_named_and_nothing_is_kept(
    net: TaskWorld,
) -> None:
    hub, bare = await net.node("hub"), await net.bare("bare")
    boss = await hub.program()
    with pytest.raises(NotSupported, match="no task service"):
        await boss.call("submit", target=bare.node_id, task="x", task_id="a")
    assert (await boss.call("list"))["tasks"] == []
    # Whoever listens there later is not given what its submitter was told is lost.
    arrived: list[object] = []
    bare.listen(1003, arrived.append)
    bare.listen(1010, arrived.append)
    for _ in range(5):
        with pytest.raises(Unavailable):
            await boss.call("submit", target="nobody", task="x")
    assert arrived == []


@pytest.mark.parametrize("target", ["nobody", 0, -1, 1 << 70, "9" * 30, "1:0002.0.0"])
async def test_a_target_that_is_nobody_is_refused(
    net: TaskWorld, target: str | int
) -> None:
    boss = await (await net.node("hub")).program()
    with pytest.raises((Unavailable, InvalidArgument)):
        await boss.call("submit", target=target, task="x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"task_id": "../../evil"},
        {"task_id": "a" * 65},
        {"task": "é" * (MAX_DESCRIPTION // 2) + "x"},
        {"task": 7},
        {"task": None},
    ],
)
async def test_a_submission_that_nobody_would_take_stays_here(
    net: TaskWorld, wrong: dict[str, Any]
) -> None:
    hub, worker = await pair(net)
    boss = await hub.program()
    params = {"target": worker.agent.node_id, "task": "x", **wrong}
    with pytest.raises(InvalidArgument):
        await boss.call("submit", **params)
    assert (await boss.call("list"))["tasks"] == []
    await submit(boss, worker, "é" * (MAX_DESCRIPTION // 2))


async def test_operations_refuse_parameters_of_the_wrong_kind(net: TaskWorld) -> None:
    hub = await net.node("hub")
    boss = await hub.program()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("list", {"type": "other"}),
        ("serve", {"agents": ["hub"], "concurrency": 0}),
        ("serve", {"agents": "hub"}),
        ("part", {"task_id": "a", "data": "not base64!"}),
        ("collect", {"task_ids": "a"}),
    ]
    for op, params in wrong:
        with pytest.raises(InvalidArgument):
            await boss.call(op, **params)
    unknown: list[tuple[str, dict[str, Any]]] = [
        ("serve", {"agents": ["nobody"]}),
        ("cancel", {"task_id": "a"}),
        ("release", {"task_id": "a"}),
        ("result", {"task_id": "a"}),
    ]
    for op, params in unknown:
        with pytest.raises(NotFound):
            await boss.call(op, **params)


# Served


async def test_offers_stop_at_the_credit_and_go_on_with_each_outcome(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"], concurrency=2)
    ids = [await submit(boss, worker, f"task {n}") for n in range(5)]
    assert [await program.offer(), await program.offer()] == ids[:2]
    assert await program.all_pushes() == []
    assert (await program.call("queue"))["count"] == 3
    for number, task_id in enumerate(ids):
        await program.call("finish", task_id=task_id, ok=True, result=f"r{number}")
        await boss.until(task_id, "submitted", "SUCCEEDED")
        result = await boss.call("result", task_id=task_id)
        assert result["content"] == f"r{number}"
        if number + 2 < len(ids):
            assert await program.offer() == ids[number + 2]
    assert await program.all_pushes() == []


async def test_tasks_that_wait_when_a_program_comes_are_its_own(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    ids = [await submit(boss, worker) for _ in range(3)]
    await program.call("serve", agents=["worker"], concurrency=5)
    assert [await program.offer() for _ in ids] == ids
    await boss.until(ids[0], "submitted", "EXECUTING")


async def test_a_task_that_waits_behind_others_is_not_taken_for_lost(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"])
    first, second = await submit(boss, worker), await submit(boss, worker)
    await boss.until(first, "submitted", "EXECUTING")
    await boss.until(second, "submitted", "ACCEPTED")
    hub.wall.ahead = worker.wall.ahead = 300.0
    for task_id in (first, second):
        assert await program.offer() == task_id
        await program.call("finish", task_id=task_id, ok=True, result="x")
        await boss.until(task_id, "submitted", "SUCCEEDED")


async def test_a_lost_program_s_tasks_go_to_the_next_one_in_their_order(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, lost = await hub.program(), await worker.program()
    await lost.call("serve", agents=["worker"], concurrency=2)
    ids = [await submit(boss, worker) for _ in range(3)]
    assert [await lost.offer(), await lost.offer()] == ids[:2]
    await lost.close()
    other = await worker.program()
    await other.call("serve", agents=["worker"], concurrency=3)
    assert [await other.offer() for _ in ids] == ids


async def test_a_task_that_is_given_back_is_offered_to_another_program(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, first = await hub.program(), await worker.program()
    await first.call("serve", agents=["worker"])
    task_id = await submit(boss, worker)
    assert await first.offer() == task_id
    second = await worker.program()
    await second.call("serve", agents=["worker"])
    await first.call("drain")
    released = await first.call("release", task_id=task_id)
    assert released["task_id"] == task_id
    assert await second.offer() == task_id
    assert await first.all_pushes() == []
    await second.call("finish", task_id=task_id, ok=True, result="x")
    await boss.until(task_id, "submitted", "SUCCEEDED")


async def test_a_draining_program_may_finish_what_it_has(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"])
    ids = [await submit(boss, worker) for _ in range(2)]
    assert await program.offer() == ids[0]
    await program.call("drain")
    await program.call("finish", task_id=ids[0], ok=True, result="x")
    await boss.until(ids[0], "submitted", "SUCCEEDED")
    assert await program.all_pushes() == []
    await program.call("serve", agents=["worker"])
    assert await program.offer() == ids[1]


async def test_failure_and_whose_fault_it_is_reach_the_submitter(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await boss.call("watch")
    await program.call("serve", agents=["worker"], concurrency=2)
    killed, wrong = await submit(boss, worker), await submit(boss, worker)
    await program.call(
        "finish", task_id=killed, ok=False, error="killed", retryable=True, cpu_ms=7
    )
    await program.call("finish", task_id=wrong, ok=False, error="exit 3", result="log")
    push = await boss.expect("update", status="FAILED", task_id=killed)
    assert (push["error"], push["retryable"], push["cpu_ms"]) == ("killed", True, 7)
    push = await boss.expect("update", status="FAILED", task_id=wrong)
    assert (push["error"], push["results"]) == ("exit 3", "log")
    assert "retryable" not in push


async def test_an_outcome_is_taken_once(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"])
    task_id = await submit(boss, worker)
    await program.offer()
    await program.call("finish", task_id=task_id, ok=True, result="first")
    with pytest.raises((NotFound, InvalidArgument)):
        await program.call("finish", task_id=task_id, ok=True, result="second")
    await boss.until(task_id, "submitted", "SUCCEEDED")
    assert (await boss.call("result", task_id=task_id))["content"] == "first"


async def test_agents_of_one_host_work_for_each_other(net: TaskWorld) -> None:
    host = await net.node("one", "two")
    boss, program = await host.program("one"), await host.program("two")
    await program.call("serve", agents=["two"])
    answer = await boss.call("submit", target="two", task="x")
    assert await program.offer() == answer["task_id"]
    await program.call("finish", task_id=answer["task_id"], ok=True, result="y")
    await boss.until(answer["task_id"], "submitted", "SUCCEEDED")


async def test_nodes_that_give_each_other_tasks_at_once_do_them_all(
    net: TaskWorld,
) -> None:
    nodes = await net.node("one"), await net.node("two")
    callers = [await node.program() for node in nodes]
    for node, program in zip(nodes, callers, strict=True):
        await program.call("serve", agents=[node.agent.name], concurrency=3)

    async def work(program: Program, count: int) -> None:
        for _ in range(count):
            task_id = await program.offer()
            await program.call("finish", task_id=task_id, ok=True, result=task_id)

    async def give(program: Program, peer: Node, count: int) -> None:
        calls = (submit(program, peer) for _ in range(count))
        for task_id in await asyncio.gather(*calls):
            await program.until(task_id, "submitted", "SUCCEEDED")

    async with asyncio.TaskGroup() as group:
        for caller, peer in zip(callers, reversed(nodes), strict=True):
            group.create_task(work(caller, 20))
            group.create_task(give(caller, peer, 20))


# Results


async def test_a_long_file_arrives_whole_under_its_base_name(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    task_id = await submit(boss, worker)
    await hand.call("accept", task_id=task_id)
    data = os.urandom(1_500_000)
    await part(hand, task_id, data)
    sent = await hand.call(
        "send-results", task_id=task_id, filename="../a/out.csv", uploaded=True
    )
    assert (sent["filename"], sent["file_size"]) == ("out.csv", len(data))
    await boss.until(task_id, "submitted", "SUCCEEDED")
    received = b""
    answer: dict[str, Any] = {"next_offset": 0}
    while "next_offset" in answer:
        offset = answer["next_offset"]
        answer = await boss.call("result", task_id=task_id, offset=offset)
        received += base64.b64decode(answer["file_data"])
    assert received == data
    with pytest.raises(InvalidArgument):
        await boss.call("result", task_id=task_id, offset=len(data) + 1)


async def test_a_long_text_is_fetched_in_pieces_that_cut_no_character(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await boss.call("watch")
    await program.call("serve", agents=["worker"])
    task_id = await submit(boss, worker)
    text = "x" + "€" * 100_000
    await part(program, task_id, text.encode())
    await program.call("finish", task_id=task_id, ok=True, uploaded=True)
    push = await boss.expect("update", status="SUCCEEDED")
    assert push["result_size"] == len(text.encode())
    assert "results" not in push
    received = ""
    answer: dict[str, Any] = {"next_offset": 0}
    while "next_offset" in answer:
        offset = answer["next_offset"]
        answer = await boss.call("result", task_id=task_id, offset=offset)
        received += answer["content"]
    assert received == text


async def test_a_text_that_is_no_utf8_arrives_with_replacements(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"])
    task_id = await submit(boss, worker)
    await part(program, task_id, b"\xff" * 400_000)
    with pytest.raises(InvalidArgument, match="1200000"):
        await program.call("finish", task_id=task_id, ok=True, uploaded=True)
    await part(program, task_id, b"\xff!")
    await program.call("finish", task_id=task_id, ok=True, uploaded=True)
    await boss.until(task_id, "submitted", "SUCCEEDED")
    assert (await boss.call("result", task_id=task_id))["content"] == "�!"


async def test_what_no_frame_can_carry_is_refused_and_blocks_nothing(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    task_id = await submit(boss, worker)
    await hand.call("accept", task_id=task_id)
    await part(hand, task_id, bytes(MAX_SENT_FILE))
    with pytest.raises(InvalidArgument, match="results over"):
        await part(hand, task_id, b"x")
    with pytest.raises(InvalidArgument, match="> 1048576"):
        await hand.call("send-results", task_id=task_id, uploaded=True)
    with pytest.raises(NotFound, match="nothing was uploaded"):
        await hand.call("send-results", task_id=task_id, uploaded=True)
    await hand.call("send-results", task_id=task_id, results="short")
    await boss.until(task_id, "submitted", "SUCCEEDED")


async def test_uploads_are_bounded_and_go_with_their_connection(net: TaskWorld) -> None:
    worker = await net.node("worker")
    program = await worker.program()
    for number in range(5):
        await part(program, f"t{number}", bytes(MAX_SENT_FILE))
    with pytest.raises(Unavailable, match="too many"):
        await part(program, "one-more", bytes(MAX_SENT_FILE))
    await program.close()
    await part(await worker.program(), "one-more", bytes(MAX_SENT_FILE))


async def test_results_are_a_text_or_a_file(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    task_id = await submit(boss, worker)
    await hand.call("accept", task_id=task_id)
    with pytest.raises(InvalidArgument, match="either results or a file"):
        await hand.call("send-results", task_id=task_id)
    await part(hand, task_id, b"x" * 1_048_577)
    with pytest.raises(InvalidArgument, match="> 1048576"):
        await hand.call("send-results", task_id=task_id, uploaded=True)
    file = {"filename": "a.txt", "file_data": base64.b64encode(b"content").decode()}
    await hand.call("send-results", task_id=task_id, **file)
    await boss.until(task_id, "submitted", "SUCCEEDED")
    result = await boss.call("result", task_id=task_id)
    assert base64.b64decode(result["file_data"]) == b"content"


async def test_a_long_list_ends_with_the_newest_task(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    ids = [await submit(boss, worker, "x" * MAX_DESCRIPTION) for _ in range(60)]
    for program in (boss, hand):
        rows = (await program.call("list"))["tasks"]
        listed = [row["task_id"] for row in rows]
        assert len(listed) > 30
        assert listed == ids[-len(listed) :]


# Watching and collecting


async def test_results_wait_for_a_watcher_until_they_are_collected(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"], concurrency=2)
    ids = [await submit(boss, worker) for _ in range(2)]
    for task_id in ids:
        await program.call("finish", task_id=task_id, ok=True, result=task_id)
        await boss.until(task_id, "submitted", "SUCCEEDED")
    await boss.call("watch")
    for task_id in ids:
        push = await boss.expect("update", status="SUCCEEDED", task_id=task_id)
        assert push["results"] == task_id
    await boss.call("watch")
    assert await boss.all_pushes() == []
    await boss.call("collect", task_ids=ids[:1])

    await hub.close()
    boss = await (await net.node("hub")).program()
    await boss.call("watch")
    await boss.expect("update", status="SUCCEEDED", task_id=ids[1])
    assert await boss.all_pushes() == []
    assert (await boss.call("result", task_id=ids[0]))["content"] == ids[0]


# The same task twice


async def test_the_same_submission_again_is_no_second_task(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"], concurrency=9)
    for wait in (True, False, True):
        await submit(boss, worker, "text", task_id="same", wait=wait)
    with pytest.raises(AlreadyExists):
        await submit(boss, worker, "another text", task_id="same")
    assert await program.offer() == "same"
    await program.call("finish", task_id="same", ok=True, result="x")
    await boss.until("same", "submitted", "SUCCEEDED")
    await submit(boss, worker, "text", task_id="same")
    assert await program.all_pushes() == []


async def test_who_submits_an_ended_task_again_is_told_its_end_again(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"])
    await submit(boss, worker, "text", task_id="same")
    assert await program.offer() == "same"
    await program.call("finish", task_id="same", ok=True, result="x")
    await boss.until("same", "submitted", "SUCCEEDED")
    await boss.call("collect", task_ids=["same"])
    later = await hub.program()
    await later.call("watch")
    await submit(later, worker, "text", task_id="same", wait=False)
    push = await later.expect("update")
    assert (push["status"], push["results"]) == ("SUCCEEDED", "x")


async def test_two_callers_may_wait_for_one_submission(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, other = await hub.program(), await hub.program()
    both = [submit(caller, worker, "text", task_id="same") for caller in (boss, other)]
    assert set(await asyncio.gather(*both)) == {"same"}
    assert len((await boss.call("list"))["tasks"]) == 1


# Cancelling


async def test_a_cancelled_task_is_stopped_wherever_it_is(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"])
    running, waiting = await submit(boss, worker), await submit(boss, worker)
    assert await program.offer() == running
    await boss.call("cancel", task_id=waiting)
    await boss.call("cancel", task_id=running)
    push = await program.expect("cancel")
    assert push == {"push": "task.cancel", "agent": "worker", "task_id": running}
    for task_id in (running, waiting):
        await program.until(task_id, "received", "CANCELLED")
        with pytest.raises(NotFound):
            await program.call("finish", task_id=task_id, ok=True, result="late")
    third = await submit(boss, worker)
    assert await program.offer() == third
    assert await boss.status(running, "submitted") == "CANCELLED"


async def test_a_cancelled_submission_answers_whoever_waits_for_it(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    await submit(await hub.program(), worker)
    await worker.close()
    boss, other = await hub.program(), await hub.program()
    target = worker.agent.node_id
    call = asyncio.ensure_future(
        boss.call("submit", target=target, task="x", task_id="a")
    )
    while not await other.status("a", "submitted"):
        assert not call.done()
    await other.call("cancel", task_id="a")
    answer = await call
    assert (answer["accepted"], answer["status"]) == (False, 400)
    assert answer["message"] == "Task cancelled by submitter"


async def test_a_caller_who_leaves_takes_the_submission_along(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    await submit(await hub.program(), worker)
    await worker.close()
    boss, impatient = await hub.program(), await hub.program()
    await boss.call("watch")
    call = asyncio.ensure_future(
        impatient.call("submit", target=worker.agent.node_id, task="x", task_id="gone")
    )
    while not await boss.status("gone", "submitted"):
        assert not call.done()
    await impatient.close()
    await asyncio.gather(call, return_exceptions=True)
    while await boss.status("gone", "submitted"):
        pass
    worker = await net.node("worker")
    program = await worker.program()
    await program.call("serve", agents=["worker"], concurrency=9)
    await submit(boss, worker, task_id="kept")
    assert await program.status("gone", "received") == ""
