"""What waits at the registry is lost to nobody, and asked for no more than allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.services.handshake import mail as handshakemail
from pilotfleet.services.handshake.service import HandshakeService
from tests.node.support import World, eventually, open_world
from tests.support.programs import data_of
from tests.support.programs import world as programs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


async def ask_by_relay(agent: Agent, target: Agent, words: str = "x") -> None:
    """Leave a request at the registry."""
    await agent.registry(
        "request_handshake",
        from_node_id=agent.node_id,
        to_node_id=target.node_id,
        justification=words,
    )


async def waiting(agent: Agent) -> list[str]:
    """Return the words of what waits for ``agent`` at the registry."""
    answer = await agent.registry("poll_handshakes", node_id=agent.node_id, keep=True)
    return [row["justification"] for row in answer["requests"]]


def open_service(world: World, **changes: Any) -> tuple[Host, HandshakeService]:
    """Return a host of two private agents with the service, not started."""
    host = world.host("h", "a", "b", is_public=False, **changes)
    service = HandshakeService(host)
    service.attach()
    return host, service


def test_a_daemon_killed_before_it_saved_asks_again() -> None:
    """SIGKILL between the poll and the trust file: the request is still there."""
    with programs() as net:
        net.start_rendezvous()
        net.start_daemon("asker")
        daemon = net.start_daemon("answerer")
        asker = str(data_of(net.ctl("asker", "info"))["node_id"])
        answerer = str(data_of(net.ctl("answerer", "info"))["node_id"])
        # Nothing can be saved where a folder stands in the way.
        obstacle = net.home / "answerer" / "trust.json"
        obstacle.mkdir()
        data_of(net.ctl("asker", "handshake", answerer, "do not lose me"))
        daemon.wait_until(lambda: "are not kept" in daemon.log.read_text())
        daemon.kill()
        obstacle.rmdir()

        net.start_daemon("answerer")

        (row,) = data_of(net.ctl("answerer", "pending"))["pending"]
        assert row["justification"] == "do not lose me"
        data_of(net.ctl("answerer", "approve", asker))
        (trusted,) = data_of(net.ctl("asker", "trust"))["trusted"]
        assert str(trusted["node_id"]) == answerer


async def test_what_was_seen_to_leaves_the_registry(world: World) -> None:
    host, service = open_service(world)
    async with host:
        a, b = host.agents["a"], host.agents["b"]
        await ask_by_relay(a, b)
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        await service.pending(b)
        assert await waiting(b) == []
    await service.aclose()


async def test_a_registry_without_the_extension_is_asked_the_official_way(
    world: World,
) -> None:
    host, service = open_service(world)
    async with host:
        host.registry.extensions -= {handshakemail.MAILBOX_ACK}
        a, b = host.agents["a"], host.agents["b"]
        await ask_by_relay(a, b)
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        assert await waiting(b) == []
    await service.aclose()


async def test_the_same_mail_twice_changes_nothing(world: World) -> None:
    host, service = open_service(world)
    async with host:
        a, b = host.agents["a"], host.agents["b"]
        row = {"from_node_id": a.node_id, "justification": "hello", "timestamp": 1}
        answer = {"from_node_id": a.node_id, "accept": True, "timestamp": 1}
        for _ in range(2):
            await service._on_mail(b, [row], [answer])
        assert list(b.trust.pending) == [a.node_id]
        assert not b.trust.trusted
        b.trust.drop_pending(a.node_id)
        b.trust.ask(a.node_id, host.wall())
        for _ in range(2):
            await service._on_mail(b, [row], [answer])
        assert b.trust.trusted[a.node_id].mutual
        assert not b.trust.pending
    await service.aclose()


async def test_a_poke_during_a_poll_is_not_forgotten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poll under way may have been answered before the poke's cause arrived."""
    monkeypatch.setattr(handshakemail, "POLL_INTERVAL_S", 0.05)
    host, service = open_service(world, keepalive_s=3600.0)
    async with host:
        box = service._mail.box(host.agents["b"])
        task = box.poll(host.now())
        assert task is not None
        first = box._last
        box.poke(host.now())
        await task
        await eventually(lambda: box._last > first, what="another poll")
    await service.aclose()


async def test_pokes_lead_to_three_polls_at_once_and_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can send as the beacon does must not make us ask without end."""
    monkeypatch.setattr(handshakemail, "POLL_INTERVAL_S", 0.0)
    host, service = open_service(world, keepalive_s=3600.0)
    async with host:
        box, now = service._mail.box(host.agents["b"]), host.now()
        polls = 0
        for _ in range(8):
            box.poke(now)
            if box._task is not None:
                polls += 1
                await box._task
        assert polls == 3
        box.poke(now + 5.0)
        assert box._task is not None
    await service.aclose()


async def test_polls_follow_a_request_until_it_is_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakemail, "POLL_INTERVAL_S", 0.02)
    host, service = open_service(world)
    async with host:
        a, b = host.agents["a"], host.agents["b"]
        # An older request without an answer is no reason to poll.
        a.trust.ask(4000, host.wall())
        await service.request(a, b.node_id, "")
        box = service._mail.box(a)
        assert set(box._expected) == {b.node_id}
        await eventually(lambda: a.node_id in b.trust.pending, what="b is asked")
        await service.reject(b, a.node_id, "")
        await eventually(lambda: not box._expected, what="the polls end")
        assert set(a.trust.outgoing) == {4000}
    await service.aclose()


async def test_only_so_many_peers_are_polled_for(world: World) -> None:
    host, service = open_service(world)
    async with host:
        box = service._mail.box(host.agents["a"])
        for node in range(1, 100):
            box.expect(node, host.now())
        assert len(box._expected) == handshakemail.MAX_EXPECTED
        assert 99 in box._expected
    await service.aclose()
