"""Who may submit, and how often the registry is asked about it."""

from __future__ import annotations

from typing import Any

from pilotfleet.errors import TimedOut
from pilotfleet.node.trust import TrustStore
from pilotfleet.services.tasks.gate import (
    ALLOWED_TTL_S,
    NOT_TRUSTED,
    REFUSED_TTL_S,
    GateMode,
    TaskGate,
)

PEER = 7


class AskedAgent:
    """An agent whose registry says what the test wants, and counts."""

    def __init__(self, *, is_public: bool = True) -> None:
        self.node_id = 1
        self.is_public = is_public
        self.trust = TrustStore()
        self.answer: dict[str, Any] | None = {"trusted": True}
        self.asked = 0

    async def registry(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        assert (kind, fields) == ("check_trust", {"node_id": 1, "peer_id": PEER})
        self.asked += 1
        if self.answer is None:
            raise TimedOut("registry is silent")
        return self.answer


async def test_an_allowed_peer_is_remembered_for_a_while() -> None:
    now = 0.0
    gate, agent = TaskGate(clock=lambda: now), AskedAgent()
    assert await gate.refusal(agent, PEER) is None
    now = ALLOWED_TTL_S - 1
    assert await gate.refusal(agent, PEER) is None
    assert agent.asked == 1
    now = ALLOWED_TTL_S
    agent.answer = {"trusted": False}
    assert await gate.refusal(agent, PEER) == NOT_TRUSTED
    assert agent.asked == 2


async def test_a_refused_peer_is_asked_about_again_soon() -> None:
    now = 0.0
    gate, agent = TaskGate(clock=lambda: now), AskedAgent()
    for agent.answer in (None, {}, {"trusted": 1}):
        assert await gate.refusal(agent, PEER) == NOT_TRUSTED
        assert await gate.refusal(agent, PEER) == NOT_TRUSTED
        now += REFUSED_TTL_S
    assert agent.asked == 3
    agent.answer = {"trusted": True}
    assert await gate.refusal(agent, PEER) is None


async def test_whoever_needs_no_question_is_let_in_without_one() -> None:
    def clock() -> float:
        return 0.0

    private, own, trusting = AskedAgent(is_public=False), AskedAgent(), AskedAgent()
    trusting.trust.trust(PEER, wall=0.0, mutual=True)
    gate = TaskGate(clock=clock)
    assert await gate.refusal(private, PEER) is None
    assert await gate.refusal(own, own.node_id) is None
    assert await gate.refusal(trusting, PEER) is None
    stranger = AskedAgent()
    assert await TaskGate(GateMode.OFF, clock=clock).refusal(stranger, PEER) is None
    assert private.asked + own.asked + trusting.asked + stranger.asked == 0
