"""Receipts of tasks: both sides sign, both keep them, the registry counts them once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from pilotfleet.errors import NotFound, NotSupported
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.services.polo import reward
from pilotfleet.protocol.services.receipts import Receipt
from pilotfleet.protocol.services.tasks import SESSION_PORT
from tests.services.tasks.support import (
    LIMIT_S,
    OPEN,
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
from tests.services.tasks.test_sessions import answer_of, open_session

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver receipts at once."""
    module = "pilotfleet.services.polo.delivery"
    monkeypatch.setattr(f"{module}.GATHER_S", 0.01)
    monkeypatch.setattr(f"{module}.FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(f"{module}.LONGEST_PAUSE_S", 0.2)


async def done(boss: Program, hand: Program, worker: Node, **more: Any) -> str:
    """Have one task done; return its id once both sides know."""
    await hand.call("serve", agents=["worker"])
    task_id = await submit(boss, worker, **more)
    await hand.offer()
    await hand.call("finish", task_id=task_id, ok=True, result="done ✓")
    await boss.until(task_id, "submitted", "SUCCEEDED")
    await until(lambda: not list(worker.tasks.table), "the worker knows it is told")
    return task_id


async def ledger(program: Program, **params: Any) -> dict[str, Any]:
    return await program.polo("receipts", **params)


async def state_of(program: Program, state: str, count: int) -> dict[str, Any]:
    """Wait until so many receipts are in a state."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            shown = await ledger(program)
            if shown["sums"][state] == count:
                return shown


async def score(node: Node) -> int:
    registry = node.host.registry
    return await registry.get_polo_score(node.agent.node_id)


# Between two of our own


async def test_both_sides_keep_the_same_receipt_and_the_registry_counts_it(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    task_id = await done(boss, hand, worker)
    given = await state_of(boss, "counted", 1)
    earned = await ledger(hand)
    [mine], [theirs] = given["receipts"], earned["receipts"]
    assert (mine["role"], theirs["role"]) == ("submitted", "received")
    assert theirs["state"] == "pending"
    for row in (mine, theirs):
        del row["role"], row["state"], row["stored_at"]
    assert mine == theirs
    assert mine["task_id"] == task_id
    assert mine["digest"] == hashlib.sha256("done ✓".encode()).hexdigest()
    assert (mine["submitter"], mine["worker"]) == (
        hub.agent.node_id,
        worker.agent.node_id,
    )
    assert mine["reward"] == reward(
        time_idle_ms=mine["idle_ms"],
        time_staged_ms=mine["staged_ms"],
        time_cpu_ms=mine["cpu_ms"],
    )
    assert given["sums"]["score"] == await score(hub) == -1
    assert earned["sums"]["score"] == await score(worker) == mine["reward"]

    shown = await boss.call("show", task_id=task_id)
    assert shown["submitted"]["receipt"] == "counted"
    assert shown["submitted"]["reward"] == mine["reward"]
    assert "received" not in shown
    assert (await hand.call("show", task_id=task_id))["received"]["status"]
    with pytest.raises(NotFound):
        await hand.call("show", task_id="other")


async def test_a_worker_claims_what_its_submitter_does_not_deliver(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.polo.delivery.GATHER_S", 1000.0)
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    await done(boss, hand, worker)
    assert (await ledger(boss))["sums"]["pending"] == 1
    claimed = await hand.polo("claim")
    assert claimed == {"presented": 1, "counted": 1, "known": 0, "refused": 0}
    assert (await ledger(hand))["sums"]["counted"] == 1
    nothing = {"presented": 0, "counted": 0, "known": 0, "refused": 0}
    assert await hand.polo("claim") == nothing
    assert await score(hub) == -1
    # The submitter's daemon comes late, and the score stays.
    monkeypatch.setattr("pilotfleet.services.polo.delivery.GATHER_S", 0.01)
    await hub.close()
    hub = await net.node("hub")
    await state_of(await hub.program(), "known", 1)
    assert await score(hub) == -1


async def test_a_registry_without_receipts_is_sent_none(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    for node in (hub, worker):
        node.host.registry.extensions = frozenset()
    boss, hand = await hub.program(), await worker.program()
    await done(boss, hand, worker)
    assert (await ledger(boss))["sums"]["pending"] == 1
    with pytest.raises(NotSupported, match="no receipts"):
        await hand.polo("claim")
    # As soon as there is a better one, the next look delivers them.
    hub.host.registry.extensions = frozenset({"receipts"})
    hub.tasks.delivery.wake()
    await state_of(boss, "counted", 1)


@pytest.mark.parametrize("without", ["hub", "worker"])
async def test_whoever_turns_polo_off_has_no_receipts(
    net: TaskWorld, without: str
) -> None:
    off = {without: replace(OPEN, polo=False)}
    hub = await net.node("hub", config=off.get("hub", OPEN))
    worker = await net.node("worker", config=off.get("worker", OPEN))
    boss, hand = await hub.program(), await worker.program()
    task_id = await done(boss, hand, worker)
    assert (await boss.call("result", task_id=task_id))["content"] == "done ✓"
    for program in (boss, hand):
        assert (await ledger(program))["receipts"] == []
    assert hub.tasks.receipts.rejected == {}
    assert worker.tasks.receipts.rejected == {}


async def test_a_failed_task_earns_nothing(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    await hand.call("serve", agents=["worker"])
    task_id = await submit(boss, worker)
    await hand.offer()
    await hand.call("finish", task_id=task_id, ok=False, error="no")
    await boss.until(task_id, "submitted", "FAILED")
    assert (await ledger(boss))["receipts"] == []


async def test_receipts_wait_for_the_registry_through_restarts(
    net: TaskWorld,
) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    ids = [await done(boss, hand, worker)]
    await net.world.stop_rendezvous()
    ids += [await done(boss, hand, worker) for _ in range(2)]
    await hub.close()
    await net.world.start_rendezvous()
    hub = await net.node("hub")
    boss = await hub.program()
    shown = await state_of(boss, "counted", 3)
    assert [row["task_id"] for row in shown["receipts"]] == ids[::-1]
    assert await score(hub) == -3
    assert await score(worker) == (await ledger(hand))["sums"]["earned"]


async def test_receipts_come_in_pages_newest_first(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    boss, hand = await hub.program(), await worker.program()
    ids = [await done(boss, hand, worker) for _ in range(3)]
    first = await ledger(boss, limit=2)
    rest = await ledger(boss, limit=2, cursor=first["next_cursor"])
    rows = first["receipts"] + rest["receipts"]
    assert [row["task_id"] for row in rows] == ids[::-1]
    assert rest["next_cursor"] == ""


async def test_what_happened_is_reported_to_whoever_watches(net: TaskWorld) -> None:
    hub, worker = await pair(net)
    heard: list[tuple[str, str, dict[str, Any]]] = []

    def listen(agent: Agent, event: str, data: dict[str, Any]) -> None:
        if event.startswith(("task.", "polo.")):
            heard.append((agent.name, event, data))

    hub.host.event_sink = worker.host.event_sink = listen
    boss, hand = await hub.program(), await worker.program()
    task_id = await done(boss, hand, worker, text="please")
    earned = (await ledger(hand))["sums"]["earned"]
    assert heard[0] == (
        "worker",
        "task.submitted",
        {
            "task_id": task_id,
            "description": "please",
            "from": str(hub.agent.address),
            "submitter_node": hub.agent.node_id,
        },
    )
    assert sorted(heard[1:]) == [
        (
            "hub",
            "polo.updated",
            {"task_id": task_id, "submitter_delta": -1, "receiver_reward": earned},
        ),
        ("hub", "task.completed", {"task_id": task_id, "result_type": "text"}),
    ]


# A worker made by hand


class Hand:
    """A worker's end of a session, that may lie."""

    def __init__(self, agent: Agent, stream: Stream, hub: Node, task_id: str) -> None:
        self.identity: Identity = agent.identity
        self._stream = stream
        self.receipt = Receipt(
            task_id=task_id,
            submitter=hub.agent.node_id,
            worker=agent.node_id,
            digest=hashlib.sha256(b"done").hexdigest(),
            reward=1,
            idle_ms=5,
            staged_ms=6,
            cpu_ms=7,
            completed_at=int(time.time()),
        )

    async def send(self, receipt: Receipt, signature: str) -> str:
        """Send the result with a receipt; return what the ACK is signed with."""
        results = {
            "task_id": self.receipt.task_id,
            "result_type": "text",
            "result_text": "done",
            "time_idle_ms": receipt.idle_ms,
            "time_staged_ms": receipt.staged_ms,
            "time_cpu_ms": receipt.cpu_ms,
            "completed_unix": receipt.completed_at,
            "reward": receipt.reward,
            "receipt": signature,
        }
        await self._stream.write(frame(4, results))
        async with asyncio.timeout(LIMIT_S):
            kind, fields = await read_frame(self._stream)
        assert (kind, fields["task_id"]) == (5, receipt.task_id)
        return str(fields.get("receipt", ""))


async def hand_of(net: TaskWorld, hub: Node) -> Hand:
    """Have the hub give a task to a worker made by hand."""
    peer = await net.bare("peer")
    streams: asyncio.Queue[Stream] = asyncio.Queue()
    peer.listen(SESSION_PORT, streams.put_nowait)
    boss = await hub.program()
    await boss.call("submit", target=peer.node_id, task="x", wait=False)
    async with asyncio.timeout(LIMIT_S):
        stream = await streams.get()
        _, fields = await read_frame(stream)
    taken = {"task_id": fields["task_id"], "status": 200, "message": "taken"}
    await stream.write(frame(1, taken))
    return Hand(peer, stream, hub, fields["task_id"])


async def test_a_result_that_is_sent_again_gets_the_same_signature(
    net: TaskWorld,
) -> None:
    hub = await net.node("hub")
    hand = await hand_of(net, hub)
    signature = hand.receipt.sign(hand.identity)
    signed = await hand.send(hand.receipt, signature)
    assert hand.receipt.is_signed_by(hub.agent.identity.public_key, signed)
    assert await hand.send(hand.receipt, signature) == signed
    # Nor does another receipt for the same task come to anything.
    better = structs.replace(hand.receipt, cpu_ms=6 * 60_000, reward=4)
    assert await hand.send(better, better.sign(hand.identity)) == signed
    boss = await hub.program()
    await state_of(boss, "counted", 1)
    assert len((await ledger(boss))["receipts"]) == 1


MINUTE = 60_000
LIES: list[tuple[str, dict[str, Any]]] = [
    ("malformed", {"reward": 2}),
    ("malformed", {"reward": 0}),
    ("malformed", {"reward": -(1 << 70)}),
    ("malformed", {"idle_ms": -1}),
    ("malformed", {"completed_at": 0}),
    ("times", {"cpu_ms": 31 * MINUTE, "reward": 6}),
    ("times", {"idle_ms": MINUTE, "staged_ms": 0}),
    ("times", {"completed_at": int(time.time()) + 7200}),
    ("times", {"completed_at": int(time.time()) - 7200}),
    ("signature", {"digest": "0" * 64}),
    ("signature", {"submitter": 99}),
    ("signature", {"task_id": "another"}),
]


@pytest.mark.parametrize(("kind", "fields"), LIES)
async def test_a_lie_earns_nothing_and_its_result_counts(
    net: TaskWorld, kind: str, fields: dict[str, Any]
) -> None:
    hub = await net.node("hub")
    hand = await hand_of(net, hub)
    lie = structs.replace(hand.receipt, **fields)
    told = structs.replace(lie, task_id=hand.receipt.task_id)
    assert await hand.send(told, lie.sign(hand.identity)) == ""
    assert hub.tasks.receipts.rejected == {kind: 1}
    boss = await hub.program()
    task_id = hand.receipt.task_id
    assert await boss.status(task_id, "submitted") == "SUCCEEDED"
    assert (await boss.call("result", task_id=task_id))["content"] == "done"
    shown = await ledger(boss)
    assert (shown["receipts"], shown["rejected"]) == ([], {kind: 1})
    # The result is taken, so a true receipt comes too late.
    assert await hand.send(hand.receipt, hand.receipt.sign(hand.identity)) == ""


@pytest.mark.parametrize("signature", ["x", "é", "A" * 88, "!" * 4096])
async def test_a_signature_that_is_none_earns_nothing(
    net: TaskWorld, signature: str
) -> None:
    hub = await net.node("hub")
    hand = await hand_of(net, hub)
    assert await hand.send(hand.receipt, signature) == ""
    assert hub.tasks.receipts.rejected == {"signature": 1}


async def test_a_signature_that_was_forgotten_is_made_again(
    net: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfleet.services.polo.receipts.MAX_OFFERS", 1)
    worker, peer = await net.node("worker"), await net.bare("peer")
    program = await worker.program()
    await program.call("serve", agents=["worker"], concurrency=2)
    stream = await open_session(peer, worker)
    results: list[dict[str, Any]] = []
    for task_id in ("a", "b"):
        await stream.write(submission(task_id, peer, worker.agent, "x"))
        assert await program.offer() == task_id
        await program.call("finish", task_id=task_id, ok=True, result="x")
    while len(results) < 2:
        kind, fields = await answer_of(stream)
        if kind == 4:
            results.append(fields)
    assert len(worker.tasks.receipts._offers) == 1
    for fields in results:
        receipt = Receipt(
            task_id=fields["task_id"],
            submitter=peer.node_id,
            worker=worker.agent.node_id,
            digest=hashlib.sha256(b"x").hexdigest(),
            reward=fields["reward"],
            idle_ms=fields.get("time_idle_ms", 0),
            staged_ms=fields.get("time_staged_ms", 0),
            cpu_ms=fields.get("time_cpu_ms", 0),
            completed_at=fields["completed_unix"],
        )
        signed = {"task_id": receipt.task_id, "receipt": receipt.sign(peer.identity)}
        await stream.write(frame(5, signed))
    await until(lambda: not list(worker.tasks.table), "the results are told")
    kept = (await ledger(program))["receipts"]
    assert sorted(row["task_id"] for row in kept) == ["a", "b"]
    assert worker.tasks.receipts.rejected == {}


async def signed_by_hand(net: TaskWorld, signature: str) -> tuple[Node, Program, Agent]:
    """Have a worker do a task whose submitter acknowledges it with this signature."""
    worker, peer = await net.node("worker"), await net.bare("peer")
    program = await worker.program()
    await program.call("serve", agents=["worker"])
    stream = await open_session(peer, worker)
    await stream.write(submission("a", peer, worker.agent, "x"))
    await answer_of(stream)
    await program.offer()
    await program.call("finish", task_id="a", ok=True, result="x")
    while (answer := await answer_of(stream))[0] != 4:
        assert answer[0] == 3
    assert answer[1]["reward"] == 1
    await stream.write(frame(5, {"task_id": "a", "receipt": signature}))
    await until(lambda: not list(worker.tasks.table), "the results are told")
    return worker, program, peer


async def test_a_submitter_that_signs_wrongly_is_found_out_by_the_registry(
    net: TaskWorld,
) -> None:
    wrong = Identity(bytes(32)).sign_text("something")
    worker, program, peer = await signed_by_hand(net, wrong)
    assert (await ledger(program))["sums"]["pending"] == 1
    claimed = await program.polo("claim")
    assert claimed == {"presented": 1, "counted": 0, "known": 0, "refused": 1}
    assert (await ledger(program))["receipts"][0]["state"] == "refused"
    registry = worker.host.registry
    assert await registry.get_polo_score(peer.node_id) == 0
    assert await score(worker) == 0


async def test_a_submitter_that_sends_no_signature_leaves_the_worker_no_receipt(
    net: TaskWorld,
) -> None:
    worker, program, _ = await signed_by_hand(net, "x" * 4096)
    assert worker.tasks.receipts.rejected == {"signature": 1}
    assert (await ledger(program))["receipts"] == []
