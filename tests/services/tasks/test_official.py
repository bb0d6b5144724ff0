"""Port 1003, spoken by peers that know nothing of task sessions.

The peers here write and read the frames of tasks-and-polo.md themselves, one on each
connection, as the 1.9 programs do.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import struct
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import NotFound, PilotError, Unavailable
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.services.tasks import MAX_DESCRIPTION, MAX_FRAME, TASK_PORT
from tests.services.tasks.support import (
    LIMIT_S,
    Node,
    TaskWorld,
    frame,
    read_all,
    read_frame,
    say,
    submission,
    until,
)

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream

pytestmark = pytest.mark.timeout(60)

TASK_ID = "3db489f6-ce3b-ac52-69fa-d744c86a2072"


class OfficialNode:
    """A node with port 1003 only: takes one frame from each connection."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()
        agent.listen(TASK_PORT, self._streams.put_nowait)

    async def take(self) -> bytes:
        """Return the frame of the next connection and close it."""
        data, stream = await self.take_open()
        await stream.close()
        return data

    async def take_open(self) -> tuple[bytes, Stream]:
        """Return the frame of the next connection, which stays open."""
        async with asyncio.timeout(LIMIT_S):
            stream = await self._streams.get()
            head = await stream.read_exactly(8)
            body = await stream.read_exactly(struct.unpack("!II", head)[1])
        return head + body, stream

    @property
    def has_more(self) -> bool:
        """True when another connection waits."""
        return not self._streams.empty()


async def status(
    peer: Agent, node: Node, task_id: str, status: str, why: str = "why"
) -> bytes:
    fields = {"task_id": task_id, "status": status, "justification": why}
    return await say(peer, node.agent, frame(3, fields))


async def results(peer: Agent, node: Node, task_id: str, **fields: Any) -> bytes:
    fields = {"result_type": "text", "result_text": "done ok"} | fields
    return await say(peer, node.agent, frame(4, {"task_id": task_id} | fields))


def response(task_id: str, status: int, message: str) -> bytes:
    fields = {"task_id": task_id, "status": status, "message": message}
    return frame(1, fields)


# An official worker


async def delegate(net: TaskWorld) -> tuple[Node, OfficialNode]:
    hub = await net.node("hub")
    return hub, OfficialNode(await net.bare("old"))


async def test_an_official_worker_sees_official_frames_only(net: TaskWorld) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    await boss.call("watch")
    params = {"target": old.agent.node_id, "task": 'a<b>&c "q" é', "task_id": TASK_ID}
    call = asyncio.ensure_future(boss.call("submit", **params))
    sent, stream = await old.take_open()
    body = (
        f'{{"task_id":"{TASK_ID}",'
        '"task_description":"a\\u003cb\\u003e\\u0026c \\"q\\" é",'
        f'"from_addr":"{hub.agent.address}","to_addr":"{old.agent.address}"}}'
    ).encode()
    assert sent == struct.pack("!II", 1, len(body)) + body
    await stream.write(response(TASK_ID, 200, "Task received with status NEW"))
    await stream.close()
    assert (await call)["accepted"] is True

    for name in ("ACCEPTED", "EXECUTING"):
        assert await status(old.agent, hub, TASK_ID, name) == b""
        push = await boss.expect("update", status=name)
        assert push["justification"] == "why"
    # The reference sends both, in either order.
    assert await status(old.agent, hub, TASK_ID, "SUCCEEDED") == b""
    assert await results(old.agent, hub, TASK_ID, time_cpu_ms=60_000) == b""
    push = await boss.expect("update", status="SUCCEEDED")
    assert (push["results"], push["cpu_ms"]) == ("done ok", 60_000)
    assert not old.has_more


async def test_results_of_an_official_worker_may_be_a_file(net: TaskWorld) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    await given(boss_call=boss.call, old=old, task_id="a")
    await results(
        old.agent,
        hub,
        "a",
        result_type="file",
        filename="../../out.csv",
        file_data="aGVsbG8sY3N2CjEsMgo=",
    )
    await boss.until("a", "submitted", "SUCCEEDED")
    result = await boss.call("result", task_id="a")
    assert result["filename"] == "out.csv"
    assert result["file_data"] == "aGVsbG8sY3N2CjEsMgo="


async def given(*, boss_call: Any, old: OfficialNode, task_id: str) -> None:
    """Submit a task that the official worker takes."""
    params = {"target": old.agent.node_id, "task": "x", "task_id": task_id}
    call = asyncio.ensure_future(boss_call("submit", **params))
    _, stream = await old.take_open()
    await stream.write(response(task_id, 200, "Task received with status NEW"))
    await stream.close()
    assert (await call)["accepted"] is True


async def test_refusal_of_an_official_worker_is_handed_on(net: TaskWorld) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    call = asyncio.ensure_future(
        boss.call("submit", target=old.agent.node_id, task="x", task_id="a")
    )
    _, stream = await old.take_open()
    await stream.write(response("a", 400, "Failed to authorize task"))
    await stream.close()
    answer = await call
    assert (answer["status"], answer["accepted"]) == (400, False)
    assert answer["message"] == "Failed to authorize task"
    assert (await boss.call("list"))["tasks"] == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\0\0\1\0\0\0\2{}",
        b"\0\0\0\1\xff\xff\xff\xff",
        frame(3, {"task_id": "a", "status": "ACCEPTED"}),
        frame(1, {"task_id": "a"}),
    ],
)
async def test_an_answer_that_is_none_fails_the_submission(
    net: TaskWorld, answer: bytes
) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    call = asyncio.ensure_future(
        boss.call("submit", target=old.agent.node_id, task="x", task_id="a")
    )
    _, stream = await old.take_open()
    await stream.write(answer)
    await stream.close()
    with pytest.raises(PilotError):
        await call
    assert (await boss.call("list"))["tasks"] == []


async def test_a_worker_that_does_not_answer_is_named(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.tasks.link.ANSWER_LIMIT_S", 0.1)
    hub, old = await delegate(net)
    boss = await hub.program()
    with pytest.raises(Unavailable, match="does not answer on port 1003"):
        await boss.call("submit", target=old.agent.node_id, task="x")
    assert (await boss.call("list"))["tasks"] == []


async def test_the_answer_to_another_submission_changes_nothing(net: TaskWorld) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    target = old.agent.node_id
    await boss.call("submit", target=target, task="x", task_id="a", wait=False)
    _, stream = await old.take_open()
    await stream.write(response("b", 400, "no"))
    await stream.close()
    # It goes on trying.
    _, stream = await old.take_open()
    await stream.write(response("a", 200, "yes"))
    await stream.close()
    await status(old.agent, hub, "a", "ACCEPTED")
    await boss.until("a", "submitted", "ACCEPTED")


async def test_an_official_peer_is_not_asked_for_sessions_each_time(
    net: TaskWorld,
) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    await given(boss_call=boss.call, old=old, task_id="a")
    sessions: list[Stream] = []
    old.agent.listen(1010, sessions.append)
    await given(boss_call=boss.call, old=old, task_id="b")
    assert sessions == []


async def test_an_official_worker_hears_of_no_cancel(net: TaskWorld) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    await given(boss_call=boss.call, old=old, task_id="a")
    await boss.call("cancel", task_id="a")
    await until(lambda: not list(hub.tasks.table), "the cancelled task is closed")
    assert not old.has_more
    await results(old.agent, hub, "a")
    assert await boss.status("a", "submitted") == "CANCELLED"
    with pytest.raises(NotFound):
        await boss.call("result", task_id="a")


async def test_results_are_taken_once_and_from_the_worker_only(net: TaskWorld) -> None:
    hub, old = await delegate(net)
    forger = await net.bare("forger")
    boss = await hub.program()
    await boss.call("watch")
    await given(boss_call=boss.call, old=old, task_id="a")
    await status(forger, hub, "a", "DECLINED")
    await results(forger, hub, "a", result_text="forged")
    await results(old.agent, hub, "unknown")
    assert await boss.status("a", "submitted") == "NEW"
    await results(old.agent, hub, "a", result_text="first")
    await results(old.agent, hub, "a", result_text="second")
    await results(forger, hub, "a", result_text="forged")
    await status(old.agent, hub, "a", "DECLINED")
    pushes = [push for push in await boss.all_pushes() if push["status"] != "NEW"]
    assert [push["results"] for push in pushes] == ["first"]
    assert (await boss.call("result", task_id="a"))["content"] == "first"
    assert await boss.status("a", "submitted") == "SUCCEEDED"


@pytest.mark.parametrize(
    "fields",
    [
        {"result_text": "x" * 1_048_577},
        {"result_type": "file", "file_data": "no base64!", "filename": "a"},
        {"result_type": "file", "file_data": "AAAA", "filename": "a" * 257},
    ],
)
async def test_results_over_a_limit_fail_the_task(
    net: TaskWorld, fields: dict[str, Any]
) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    await boss.call("watch")
    await given(boss_call=boss.call, old=old, task_id="a")
    await results(old.agent, hub, "a", **fields)
    push = await boss.expect("update", status="FAILED")
    assert push["error"].startswith("results: ")


async def test_claims_of_any_size_are_stored(net: TaskWorld) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    await boss.call("watch")
    await given(boss_call=boss.call, old=old, task_id="a")
    times = {"time_cpu_ms": 10**300, "time_idle_ms": -(10**300), "time_staged_ms": 1}
    await results(old.agent, hub, "a", **times)
    push = await boss.expect("update", status="SUCCEEDED")
    assert push["cpu_ms"] == 10**12


async def test_results_that_could_not_be_stored_are_not_acknowledged(
    net: TaskWorld,
) -> None:
    hub, old = await delegate(net)
    boss = await hub.program()
    await given(boss_call=boss.call, old=old, task_id="a")
    path = hub.host.config.home / "tasks.db"
    with closing(sqlite3.connect(path)) as disk, disk:
        disk.execute(
            "CREATE TRIGGER full BEFORE INSERT ON results"
            " BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    # A clean end would be the acknowledgement.
    with pytest.raises(Unavailable):
        await results(old.agent, hub, "a")
    assert await boss.status("a", "submitted") == "NEW"
    with closing(sqlite3.connect(path)) as disk, disk:
        disk.execute("DROP TRIGGER full")
    await results(old.agent, hub, "a")
    assert await boss.status("a", "submitted") == "SUCCEEDED"


async def test_a_submission_that_cannot_be_stored_is_refused(net: TaskWorld) -> None:
    worker, old = await work(net)
    with closing(sqlite3.connect(worker.host.config.home / "tasks.db")) as disk, disk:
        disk.execute(
            "CREATE TRIGGER full BEFORE INSERT ON tasks"
            " BEGIN SELECT RAISE(ABORT, 'disk full'); END"
        )
    answer = await give(old, worker, "a")
    assert answer == {
        "task_id": "a",
        "status": 400,
        "message": "Task could not be stored",
    }


# An official submitter


async def work(net: TaskWorld) -> tuple[Node, OfficialNode]:
    worker = await net.node("worker")
    return worker, OfficialNode(await net.bare("old"))


async def give(
    old: OfficialNode, worker: Node, task_id: str, text: str = "do it"
) -> dict[str, Any]:
    """Submit as the official program does; return the response."""
    data = submission(task_id, old.agent, worker.agent, text)
    remote = SocketAddress(worker.agent.address, TASK_PORT)
    async with await old.agent.dial(remote, timeout=LIMIT_S) as stream:
        await stream.write(data)
        frame_type, answer = await read_frame(stream)
        assert frame_type == 1
        assert await read_all(stream) == b""
    return answer


async def test_an_official_submitter_sees_official_frames_only(net: TaskWorld) -> None:
    worker, old = await work(net)
    hand = await worker.program()
    answer = await give(old, worker, TASK_ID)
    assert answer == {
        "task_id": TASK_ID,
        "status": 200,
        "message": "Task received with status NEW",
    }
    await hand.call("accept", task_id=TASK_ID)
    assert await old.take() == frame(
        3,
        {
            "task_id": TASK_ID,
            "status": "ACCEPTED",
            "justification": "Task accepted",
        },
    )
    await hand.call("execute")
    assert await old.take() == frame(
        3,
        {
            "task_id": TASK_ID,
            "status": "EXECUTING",
            "justification": "Task execution started",
        },
    )
    await hand.call("send-results", task_id=TASK_ID, results="done ok")
    sent = await old.take()
    fields = json.loads(sent[8:])
    optional = {"time_idle_ms", "time_staged_ms", "time_cpu_ms"}
    names = ["task_id", "result_type", "result_text", "completed_at"]
    assert [name for name in fields if name not in optional] == names
    assert fields["result_text"] == "done ok"
    assert sent[:4] == b"\0\0\0\4"
    assert await old.take() == frame(
        3,
        {
            "task_id": TASK_ID,
            "status": "SUCCEEDED",
            "justification": "Task completed successfully",
        },
    )
    await until(lambda: not list(worker.tasks.table), "the results are delivered")
    assert not old.has_more


async def test_an_official_submitter_hears_of_a_failure_as_a_status(
    net: TaskWorld,
) -> None:
    worker, old = await work(net)
    program = await worker.program()
    await program.call("serve", agents=["worker"])
    await give(old, worker, "a")
    await program.offer()
    await program.call("finish", task_id="a", ok=False, error="exit 3")
    fields = json.loads((await old.take())[8:])
    while fields["status"] != "FAILED":
        fields = json.loads((await old.take())[8:])
    assert fields == {"task_id": "a", "status": "FAILED", "justification": "exit 3"}


async def test_an_absent_official_submitter_gets_its_results_later(
    net: TaskWorld,
) -> None:
    worker, old = await work(net)
    program = await worker.program()
    await give(old, worker, "a")
    old.agent.unlisten(TASK_PORT)
    await program.call("serve", agents=["worker"])
    await program.call("finish", task_id=await program.offer(), ok=True, result="x")
    await worker.close()
    back = OfficialNode(old.agent)
    await net.node("worker")
    assert json.loads((await back.take())[8:])["result_text"] == "x"
    assert json.loads((await back.take())[8:])["status"] == "SUCCEEDED"


async def test_a_repeated_submission_is_executed_once(net: TaskWorld) -> None:
    worker, old = await work(net)
    other = OfficialNode(await net.bare("other"))
    program = await worker.program()
    await program.call("serve", agents=["worker"], concurrency=9)
    for _ in range(3):
        assert (await give(old, worker, "a"))["status"] == 200
    assert (await give(old, worker, "a", "another text"))["status"] == 400
    assert (await give(other, worker, "a"))["status"] == 400
    assert await program.offer() == "a"
    await program.call("finish", task_id="a", ok=True, result="x")
    while b"SUCCEEDED" not in await old.take():
        continue
    assert (await give(old, worker, "a"))["status"] == 200
    assert (await give(old, worker, "a", "another text"))["status"] == 400
    assert await program.all_pushes() == []


async def test_submissions_at_the_same_moment_are_one_task(net: TaskWorld) -> None:
    worker, old = await work(net)
    program = await worker.program()
    await program.call("serve", agents=["worker"], concurrency=9)
    answers = await asyncio.gather(*(give(old, worker, "a") for _ in range(5)))
    assert [answer["status"] for answer in answers] == [200] * 5
    assert await program.offer() == "a"
    assert await program.all_pushes() == []


@pytest.mark.parametrize("task_id", ["../../evil", "", "a" * 65, "a b", "é"])
async def test_a_bad_task_id_is_answered_and_not_stored(
    net: TaskWorld, task_id: str
) -> None:
    worker, old = await work(net)
    answer = await give(old, worker, task_id)
    assert answer["status"] == 400
    assert "not allowed" in answer["message"]
    assert (await (await worker.program()).call("list"))["tasks"] == []


async def test_a_description_has_a_limit_in_bytes(net: TaskWorld) -> None:
    worker, old = await work(net)
    long = "é" * (MAX_DESCRIPTION // 2)
    assert (await give(old, worker, "fits", long))["status"] == 200
    answer = await give(old, worker, "long", long + "x")
    assert answer == {
        "task_id": "long",
        "status": 400,
        "message": "submit: task_description 16385 > 16384 bytes",
    }


@pytest.mark.parametrize("claimed", ["0:0000.0000.FFFF", "nobody", ""])
async def test_a_submission_in_another_s_name_is_refused(
    net: TaskWorld, claimed: str
) -> None:
    worker, old = await work(net)
    fields = {
        "task_id": "a",
        "task_description": "x",
        "from_addr": claimed,
        "to_addr": str(worker.agent.address),
    }
    answer = await say(old.agent, worker.agent, frame(1, fields))
    assert b'"status":400' in answer
    assert b"from_addr" in answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0\1",
        frame(1, b""),
        frame(1, b"{"),
        frame(1, b"[]"),
        frame(1, b'{"task_id":"a","status":200}'),
        frame(2, b'{"task_id":"a"}'),
        frame(3, b'{"task_id":"../a","status":"ACCEPTED"}'),
        frame(4, b'{"task_id":7}'),
        frame(5, b'{"task_id":"a"}'),
        frame(6, b'{"task_id":"a"}'),
        frame(9, b"{}"),
        struct.pack("!II", 1, MAX_FRAME + 1),
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
async def test_nonsense_ends_its_connection_without_an_answer(
    net: TaskWorld, data: bytes
) -> None:
    worker, old = await work(net)
    remote = SocketAddress(worker.agent.address, TASK_PORT)
    async with await old.agent.dial(remote, timeout=LIMIT_S) as bystander:
        async with await old.agent.dial(remote, timeout=LIMIT_S) as stream:
            if len(data) >= 8:
                await stream.write(data)
                assert await read_all(stream) == b""
            elif data:
                await stream.write(data)
        # Another connection of the same peer goes on.
        await bystander.write(submission("a", old.agent, worker.agent, "x"))
        _, answer = await read_frame(bystander)
    assert answer["status"] == 200


async def test_two_nodes_without_sessions_work_for_each_other(net: TaskWorld) -> None:
    hub = await net.node("hub", sessions=False)
    worker = await net.node("worker", sessions=False)
    boss, program = await hub.program(), await worker.program()
    await boss.call("watch")
    await program.call("serve", agents=["worker"], concurrency=3)
    ids = []
    for _ in range(3):
        answer = await boss.call("submit", target="worker", task="x")
        ids.append(answer["task_id"])
    good, bad, ugly = ids
    await program.call("finish", task_id=good, ok=True, result="fine")
    await program.call("finish", task_id=bad, ok=False, error="exit 3")
    push = await boss.expect("update", status="SUCCEEDED", task_id=good)
    assert push["results"] == "fine"
    push = await boss.expect("update", status="FAILED", task_id=bad)
    assert push["error"] == "exit 3"
    await boss.call("cancel", task_id=ugly)
    await until(lambda: not list(hub.tasks.table), "nothing is left to tell")
