"""The public ``Agent`` against real programs."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import (
    ConnectionRefused,
    DaemonError,
    InvalidArgument,
    NotFound,
    NotRunning,
    PilotError,
)
from pilotfleet.fleet.agent import Agent
from tests.fleet.crewsupport import start_crew, start_hub
from tests.support.programs import world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from pilotfleet.fleet.agent import Handler
    from pilotfleet.fleet.worker.job import Job
    from tests.support.programs import World


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    """Yield a hub, and a daemon with the agents ``a-1`` and ``a-2`` of its network."""
    with world() as made:
        start_crew(made, start_hub(made), 2)
        yield made


@pytest.fixture
async def one(net: World) -> AsyncIterator[Agent]:
    async with await Agent.connect(net.socket("crew"), name="a-1") as agent:
        yield agent


@pytest.fixture
async def two(net: World) -> AsyncIterator[Agent]:
    async with await Agent.connect(net.socket("crew"), name="a-2") as agent:
        yield agent


@contextlib.asynccontextmanager
async def serving(
    agent: Agent, handler: Handler, **options: int
) -> AsyncIterator[None]:
    """Have an agent do tasks."""
    task = asyncio.ensure_future(agent.serve(handler, **options))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_agent_knows_itself(one: Agent, two: Agent) -> None:
    assert one.name == "a-1"
    assert one.node_id != two.node_id
    assert str(await one.resolve("a-2")) == two.address
    assert repr(one) == f"<Agent a-1 {one.address}>"


async def test_without_a_daemon_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotRunning):
        await Agent.connect(tmp_path / "nobody.sock")


async def test_an_agent_that_is_not_hosted_is_not_found(net: World) -> None:
    with pytest.raises(NotFound):
        await Agent.connect(net.socket("crew"), name="nobody")


async def test_agents_are_found_by_tag(one: Agent, two: Agent) -> None:
    found = [agent async for agent in one.find(tags=["text"])]
    assert [agent.name for agent in found] == ["a-1", "a-2"]
    assert found[1].address == two.address
    assert found[1].tags == {"text"}
    assert [each.name async for each in one.find(tags=["text"], limit=1)] == ["a-1"]
    either = one.find(tags=["text", "other"], any=True)
    assert len([each async for each in either]) == 2
    assert [each async for each in one.find(tags=["other"])] == []


async def test_what_is_written_to_a_stream_arrives(one: Agent, two: Agent) -> None:
    async with (
        await two.listen(7000) as listener,
        await one.dial("a-2", 7000) as stream,
    ):
        await stream.write(b"hello")
        async with await listener.accept() as accepted:
            assert await accepted.read_exactly(5) == b"hello"
            await accepted.write(b"and back")
        assert await stream.read_exactly(8) == b"and back"
    with pytest.raises((ConnectionRefused, DaemonError)):
        await one.dial(two.address, 7000)


async def test_a_name_that_nobody_has_is_not_found(one: Agent) -> None:
    with pytest.raises(NotFound, match="cannot resolve 'nobody'"):
        await one.dial("nobody", 7)


async def test_events_arrive_by_pattern(one: Agent, two: Agent) -> None:
    async with await two.subscribe("news.*") as events:
        await one.publish("other", "not this")
        await one.publish("news.today", {"n": 1})
        await one.publish("news.late", b"bytes")
        with pytest.raises(InvalidArgument, match="not UTF-8"):
            await one.publish("news.never", b"\xff")
        got = [await anext(events), await anext(events)]
    assert [event.topic for event in got] == ["news.today", "news.late"]
    assert [event.payload for event in got] == [b'{"n":1}', b"bytes"]


@pytest.mark.parametrize("broker", [None, "hub"])
async def test_topics_and_data_are_text(one: Agent, broker: str | None) -> None:
    with pytest.raises(InvalidArgument, match=r"topic 'a\\ud800' is not valid text"):
        await one.publish("a\ud800", "x", broker=broker)
    with pytest.raises(InvalidArgument, match=r"topic 'a\\ud800\.\*' is not valid"):
        await one.subscribe("a\ud800.*", broker=broker)
    with pytest.raises(InvalidArgument, match="topic of 1025 bytes"):
        await one.publish("t" * 1025, "x", broker=broker)
    for data in ("\ud800", {"text": "\ud800"}, ["\ud800"]):
        with pytest.raises(InvalidArgument, match="data is not valid text"):
            await one.publish("t", data, broker=broker)


async def test_names_are_text(one: Agent) -> None:
    for call in (one.publish("t", "x", broker="h\ud800"), one.resolve("h\ud800")):
        with pytest.raises(InvalidArgument, match=r"'h\\ud800' is not valid text"):
            await call
    with pytest.raises(InvalidArgument, match=r"'h\\ud800' is not valid text"):
        await one.subscribe(broker="h\ud800")


async def test_past_events_are_replayed(one: Agent, two: Agent) -> None:
    assert await one.publish("old.news", "text", broker="hub") != one.address
    async with await two.subscribe("old.news", since=60.0) as events:
        assert (await anext(events)).payload == b"text"


async def test_a_task_comes_back_with_its_result(one: Agent, two: Agent) -> None:
    async def shout(job: Job) -> str:
        return job.text.upper()

    async with serving(two, shout):
        handle = await one.submit("a-2", "hello")
        result = await handle
        assert (result.status, result.result) == ("SUCCEEDED", "HELLO")
        assert result.id == handle.task_id
        assert await handle == result
        several = [await one.submit(two.node_id, f"n{i}") for i in range(20)]
        texts = [(await each).result for each in several]
    assert texts == [f"N{i}" for i in range(20)]


async def test_a_long_result_arrives_whole(one: Agent, two: Agent) -> None:
    def repeat(job: Job) -> str:
        return job.text * 300_000

    async with serving(two, repeat):
        result = await (await one.submit("a-2", "äb"))
    assert result.result == "äb" * 300_000


async def test_what_a_handler_raises_fails_the_task(one: Agent, two: Agent) -> None:
    async def refuse(job: Job) -> str:
        raise ValueError(f"not {job.text}")

    async with serving(two, refuse):
        result = await (await one.submit("a-2", "this"))
    assert result.status == "FAILED"
    assert result.error == "ValueError: not this"


async def test_a_task_can_be_cancelled(one: Agent, two: Agent) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(job: Job) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    async with serving(two, wait):
        handle = await one.submit("a-2", "long")
        await begun.wait()
        assert not handle.is_done
        await handle.cancel()
        assert (await handle).status == "CANCELLED"
        await cancelled.wait()
        await handle.cancel()


async def test_trust_is_asked_for_and_given(net: World, two: Agent) -> None:
    place = net.home / "stranger"
    async with await Agent.join(
        "stranger", rendezvous=net.registry, beacon=net.beacon, home=place
    ) as stranger:
        await stranger.handshake(two.node_id, "let us work")
        async with asyncio.timeout(20):
            # Nobody announces it.
            while not (pending := await two.pending()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert pending[0]["node_id"] == stranger.node_id
        assert pending[0]["justification"] == "let us work"
        await two.approve(stranger.node_id)
        trusted = [row["node_id"] for row in await two.trusted()]
        assert stranger.node_id in trusted
        await two.untrust(stranger.node_id)
        trusted = [row["node_id"] for row in await two.trusted()]
        assert stranger.node_id not in trusted


async def test_an_agent_tells_its_score_and_networks(one: Agent) -> None:
    assert isinstance(await one.polo(), int)
    assert len(await one.networks()) == 1


async def test_a_private_agent_lives_as_long_as_its_object(net: World) -> None:
    home = net.home / "scout"
    async with await Agent.join(
        "scout", rendezvous=net.registry, beacon=net.beacon, tags=["s"], home=home
    ) as scout:
        address = scout.address
        assert scout.name == "scout"
        assert [each.name async for each in scout.find(tags=["s"])] == ["scout"]
    with pytest.raises(NotRunning):
        await Agent.connect(home / "agent.sock")
    async with await Agent.join(
        "scout", rendezvous=net.registry, beacon=net.beacon, home=home
    ) as again:
        assert again.address == address


async def test_a_daemon_that_cannot_start_says_why(net: World) -> None:
    with pytest.raises(PilotError, match="not host:port"):
        await Agent.join("x", rendezvous="nowhere:1:1", home=net.home / "x")


async def test_a_handle_fails_when_the_agent_is_closed(net: World, two: Agent) -> None:
    agent = await Agent.connect(net.socket("crew"), name="a-1")
    handle = await agent.submit("a-2", "never done")
    await agent.close()
    with pytest.raises(PilotError):
        await handle
