"""Programs that follow the directory through a host, against a real rendezvous."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.registrywatch import Pace
from pilotfleet.client.watching import WatchQuery
from pilotfleet.errors import (
    AlreadyExists,
    Busy,
    InvalidArgument,
    InvalidState,
    NotFound,
    PilotError,
)
from pilotfleet.node import watches
from pilotfleet.node.ipc import watch as ipc_watch
from pilotfleet.protocol.ipc.commands import Command
from tests.node.support import eventually, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

    from pilotfleet.node.host import Host
    from tests.node.support import World

WAIT_S = 20.0
QUICK = Pace(retry_s=0.05, longest_retry_s=0.1, poll_s=0.05)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as made:
        yield made


@pytest.fixture
async def host(world: World) -> AsyncIterator[Host]:
    made = world.host("a", "one", "two", socket=world.folder / "s")
    made.watches.pace = QUICK
    async with made:
        yield made


class Program:
    """A local program with one connection, and what its watches were told."""

    def __init__(self, client: DaemonClient) -> None:
        self.client = client
        self.told: list[tuple[str, str, str]] = []
        """Watch, kind, hostname."""
        self.pushes: list[dict[str, Any]] = []
        self.rows: dict[str, dict[str, Any]] = {}
        self.heard = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for push in self.client.pushes():
            self.pushes.append(push)
            for kind in ("removed", "added", "changed"):
                for row in push.get(kind, ()):
                    self.told.append((push["watch"], kind, row["hostname"]))
                    self.rows[row["hostname"]] = row
            self.heard.set()

    async def until(self, wanted: Iterable[tuple[str, str, str]]) -> None:
        """Wait until exactly this was told, in any order."""
        async with asyncio.timeout(WAIT_S):
            while sorted(self.told) != sorted(wanted):
                self.heard.clear()
                await self.heard.wait()

    async def close(self) -> None:
        await self.client.close()
        await self._reader


@contextlib.asynccontextmanager
async def program(host: Host, agent: str | None = None) -> AsyncIterator[Program]:
    assert host.config.socket is not None
    made = Program(await DaemonClient.connect(host.config.socket))
    try:
        if agent is not None:
            await made.client.call("select-agent", name=agent)
        yield made
    finally:
        await made.close()


async def set_tags(client: DaemonClient, *tags: str) -> None:
    body = "[" + ",".join(f'"{tag}"' for tag in tags) + "]"
    await client.request_json(Command.SET_TAGS, body.encode())


async def test_what_is_there_then_what_changes(world: World, host: Host) -> None:
    async with program(host, "one") as one, program(host, "two") as two:
        answer = await one.client.call("watch", watch="w", hostname_prefix="t")
        assert answer == {"watch": "w", "live": True}
        told = [("w", "added", "two")]
        await one.until(told)
        assert one.rows["two"]["node_id"] == host.agents["two"].node_id
        assert set(one.rows["two"]) == {
            *("node_id", "address", "hostname", "tags", "polo", "online", "last_seen")
        }
        await set_tags(two.client, "new")
        told += [("w", "changed", "two")]
        await one.until(told)
        assert one.rows["two"]["tags"] == ["new"]
        async with world.host("b", "three"):
            told += [("w", "added", "three")]
            await one.until(told)
            await two.client.request_json(Command.SET_VISIBILITY, b"\0")
            told += [("w", "removed", "two")]
            await one.until(told)
            await two.client.request_json(Command.SET_VISIBILITY, b"\1")
            told += [("w", "added", "two")]
            await one.until(told)
            await two.client.request_json(Command.DEREGISTER)
            told += [("w", "removed", "two")]
            await one.until(told)


async def test_answer_without_a_match_is_complete(host: Host) -> None:
    async with program(host) as one:
        await one.client.call("watch", watch="w", tags=["nobody"])
        await eventually(lambda: one.pushes, what="a push")
        assert one.pushes == [
            {
                **{"push": "watch", "watch": "w", "complete": True},
                **{"added": [], "changed": [], "removed": []},
            }
        ]


async def test_restart_of_the_rendezvous_is_not_heard(world: World, host: Host) -> None:
    async with program(host, "one") as one, program(host, "two") as two:
        await one.client.call("watch", watch="w", online=True)
        told = [("w", "added", "one"), ("w", "added", "two")]
        await one.until(told)
        await world.stop_rendezvous()
        await world.start_rendezvous()
        await set_tags(two.client, "after")
        told += [("w", "changed", "two")]
        await one.until(told)


async def test_registry_that_lost_everything_is_caught_up_with(
    world: World, host: Host
) -> None:
    async with program(host, "one") as one:
        await one.client.call("watch", watch="w", tags=["x"], any=True)
        await set_tags(one.client, "x")
        await one.until([("w", "added", "one")])
        await world.stop_rendezvous(lose_everything=True)
        await world.start_rendezvous()
        # Its agents register again by themselves, with their tags.
        await eventually(
            lambda: (
                one.told[-1] == ("w", "added", "one")
                and one.rows["one"]["node_id"] == host.agents["one"].node_id
            ),
            what="the agent is seen",
            limit_s=60,
        )


async def test_registry_without_watch_is_searched(world: World, host: Host) -> None:
    host.registry.extensions -= {"watch"}
    async with program(host, "one") as one:
        answer = await one.client.call("watch", watch="w", tags=["x"])
        assert answer == {"watch": "w", "live": False}
        await set_tags(one.client, "x")
        await one.until([("w", "added", "one")])
        await set_tags(one.client, "y")
        await one.until([("w", "added", "one"), ("w", "removed", "one")])


async def test_equal_questions_of_an_agent_are_one_watch(host: Host) -> None:
    async with (
        program(host, "one") as first,
        program(host, "one") as second,
        program(host, "two") as third,
    ):
        await first.client.call("watch", watch="w", tags=["#a", "b"])
        await second.client.call("watch", watch="v", tags=["b", "a"])
        assert len(host.watches) == 1
        await third.client.call("watch", tags=["b", "a"])
        assert len(host.watches) == 2
        await second.client.call("watch", watch="other", tags=["b"])
        assert len(host.watches) == 3
        await second.close()
        await eventually(lambda: len(host.watches) == 2, what="one ended")
        await first.client.call("unwatch", watch="w")
        await eventually(lambda: len(host.watches) == 1, what="another one ended")
    await eventually(lambda: not len(host.watches), what="all ended")
    assert host.watches.rows.used == 0


async def test_late_follower_is_told_what_is_there(host: Host) -> None:
    async with program(host) as first, program(host) as second:
        await first.client.call("watch", watch="w")
        await first.until([("w", "added", "one"), ("w", "added", "two")])
        await second.client.call("watch", watch="v")
        await second.until([("v", "added", "one"), ("v", "added", "two")])
        assert len(host.watches) == 1


async def test_acting_agent_decides_what_is_seen(world: World, host: Host) -> None:
    async with world.host("b", "hidden", is_public=False), program(host) as one:
        await one.client.call("watch", watch="w", agent="two")
        await one.until([("w", "added", "one"), ("w", "added", "two")])


async def test_slow_program_is_told_the_last_state_once(host: Host) -> None:
    """A follower that takes nothing keeps no list of changes."""
    agent = host.agents["one"]
    follower = await host.watches.follow(agent, WatchQuery.of(hostname_prefix="two"))
    try:
        await follower.wait()
        await eventually(lambda: follower.take(10).is_complete, what="all of it")
        for number in range(5):
            tags = [f"t-{number}"]
            two = host.agents["two"]
            await two.registry("set_tags", node_id=two.node_id, tags=tags)
            await eventually(
                lambda tags=tags: (  # type: ignore[misc]
                    next(iter(follower._watch.known.values())).tags == tuple(tags)
                ),
                what="the host knows",
            )
        news = follower.take(10)
        assert [(str(c.kind), c.row.tags) for c in news.changes] == [
            ("changed", ("t-4",))
        ]
        await two.registry("set_tags", node_id=two.node_id, tags=["other"])
        await eventually(lambda: len(follower._untold) == 1, what="it is noted")
        await two.registry("set_tags", node_id=two.node_id, tags=["t-4"])
        await eventually(
            lambda: next(iter(follower._watch.known.values())).tags == ("t-4",),
            what="it is as before",
        )
        assert follower.take(10).changes == ()
    finally:
        follower.close()


async def test_long_answers_come_in_several_pushes(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ipc_watch, "PUSH_ROWS", 1)
    async with program(host) as one:
        await one.client.call("watch", watch="w")
        await one.until([("w", "added", "one"), ("w", "added", "two")])
        assert [push["complete"] for push in one.pushes] == [False, True]


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"tags": "a"}, InvalidArgument),
        ({"tags": [1]}, InvalidArgument),
        ({"online": 1}, InvalidArgument),
        ({"watch": 7}, InvalidArgument),
        ({"watch": "x" * 65}, InvalidArgument),
        ({"agent": "nobody"}, NotFound),
    ],
)
async def test_bad_question_is_refused(
    host: Host, params: dict[str, Any], kind: type[PilotError]
) -> None:
    async with program(host) as one:
        with pytest.raises(kind):
            await one.client.call("watch", **params)
        assert not len(host.watches)


async def test_refusal_of_the_registry_is_passed_on(host: Host) -> None:
    async with program(host) as one:
        with pytest.raises(PilotError, match="too many tags"):
            await one.client.call("watch", tags=[f"t-{n}" for n in range(20)])
        assert not len(host.watches)


async def test_name_is_used_once_and_unknown_ones_are_not_ended(host: Host) -> None:
    async with program(host) as one:
        await one.client.call("watch")
        with pytest.raises(AlreadyExists):
            await one.client.call("watch")
        await one.client.call("unwatch")
        await one.client.call("watch")
        with pytest.raises(NotFound, match="no watch 'x'"):
            await one.client.call("unwatch", watch="x")


async def test_watch_that_is_ended_before_its_first_answer_is_answered(
    host: Host,
) -> None:
    async with program(host) as one:
        asked = asyncio.create_task(one.client.call("watch", watch="w"))
        ended = asyncio.create_task(one.client.call("unwatch", watch="w"))
        with pytest.raises(InvalidState, match="was ended"):
            await asked
        assert await ended == {}
        assert not len(host.watches)
        await one.client.call("watch", watch="w")


async def test_watches_of_a_connection_are_bounded(host: Host) -> None:
    async with program(host) as one:
        calls = [
            one.client.call("watch", watch=f"w-{number}", tags=["a"])
            for number in range(ipc_watch.MAX_WATCHES + 3)
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(each, Busy | PilotError) for each in answers) == 3


async def test_questions_and_followers_of_a_host_are_bounded(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "MAX_WATCHES", 2)
    monkeypatch.setattr(watches, "MAX_FOLLOWERS", 3)
    agent = host.agents["one"]
    follow = host.watches.follow
    made = [await follow(agent, WatchQuery.of([tag])) for tag in "ab"]
    with pytest.raises(Busy, match="2 different questions"):
        await follow(agent, WatchQuery.of(["c"]))
    made.append(await follow(agent, WatchQuery.of(["a"])))
    with pytest.raises(Busy, match="3 watches"):
        await follow(agent, WatchQuery.of(["a"]))
    for each in made:
        each.close()
        each.close()
    await eventually(lambda: not len(host.watches), what="all ended")


async def test_more_agents_than_may_be_kept_end_the_watch(host: Host) -> None:
    host.watches.rows.limit = 3
    async with program(host) as one:
        await one.client.call("watch", watch="w")
        await eventually(
            lambda: one.pushes and "error" in one.pushes[-1], what="an error"
        )
        assert "more than 3 agents" in one.pushes[-1]["error"]["message"]
        # Nobody is said to be removed.
        assert all(kind == "added" for _, kind, _ in one.told)
        await eventually(lambda: not len(host.watches), what="it has ended")
    assert host.watches.rows.used == 0


async def test_connection_with_a_watch_stays_with_its_process(host: Host) -> None:
    """What a connection keeps here cannot move to another process of the daemon."""
    async with program(host) as one:
        await one.client.call("watch")
        await one.client.call("select-agent", name="two")
        await one.until([("", "added", "one"), ("", "added", "two")])
