"""Who trusts whom, from the registry through the daemon to a program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import NotSupported, ProtocolError
from pilotfleet.fleet import trustlinks
from pilotfleet.fleet.agent import Agent
from pilotfleet.registry import service
from tests.node.support import ADMIN_TOKEN, World, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.host import Host

LISTED = {"type": "list_trust_ok", "generation": 7, "links": [], "next_cursor": ""}


@pytest.fixture
async def net(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as world:
        yield world


@pytest.fixture
async def host(net: World) -> AsyncIterator[Host]:
    """Agents of one network, and one of none."""
    host = net.host(
        "h", "a", "b", "c", "d", "alone", is_public=False, socket=net.folder / "sock"
    )
    async with host:
        network = await host.registry.create_network(
            host.agents["a"].node_id, "fleet", admin_token=ADMIN_TOKEN
        )
        for name in "bcd":
            await host.agents[name].join_network(network)
        yield host


def node(host: Host, name: str) -> int:
    return host.agents[name].node_id


async def link(host: Host, one: str, other: str) -> tuple[int, int]:
    """Have two agents report their trust."""
    for name, peer in ((one, other), (other, one)):
        await host.agents[name].registry(
            "report_trust", node_id=node(host, name), peer_id=node(host, peer)
        )
    low, high = sorted((node(host, one), node(host, other)))
    return low, high


async def test_agent_reads_the_links_of_its_network(net: World, host: Host) -> None:
    ab, bc = await link(host, "a", "b"), await link(host, "b", "c")
    await link(host, "alone", "d")
    async with await Agent.connect(net.folder / "sock", name="a") as agent:
        known = await agent.trust_links()
        assert known is not None
        assert known.links == {ab, bc}
        assert await agent.trust_links(generation=known.generation) is None
        await host.agents["c"].registry(
            "revoke_trust", node_id=node(host, "c"), peer_id=node(host, "b")
        )
        after = await agent.trust_links(generation=known.generation)
        assert after is not None
        assert after.links == {ab}


async def test_stranger_reads_its_own_only(net: World, host: Host) -> None:
    await link(host, "a", "b")
    own = await link(host, "alone", "d")
    async with await Agent.connect(net.folder / "sock", name="alone") as agent:
        known = await agent.trust_links()
    assert known is not None
    assert known.links == {own}


async def test_administrator_reads_all(host: Host) -> None:
    links = [await link(host, "a", "b"), await link(host, "alone", "d")]
    reply = await host.registry.list_trust(None, 0, admin_token=ADMIN_TOKEN)
    assert [(row["a"], row["b"]) for row in reply["links"]] == sorted(links)
    own = await host.registry.list_trust(
        host.agents["c"].identity, node(host, "c"), generation=3, limit=5
    )
    assert own["links"] == [{"a": links[0][0], "b": links[0][1]}]


async def test_pages_are_put_together(
    net: World, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trustlinks, "PAGE", 1)
    links = {await link(host, *pair) for pair in ("ab", "ac", "ad", "bc", "cd")}
    async with await Agent.connect(net.folder / "sock") as agent:
        known = await agent.trust_links()
        assert known is not None
        assert known.links == links
        monkeypatch.setattr(trustlinks, "MAX_LINKS", 2)
        with pytest.raises(ProtocolError, match="more than 2 trust links"):
            await agent.trust_links()


async def test_registry_without_the_extension_is_not_asked(
    net: World, host: Host
) -> None:
    host.registry.extensions -= {"trust-links"}
    async with await Agent.connect(net.folder / "sock") as agent:
        with pytest.raises(NotSupported, match="does not tell who trusts whom"):
            await agent.trust_links()


@pytest.mark.parametrize(
    "answer",
    [
        {"type": "list_trust_ok"},
        LISTED | {"links": [{"a": 1}]},
        LISTED | {"links": [{"a": 1, "b": "2"}]},
        LISTED | {"links": {"a": 1}},
        LISTED | {"generation": "x"},
        LISTED | {"next_cursor": None},
    ],
)
async def test_answer_of_another_form_is_an_error(
    net: World, host: Host, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]
) -> None:
    monkeypatch.setitem(service._HANDLERS, "list_trust", lambda *_: answer)
    async with await Agent.connect(net.folder / "sock") as agent:
        with pytest.raises(ProtocolError, match="list of trust links"):
            await agent.trust_links()


async def test_pages_without_an_end_are_given_up(
    net: World, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trustlinks, "MAX_PAGES", 5)
    endless = LISTED | {"next_cursor": "1.2"}
    monkeypatch.setitem(service._HANDLERS, "list_trust", lambda *_: endless)
    async with await Agent.connect(net.folder / "sock") as agent:
        with pytest.raises(ProtocolError):
            await agent.trust_links()


async def test_operation_hands_on_its_fields_and_no_others(
    net: World, host: Host
) -> None:
    first = await link(host, "a", "b")
    await link(host, "c", "d")
    async with await DaemonClient.connect(net.folder / "sock") as client:
        page = await client.call("list_trust", agent="c", limit=1, node_id=99, x=1)
        assert page["links"] == [{"a": first[0], "b": first[1]}]
        rest = await client.call("list_trust", agent="c", cursor=page["next_cursor"])
        assert len(rest["links"]) == 1
        same = await client.call("list_trust", generation=page["generation"])
        # The generation is that of another agent.
        assert "links" in same
