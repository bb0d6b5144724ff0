"""Start every program that a fleet needs, keep it running, and stop it in order.

Which programs there are is said in :mod:`plan`; each is kept by a :mod:`keeper`. Hub
and workers have daemons of their own, so that tasks really cross an encrypted tunnel
between two processes. The rendezvous and the hub come back at their old ports, and
every program comes back with its old identities: the others find them by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from pilotfleet.client.daemon import DaemonClient
from pilotfleet.client.registry import RegistryClient
from pilotfleet.errors import ConfigError, PilotError
from pilotfleet.fleet.home import open_home
from pilotfleet.fleet.keeper import Keeper, MemberState, MemberStatus
from pilotfleet.fleet.network import (
    check_rendezvous,
    open_network,
    wait_for_network,
)
from pilotfleet.fleet.partnames import check_names, clear_tags
from pilotfleet.fleet.plan import HUB, Part, Role, hub_name, plan_fleet
from pilotfleet.fleet.spec import EMBEDDED, Pattern, check_spec
from pilotfleet.fleet.wiring import Wiring
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.registry.endpoints import parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
    from pathlib import Path
    from types import TracebackType

    from pilotfleet.fleet.network import FleetNetwork
    from pilotfleet.fleet.plan import Member
    from pilotfleet.fleet.spec import FleetSpec
    from pilotfleet.transport.tls import TlsConfig

__all__ = ["Entry", "Launcher", "MemberState", "MemberStatus", "Part"]

START_TOGETHER: Final = 2 * (os.cpu_count() or 1)
"""Each start keeps a processor busy for some tenths of a second."""
MAX_ENTRIES: Final = 8
"""Workers of a mesh that tasks are handed out by."""
STOP_ORDER: Final = (
    (Role.RUNNER, Role.SUBRUNNER),
    (Role.GROUP, Role.SUB),
    # It still hears the goodbyes of those before it.
    (Role.MONITOR,),
    (Role.HUB,),
    (Role.RENDEZVOUS,),
)
"""Users before what they use."""
ROLLED: Final = ("exec", "call", "openclaw", "concurrency", "timeout", "retry_failed")
"""Keys of ``[workers]`` that a rollout may change: worker programs know no others."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An agent that may hand out tasks."""

    agent: str | None
    """What its daemon calls it; None for the daemon's only one."""
    socket: Path


class Launcher:
    """The running programs of one fleet, as an asynchronous context manager.

    Entering starts everything and returns once every agent is registered; on any
    failure what was started is stopped again. From then on what ends is started again.
    """

    def __init__(
        self,
        spec: FleetSpec,
        home: Path,
        *,
        part: Part | None = None,
        progress: Callable[[str], None],
        tls: TlsConfig | None = None,
    ) -> None:
        """Prepare a fleet whose files live in ``home``.

        Args:
            spec: The fleet.
            home: A folder that no other launcher uses meanwhile.
            part: What this machine runs of it; None for everything.
            progress: Told in a few words what is being done.
            tls: How to check a registry that runs already; None for plain TCP.
        """
        self.spec = spec
        """What runs: after a change of it, the new one."""
        self.home = home
        self.hub_name = hub_name(spec)
        self.deaths: Callable[[MemberStatus], None] | None = None
        """Told of each program that ended by itself, which is started again, and of
        agents that scaling has stopped."""
        self._part = part
        self._progress = progress
        self._wiring = Wiring(spec, home, tls=tls)
        self._keepers: dict[str, Keeper] = {}
        self._resources = contextlib.ExitStack()
        self._changing = asyncio.Lock()
        self._failure: asyncio.Future[PilotError] | None = None

    async def __aenter__(self) -> Self:
        self._failure = asyncio.get_running_loop().create_future()
        try:
            self._wiring.sockets = self._resources.enter_context(open_home(self.home))
            await self._start(self._failure)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    @property
    def hub_socket(self) -> Path:
        """The socket of the hub's daemon, which is in the first part of a fleet."""
        return self._wiring.socket(HUB)

    @property
    def monitor_url(self) -> str | None:
        """Where the pages of the monitor are; None if it was not up yet."""
        return self._wiring.monitor_url

    async def run(self) -> None:
        """Wait while programs that end are started again.

        Raises:
            NotRunning: One cannot stay up; the message has its last words.
        """
        assert self._failure is not None
        raise await asyncio.shield(self._failure)

    def members(self) -> list[MemberStatus]:
        """Return where each program stands, those that others need first."""
        return [keeper.status for keeper in self._keepers.values()]

    def entries(self) -> list[Entry]:
        """Return the agents that may hand out tasks, in this part of the fleet."""
        if self.spec.fleet.pattern is not Pattern.MESH:
            is_here = HUB in self._keepers
            return [Entry(None, self.hub_socket)] if is_here else []
        groups = self._with_role(Role.GROUP)
        ranks = max((len(keeper.member.hosts) for keeper in groups), default=0)
        # One of each group before a second one of any: they use different processes.
        spread = (
            Entry(keeper.member.hosts[rank], self._wiring.socket(keeper.member.name))
            for rank in range(min(ranks, MAX_ENTRIES))
            for keeper in groups
            if rank < len(keeper.member.hosts)
        )
        return [entry for entry, _ in zip(spread, range(MAX_ENTRIES), strict=False)]

    async def scale(self, count: int) -> None:
        """Have ``count`` workers in the whole fleet: add agents, or stop the last.

        Those that are stopped finish what they have begun. Their identities are kept.

        Raises:
            ConfigError: There cannot be so many.
            NotRunning: A program did not come up; the others run on.
        """
        async with self._changing:
            spec = self.spec.with_count(count)
            wanted = {member.name: member for member in self._plan(spec)}
            gone = await self._withdraw(wanted)
            await self._remove(set(self._keepers) - set(wanted))
            for member in wanted.values():
                await self._change(member, wanted)
            for status in gone:
                self._tell(status)
            new = [m for name, m in wanted.items() if name not in self._keepers]
            await self._start_all(new)
            self.spec = spec

    async def rollout(
        self,
        *,
        batch: int = 1,
        spec: FleetSpec | None = None,
        check: Callable[[Collection[str]], Awaitable[None]] | None = None,
    ) -> None:
        """Replace the worker programs, ``batch`` at a time.

        Each finishes what it has begun; its successor is ready before others follow.

        Args:
            batch: How many at the same time.
            spec: What they shall do; None for the same. Only the keys that worker
                programs know may differ, and ``count``, which is not looked at.
            check: Told the agents of those that were replaced; raises a PilotError if
                they are no good, and their predecessors are put back.

        Raises:
            ConfigError: The specification is of another fleet.
            PilotError: A program did not come up; its predecessor and those whose
                turn had not come run on.
        """
        async with self._changing:
            spec = self._rolled(spec or self.spec)
            plan = {member.name: member for member in self._plan(spec)}
            runners = self._with_role(Role.RUNNER)
            # How much those below do at a time is known above them as well.
            subs = self._with_role(Role.SUBRUNNER)
            runners += [k for k in subs if not plan[k.member.name].is_same_as(k.member)]
            for start in range(0, len(runners), batch):
                await self._replace(runners[start : start + batch], plan, check)
                done = min(start + batch, len(runners))
                self._progress(f"replaced {done} of {len(runners)} worker programs")
            self.spec = spec

    # Start and stop

    async def _start(self, failure: asyncio.Future[PilotError]) -> None:
        """Start everything, unless something that was started cannot stay up."""
        starting = asyncio.create_task(self._start_members(), name="start of the fleet")
        failure.add_done_callback(lambda _: starting.cancel())
        try:
            await starting
        except asyncio.CancelledError:
            if failure.done():
                raise failure.result() from None
            raise

    async def _start_members(self) -> None:
        plan = self._plan(self.spec)
        if not plan:
            raise ConfigError(
                f"part {self._part} of fleet {self.spec.fleet.name} has nothing to run:"
                f" its workers make fewer groups than there are parts",
                hint="lower workers.per_process (hierarchy.cluster_size)",
            )
        if self.spec.fleet.rendezvous != EMBEDDED and self._has_hub:
            await check_rendezvous(self.spec.fleet.rendezvous, self._wiring.tls)
        single = [m for m in plan if m.role in (Role.RENDEZVOUS, Role.HUB)]
        for member in single:
            self._progress(f"starting the {member.name}")
            await self._add(member)
        self._wiring.network = await self._open_network()
        await self._start_all(plan[len(single) :])

    async def _start_all(self, members: Sequence[Member]) -> None:
        """Start members that need nothing but each other and what runs."""
        names = dict.fromkeys(member.name for member in members)
        chains = [
            [member, *(m for m in members if m.needs == member.name)]
            for member in members
            if member.needs not in names
        ]
        total = sum(len(m.hosts) for m in members if m.role is Role.GROUP)
        places = asyncio.Semaphore(START_TOGETHER)
        done, failed = 0, False

        async def start(chain: Sequence[Member]) -> None:
            nonlocal done, failed
            async with places:
                # What one lacks, the others mostly lack as well.
                if failed:
                    return
                try:
                    for member in chain:
                        await self._add(member)
                        await self._check_names(member)
                except PilotError:
                    failed = True
                    raise
            if chain[0].role is Role.GROUP:
                done += len(chain[0].hosts)
                self._progress(f"started {done} of {total} workers")

        if total:
            self._progress(f"starting {total} workers")
        try:
            await _all(start(chain) for chain in chains)
        finally:
            # They began in any order; what was there before stays before them.
            for name in names:
                if name in self._keepers:
                    self._keepers[name] = self._keepers.pop(name)

    async def _add(self, member: Member) -> None:
        keeper = Keeper(
            member,
            self.home,
            command=self._wiring.command,
            on_ready=self._wiring.note_ready,
            on_death=lambda keeper: self._tell(keeper.status),
            on_failure=lambda error: self._note_failure(member, error),
        )
        # Known before it runs, so that it is stopped whatever happens.
        self._keepers[member.name] = keeper
        try:
            await keeper.start()
        except PilotError as error:
            # A fleet does its work also when nobody watches it.
            if member.role is Role.MONITOR:
                self._progress(f"the monitor is not up yet: {error}")
                keeper.resume(member)
                return
            del self._keepers[member.name]
            raise

    async def _check_names(self, member: Member) -> None:
        if self._part is None or member.role not in (Role.GROUP, Role.SUB):
            return
        await check_names(self._wiring.socket(member.name), member.hosts, self._part)

    async def _stop(self) -> None:
        try:
            for roles in STOP_ORDER:
                await _all(keeper.stop() for keeper in self._with_role(*roles))
        finally:
            self._keepers.clear()
            self._resources.close()

    # Changes

    async def _replace(
        self,
        keepers: Sequence[Keeper],
        plan: dict[str, Member],
        check: Callable[[Collection[str]], Awaitable[None]] | None,
    ) -> None:
        before = [keeper.member for keeper in keepers]
        await _all(keeper.replace(plan[keeper.member.name]) for keeper in keepers)
        workers = [k.member for k in keepers if k.member.role is Role.RUNNER]
        if check is None or not workers:
            return
        try:
            await check([name for member in workers for name in member.hosts])
        except PilotError:
            self._progress("putting back what was replaced last")
            await _all(
                keeper.replace(member)
                for keeper, member in zip(keepers, before, strict=True)
            )
            raise

    async def _withdraw(self, wanted: dict[str, Member]) -> list[MemberStatus]:
        """Take what is to be stopped out of discovery, so that it gets no more tasks.

        Returns:
            The daemons that host it, as if it were all that they host.
        """
        gone = []
        for keeper in self._with_role(Role.SUB, Role.GROUP):
            member = wanted.get(keeper.member.name)
            kept = len(member.hosts) if member is not None else 0
            names = keeper.member.hosts[kept:]
            if names:
                # Of a daemon that does not run, nobody can find agents for long.
                with contextlib.suppress(PilotError):
                    await clear_tags(self._wiring.socket(keeper.member.name), names)
                status = replace(keeper.status, agents=len(names), first_agent=names[0])
                gone.append(replace(status, state=MemberState.STOPPED, pid=0))
        return gone

    async def _remove(self, names: set[str]) -> None:
        for roles in STOP_ORDER:
            gone = [k for k in self._with_role(*roles) if k.member.name in names]
            await _all(self._take_out(keeper) for keeper in gone)

    async def _take_out(self, keeper: Keeper) -> None:
        self._progress(f"stopping {keeper.member.name}")
        try:
            await keeper.stop(drain=True)
        finally:
            del self._keepers[keeper.member.name]

    async def _change(self, member: Member, wanted: dict[str, Member]) -> None:
        """Restart a program that runs, if it must be another one now."""
        keeper = self._keepers.get(member.name)
        if keeper is None or member.is_same_as(keeper.member):
            return
        self._progress(f"changing {member.name}")
        runner = next(
            (k for k in self._keepers.values() if k.member.needs == member.name), None
        )
        if runner is None:
            try:
                await keeper.replace(member)
            except PilotError as error:
                if member.role is not Role.MONITOR:
                    raise
                self._progress(f"the monitor runs as before: {error}")
            return
        # It would not be served any more with the agents that it knows.
        await runner.stop(drain=True)
        try:
            await keeper.replace(member)
            runner.member = wanted[runner.member.name]
            await runner.start()
        except BaseException:
            runner.resume(runner.member)
            raise

    def _rolled(self, spec: FleetSpec) -> FleetSpec:
        """Return the specification after a rollout."""
        kept = {key: getattr(spec.workers, key) for key in ROLLED}
        workers = msgspec.structs.replace(self.spec.workers, **kept)
        # The number of workers is a matter of scaling, and may have changed by it.
        count = self.spec.workers.count
        if spec.workers.count != count:
            self._progress(
                f"the number of workers stays {count}:"
                f" fleet scale workers={spec.workers.count} changes it"
            )
        asked = msgspec.structs.replace(spec.workers, count=count)
        for section, is_same in (
            ("fleet", spec.fleet == self.spec.fleet),
            ("hierarchy", spec.hierarchy == self.spec.hierarchy),
            ("monitor", spec.monitor == self.spec.monitor),
            ("events", spec.events == self.spec.events),
            ("workers", asked == workers),
        ):
            if not is_same:
                raise ConfigError(
                    f"a rollout cannot change [{section}], only how workers do tasks:"
                    f" {', '.join(ROLLED)}, [openclaw], [health]",
                    hint="stop the fleet, and start it with the new specification",
                )
        rolled = msgspec.structs.replace(spec, workers=workers)
        check_spec(rolled)
        return rolled

    # What members tell

    def _plan(self, spec: FleetSpec) -> tuple[Member, ...]:
        return plan_fleet(spec, self._part, cpus=os.cpu_count() or 1)

    def _tell(self, status: MemberStatus) -> None:
        if self.deaths is not None:
            self.deaths(status)

    def _note_failure(self, member: Member, error: PilotError) -> None:
        if member.role is Role.MONITOR:
            self._progress(f"the fleet runs on without its monitor: {error}")
            return
        if self._failure is not None and not self._failure.done():
            self._failure.set_result(error)

    # The network

    @property
    def _has_hub(self) -> bool:
        return self._part is None or self._part.is_first

    async def _open_network(self) -> FleetNetwork:
        """Return the fleet's network, made by an earlier run or now by the hub."""
        path, name = self.home / "network.json", self.spec.fleet.name
        # It may be what joins another network: only parts must agree on one.
        token = os.environ.get("PILOT_JOIN_TOKEN", "") if self._part else ""
        address = self._wiring.registry
        if not self._has_hub:
            self._progress("waiting for part 1")
            return await wait_for_network(
                path, name, address=address, tls=self._wiring.tls, token=token
            )
        async with await DaemonClient.connect(self.hub_socket) as hub:
            info = await hub.request_json(Command.INFO)
        self._wiring.hub_port = int(str(info["endpoint"]).rpartition(":")[2])
        async with RegistryClient(
            parse_endpoint(address), tls=self._wiring.tls
        ) as registry:
            return await open_network(
                path,
                name,
                registry=registry,
                owner=info["node_id"],
                admin_token=self._wiring.admin_token,
                token=token,
            )

    def _with_role(self, *roles: Role) -> list[Keeper]:
        return [k for k in self._keepers.values() if k.member.role in roles]


async def _all(work: Iterable[Any]) -> None:
    """Await all of it, also when some of it fails; raise the first error."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
