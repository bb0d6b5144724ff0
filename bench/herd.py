"""10,000 agents that start at the same instant; a rendezvous that is killed under them.

Another process searches all the time. Two kinds of herd: ten hosts of 1,000 agents, and
10,000 connections of the real client, as separate daemons would have them. Admission
holds for this machine as well (``--limit-local``).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bench.machine import ROOT
from bench.processmemory import cpu_seconds
from bench.report import Table, Target
from bench.simulation.account import percentile
from tests.support.programs import BIN, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.options import Options
    from bench.report import Cell
    from tests.support.programs import Program, World

AGENTS = 10_000
HOSTS = 10
LOADERS = 2
"""Programs that share the separate connections: 20,000 files are one's limit."""
TAG = "herd"
KEEPALIVE_S = 60.0
LIMIT_S = 600.0
POLL_S = 0.02
LIMITED = "--limit-local"


@dataclass(frozen=True, slots=True)
class Herd:
    """What one herd has done to the registry."""

    what: str
    agents: int
    seconds: float
    """Until all were up, or all were heard again."""
    searches_ms: list[float]
    lost: int
    """Searches without an answer."""
    cpu_s: float
    """Of the rendezvous, meanwhile."""
    failures: int | None
    """Requests of agents that failed; unknown of hosts."""
    peak_per_s: int | None


class Prober:
    """The program that searches."""

    def __init__(self, net: World, tag: str = TAG) -> None:
        # A file, since a pipe that nobody reads for a while would stop the searches.
        log = net.home / "searches.jsonl"
        with log.open("w") as output:
            self._process = _start("bench.herdprobe", net.registry, tag, output=output)
        self._lines = log.open()
        self.rows: list[dict[str, Any]] = []

    def found(self) -> int:
        """Wait for the next search; return how many agents it found."""
        line = self._lines.readline()
        while not line.endswith("\n"):
            if self._process.poll() is not None:
                raise RuntimeError("the prober has ended")
            time.sleep(POLL_S)
            line += self._lines.readline()
        self.rows.append(json.loads(line))
        total: int = self.rows[-1]["total"]
        return total

    def read_until(self, at: float) -> None:
        """Take all searches that were sent before a moment."""
        while self.rows[-1]["at"] < at:
            self.found()

    def wait_for(self, agents: int) -> float:
        """Return when (unix time) a search first found so many.

        Raises:
            RuntimeError: None does in time.
        """
        deadline = time.monotonic() + LIMIT_S
        while self.found() < agents:
            if time.monotonic() > deadline:
                total = self.rows[-1]["total"]
                raise RuntimeError(f"{total} of {agents} agents after {LIMIT_S:.0f} s")
        found: float = self.rows[-1]["at"]
        return found

    def between(self, since: float, until: float) -> tuple[list[float], int]:
        """Return the milliseconds of the searches sent then, and how many were lost."""
        rows = [row["ms"] for row in self.rows if since <= row["at"] <= until]
        return [ms for ms in rows if ms is not None], rows.count(None)

    def lost(self) -> int:
        """Return how many searches had no answer so far."""
        return sum(row["ms"] is None for row in self.rows)

    def stop(self) -> None:
        """End the program."""
        _stop(self._process)
        self._lines.close()


class Loader:
    """A program with many separate agents."""

    def __init__(self, net: World, number: int, *, agents: int, keepalive_s: float):
        prefix = f"herd-{number}-"
        self._process = _start(
            *("bench.herdload", net.registry, agents, prefix, keepalive_s)
        )
        self.agents = agents
        self.last = self._line()
        self.answers: dict[int, int] = {}

    def go(self) -> None:
        """Let the agents start, or begin a new count of those who were heard."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def wait_for(self, is_so: Callable[[dict[str, Any]], bool]) -> float:
        """Return when (unix time) the program said that it is so."""
        deadline = time.monotonic() + LIMIT_S
        while not is_so(self.last):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not after {LIMIT_S:.0f} s: {self.last}")
            self.last = self._line()
        at: float = self.last["at"]
        return at

    def finish(self) -> None:
        """End the program and take what it has counted."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.stdout is not None
        for line in self._process.stdout:
            row = json.loads(line)
            for second, count in row.get("answers", {}).items():
                self.answers[int(second)] = count
        self._process.wait()

    def kill(self) -> None:
        """End the program at once."""
        _stop(self._process)

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        row: dict[str, Any] = json.loads(self._process.stdout.readline() or "{}")
        if not row:
            raise RuntimeError("the load program has ended")
        return row


def measure(options: Options) -> list[Table]:
    """Measure both herds, and the restart under the connected one."""
    agents = options.scaled(AGENTS)
    keepalive_s = 10.0 if options.quick else KEEPALIVE_S
    hosts = _hosts(agents, options.scaled(HOSTS))
    separate, again = _separate(agents, keepalive_s)
    herds = (hosts, separate, again)
    worst = max(hosts, separate, key=lambda herd: _p(herd, 0.99))
    method = "real programs on loopback with admission on; a process that searches"
    targets = (
        Target(
            *("herd_search_p99_ms", "search while 10,000 start at once, p99", "ms"),
            *(_p(worst, 0.99), None, f"{method}; the worse of the two herds"),
        ),
        Target(
            *("herd_start_s", "10,000 that start at once are all up", "s"),
            *(max(hosts.seconds, separate.seconds), None, f"{method}; the slower herd"),
        ),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            *(herd.what, herd.agents, herd.seconds, len(herd.searches_ms)),
            *(_p(herd, 0.5), _p(herd, 0.99), max(herd.searches_ms, default=0.0)),
            *(herd.lost, herd.cpu_s, herd.peak_per_s, herd.failures),
        )
        for herd in herds
    ]
    columns = (
        *("herd", "agents", "all up or heard again, s", "searches", "p50, ms"),
        *("p99, ms", "slowest, ms", "lost", "rendezvous, CPU s"),
        *("most replies in a second", "failed requests of agents"),
    )
    note = (
        "All programs share the machine's processors. A search goes out 20 ms after the"
        " reply to the last one. After the restart, searches count that were sent when"
        " the rendezvous was ready again; lost ones fell into its absence."
    )
    return [Table("Herds", columns, rows, note, targets)]


def _hosts(agents: int, hosts: int) -> Herd:
    with _herd_world() as (net, rendezvous, prober):
        before, began = cpu_seconds(rendezvous.process.pid), time.time()
        for number in range(hosts):
            _start_host(net, f"host-{number}", agents // hosts)
        until = prober.wait_for(agents)
        times, lost = prober.between(began, until)
        return Herd(
            what=f"{hosts} hosts start",
            agents=agents,
            seconds=until - began,
            searches_ms=times,
            lost=lost,
            cpu_s=cpu_seconds(rendezvous.process.pid) - before,
            failures=None,
            peak_per_s=None,
        )


def _separate(agents: int, keepalive_s: float) -> tuple[Herd, Herd]:
    with _herd_world() as (net, rendezvous, prober), contextlib.ExitStack() as stack:
        loaders = []
        for number in range(LOADERS):
            share = agents // LOADERS
            loader = Loader(net, number, agents=share, keepalive_s=keepalive_s)
            stack.callback(loader.kill)
            loaders.append(loader)
        before, began = cpu_seconds(rendezvous.process.pid), time.time()
        for loader in loaders:
            loader.go()
        until = max(prober.wait_for(agents), *map(_all_up, loaders))
        spent = cpu_seconds(rendezvous.process.pid) - before
        times, lost = prober.between(began, until)
        failures = sum(loader.last["failures"] for loader in loaders)
        killed, ready, whole, cpu_s = _restart(net, rendezvous, prober, loaders)
        more = sum(loader.last["failures"] for loader in loaders) - failures
        for loader in loaders:
            loader.finish()
        started = Herd(
            what="separate connections start",
            agents=agents,
            seconds=until - began,
            searches_ms=times,
            lost=lost,
            cpu_s=spent,
            failures=failures,
            peak_per_s=_peak(loaders, began, until),
        )
        times, _ = prober.between(ready, whole)
        _, lost = prober.between(killed, whole)
        again = Herd(
            what=f"restart under them, keepalive {keepalive_s:.0f} s",
            agents=agents,
            seconds=whole - killed,
            searches_ms=times,
            lost=lost,
            cpu_s=cpu_s,
            failures=more,
            peak_per_s=_peak(loaders, ready, whole),
        )
        return started, again


def _restart(
    net: World, rendezvous: Program, prober: Prober, loaders: list[Loader]
) -> tuple[float, float, float, float]:
    """Kill the rendezvous and start it again.

    Returns when it was killed, was ready again, and had heard all; and its time.
    """
    rendezvous.kill()
    killed = time.time()
    for loader in loaders:
        loader.go()
        # Read on until the count began anew, or an old line would do.
        loader.last = {"at": 0.0, "heard": 0, "failures": 0, "up": 0}
        loader.wait_for(lambda row: row["at"] > killed)
    again = net.start_rendezvous(None, LIMITED)
    ready = time.time()
    whole = max(map(_all_heard, loaders))
    spent = cpu_seconds(again.process.pid)
    prober.read_until(whole)
    return killed, ready, whole, spent


def _all_up(loader: Loader) -> float:
    return loader.wait_for(lambda row: row.get("up") == loader.agents)


def _all_heard(loader: Loader) -> float:
    return loader.wait_for(lambda row: row.get("heard") == loader.agents)


def _start_host(net: World, name: str, agents: int) -> Program:
    return net.start(
        name,
        *(BIN / "pilot-daemon", "--registry", net.registry, "--beacon", net.beacon),
        *("--listen", "127.0.0.1:0", "--socket", net.socket(name)),
        *("--home", net.home / name, "--agents", str(agents)),
        *("--agent-prefix", f"{name}-", "--tag", TAG, "--public"),
    )


@contextlib.contextmanager
def _herd_world() -> Iterator[tuple[World, Program, Prober]]:
    with world() as net:
        rendezvous = net.start_rendezvous(None, LIMITED)
        prober = Prober(net)
        try:
            prober.found()
            yield net, rendezvous, prober
        finally:
            prober.stop()


def _start(
    module: str, *argv: object, output: int | IO[str] = subprocess.PIPE
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, argv)],
        cwd=Path(ROOT),
        stdin=subprocess.PIPE,
        stdout=output,
        text=True,
    )


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):
            if stream is not None:
                stream.close()


def _peak(loaders: list[Loader], since: float, until: float) -> int:
    seconds = range(int(since), int(until) + 1)
    return max(sum(each.answers.get(at, 0) for each in loaders) for at in seconds)


def _p(herd: Herd, share: float) -> float:
    return percentile(herd.searches_ms, share)
