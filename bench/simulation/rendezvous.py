"""One rendezvous process: the real service behind a queue in virtual time.

Its event loop is modelled: connections with requests have their turn one after the
other, for at most ``QUANTUM_S``, as sessions have in the real server. What happens in a
turn is real: bytes are cut into frames, decoded, answered by the real service on the
real directory, and encoded.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.simulation.account import Account
from bench.simulation.costs import US, CountingStore, SampledSignatures, ServiceTimes
from bench.simulation.waitingroom import WaitingRoom
from pilotfleet.protocol.beacon import Discover
from pilotfleet.protocol.registry.framing import JsonFrameDecoder, encode_json_frame
from pilotfleet.protocol.registry.messages import decode_request, encode_reply
from pilotfleet.registry.beacon_table import BeaconConfig, BeaconTable
from pilotfleet.registry.context import PeerContext
from pilotfleet.registry.desk import VERIFYING_AT_ONCE
from pilotfleet.registry.directory.directory import Directory
from pilotfleet.registry.quick import QUICK
from pilotfleet.registry.service import RegistryService, ServiceConfig
from pilotfleet.registry.turns import SHARE_S, Turns
from pilotfleet.registry.watching import GATHER_S, REST, SLICE_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.simulation.kernel import Kernel
    from pilotfleet.registry.watching import _Waiter

QUANTUM_S = SHARE_S
"""How long one connection is served while others wait."""
LONG = frozenset({"register", "batch", "heartbeats"})
"""Requests that ask for their turn before they are worked on."""
LATENCY_S = 0.0005
"""From host to registry, and back again."""
REFUSED_S = 20e-6
"""A request that is told to come back later: read, and nothing else."""
WAITS: list[dict[str, Any]] = [{}]
"""Stands for the answer to a watch that waits for news."""
LOOKING = PeerContext("127.0.0.1", 0)
"""Stands for who asks, where the registry itself has something to do."""
DOWN: list[dict[str, Any]] = []
"""What those get whose connection was lost: no replies at all."""


@dataclass(slots=True)
class Job:
    """Messages that arrived together on one connection."""

    host: int
    peer: PeerContext
    frames: bytes
    done: Callable[[list[dict[str, Any]]], None]
    is_long: bool = False
    """Whether it has work that asks for its turn first."""
    replies: list[dict[str, Any]] | None = None
    left_s: float = 0.0
    """Time of the event loop that is still needed, by the table."""
    aside_s: float = 0.0
    """Time of the threads that verify what is in a batch."""
    wait_s: float = 0.0
    """Of a watch: how long its answer may wait for news."""
    slice_s: float = QUANTUM_S
    """How long it is worked on while others wait."""


class SimulatedRendezvous:
    """Takes jobs, and answers them when a real process would have done so."""

    def __init__(
        self, kernel: Kernel, config: ServiceConfig, times: ServiceTimes
    ) -> None:
        self._kernel = kernel
        self._config = config
        self._times = times
        self._queue: deque[Job] = deque()
        self._long: deque[Job] = deque()
        """Jobs with work that takes long: registrations and batches."""
        self._others = 0
        """Who of ``_queue`` comes before the next share of long work."""
        self._share_s = QUANTUM_S
        """What long work may still take of this turn."""
        self._is_busy = False
        self._verified_until = 0.0
        """When the threads are done with what they have."""
        self._last_datagram = -1.0
        self._watchers: dict[_Waiter, Job] = {}
        """Questions that wait for news, with whom to tell."""
        self._is_looking = False
        self._life = 0
        """Counts restarts: what belongs to an earlier life does not happen."""
        self.is_down = False
        self.directory = Directory()
        self.store = CountingStore()
        self.account = Account()
        self.signatures: SampledSignatures
        self.service: RegistryService
        self.beacon: BeaconTable
        self.watching: WaitingRoom
        self._begin()

    def _begin(self) -> None:
        self.service = RegistryService(
            self.directory,
            self.store,
            config=self._config,
            clock=self._kernel,
            notify=lambda _: None,
        )
        # What a process keeps in memory only: remembered signatures, admission, and
        # where the beacon heard whom.
        self.signatures = SampledSignatures(self._config.verified_signatures)
        desk = self.service._desk
        desk.signatures = self.signatures
        # Real time must not decide who comes first; the queue here does.
        desk.turns = Turns(clock=lambda: 0.0)
        self.watching = WaitingRoom(
            self.directory, self._kernel, limits=self._config.watches
        )
        desk.watching = self.watching
        limits = BeaconConfig(max_nodes=self._config.max_nodes)
        self.beacon = BeaconTable(limits, now=self._kernel.time)
        self._kernel.after(1.0, self._maintain, self._life)

    def make_room(self) -> None:
        """Have room for the signatures of all nodes, as maintenance sees to it."""
        self.service._make_room()

    # Life and death

    def kill(self) -> None:
        """Die as by SIGKILL: all that waits is lost, and so are the connections."""
        self._life += 1
        self.is_down = True
        lost = [*self._queue, *self._long, *self._watchers.values()]
        self._queue.clear()
        self._long.clear()
        self._watchers.clear()
        self._is_busy, self._verified_until, self._is_looking = False, 0.0, False
        for job in lost:
            self._kernel.after(LATENCY_S, job.done, DOWN)

    def restart(self) -> None:
        """Come back with the directory that was on the disk."""
        self.is_down = False
        self._begin()

    # Requests

    def submit(self, job: Job) -> None:
        """Take what a host sends now."""
        if self.is_down:
            self._kernel.after(LATENCY_S, job.done, DOWN)
            return
        self._kernel.after(LATENCY_S, self._requeue, job, self._life)

    def discover(self, node: int, source: tuple[str, int]) -> None:
        """Take a datagram of a node that says where it is."""
        data, account = Discover(node).encode(), self.account
        if self.is_down:
            return
        begin = time.thread_time()
        self.beacon.receive_datagram(data, source, self._kernel.time)
        replies = self.beacon.datagrams_to_send()
        account.service_s += time.thread_time() - begin
        account.datagrams += 1
        if self._kernel.time != self._last_datagram:
            self._last_datagram = self._kernel.time
            account.datagram_wakes += 1
        account.datagram_bytes_in += len(data)
        account.datagram_bytes_out += sum(len(reply) for reply, _ in replies)

    async def _turn(self, life: int) -> None:
        """Serve one connection for a while, and go on with the next one then."""
        if life != self._life:
            return
        job = self._next()
        if job is None:
            self._is_busy = False
            return
        if job.replies is None:
            await self.answer(job)
            if job.is_long:
                self._put_aside(job, life)
                return
            if job.replies == WAITS:
                self._wait(job, life)
                self._kernel.at(self._kernel.time, self._turn, life)
                return
        share = min(job.left_s, job.slice_s)
        job.left_s -= share
        self.account.busy_s += share
        if job.is_long:
            self._share_s -= share
        end = self._kernel.time + share
        if job.left_s > 0:
            self._queue_of(job).append(job)
        else:
            assert job.replies is not None
            self._kernel.at(end + LATENCY_S, job.done, job.replies)
        self._kernel.at(end, self._turn, life)

    def _next(self) -> Job | None:
        """Return who has his turn.

        As in ``pilotfleet.registry.turns``: long work has its share of each turn of the
        event loop, then all others that wait have theirs.
        """
        if not self._others and self._share_s <= 0:
            self._others, self._share_s = len(self._queue), QUANTUM_S
        if self._queue and (self._others or not self._long):
            self._others = max(0, self._others - 1)
            return self._queue.popleft()
        self._others = 0
        return self._long.popleft() if self._long else None

    def _queue_of(self, job: Job) -> deque[Job]:
        is_long = job.is_long and job.replies is not None
        return self._long if is_long else self._queue

    def _put_aside(self, job: Job, life: int) -> None:
        """Have long work wait for its share, and for threads if they verify for it.

        It was read and admitted, or refused, in the turn of its connection.
        """
        reading = min(job.left_s, self._times.wake * US)
        job.left_s -= reading
        self.account.busy_s += reading
        now = self._kernel.time + reading
        ready = now
        if job.aside_s:
            begin = max(now, self._verified_until)
            # The threads work side by side.
            ready = self._verified_until = begin + job.aside_s / VERIFYING_AT_ONCE
        self._kernel.at(ready, self._requeue, job, life)
        self._kernel.at(now, self._turn, life)

    def _requeue(self, job: Job, life: int) -> None:
        if life != self._life:
            self._kernel.after(LATENCY_S, job.done, DOWN)
            return
        self._queue_of(job).append(job)
        if not self._is_busy:
            self._is_busy = True
            self._kernel.at(self._kernel.time, self._turn, life)

    # Watches

    def _wait(self, job: Job, life: int) -> None:
        """Keep a question until there is news, or its time is over."""
        waiter = self.watching.waiting_now
        assert waiter is not None
        self._watchers[waiter] = job
        self._kernel.after(job.wait_s, self._end_wait, waiter, life)
        if not self._is_looking:
            self._is_looking = True
            self._kernel.after(GATHER_S, self._look, life)

    async def _look(self, life: int) -> None:
        if life != self._life:
            return
        if not self._watchers:
            self._is_looking = False
            return
        begin, compared = time.thread_time(), self.watching.compared
        news = await self.watching.look()
        self.account.watching_s += time.thread_time() - begin
        compared = self.watching.compared - compared
        self.account.compared += compared
        took = compared * self._times.compare_s(len(self.directory.nodes.live))
        done = partial(self._end_look, news, took, life)
        # It is one of those that have their turns, as the task of the real one is.
        look = Job(0, LOOKING, b"", done, replies=[], left_s=took, slice_s=SLICE_S)
        self._requeue(look, life)

    def _end_look(
        self, news: list[_Waiter], took: float, life: int, _: list[dict[str, Any]]
    ) -> None:
        """Tell those for whom there was news, and rest as ``Watching`` does."""
        if life != self._life:
            return
        took += self._times.of("watch", batched=False) * len(news)
        took += self._tell(news, life)
        # Also when all were told: they come back at once, and find it resting.
        self._kernel.after(max(GATHER_S, REST * took), self._look, life)

    def _end_wait(self, waiter: _Waiter, life: int) -> None:
        self._tell([waiter], life)

    def _tell(self, waiters: list[_Waiter], life: int) -> float:
        """Answer those who wait; return the time of their rows, by the table."""
        if life != self._life:
            return 0.0
        rows_s = 0.0
        for waiter in waiters:
            job = self._watchers.pop(waiter, None)
            if job is None:
                continue
            begin = time.thread_time()
            reply = self.watching.answer_now(waiter)
            sent = encode_json_frame(encode_reply(reply))
            self.account.watching_s += time.thread_time() - begin
            self.account.bytes_out += len(sent)
            self._kernel.mark(job.host, len(sent), _told(reply))
            job.replies = [decode_request(encode_reply(reply))]
            job.left_s = US * self._times.wake + self._row_s([reply])
            rows_s += job.left_s
            self._requeue(job, life)
        return rows_s

    def _row_s(self, replies: list[dict[str, Any]]) -> float:
        told = sum(_told(reply) for reply in replies)
        self.account.told += told
        return US * self._times.row * told

    # Answers

    async def answer(self, job: Job) -> None:
        """Do what is asked, and note what it takes and when it is done."""
        account, checks = self.account, self.signatures.checks
        changes = self.store.changes
        begin = time.thread_time()
        requests = [decode_request(f) for f in JsonFrameDecoder().feed(job.frames)]
        if len(requests) == 1 or all(r["type"] in QUICK for r in requests):
            replies = [await self.service.handle(r, job.peer) for r in requests]
        else:
            waiting = (self.service.handle(r, job.peer) for r in requests)
            replies = await asyncio.gather(*waiting)
        sent = b"".join(encode_json_frame(encode_reply(reply)) for reply in replies)
        account.service_s += time.thread_time() - begin
        # The replies in a batch are encoded already: hosts read them from the bytes.
        replies = [
            decode_request(encode_reply(reply)) if "replies" in reply else reply
            for reply in replies
        ]
        checks = self.signatures.checks - checks
        changes = self.store.changes - changes
        account.wakes += 1
        account.checks += checks
        account.changes += changes
        account.bytes_in += len(job.frames)
        account.bytes_out += len(sent)
        is_watch = requests[0]["type"] == "watch"
        # The name of a watch is random.
        shown = sum(map(_told, replies)) if is_watch else zlib.crc32(sent)
        self._kernel.mark(job.host, len(job.frames), shown)
        times = self._times
        fixed, verifying = times.wake + changes * times.store, checks * times.verify
        is_batch = requests[0]["type"] in ("batch", "heartbeats")
        job.aside_s = US * verifying if is_batch else 0.0
        job.left_s = US * (fixed if is_batch else fixed + verifying)
        job.left_s += self._count(requests, replies)
        job.replies = replies
        if is_watch:
            job.left_s += self._row_s(replies)
            job.wait_s = requests[0].get("wait_s", 0.0)

    def _count(
        self, requests: list[dict[str, Any]], replies: list[dict[str, Any]]
    ) -> float:
        """Count what was asked; return its time in seconds, by the table."""
        total = 0.0
        for request, reply in zip(requests, replies, strict=True):
            kind = request["type"]
            if kind == "batch":
                rows = request["requests"]
                answers = reply.get("replies", [reply] * len(rows))
                total += self._add(rows, answers, batched=True)
            elif kind == "heartbeats":
                number = len(request["nodes"])
                self._add_many("heartbeat", number, len(reply.get("failed", ())))
                total += number * self._times.of("heartbeat", batched=True)
            else:
                total += self._add([request], [reply], batched=False)
        return total

    def _add(
        self,
        requests: list[dict[str, Any]],
        replies: list[dict[str, Any]],
        *,
        batched: bool,
    ) -> float:
        for request in requests:
            self._add_many(request["type"], 1, 0)
        for reply in replies:
            if "error" in reply:
                self.account.errors[reply["error"].partition(":")[0]] += 1
        return sum(
            REFUSED_S
            if "retry_after" in reply
            else self._times.of(request["type"], batched=batched)
            for request, reply in zip(requests, replies, strict=True)
        )

    def _add_many(self, kind: str, number: int, failed: int) -> None:
        self.account.requests[kind] += number
        self.account.arrivals[int(self._kernel.time)] += number
        if failed:
            self.account.errors[kind] += failed

    async def _maintain(self, life: int) -> None:
        if life != self._life:
            return
        begin, changes = time.thread_time(), self.store.changes
        await self.service.maintain()
        spent = time.thread_time() - begin
        self.account.maintenance_s += spent
        self.account.changes += self.store.changes - changes
        self.account.seen_blocks += self.store.changes - changes
        self._kernel.after(1.0, self._maintain, life)


def _told(reply: dict[str, Any]) -> int:
    """Return how many agents an answer to a watcher tells of."""
    return sum(len(reply.get(part, ())) for part in ("added", "changed", "removed"))
