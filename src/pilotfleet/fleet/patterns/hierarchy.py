"""Who is under whom in a hierarchical fleet. Performs no I/O.

Workers form *clusters* of a fixed size, and each cluster has a sub-orchestrator as
its home. If there are more of those than one orchestrator should have under it, they
form clusters as well, with sub-orchestrators of the next level, and so on: any depth.
The hub is over the last level. A cluster is known by a tag that its members carry.

::

                 hub
          ┌───────┴──────┐
        sub2-1         sub2-2           clusters c2-1, c2-2 of sub-orchestrators
       ┌──┴──┐        ┌──┴──┐
     sub-1  sub-2   sub-3  sub-4        clusters c1 … c4 of workers
      ∴      ∴       ∴      ∴

When a sub-orchestrator dies, its whole cluster gets another parent for the time being:
a living sibling (under the same parent), or failing that any of the same level.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from pilotfleet.fleet.spec import FleetSpec

__all__ = ["TOP_TAG", "Cluster", "Topology"]

TOP_TAG: Final = "fleet-sub"
"""Carried by the sub-orchestrators that are directly under the hub."""
MAX_CAPACITY: Final = 1_000
"""Tasks that a daemon offers one program at a time (extensions.md, task.serve)."""
SPARE: Final = 10
"""One open task in so many is beyond what the members hold, so none waits for it."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Agents that have the same parent."""

    tag: str
    """Carried by its members and nobody else."""
    level: int
    """1: its members are workers; above, sub-orchestrators of the level below."""
    first: int
    """Number of its first member in the level below, from 1."""
    members: int
    home: str
    """Name of the sub-orchestrator that it belongs to."""
    home_tag: str
    """The tag that the sub-orchestrator carries: that of its own cluster."""
    each: int
    """Tasks that one member is given at a time."""
    capacity: int
    """Tasks that the sub-orchestrator is given at a time."""

    def worker_flags(self, tree: str) -> list[str]:
        """Return the flags of ``openclaw-worker`` for the sub-orchestrator.

        Args:
            tree: Name of the hub, which tells who is under whom.
        """
        return [
            *("--id", self.home, "--delegate", "--cluster", self.tag),
            *("--tree", tree, "--level", str(self.level), "--each", str(self.each)),
            *("--concurrency", str(self.capacity)),
        ]


class Topology:
    """The clusters of a fleet, level by level."""

    def __init__(self, levels: Sequence[Sequence[Cluster]]) -> None:
        self.levels = tuple(tuple(level) for level in levels)
        """The first one is over the workers, the last one under the hub."""
        self.clusters = tuple(cluster for level in self.levels for cluster in level)

    @classmethod
    def of(
        cls,
        fleet: str,
        workers: int,
        *,
        cluster_size: int,
        fanout: int,
        concurrency: int = 1,
    ) -> Self:
        """Divide a fleet into clusters.

        Args:
            fleet: The fleet's name, with which those of sub-orchestrators begin.
            workers: How many there are.
            cluster_size: Workers under one sub-orchestrator.
            fanout: Most sub-orchestrators under one orchestrator, at least 2.
            concurrency: Tasks that a worker runs at a time.
        """
        levels: list[list[Cluster]] = []
        count, size, each = workers, cluster_size, concurrency + 1
        while not levels or count > fanout:
            level = _divide(fleet, len(levels) + 1, count, size=size, each=each)
            levels.append(level)
            count, size, each = len(level), fanout, level[0].capacity
        for below, above in itertools.pairwise(levels):
            for parent in above:
                start = parent.first - 1
                for number in range(start, start + parent.members):
                    below[number] = replace(below[number], home_tag=parent.tag)
        return cls(levels)

    @classmethod
    def of_spec(cls, spec: FleetSpec) -> Self:
        """Divide the fleet of a specification."""
        return cls.of(
            spec.fleet.name,
            spec.workers.count,
            cluster_size=spec.hierarchy.cluster_size,
            fanout=spec.hierarchy.fanout,
            concurrency=spec.workers.concurrency,
        )

    @property
    def top(self) -> tuple[Cluster, ...]:
        """Those whose sub-orchestrators are directly under the hub."""
        return self.levels[-1]

    @property
    def home_parents(self) -> dict[str, str]:
        """The parent of each cluster while all live."""
        return {cluster.tag: cluster.home for cluster in self.clusters}

    def assign(
        self, live: Collection[str], before: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Return the parent of each cluster, by its tag.

        At home where that lives; else spread evenly over the living siblings, or the
        living of the level. While none of a level lives, its clusters stay as they
        were. A cluster moves only if its parent died, it can go home, or its parent
        has two more than another could have.

        Args:
            live: Names of the sub-orchestrators that live.
            before: What was returned last time.
        """
        parents: dict[str, str] = {}
        for level in self.levels:
            parents |= _assign_level(level, live, before or {})
        return parents


def _divide(
    fleet: str, level: int, count: int, *, size: int, each: int
) -> list[Cluster]:
    prefix = "c" if level == 1 else f"c{level}-"
    home = f"{fleet}-sub" if level == 1 else f"{fleet}-sub{level}"
    clusters = []
    for number, first in enumerate(range(1, count + 1, size), 1):
        members = min(size, count + 1 - first)
        capacity = min(MAX_CAPACITY, members * each + max(1, members // SPARE))
        clusters.append(
            Cluster(
                tag=f"{prefix}{number}",
                level=level,
                first=first,
                members=members,
                home=f"{home}-{number}",
                home_tag=TOP_TAG,
                each=each,
                capacity=capacity,
            )
        )
    return clusters


def _assign_level(
    level: Iterable[Cluster], live: Collection[str], before: Mapping[str, str]
) -> dict[str, str]:
    homes = {cluster.tag: cluster.home for cluster in level}
    families: dict[str, list[str]] = {}
    for cluster in level:
        if cluster.home in live:
            families.setdefault(cluster.home_tag, []).append(cluster.home)
    everybody = [name for family in families.values() for name in family]
    if not everybody:
        return {tag: before.get(tag, home) for tag, home in homes.items()}
    parents = {tag: home for tag, home in homes.items() if home in live}
    load = dict.fromkeys(everybody, 1)
    choices = {
        cluster.tag: families.get(cluster.home_tag, everybody)
        for cluster in level
        if cluster.home not in live
    }
    for tag, choice in choices.items():
        if before.get(tag) in choice:
            parents[tag] = before[tag]
            load[before[tag]] += 1
    # Each move makes the loads more even, so there is an end.
    while any(_move(tag, choice, parents, load) for tag, choice in choices.items()):
        pass
    return parents


def _move(
    tag: str, choice: Sequence[str], parents: dict[str, str], load: dict[str, int]
) -> bool:
    """Give an orphan to the one with the least, unless where it is is as good."""
    least = min(choice, key=load.__getitem__)
    parent = parents.get(tag)
    if parent is not None:
        if load[parent] <= load[least] + 1:
            return False
        load[parent] -= 1
    parents[tag] = least
    load[least] += 1
    return True
