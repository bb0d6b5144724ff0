"""Machines that each run a part of one fleet: a namespace, an address, a home each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.fleet.control import FleetControl
from tests.paths.nat import Host, Internet, run
from tests.support.programs import BIN, data_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Machine", "Machines", "agents_of", "ended", "machines"]

COMMAND_S: Final = 150.0
POLL_S: Final = 0.05
FLEET: Final = "crowd"
NAMES: Final = ("one", "two", "three")


@dataclass
class Machine:
    """One machine; its user's home is a folder that no other machine looks into."""

    host: Host
    home: Path
    spec: Path
    """The same file for all machines, as if it had been copied."""
    part: str
    env: dict[str, str] = field(default_factory=dict)
    """Variables of its user."""

    @property
    def fleet_home(self) -> Path:
        """Where its part of the fleet lives."""
        return self.home / ".pilot" / "fleets" / FLEET

    def start(self, *argv: object, **env: str) -> subprocess.Popen[str]:
        """Start ``pilotctl fleet …``."""
        words = ["ip", "netns", "exec", self.host.name, BIN / "pilotctl", "fleet"]
        return subprocess.Popen(
            [str(word) for word in (*words, *argv)],
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), **self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def fleet(self, *argv: object, **env: str) -> subprocess.CompletedProcess[str]:
        """Run ``pilotctl fleet …`` to its end."""
        return ended(self.start(*argv, **env))

    def data(self, *argv: object) -> Any:
        """Return the data of a command that must succeed."""
        return data_of(self.fleet(*argv, "--json"))

    def start_up(self, *more: object) -> subprocess.Popen[str]:
        """Start its part of the fleet; ``ended`` waits until that is up."""
        return self.start("up", self.spec, "--part", self.part, *more)

    def status(self) -> dict[str, Any]:
        """Return what ``fleet status`` says here."""
        status: dict[str, Any] = self.data("status")
        return status

    def wait_until(self, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Return the status as soon as it is so."""
        # Not by the command: its start costs more than what is waited for.
        control = FleetControl(self.fleet_home)
        end = time.monotonic() + COMMAND_S
        while time.monotonic() < end:
            status = asyncio.run(control.status())
            if is_so(status):
                return status
            time.sleep(POLL_S)
        raise AssertionError(f"it never was so: {status}")

    def kill(self) -> None:
        """Lose all that runs here, as in a power cut."""
        pids = run("ip", "netns", "pids", self.host.name).split()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def cut(self) -> None:
        """Pull the cable: nobody is told anything."""
        self.host.run("ip", "link", "set", "eth0", "down")

    def plug(self) -> None:
        """Put the cable back."""
        self.host.run("ip", "link", "set", "eth0", "up")

    def member_pids(self, *names: str) -> list[int]:
        """Return the processes of these members of its part."""
        rows = self.status()["members"]
        return [row["pid"] for row in rows if row["name"] in names]


@dataclass
class Machines:
    """Three machines on one cable, and the folder of their homes."""

    folder: Path
    spec: Path
    all: list[Machine]

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.all)

    @property
    def first(self) -> Machine:
        """The machine of part 1."""
        return self.all[0]

    def write_spec(self, pattern: str, workers: str) -> None:
        """Write the specification that all parts have."""
        self.spec.write_text(
            f'[fleet]\nname = "{FLEET}"\npattern = "{pattern}"\n'
            f'listen = "{self.first.host.ip}"\n{workers}'
        )

    def up(self) -> None:
        """Start all parts at the same time; return when all are up."""
        starts = [machine.start_up() for machine in self]
        for start in starts:
            done = ended(start)
            assert done.returncode == 0, done.stderr

    def write_tasks(self, name: str, count: int) -> tuple[Path, Path]:
        """Write a task file; return it and where results shall go."""
        tasks = self.first.home / f"{name}.jsonl"
        rows = ({"id": f"{name}-{nr}", "task": f"text {nr}"} for nr in range(count))
        tasks.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return tasks, self.first.home / f"{name}.results.jsonl"


def ended(command: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Return what a command has said in the end."""
    stdout, stderr = command.communicate(timeout=COMMAND_S)
    assert "Traceback" not in stderr
    return subprocess.CompletedProcess(command.args, command.returncode, stdout, stderr)


def agents_of(results: Path) -> Counter[str]:
    """Return how many tasks each agent did; each id stands there once."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return Counter(row["agent"] for row in rows)


@contextlib.contextmanager
def machines() -> Iterator[Machines]:
    """Yield three machines; everything is taken away at the end."""
    with tempfile.TemporaryDirectory(prefix="pm-") as name:
        folder, internet = Path(name), Internet()
        made = Machines(folder, folder / "fleet.toml", [])
        try:
            for number, word in enumerate(NAMES, 1):
                host = internet.public_host(word)
                (folder / word).mkdir()
                part = f"{number}/{len(NAMES)}"
                made.all.append(Machine(host, folder / word, made.spec, part))
            yield made
        finally:
            for machine in made:
                machine.kill()
            internet.close()
