"""Makes a table of service times from the real code, on this machine."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from bench.simulation.costs import (
    US,
    ServiceTimes,
    apply_seen_us,
    apply_us,
    compare_us,
    store_us,
    verify_us,
)
from bench.simulation.identities import GROUPS, registration, signed, tags_of
from bench.simulation.kernel import Kernel
from bench.simulation.rendezvous import Job, SimulatedRendezvous
from pilotfleet.protocol.registry.framing import encode_json_frame
from pilotfleet.protocol.registry.messages import encode_message
from pilotfleet.registry.context import PeerContext
from pilotfleet.registry.service import ServiceConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NODES = 2_048
TOGETHER = 64
"""Requests in one arrival, as ``LinkConfig.pipeline`` allows."""
BATCH = 128
COMPARED = (2_001, 60_001)
"""Directories in which watches are compared: what it takes grows with them."""
LOCAL = "127.0.0.1"
ROW = "row"
WAKE_US = 40.0
"""Until ``bench.simulation.realrun.wake_us`` has measured it."""


async def calibrate(*, nodes: int = NODES, wake_us: float = WAKE_US) -> ServiceTimes:
    """Measure what each type of request costs, alone and in a batch."""
    alone = await _Bench(nodes, batch=False).run()
    batched = await _Bench(nodes, batch=True).run()
    few, many = (compare_us(size) for size in COMPARED)
    slope = max(0.0, 1_000 * (many - few) / (COMPARED[1] - COMPARED[0]))
    return ServiceTimes(
        alone,
        batched,
        verify=verify_us(),
        store=await store_us(),
        wake=wake_us,
        row=alone.pop(ROW),
        compare=few - slope * COMPARED[0] / 1_000,
        compare_more=slope,
        apply=apply_us(),
        apply_seen=apply_seen_us(),
    )


class _Bench:
    """A registry of some thousand nodes that is asked for one thing at a time."""

    def __init__(self, nodes: int, *, batch: bool) -> None:
        self._nodes = nodes
        self._batch = batch
        self._kernel = Kernel(0)
        config = ServiceConfig(verified_signatures=8 * nodes)
        self._registry = SimulatedRendezvous(self._kernel, config, ServiceTimes())
        # Loopback is exempt from admission, which is not what is measured.
        self._peer = PeerContext(LOCAL, 1, port=40_000)

    async def run(self) -> dict[str, float]:
        """Return microseconds by type."""
        kinds: dict[str, Callable[[int], dict[str, Any]]] = {
            "register": lambda n: registration(f"agent-{n}", n, LOCAL),
            "lookup": lambda n: {"type": "lookup", "node_id": n + 1},
            "set_visibility": lambda n: _own("set_visibility", n, public=True),
            "set_tags": lambda n: _own("set_tags", n, tags=sorted(tags_of(n))),
            "heartbeat": lambda n: _own("heartbeat", n),
            "poll_handshakes": lambda n: _own("poll_handshakes", n, keep=True),
            "search": lambda n: {
                "type": "search",
                "tags": [f"group-{n % GROUPS}"],
                "limit": 50,
            },
        }
        times: dict[str, float] = {}
        for kind, make in kinds.items():
            messages = [make(n) for n in range(self._nodes)]
            # What repeats is cheap because its signature is known by then.
            if kind in ("heartbeat", "poll_handshakes"):
                await self._time(kind, messages)
            times[kind] = await self._time(kind, messages)
        if not self._batch:
            times |= await self._watch()
        return times

    async def _watch(self) -> dict[str, float]:
        """Return what a question costs that finds nothing, and what a row does."""
        for n in range(self._nodes):
            await self._time("set_tags", [_own("set_tags", n, tags=["watched"])])
        rows, asked = min(self._nodes, 1_000), {"type": "watch", "limit": 1_000}
        nothing = [{**asked, "tags": ["nobody"]} for _ in range(200)]
        watch = await self._time("watch", nothing)
        told = [{**asked, "tags": ["watched"]} for _ in range(20)]
        whole = await self._time("watch", told)
        return {"watch": watch, ROW: round(max(0.1, (whole - watch) / rows), 2)}

    async def _time(self, kind: str, messages: list[dict[str, Any]]) -> float:
        jobs = [self._job(kind, part) for part in self._parts(messages)]
        spent = []
        for job, count in jobs:
            sampled = self._registry.signatures.sampled_s
            begin = time.thread_time()
            await self._registry.answer(job)
            took = time.thread_time() - begin
            took -= self._registry.signatures.sampled_s - sampled
            spent.append(took / count / US)
        return round(statistics.mean(spent), 2)

    def _parts(self, messages: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        size = BATCH if self._batch else TOGETHER
        for start in range(0, len(messages), size):
            yield messages[start : start + size]

    def _job(self, kind: str, part: list[dict[str, Any]]) -> tuple[Job, int]:
        if not self._batch:
            sent = part
        elif kind == "heartbeat":
            rows = [[message["node_id"], message["signature"]] for message in part]
            sent = [{"type": "heartbeats", "nodes": rows}]
        else:
            sent = [{"type": "batch", "requests": part}]
        frames = b"".join(encode_json_frame(encode_message(each)) for each in sent)
        return Job(0, self._peer, frames, _ignore), len(part)


def _own(kind: str, agent: int, **fields: Any) -> dict[str, Any]:
    request = {"type": kind, "node_id": agent + 1, **fields}
    return signed(f"agent-{agent}", request)


def _ignore(replies: list[dict[str, Any]]) -> None:
    """The replies themselves are of no interest."""
