"""The programs as a user has them: discovery and events over real tunnels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support import programs
from tests.support.programs import data_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World


@pytest.fixture
def world() -> Iterator[World]:
    """Yield a machine without any program running."""
    with programs.world() as world:
        yield world


def test_events_and_discovery_across_daemons(world: World) -> None:
    world.start_rendezvous()
    world.start_daemon("hub", "--hostname", "hub", "--public", "--tag", "broker")
    world.start_daemon("worker", "--hostname", "worker", "--public")

    found = data_of(world.ctl("worker", "find-agents", "--tag", "broker"))
    assert [agent["hostname"] for agent in found["agents"]] == ["hub"]
    assert [row["name"] for row in data_of(world.ctl("hub", "agents"))["agents"]]

    # An own broker is reached without a tunnel, another one over its connection.
    for topic, broker in (("fleet.a", "hub"), ("fleet.b", "hub"), ("other", "hub")):
        tokens = ["--topic", topic, "--data", "{}", "--broker", broker]
        published = data_of(world.ctl("worker", "events", "publish", *tokens))
        assert published["bytes"] == 2
    data_of(world.ctl("hub", "events", "publish", "--topic=fleet.c", "--data=own"))

    tokens = ["--topic", "fleet.*", "--since", "10m", "--count", "3", "--timeout=20s"]
    for name, flags in (("hub", []), ("worker", ["--broker", "hub"])):
        result = data_of(world.ctl(name, "events", "subscribe", *tokens, *flags))
        topics = [event["topic"] for event in result["events"]]
        assert topics == ["fleet.a", "fleet.b", "fleet.c"]
