"""The article's two commands on a fleet that is up, as they are written there."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING
from urllib.request import urlopen

from tests.fleet.support import write_spec
from tests.fleet.upsupport import fleet, fleet_world
from tests.support.programs import BIN

if TYPE_CHECKING:
    from tests.support.programs import Program, World

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


def start_monitor(net: World, *flags: object) -> Program:
    argv = ("--broker", "fleet-hub", "--http", "127.0.0.1:0", *flags)
    return net.start("monitor", BIN / "pilot-monitor", *argv)


def agents(http: str) -> set[str]:
    with urlopen(f"http://{http}/api/fleets/fleet/agents") as answer:
        return {row["name"] for row in json.load(answer)["rows"]}


def test_the_commands_find_the_hub_of_the_fleet_that_runs() -> None:
    with fleet_world() as net:
        none = events(net, "publish", "--topic", "fleet.health", "--data", HEALTH)
        assert none.returncode == 1
        assert "daemon is not running" in none.stderr
        unheard = start_monitor(net)
        assert unheard.process.wait(60) == 1
        assert "daemon is not running, and no fleet" in unheard.log.read_text()
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
            # As the README prints it: neither socket nor daemon is named.
            ready = net.home / "monitor.ready.json"
            monitor = start_monitor(net, "--ready-file", ready)
            monitor.wait_until(ready.exists)
            http = json.loads(ready.read_text())["http"]
            monitor.wait_until(lambda: "worker-1" in agents(http))
            monitor.kill()
        finally:
            fleet(net, "down", "--now")
