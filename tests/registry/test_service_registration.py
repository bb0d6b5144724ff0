"""How nodes come, stay and go (registry.md sections 6.1 to 6.5, 9)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pilotfleet.protocol.identity import Identity
from pilotfleet.registry.service import (
    EXTENSIONS,
    MAX_QUEUED_S,
    MAX_WAITED_S,
    PeerContext,
)
from pilotfleet.registry.turns import SHARE_S, Turns
from tests.registry.world import BEACON, START, World, error_of


async def test_ids_are_given_out_from_one_and_kept_for_the_key() -> None:
    world = World()
    first, second = await world.agents(2)
    assert (first.node, second.node) == (1, 2)
    reply = await first.register(listen_addr="198.51.100.1:5", version="9")
    assert reply == {
        "type": "register_ok",
        "node_id": 1,
        "network_id": 0,
        "address": "0:0000.0000.0001",
        "public_key": first.identity.public_key_text,
        "observed_addr": "198.51.100.1:5",
        "protocol_version": 1,
        "extensions": list(EXTENSIONS),
    }


async def test_only_the_first_registration_of_a_key_says_that_it_is_new() -> None:
    world = World()
    agent = world.stranger(1)
    assert (await agent.register())["new"] is True
    assert "new" not in await agent.register()
    await agent.ask("deregister")
    assert "new" not in await agent.register()


async def test_without_listen_addr_the_connection_is_the_endpoint() -> None:
    agent = World().stranger(1)
    reply = await agent.register(listen_addr="")
    assert reply["observed_addr"] == "198.51.100.7:40000"


async def test_a_registration_without_a_key_is_refused() -> None:
    reply = await World().ask("register", listen_addr=":1", public_key=5)
    assert error_of(reply) == "registration requires public_key"


@pytest.mark.parametrize(
    ("signature", "error"),
    [
        ("AAAA", "registration signature verification failed: "),
        ("?", "registration signature verification failed: "),
    ],
)
async def test_a_wrong_signature_is_refused(signature: str, error: str) -> None:
    world = World()
    key = Identity(bytes(32)).public_key_text
    reply = await world.ask("register", public_key=key, signature=signature)
    assert error_of(reply).startswith(error)
    assert world.directory.nodes.by_id == {}


async def test_a_key_that_is_none_is_refused_signed_and_unsigned() -> None:
    world = World()
    signed = await world.ask("register", public_key="AAAA", signature="AAAA")
    assert error_of(signed).startswith("registration: invalid public_key: ")
    unsigned = await world.ask("register", public_key="AAAA")
    assert error_of(unsigned).startswith("invalid public key: ")


async def test_signatures_can_be_demanded() -> None:
    world = World(require_signed_registration=True)
    key = Identity(bytes(32)).public_key_text
    reply = await world.ask("register", public_key=key)
    assert error_of(reply) == "registration requires a signature"


async def test_a_verified_key_is_not_given_up_to_unsigned_registrations() -> None:
    world = World()
    agent = await world.agent(1)
    request = {"public_key": agent.identity.public_key_text, "listen_addr": "x"}
    reply = await world.ask("register", **request)
    assert error_of(reply) == (
        "node 1: unsigned registration cannot modify a signature-verified key"
    )
    # The other way round is an upgrade.
    other = world.stranger(2)
    unsigned = {"public_key": other.identity.public_key_text}
    assert (await world.ask("register", **unsigned))["node_id"] == 2
    assert (await other.register())["node_id"] == 2
    assert error_of(await world.ask("register", **unsigned))


async def test_an_owner_is_bound_to_one_live_node() -> None:
    world = World()
    await world.agent(1, owner="o@example.test")
    thief = world.stranger(2)
    reply = await thief.register(owner="o@example.test")
    assert error_of(reply) == (
        'owner "o@example.test" is already bound to node 1 with a different key;'
        " use recover_identity to rotate the key"
    )


async def test_a_new_key_takes_over_the_dead_node_of_its_owner() -> None:
    world = World()
    old = await world.agent(1, owner="o@example.test")
    await old.ask("set_hostname", hostname="alice")
    await old.ask("deregister")
    heir = await world.agent(2, owner="o@example.test")
    assert heir.node == 1
    assert "hostname" not in await world.ask("lookup", node_id=1)
    # The old key is a stranger's now.
    assert (await old.register())["node_id"] == 2


async def test_a_live_node_without_owner_takes_one_once() -> None:
    world = World()
    agent = await world.agent(1)
    await agent.register(owner="o")
    await agent.register(owner="p")
    assert world.directory.nodes.by_id[1].record.owner == "o"
    # An owner that is somebody else's is not taken.
    other = await world.agent(2)
    await other.register(owner="o")
    assert world.directory.nodes.by_id[2].record.owner == ""


async def test_coming_back_keeps_the_id_and_networks_but_not_the_rest() -> None:
    world = World(stale_after_s=100)
    one, two = await world.agents(2)
    await world.admin("create_network", node_id=2, name="n")
    await one.ask("join_network", network_id=1)
    await one.ask("set_hostname", hostname="alice")
    await one.ask("set_tags", tags=["gpu"])
    await one.ask("set_visibility", public=True)
    await world.service.load()
    world.clock.time += 250
    await two.ask("heartbeat")
    await world.service.maintain()
    gone = await world.ask("lookup", node_id=1)
    assert error_of(gone) == "node 1: node not found"
    rows = (await world.ask("list_nodes", network_id=1))["nodes"]
    assert rows[0] == {
        "node_id": 1,
        "address": "1:0001.0000.0001",
        "offline": True,
        "role": "member",
    }
    assert (await one.register())["node_id"] == 1
    found = await world.ask("lookup", node_id=1)
    assert found["networks"] == [0, 1]
    assert found["public"] is False
    assert not {"tags", "hostname"} & found.keys()
    assert (await two.ask("set_hostname", hostname="alice"))["hostname"] == "alice"


async def test_a_hostname_can_be_asked_for_at_registration() -> None:
    world = World()
    one, two = world.stranger(1), world.stranger(2)
    assert (await one.register(hostname="alice"))["hostname"] == "alice"
    taken = await two.register(hostname="alice")
    assert taken["hostname_error"] == 'hostname "alice" already in use'
    bad = await two.register(hostname="Bob!")
    assert bad["type"] == "register_ok"
    assert bad["hostname_error"].startswith("hostname must be lowercase")
    assert (await one.register(hostname="anna"))["hostname"] == "anna"
    assert (await two.register(hostname="alice"))["hostname"] == "alice"
    assert (await one.register())["hostname"] == "anna"


async def test_a_full_registry_says_so() -> None:
    world = World(max_nodes=2)
    await world.agents(2)
    late = world.stranger(3)
    assert error_of(await late.register()) == "registry full"


async def test_dead_nodes_are_not_remembered_without_bound() -> None:
    world = World(max_nodes=1)
    for seed in range(1, 5):
        agent = await world.agent(seed)
        await agent.ask("deregister")
    assert error_of(await world.stranger(9).register()) == "registry full"
    assert (await agent.register())["node_id"] == 4


@pytest.mark.parametrize("field", ["listen_addr", "owner"])
async def test_long_fields_are_refused(field: str) -> None:
    agent = World().stranger(1)
    assert "too long" in error_of(await agent.register(**{field: "x" * 1000}))


async def test_a_herd_is_told_when_to_come_back() -> None:
    world = World(new_nodes_per_second_per_ip=1.0, new_nodes_burst_per_ip=2.0)
    await world.agents(2)
    late = world.stranger(3)
    reply = await late.register()
    assert "rate limited" in error_of(reply)
    assert reply["retry_after"] > 0
    local = {"type": "register", "public_key": late.identity.public_key_text}
    answer = await world.handle(local, PeerContext("127.0.0.1"))
    assert answer["type"] == "register_ok"
    world.clock.time += 2
    assert (await late.register())["type"] == "register_ok"


async def test_heartbeat_refreshes_and_tells_the_time() -> None:
    world = World()
    (agent,) = await world.agents(1)
    world.clock.time += 500
    reply = await agent.ask("heartbeat")
    assert reply == {"type": "heartbeat_ok", "time": int(START) + 500}
    found = await world.ask("lookup", node_id=1)
    assert found["last_seen_unix"] == int(START) + 500


async def test_heartbeat_of_an_unknown_node_has_the_words_that_daemons_know() -> None:
    agent = World().stranger(1)
    reply = await agent.ask("heartbeat", node_id=77)
    assert error_of(reply) == "node 77: node not found"


@pytest.mark.parametrize(
    ("signature", "error"),
    [
        ("", "signature required for authenticated node"),
        (5, "signature required for authenticated node"),
        ("?", "invalid signature encoding: "),
        ("AAAA", "signature verification failed"),
    ],
)
async def test_signature_problems_have_their_texts(signature: Any, error: str) -> None:
    world = World()
    await world.agents(1)
    reply = await world.ask("heartbeat", node_id=1, signature=signature)
    assert error_of(reply).startswith(error)


async def test_deregistration_removes_everything_but_the_id() -> None:
    world = World()
    one, two = await world.agents(2)
    for agent, name in ((one, "alice"), (two, "bob")):
        await agent.ask("set_hostname", hostname=name)
    enterprise = {"enterprise": True, "join_rule": "invite"}
    await world.admin("create_network", node_id=1, name="n", **enterprise)
    await one.ask("invite_to_network", network_id=1, inviter_id=1, target_node_id=2)
    await one.ask("report_trust", peer_id=2)
    assert await one.ask("deregister") == {"type": "deregister_ok"}
    assert error_of(await world.ask("lookup", node_id=1))
    assert (await two.ask("poll_invites"))["invites"] == []
    assert (await world.ask("list_nodes", network_id=1))["nodes"] == []
    assert (await two.ask("set_hostname", hostname="alice"))["hostname"] == "alice"
    # A repetition, and one for a node that never was, are fine.
    assert await one.ask("deregister") == {"type": "deregister_ok"}
    assert await world.ask("deregister", node_id=55) == {"type": "deregister_ok"}
    assert (await one.register())["node_id"] == 1
    assert (await world.ask("check_trust", node_id=1, peer_id=2))["trusted"] is True


async def test_only_the_node_or_the_administrator_deregisters() -> None:
    world = World()
    await world.agents(2)
    assert error_of(await world.ask("deregister", node_id=1))
    assert (await world.admin("deregister", node_id=1))["type"] == "deregister_ok"
    wrong = await world.ask("deregister", node_id=2, admin_token="guess")
    assert error_of(wrong) == "signature required for authenticated node"


async def test_lookup_tells_where_a_node_is_only_when_it_is_public() -> None:
    world = World()
    agent = await world.agent(1, version="1.18.0", lan_addrs=["192.168.1.5:4000"])
    private = await world.ask("lookup", node_id=1)
    assert not {"real_addr", "endpoint", "lan_addrs"} & private.keys()
    await agent.ask("set_visibility", public=True)
    public = await world.ask("lookup", node_id=1)
    assert public["real_addr"] == public["endpoint"] == "203.0.113.5:4000"
    await agent.register(relay_only=True)
    relayed = await world.ask("lookup", node_id=1)
    assert relayed["real_addr"] == relayed["endpoint"] == BEACON
    assert relayed["relay_only"] is True


async def test_unknown_types_are_quoted_and_cut() -> None:
    world = World()
    reply = await world.ask("get_horoscope")
    assert error_of(reply) == 'unknown message type: "get_horoscope"'
    assert len(error_of(await world.ask("x" * 100_000))) < 100
    assert error_of(await world.handle({})) == 'unknown message type: ""'


class _Busy:
    """Turns that somebody else has used up, on a clock moved by hand."""

    def __init__(self, world: World) -> None:
        self.time = 0.0
        self.turns = world.service._desk.turns = Turns(lambda: self.time)

    async def work(self) -> None:
        """Take a turn, and all of its time."""
        await self.turns.take()
        self.time += SHARE_S


async def test_nobody_is_registered_who_hung_up_while_it_waited() -> None:
    world = World()
    busy, peer = _Busy(world), PeerContext("203.0.113.5")
    key = Identity(bytes(32)).public_key_text
    request = {"type": "register", "public_key": key, "listen_addr": "203.0.113.5:1"}
    working = asyncio.create_task(busy.work())
    waiting = asyncio.create_task(world.service.handle(request, peer))
    await asyncio.sleep(0)
    peer.is_gone = True
    assert error_of(await waiting) == "the connection is gone"
    assert not world.directory.nodes.by_id
    await working


async def test_a_queue_that_is_too_long_is_told_to_those_who_come() -> None:
    world = World()
    busy = _Busy(world)
    working = [asyncio.create_task(busy.work()) for _ in range(3)]
    await asyncio.sleep(0)
    busy.time += MAX_QUEUED_S + 1
    reply = await world.stranger(1).register()
    assert error_of(reply) == "rate limited: too many registrations"
    assert reply["retry_after"] >= MAX_QUEUED_S
    await asyncio.gather(*working)
    assert "error" not in await world.stranger(1).register()


async def test_who_has_waited_too_long_is_told_to_come_back() -> None:
    world = World()
    busy = _Busy(world)
    working = asyncio.create_task(busy.work())
    waiting = asyncio.create_task(world.stranger(1).register())
    await asyncio.sleep(0)
    world.clock.time += MAX_WAITED_S + 1
    reply = await waiting
    assert error_of(reply) == "rate limited: too many registrations"
    assert reply["retry_after"] == MAX_WAITED_S + 1
    assert not world.directory.nodes.by_id
    await working
