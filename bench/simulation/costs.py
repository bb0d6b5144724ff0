"""What requests cost: measured here, once, before a run.

The virtual queue needs a time for each request before it is known what the request will
cost this time, and a trace that is the same each time cannot depend on a measured
duration. So a run takes a table of service times; ``calibrate`` makes one from the real
code, and a saved table repeats a run exactly.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.simulation.identities import TEAM, stored, team_of
from pilotfleet.protocol.identity import Identity, verify
from pilotfleet.protocol.registry.signatures import VerificationCache
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.directory.liveness import BLOCK, encode_seen_block
from pilotfleet.registry.directory.records import seen_key
from pilotfleet.registry.directory.search import Query
from pilotfleet.registry.directory.watches import Question, Watches
from pilotfleet.registry.store.base import Change, Entry, Store
from pilotfleet.registry.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

    from pilotfleet.protocol.registry.signatures import SignedText
    from pilotfleet.registry.directory.watches import Watch

US = 1e-6
SAMPLE = 500
"""One signature in so many is really verified."""
STORE_SAMPLE = 20_000
STORE_GROUP = 100
"""Changes in one commit of the sample: what arrives together shares one."""


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Microseconds of processor time. The defaults are of the reference machine."""

    alone: dict[str, float] = field(default_factory=dict)
    """A request that is a message of its own, by its type."""
    batched: dict[str, float] = field(default_factory=dict)
    """The same inside a batch."""
    verify: float = 200.0
    """One Ed25519 signature that is not remembered."""
    store: float = 20.0
    """One change in SQLite, in a commit with others."""
    wake: float = 40.0
    """One arrival at a connection: system calls, event loop and task. Measured at a
    real rendezvous process, beyond what its requests cost."""
    row: float = 2.0
    """One agent in an answer to a watcher, encoding included."""
    compare: float = 50.0
    """A watch of a team that is compared, since somebody else has changed."""
    compare_more: float = 0.5
    """The same for each further 1,000 nodes in the directory."""
    share: float = 22.0
    """One change in NATS, where replicas share a store: the writer's part."""
    follow: float = 23.0
    """One stored entry that the watch of NATS brings, one's own or another's."""
    apply: float = 8.0
    """One stored entry that another replica wrote, taken over."""
    apply_seen: float = 300.0
    """The same with the last-seen times of 256 nodes."""
    connection_bytes: float = 10_000.0
    """Memory of a connection that waits. Measured at a real rendezvous process."""
    other: float = 60.0
    """A request of a type that was not measured."""

    def of(self, kind: str, *, batched: bool) -> float:
        """Return the time of one request in seconds."""
        table = self.batched if batched else self.alone
        return US * table.get(kind, self.other)

    def compare_s(self, nodes: int) -> float:
        """Return the time of comparing a watch with so many nodes, in seconds."""
        return US * (self.compare + self.compare_more * nodes / 1_000)

    def save(self, path: Path) -> None:
        """Write the table."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> ServiceTimes:
        """Read a table that was saved."""
        return cls(**json.loads(path.read_text()))


class SampledSignatures(VerificationCache):
    """The registry's memory of good signatures, with most checks only counted.

    Simulated agents have no private keys: their signatures are bytes that differ as
    real ones do, so what is remembered, found again and forgotten is real. A million
    real checks would take four minutes of a core each time.
    """

    __slots__ = ("_identity", "checks", "sampled", "sampled_s")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._identity = Identity(bytes(32))
        self.checks = 0
        self.sampled = 0
        self.sampled_s = 0.0

    def _verify(self, public_key: bytes, message: str, signature: bytes) -> bool:
        self._count(message)
        return True

    def unknown(self, claims: Iterable[SignedText]) -> list[SignedText]:
        """Count what a thread would verify, and remember it as good."""
        found = super().unknown(claims)
        for _, message, _ in found:
            self._count(message)
        self.learn(found, [True] * len(found))
        return []

    def _count(self, message: str) -> None:
        self.checks += 1
        if self.checks % SAMPLE == 1:
            self._sample(message.encode())

    def _sample(self, message: bytes) -> None:
        signature = self._identity.sign(message)
        begin = time.thread_time()
        good = verify(self._identity.public_key, signature, message)
        self.sampled_s += time.thread_time() - begin
        self.sampled += 1
        assert good


class CountingStore(Store):
    """Takes every change and keeps none, so that memory is the directory's alone.

    SQLite has its data on the disk; a simulated restart keeps the directory.
    """

    def __init__(self) -> None:
        self.changes = 0
        self.bytes = 0

    async def load(self) -> list[Entry]:
        """Return nothing: the directory is filled directly."""
        return []

    async def _write(self, changes: Sequence[Change]) -> list[int]:
        first = self.changes + 1
        self.changes += len(changes)
        self.bytes += sum(len(c.key) + len(c.value or b"") for c in changes)
        return list(range(first, self.changes + 1))

    async def watch(self, after: int) -> AsyncGenerator[Entry, None]:
        """Yield nothing: nobody else writes."""
        return
        yield

    async def aclose(self) -> None:
        """Do nothing."""


def verify_us(count: int = 500) -> float:
    """Return what one real verification takes, in microseconds."""
    identity = Identity(bytes(32))
    message = b"heartbeat:1"
    signature = identity.sign(message)
    begin = time.thread_time()
    for _ in range(count):
        verify(identity.public_key, signature, message)
    return (time.thread_time() - begin) / count / US


async def store_us(count: int = STORE_SAMPLE) -> float:
    """Return the processor time of a change in a real SQLite store, in microseconds."""
    value = bytes(200)
    with tempfile.TemporaryDirectory(prefix="pf-sim-") as folder:
        async with SqliteStore(Path(folder) / "registry.db") as store:
            begin = time.process_time()
            for first in range(0, count, STORE_GROUP):
                numbers = range(first, first + STORE_GROUP)
                await store.write([Change(f"node.{n}", value, None) for n in numbers])
            spent = time.process_time() - begin
    return spent / count / US


def compare_us(nodes: int, *, watches: int = 10, rounds: int = 100) -> float:
    """Return what it takes to find that there is no news for the watch of a team."""
    directory = Directory()
    directory.load(stored(nodes, ["10.0.0.1"], nodes, 1), wall=2.0)
    followed: list[Watch] = []
    table = Watches(directory, make_name=lambda: str(len(followed)))
    for team in range(min(watches, (nodes - 1) // TEAM)):
        asked = Question(Query(tags=(team_of(team * TEAM),)), limit=TEAM)
        told = table.compare(table.open(asked, 0.0), TEAM)
        followed.append(table.open(replace(asked, watch=told.watch, seq=told.seq), 0.0))
    took: list[float] = []
    for _ in range(rounds):
        # Of the last team, which nobody follows.
        directory.changes.note_row(nodes)
        begin = time.thread_time()
        for watch in followed:
            table.compare(watch, TEAM)
        took.append(time.thread_time() - begin)
    # A few that others have disturbed must not count: it is a small difference of two
    # of these that says how it grows.
    return statistics.median(took) / len(followed) / US


def apply_us(count: int = 5_000) -> float:
    """Return what it takes to follow an entry of another replica, in microseconds."""
    directory = Directory()
    entries = list(stored(2 * count, ["10.0.0.1"], 2 * count, 1))
    directory.load(entries[: 3 * count], wall=2.0)
    begin = time.thread_time()
    for entry in entries[3 * count :]:
        directory.apply(entry)
    return (time.thread_time() - begin) / (3 * count) / US


def apply_seen_us(blocks: int = 20) -> float:
    """Return the same for the last-seen times of 256 nodes."""
    directory, nodes = Directory(), blocks * BLOCK
    directory.load(stored(nodes, ["10.0.0.1"], nodes, 1), wall=2.0)
    values = [encode_seen_block(n, lambda _: 60.0) for n in range(blocks)]
    begin = time.thread_time()
    for block, value in enumerate(values):
        directory.apply(Entry(seen_key(block), value, 4 * nodes + block))
    return (time.thread_time() - begin) / blocks / US
