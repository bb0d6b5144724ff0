"""Links that official 1.18.0 daemons make and revoke, as the registry lists them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from pilotfleet.client.registry import RegistryClient
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from tests.interop.test_trust import OURS, THEIRS, assert_mutual, eventually, sides
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World

pytestmark = [pytest.mark.official, pytest.mark.timeout(240)]

PAIRS = [(THEIRS, THEIRS), (THEIRS, OURS), (OURS, THEIRS)]


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        yield made


def links(net: World) -> list[tuple[int, int]]:
    """Return all links that the registry lists for its administrator."""

    async def ask() -> list[tuple[int, int]]:
        async with RegistryClient(parse_endpoint(net.registry)) as client:
            reply = await client.list_trust(None, 0, admin_token=net.admin_token)
            return [(row["a"], row["b"]) for row in reply["links"]]

    return asyncio.run(ask())


@pytest.mark.parametrize("pair", PAIRS, ids=["-".join(pair) for pair in PAIRS])
@pytest.mark.parametrize("public", ["", "--public"], ids=["relayed", "direct"])
def test_trust_that_was_approved_is_a_link_until_it_ends(
    net: World, pair: tuple[str, str], public: str
) -> None:
    a, b = sides(net, pair, b=public)
    a.ask("handshake", b.node)
    eventually(b.pending, "b is asked")
    assert links(net) == []
    b.ask("approve", a.node)
    assert_mutual(a, b)
    both = [tuple(sorted((int(a.node), int(b.node))))]
    eventually(lambda: links(net) == both, "the link")
    b.ask("untrust", a.node)
    eventually(lambda: not links(net), "its end")
