"""Hosts on real sockets, against a real rendezvous."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import (
    AlreadyExists,
    ConfigError,
    ConnectionRefused,
    ConnectionReset,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    StorageError,
    TimedOut,
    Unavailable,
)
from pilotfleet.node import reactions
from pilotfleet.node.config import HostConfig, NetworkToJoin
from pilotfleet.node.engine import MAX_PATH_ERRORS
from pilotfleet.node.filelimit import require_open_files
from pilotfleet.node.host import BROKER_SHARE, Host
from pilotfleet.node.registration import registrar
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.services.events import EVENT_PORT
from pilotfleet.services.echo import serve_echo
from tests.node.support import (
    ADMIN_TOKEN,
    World,
    dial_echo,
    echo,
    eventually,
    open_world,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.stream import Stream
    from pilotfleet.protocol.tunnel.events import Event

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as made:
        yield made


async def test_two_hosts_talk_through_an_encrypted_tunnel(world: World) -> None:
    async with world.host("a", "alice") as a, world.host("b", "bob") as b:
        alice, bob = a.default_agent, b.default_agent
        assert await echo(alice, bob) == b"hello"
        assert alice.info()["encrypted_peers"] == 1
        assert alice.info()["authenticated_peers"] == 1
        assert bob.info()["peer_list"][0]["node_id"] == alice.node_id


async def test_a_mebibyte_comes_back_unchanged(world: World) -> None:
    data = os.urandom(1 << 20)
    async with world.host("a", "alice") as a, world.host("b", "bob") as b:
        assert await echo(a.default_agent, b.default_agent, data) == data


async def test_the_brokers_of_the_fleet_take_more_publishers(world: World) -> None:
    settings = {"brokers": ("hub", "spare"), "max_connections_per_port": 1}
    here = world.host("a", "hub", "other", **settings)
    here.services[EVENT_PORT] = serve_echo
    async with here, world.host("b", "bob") as there:
        hub, other, bob = *here.agents.values(), there.default_agent
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(BROKER_SHARE):
                await stack.enter_async_context(await dial_event_port(bob, hub))
            with pytest.raises(ConnectionRefused):
                await dial_event_port(bob, hub)
            await stack.enter_async_context(await dial_event_port(bob, other))
            with pytest.raises(ConnectionRefused):
                await dial_event_port(bob, other)
            # It is for events alone.
            await stack.enter_async_context(await dial_echo(bob, hub))
            with pytest.raises(ConnectionRefused):
                await dial_echo(bob, hub)


async def dial_event_port(source: Agent, target: Agent) -> Stream:
    return await source.dial(SocketAddress(target.address, EVENT_PORT), timeout=20)


async def test_a_hundred_agents_in_one_host_are_found_and_answer(world: World) -> None:
    names = [f"worker-{n}" for n in range(1, 101)]
    async with world.host("a", "alice") as a, world.host("b", *names) as b:
        alice = a.default_agent
        assert len(b.by_node) == 100

        async def call(name: str) -> bytes:
            found = await alice.resolve_hostname(name)
            assert found["node_id"] == b.agents[name].node_id
            return await echo(alice, b.agents[name], name.encode())

        answers = await asyncio.gather(*(call(name) for name in names))
        assert answers == [name.encode() for name in names]


async def test_agents_of_one_host_reach_each_other(world: World) -> None:
    async with world.host("a", "alice", "bob") as host:
        assert await echo(host.agents["alice"], host.agents["bob"]) == b"hello"
        assert await echo(host.agents["alice"], host.agents["alice"]) == b"hello"


async def test_identities_and_node_ids_survive_a_restart(world: World) -> None:
    async with world.host("a", "alice", "bob") as host:
        before = {name: agent.node_id for name, agent in host.agents.items()}
    async with world.host("a", "alice", "bob") as host:
        assert {n: agent.node_id for n, agent in host.agents.items()} == before
        mode = (world.folder / "a" / "bob" / "identity.json").stat().st_mode
        assert mode & 0o777 == 0o600


async def test_open_tunnels_carry_on_while_the_registry_restarts(world: World) -> None:
    async with world.host("a", "alice") as a, world.host("b", "bob") as b:
        async with await dial_echo(a.default_agent, b.default_agent) as stream:
            await world.stop_rendezvous()
            await stream.write(b"still here")
            assert await stream.read_exactly(10) == b"still here"
            await world.start_rendezvous()
        assert await a.default_agent.resolve_hostname("bob")


async def test_agents_register_again_with_a_registry_that_lost_everything(
    world: World,
) -> None:
    config = world.config("a", "alice", keepalive_s=0.05)
    async with Host(config) as host:
        alice = host.default_agent
        assert await alice.registry("set_tags", node_id=alice.node_id, tags=["x"])
        alice.tags = ("x",)
        await world.stop_rendezvous(lose_everything=True)
        await world.start_rendezvous()
        before = host.registrar.registrations
        await eventually(
            lambda: host.registrar.registrations > before, what="a new registration"
        )
        known = await alice.registry("lookup", node_id=alice.node_id)
        assert known["hostname"] == "alice"
        assert known["tags"] == ["x"]
        assert known["public"] is True


async def test_a_trusted_peer_that_is_gone_is_no_reason_to_register_again(
    world: World,
) -> None:
    async with Host(world.config("a", "alice", keepalive_s=0.05)) as host:
        host.default_agent.trust.trust(999, wall=0, mutual=True)
        await world.stop_rendezvous(lose_everything=True)
        await world.start_rendezvous()
        before = host.registrar.registrations
        await eventually(
            lambda: host.registrar.registrations > before, what="a new registration"
        )
        beats = host.registrar.heartbeats
        await eventually(
            lambda: host.registrar.heartbeats >= beats + 2, what="heartbeats"
        )
        assert host.registrar.registrations == before + 1


async def test_a_registration_that_breaks_the_code_is_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registrar, "REGISTER_GUARD_S", 0.0)
    async with Host(world.config("a", "alice")) as host:
        enrolment, before = host.registrar.enrolment, host.registrar.registrations
        announce = enrolment._announce

        async def broken(*_: object) -> None:
            monkeypatch.setattr(enrolment, "_announce", announce)
            raise ZeroDivisionError

        monkeypatch.setattr(enrolment, "_announce", broken)
        host.registrar.register_again(host.default_agent)
        await eventually(
            lambda: host.registrar.registrations > before, what="a new registration"
        )
    assert "heartbeat of alice failed" in caplog.text


async def test_a_refusal_that_is_remembered_collects_no_traceback(world: World) -> None:
    async with Host(world.config("a", "alice")) as host:
        lengths = []
        for _ in range(3):
            with pytest.raises(NotFound) as caught:
                await host.routing.find_path(host.default_agent, 999)
            lengths.append(len(caught.traceback))
        # The second and third come from memory, and through fewer functions.
        assert lengths[0] >= lengths[1] == lengths[2]


async def test_refusals_of_paths_are_bounded(world: World) -> None:
    async with Host(world.config("a", "alice")) as host:
        agent = host.default_agent
        for peer in range(1000, 1000 + 2 * MAX_PATH_ERRORS):
            agent.path_failed(peer, NotFound(f"node {peer}"))
        assert agent._path_errors is not None
        assert len(agent._path_errors) == MAX_PATH_ERRORS


async def test_a_damaged_trust_file(world: World) -> None:
    async with world.host("a", "alice", "bob"):
        pass
    (world.folder / "a" / "bob" / "trust.json").write_text("{")
    with pytest.raises(ConfigError, match=r"bob/trust\.json is not a trust file"):
        async with world.host("a", "alice", "bob"):
            pass


async def test_a_handler_that_fails_stays_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(agent: Agent, stream: Stream) -> None:
        raise ZeroDivisionError

    def worse(stream: Stream) -> None:
        raise KeyError(stream.local_port)

    host = world.host("a", "alice", "bob")
    host.services[3000] = broken
    async with host:
        alice, bob = host.agents["alice"], host.agents["bob"]
        bob.listen(3001, worse)
        for port in (3000, 3001):
            stream = await alice.dial(SocketAddress(bob.address, port), timeout=10)
            with pytest.raises(ConnectionReset):
                await stream.read_exactly(1)
        assert await echo(alice, bob) == b"hello"
    assert "port 3000 of bob failed" in caplog.text
    assert "listener on port 3001 failed" in caplog.text


async def test_a_datagram_that_breaks_an_agent_leaves_the_other_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with world.host("a", "alice", "bob", "carol") as host:
        alice, bob, carol = host.agents.values()

        react = reactions.on_tunnel_event

        def broken(agent: Agent, event: Event, now: float) -> None:
            if agent is bob:
                raise ZeroDivisionError
            react(agent, event, now)

        monkeypatch.setattr(reactions, "on_tunnel_event", broken)
        with pytest.raises(TimedOut):
            await alice.dial(SocketAddress(bob.address, 7), timeout=0.2)
        assert await echo(alice, carol) == b"hello"
    assert "agent bob failed" in caplog.text


async def test_agents_join_networks_by_number_and_by_name(world: World) -> None:
    async with world.host("a", "alice", is_public=False) as a:
        alice = a.default_agent
        for name in ("red", "blue"):
            await a.registry.create_network(
                alice.node_id,
                name,
                admin_token=ADMIN_TOKEN,
                join_rule="token",
                token=f"{name}-token",
            )
        networks = (
            NetworkToJoin("1", "red-token"),
            NetworkToJoin("blue", "blue-token"),
        )
        async with world.host(
            "b", "bob", "carol", is_public=False, networks=networks
        ) as b:
            bob, carol = b.agents.values()
            assert bob.networks == carol.networks == (1, 2)
            assert bob.info()["networks"][0]["network_id"] == 1
            # Members of a network need no handshake, private as they are.
            assert await echo(bob, carol) == b"hello"
            assert await echo(alice, bob) == b"hello"


async def test_progress_is_told(world: World) -> None:
    seen: list[tuple[int, int]] = []
    host = world.host("a", *(f"w{n}" for n in range(10)))
    host.on_progress = lambda done, total: seen.append((done, total))
    async with host:
        assert seen[-1] == (10, 10)
        assert len(seen) == 10


async def test_no_task_is_left_behind(world: World) -> None:
    before = len(asyncio.all_tasks())
    async with world.host("a", "alice") as a, world.host("b", "bob") as b:
        await dial_echo(a.default_agent, b.default_agent)
    await eventually(
        lambda: len(asyncio.all_tasks()) <= before, what="the end of all tasks"
    )


async def test_an_idle_agent_owns_no_task(world: World) -> None:
    async with world.host("a", *(f"w{n}" for n in range(50))) as host:
        before = len(asyncio.all_tasks())
        async with world.host("b", *(f"v{n}" for n in range(200))):
            assert len(asyncio.all_tasks()) - before < 20
        assert len(host.agents) == 50


async def test_streams_are_finished_before_the_host_stops(world: World) -> None:
    async with world.host("b", "bob") as b:
        received = bytearray()
        ended = asyncio.Event()

        async def collect(stream: Stream) -> None:
            while data := await stream.read():
                received.extend(data)
            ended.set()

        def on_stream(stream: Stream) -> None:
            b.spawn(collect(stream), name="collect")

        b.default_agent.listen(5000, on_stream)
        async with world.host("a", "alice") as a:
            remote = SocketAddress(b.default_agent.address, 5000)
            stream = await a.default_agent.dial(remote, timeout=10)
            await stream.write(b"x" * 200_000)
        async with asyncio.timeout(5):
            await ended.wait()
        assert len(received) == 200_000


async def test_a_registry_that_is_not_there(world: World) -> None:
    await world.stop_rendezvous()
    with pytest.raises(Unavailable, match=r"registry 127\.0\.0\.1:\d+ cannot be"):
        async with world.host("a", "alice"):
            pass


async def test_a_port_in_use(world: World) -> None:
    async with world.host("a", "alice") as a:
        taken = a.default_agent.socket.address
        config = world.config("b", "bob")
        spec = replace(config.agents[0], listen=taken)
        with pytest.raises(AlreadyExists, match=f"udp port {taken[1]} is in use"):
            async with world.host("b", "bob", agents=(spec,)):
                pass


async def test_a_damaged_identity(world: World) -> None:
    path = world.folder / "a" / "alice" / "identity.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"private_key": "AAAA"}')
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is damaged") as caught:
        async with world.host("a", "alice"):
            pass
    assert caught.value.hint


async def test_an_identity_that_others_can_read(world: World) -> None:
    async with world.host("a", "alice"):
        pass
    (world.folder / "a" / "alice" / "identity.json").chmod(0o644)
    with pytest.raises(PermissionDenied, match="mode 0644") as caught:
        async with world.host("a", "alice"):
            pass
    assert "chmod 600" in str(caught.value.hint)


async def test_one_identity_is_used_by_one_daemon(world: World) -> None:
    async with world.host("a", "alice"):
        with pytest.raises(AlreadyExists, match="another daemon runs"):
            async with world.host("a", "alice"):
                pass


async def test_a_home_that_is_a_file(world: World) -> None:
    (world.folder / "a").write_text("")
    with pytest.raises(StorageError, match="cannot make folder"):
        async with world.host("a", "alice"):
            pass


def test_a_host_without_agents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="at least one agent"):
        Host(HostConfig(home=tmp_path, agents=()))


async def test_names_on_a_host_are_unique(world: World) -> None:
    with pytest.raises(ConfigError, match="same name"):
        world.host("a", "alice", "alice")


def test_too_few_open_files_are_counted() -> None:
    with pytest.raises(Unavailable, match="too few") as caught:
        require_open_files(1 << 40)
    assert "ulimit" in str(caught.value.hint)
