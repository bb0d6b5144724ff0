"""One ``pilot-monitor`` for two fleets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.monitorsupport import Watched, publisher, start_hub
from tests.fleet.crewsupport import PRIVATE_FLEET
from tests.support.programs import data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World


@pytest.fixture
def net() -> Iterator[World]:
    """Yield the hub of a fleet, and that of another one in the same network."""
    with world() as made:
        start_hub(made)
        node = str(data_of(made.ctl("hub", "info"))["node_id"])
        network = made.run_ctl_admin(
            "network", "create", "--name", "all", "--node-id", node
        )
        made.start_daemon(
            "night",
            *("--hostname", "night-hub", "--broker", "night-hub"),
            *("--join", str(data_of(network)["network_id"]), *PRIVATE_FLEET),
        )
        yield made


async def test_two_fleets_that_one_agent_reaches_are_told_apart(net: World) -> None:
    home = ("--home", net.home / "history")
    watched = Watched(net, flags=(*home, "--broker", "words-hub"))
    said = watched.refusal("--broker", "nobody-hub")
    assert "fleet nobody cannot be followed" in said
    assert "needs a monitor of its own" in said
    watched.flags += ("--broker", "night-hub")
    ready = net.home / "monitor.ready.json"
    watched.program = watched.launch("--ready-file", ready)
    watched.program.wait_until(ready.exists)
    state = json.loads(ready.read_text())
    assert state["fleets"] == ["words", "night"]
    watched.http = state["http"]
    async with publisher(net) as words, publisher(net, "night") as night:
        await words.tasks(5, failed=1)
        await night.tasks(3)
        watched.wait_tasks(4, 1)
        watched.fleet = "night"
        watched.wait_tasks(3, 0)
