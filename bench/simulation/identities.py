"""Who the simulated agents are: made from their numbers, so nothing is kept of them."""

from __future__ import annotations

import binascii
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.identity import encode_key_text
from pilotfleet.protocol.registry.signatures import signed_text
from pilotfleet.registry.directory.records import (
    Claim,
    NodeRecord,
    encode_record,
    host_key,
    key_key,
    node_key,
)
from pilotfleet.registry.store.base import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS = 50
TEAM = 1_000
"""Agents that have a tag of their own, which one watcher follows."""
FIRST_PORT = 20_000


def public_key(name: str) -> bytes:
    """Return 32 bytes that no other agent has."""
    return blake2b(name.encode(), digest_size=32).digest()


def signed(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return a request with 64 bytes where the signature goes.

    They differ by agent and text as signatures do; see ``SampledSignatures``.
    """
    return {**request, "signature": _signature(name, signed_text(request))}


def own(name: str, kind: str, node: int) -> dict[str, Any]:
    """Return a request that says nothing but whose it is, such as a heartbeat."""
    # The text of these has the same form; a real host signs it once per key.
    signature = _signature(name, f"{kind}:{node}")
    return {"type": kind, "node_id": node, "signature": signature}


def _signature(name: str, words: str) -> str:
    mark = blake2b(words.encode(), key=name.encode(), digest_size=64)
    return binascii.b2a_base64(mark.digest(), newline=False).decode()


def tags_of(agent: int) -> list[str]:
    """Return the tags of an agent: everybody's, one in fifty's, and its team's."""
    return ["worker", f"group-{agent % GROUPS}", team_of(agent)]


def team_of(agent: int) -> str:
    """Return the tag that an agent shares with its neighbours."""
    return f"team-{agent // TEAM}"


def registration(name: str, agent: int, ip: str) -> dict[str, Any]:
    """Return the registration of an agent, as a host sends it."""
    port = FIRST_PORT + agent % 40_000
    request = {
        "type": "register",
        "listen_addr": f"{ip}:{port}",
        "public_key": encode_key_text(public_key(name)),
        "version": "1.18.0",
        "hostname": name,
    }
    return signed(name, request)


def stored(count: int, ip_of: list[str], per_host: int, wall: int) -> Iterator[Entry]:
    """Yield what a store has of so many agents; the n-th is node n."""
    revision = 0
    for agent in range(count):
        name, node = f"agent-{agent}", agent + 1
        ip, key = ip_of[agent // per_host], public_key(name)
        record = NodeRecord(
            node,
            key,
            wall,
            endpoint=f"{ip}:{FIRST_PORT + agent % 40_000}",
            version="1.18.0",
            public=True,
            verified=True,
            tags=tuple(sorted(tags_of(agent))),
        )
        claim = encode_record(Claim(node))
        for at, value in (
            (key_key(key), claim),
            (node_key(node), encode_record(record)),
            (host_key(name), claim),
        ):
            revision += 1
            yield Entry(at, value, revision)
