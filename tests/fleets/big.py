"""One `pilotctl fleet run` of a big fleet, watched and hurt from outside."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.fleet.support import children_of, read_results
from tests.support.programs import BIN, data_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.support.programs import World

__all__ = ["BigFleet"]

LIMIT_S: Final = 900
"""On two idle cores a run takes a sixth of it."""
POLL_S: Final = 0.25


class BigFleet:
    """A fleet, the run that is under way, and what was measured."""

    def __init__(self, net: World) -> None:
        self.net = net
        self.home = net.home / "home"
        self.results = net.home / "results.jsonl"
        self.tasks = net.home / "tasks.jsonl"
        self.spec = net.home / "fleet.toml"
        self.measured: dict[str, Any] = {}
        self.run: subprocess.Popen[str]

    def describe(
        self, *, pattern: str, count: int, command: str, more: Iterable[str] = ()
    ) -> None:
        """Write the specification."""
        lines = [
            *("[fleet]", 'name = "big"', f'pattern = "{pattern}"'),
            *("[workers]", f"count = {count}", f"exec = {json.dumps(command)}", *more),
        ]
        self.spec.write_text("".join(f"{line}\n" for line in lines))

    def write_tasks(self, texts: dict[str, str]) -> None:
        """Write a task file: a text for each id."""
        rows = (json.dumps({"id": key, "task": text}) for key, text in texts.items())
        self.tasks.write_text("".join(f"{row}\n" for row in rows))

    def start(self) -> None:
        """Give the command; always the same one."""
        self.run = subprocess.Popen(
            [
                *(BIN / "pilotctl", "fleet", "run", self.spec, "--json"),
                *("--tasks", self.tasks, "--results", self.results),
                *("--home", self.home),
            ],
            env=self.net.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> dict[str, Any]:
        """Wait for the end of a run that must succeed; return its summary."""
        stdout, stderr = self.run.communicate(timeout=LIMIT_S)
        assert self.run.returncode == 0, stderr + stdout
        assert "Traceback" not in stderr
        summary: dict[str, Any] = json.loads(stdout.splitlines()[-1])
        self.measured["summary"] = summary
        return summary

    # While it runs

    def wait_for(self, is_so: Callable[[], bool], what: str) -> None:
        """Return as soon as it is so; fail when the run ends before."""
        deadline = time.monotonic() + LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline, f"{what}: not after {LIMIT_S} s"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run.wait(POLL_S)
                raise AssertionError(f"the run ended before {what}")

    def wait_for_results(self, count: int) -> None:
        """Return once so many results are in the file."""
        self.wait_for(lambda: self.lines >= count, f"{count} results")

    @property
    def lines(self) -> int:
        """Lines in the result file."""
        with contextlib.suppress(FileNotFoundError):
            return self.results.read_bytes().count(b"\n")
        return 0

    def status(self) -> dict[str, Any]:
        """Return what ``pilotctl fleet status --json`` says."""
        done = subprocess.run(
            [BIN / "pilotctl", "fleet", "status", "--home", self.home, "--json"],
            env=self.net.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        answer: dict[str, Any] = data_of(done)
        return answer

    def kill(self, *members: str) -> None:
        """SIGKILL programs of the fleet, and the commands that they run."""
        pids = {row["name"]: row["pid"] for row in self.status()["members"]}
        assert all(pids[name] for name in members)
        kill_at_once(pids[name] for name in members)

    def measure_memory(self) -> None:
        """Note how much all programs of the fleet have."""
        pids = [self.run.pid, *children_of(self.run.pid)]
        sizes = [size for size in map(_memory_kib, pids) if size is not None]
        self.measured["programs"] = len(sizes)
        self.measured["memory_mib"] = round(sum(rss for rss, _ in sizes) / 1024)
        # What programs share counts once here.
        self.measured["memory_own_mib"] = round(sum(pss for _, pss in sizes) / 1024)

    # Afterwards

    def check_results(self, expected: dict[str, str]) -> None:
        """Check that there is one line for each task, and the right one."""
        rows = read_results(self.results)
        assert self.lines == len(expected)
        assert rows.keys() == expected.keys()
        assert {row["status"] for row in rows.values()} == {"SUCCEEDED"}
        assert {key: row["result"] for key, row in rows.items()} == expected

    def check_journal(self, count: int) -> None:
        """Check that so many tasks and results ever came into the journal.

        A complete run forgets its rows; their numbers are never given again.
        """
        numbers = dict(
            self.query("journal.db", "SELECT name, seq FROM sqlite_sequence")
        )
        assert numbers["tasks"] == numbers["results"] == count

    def query(self, database: str, query: str) -> list[tuple[Any, ...]]:
        """Ask a database of the home, as it is on the disk."""
        path = self.home / database
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        with contextlib.closing(connection):
            return connection.execute(query).fetchall()

    def print_measured(self) -> None:
        """Show what was measured."""
        sys.stderr.write(f"\n{json.dumps(self.measured, indent=2)}\n")


def kill_at_once(pids: Iterable[int]) -> None:
    """SIGKILL processes and all below them, before any of them can do more."""
    doomed = [each for pid in pids for each in (pid, *children_of(pid))]
    # Stopped first: the end of one must not be seen by another.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def digests(count: int) -> Iterator[tuple[str, str, str]]:
    """Yield ids, texts and what ``sha256sum`` makes of the texts."""
    for number in range(count):
        text = f"the text of task {number}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        yield f"t{number}", text, f"{digest}  -\n"


def _memory_kib(pid: int) -> tuple[int, int] | None:
    """Return resident and proportional size; None of what has ended."""
    sizes: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            key, value = line.split()[:2]
            sizes[key] = int(value)
    return (sizes["Rss:"], sizes["Pss:"]) if "Pss:" in sizes else None
