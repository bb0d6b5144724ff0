"""The workers that an orchestrator knows, and how much each has to do.

Choosing must not cost more with more workers. Each set of tags that tasks ask for
has a pool: its workers, sorted into levels by the number of tasks they have open.
The next task goes to the worker that has been on the lowest level for longest.
A worker changes its level by one dictionary move in each of its pools. The
dictionaries are ordered ones: of a plain one, the first entry is searched behind all
that were removed before it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from pilotfleet.fleet.retry import Conduct
from pilotfleet.fleet.waiting import WaitingTasks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

__all__ = ["MAX_POOLS", "Roster", "Tags", "Worker", "WorkerInfo", "worker_info"]

Tags: TypeAlias = frozenset[str]

MAX_POOLS: Final = 256
"""Sets of tags asked for; of more, those that nobody waits for are forgotten."""
_TRIED: Final = 16
"""How many workers of a level are looked at for one that was not tried yet."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as discovery shows it."""

    address: str
    name: str
    tags: Tags


class Worker:
    """A worker and its present work."""

    __slots__ = ("conduct", "info", "is_gone", "open", "pools", "rests_until")

    def __init__(self, info: WorkerInfo, *, is_gone: bool = False) -> None:
        self.info = info
        self.open: dict[str, None] = {}
        """Ids of the attempts that it has, the oldest first."""
        self.conduct = Conduct()
        self.rests_until = 0.0
        self.is_gone = is_gone
        """True when discovery does not show it any more, or not yet."""
        self.pools: list[_Pool] = []


class _Pool:
    """The workers that have certain tags, by level."""

    __slots__ = ("levels", "members", "tags", "waiting")

    def __init__(self, tags: Tags, concurrency: int) -> None:
        self.tags = tags
        self.levels: list[OrderedDict[str, Worker]] = [
            OrderedDict() for _ in range(concurrency)
        ]
        self.members = 0
        """Workers that discovery shows, busy and resting ones included."""
        self.waiting = WaitingTasks()
        """The tasks that wait for a worker of this pool."""

    def put(self, worker: Worker) -> None:
        # One that is known from an earlier life of ours may have more than its share.
        if len(worker.open) < len(self.levels):
            self.levels[len(worker.open)][worker.info.address] = worker

    def take(self, worker: Worker) -> None:
        if len(worker.open) < len(self.levels):
            self.levels[len(worker.open)].pop(worker.info.address, None)

    def choose(self, avoided: Iterable[str]) -> Worker | None:
        """Return the least busy worker, if possible one that is not avoided."""
        second_best = None
        # A sub-orchestrator has a hundred levels, and all but a few are empty.
        for level in filter(None, self.levels):
            for _, worker in zip(range(_TRIED), level.values(), strict=False):
                if worker.info.address not in avoided:
                    return worker
                second_best = second_best or worker
        return second_best


class Roster:
    """All workers, by address and by pool."""

    def __init__(self, *, concurrency: int) -> None:
        self._concurrency = concurrency
        self._workers: dict[str, Worker] = {}
        self._names: dict[str, Worker] = {}
        self._pools: dict[Tags, _Pool] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def update(self, infos: Iterable[WorkerInfo], now: float) -> None:
        """Take over what discovery shows now. Who is gone gets nothing new."""
        seen = {info.address: info for info in infos}
        for address, worker in list(self._workers.items()):
            if address not in seen:
                self._withdraw(worker)
                worker.is_gone = True
                if not worker.open:
                    self._forget(worker)
        for address, info in seen.items():
            known = self._workers.get(address)
            if known is None:
                known = self._workers[address] = Worker(info)
                self._admit(known, now)
            elif known.is_gone or known.info != info:
                self._withdraw(known)
                if known.info.name != info.name:
                    self._names.pop(known.info.name, None)
                known.is_gone = False
                known.info = info
                self._admit(known, now)

    def choose(self, tags: Tags, avoided: Iterable[str] = ()) -> Worker | None:
        """Return the worker that should get the next task with these tags."""
        return self._pool(tags).choose(avoided)

    def find(self, agent: str) -> Worker | None:
        """Return a worker that is there, or that still has something to do.

        By address or by name.
        """
        return self._workers.get(agent) or self._names.get(agent)

    def expect(self, address: str) -> Worker:
        """Return a worker, also one that discovery does not show (yet)."""
        worker = self._workers.get(address)
        if worker is None:
            info = WorkerInfo(address, address, frozenset())
            worker = self._workers[address] = Worker(info, is_gone=True)
        return worker

    def begin(self, worker: Worker, wire_id: str) -> None:
        """Note an attempt that a worker gets."""
        self._take(worker)
        worker.open[wire_id] = None
        self._put(worker)

    def end(self, address: str, wire_id: str) -> Worker | None:
        """Note an attempt that a worker has no more."""
        worker = self._workers.get(address)
        if worker is None:
            return None
        self._take(worker)
        worker.open.pop(wire_id, None)
        self._put(worker)
        if worker.is_gone and not worker.open:
            self._forget(worker)
        return worker

    def counts(self) -> tuple[int, int]:
        """Return how many workers are busy, and how many rest."""
        busy = sum(bool(worker.open) for worker in self._workers.values())
        resting = sum(bool(worker.rests_until) for worker in self._workers.values())
        return busy, resting

    def rest(self, worker: Worker, until: float) -> None:
        """Give a worker nothing until a time; call :meth:`wake` then."""
        worker.rests_until = until
        self._take(worker)

    def wake(self, address: str, now: float) -> Worker | None:
        """Use a rested worker again; None when it is gone or rests on."""
        worker = self._workers.get(address)
        if worker is None or worker.is_gone or worker.rests_until > now:
            return None
        worker.rests_until = 0.0
        self._put(worker)
        return worker

    def is_carried(self, tags: Tags) -> bool:
        """Return whether a worker with these tags is there, busy or not."""
        return self._pool(tags).members > 0

    def waiting(self, tags: Tags) -> WaitingTasks:
        """Return the queue of tasks that wait for a worker with these tags."""
        return self._pool(tags).waiting

    def waiting_pools(self, worker: Worker | None = None) -> list[Tags]:
        """Return the tags for which tasks wait, of one worker or of all.

        Those of the most urgent task come first, whatever else the same worker could
        do.
        """
        pools = self._pools.values() if worker is None else worker.pools
        waiting = [pool for pool in pools if pool.waiting]
        if len(waiting) > 1:
            waiting.sort(key=lambda pool: pool.waiting.first())
        return [pool.tags for pool in waiting]

    def _pool(self, tags: Tags) -> _Pool:
        pool = self._pools.get(tags)
        if pool is None:
            if len(self._pools) >= MAX_POOLS:
                self._forget_pools()
            pool = self._pools[tags] = _Pool(tags, self._concurrency)
            for worker in self._workers.values():
                if not worker.is_gone and tags <= worker.info.tags:
                    worker.pools.append(pool)
                    pool.members += 1
                    if not worker.rests_until:
                        pool.put(worker)
        return pool

    def _forget_pools(self) -> None:
        self._pools = {tags: pool for tags, pool in self._pools.items() if pool.waiting}
        for worker in self._workers.values():
            worker.pools = [pool for pool in worker.pools if pool.waiting]

    def _forget(self, worker: Worker) -> None:
        del self._workers[worker.info.address]
        if self._names.get(worker.info.name) is worker:
            del self._names[worker.info.name]

    def _admit(self, worker: Worker, now: float) -> None:
        self._names[worker.info.name] = worker
        worker.pools = [
            pool for pool in self._pools.values() if pool.tags <= worker.info.tags
        ]
        for pool in worker.pools:
            pool.members += 1
        if worker.rests_until <= now:
            worker.rests_until = 0.0
            self._put(worker)

    def _withdraw(self, worker: Worker) -> None:
        self._take(worker)
        for pool in worker.pools:
            pool.members -= 1
        worker.pools = []

    def _take(self, worker: Worker) -> None:
        for pool in worker.pools:
            pool.take(worker)

    def _put(self, worker: Worker) -> None:
        if not worker.is_gone and not worker.rests_until:
            for pool in worker.pools:
                pool.put(worker)


def worker_info(row: Mapping[str, Any]) -> WorkerInfo | None:
    """Read a row of a search reply; None when it lacks what is needed."""
    address, name, tags = row.get("address"), row.get("hostname"), row.get("tags")
    if not isinstance(address, str) or not address:
        return None
    label = name if isinstance(name, str) and name else address
    texts = [tag for tag in tags if isinstance(tag, str)] if tags else []
    return WorkerInfo(address, label, frozenset(texts))
