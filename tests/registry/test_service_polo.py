"""Scores: what changes them, what shows them, and the gate."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from pilotfleet.protocol.identity import Identity, decode_key_text
from pilotfleet.protocol.services.polo import reward
from pilotfleet.protocol.services.receipts import decode_receipt
from pilotfleet.registry.directory.receipts import (
    MAX_AGE_S,
    MAX_AHEAD_S,
    Claim,
    decide_receipts,
    prejudge,
)
from pilotfleet.registry.service import PeerContext
from tests.registry.receipts import receipt, row, statuses
from tests.registry.support import eventually
from tests.registry.test_service_replicas import PieceStore, cut_short
from tests.registry.world import Agent, GatedStore, World, error_of

VECTORS = Path(__file__).parents[1] / "vectors" / "services.json"
POLO: dict[str, list[dict[str, Any]]] = json.loads(VECTORS.read_text())["polo"]

HOUR_CPU = 3_600_000
OK = {"status": "counted", "task_id": "task-1"}


async def deliver(world: World, *rows: Any) -> list[str]:
    return statuses(await world.ask("polo_receipts", receipts=list(rows)))


def scores(world: World, *agents: Agent) -> list[int]:
    return [world.directory.polo_score(agent.node) for agent in agents]


# Receipts


async def test_a_receipt_pays_the_worker_and_costs_the_submitter_once() -> None:
    world = World()
    hub, worker = await world.agents(2)
    signed = row(receipt(hub, worker, cpu_ms=HOUR_CPU))
    earned = reward(time_cpu_ms=HOUR_CPU)
    assert await world.ask("polo_receipts", receipts=[signed]) == {
        "type": "polo_receipts_ok",
        "results": [OK],
    }
    assert scores(world, hub, worker) == [-1, earned]
    assert await deliver(world, signed) == ["known"]
    assert scores(world, hub, worker) == [-1, earned]
    found = await world.ask("search", tags=[])
    assert found["total"] == 0
    assert (await world.ask("get_polo_score", node_id=2))["polo_score"] == earned


async def test_one_message_counts_each_of_its_receipts_once() -> None:
    world = World()
    hub, one, two = await world.agents(3)
    first = row(receipt(hub, one, "a"))
    rows = [first, row(receipt(hub, two, "a")), first, row(receipt(one, hub, "a"))]
    assert await deliver(world, *rows) == ["counted", "counted", "known", "counted"]
    assert scores(world, hub, one, two) == [-1, 0, 1]


async def test_another_receipt_for_the_same_task_is_refused() -> None:
    world = World()
    hub, worker = await world.agents(2)
    await deliver(world, row(receipt(hub, worker)))
    for fields in (
        {"completed_at": world.clock.wall() - 1},
        {"cpu_ms": 1},
        {"digest": "0" * 64},
    ):
        other = row(receipt(hub, worker, **fields))
        assert await deliver(world, other) == ["the task has another receipt"]
    assert scores(world, hub, worker) == [-1, 1]
    # In one message, the first one counts.
    rows = [row(receipt(hub, worker, "t", cpu_ms=ms)) for ms in (HOUR_CPU, 0)]
    assert await deliver(world, *rows) == ["counted", "the task has another receipt"]


async def test_both_signatures_must_be_those_of_the_registered_keys() -> None:
    world = World()
    hub, worker, thief = await world.agents(3)
    good = receipt(hub, worker)
    by_thief = good.sign(thief.identity)
    forged = [
        row(good) | {"submitter_signature": by_thief},
        row(good) | {"worker_signature": by_thief},
        row(good) | {"worker_signature": good.submitter_signature},
        row(good) | {"worker_signature": ""},
        # A good signature for less, and a reward for more.
        row(good) | {"cpu_ms": HOUR_CPU, "reward": reward(time_cpu_ms=HOUR_CPU)},
        row(good) | {"worker": thief.node},
    ]
    assert await deliver(world, *forged) == ["signature verification failed"] * 6
    assert scores(world, hub, worker, thief) == [0, 0, 0]
    assert await world.store.load() == [
        entry for entry in await world.store.load() if "receipt" not in entry.key
    ]


async def test_what_is_no_receipt_is_refused_alone() -> None:
    world = World()
    hub, worker = await world.agents(2)
    good = row(receipt(hub, worker))
    replies = await deliver(
        world,
        good | {"reward": 2},
        good | {"task_id": "../../evil"},
        good | {"worker": hub.node},
        7,
        None,
        good,
    )
    assert replies[0] == "receipt: reward 2 is not 1"
    assert "task id" in replies[1]
    assert "one node" in replies[2]
    assert "expected `object`" in replies[3].lower()
    assert replies[5] == "counted"


async def test_the_time_of_completion_must_be_plausible() -> None:
    world = World()
    hub, worker = await world.agents(2)
    now = world.clock.wall()
    times = [now - MAX_AGE_S, now + MAX_AHEAD_S, now - MAX_AGE_S - 1, now + 3601]
    rows = [
        row(receipt(hub, worker, f"t-{n}", completed_at=at))
        for n, at in enumerate(times)
    ]
    assert await deliver(world, *rows) == [
        "counted",
        "counted",
        "the receipt is too old",
        "completed_at is in the future",
    ]


async def test_both_nodes_must_be_registered_though_not_alive() -> None:
    world = World()
    hub, left = await world.agents(2)
    stranger = world.stranger(9)
    stranger.node = 9
    await left.ask("deregister")
    rows = [row(receipt(hub, stranger)), row(receipt(hub, left))]
    assert await deliver(world, *rows) == ["node 9 is not registered", "counted"]
    # The score belongs to the ID and its key, and is there when they come back.
    assert error_of(await world.ask("get_polo_score", node_id=2))
    await left.register()
    assert scores(world, hub, left) == [-1, 1]


async def test_a_reaped_node_leaves_the_receipts_of_the_other_side() -> None:
    world = World(stale_after_s=100)
    hub, worker = await world.agents(2)
    await world.service.load()
    await deliver(world, row(receipt(hub, worker)))
    world.clock.time += 200
    await hub.ask("heartbeat")
    await world.service.maintain()
    assert error_of(await world.ask("lookup", node_id=2))
    listed = await hub.ask("list_receipts")
    assert [r["worker"] for r in listed["receipts"]] == [2]
    assert listed["score"] == -1


async def test_a_key_that_was_replaced_signs_no_more() -> None:
    world = World()
    hub, worker = await world.agents(2)
    before = receipt(hub, worker, "before")
    late = receipt(hub, worker, "late")
    await deliver(world, row(before))
    new = Identity(b"n" * 32)
    await worker.ask("rotate_key", new_public_key=new.public_key_text)
    worker.identity = new
    assert await deliver(world, row(late)) == ["signature verification failed"]
    assert await deliver(world, row(receipt(hub, worker, "late"))) == ["counted"]
    # The keys that verified a receipt are shown with it, so it can be verified still.
    listed = await worker.ask("list_receipts")
    for shown in listed["receipts"]:
        again = decode_receipt(shown)
        keys = [
            decode_key_text(shown[f"{side}_key"]) for side in ("submitter", "worker")
        ]
        assert again.is_signed_by_both(*keys)
    assert decode_receipt(listed["receipts"][1]) == before


async def test_a_key_that_is_replaced_during_the_verification_signs_no_more() -> None:
    world = World()
    hub, worker = await world.agents(2)
    now = int(world.clock.wall())
    claim = Claim.read(row(receipt(hub, worker)))
    assert prejudge(world.directory, [claim], now=now) == [claim]
    claim.verify()
    await worker.ask("rotate_key", new_public_key=Identity(b"n" * 32).public_key_text)
    decision = decide_receipts(world.directory, [claim], now=now, max_receipts=9)
    assert statuses(decision.reply) == ["signature verification failed"]
    assert decision.changes == []


@pytest.mark.parametrize(
    ("receipts", "error"),
    [
        (None, "polo_receipts requires receipts field"),
        ([], "polo_receipts requires receipts field"),
        ({}, "polo_receipts requires receipts field"),
        ([{}] * 101, "too many receipts (max 100)"),
    ],
)
async def test_a_message_has_1_to_100_receipts(receipts: Any, error: str) -> None:
    reply = await World().ask("polo_receipts", receipts=receipts)
    assert error_of(reply) == error


async def test_receipts_are_limited_by_address_and_in_all() -> None:
    world = World(
        receipts_per_second=10,
        receipts_burst=30,
        receipts_per_second_per_ip=10,
        receipts_burst_per_ip=20,
    )
    one, two, local = (PeerContext(ip) for ip in ("192.0.2.1", "192.0.2.2", "::1"))
    message = {"type": "polo_receipts", "receipts": [{}] * 15}
    assert "results" in await world.handle(message, one)
    late = await world.handle(message, one)
    assert error_of(late) == "rate limited: too many receipts"
    assert late["retry_after"] == 1.0
    assert "results" in await world.handle(message, two)
    assert "results" in await world.handle(message, local)
    world.clock.time += 3
    assert "results" in await world.handle(message, one)


async def test_no_more_receipts_are_taken_than_can_be_kept() -> None:
    world = World(max_receipts=2)
    hub, worker = await world.agents(2)
    rows = [row(receipt(hub, worker, f"t-{number}")) for number in range(5)]
    assert await deliver(world, *rows[:4]) == ["counted"] * 4
    full = await world.ask("polo_receipts", receipts=[rows[4]])
    assert error_of(full) == "too many receipts are kept"
    assert full["retry_after"] == 30.0
    # What is known needs no room.
    assert await deliver(world, rows[0]) == ["known"]


async def test_a_batch_that_was_cut_short_is_completed_when_it_is_repeated() -> None:
    for count in range(5):
        store = PieceStore()
        world = World(store)
        hub, worker = await world.agents(2)
        rows = [row(receipt(hub, worker, f"t-{number}")) for number in range(4)]
        request = world.ask("polo_receipts", receipts=rows)
        await cut_short(store, count, request)
        again = await world.reopened()
        assert scores(again, hub, worker) == [-count, count]
        expected = ["known"] * count + ["counted"] * (4 - count)
        assert await deliver(again, *rows) == expected
        assert scores(again, hub, worker) == [-4, 4]


async def test_messages_that_meet_count_each_receipt_once() -> None:
    store = GatedStore()
    world = World(store)
    hub, worker = await world.agents(2)
    rows = [row(receipt(hub, worker, f"t-{number}")) for number in range(6)]
    store.gate.clear()
    batches = (rows[:4], rows[2:], rows, rows[::-1])
    asked = [asyncio.create_task(deliver(world, *batch)) for batch in batches]
    await eventually(lambda: store.writes > 2)
    store.gate.set()
    found = [status for statuses in await asyncio.gather(*asked) for status in statuses]
    assert sorted(found) == ["counted"] * 6 + ["known"] * 14
    assert scores(world, hub, worker) == [-6, 6]


# The audit


async def test_a_score_can_be_traced_back_to_its_receipts() -> None:
    world = World()
    hub, worker, other = await world.agents(3)
    await world.admin("set_polo_score", node_id=2, polo_score=10)
    rows = [row(receipt(hub, worker, f"t-{n}", cpu_ms=60_000 * n)) for n in range(7)]
    rows += [row(receipt(worker, other, "back")), row(receipt(hub, other, "else"))]
    await deliver(world, *rows)
    shown: list[dict[str, Any]] = []
    reply: dict[str, Any] = {"next_cursor": ""}
    while True:
        reply = await worker.ask("list_receipts", cursor=reply["next_cursor"], limit=3)
        shown += reply["receipts"]
        if not reply["next_cursor"]:
            break
    assert [r["task_id"] for r in shown] == [
        "back",
        *(f"t-{n}" for n in range(6, -1, -1)),
    ]
    earned = sum(r["reward"] if r["worker"] == 2 else -1 for r in shown)
    assert reply["base"] == 10
    assert reply["folded"] == {"count": 0, "sum": 0}
    assert reply["score"] == 10 + earned == world.directory.polo_score(2)


async def test_receipts_are_shown_to_their_owner_and_the_administrator() -> None:
    world = World()
    hub, worker = await world.agents(2)
    await deliver(world, row(receipt(hub, worker)))
    assert error_of(await hub.ask("list_receipts", node_id=2))
    assert error_of(await world.ask("list_receipts", node_id=2))
    assert error_of(await world.admin("list_receipts", node_id=9))
    listed = await world.admin("list_receipts", node_id=2)
    assert (len(listed["receipts"]), listed["score"]) == (1, 1)
    await worker.ask("deregister")
    assert (await world.admin("list_receipts", node_id=2))["score"] == 1
    for cursor in ("x", "-1", "٣", "9" * 20):
        bad = await world.admin("list_receipts", node_id=2, cursor=cursor)
        assert error_of(bad) == "invalid cursor"


# The administrator


async def test_scores_take_the_admin_token_and_stay_in_range() -> None:
    world = World()
    await world.agents(1)
    for kind in ("set_polo_score", "update_polo_score"):
        assert error_of(await world.ask(kind, node_id=1)) == "invalid admin token"
    reply = await world.admin("set_polo_score", node_id=1, polo_score=-5)
    assert reply == {
        "type": "set_polo_score_ok",
        "node_id": 1,
        "address": "0:0000.0000.0001",
        "polo_score": -5,
    }
    reply = await world.admin("update_polo_score", node_id=1, delta=8)
    assert reply["polo_score"] == 3
    assert await world.ask("get_polo_score", node_id=1) == {
        "type": "get_polo_score_ok",
        "node_id": 1,
        "address": "0:0000.0000.0001",
        "polo_score": 3,
    }
    clamped = await world.admin("update_polo_score", node_id=1, delta=1_000_000)
    assert clamped["polo_score"] == 1_000_000
    for kind, fields, error in (
        ("set_polo_score", {}, "set_polo_score requires polo_score field"),
        ("update_polo_score", {}, "update_polo_score requires delta field"),
        (
            "set_polo_score",
            {"polo_score": 1_000_001},
            "polo score out of range (max 1000000)",
        ),
        (
            "update_polo_score",
            {"delta": -(10.0**300)},
            "polo score delta out of range (max 1000000)",
        ),
    ):
        reply = await world.admin(kind, node_id=1, **fields)
        assert error_of(reply) == error
    unknown = await world.ask("get_polo_score", node_id=9)
    assert error_of(unknown) == "node 9 not found"


async def test_what_the_administrator_sets_leaves_receipts_alone() -> None:
    world = World()
    hub, worker = await world.agents(2)
    await deliver(world, row(receipt(hub, worker, "a", cpu_ms=HOUR_CPU)))
    await world.admin("set_polo_score", node_id=2, polo_score=0)
    assert scores(world, hub, worker) == [-1, 0]
    await deliver(world, row(receipt(hub, worker, "b")))
    await world.admin("update_polo_score", node_id=2, delta=5)
    assert scores(world, hub, worker) == [-2, 6]
    listed = await worker.ask("list_receipts")
    assert listed["base"] == 5 - reward(time_cpu_ms=HOUR_CPU)
    assert len(listed["receipts"]) == 2


async def test_a_score_is_shown_within_its_range() -> None:
    world = World()
    hub, worker = await world.agents(2)
    await world.admin("set_polo_score", node_id=2, polo_score=1_000_000)
    await world.admin("set_polo_score", node_id=1, polo_score=-1_000_000)
    await deliver(world, row(receipt(hub, worker)))
    assert scores(world, hub, worker) == [-1_000_000, 1_000_000]
    # Setting is exact all the same.
    await world.admin("set_polo_score", node_id=2, polo_score=7)
    assert scores(world, worker) == [7]


# The gate


async def gate(
    world: World, caller: Agent, submitter: Agent, receiver: Agent, **fields: Any
) -> dict[str, Any]:
    return await caller.ask(
        "authorize_task_submit",
        caller_node_id=caller.node,
        submitter_node_id=submitter.node,
        receiver_node_id=receiver.node,
        **fields,
    )


@pytest.mark.parametrize("recorded", POLO["gate"])
async def test_recorded_gate(recorded: dict[str, Any]) -> None:
    world = World()
    submitter, receiver = await world.agents(2)
    for agent, side in ((submitter, "submitter"), (receiver, "receiver")):
        score = recorded[side]
        await world.admin("set_polo_score", node_id=agent.node, polo_score=score)
    minimum = recorded["min_polo"]
    fields = {} if minimum is None else {"min_polo": minimum}
    for caller in (submitter, receiver):
        reply = await gate(world, caller, submitter, receiver, **fields)
        assert reply["type"] == "authorize_task_submit_ok"
        assert reply["authorized"] is recorded["allowed"]
        assert ("reason" in reply) is not recorded["allowed"]


async def test_a_refusal_names_no_score_but_the_minimum() -> None:
    world = World()
    submitter, receiver = await world.agents(2)
    await world.admin("set_polo_score", node_id=1, polo_score=-7)
    await world.admin("set_polo_score", node_id=2, polo_score=12345)
    reply = await gate(world, receiver, submitter, receiver)
    assert reply["reason"] == "submitter's polo score is lower than the receiver's"
    reply = await gate(world, receiver, submitter, receiver, min_polo=-6)
    assert reply["reason"] == "submitter's polo score is below the minimum of -6"
    assert (await gate(world, receiver, submitter, receiver, min_polo=-7))["authorized"]


async def test_only_the_two_nodes_may_ask_the_gate() -> None:
    world = World()
    submitter, receiver, other = await world.agents(3)
    reply = await gate(world, other, submitter, receiver)
    assert error_of(reply) == "caller is neither submitter nor receiver"
    other.node = receiver.node
    reply = await gate(world, other, submitter, receiver)
    assert error_of(reply) == "signature verification failed"
    submitter.node = 9
    reply = await gate(world, receiver, submitter, receiver)
    assert error_of(reply) == "node 9 not found"


async def test_a_1_9_daemon_gets_its_own_score() -> None:
    world = World()
    await world.agents(1)
    rows = POLO["registry_messages_v1_9"]
    (request,) = (json.loads(r["json"]) for r in rows if "get_polo" in r["json"])
    assert base64.b64decode(request["signature"])
    assert (await world.handle(request))["polo_score"] == 0
