"""Our subscriptions and publishers at an official 1.18.0 broker, and the reverse."""

from __future__ import annotations

import asyncio
import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import NotSupported
from pilotfleet.fleet.agent import Agent
from tests.support.programs import BIN, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        made.start_daemon("ours", "--hostname", "ours", "--public")
        made.start_official_daemon("theirs", "-hostname", "theirs", "-public")
        yield made


async def test_official_broker_serves_patterns_and_confirms_nothing(net: World) -> None:
    async with (
        await Agent.connect(net.socket("ours")) as agent,
        await agent.subscribe("fleet.*", broker="theirs") as events,
    ):
        for topic in ("fleet.a", "other", "fleet.b.c"):
            sent = await asyncio.to_thread(
                net.official_ctl, "theirs", "publish", "ours", topic, "--data", "x"
            )
            data_of(sent)
            await agent.publish(topic, "y", broker="theirs")
        async with asyncio.timeout(30):
            got = [await anext(events) for _ in range(2)]
        assert [event.topic for event in got] == ["fleet.a", "fleet.b.c"]
        assert {event.payload for event in got} == {b"y"}
        with pytest.raises(NotSupported, match="does not confirm events"):
            await agent.publish("t", "x", broker="theirs", confirm=True)


@pytest.mark.parametrize(
    "taking",
    [
        ("events", "subscribe", "--broker", "theirs", "--topic", "fleet.*"),
        ("subscribe", "theirs", "fleet.*"),
    ],
)
def test_commands_choose_at_an_official_broker(
    net: World, taking: tuple[str, ...]
) -> None:
    flags = ("--count", "2", "--timeout", "60s")
    argv = (BIN / "pilotctl", "--json", *taking, *flags)
    with subprocess.Popen(
        [str(word) for word in argv],
        env=net.environment(PILOT_SOCKET=str(net.socket("ours"))),
        stdout=subprocess.PIPE,
    ) as command:
        # From the first second on, when it does not know yet whose broker it is.
        topics = ["other", "fleet.a", "fleet.b.c"]
        while command.poll() is None:
            for topic in topics:
                data_of(net.ctl("ours", "publish", "theirs", topic, "--data", "x"))
        assert command.stdout is not None
        events = json.load(command.stdout)["data"]["events"]
    assert {event["topic"] for event in events} == {"fleet.a", "fleet.b.c"}


def test_the_official_form_takes_patterns_at_our_broker(net: World) -> None:
    """Also through an official daemon, whose extension there is none of."""
    taking = ("subscribe", "ours", "fleet.*", "--count", "1", "--timeout", "60s")
    argv = (BIN / "pilotctl", "--json", *taking)
    with subprocess.Popen(
        [str(word) for word in argv],
        env=net.environment(PILOT_SOCKET=str(net.socket("theirs"))),
        stdout=subprocess.PIPE,
    ) as command:
        while command.poll() is None:
            data_of(net.ctl("ours", "events", "publish", "fleet.a", "--data", "x"))
        assert command.stdout is not None
        events = json.load(command.stdout)["data"]["events"]
    assert [event["topic"] for event in events] == ["fleet.a"]


async def test_official_clients_publish_to_our_subscription(net: World) -> None:
    async with (
        await Agent.connect(net.socket("ours")) as agent,
        await agent.subscribe("fleet.*") as events,
    ):
        data_of(net.official_ctl("theirs", "publish", "ours", "fleet.a", "--data", "1"))
        async with asyncio.timeout(30):
            assert await anext(events) == ("fleet.a", b"1")
