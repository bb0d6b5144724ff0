"""A fleet, a monitor of it, and a count of the same that the monitor has no part in.

The count is made from what ``pilotctl events subscribe`` prints, from ``pilotctl
find-agents`` and from what is on the registry's disk.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final

from tests.cli.monitorsupport import Watched
from tests.fleet.support import write_tasks
from tests.fleet.upsupport import fleet, start_fleet_command
from tests.support.programs import BIN, data_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.programs import Program, World

__all__ = ["NAME", "CountedFleet", "nearest_rank"]

NAME: Final = "count"
RUN_S: Final = 280
POLL_S: Final = 0.1
HEALTH: Final = "2s"

WORK: Final = """
read -r kind seconds
sleep "$seconds"
test "$kind" = good && echo done
"""
"""A task text is ``good`` or ``bad`` and for how long."""


class CountedFleet:
    """The fleet is up once :meth:`up` returns; who made the world takes it down."""

    def __init__(self, net: World) -> None:
        self.net = net
        self.home = net.home / ".pilot" / "fleets" / NAME
        self.history = net.home / "history"
        self.monitor = Watched(
            net,
            flags=("--home", self.history),
            daemon=str((self.home / "run" / "hub").relative_to(net.home)),
            fleet=NAME,
        )
        self._raw: Program

    def up(self, workers: int) -> None:
        """Start the fleet, as a user does, and what writes all events down."""
        script, spec = self.net.home / "work.sh", self.net.home / "fleet.toml"
        script.write_text(WORK)
        lines = [
            *("[fleet]", f'name = "{NAME}"', 'pattern = "hub-and-spoke"'),
            *("[workers]", f"count = {workers}", f'exec = "sh {script}"'),
            *("[health]", f'interval = "{HEALTH}"'),
        ]
        spec.write_text("".join(f"{line}\n" for line in lines))
        started = fleet(self.net, "up", spec)
        assert started.returncode == 0, started.stderr
        self._raw = self.net.start(
            "raw",
            *(BIN / "pilotctl", "events", "subscribe", "--topic", "fleet.*", "--json"),
        )
        self._raw.wait_until(lambda: b"\n" in self._raw.log.read_bytes())

    def submit(self, texts: dict[str, str]) -> subprocess.Popen[str]:
        """Give tasks; the command ends when all of them have."""
        tasks = write_tasks(self.net, texts)
        flags = ("--tasks", tasks, "--wait", "--json")
        return start_fleet_command(self.net, "submit", *flags)

    def finish(self, run: subprocess.Popen[str]) -> dict[str, Any]:
        """Return the summary of a run once it is over."""
        stdout, stderr = run.communicate(timeout=RUN_S)
        assert stdout, stderr
        summary: dict[str, Any] = json.loads(stdout.splitlines()[-1])["data"]
        return summary

    def ctl(self, daemon: str, *argv: str) -> Any:
        """Return the data of ``pilotctl`` at a daemon of the fleet."""
        socket = self.home / "run" / f"{daemon}.sock"
        done = subprocess.run(
            [BIN / "pilotctl", "--json", *argv],
            env=self.net.environment(PILOT_SOCKET=str(socket)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return data_of(done)

    # What is counted without the monitor

    def events(self, topic: str) -> list[dict[str, Any]]:
        """Return the events of a topic that came so far."""
        text = self._raw.log.read_text().rpartition("\n")[0]
        rows = map(json.loads, text.splitlines())
        return [json.loads(row["data"]) for row in rows if row["topic"] == topic]

    def agents(self) -> set[str]:
        """Return who was heard."""
        return {event["agent"] for event in self.events("fleet.health")}

    def ends(self) -> list[dict[str, Any]]:
        """Return the ends of tasks; one that was published again is one."""
        rows = [row for event in self.events("fleet.task") for row in event["tasks"]]
        return list(
            {(row["agent"], row["task_id"], row["at"]): row for row in rows}.values()
        )

    def wait_ends(self, count: int) -> list[dict[str, Any]]:
        """Return the ends of tasks when there are so many."""
        self._raw.wait_until(lambda: len(self.ends()) >= count)
        rows = self.ends()
        assert len(rows) == count
        return rows

    def polo(self) -> list[int]:
        """Return the scores of who was heard, as the registry tells, lowest first."""
        found = self.ctl("hub", "find-agents", "--limit", "1000")["agents"]
        heard = self.agents()
        return sorted(row["polo"] for row in found if row["hostname"] in heard)

    def trust_links(self) -> set[tuple[str, str]]:
        """Return who trusts whom by the registry's disk, where both do."""
        path = self.home / "registry.db"
        query = "SELECT key FROM entries WHERE key LIKE 'grant.%' AND value NOT NULL"
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        ) as database:
            keys = [key.split(".") for (key,) in database.execute(query)]
        grants = {(one, other) for _, one, other in keys}
        return {(one, other) for one, other in grants if (other, one) in grants}

    # What the monitor has

    def seconds(self) -> dict[int, dict[str, float]]:
        """Return its history by second; it must have ended."""
        path = self.history / "monitor.db"
        query = (
            "SELECT seconds.* FROM seconds JOIN subjects"
            " ON seconds.id / (1 << 33) = subjects.id WHERE tag = ''"
        )
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.row_factory = sqlite3.Row
            return {row["at"]: dict(row) for row in database.execute(query)}

    def wait(self, is_so: Callable[[dict[str, Any]], bool], *, limit_s: float) -> None:
        """Return when its figures are so."""
        deadline = time.monotonic() + limit_s
        program = self.monitor.running().process
        while not is_so(figures := self.monitor.figures()):
            assert time.monotonic() < deadline, figures
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(POLL_S)


def nearest_rank(ranked: list[Any], percent: int) -> Any:
    """Return the percentile of nearest rank."""
    return ranked[max(1, math.ceil(percent * len(ranked) / 100)) - 1]
