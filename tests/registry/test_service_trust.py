"""Resolving, trust, relayed handshakes and keys (6.6, 6.10 to 6.14)."""

from __future__ import annotations

import pytest

from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.registry.signatures import sign_request
from pilotfleet.registry.directory.records import trust_key
from pilotfleet.registry.store.base import Change
from tests.registry.world import BEACON, Agent, World, error_of


async def test_resolve_takes_public_targets_trust_or_a_shared_network() -> None:
    world = World()
    one, two = await world.agents(2)
    await two.register(lan_addrs=["192.168.1.5:4000", 7, ""])
    denied = await one.ask("resolve", requester_id=1, node_id=2)
    assert error_of(denied) == (
        "resolve denied: node 2 is private (establish mutual trust first)"
    )
    expected = {
        "type": "resolve_ok",
        "node_id": 2,
        "real_addr": "203.0.113.5:4000",
        "lan_addrs": ["192.168.1.5:4000"],
        "key_age_days": 0,
    }
    await two.ask("report_trust", peer_id=1)
    assert await one.ask("resolve", requester_id=1, node_id=2) == expected
    await two.ask("revoke_trust", peer_id=1)
    assert error_of(await one.ask("resolve", requester_id=1, node_id=2))
    await world.admin("create_network", node_id=2, name="n")
    await one.ask("join_network", network_id=1)
    assert await one.ask("resolve", requester_id=1, node_id=2) == expected
    await one.ask("leave_network", network_id=1)
    await two.ask("set_visibility", public=True)
    assert await one.ask("resolve", requester_id=1, node_id=2) == expected


async def test_resolve_names_who_is_unknown() -> None:
    world = World()
    (agent,) = await world.agents(1)
    stranger = await agent.ask("resolve", requester_id=9, node_id=1)
    assert error_of(stranger) == ("resolve denied: requester node 9 is not registered")
    target = await agent.ask("resolve", requester_id=1, node_id=9)
    assert error_of(target) == "node 9: node not found"
    unsigned = await world.ask("resolve", requester_id=1, node_id=1)
    assert error_of(unsigned) == "signature required for authenticated node"


async def test_relay_only_nodes_are_never_located() -> None:
    world = World()
    one = await world.agent(1)
    two = await world.agent(2, relay_only=True, lan_addrs=["192.168.1.5:4000"])
    await two.ask("set_visibility", public=True)
    reply = await one.ask("resolve", requester_id=1, node_id=2)
    assert reply["relay_only"] is True
    assert reply["real_addr"] == BEACON
    assert "lan_addrs" not in reply


async def test_punch_obeys_the_rule_of_resolve() -> None:
    world = World()
    one, two = await world.agents(2)
    await two.register(listen_addr="203.0.113.9:9")
    fields = {"requester_id": 1, "node_a": 2, "node_b": 1}
    assert "is private" in error_of(await one.ask("punch", **fields))
    await two.ask("report_trust", peer_id=1)
    assert await one.ask("punch", **fields) == {
        "type": "punch_ok",
        "node_a": 2,
        "node_a_addr": "203.0.113.9:9",
        "node_b": 1,
        "node_b_addr": "203.0.113.5:4000",
    }
    outsider = await one.ask("punch", requester_id=3, node_a=1, node_b=2)
    assert error_of(outsider) == "punch denied: requester must be participant"


async def checks(world: World, node: int, peer: int) -> bool:
    """Tell whether the gate of ``node`` is told to let ``peer`` in."""
    reply = await world.ask("check_trust", node_id=node, peer_id=peer)
    assert reply["type"] == "check_trust_ok"
    trusted: bool = reply["trusted"]
    return trusted


async def locates(agent: Agent, peer: int) -> bool:
    """Tell whether ``agent`` may resolve ``peer``."""
    reply = await agent.ask("resolve", requester_id=agent.node, node_id=peer)
    return bool(reply["type"] == "resolve_ok")


async def test_a_report_opens_the_reporter_only() -> None:
    world = World()
    one, two = await world.agents(2)
    for _ in range(2):
        reply = await one.ask("report_trust", peer_id=2)
        assert reply == {"type": "report_trust_ok"}
    # The other has not said a word: its gate stays closed, and so does its place.
    assert not await checks(world, 2, 1)
    assert not await locates(one, 2)
    assert await checks(world, 1, 2)
    assert await locates(two, 1)
    await two.ask("report_trust", peer_id=1)
    assert await checks(world, 2, 1)
    assert await locates(one, 2)
    assert world.directory.trust.pairs == 1
    assert await two.ask("revoke_trust", peer_id=1) == {"type": "revoke_trust_ok"}
    assert not await checks(world, 1, 2)
    assert not await checks(world, 2, 1)
    assert world.directory.trust.pairs == 0
    late = await one.ask("revoke_trust", peer_id=2)
    assert error_of(late) == "no trust pair between 1 and 2"
    unknown = await one.ask("report_trust", peer_id=9)
    assert error_of(unknown) == "node 9: node not found"


async def test_a_shared_network_needs_no_consent() -> None:
    world = World()
    one, _ = await world.agents(2)
    await world.admin("create_network", node_id=2, name="n")
    await one.ask("join_network", network_id=1)
    assert await checks(world, 1, 2)
    assert await checks(world, 2, 1)


async def test_pairs_of_an_older_release_count_for_both() -> None:
    world = World()
    one, two = await world.agents(2)
    await world.store.write([Change(trust_key(2, 1), b"1", None)])
    one.world = two.world = again = await world.reopened()
    assert await checks(again, 1, 2)
    assert await checks(again, 2, 1)
    assert await locates(two, 1)
    assert again.directory.trust.pairs == 1
    await one.ask("report_trust", peer_id=2)
    await one.ask("revoke_trust", peer_id=2)
    assert not await checks(again, 2, 1)
    assert not await checks(again, 1, 2)
    assert not [e.key for e in await world.store.load() if e.key.startswith("trust.")]


async def test_consent_outlives_the_registry() -> None:
    world = World()
    one, two = await world.agents(2)
    await two.ask("set_visibility", public=True)
    assert await locates(one, 2)
    await two.ask("report_trust", peer_id=1)
    two.world = again = await world.reopened()
    assert await checks(again, 2, 1)
    assert not await checks(again, 1, 2)
    assert await locates(two, 1)


async def test_a_request_counts_when_it_is_answered_by_a_report_alone() -> None:
    world = World()
    alice, bob = await world.agents(2)
    await alice.ask("request_handshake", from_node_id=1, to_node_id=2)
    assert not await checks(world, 1, 2), "a request is no trust yet"
    await bob.ask("report_trust", peer_id=1)
    assert await checks(world, 1, 2)
    assert await checks(world, 2, 1)


async def test_who_looked_for_a_node_is_found_by_it_but_not_opened() -> None:
    """A direct request leaves no more trace than the resolve before it."""
    world = World()
    alice, bob = await world.agents(2)
    assert not await locates(bob, 1)
    await bob.ask("set_visibility", public=True)
    assert await locates(alice, 2)
    assert not await locates(bob, 1), "bob has not said yes"
    await bob.ask("report_trust", peer_id=1)
    assert await locates(bob, 1)
    assert not await checks(world, 1, 2)
    # And what alice's daemon does when the answer arrives.
    await alice.ask("report_trust", peer_id=2)
    assert await checks(world, 1, 2)


async def test_who_calls_after_it_was_trusted_is_found_too() -> None:
    world = World()
    alice, bob = await world.agents(2)
    await bob.ask("report_trust", peer_id=1)
    assert not await locates(bob, 1)
    assert await locates(alice, 2)
    assert await locates(bob, 1)
    assert not await checks(world, 1, 2)
    await alice.ask("report_trust", peer_id=2)
    await alice.ask("revoke_trust", peer_id=2)
    assert not await locates(bob, 1)


async def test_an_answer_to_a_direct_request_waits_in_the_box() -> None:
    world = World()
    alice, bob = await world.agents(2)
    reply = await bob.ask("respond_handshake", peer_id=1, accept=True)
    assert reply == {"type": "respond_handshake_ok", "accept": True, "peer_id": 1}
    assert world.notified == [1]
    (answer,) = (await alice.ask("poll_handshakes"))["responses"]
    assert (answer["from_node_id"], answer["accept"]) == (2, True)
    assert await checks(world, 2, 1)
    assert not await checks(world, 1, 2), "alice decides that herself"


async def test_revoked_trust_is_not_brought_back_by_the_other_side() -> None:
    world = World()
    alice, bob = await world.agents(2)
    await alice.ask("request_handshake", from_node_id=1, to_node_id=2)
    await bob.ask("report_trust", peer_id=1)
    await alice.ask("revoke_trust", peer_id=2)
    # Bob was away, and says when he registers what he still believes.
    await bob.ask("report_trust", peer_id=1)
    assert not await checks(world, 1, 2)
    assert await checks(world, 2, 1)


async def test_who_revokes_is_not_located_for_having_looked_earlier() -> None:
    world = World()
    alice, bob = await world.agents(2)
    await bob.ask("set_visibility", public=True)
    assert await locates(alice, 2)
    await bob.ask("report_trust", peer_id=1)
    assert await locates(bob, 1)
    await alice.ask("revoke_trust", peer_id=2)
    await bob.ask("report_trust", peer_id=1)
    assert not await locates(bob, 1)


async def test_a_box_that_is_looked_into_keeps_what_is_not_acknowledged() -> None:
    world = World()
    alice, bob, carol = await world.agents(3)
    for agent in (alice, carol):
        fields = {"from_node_id": agent.node, "to_node_id": 2, "justification": "hi"}
        await agent.ask("request_handshake", **fields)
    await carol.ask("respond_handshake", peer_id=2, accept=False)
    first = await bob.ask("poll_handshakes", keep=True)
    assert await bob.ask("poll_handshakes", keep=True) == first
    ids = [row["id"] for row in (*first["requests"], *first["responses"])]
    assert len(set(ids)) == 3
    # What comes in between is not acknowledged by the way.
    await carol.ask("respond_handshake", peer_id=2, accept=True)
    done = await bob.ask("ack_handshakes", ids=[ids[0], ids[2], "nonsense"])
    assert done == {"type": "ack_handshakes_ok"}
    left = await bob.ask("poll_handshakes", keep=True)
    assert [row["from_node_id"] for row in left["requests"]] == [3]
    assert [row["accept"] for row in left["responses"]] == [True]
    await bob.ask("ack_handshakes", ids=ids)
    # The official way still empties it, and sees no ids.
    rest = await bob.ask("poll_handshakes")
    assert not rest["requests"]
    assert "id" not in rest["responses"][0]
    assert (await bob.ask("poll_handshakes", keep=True))["responses"] == []


async def test_only_the_owner_of_a_box_acknowledges() -> None:
    world = World()
    alice, bob = await world.agents(2)
    await alice.ask("request_handshake", from_node_id=1, to_node_id=2)
    ((row),) = (await bob.ask("poll_handshakes", keep=True))["requests"]
    stolen = sign_request(
        bob.identity, {"type": "ack_handshakes", "node_id": 2, "ids": []}
    )
    for request in (
        {"type": "ack_handshakes", "node_id": 2, "ids": [row["id"]]},
        {**stolen, "ids": [row["id"]]},
    ):
        assert "signature" in error_of(await world.handle(request))
    assert len((await bob.ask("poll_handshakes"))["requests"]) == 1


async def test_trust_with_unknown_nodes_is_denied() -> None:
    world = World()
    await world.agents(1)
    for peer in (0, 9):
        reply = await world.ask("check_trust", node_id=1, peer_id=peer)
        assert reply == {"type": "check_trust_ok", "trusted": False}


async def test_a_relayed_handshake_as_1_18_plays_it() -> None:
    world = World()
    alice, bob = await world.agents(2)
    ask = {"from_node_id": 1, "to_node_id": 2, "justification": "hello"}
    reply = await alice.ask("request_handshake", **ask)
    assert reply == {"type": "request_handshake_ok", "status": "delivered"}
    assert world.notified == [2]
    again = await alice.ask("request_handshake", **ask)
    assert error_of(again) == "handshake request already pending from node 1"
    now = int(world.clock.wall())
    waiting = {"from_node_id": 1, "justification": "hello", "timestamp": now}
    assert await bob.ask("poll_handshakes") == {
        "type": "poll_handshakes_ok",
        "requests": [waiting],
        "responses": [],
    }
    assert (await bob.ask("poll_handshakes"))["requests"] == []
    reply = await bob.ask("respond_handshake", peer_id=1, accept=True)
    assert reply == {"type": "respond_handshake_ok", "accept": True, "peer_id": 1}
    assert world.notified == [2, 1]
    again = await bob.ask("respond_handshake", peer_id=1, accept=True)
    assert error_of(again) == "no pending handshake request from node 1"
    answer = {"from_node_id": 2, "accept": True, "timestamp": now}
    assert (await alice.ask("poll_handshakes"))["responses"] == [answer]
    trusted = await world.ask("check_trust", node_id=1, peer_id=2)
    assert trusted["trusted"] is True
    # Nothing is left in the store but the pair.
    keys = [entry.key for entry in await world.store.load()]
    assert not [key for key in keys if key.startswith("mail.")]


async def test_rejecting_needs_no_request_and_makes_no_trust() -> None:
    world = World()
    alice, bob = await world.agents(2)
    await bob.ask("respond_handshake", peer_id=1, accept=False)
    (answer,) = (await alice.ask("poll_handshakes"))["responses"]
    assert answer["accept"] is False
    trusted = await world.ask("check_trust", node_id=1, peer_id=2)
    assert trusted["trusted"] is False
    unknown = await bob.ask("respond_handshake", peer_id=9, accept=False)
    assert error_of(unknown) == "node 9: node not found"


async def test_handshakes_have_their_own_signature_texts() -> None:
    world = World()
    await world.agents(2)
    for kind, fields, word in (
        ("request_handshake", {"from_node_id": 1, "to_node_id": 2}, "request"),
        ("respond_handshake", {"node_id": 1, "peer_id": 2}, "response"),
    ):
        missing = await world.ask(kind, **fields)
        assert error_of(missing) == f"handshake {word} requires signature"
        wrong = await world.ask(kind, **fields, signature="AAAA")
        assert error_of(wrong) == f"handshake {word} signature verification failed"


async def test_boxes_are_bounded() -> None:
    world = World()
    agents = await world.agents(102)
    target = agents[-1]
    long = {"from_node_id": 1, "to_node_id": 102, "justification": "ü" * 513}
    reply = await agents[0].ask("request_handshake", **long)
    assert error_of(reply) == "justification too large: 1026 bytes (max 1024)"
    for agent in agents[:100]:
        ask = {"from_node_id": agent.node, "to_node_id": 102}
        await agent.ask("request_handshake", **ask)
    late = {"from_node_id": 101, "to_node_id": 102}
    full = await agents[100].ask("request_handshake", **late)
    assert error_of(full) == "handshake inbox full for node 102"
    assert len((await target.ask("poll_handshakes"))["requests"]) == 100
    for agent in agents[:101]:
        await agent.ask("respond_handshake", peer_id=102, accept=False)
    responses = (await target.ask("poll_handshakes"))["responses"]
    assert [r["from_node_id"] for r in responses] == list(range(2, 102))


async def test_a_newer_answer_replaces_the_older_one() -> None:
    world = World()
    alice, bob = await world.agents(2)
    await alice.ask("request_handshake", from_node_id=1, to_node_id=2)
    await bob.ask("respond_handshake", peer_id=1, accept=False)
    await bob.ask("respond_handshake", peer_id=1, accept=True)
    (answer,) = (await alice.ask("poll_handshakes"))["responses"]
    assert answer["accept"] is True


async def test_the_mark_of_a_request_survives_the_poll_and_a_restart() -> None:
    world = World()
    alice, bob = await world.agents(2)
    await alice.ask("request_handshake", from_node_id=1, to_node_id=2)
    await bob.ask("poll_handshakes")
    bob.world = await world.reopened()
    assert (await bob.ask("respond_handshake", peer_id=1, accept=True))["accept"]


async def test_rotating_moves_everything_to_the_new_key() -> None:
    world = World()
    one, _ = await world.agents(2)
    await one.ask("report_trust", peer_id=2)
    await one.ask("heartbeat")
    new = Identity(b"n" * 32)
    world.clock.time += 3 * 86_400
    reply = await one.ask("rotate_key", new_public_key=new.public_key_text)
    assert reply == {
        "type": "rotate_key_ok",
        "node_id": 1,
        "address": "0:0000.0000.0001",
        "public_key": new.public_key_text,
    }
    # The old signature was remembered as good; it is not any more.
    assert error_of(await one.ask("heartbeat")) == "signature verification failed"
    old, one.identity = one.identity, new
    assert (await one.ask("heartbeat"))["type"] == "heartbeat_ok"
    assert (await world.ask("lookup", node_id=1))["key_generation"] == 1
    assert (await one.register())["node_id"] == 1
    one.identity = old
    assert (await one.register())["node_id"] == 3


async def test_rotation_problems_have_their_texts() -> None:
    world = World()
    one, two = await world.agents(2)
    new = Identity(b"n" * 32).public_key_text
    for fields, error in (
        ({}, "rotate_key requires new_public_key"),
        ({"new_public_key": "AAAA"}, "invalid new_public_key: "),
        ({"new_public_key": new}, "rotate_key requires a valid signature"),
        (
            {"new_public_key": new, "signature": "AAAA"},
            "signature verification failed",
        ),
    ):
        reply = await world.ask("rotate_key", node_id=1, **fields)
        assert error_of(reply).startswith(error)
    taken = two.identity.public_key_text
    reply = await one.ask("rotate_key", new_public_key=taken)
    assert error_of(reply) == "invalid new_public_key: key is already in use"


async def test_key_info_tells_the_age() -> None:
    world = World()
    (agent,) = await world.agents(1)
    world.clock.time += 2.5 * 86_400
    assert await world.ask("get_key_info", node_id=1) == {
        "type": "get_key_info_ok",
        "node_id": 1,
        "created_at": "2026-11-22T13:51:27Z",
        "rotate_count": 0,
        "key_age_days": 2,
    }
    new = Identity(b"n" * 32).public_key_text
    await agent.ask("rotate_key", new_public_key=new)
    info = await world.ask("get_key_info", node_id=1)
    assert info["rotated_at"] == "2026-11-25T01:51:27Z"
    assert (info["rotate_count"], info["key_age_days"]) == (1, 0)


async def test_an_expired_key_heartbeats_no_more() -> None:
    world = World()
    (agent,) = await world.agents(1)
    soon = "2026-11-22T23:00:00Z"
    plain = await agent.ask("set_key_expiry", expires_at=soon)
    assert "requires enterprise network membership" in error_of(plain)
    await world.admin("create_network", node_id=1, name="n", enterprise=True)
    reply = await agent.ask("set_key_expiry", expires_at=soon)
    assert reply["expires_at"] == soon
    assert (await agent.ask("heartbeat"))["key_expiry_warning"] is True
    assert (await world.ask("get_key_info", node_id=1))["expires_at"] == soon
    world.clock.time += 86_400
    assert error_of(await agent.ask("heartbeat")) == f"node 1: key expired at {soon}"
    assert (await agent.ask("set_key_expiry", expires_at="never"))["type"] != "error"
    assert "key_expiry_warning" not in await agent.ask("heartbeat")


@pytest.mark.parametrize(
    ("expires_at", "error"),
    [
        ("2020-01-01T00:00:00Z", "expires_at must be in the future"),
        ("2200-01-01T00:00:00+02:00", "expires_at cannot be more than 10 years away"),
        ("tomorrow", 'invalid expires_at "tomorrow"'),
        ("0001-01-01T00:00:00+14:00", "invalid expires_at"),
        ("9999-12-31T23:59:59-14:00", "invalid expires_at"),
        ("1960-01-01T00:00:00", "expires_at must be in the future"),
    ],
)
async def test_key_lifetimes_have_a_range(expires_at: str, error: str) -> None:
    world = World()
    (agent,) = await world.agents(1)
    await world.admin("create_network", node_id=1, name="n", enterprise=True)
    reply = await agent.ask("set_key_expiry", expires_at=expires_at)
    assert error_of(reply).startswith(error)


async def test_a_signature_for_one_peer_is_none_for_another() -> None:
    world = World()
    one, _, _ = await world.agents(3)
    request = {"type": "report_trust", "node_id": 1, "peer_id": 2}
    signed = sign_request(one.identity, request)
    reply = await world.handle({**signed, "peer_id": 3})
    assert error_of(reply) == "signature verification failed"
