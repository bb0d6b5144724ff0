"""Anything that is JSON gets a reply, and the directory stays what is stored."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfleet.protocol.registry.messages import decode_request, encode_message
from pilotfleet.protocol.registry.signatures import SIGNED_TYPES, sign_request
from pilotfleet.protocol.services.receipts import SignedReceipt
from pilotfleet.registry.service import MESSAGE_TYPES
from tests.registry.receipts import receipt, row
from tests.registry.test_directory import picture
from tests.registry.world import ADMIN_TOKEN, World

KINDS = sorted(MESSAGE_TYPES)
FIELDS = [
    "accept",
    "addr",
    "admin_token",
    "allowed_ports",
    "any",
    "beacon_id",
    "caller_node_id",
    "cursor",
    "delta",
    "description",
    "enterprise",
    "expires_at",
    "expr_policy",
    "from_node_id",
    "hostname",
    "hostname_prefix",
    "inviter_id",
    "join_rule",
    "justification",
    "lan_addrs",
    "limit",
    "listen_addr",
    "max_members",
    "min_polo",
    "name",
    "network_admin_token",
    "network_id",
    "new_owner_id",
    "new_public_key",
    "node_a",
    "node_b",
    "node_id",
    "online",
    "owner",
    "peer_id",
    "polo_score",
    "public",
    "public_key",
    "receipts",
    "receiver_node_id",
    "relay_only",
    "requester_id",
    "rules",
    "signature",
    "submitter_node_id",
    "tags",
    "target_node_id",
    "to_node_id",
    "token",
    "version",
]

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-1, 5)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["alice", "open", "token", "invite", "never", ADMIN_TOKEN])
    | st.text(max_size=20)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=6,
)
wild = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS) | values},
    optional=dict.fromkeys(FIELDS, values),
)

# Requests that mean something: they reach the rules behind the checks.
tame = st.fixed_dictionaries(
    {
        "type": st.sampled_from(KINDS),
        "node_id": st.integers(1, 3),
        "network_id": st.integers(0, 3),
    },
    optional={
        "accept": st.booleans(),
        "addr": st.just("h:1"),
        "admin_token": st.just(ADMIN_TOKEN),
        "beacon_id": st.integers(1, 3),
        "enterprise": st.booleans(),
        "from_node_id": st.integers(1, 3),
        "hostname": st.sampled_from(["", "alice", "bob"]),
        "inviter_id": st.integers(1, 3),
        "join_rule": st.sampled_from(["open", "token", "invite"]),
        "max_members": st.integers(0, 2),
        "name": st.sampled_from(["n", "m"]),
        "new_owner_id": st.integers(1, 3),
        "owner": st.sampled_from(["o", "p"]),
        "peer_id": st.integers(1, 3),
        "polo_score": st.integers(-3, 3),
        "public": st.booleans(),
        "requester_id": st.integers(1, 3),
        "tags": st.lists(st.sampled_from(["a", "b"]), max_size=3),
        "target_node_id": st.integers(1, 3),
        "to_node_id": st.integers(1, 3),
    },
)


def through_the_wire(message: dict[str, Any]) -> dict[str, Any]:
    return decode_request(encode_message(message))


# Receipts that are nearly good: one or two fields are of another type or size.
crooked = st.fixed_dictionaries(
    {},
    optional={
        name: values | st.integers(-1, 1 << 80)
        for name in SignedReceipt.__struct_fields__
    },
)


@given(changes=st.lists(crooked | values, min_size=1, max_size=4))
async def test_any_receipt_is_judged_alone(changes: list[Any]) -> None:
    world = World()
    hub, worker = await world.agents(2)
    good = row(receipt(hub, worker))
    rows = [good | c if isinstance(c, dict) else c for c in changes]
    request = {"type": "polo_receipts", "receipts": [*rows, row(receipt(hub, worker))]}
    reply = await world.handle(through_the_wire(request))
    assert len(reply["results"]) == len(rows) + 1
    # Whatever stands before it, the good one counts, and only once.
    assert world.directory.polo_score(hub.node) == -1
    assert world.directory.polo_score(worker.node) == 1


@given(request=wild)
async def test_any_object_gets_a_reply(request: dict[str, Any]) -> None:
    world = World()
    await world.agents(2)
    reply = await world.handle(through_the_wire(request))
    assert through_the_wire(reply) == reply
    assert isinstance(reply["type"], str)
    assert ("error" in reply) == (reply["type"] == "error")


@settings(max_examples=150)
@given(requests=st.lists(st.tuples(st.integers(1, 4), tame), max_size=25))
async def test_any_sequence_leaves_what_a_restart_would_find(
    requests: list[tuple[int, dict[str, Any]]],
) -> None:
    world = World()
    agents = {seed: world.stranger(seed) for seed in range(1, 5)}
    for seed in (1, 2, 3):
        await agents[seed].register()
    await world.admin("create_network", node_id=1, name="n")
    signed = [sign(agents[seed].identity, request) for seed, request in requests]
    # All at once: they meet in every order that turns allow.
    replies = await asyncio.gather(*map(world.handle, signed))
    assert all(isinstance(reply["type"], str) for reply in replies)
    reopened = await world.reopened()
    world.directory.expire_online(world.clock.wall())
    assert picture(reopened.directory) == picture(world.directory)
    hosts = [n.hostname for n in world.directory.nodes.by_id.values() if n.hostname]
    assert len(hosts) == len(set(hosts))


def sign(identity: Any, request: dict[str, Any]) -> dict[str, Any]:
    request = {"public_key": identity.public_key_text, **request}
    if request["type"] in SIGNED_TYPES:
        return sign_request(identity, request)
    return request
