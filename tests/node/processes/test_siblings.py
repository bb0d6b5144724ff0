"""Clients of a daemon in two processes: where they are served, and how they move."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from pilotfleet.client.hosted import hosted_agents
from pilotfleet.errors import (
    Closed,
    ConnectionFailed,
    DaemonError,
    InvalidArgument,
    InvalidState,
    NotFound,
)
from pilotfleet.node.config import AgentSpec
from pilotfleet.node.ipc.session import DETACH_S
from pilotfleet.node.processes.division import process_of
from pilotfleet.node.processes.messages import Addresses, Failed, Progress, Ready
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.ipc.framing import encode_frame
from tests.node.ipc.support import TinyAgent
from tests.node.processes.support import NAMES, Pair, processes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.timeout(30)

NAMING = (("select-agent", "name"), ("search", "agent"))
"""Operations that name an agent, and in which field."""


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with processes() as pair:
        yield pair


async def node_of(client: Any) -> int:
    node: int = (await client.request_json(Command.INFO))["node_id"]
    return node


async def test_a_client_begins_as_the_default_agent(pair: Pair) -> None:
    async with pair.client() as client:
        assert await node_of(client) == 1


@pytest.mark.parametrize(("name", "node"), [("w-2", 2), ("w-3", 3), ("w-4", 4)])
async def test_a_client_acts_as_any_agent_it_selects(
    pair: Pair, name: str, node: int
) -> None:
    async with pair.client() as client:
        row = await client.call("select-agent", name=name)
        assert (row["name"], row["node_id"]) == (name, node)
        assert await node_of(client) == node


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_client_moves_to_and_fro(run: Callable[..., None]) -> None:
    run(_move_to_and_fro())


async def _move_to_and_fro() -> None:
    async with processes() as pair, pair.client() as client:
        for name in NAMES * 3:
            await client.call("select-agent", name=name)
            assert f"w-{await node_of(client)}" == name
        assert (await client.call("agents"))["agents"]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_a_client_sent_ahead_moves_with_it(run: Callable[..., None]) -> None:
    run(_send_ahead())


async def _send_ahead() -> None:
    select = json.dumps({"id": 7, "op": "select-agent", "name": "w-2"}).encode()
    frames = encode_frame(Command.EXTENSION, select)
    async with processes() as pair, pair.raw_client() as client:
        # Half a frame behind the request is read with it, and has to be finished.
        health = encode_frame(Command.HEALTH)
        client.writer.write(frames + health[:3])
        answer = await client.receive()
        assert answer[0] == Command.EXTENSION_OK
        assert json.loads(answer[1:])["result"]["name"] == "w-2"
        client.writer.write(health[3:])
        assert (await client.receive())[0] == Command.HEALTH_OK


async def test_a_client_that_sends_too_much_ahead_is_not_moved(pair: Pair) -> None:
    select = json.dumps({"id": 7, "op": "select-agent", "name": "w-2"}).encode()
    ahead = encode_frame(Command.EXTENSION, b'{"id":8,"op":"' + b"x" * 100_000)
    async with pair.raw_client() as client:
        client.writer.write(encode_frame(Command.EXTENSION, select) + ahead[:-1])
        answer = json.loads((await client.receive())[1:])
        assert answer["error"]["code"] == "connection_failed"
        assert "wait for the answers" in answer["error"]["message"]
        client.writer.write(ahead[-1:])
        assert (await client.receive())[0] == Command.ERROR


async def test_an_unknown_agent_is_not_found_in_any_process(pair: Pair) -> None:
    async with pair.client() as client:
        for name in ("w-5", "w-6", "nobody", "w-"):
            with pytest.raises(NotFound, match="no agent"):
                await client.call("select-agent", name=name)
            with pytest.raises(NotFound, match="no agent"):
                await client.call("search", agent=name)
        with pytest.raises(InvalidArgument):
            await client.call("select-agent", name=5)
        assert await node_of(client) == 1


async def test_streams_and_ports_keep_a_client_where_it_is(pair: Pair) -> None:
    async with pair.client() as client:
        listener = await client.bind(5000)
        with pytest.raises(InvalidArgument, match="close all streams and ports"):
            await client.call("select-agent", name="w-2")
        await listener.close()
        await client.call("select-agent", name="w-2")
        await client.bind(5000)
        with pytest.raises(InvalidArgument, match="close all streams and ports"):
            await client.call("select-agent", name="w-1")
    # What it held is given back where it was held.
    async with pair.client() as client:
        await client.call("select-agent", name="w-2")
        for _ in range(200):
            with contextlib.suppress(DaemonError):
                await client.bind(5000)
                break


async def test_services_keep_a_client_where_it_is(pair: Pair) -> None:
    async def keep(session: Any, agent: Any, params: Any) -> dict[str, Any]:
        session.on_close(lambda: None)
        return {}

    pair.hosts[1].extensions["x.keep"] = keep
    async with pair.client() as client:
        await client.call("x.keep")
        with pytest.raises(InvalidState, match="serves or watches"):
            await client.call("select-agent", name="w-2")
        await client.call("select-agent", name="w-3")
        assert await node_of(client) == 3


async def test_a_move_waits_for_what_is_under_way(pair: Pair) -> None:
    go = asyncio.Event()

    async def slow(session: Any, agent: Any, params: Any) -> dict[str, Any]:
        await go.wait()
        return {"agent": agent.name}

    pair.hosts[1].extensions["x.slow"] = slow
    async with pair.client() as client:
        answer = asyncio.create_task(client.call("x.slow"))
        await asyncio.sleep(0)
        move = asyncio.create_task(client.call("select-agent", name="w-2"))
        for _ in range(50):
            await asyncio.sleep(0)
        go.set()
        assert await answer == {"agent": "w-1"}
        assert (await move)["name"] == "w-2"


async def test_of_two_moves_at_once_one_is_refused(pair: Pair) -> None:
    async with pair.client() as client, asyncio.timeout(DETACH_S / 2):
        moves = (client.call("select-agent", name=name) for name in ("w-2", "w-4"))
        answers = await asyncio.gather(*moves, return_exceptions=True)
        (refused,) = [each for each in answers if isinstance(each, ConnectionFailed)]
        assert "another one is under way" in str(refused)
        (row,) = [each for each in answers if isinstance(each, dict)]
        assert await node_of(client) == row["node_id"]


async def test_a_client_that_is_being_disconnected_does_not_move(pair: Pair) -> None:
    async with pair.client() as client:
        await node_of(client)
        (session,) = pair.sessions(1)
        session.abort()
        with pytest.raises(Closed, match="the client is gone"):
            await session.detach(limit=100)


async def test_an_operation_reaches_the_agent_it_names(pair: Pair) -> None:
    async def whose(session: Any, agent: Any, params: Any) -> dict[str, Any]:
        return {"name": agent.name, "number": agent.host.number, "x": params["x"]}

    for host in pair.hosts.values():
        host.extensions["x.whose"] = whose
    async with pair.client() as client:
        asked = [client.call("x.whose", agent=name, x=name) for name in NAMES * 5]
        answers = await asyncio.gather(*asked)
        assert [answer["name"] for answer in answers] == list(NAMES * 5)
        assert [answer["x"] for answer in answers] == list(NAMES * 5)
        assert {answer["number"] for answer in answers} == {1, 2}
        # All through one connection between the two.
        (server,) = {session.server for session in pair.sessions(2)}
        assert len(server.sessions) == 1


async def test_pushes_come_from_the_other_process(pair: Pair) -> None:
    sessions: list[Any] = []
    closed = asyncio.Event()

    async def watch(session: Any, agent: Any, params: Any) -> dict[str, Any]:
        assert agent.name == "w-4"
        sessions.append(session)
        session.on_close(closed.set)
        return {}

    pair.hosts[2].extensions["x.watch"] = watch
    async with pair.client() as client:
        # Known here, and meant for an agent there.
        pair.hosts[1].extensions["x.watch"] = watch
        await client.call("x.watch", agent="w-4")
        for number in range(1000):
            assert sessions[0].push({"push": "x", "number": number})
        pushes = client.pushes()
        taken = [await anext(pushes) for _ in range(1000)]
        assert [push["number"] for push in taken] == list(range(1000))
    await closed.wait()


async def test_all_agents_are_listed_the_default_one_first(pair: Pair) -> None:
    async with pair.client() as client:
        rows = (await client.call("agents"))["agents"]
        assert [row["name"] for row in rows] == list(NAMES)
        await client.call("select-agent", name="w-4")
        assert (await client.call("agents"))["agents"] == rows


@pytest.mark.parametrize("agent", ["w-1", "w-2"])
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7])
async def test_pages_go_through_all_processes(
    pair: Pair, agent: str, limit: int
) -> None:
    # Not in the order of their names, and with numbers that mean the same.
    for number, names in ((1, ("w-21", "w-11", "w-011")), (2, ("w-12", "w-10"))):
        for node, name in enumerate(names, 10 * number):
            host = pair.hosts[number]
            host.agents[name] = TinyAgent(host, name, node)
    everybody = [*NAMES, "w-10", "w-011", "w-11", "w-12", "w-21"]
    async with pair.client() as client:
        await client.call("select-agent", name=agent)
        listed: list[str] = []
        cursor = ""
        while not listed or cursor:
            page = await client.call("agents", limit=limit, cursor=cursor)
            assert len(page["agents"]) <= limit
            assert page["total"] == 9
            listed += [row["name"] for row in page["agents"]]
            cursor = page["next_cursor"]
        assert listed == everybody
        rows = (await client.call("agents"))["agents"]
        assert [row["name"] for row in rows] == everybody
        # A cursor is a place in the order, also when its agent is gone.
        page = await client.call("agents", limit=2, cursor="w-13")
        assert [row["name"] for row in page["agents"]] == ["w-21"]


async def test_ten_thousand_agents_of_two_processes_are_listed(pair: Pair) -> None:
    for node in range(5, 10_001):
        host = pair.hosts[process_of(f"w-{node}", 2)]
        name = f"w-{node}"
        host.agents[name] = TinyAgent(host, name, node, hostname=name)
    async with pair.client() as client:
        rows = [row async for row in hosted_agents(client)]
        assert [row["node_id"] for row in rows] == list(range(1, 10_001))
        with pytest.raises(InvalidArgument, match="10000 agents do not fit"):
            await client.call("agents")


async def test_an_agent_that_another_process_has_not_opened_yet_is_starting(
    pair: Pair,
) -> None:
    home = Path("/nowhere")
    spec = AgentSpec("w-6", home, home / "identity.json")
    pair.hosts[2].config.agents = (spec,)
    async with pair.client() as client:
        for op, field in NAMING:
            with pytest.raises(ConnectionFailed, match="'w-6' is still starting"):
                await client.call(op, timeout=None, **{field: "w-6"})
        assert await node_of(client) == 1


def _note_serving(pair: Pair) -> tuple[list[tuple[int, list[str]]], list[int]]:
    """Return what each process is told to serve, and which are drained, from now."""
    served: list[tuple[int, list[str]]] = []
    drained: list[int] = []

    def handlers(number: int) -> dict[str, Any]:
        async def serve(session: Any, agent: Any, params: Any) -> dict[str, Any]:
            served.append((number, params["agents"]))
            return {"agents": len(params["agents"]), "concurrency": 3}

        async def drain(session: Any, agent: Any, params: Any) -> dict[str, Any]:
            drained.append(number)
            return {}

        return {"task.serve": serve, "task.drain": drain}

    for number, host in pair.hosts.items():
        host.extensions |= handlers(number)
    return served, drained


async def test_serving_is_divided_among_processes(pair: Pair) -> None:
    served, drained = _note_serving(pair)
    async with pair.client() as client:
        answer = await client.call("task.serve", agents=list(NAMES), concurrency=3)
        assert answer == {"agents": 4, "concurrency": 3}
        assert sorted(served) == [(1, ["w-1", "w-3"]), (2, ["w-2", "w-4"])]
        await client.call("task.drain")
        assert sorted(drained) == [1, 2]


@pytest.mark.parametrize("timeout", ["x", 0.000001])
async def test_all_processes_are_drained_whatever_a_program_says_of_time(
    pair: Pair, timeout: object
) -> None:
    _, drained = _note_serving(pair)
    asks: list[dict[str, Any]] = [
        {"id": 1, "op": "task.serve", "agents": list(NAMES)},
        {"id": 2, "op": "task.drain", "timeout": timeout},
    ]
    async with pair.raw_client() as raw:
        for ask in asks:
            raw.writer.write(encode_frame(Command.EXTENSION, json.dumps(ask).encode()))
            assert "result" in json.loads((await raw.receive())[1:])
    assert sorted(drained) == [1, 2]


async def test_outcomes_are_handed_in_where_each_agent_is(pair: Pair) -> None:
    taken: list[tuple[int, list[Any]]] = []

    def handler(number: int) -> Any:
        async def finish(session: Any, agent: Any, params: Any) -> dict[str, Any]:
            outcomes = params["outcomes"]
            taken.append((number, [each["n"] for each in outcomes]))
            # The last one of each process is refused.
            return {"refused": {str(len(outcomes) - 1): {"code": "x", "message": "y"}}}

        return finish

    for number, host in pair.hosts.items():
        host.extensions["task.finish-all"] = handler(number)
    names = ["w-1", "w-2", "w-4", "w-3", "w-2", None, "w-9"]
    outcomes = [
        {"n": n} if name is None else {"agent": name, "n": n}
        for n, name in enumerate(names)
    ]
    async with pair.client() as client:
        refused = (await client.call("task.finish-all", outcomes=outcomes))["refused"]
        # Nobody hosts w-9: of the two, the one that was asked says so.
        assert sorted(taken) == [(1, [0, 3, 5, 6]), (2, [1, 2, 4])]
        assert set(refused) == {"6", "4"}
        await pair.end(2)
        await client.wait_closed()


async def test_a_watch_that_another_process_keeps_is_ended_by_its_name(
    pair: Pair,
) -> None:
    async with pair.client() as client:
        with pytest.raises(NotFound, match="no watch"):
            await client.call("unwatch", watch="a")
        await client.call("broker", agent="w-2")
        with pytest.raises(NotFound, match="no watch"):
            await client.call("unwatch", watch="a")
        (session,) = pair.sessions(2)
        session.watches["a"] = asyncio.create_task(asyncio.sleep(60))
        assert await client.call("unwatch", watch="a") == {}
        names: list[Any] = [[], {}, 5]
        for name in names:
            with pytest.raises(InvalidArgument, match="watch must be a text"):
                await client.call("unwatch", watch=name)
        assert session.watches["a"].cancelled()


async def test_fields_that_no_operation_has_do_no_harm(pair: Pair) -> None:
    async with pair.client() as client:
        strange = {"self": 1, "to": 2, "leg": 3, "session": 4}
        own = await client.call("broker", agent="w-1", **strange)
        assert await client.call("broker", agent="w-2", **strange) == own
    ask = {"id": 7, "op": "broker", "agent": "w-2", "timeout": "x"}
    async with pair.raw_client() as raw:
        raw.writer.write(encode_frame(Command.EXTENSION, json.dumps(ask).encode()))
        answer = await raw.receive()
        assert json.loads(answer[1:])["result"] == own


async def test_a_process_that_is_gone_is_named(pair: Pair) -> None:
    async with pair.client() as client:
        await pair.end(2)
        with pytest.raises(ConnectionFailed, match=r"process 2 of 2 .* restarted"):
            await client.call("select-agent", name="w-2")
        listed = await client.call("agents")
        assert [row["name"] for row in listed["agents"]] == ["w-1", "w-3"]
        assert listed["missing_processes"] == [2]
        page = await client.call("agents", limit=1)
        assert (page["total"], page["next_cursor"]) == (2, "w-1")
        assert page["missing_processes"] == [2]
        # Neither harms the client.
        assert await node_of(client) == 1
        await pair.begin(2)
        assert (await client.call("select-agent", name="w-2"))["node_id"] == 2


async def test_a_leg_that_ends_just_now_says_what_is_gone(pair: Pair) -> None:
    siblings = pair.siblings[1]
    async with await siblings._connect(2) as leg:
        assert leg._transport is not None
        leg._transport.abort()
        # Its end is only noted in the next turn of the loop.
        assert not leg.is_closed
        with pytest.raises(ConnectionFailed, match=r"process 2 of 2 .* restarted"):
            await siblings._call_leg(leg, 2, "agents", {})


async def test_a_client_that_was_served_there_is_disconnected(pair: Pair) -> None:
    async def keep(session: Any, agent: Any, params: Any) -> dict[str, Any]:
        return {}

    for host in pair.hosts.values():
        host.extensions["x.keep"] = keep
    async with pair.client() as client, pair.client() as other:
        await client.call("x.keep", agent="w-2")
        await other.call("x.keep", agent="w-3")
        await pair.end(2)
        await client.wait_closed()
        with pytest.raises((Closed, ConnectionFailed)):
            await client.call("x.keep")
        await other.call("x.keep", agent="w-3")


async def test_a_request_that_is_out_is_answered_when_the_process_goes(
    pair: Pair,
) -> None:
    begun = asyncio.Event()

    async def hang(session: Any, agent: Any, params: Any) -> dict[str, Any]:
        begun.set()
        await asyncio.Event().wait()
        return {}

    pair.hosts[2].extensions["x.hang"] = hang
    async with pair.client() as client:
        call = asyncio.create_task(client.call("x.hang", agent="w-2"))
        await begun.wait()
        await pair.end(2)
        with pytest.raises(ConnectionFailed, match="process 2 of 2"):
            await call


async def test_the_parent_is_told_how_the_start_goes(pair: Pair) -> None:
    pair.told.clear()
    for done in range(1, 121):
        pair.hosts[2].on_progress(done, 120)
    pair.siblings[2].tell_ready()
    pair.siblings[1].tell_failed(NotFound("no such thing", hint="make one"))
    async with pair.client() as client:
        await client.call("agents")
    told = [message for number, message in pair.told if number == 2]
    assert told == [
        *(Progress(done=done, total=120) for done in (1, 50, 100, 120)),
        Addresses(addresses={"w-2": "0:0000.0000.0002", "w-4": "0:0000.0000.0004"}),
        Ready(agents=2),
    ]
    failed = Failed(code="not_found", message="no such thing", hint="make one")
    assert (1, failed) in pair.told


async def test_a_process_notices_that_its_parent_is_gone(pair: Pair) -> None:
    pair.parents[2].close()
    await pair.orphaned.wait()
