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
"""A block of last-seen times with its key, on the way to or from NATS: an estimate."""
ENTRY_BYTES = 300
"""Another entry on that way: an estimate."""
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


def memory_mib(
    outcome: Outcome, times: ServiceTimes, *, replicas: int = 1
) -> float | None:
    """Return what the nodes and their connections take, in MiB.

    A replica remembers signatures and addresses of those only that talk to it.
    """
    options, loaded = outcome.options, outcome.loaded
    if loaded is None:
        return None
    connections = options.hosts * (options.links if options.per_host > 1 else 1)
    own = loaded.bytes - loaded.directory_bytes + connections * times.connection_bytes
    return (loaded.directory_bytes + own / replicas) / MIB


def megabits(outcome: Outcome) -> tuple[float, float]:
    """Return Mbit/s in and out, headers included."""
    into, out = outcome.account.wire_bytes()
    return 8e-6 * into / outcome.virtual_s, 8e-6 * out / outcome.virtual_s


def search_ms(outcome: Outcome, share: float) -> float:
    """Return a percentile of the searches, in milliseconds."""
    return 1000 * percentile(outcome.account.search_s, share)


@dataclass(frozen=True, slots=True)
class Replica:
    """What each of some replicas needs: calculated with measured units."""

    replicas: int
    cores: float
    mib: float | None
    mbit_in: float
    mbit_out: float


def replica_of(outcome: Outcome, times: ServiceTimes, replicas: int) -> Replica:
    """Return the needs of one of N replicas on a NATS store that they share.

    Each answers an N-th of the requests, and keeps the whole directory and looks after
    it. What anyone writes reaches it through the watch, its own changes too: changes of
    nodes, and last-seen times in blocks once a minute. A single one has SQLite.
    """
    if replicas == 1:
        cpu, memory = cpu_of(outcome, times), memory_mib(outcome, times)
        return Replica(1, cpu.total, memory, *megabits(outcome))
    account, cpu = outcome.account, cpu_of(outcome, times)
    nodes = (account.changes - account.seen_blocks) / outcome.virtual_s / replicas
    # A block is written by each replica that heard one of its 256 nodes: by all.
    blocks = outcome.options.agents / BLOCK / SEEN_S
    others = replicas - 1
    sharing = US * (times.share + replicas * times.follow) * (nodes + blocks)
    sharing += US * others * (times.apply * nodes + times.apply_seen * blocks)
    divided = cpu.total - cpu.storing - cpu.maintenance
    sent = 8e-6 * (nodes * ENTRY_BYTES + blocks * SEEN_BLOCK_BYTES)
    mbit_in, mbit_out = megabits(outcome)
    return Replica(
        replicas,
        divided / replicas + cpu.maintenance + sharing,
        memory_mib(outcome, times, replicas=replicas),
        mbit_in / replicas + replicas * sent,
        mbit_out / replicas + sent,
    )
