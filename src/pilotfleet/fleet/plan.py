"""Which programs a fleet consists of. Performs no I/O.

::

    rendezvous ── hub ──┬── monitor
                        ├── group-1 (daemon: agents 1 … n) ──── runner-1 (their tasks)
                        ├── group-2 (agents n+1 … 2n) ───────── runner-2
                        └── sub-1 (daemon: a sub-orchestrator)─ subrunner-1

Each line is "needs": what stands right of it starts later and stops earlier. Workers
are divided into groups of fixed size, so adding workers changes the last group and
adds others, and machines that each run a part of the fleet share whole groups. In a
hierarchical fleet the groups are the clusters, and there are sub-orchestrators.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

from pilotfleet.errors import ConfigError, InvalidArgument
from pilotfleet.fleet.patterns.hierarchy import Topology
from pilotfleet.fleet.spec import EMBEDDED, Pattern
from pilotfleet.protocol.topics import ALL_TOPICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pilotfleet.fleet.patterns.hierarchy import Cluster
    from pilotfleet.fleet.spec import FleetSpec, MonitorSection, OpenclawSection

__all__ = [
    "HUB",
    "MONITOR",
    "RENDEZVOUS",
    "Member",
    "Part",
    "Role",
    "brokers",
    "hub_name",
    "monitor_flags",
    "plan_fleet",
    "worker_flags",
]

RENDEZVOUS: Final = "rendezvous"
HUB: Final = "hub"
MONITOR: Final = "monitor"
MAX_PARTS: Final = 1_000

READY_S: Final = 60.0
"""Programs share the machine's cores while a fleet starts."""
READY_PER_AGENT_S: Final = 0.1
OPENCLAW_READY_S: Final = 300.0
"""A gateway alone takes a quarter of a minute, and is fetched before at first."""
DRAIN: Final = "30s"
"""How long a worker program that is replaced may take for what it has begun."""
TOGETHER_PER_CPU: Final = 2
"""Programs that start at the same time."""
PROCESSES_PER_CPU: Final = 8
"""Commands of all groups of a machine at a time: they mostly wait."""
MIN_PROCESSES: Final = 2


class Role(StrEnum):
    """What a program is there for."""

    RENDEZVOUS = "rendezvous"
    HUB = "hub"
    MONITOR = "monitor"
    GROUP = "group"
    """The daemon of a group of workers."""
    RUNNER = "runner"
    """Does the tasks of a group."""
    SUB = "sub"
    """The daemon of a sub-orchestrator."""
    SUBRUNNER = "subrunner"
    """Hands out the tasks of a sub-orchestrator."""


DAEMONS: Final = frozenset([Role.HUB, Role.GROUP, Role.SUB])


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a fleet that one machine runs; the first has the hub."""

    index: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``2/3``, the second of three parts.

        Raises:
            InvalidArgument: It is not such a text, or there is no such part.
        """
        match = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
        if match is None:
            raise InvalidArgument(f"part {text[:20]!r} is not like 2/3")
        index, of = int(match[1]), int(match[2])
        if not 1 <= index <= of <= MAX_PARTS:
            raise InvalidArgument(f"there is no part {index} of {of}")
        return cls(index, of)

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @property
    def is_first(self) -> bool:
        """Whether it has what there is once: the hub, and maybe the rendezvous."""
        return self.index == 1

    def has(self, number: int) -> bool:
        """Tell whether group ``number`` is in it.

        In turns: a group stays where it is when groups are added.
        """
        return (number - 1) % self.of == self.index - 1


@dataclass(frozen=True, slots=True)
class Member:
    """One program of a fleet."""

    name: str
    """Unique in the fleet; also of its files, so it is short."""
    role: Role
    arguments: tuple[str, ...] = ()
    """What the specification says of it; places and addresses are not known here."""
    needs: str | None = None
    """The member that must be ready first."""
    hosts: tuple[str, ...] = ()
    """Names of its agents: those that a daemon hosts or a worker program serves."""
    ready_s: float = READY_S
    """How long it may take to be ready."""

    @property
    def program(self) -> str:
        """What is started."""
        if self.role is Role.RENDEZVOUS:
            return "pilot-rendezvous"
        if self.role is Role.MONITOR:
            return "pilot-monitor"
        return "pilot-daemon" if self.role in DAEMONS else "openclaw-worker"

    def is_same_as(self, other: Member) -> bool:
        """Tell whether a program started as ``other`` will do for this.

        The share of the machine that a program gets is no reason to restart it.
        """
        if self.role in (Role.SUB, Role.SUBRUNNER, Role.MONITOR):
            return self.arguments == other.arguments
        return self.hosts == other.hosts


def hub_name(spec: FleetSpec) -> str:
    """Return the name of the agent that hands out tasks and brokers events."""
    return f"{spec.fleet.name}-{HUB}"


def brokers(spec: FleetSpec) -> tuple[str, ...]:
    """Return the agents that broker the fleet's events: the hub, then its stand-bys.

    Those are the first agents of the first groups: programs that can die one by one.
    """
    size, count = spec.group_size, spec.workers.count
    groups = (
        [] if spec.fleet.pattern is Pattern.HIERARCHICAL else range(1, count + 1, size)
    )
    firsts = list(groups)[: spec.events.standby]
    return (hub_name(spec), *(f"{spec.prefix}{first}" for first in firsts))


def plan_fleet(
    spec: FleetSpec, part: Part | None = None, *, cpus: int = 1
) -> tuple[Member, ...]:
    """Return the programs of a fleet that one machine runs, in order of their needs.

    Args:
        spec: The fleet, as all its machines know it.
        part: What of it; None for everything.
        cpus: Processors of this machine.

    Raises:
        ConfigError: The specification does not say where other parts find this one.
    """
    if part is not None:
        _check_part(spec, part)
    here = part or Part()
    members: list[Member] = []
    if here.is_first:
        if spec.fleet.rendezvous == EMBEDDED:
            members.append(Member(RENDEZVOUS, Role.RENDEZVOUS))
        members.append(_plan_hub(spec))
        if spec.monitor is not None:
            members.append(_plan_monitor(spec, spec.monitor))
    members += _plan_subs(spec, here)
    members += _plan_groups(spec, here, cpus=cpus)
    return tuple(members)


def worker_flags(spec: FleetSpec) -> tuple[str, ...]:
    """Return the flags that say how worker programs do tasks."""
    workers = spec.workers
    if workers.exec:
        work = ["--exec", workers.exec]
    elif workers.call:
        work = ["--call", workers.call]
    else:
        work = ["--openclaw", *_openclaw_flags(spec.openclaw)]
    return (
        *work,
        *("--concurrency", str(workers.concurrency), "--timeout", workers.timeout),
        *("--health-interval", spec.health.interval),
    )


def monitor_flags(table: MonitorSection) -> list[str]:
    """Return the flags that name the files of a monitor."""
    return _given({"--alerts": table.alerts, "--http-token-file": table.token_file})


def _check_part(spec: FleetSpec, part: Part) -> None:
    fleet = spec.fleet
    if part.of > 1 and fleet.rendezvous == EMBEDDED and not fleet.listen:
        raise ConfigError(
            "fleet.listen: the parts of a fleet must know where the rendezvous is",
            hint='in the specification of all parts, set [fleet] listen = "ADDRESS",'
            " the IP address of part 1's machine (and listen_port), or rendezvous ="
            ' "host:port" of one that runs already',
        )


def _plan_hub(spec: FleetSpec) -> Member:
    needs = RENDEZVOUS if spec.fleet.rendezvous == EMBEDDED else None
    arguments = (
        *("--hostname", hub_name(spec), *_policy_flags(spec)),
        *_broker_flags(brokers(spec)),
    )
    return Member(HUB, Role.HUB, arguments, needs, hosts=(hub_name(spec),))


def _plan_monitor(spec: FleetSpec, table: MonitorSection) -> Member:
    # Said here and not asked for: it starts also while the hub's daemon is away.
    arguments = (*_broker_flags(brokers(spec)), *monitor_flags(table))
    return Member(MONITOR, Role.MONITOR, arguments, HUB)


def _plan_groups(spec: FleetSpec, part: Part, *, cpus: int) -> list[Member]:
    size, count = spec.group_size, spec.workers.count
    firsts = {
        number: first
        for number, first in enumerate(range(1, count + 1, size), start=1)
        if part.has(number)
    }
    share = len(firsts) or 1
    # Only so many start at the same time, and the last must not wait for ever.
    stagger_s = spec.stagger_s * min(1.0, TOGETHER_PER_CPU * cpus / share)
    processes = max(MIN_PROCESSES, PROCESSES_PER_CPU * cpus // share)
    members: list[Member] = []
    for number, first in firsts.items():
        last = min(first + size - 1, count)
        group = _plan_group(spec, number, first, last, stagger_s=stagger_s)
        members += [group, _plan_runner(spec, number, group, processes=processes)]
    return members


def _plan_group(
    spec: FleetSpec, number: int, first: int, last: int, *, stagger_s: float
) -> Member:
    agents = last - first + 1
    tags = list(spec.workers.tags)
    if spec.fleet.pattern is Pattern.HIERARCHICAL:
        tags.append(f"c{number}")
    return Member(
        f"group-{number}",
        Role.GROUP,
        (
            *("--agents", str(agents), "--agent-first", str(first)),
            *("--agent-prefix", spec.prefix, "--stagger", f"{stagger_s:g}s"),
            *(flag for tag in tags for flag in ("--tag", tag)),
            *_policy_flags(spec),
            *_group_broker_flags(spec, number),
        ),
        HUB,
        hosts=tuple(f"{spec.prefix}{number}" for number in range(first, last + 1)),
        ready_s=READY_S + READY_PER_AGENT_S * agents + stagger_s,
    )


def _plan_runner(
    spec: FleetSpec, number: int, group: Member, *, processes: int
) -> Member:
    first, last = (group.hosts[at].removeprefix(spec.prefix) for at in (0, -1))
    limit = () if spec.workers.openclaw else ("--max-processes", str(processes))
    return Member(
        f"runner-{number}",
        Role.RUNNER,
        (
            *("--ids", f"{spec.prefix}[{first}-{last}]"),
            *worker_flags(spec),
            *("--drain", DRAIN, *limit),
        ),
        group.name,
        hosts=group.hosts,
        ready_s=OPENCLAW_READY_S if spec.workers.openclaw else READY_S,
    )


def _plan_subs(spec: FleetSpec, part: Part) -> list[Member]:
    if spec.fleet.pattern is not Pattern.HIERARCHICAL:
        return []
    tree = Topology.of(
        spec.fleet.name,
        spec.workers.count,
        cluster_size=spec.hierarchy.cluster_size,
        fanout=spec.hierarchy.fanout,
        concurrency=spec.workers.concurrency,
    )
    members: list[Member] = []
    # Those near the hub first: the others look for them when they start.
    for level in reversed(tree.levels):
        for number, cluster in enumerate(level, start=1):
            if part.has(number):
                members += _plan_sub(spec, cluster)
    return members


def _plan_sub(spec: FleetSpec, cluster: Cluster) -> list[Member]:
    name = cluster.home.removeprefix(f"{spec.fleet.name}-")
    daemon = Member(
        name,
        Role.SUB,
        (
            *("--hostname", cluster.home, "--tag", cluster.home_tag),
            *_policy_flags(spec),
            *_sub_broker_flags(spec, cluster),
        ),
        HUB,
        hosts=(cluster.home,),
    )
    flags = (*cluster.worker_flags(hub_name(spec)), "--drain", DRAIN)
    interval = ("--health-interval", spec.health.interval)
    runner = Member(
        f"{name.replace('sub', 'subrunner', 1)}",
        Role.SUBRUNNER,
        (*flags, *interval),
        name,
        hosts=daemon.hosts,
    )
    return [daemon, runner]


def _group_broker_flags(spec: FleetSpec, number: int) -> list[str]:
    """Return whom the agents of a group publish to."""
    if spec.fleet.pattern is not Pattern.HIERARCHICAL:
        return _broker_flags(brokers(spec))
    return _sub_broker_flags(spec, Topology.of_spec(spec).levels[0][number - 1])


def _sub_broker_flags(spec: FleetSpec, cluster: Cluster) -> list[str]:
    """Return the brokers of a cluster: its sub-orchestrator's, and then the hub's.

    The first sends everything up, so who subscribes at the hub hears all clusters.
    """
    hub = hub_name(spec)
    flags = _broker_flags((cluster.home, hub))
    return [*flags, "--roll-up", hub, "--roll-up-topic", ALL_TOPICS]


def _broker_flags(names: Sequence[str]) -> list[str]:
    return ["--broker", ",".join(names)]


def _given(texts: Mapping[str, str]) -> list[str]:
    """Return the flags that have a text."""
    return [word for flag, text in texts.items() if text for word in (flag, text)]


def _policy_flags(spec: FleetSpec) -> tuple[str, ...]:
    """Return the flags of what holds for every agent of the fleet."""
    gate = "on" if spec.fleet.polo_gate else "off"
    scores = () if spec.fleet.polo else ("--polo", "off")
    return ("--polo-gate", gate, *scores, "--task-files", "off")


def _openclaw_flags(table: OpenclawSection | None) -> list[str]:
    if table is None:
        return []
    texts = {
        "--openclaw-agent": table.agent,
        "--openclaw-model": table.model,
        "--openclaw-config": table.config,
        "--gateway": table.gateway,
        "--gateway-token-file": table.token_file,
        "--max-processes": str(table.max_concurrent or ""),
    }
    flags = _given(texts)
    if table.one_shot:
        return [*flags, "--one-shot"]
    return flags if table.gateway else [*flags, "--gateways", str(table.gateways)]
