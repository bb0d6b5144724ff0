"""What a run says that a rendezvous process needs, and N replicas of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.simulation.account import percentile
from bench.simulation.costs import US
from pilotfleet.registry.directory.liveness import BLOCK

if TYPE_CHECKING:
    from bench.simulation.costs import ServiceTimes
    from bench.simulation.world import Outcome

MIB = 1024 * 1024
SEEN_BLOCK_BYTES = 1_100
"""A block of last-seen times with its key, as the watch of a store brings it."""
ENTRY_BYTES = 300
"""Another entry that the watch of a store brings: an estimate."""
SEEN_S = 60.0
"""Between two writes of last-seen times (``ServiceConfig.flush_interval_s``)."""
REPLICAS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Cpu:
    """Seconds of processor time for each second of virtual time."""

    answering: float
    """Measured: decode, service, directory, encode; and the beacon's table."""
    maintenance: float
    """Measured: sweeps and last-seen times."""
    watching: float
    """Measured: looks at what watchers have not been told, and their answers."""
    waking: float
    """Counted, times a unit that was measured at a real process."""
    verifying: float
    """Counted, times what the real ones of the sample took."""
    storing: float
    """Counted, times what a change in a real SQLite file took."""

    @property
    def total(self) -> float:
        """All together: cores."""
        parts = (self.answering, self.maintenance, self.watching, self.waking)
        return sum(parts) + self.verifying + self.storing


def cpu_of(outcome: Outcome, times: ServiceTimes) -> Cpu:
    """Return what a run has cost, by where it comes from."""
    account, seconds = outcome.account, outcome.virtual_s
    signatures = outcome.signatures
    wakes = account.wakes + account.datagram_wakes
    sampled_us = times.verify
    if signatures.sampled:
        sampled_us = signatures.sampled_s / signatures.sampled / US
    # Those of the sample were verified within the answers.
    sampled_s = min(signatures.sampled_s, account.service_s)
    return Cpu(
        answering=(account.service_s - sampled_s) / seconds,
        maintenance=account.maintenance_s / seconds,
        watching=account.watching_s / seconds,
        waking=wakes * times.wake * US / seconds,
        verifying=account.checks * sampled_us * US / seconds,
        storing=account.changes * times.store * US / seconds,
    )


def memory_mib(outcome: Outcome, times: ServiceTimes) -> float | None:
    """Return what the nodes and their connections take, in MiB."""
    if outcome.loaded is None:
        return None
    options = outcome.options
    connections = options.hosts * (options.links if options.per_host > 1 else 1)
    return (outcome.loaded.bytes + connections * times.connection_bytes) / MIB


def megabits(outcome: Outcome) -> tuple[float, float]:
    """Return Mbit/s in and out, headers included."""
    into, out = outcome.account.wire_bytes()
    return 8e-6 * into / outcome.virtual_s, 8e-6 * out / outcome.virtual_s


def search_ms(outcome: Outcome, share: float) -> float:
    """Return a percentile of the searches, in milliseconds."""
    return 1000 * percentile(outcome.account.search_s, share)


@dataclass(frozen=True, slots=True)
class Replica:
    """What each of some replicas needs: a model on measured units."""

    replicas: int
    cores: float
    mib: float | None
    mbit_in: float
    mbit_out: float


def replica_of(outcome: Outcome, times: ServiceTimes, replicas: int) -> Replica:
    """Return the needs of one of N replicas on a store that they share.

    Each answers an N-th of the requests and keeps the whole directory. What the others
    write reaches it through the watch: their changes, and their last-seen times in
    blocks once a minute.
    """
    account, seconds = outcome.account, outcome.virtual_s
    cpu, (mbit_in, mbit_out) = cpu_of(outcome, times), megabits(outcome)
    others = (replicas - 1) / replicas
    # A block is written by each replica that heard one of its 256 nodes: by all.
    blocks = (replicas - 1) * outcome.options.agents / BLOCK / SEEN_S
    written = account.changes / seconds * others
    following = US * (times.apply * written + times.apply_seen * blocks)
    return Replica(
        replicas,
        cpu.total / replicas + following,
        memory_mib(outcome, times),
        mbit_in / replicas + 8e-6 * (blocks * SEEN_BLOCK_BYTES + written * ENTRY_BYTES),
        mbit_out / replicas,
    )
