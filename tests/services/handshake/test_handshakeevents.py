"""What is told of trust, just as 1.18.0 tells it (services.md 11.3).

Reasons and omissions were seen from official daemons: who asked is told nothing when
the answer arrives, and relayed requests are quieter than direct ones.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.services.handshake import mail as handshakemail
from pilotfleet.services.handshake import sending as handshakesend
from pilotfleet.services.handshake.service import HandshakeService
from tests.node.support import ADMIN_TOKEN, World, eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent

Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakesend, "CLOSE_DELAY_S", 0.05)
    monkeypatch.setattr(handshakemail, "POLL_INTERVAL_S", 0.05)


@contextlib.asynccontextmanager
async def watched(
    world: World, *, is_public: bool = True, **changes: Any
) -> AsyncIterator[tuple[HandshakeService, Agent, Agent, dict[str, Events]]]:
    """Run agents ``a`` and ``b``; yield what is told of each."""
    host = world.host("h", "a", "b", is_public=is_public, **changes)
    service = HandshakeService(host)
    service.attach()
    told: dict[str, Events] = {"a": [], "b": []}

    def note(agent: Agent, event: str, data: dict[str, Any]) -> None:
        if event.split(".")[0] in ("handshake", "trust"):
            told[agent.name].append((event, data))

    host.event_sink = note
    try:
        async with host:
            yield service, host.agents["a"], host.agents["b"], told
    finally:
        await service.aclose()


def granted(node: int, reason: str) -> tuple[str, dict[str, Any]]:
    return (
        "trust.changed",
        {"peer_node_id": node, "state": "granted", "reason": reason},
    )


def revoked(node: int, reason: str) -> tuple[str, dict[str, Any]]:
    return (
        "trust.changed",
        {"peer_node_id": node, "state": "revoked", "reason": reason},
    )


def asked(node: int, words: str, *, pending: bool = True) -> Events:
    data = {"peer_node_id": node, "justification": words}
    names = ["handshake.received", *(["handshake.pending"] if pending else [])]
    return [(name, data) for name in names]


def automatic(node: int, reason: str) -> tuple[str, dict[str, Any]]:
    return ("handshake.auto_approved", {"peer_node_id": node, "reason": reason})


async def test_a_direct_request_and_the_end_of_trust(world: World) -> None:
    async with watched(world) as (service, a, b, told):
        me, you = a.node_id, b.node_id
        await service.request(a, you, "hi")
        await eventually(lambda: b.trust.pending, what="b is asked")
        await service.approve(b, me)
        assert await service.wait(a, you, timeout=10)
        assert told["b"] == [
            *asked(me, "hi"),
            ("handshake.approved", {"peer_node_id": me}),
            granted(me, "approved"),
        ]
        assert told["a"] == []
        told["b"].clear()
        await service.revoke(a, you)
        await eventually(lambda: len(told["b"]) > 1, what="b is told")
        assert told["a"] == [
            ("trust.revoked", {"peer_node_id": you}),
            revoked(you, "local"),
        ]
        assert told["b"] == [
            ("trust.revoked_by_peer", {"peer_node_id": me}),
            revoked(me, "by_peer"),
        ]


async def test_a_refusal(world: World) -> None:
    async with watched(world) as (service, a, b, told):
        await service.request(a, b.node_id, "hi")
        await eventually(lambda: b.trust.pending, what="b is asked")
        await service.reject(b, a.node_id, "no")
        told["b"] = told["b"][2:]
        assert told["b"] == [
            ("handshake.rejected", {"peer_node_id": a.node_id, "reason": "no"})
        ]
        await eventually(lambda: not a.trust.outgoing, what="a is told")
        assert told["a"] == []


async def test_requests_of_both(world: World) -> None:
    async with watched(world) as (service, a, b, told):
        await service.request(a, b.node_id, "one")
        await eventually(lambda: b.trust.pending, what="b is asked")
        told["b"].clear()
        await service.request(b, a.node_id, "other")
        assert await service.wait(b, a.node_id, timeout=10)
        assert told["a"] == [
            *asked(b.node_id, "other", pending=False),
            automatic(b.node_id, "mutual"),
            granted(b.node_id, "mutual"),
        ]
        assert told["b"] == []


@pytest.mark.parametrize("is_public", [True, False])
async def test_automatic_approval(world: World, is_public: bool) -> None:
    changes: dict[str, Any] = {"is_public": is_public, "trust_auto_approve": True}
    async with watched(world, **changes) as (service, a, b, told):
        await service.request(a, b.node_id, "hi")
        assert await service.wait(a, b.node_id, timeout=10)
        expected = [automatic(a.node_id, "auto_approve")]
        if is_public:
            first = asked(a.node_id, "hi", pending=False)
            expected = [*first, *expected, granted(a.node_id, "auto_approve")]
        else:
            expected.append(granted(a.node_id, "auto_approve_relayed"))
        assert told["b"] == expected
        assert told["a"] == []


async def test_a_shared_network(world: World) -> None:
    async with watched(world) as (service, a, b, told):
        fields = {"node_id": a.node_id, "name": "n", "admin_token": ADMIN_TOKEN}
        network = (await a.registry("create_network", **fields))["network_id"]
        # Put there by somebody else: b does not know it yet.
        await b.registry("join_network", node_id=b.node_id, network_id=network)
        assert b.networks == ()
        await service.request(a, b.node_id, "hi")
        assert await service.wait(a, b.node_id, timeout=10)
        assert told["b"] == [
            *asked(a.node_id, "hi", pending=False),
            automatic(a.node_id, "same_network"),
            granted(a.node_id, "same_network"),
        ]
        assert b.trust.trusted[a.node_id].network == network


async def test_a_relayed_request_is_quiet(world: World) -> None:
    async with watched(world, is_public=False) as (service, a, b, told):
        await service.request(a, b.node_id, "hi")
        await eventually(lambda: b.trust.pending, what="b is asked")
        assert told == {"a": [], "b": []}
        await service.request(b, a.node_id, "and you")
        assert await service.wait(a, b.node_id, timeout=10)
        assert told == {"a": [], "b": []}
