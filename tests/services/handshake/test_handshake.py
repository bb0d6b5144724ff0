"""Trust between real agents: direct, relayed, forged, forgotten."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import NotFound, PilotError, TimedOut
from pilotfleet.node.trust import TrustStore
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.services.handshake import (
    HANDSHAKE_PORT,
    Kind,
    encode_message,
    make_message,
)
from pilotfleet.services.handshake import mail as handshakemail
from pilotfleet.services.handshake import sending as handshakesend
from pilotfleet.services.handshake.service import HandshakeService
from tests.node.support import ADMIN_TOKEN, World, echo, eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up dials that a private peer ignores sooner than in earnest."""
    monkeypatch.setattr(handshakesend, "DIAL_TIMEOUT_S", 1.0)
    monkeypatch.setattr(handshakesend, "CLOSE_DELAY_S", 0.05)
    monkeypatch.setattr(handshakemail, "POLL_INTERVAL_S", 0.05)


@contextlib.asynccontextmanager
async def hosting(
    world: World, folder: str, *names: str, **changes: Any
) -> AsyncIterator[tuple[Host, HandshakeService]]:
    """Run a host with the handshake service."""
    host = world.host(folder, *names, **changes)
    service = HandshakeService(host)
    service.attach()
    try:
        async with host:
            yield host, service
    finally:
        await service.aclose()


async def _pending(service: HandshakeService, agent: Agent) -> dict[int, str]:
    rows = await service.pending(agent)
    return {row["node_id"]: row["justification"] for row in rows}


async def _wait(service: HandshakeService, agent: Agent, node: int) -> None:
    assert await service.wait(agent, node, timeout=10)


# The ways to trust


@pytest.mark.parametrize("is_public", [True, False])
async def test_a_request_is_approved(world: World, is_public: bool) -> None:
    async with hosting(world, "h", "a", "b", is_public=is_public) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        assert await service.request(a, b.node_id, "let me in") == "sent"
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        assert await _pending(service, b) == {a.node_id: "let me in"}
        assert not b.trust.is_trusted(a.node_id)

        await service.approve(b, a.node_id)
        await _wait(service, a, b.node_id)

        assert a.trust.trusted[b.node_id].mutual
        assert not b.trust.trusted[a.node_id].mutual
        await eventually(
            lambda: b.trust.trusted[a.node_id].public_key, what="the key is known"
        )
        assert b.trust.is_trusted(a.node_id, a.identity.public_key)
        assert not b.trust.pending
        assert not a.trust.outgoing
        assert await echo(a, b) == await echo(b, a) == b"hello"


async def test_who_ask_each_other_trust_each_other(world: World) -> None:
    async with hosting(world, "h", "a", "b", is_public=False) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        await service.request(a, b.node_id, "")
        await service.request(b, a.node_id, "")
        await _wait(service, a, b.node_id)
        await _wait(service, b, a.node_id)
        assert await echo(a, b) == b"hello"


async def test_members_of_a_network_trust_each_other_at_once(world: World) -> None:
    async with hosting(world, "h", "a", "b") as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        made = await a.registry(
            "create_network",
            node_id=a.node_id,
            name="fleet",
            join_rule="open",
            admin_token=ADMIN_TOKEN,
        )
        network = made["network_id"]
        with contextlib.suppress(PilotError):  # The creator is a member already.
            await a.join_network(network)
        await b.join_network(network)
        await service.request(a, b.node_id, "")
        await _wait(service, b, a.node_id)
        assert b.trust.trusted[a.node_id].network == network
        await _wait(service, a, b.node_id)


@pytest.mark.parametrize("is_public", [True, False])
async def test_automatic_approval(world: World, is_public: bool) -> None:
    changes: dict[str, Any] = {"is_public": is_public, "trust_auto_approve": True}
    async with hosting(world, "h", "a", "b", **changes) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        await service.request(a, b.node_id, "")
        await _wait(service, a, b.node_id)
        assert not b.trust.trusted[a.node_id].mutual


async def test_a_request_is_refused(world: World) -> None:
    async with hosting(world, "h", "a", "b") as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        await service.request(a, b.node_id, "")
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        await service.reject(b, a.node_id, "no thanks")
        await eventually(lambda: not a.trust.outgoing, what="a is told")
        assert not b.trust.pending
        assert not a.trust.trusted


async def test_trust_is_revoked_on_both_sides(world: World) -> None:
    changes: dict[str, Any] = {"is_public": False, "trust_auto_approve": True}
    async with hosting(world, "h", "a", "b", **changes) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        seen: list[tuple[str, int, str]] = []
        service.on_change.append(
            lambda agent, node, state, reason: seen.append((agent.name, node, state))
        )
        await service.request(a, b.node_id, "")
        await _wait(service, a, b.node_id)
        assert await echo(a, b) == b"hello"
        await service.revoke(a, b.node_id)
        await eventually(lambda: not b.trust.trusted, what="b is told")
        assert not a.trust.trusted
        assert a.trust.is_revoked(b.node_id, host.wall())
        assert ("a", b.node_id, "revoked") in seen
        assert ("b", a.node_id, "revoked") in seen
        assert not await host.registry.check_trust(a.node_id, b.node_id)
        with pytest.raises(NotFound, match="was not trusted"):
            await service.revoke(a, b.node_id)
        # And they can make it up again, without the fifteen minutes of 1.18.0.
        await service.request(a, b.node_id, "sorry")
        await _wait(service, a, b.node_id)


@pytest.mark.parametrize("decision", ["approve", "revoke"])
async def test_a_decision_is_carried_out_though_its_program_leaves(
    world: World, decision: str
) -> None:
    async with hosting(world, "h", "a", "b", is_public=False) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        await service.request(a, b.node_id, "")
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        if decision == "revoke":
            await service.approve(b, a.node_id)
        task = asyncio.create_task(getattr(service, decision)(b, a.node_id))

        def leave(*_: object) -> None:
            # The decision is on disk, and nobody has been told yet.
            task.cancel()

        service.on_change.append(leave)
        with pytest.raises(asyncio.CancelledError):
            await task
        is_allowed = decision == "approve"
        async with asyncio.timeout(10):
            while await host.registry.check_trust(b.node_id, a.node_id) != is_allowed:
                await b.registry("heartbeat", node_id=b.node_id)


async def test_who_was_revoked_is_not_let_in_as_a_reply(world: World) -> None:
    """The notice is a dial, and whoever is dialled may answer for a while."""
    changes: dict[str, Any] = {"is_public": False, "trust_auto_approve": True}
    async with hosting(world, "h", "a", "b", **changes) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        await service.request(a, b.node_id, "")
        await _wait(service, a, b.node_id)
        await service.revoke(a, b.node_id)
        assert not host.gate.is_reply(a, b.node_id, 1001)
        assert not host.gate.answer(a, b.node_id)


async def test_an_unknown_node_cannot_be_asked(world: World) -> None:
    async with hosting(world, "h", "a") as (host, service):
        a = host.agents["a"]
        with pytest.raises(NotFound, match=r"^handshake relay: registry: node 99"):
            await service.request(a, 99, "")
        assert not a.trust.outgoing


async def test_nothing_to_decide_is_no_error(world: World) -> None:
    async with hosting(world, "h", "a") as (host, service):
        a = host.agents["a"]
        await service.approve(a, 77)
        await service.reject(a, 77, "")
        assert await service.trusted(a) == []
        assert await service.wait(a, a.node_id, timeout=0)
        assert not await service.wait(a, 77, timeout=0)
        assert not await service.wait(a, 77, timeout=0.05)
        assert not service._waiters


async def test_trust_outlives_the_host(world: World) -> None:
    async with hosting(world, "b", "b", is_public=False) as (other, theirs):
        b = other.agents["b"]
        async with hosting(world, "a", "a", is_public=False) as (host, service):
            a = host.agents["a"]
            await service.request(a, b.node_id, "one day")
            await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        await theirs.approve(b, a.node_id)
        async with hosting(world, "a", "a", is_public=False) as (host, service):
            a = host.agents["a"]
            await _wait(service, a, b.node_id)
        path = world.folder / "a" / "a" / "trust.json"
        kept = TrustStore.load(path, wall=other.wall())
        assert kept.is_trusted(b.node_id)
        assert not kept.outgoing


async def test_a_poll_is_saved_before_it_is_acted_on(world: World) -> None:
    async with hosting(world, "h", "a", "b", is_public=False) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        await a.registry(
            "request_handshake",
            from_node_id=a.node_id,
            to_node_id=b.node_id,
            justification="x",
        )
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        await service.pending(b)
        path = b.spec.identity_path.with_name("trust.json")
        assert a.node_id in TrustStore.load(path, wall=host.wall()).pending


async def test_a_key_that_a_tunnel_shows_reaches_the_disk(world: World) -> None:
    """Nobody has asked the service for anything yet."""
    async with hosting(world, "h", "a", "b", is_public=False) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        for one, other in ((a, b), (b, a)):
            await one.registry(
                "report_trust", node_id=one.node_id, peer_id=other.node_id
            )
        b.trust.trust(a.node_id, wall=host.wall(), mutual=True)
        await service._writer.flush(b.trust)
        assert await echo(a, b) == b"hello"
        path = b.spec.identity_path.with_name("trust.json")

        def key_on_disk() -> str:
            return TrustStore.load(path, wall=0).trusted[a.node_id].public_key

        await eventually(
            lambda: key_on_disk() == a.identity.public_key_text, what="it is saved"
        )


async def test_an_answer_without_a_relayed_request_is_accepted(world: World) -> None:
    """A direct request, answered when no direct way is left."""
    async with hosting(world, "h", "a", "b", is_public=False) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        a.trust.ask(b.node_id, host.wall())
        b.trust.add_pending(
            a.node_id,
            public_key=a.identity.public_key_text,
            justification="",
            source=a.node_id,
            wall=host.wall(),
        )
        await service.approve(b, a.node_id)
        await _wait(service, a, b.node_id)
        await eventually(lambda: a.trust.trusted[b.node_id].public_key, what="the key")
        assert await host.registry.check_trust(a.node_id, b.node_id)
        assert await echo(a, b) == await echo(b, a) == b"hello"


# Messages that are not what they say


async def _send_raw(agent: Agent, target: Agent, data: bytes) -> None:
    remote = SocketAddress(target.address, HANDSHAKE_PORT)
    async with await agent.dial(remote, timeout=10) as stream:
        await stream.write(data)


def _forge(agent: Agent, target: Agent, kind: Kind, **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "identity": agent.identity,
        "sender": agent.node_id,
        "receiver": target.node_id,
        "wall": agent.host.wall(),
        **changes,
    }
    return encode_message(make_message(kind, **fields))


STRANGER = Identity(bytes(32))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Kind.REQUEST, {"wall": 1.0}),
        (Kind.REQUEST, {"wall": 4e9}),
        (Kind.REQUEST, {"identity": STRANGER}),
        (Kind.REQUEST, {"receiver": 55}),
        (Kind.ACCEPT, {"sender": 55}),
        (Kind.REVOKE, {"sender": 55}),
    ],
)
async def test_forged_messages_change_nothing(
    world: World, kind: Kind, changes: dict[str, Any]
) -> None:
    async with hosting(world, "h", "a", "b") as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        b.trust.trust(55, wall=host.wall(), mutual=True)
        version = b.trust.version
        await _send_raw(a, b, _forge(a, b, kind, **changes))
        await eventually(lambda: service.refused, what="the message is refused")
        assert b.trust.version == version


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff" * 100, b'{"type":"handshake_request"}', b"}" * 99],
)
async def test_garbage_on_the_port_changes_nothing(world: World, data: bytes) -> None:
    async with hosting(world, "h", "a", "b") as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        await _send_raw(a, b, data)
        await eventually(lambda: service.refused, what="the message is refused")
        assert b.trust.version == 0


async def test_an_accept_that_nobody_asked_for_is_ignored(world: World) -> None:
    async with hosting(world, "h", "a", "b") as (host, _):
        a, b = host.agents["a"], host.agents["b"]
        await _send_raw(a, b, _forge(a, b, Kind.ACCEPT))
        await _send_raw(a, b, _forge(a, b, Kind.REQUEST))
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        assert not b.trust.trusted


async def test_a_claim_for_an_unknown_node_waits_for_a_person(world: World) -> None:
    changes: dict[str, Any] = {"identity": STRANGER, "sender": 4000}
    async with hosting(world, "h", "a", "b") as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        b.trust.ask(4000, host.wall())
        await _send_raw(a, b, _forge(a, b, Kind.REQUEST, **changes))
        await eventually(lambda: 4000 in b.trust.pending, what="b is asked")
        assert b.trust.pending[4000].source == a.node_id
        # Once: the tunnel says nothing about messages for somebody else.
        await _send_raw(a, b, _forge(a, b, Kind.REQUEST, **changes))
        await eventually(lambda: service.refused, what="the repeat is refused")


async def test_a_message_may_come_in_pieces(world: World) -> None:
    async with hosting(world, "h", "a", "b") as (host, _):
        a, b = host.agents["a"], host.agents["b"]
        data = _forge(a, b, Kind.REQUEST, justification="{}}" * 300)
        remote = SocketAddress(b.address, HANDSHAKE_PORT)
        async with await a.dial(remote, timeout=10) as stream:
            for start in range(0, len(data), 400):
                await stream.write(data[start : start + 400])
                await asyncio.sleep(0)
            await eventually(lambda: b.trust.pending, what="b is asked")


async def test_a_long_justification_takes_the_relay(world: World) -> None:
    async with hosting(world, "h", "a", "b") as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        await service.request(a, b.node_id, "x" * 1000)
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        assert b.trust.pending[a.node_id].public_key == ""


async def test_another_key_ends_trust(world: World) -> None:
    async with hosting(world, "h", "a", "b") as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        old = STRANGER.public_key_text
        b.trust.trust(a.node_id, wall=host.wall(), public_key=old, mutual=True)
        await service.request(a, b.node_id, "it is me")
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        assert not b.trust.trusted


@pytest.mark.parametrize("key", ["", Identity(b"t" * 32).public_key_text])
async def test_nobody_takes_the_place_of_a_trusted_node(world: World, key: str) -> None:
    """The registry does not know 4000 just now, and a says that it is it."""
    async with hosting(world, "h", "a", "b", trust_auto_approve=True) as (
        host,
        service,
    ):
        a, b = host.agents["a"], host.agents["b"]
        b.trust.trust(4000, wall=host.wall(), public_key=key, mutual=True)
        version = b.trust.version
        changes: dict[str, Any] = {"identity": STRANGER, "sender": 4000}
        await _send_raw(a, b, _forge(a, b, Kind.REQUEST, **changes))
        await eventually(lambda: service.refused, what="the claim is refused")
        assert b.trust.version == version


async def test_a_registry_that_is_away_is_said(world: World) -> None:
    async with hosting(world, "h", "a", "b", is_public=False) as (host, service):
        a, b = host.agents["a"], host.agents["b"]
        await world.stop_rendezvous()
        with pytest.raises((PilotError, TimedOut)):
            async with asyncio.timeout(20):
                await service.request(a, b.node_id, "")
        assert await service.pending(a) == []
