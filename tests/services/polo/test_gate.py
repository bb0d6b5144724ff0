"""The submit gate: by the scores at the registry, asked seldom."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pilotfleet.errors import ConnectionFailed, RegistryError, TimedOut
from pilotfleet.services.polo.gate import (
    ANSWER_TTL_S,
    MAX_ASKED,
    NO_REGISTRY,
    NOT_AUTHORIZED,
    PoloGate,
    PoloGateConfig,
)
from tests.services.tasks.support import OPEN, TaskWorld, frame, say, submission, submit

PEER = 7


class AskedAgent:
    """An agent whose registry says what the test wants, and counts."""

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        self.node_id = 1
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    async def registry(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        assert kind == "authorize_task_submit"
        self.asked.append(fields)
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def open_gate(config: PoloGateConfig | None = None) -> tuple[PoloGate, Clock]:
    clock = Clock()
    gate = PoloGate(
        config or PoloGateConfig(), clock=clock, spawn=asyncio.ensure_future
    )
    return gate, clock


async def test_many_submissions_of_one_peer_ask_once() -> None:
    gate, clock = open_gate()
    agent = AskedAgent({"authorized": True})
    answers = await asyncio.gather(*(gate.refusal(agent, PEER) for _ in range(50)))
    assert answers == [None] * 50
    assert agent.asked == [
        {"caller_node_id": 1, "submitter_node_id": PEER, "receiver_node_id": 1}
    ]
    agent.answer = {"authorized": False, "reason": "too low"}
    assert await gate.refusal(agent, PEER) is None
    clock.now = ANSWER_TTL_S
    assert await gate.refusal(agent, PEER) == "Task rejected by polo gate: too low"
    agent.answer = {"authorized": True}
    gate.forget(PEER, agent.node_id)
    assert await gate.refusal(agent, PEER) is None
    assert len(agent.asked) == 3


async def test_a_caller_that_goes_away_takes_no_answer_from_others() -> None:
    gate, _ = open_gate()
    agent = AskedAgent({"authorized": True})
    first, second = (asyncio.ensure_future(gate.refusal(agent, PEER)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second is None


async def test_a_minimum_is_handed_to_the_registry() -> None:
    gate, _ = open_gate(PoloGateConfig(min_polo=-5))
    agent = AskedAgent({"authorized": True})
    assert await gate.refusal(agent, PEER) is None
    assert agent.asked[0]["min_polo"] == -5


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RegistryError("node 7 not found"), NOT_AUTHORIZED),
        (
            RegistryError('unknown message type: "authorize_task_submit"'),
            NOT_AUTHORIZED,
        ),
        (ConnectionFailed("nothing listens"), NO_REGISTRY),
        (TimedOut("no answer"), NO_REGISTRY),
    ],
)
async def test_without_an_answer_nothing_is_taken(error: Exception, text: str) -> None:
    gate, _ = open_gate()
    assert await gate.refusal(AskedAgent(error), PEER) == text


@pytest.mark.parametrize("answer", [{}, {"authorized": 1}, {"authorized": "true"}])
async def test_an_answer_that_is_no_yes_is_a_no(answer: dict[str, Any]) -> None:
    gate, _ = open_gate()
    refusal = await gate.refusal(AskedAgent(answer), PEER)
    assert refusal == "Task rejected by polo gate: not authorized"


async def test_questions_under_way_are_bounded() -> None:
    gate, _ = open_gate()
    agent = AskedAgent({"authorized": True})
    waiting = [gate.refusal(agent, peer + 2) for peer in range(MAX_ASKED + 1)]
    answers = await asyncio.gather(*waiting)
    assert answers == [None] * MAX_ASKED + [NOT_AUTHORIZED]


async def test_a_gate_that_is_off_and_the_own_node_need_no_question() -> None:
    agent = AskedAgent({})
    off, _ = open_gate(PoloGateConfig(is_on=False))
    assert await off.refusal(agent, PEER) is None
    on, _ = open_gate()
    assert await on.refusal(agent, agent.node_id) is None
    assert agent.asked == []


GATED = replace(OPEN, polo_gate=PoloGateConfig())


async def test_a_submission_that_was_taken_is_not_refused_when_it_comes_again(
    net: TaskWorld,
) -> None:
    hub, worker = await net.node("hub"), await net.node("worker", config=GATED)
    boss = await hub.program()
    await submit(boss, worker, task_id="a")
    gate = worker.tasks.polo_gate
    gate.forget(worker.agent.node_id, hub.agent.node_id)
    gate._config = PoloGateConfig(min_polo=1)
    again = submission("a", hub.agent, worker.agent, "do it")
    answer = await say(hub.agent, worker.agent, again)
    taken = {"task_id": "a", "status": 200, "message": "Task received with status NEW"}
    assert answer == frame(1, taken)
    new = submission("b", hub.agent, worker.agent, "do it")
    assert b"polo gate: submitter's polo score" in await say(
        hub.agent, worker.agent, new
    )


async def test_a_minimum_keeps_out_who_has_less(net: TaskWorld) -> None:
    hub = await net.node("hub")
    strict = replace(OPEN, polo_gate=PoloGateConfig(min_polo=1))
    worker = await net.node("worker", config=strict)
    lenient = replace(OPEN, polo_gate=PoloGateConfig(min_polo=0))
    other = await net.node("other", config=lenient)
    boss = await hub.program()
    target = str(worker.agent.address)
    answer = await boss.call("submit", target=target, task="x")
    assert answer["accepted"] is False
    assert answer["status"] == 400
    assert answer["message"].startswith("Task rejected by polo gate: ")
    assert (await boss.call("list"))["tasks"] == []
    await submit(boss, other)


async def test_with_the_registry_away_nothing_is_taken(net: TaskWorld) -> None:
    hub, worker = await net.node("hub"), await net.node("worker", config=GATED)
    boss = await hub.program()
    await submit(boss, worker)
    await net.world.stop_rendezvous()
    worker.tasks.polo_gate.forget(worker.agent.node_id, hub.agent.node_id)
    target = str(worker.agent.address)
    answer = await boss.call("submit", target=target, task="x")
    assert answer["message"] == NO_REGISTRY
