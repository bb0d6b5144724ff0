"""Port 1010, spoken by peers that break its rules."""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import ConnectionReset, PilotError
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.services.tasks import MAX_FRAME, SESSION_PORT
from tests.services.tasks.support import (
    LIMIT_S,
    Node,
    TaskWorld,
    frame,
    read_all,
    read_frame,
    submission,
    until,
)

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream

pytestmark = pytest.mark.timeout(60)


async def open_session(peer: Agent, node: Node) -> Stream:
    remote = SocketAddress(node.agent.address, SESSION_PORT)
    return await peer.dial(remote, timeout=LIMIT_S)


async def answer_of(stream: Stream) -> tuple[int, dict[str, Any]]:
    async with asyncio.timeout(LIMIT_S):
        return await read_frame(stream)


def accepted(task_id: str) -> bytes:
    return frame(1, {"task_id": task_id, "status": 200, "message": "taken"})


async def taken(peer: Agent, hub: Node, **params: Any) -> tuple[str, Stream]:
    """Have the hub submit a task to a peer made by hand; return id and session."""
    streams: asyncio.Queue[Stream] = asyncio.Queue()
    peer.listen(SESSION_PORT, streams.put_nowait)
    boss = await hub.program()
    await boss.call("submit", target=peer.node_id, task="x", wait=False, **params)
    async with asyncio.timeout(LIMIT_S):
        stream = await streams.get()
        frame_type, fields = await read_frame(stream)
    assert frame_type == 1
    await stream.write(accepted(fields["task_id"]))
    return fields["task_id"], stream


async def test_many_frames_share_a_session_and_all_are_answered(net: TaskWorld) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    async with await open_session(peer, worker) as stream:
        data = b"".join(
            submission(f"t{number}", peer, worker.agent, "x") for number in range(50)
        )
        for start in range(0, len(data), 999):
            await stream.write(data[start : start + 999])
        answers = [await answer_of(stream) for _ in range(50)]
        assert {fields["task_id"] for _, fields in answers} == {
            f"t{number}" for number in range(50)
        }
        assert {fields["status"] for _, fields in answers} == {200}
        await stream.write(frame(7, {"task_id": "ping"}))
        assert await answer_of(stream) == (5, {"task_id": "ping", "of": 7})


@pytest.mark.parametrize(
    "data",
    [
        frame(1, b"{"),
        frame(1, b'{"task_id":"../x","status":200}'),
        frame(2, b'{"task_id":"a"}'),
        frame(4, b'{"task_id":"../evil"}'),
        frame(8, b'{"task_id":"a"}'),
        struct.pack("!II", 4, MAX_FRAME + 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_nonsense_ends_its_session_alone(net: TaskWorld, data: bytes) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    bystander = await open_session(peer, worker)
    stream = await open_session(peer, worker)
    await stream.write(data)
    with suppress(ConnectionReset):
        assert await read_all(stream) == b""
    await bystander.write(submission("a", peer, worker.agent, "x"))
    assert (await answer_of(bystander))[1]["status"] == 200


HUGE = 10**400
ODD_NUMBERS = [HUGE, -HUGE, 1 << 63, -1]


@pytest.mark.parametrize("number", ODD_NUMBERS, ids=range(4))
async def test_a_task_with_odd_numbers_is_taken(net: TaskWorld, number: int) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    program = await worker.program()
    async with await open_session(peer, worker) as stream:
        fields = json.loads(submission("odd", peer, worker.agent, "x")[8:])
        odd = {"priority": number, "deadline_ms": number}
        await stream.write(frame(1, fields | odd))
        assert (await answer_of(stream))[1]["status"] == 200
    assert await program.status("odd", "received") == "NEW"


@pytest.mark.parametrize("number", ODD_NUMBERS, ids=range(4))
async def test_results_with_odd_numbers_count(net: TaskWorld, number: int) -> None:
    hub, peer = await net.node("hub"), await net.bare("peer")
    task_id, stream = await taken(peer, hub)
    names = "time_idle_ms time_staged_ms time_cpu_ms completed_unix reward"
    odd: dict[str, Any] = dict.fromkeys(names.split(), number)
    await stream.write(frame(5, {"task_id": task_id, "of": number}))
    await stream.write(frame(4, {"task_id": task_id, "receipt": "x", **odd}))
    assert await answer_of(stream) == (5, {"task_id": task_id})
    assert await (await hub.program()).status(task_id, "submitted") == "SUCCEEDED"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", "7"),
        ("deadline_ms", 1e9),
        ("completed_unix", None),
        ("reward", {"a": {}}),
        ("receipt", [1]),
    ],
)
async def test_a_field_of_another_type_loses_no_task(
    net: TaskWorld, field: str, value: object
) -> None:
    hub, peer = await net.node("hub"), await net.bare("peer")
    task_id, stream = await taken(peer, hub)
    kind = 1 if field in ("priority", "deadline_ms") else 4
    await stream.write(frame(kind, {"task_id": task_id, field: value}))
    with suppress(ConnectionReset):
        await read_all(stream)
    # The session is over, the task is not.
    again = await open_session(peer, hub)
    await again.write(frame(4, {"task_id": task_id, "result_text": "done"}))
    # The answer to the submission went down with the session, so it comes again.
    while (answer := await answer_of(again))[0] == 1:
        continue
    assert answer == (5, {"task_id": task_id})
    assert await (await hub.program()).status(task_id, "submitted") == "SUCCEEDED"


async def test_a_bad_task_id_does_not_end_a_session(net: TaskWorld) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    async with await open_session(peer, worker) as stream:
        await stream.write(submission("../evil", peer, worker.agent, "x"))
        assert (await answer_of(stream))[1]["status"] == 400
        await stream.write(submission("good", peer, worker.agent, "x"))
        assert (await answer_of(stream))[1]["status"] == 200


async def test_answers_that_nobody_waits_for_are_ignored(net: TaskWorld) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    async with await open_session(peer, worker) as stream:
        for fields in ({"task_id": "a"}, {"task_id": "a", "of": 99}):
            await stream.write(frame(5, fields))
        await stream.write(accepted("a"))
        await stream.write(frame(7, {"task_id": "ping"}))
        assert (await answer_of(stream))[0] == 5


async def test_only_the_worker_of_a_task_reports_about_it(net: TaskWorld) -> None:
    hub, peer = await net.node("hub"), await net.bare("peer")
    forger = await net.bare("forger")
    task_id, stream = await taken(peer, hub)
    boss = await hub.program()
    forged = {"task_id": task_id, "result_type": "text", "result_text": "forged"}
    async with await open_session(forger, hub) as theirs:
        for data in (
            frame(3, {"task_id": task_id, "status": "DECLINED"}),
            frame(4, forged),
            accepted(task_id),
            frame(6, {"task_id": task_id}),
        ):
            await theirs.write(data)
        answers = [(await answer_of(theirs))[1] for _ in range(3)]
    # Only what differs from 4 is written.
    assert [answer.get("of") for answer in answers] == [3, None, 6]
    assert await boss.status(task_id, "submitted") == "NEW"
    await stream.write(frame(4, forged | {"result_text": "true"}))
    assert await answer_of(stream) == (5, {"task_id": task_id})
    assert (await boss.call("result", task_id=task_id))["content"] == "true"


async def test_only_the_submitter_cancels(net: TaskWorld) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    forger = await net.bare("forger")
    async with (
        await open_session(peer, worker) as stream,
        await open_session(forger, worker) as theirs,
    ):
        await stream.write(submission("a", peer, worker.agent, "x"))
        await answer_of(stream)
        await theirs.write(frame(6, {"task_id": "a"}))
        await answer_of(theirs)
        hand = await worker.program()
        assert await hand.status("a", "received") == "NEW"
        await stream.write(frame(6, {"task_id": "a"}))
        assert await answer_of(stream) == (5, {"task_id": "a", "of": 6})
        assert await hand.status("a", "received") == "CANCELLED"


async def test_submission_and_cancel_may_come_together(net: TaskWorld) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    program = await worker.program()
    await program.call("serve", agents=["worker"])
    async with await open_session(peer, worker) as stream:
        cancel = frame(6, {"task_id": "a"})
        await stream.write(submission("a", peer, worker.agent, "x") + cancel)
        await answer_of(stream)
        await answer_of(stream)
        await stream.write(submission("b", peer, worker.agent, "x"))
        await answer_of(stream)
    assert await program.offer() == "b"
    assert await program.status("a", "received") == "CANCELLED"


async def test_what_was_not_acknowledged_is_sent_again(net: TaskWorld) -> None:
    hub, peer = await net.node("hub"), await net.bare("peer")
    streams: asyncio.Queue[Stream] = asyncio.Queue()
    peer.listen(SESSION_PORT, streams.put_nowait)
    boss = await hub.program()
    target = peer.node_id
    await boss.call("submit", target=target, task="x", task_id="a", wait=False)
    for _ in range(3):
        stream = await streams.get()
        assert (await answer_of(stream))[1]["task_id"] == "a"
        stream.abort()
    stream = await streams.get()
    await answer_of(stream)
    await stream.write(accepted("a"))
    # The worker went away: it is watched, but has nothing to be told again.
    await stream.close()
    stream = await streams.get()
    await boss.call("submit", target=target, task="x", task_id="b", wait=False)
    assert (await answer_of(stream))[1]["task_id"] == "b"


async def test_results_without_acknowledgement_are_sent_again(net: TaskWorld) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    streams: asyncio.Queue[Stream] = asyncio.Queue()
    peer.listen(SESSION_PORT, streams.put_nowait)
    program = await worker.program()
    await program.call("serve", agents=["worker"])
    stream = await open_session(peer, worker)
    await stream.write(submission("a", peer, worker.agent, "x"))
    await answer_of(stream)
    await program.offer()
    await program.call("finish", task_id="a", ok=False, error="e", retryable=True)
    while (answer := await answer_of(stream))[0] != 4:
        assert answer[0] == 3
    assert answer[1]["retryable"] is True
    stream.abort()
    stream = await streams.get()
    assert await answer_of(stream) == answer
    await stream.write(frame(5, {"task_id": "a", "of": 4}))
    await until(lambda: not list(worker.tasks.table), "the results are told")


async def test_a_task_that_was_cancelled_on_its_way_is_stopped_at_the_worker(
    net: TaskWorld,
) -> None:
    hub, peer = await net.node("hub"), await net.bare("peer")
    streams: asyncio.Queue[Stream] = asyncio.Queue()
    peer.listen(SESSION_PORT, streams.put_nowait)
    boss = await hub.program()
    await boss.call("submit", target=peer.node_id, task="x", task_id="a", wait=False)
    stream = await streams.get()
    await answer_of(stream)
    await boss.call("cancel", task_id="a")
    await stream.write(accepted("a"))
    assert await answer_of(stream) == (6, {"task_id": "a"})
    await stream.write(frame(5, {"task_id": "a", "of": 6}))
    assert await boss.status("a", "submitted") == "CANCELLED"


async def test_results_may_overtake_the_answer_to_the_submission(
    net: TaskWorld,
) -> None:
    hub, peer = await net.node("hub"), await net.bare("peer")
    streams: asyncio.Queue[Stream] = asyncio.Queue()
    peer.listen(SESSION_PORT, streams.put_nowait)
    boss = await hub.program()
    params = {"target": peer.node_id, "task": "x", "task_id": "a"}
    call = asyncio.ensure_future(boss.call("submit", **params))
    stream = await streams.get()
    await answer_of(stream)
    await stream.write(frame(4, {"task_id": "a", "result_type": "text"}))
    assert await answer_of(stream) == (5, {"task_id": "a"})
    assert (await call)["accepted"] is True
    assert await boss.status("a", "submitted") == "SUCCEEDED"


async def test_a_peer_that_reads_no_answers_is_cut_off(net: TaskWorld) -> None:
    worker, peer = await net.node("worker"), await net.bare("peer")
    stream = await open_session(peer, worker)
    flood = submission("?", peer, worker.agent, "") * 1_000
    with pytest.raises(ConnectionReset):  # noqa: PT012 - some write, not a certain one
        for _ in range(1_000):
            await stream.write(flood)


async def test_a_silent_worker_is_asked_whether_it_lives(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.link.PING_S", 0.05)
    hub, peer = await net.node("hub"), await net.bare("peer")
    task_id, stream = await taken(peer, hub)
    for _ in range(2):
        assert await answer_of(stream) == (7, {"task_id": "ping"})
        await stream.write(frame(5, {"task_id": "ping", "of": 7}))
    done = {"task_id": task_id, "result_type": "text"}
    await stream.write(frame(4, done))
    while (await answer_of(stream))[0] != 5:
        await stream.write(frame(5, {"task_id": "ping", "of": 7}))
    boss = await hub.program()
    assert await boss.status(task_id, "submitted") == "SUCCEEDED"


async def test_a_worker_that_answers_nothing_is_dialled_again_and_given_up(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.link.PING_S", 0.05)
    monkeypatch.setattr("pilotfleet.services.tasks.link.ANSWER_LIMIT_S", 0.1)
    hub, peer = await net.node("hub"), await net.bare("peer")
    streams: asyncio.Queue[Stream] = asyncio.Queue()
    peer.listen(SESSION_PORT, streams.put_nowait)
    boss = await hub.program()
    await boss.call("watch")
    params = {"target": peer.node_id, "task": "x", "deliver_within_s": 1000.0}
    await boss.call("submit", task_id="a", wait=False, **params)
    waiting = asyncio.ensure_future(boss.call("submit", task_id="b", **params))
    for _ in range(3):
        await answer_of(await streams.get())
    hub.wall.ahead += 1001.0
    push = await boss.expect("update", status="EXPIRED", task_id="a")
    assert "does not answer" in push["justification"]
    with pytest.raises(PilotError, match="does not answer"):
        await waiting
    assert list(hub.tasks.table) == []


async def test_an_idle_session_ends_cleanly(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.link.PING_S", 0.05)
    monkeypatch.setattr("pilotfleet.services.tasks.link.IDLE_S", 0.1)
    worker, peer = await net.node("worker"), await net.bare("peer")
    async with await open_session(peer, worker) as stream:
        await stream.write(frame(7, {"task_id": "ping"}))
        head = struct.pack("!II", 5, 24)
        data = await read_all(stream)
        assert data[:4] == head[:4]
        assert json.loads(data[8:]) == {"task_id": "ping", "of": 7}


async def test_a_link_with_nothing_to_do_is_forgotten(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.link.PING_S", 0.05)
    monkeypatch.setattr("pilotfleet.services.tasks.link.IDLE_S", 0.1)
    hub, worker = await net.node("hub"), await net.node("worker")
    boss, program = await hub.program(), await worker.program()
    await program.call("serve", agents=["worker"])
    answer = await boss.call("submit", target="worker", task="x")
    task_id = await program.offer()
    await program.call("finish", task_id=task_id, ok=True, result="x")
    await boss.until(answer["task_id"], "submitted", "SUCCEEDED")
    await until(lambda: not hub.tasks._links, "the hub has no link")
    await until(lambda: not worker.tasks._links, "the worker has no link")
