"""The article's two commands on a fleet that is up, as they are written there."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from tests.fleet.support import write_spec
from tests.fleet.upsupport import fleet, fleet_world
from tests.support.programs import BIN

if TYPE_CHECKING:
    from tests.support.programs import World

HEALTH = '{"agent":"me\\u001b[2J","status":"idle"}'


def events(net: World, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "pilotctl", "events", *argv],
        env=net.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_commands_find_the_hub_of_the_fleet_that_runs() -> None:
    with fleet_world() as net:
        none = events(net, "publish", "--topic", "fleet.health", "--data", HEALTH)
        assert none.returncode == 1
        assert "daemon is not running" in none.stderr
        up = fleet(net, "up", write_spec(net, "cat", count=3))
        assert up.returncode == 0, up.stderr
        try:
            sent = events(net, "publish", "--topic", "fleet.health", "--data", HEALTH)
            assert sent.returncode == 0, sent.stderr
            heard = events(
                net,
                *("subscribe", "--topic", "fleet.*", "--since", "1m", "--json"),
                *("--count", "40", "--timeout", "5s"),
            )
            rows = json.loads(heard.stdout)["data"]["events"]
            assert ("fleet.health", HEALTH) in [
                (row["topic"], row["data"]) for row in rows
            ]
            assert events(net, "status").stdout.startswith("subscribers")
        finally:
            fleet(net, "down", "--now")
