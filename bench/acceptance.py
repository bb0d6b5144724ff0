"""10,000 hosted agents at work: a fleet as a user runs it, looked at for leaks.

All of them are registered, tagged and found by search; random pairs exchange data; a
batch of tasks runs over them; then they are idle for ten minutes. More loads like the
first one show what only the first ones cost, such as tunnels that stay, and what each
costs, which would be a leak. What is missed is a line of the verdict; the rest goes on.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING, Any

import uvloop

from bench import verdict
from bench.fleets import running, spec_of
from bench.hosting import Snapshot, echo, say
from bench.report import Table
from bench.verdict import MIB, State
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.errors import PilotError
from pilotfleet.fleet.agent import Agent
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.fleets import BenchFleet, Measured
    from bench.options import Options
    from bench.report import Cell

AGENTS = 10_000
QUICK_AGENTS = 50
PAIRS = 100
PAIR_BYTES = 64 * 1024
TASKS = 20_000
LOADS = 4
IDLE_MINUTES = 10
MINUTE_S = 60.0
QUICK_MINUTE_S = 2.0
LINGER_S = 15.0
"""After that, closed streams are forgotten."""
SESSION_S = 75.0
"""After that, task sessions without work are closed as well."""
TAGS = ("accepted", "bench")
HOST = "group-1"


def measure(options: Options) -> list[Table]:
    """Run it all, and say what is as it should be."""
    agents = QUICK_AGENTS if options.quick else AGENTS
    minute_s = QUICK_MINUTE_S if options.quick else MINUTE_S
    return uvloop.run(accept(agents, options.scaled(TASKS), minute_s))


async def accept(agents: int, tasks: int, minute_s: float) -> list[Table]:
    """Run so many agents and tasks; ``minute_s`` is less for a trial."""
    work = {"call": "bench.work:echo"}
    spec = spec_of("hub-and-spoke", agents, work=work)
    spec["workers"] |= {"per_process": agents, "tags": list(TAGS)}
    # What idle agents cost is asked for; what publishing costs is in `events`.
    spec["health"] = {"interval": "0s"}
    async with running(spec) as fleet:
        say(f"{agents:,} agents started in {fleet.start_s:.1f} s")
        run = _Acceptance(fleet, agents, await _host_pid(fleet))
        await run.find_all()
        await run.idle("idle, before any work", minutes=1, minute_s=minute_s)
        await run.load(tasks)
        await run.idle("idle after it", minutes=IDLE_MINUTES, minute_s=minute_s)
        for _ in range(LOADS - 1):
            await run.load(tasks)
        await run.idle("idle at the end", minutes=1, minute_s=minute_s)
        # Only now is there nothing left that is meant to be there for a while.
        await run.look("the end", SESSION_S)
        await run.find_all()
    return run.tables()


class _Acceptance:
    """A run, and what was seen in it."""

    def __init__(self, fleet: BenchFleet, agents: int, pid: int) -> None:
        self._fleet = fleet
        self._agents = agents
        self._pid = pid
        self._socket: Path = fleet.home / "run" / f"{HOST}.sock"
        self._wanted = {f"worker-{number}" for number in range(1, agents + 1)}
        self._found: list[dict[str, str]] = []
        self._pairs: list[tuple[int, float]] = []
        """How many of each load exchanged their data, and how long it took."""
        self._batches: list[Measured] = []
        self._after_load: list[State] = []
        self._states: list[State] = []

    async def find_all(self) -> None:
        """Note the address of every worker, by name, as a search by tags has them."""
        async with await Agent.connect(self._fleet.home / "run" / "hub.sock") as hub:
            found = {row.name: row.address async for row in hub.find(tags=TAGS)}
        self._found.append(found)
        say(f"a search finds {len(found):,} agents")

    async def look(self, when: str, after_s: float = 0.0) -> State:
        """Note what the process with the agents has, some time from now."""
        await asyncio.sleep(after_s)
        async with await DaemonClient.connect(self._socket) as client:
            info = await client.request_json(Command.INFO)
        state = State(when, Snapshot.take(self._pid), int(info["host_tasks"]))
        rss = state.snapshot.memory.rss / MIB
        say(f"{when}: {rss:.1f} MiB, {state.snapshot.files:,} files")
        self._states.append(state)
        return state

    async def idle(self, when: str, *, minutes: int, minute_s: float) -> None:
        """Look every minute."""
        await self.look(f"{when}: begins")
        for minute in range(1, minutes + 1):
            await self.look(f"{when}: minute {minute}", minute_s)

    async def load(self, tasks: int) -> None:
        """Have random pairs exchange data, and all agents do tasks."""
        await self._exchange()
        batch = await self._fleet.try_to_do(tasks)
        self._batches.append(batch)
        wrong = f", {len(batch.wrong):,} wrong: {batch.wrong[0]}" if batch.wrong else ""
        say(f"{tasks:,} tasks in {batch.wall_s:.1f} s{wrong}")
        number = len(self._batches)
        self._after_load.append(await self.look(f"after load {number}", LINGER_S))

    def tables(self) -> list[Table]:
        """Return all that was seen, and what is to be thought of it."""
        return [self._verdict(), self._work_table(), self._state_table()]

    async def _exchange(self) -> None:
        names = sorted(self._wanted)
        done, started = 0, time.monotonic()
        for _ in range(PAIRS):
            near, far = random.sample(names, 2)
            try:
                async with await Agent.connect(self._socket, name=near) as agent:
                    target = await agent.resolve(far)
                    async with await agent.connection() as client:
                        await echo(client, target, os.urandom(PAIR_BYTES))
                done += 1
            except* (PilotError, ValueError, TimeoutError) as trouble:
                say(f"{near} and {far}: {trouble.exceptions[0]}")
        self._pairs.append((done, time.monotonic() - started))

    def _verdict(self) -> Table:
        found, last = self._found[0], self._found[-1]
        same = sum(last.get(name) == address for name, address in found.items())
        loads, tasks = len(self._batches), self._batches[0].tasks
        right = sum(batch.tasks - len(batch.wrong) for batch in self._batches)
        pairs = sum(done for done, _ in self._pairs)
        checks = [
            verdict.all_of("agents found by tag", len(found), len(self._wanted)),
            verdict.all_of(
                "the same agents at the end", same * (last == found), len(self._wanted)
            ),
            verdict.all_of("pairs that exchanged data", pairs, PAIRS * loads),
            verdict.all_of("tasks done, each once", right, tasks * loads),
            *verdict.of_states(
                self._states, self._after_load, agents=self._agents, tasks=tasks
            ),
        ]
        return verdict.table(checks)

    def _work_table(self) -> Table:
        rows: list[tuple[Cell, ...]] = [
            (
                f"agents registered and found by {' and '.join(TAGS)}",
                *(len(self._found[0]), self._fleet.start_s, None),
            ),
        ]
        for (done, pairs_s), batch in zip(self._pairs, self._batches, strict=True):
            size = PAIR_BYTES // 1024
            rows += [
                (f"random pairs that exchanged {size} KiB", done, pairs_s, None),
                (
                    "tasks done, each once",
                    *(batch.tasks - len(batch.wrong), batch.wall_s, batch.retried),
                ),
            ]
        note = (
            "`pilotctl fleet up` with a hub, one `pilot-daemon` that hosts all workers,"
            " and one `openclaw-worker` that does their tasks. The first row's time is"
            " that of the whole fleet's start, with new keys."
        )
        columns = ("what", "count", "s", "of these given out again")
        return Table("What they did", columns, rows, note)

    def _state_table(self) -> Table:
        columns = (
            *("when", "RSS MiB", "PSS MiB", "private MiB", "RSS KiB per agent"),
            *("CPU % of a core since the row before", "open files", "tasks"),
        )
        before: list[State | None] = [None, *self._states]
        rows = [
            state.row(self._agents, earlier)
            for earlier, state in zip(before, self._states, strict=False)
        ]
        note = (
            "The process that hosts the agents. *Tasks* are those of its event loop."
            " After the first load each worker has its tunnel to the hub, which stays;"
            " its task session ends after a minute without work."
        )
        return Table("What they have", columns, rows, note)


async def _host_pid(fleet: BenchFleet) -> int:
    members: Sequence[dict[str, Any]] = (await fleet.control.status())["members"]
    return int(next(member["pid"] for member in members if member["name"] == HOST))
