"""The list of hosted agents on the daemon's socket, and names that are not there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.hosted import hosted_agents
from pilotfleet.errors import InvalidArgument, NotFound, Unavailable
from pilotfleet.node.config import AgentSpec
from tests.node.ipc.support import TinyAgent, TinyHost, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NAMING = (("select-agent", "name"), ("search", "agent"))
"""Operations that name an agent, and in which field."""


@pytest.fixture
def host() -> TinyHost:
    return TinyHost()


@pytest.fixture
async def client(host: TinyHost, tmp_path: Path) -> AsyncIterator[DaemonClient]:
    path = tmp_path / "pilot.sock"
    async with serving(host, path), await DaemonClient.connect(path) as client:
        yield client


def add_agents(host: TinyHost, count: int) -> list[str]:
    """Host many more agents; return the names of all in hosting order."""
    for number in range(count, 0, -1):
        name = f"worker-{number}"
        tags = ("some-tag", "another-tag")
        host.agents[name] = TinyAgent(host, name, 2 + number, hostname=name, tags=tags)
    return list(host.agents)


async def names_of(client: DaemonClient, **params: Any) -> list[str]:
    answer = await client.call("agents", **params)
    return [row["name"] for row in answer["agents"]]


async def test_pages_are_in_hosting_order(client: DaemonClient, host: TinyHost) -> None:
    names = add_agents(host, 5)
    assert names[:3] == ["one", "two", "worker-5"]
    answer = await client.call("agents", limit=3)
    assert [row["name"] for row in answer["agents"]] == names[:3]
    assert (answer["total"], answer["next_cursor"]) == (7, "worker-5")
    answer = await client.call("agents", limit=3, cursor="worker-5")
    assert [row["name"] for row in answer["agents"]] == names[3:6]
    answer = await client.call("agents", limit=3, cursor=answer["next_cursor"])
    assert [row["name"] for row in answer["agents"]] == names[6:]
    assert (answer["total"], answer["next_cursor"]) == (7, "")
    # The last page may be full.
    assert (await client.call("agents", limit=7))["next_cursor"] == ""
    assert await names_of(client, cursor=names[-1]) == []


async def test_an_agent_that_comes_meanwhile_is_listed(
    client: DaemonClient, host: TinyHost
) -> None:
    cursor = (await client.call("agents", limit=1))["next_cursor"]
    host.agents["three"] = TinyAgent(host, "three", 3)
    assert await names_of(client, cursor=cursor) == ["two", "three"]


async def test_ten_thousand_agents_are_listed(
    client: DaemonClient, host: TinyHost
) -> None:
    names = add_agents(host, 9_998)
    rows = [row async for row in hosted_agents(client)]
    assert [row["name"] for row in rows] == names
    assert rows[-1]["tags"] == ["some-tag", "another-tag"]
    # However many are asked for.
    assert len(await names_of(client, limit=5_000)) == 1000


async def test_a_program_without_pages_gets_all_that_fit(
    client: DaemonClient, host: TinyHost
) -> None:
    names = add_agents(host, 2_000)
    assert await names_of(client) == names
    add_agents(host, 9_998)
    with pytest.raises(InvalidArgument, match="10000 agents do not fit") as caught:
        await client.call("agents")
    assert "limit and cursor" in str(caught.value.hint)


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": -1},
        {"limit": "3"},
        {"limit": True},
        {"limit": 1.5},
        {"cursor": 7},
        {"cursor": "nobody"},
    ],
)
async def test_pages_that_cannot_be(
    client: DaemonClient, params: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument, match="agents: "):
        await client.call("agents", **params)


async def test_an_agent_that_is_not_registered_yet_is_starting(
    client: DaemonClient, host: TinyHost
) -> None:
    home = Path("/nowhere")
    host.config.agents = (AgentSpec("late", home, home / "identity.json"),)
    host.agents["late"] = TinyAgent(host, "late", 0)
    host.is_started = False
    with pytest.raises(Unavailable, match="'late' is still starting"):
        await client.call("select-agent", name="late")
    # One that the registry refuses for good is there all the same.
    host.is_started = True
    assert (await client.call("select-agent", name="late"))["state"] == "starting"


async def test_an_agent_that_is_not_opened_yet_is_starting(
    client: DaemonClient, host: TinyHost
) -> None:
    home = Path("/nowhere")
    host.config.agents = (AgentSpec("late", home, home / "identity.json"),)
    for op, field in NAMING:
        with pytest.raises(Unavailable, match="'late' is still starting") as caught:
            await client.call(op, timeout=None, **{field: "late"})
        assert caught.value.hint == "try again in some seconds"
        with pytest.raises(NotFound, match="no agent 'never'"):
            await client.call(op, timeout=None, **{field: "never"})
    host.agents["late"] = TinyAgent(host, "late", 3)
    assert (await client.call("select-agent", name="late"))["node_id"] == 3
