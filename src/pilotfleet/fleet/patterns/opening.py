"""Open the pattern that a specification names."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.agent import Agent
from pilotfleet.fleet.orchestrator import OrchestratorConfig
from pilotfleet.fleet.patterns.hierarchy import Topology
from pilotfleet.fleet.patterns.hub import Hub
from pilotfleet.fleet.patterns.mesh import Mesh
from pilotfleet.fleet.patterns.top import Hierarchy
from pilotfleet.fleet.retry import RetryPolicy
from pilotfleet.fleet.schedule import ScheduleConfig
from pilotfleet.fleet.spec import Pattern

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterable,
        AsyncIterator,
        Sequence,
    )
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from pilotfleet.fleet.schedule import TaskResult
    from pilotfleet.fleet.spec import FleetSpec
    from pilotfleet.fleet.taskfile import TaskLine

__all__ = ["EntryPoint", "PatternRun", "open_pattern"]

EXTRA_OPEN: Final = 1
"""Tasks given to a worker beyond those it runs, so that it never waits for one."""
MAX_OPEN: Final = 8_000
"""Tasks that one agent has open; its daemon keeps 10,000."""
LONGEST_SUB_REST_S: Final = 5.0
"""A sub-orchestrator that comes back is soon used again, whatever it lost."""


class EntryPoint(Protocol):
    """An agent that may submit tasks."""

    @property
    def agent(self) -> str | None:
        """Name of the hosted agent; None for the daemon's default one."""

    @property
    def socket(self) -> Path:
        """The daemon's socket."""


class PatternRun(Protocol):
    """Tasks on their way through a fleet."""

    def run(self, tasks: AsyncIterable[TaskLine]) -> AsyncGenerator[TaskResult, None]:
        """Run tasks and yield one result for each, in the order of their ends."""

    def taken(self, task_id: str) -> None:
        """Say that a result is safe: until then a daemon keeps it."""

    def status(self) -> dict[str, Any]:
        """Return the numbers of workers and of tasks."""

    def lost(self, name: str) -> None:
        """Have others take over from an agent that is known to be dead."""


async def open_pattern(
    spec: FleetSpec, entries: Sequence[EntryPoint], *, run_id: str
) -> AbstractAsyncContextManager[PatternRun]:
    """Connect to the agents that submit, and prepare to run tasks.

    Args:
        spec: Says which pattern.
        entries: Who submits: the hub, or some agents of a mesh.
        run_id: The same one takes up what an earlier run has left under way.

    Raises:
        NotRunning: The daemon of an entry does not answer.
        InvalidArgument: There is no entry.
    """
    if not entries:
        raise InvalidArgument("nobody in the fleet can submit tasks")
    stack = AsyncExitStack()
    try:
        agents = [
            await stack.enter_async_context(
                await Agent.connect(entry.socket, name=entry.agent)
            )
            for entry in entries
        ]
        run = await stack.enter_async_context(_opened(spec, agents, run_id))
    except BaseException:
        await stack.aclose()
        raise
    return _closing(run, stack)


@asynccontextmanager
async def _closing(run: PatternRun, stack: AsyncExitStack) -> AsyncIterator[PatternRun]:
    async with stack:
        yield run


def _opened(
    spec: FleetSpec, agents: Sequence[Agent], run_id: str
) -> AbstractAsyncContextManager[PatternRun]:
    config = _config(spec)
    match spec.fleet.pattern:
        case Pattern.MESH:
            return Mesh.open(agents, config, run_id=run_id)
        case Pattern.HIERARCHICAL:
            return Hierarchy.open(
                agents[0], Topology.of_spec(spec), config, run_id=run_id
            )
        case _:
            return Hub.open(agents[0], config, run_id=run_id)


def _config(spec: FleetSpec) -> OrchestratorConfig:
    workers = spec.workers
    is_tree = spec.fleet.pattern is Pattern.HIERARCHICAL
    usual = RetryPolicy()
    policy = RetryPolicy(
        max_attempts=usual.max_attempts + workers.retry_failed,
        retry_failed=workers.retry_failed,
        longest_rest_s=LONGEST_SUB_REST_S if is_tree else usual.longest_rest_s,
    )
    each = workers.concurrency + EXTRA_OPEN
    most = ScheduleConfig().max_open
    return OrchestratorConfig(
        tags=workers.tags,
        awaits_taken=True,
        schedule=ScheduleConfig(
            concurrency=each,
            max_open=min(MAX_OPEN, max(most, workers.count * each)),
            policy=policy,
        ),
    )
