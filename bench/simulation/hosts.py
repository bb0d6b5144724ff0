"""Hosts and their agents: when they ask the registry for what.

This follows ``pilotfleet.node.registration`` step by step. The order of requests is
written out once more here, since a million real agents do not fit; each pause is the
real one, from ``pilotfleet.client.pacing``.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.simulation.identities import (
    FIRST_PORT,
    own,
    registration,
    signed,
    tags_of,
)
from bench.simulation.links import Reply, SimulatedLink
from pilotfleet.client import pacing
from pilotfleet.node.gathering import MAX_GATHERED
from pilotfleet.node.memberships import SYNC_INTERVAL_S
from pilotfleet.node.registration.beats import MAX_BEATS
from pilotfleet.node.registration.registrar import AGENT_ATTEMPTS, PARALLEL_REFRESHES
from pilotfleet.registry.context import PeerContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.simulation.kernel import Process, Resume
    from bench.simulation.world import SimulatedWorld

PORTS = 40_000
"""Different ports of the agents of a host."""
LOST = "the registry cannot be reached"


class SimulatedHost:
    """One process with many agents, or one daemon with one."""

    def __init__(self, world: SimulatedWorld, number: int, agents: range) -> None:
        self.world = world
        self.kernel = world.kernel
        self.number = number
        self.agents = agents
        self.ip = ip_of(number)
        options = world.options
        peer = PeerContext(self.ip, number + 1, port=40_000)
        self.links = [
            SimulatedLink(self.kernel, world.rendezvous, number, peer)
            for _ in range(options.links if len(agents) > 1 else 1)
        ]
        self._offers_batch = False
        self._gathered: list[tuple[dict[str, Any], Resume]] = []
        self._due: deque[int] = deque()
        self._slots: dict[float, list[int]] = {}
        self._is_working = False
        self._down_until = 0.0
        self._pauses: dict[int, float] = {}
        """Agents that failed: the pause before their next attempt."""
        self._unregistered: set[int] = set()

    # Start

    def start(self) -> Process:
        """Register all agents, the first one alone."""
        agents = iter(self.agents)
        first = next(agents)
        # It asks the beacon for its address before it has a number.
        self._discover(first)
        yield from self._start_one(first)
        for _ in range(min(self.world.options.parallel_starts, len(self.agents) - 1)):
            self.kernel.spawn(self._start_each(agents))

    def go_on(self) -> None:
        """Be a host whose agents are registered, and beat."""
        self._offers_batch = self.world.options.batch
        for link in self.links:
            link.open()
        keepalive_s = self.world.options.keepalive_s
        for agent in self.agents:
            # As after a start long ago: on the grid, anywhere in the period.
            first = pacing.first_beat_s(keepalive_s, self.kernel.rng) - keepalive_s
            self._schedule_beat(agent, max(first, -keepalive_s))

    def restart_agent(self, agent: int) -> None:
        """Have one agent register anew, as after a restart of its program."""
        self.kernel.spawn(self._start_one(agent))

    def _start_each(self, agents: Iterator[int]) -> Process:
        for agent in agents:
            yield from self._start_one(agent)

    def _start_one(self, agent: int) -> Process:
        for _ in range(AGENT_ATTEMPTS):
            problem = yield from self._register(agent)
            if not problem:
                return
            if problem is not LOST and "rate limited" not in problem:
                break
            yield self._next_pause(agent)
        self.world.refused += 1
        self._unregistered.add(agent)
        self.kernel.after(pacing.MAX_PAUSE_S, self._enqueue, agent)

    def _register(self, agent: int) -> Process:
        """Register, and tell what the agent wants; return why not, if it failed."""
        world = self.world
        name = world.name(agent)
        reply = yield from self._ask(registration(name, agent, self.ip))
        if reply is None or "error" in reply:
            return LOST if reply is None else reply["error"]
        node = world.nodes[agent] = reply["node_id"]
        self._offers_batch = world.options.batch
        self._discover(agent)
        known = reply
        if reply.get("new") is not True:
            known = yield from self._ask({"type": "lookup", "node_id": node})
        wanted: list[dict[str, Any]] = []
        if known and not known.get("public"):
            wanted.append({"type": "set_visibility", "public": True})
        if known and known.get("tags") != sorted(tags_of(agent)):
            wanted.append({"type": "set_tags", "tags": sorted(tags_of(agent))})
        for request in wanted:
            known = yield from self._ask(signed(name, {**request, "node_id": node}))
        if known is None or "error" in known:
            return LOST if known is None else known["error"]
        self._pauses.pop(agent, None)
        self._unregistered.discard(agent)
        # Agents that started together need not ask together.
        early = self.kernel.rng.uniform(0, SYNC_INTERVAL_S / 2)
        world.sync_at[agent] = self.kernel.time + SYNC_INTERVAL_S - early
        world.registered(agent)
        self.kernel.after(pacing.SECOND_DISCOVER_S, self._confirm, agent)
        return ""

    def _confirm(self, agent: int) -> None:
        self._discover(agent)
        keepalive_s = self.world.options.keepalive_s
        wait = pacing.first_beat_s(keepalive_s, self.kernel.rng)
        self.kernel.after(wait, self._enqueue, agent)

    # Steady state

    def _schedule_beat(self, agent: int, now: float) -> None:
        due = pacing.beat_due(now, self.world.options.keepalive_s)
        slot = self._slots.get(due)
        if slot is None:
            slot = self._slots[due] = []
            self.kernel.at(due, self._slot_due, due)
        slot.append(agent)

    def _slot_due(self, due: float) -> None:
        for agent in self._slots.pop(due):
            self._enqueue(agent)

    def _enqueue(self, agent: int) -> None:
        self._due.append(agent)
        if not self._is_working:
            self._is_working = True
            self.kernel.spawn(self._work())

    def _work(self) -> Process:
        while self._due:
            beats = self._take_due()
            if beats:
                yield from self._beat(beats)
        self._is_working = False

    def _take_due(self) -> list[int]:
        beats: list[int] = []
        while self._due and len(beats) < MAX_BEATS:
            agent = self._due.popleft()
            if self.kernel.time < self._down_until:
                self._come_back_later(agent)
            elif agent in self._unregistered:
                self.kernel.spawn(self._start_one(agent))
            elif agent in self.world.cancelled:
                self.world.cancelled.discard(agent)
            else:
                beats.append(agent)
        return beats

    def _beat(self, agents: list[int]) -> Process:
        requests = []
        for agent in agents:
            self._discover(agent)
            requests.append(self._own(agent, "heartbeat"))
        if self._offers_batch:
            rows = [[request["node_id"], request["signature"]] for request in requests]
            reply = yield partial(self._send, {"type": "heartbeats", "nodes": rows})
            failed = reply and reply.get("failed", {})
            texts = [failed and failed.get(str(row[0]), "") for row in rows]
            outcomes = [LOST if reply is None else text or "" for text in texts]
        else:
            replies = yield partial(self._send_all, requests)
            outcomes = [LOST if r is None else r.get("error", "") for r in replies]
        for agent, problem in zip(agents, outcomes, strict=True):
            self._settle(agent, problem)
        sync_at, now = self.world.sync_at, self.kernel.time
        results = zip(agents, outcomes, strict=True)
        stale = [a for a, problem in results if not problem and now >= sync_at[a]]
        if stale:
            self.kernel.at(now, self._refresh, stale)

    def _refresh(self, agents: list[int]) -> None:
        """Ask what networks agents are in, in messages after those of their polls."""
        waiting = iter(agents)
        for _ in range(min(PARALLEL_REFRESHES, len(agents))):
            self.kernel.spawn(self._refresh_each(waiting))

    def _refresh_each(self, agents: Iterator[int]) -> Process:
        for agent in agents:
            self.world.sync_at[agent] = self.kernel.time + SYNC_INTERVAL_S
            yield from self._ask({"type": "lookup", "node_id": self.world.nodes[agent]})

    def _settle(self, agent: int, problem: str) -> None:
        if problem is LOST:
            self._unreachable(agent)
            return
        if problem:
            self._unregistered.add(agent)
            self.kernel.after(self._next_pause(agent), self._enqueue, agent)
            return
        self._pauses.pop(agent, None)
        self.world.heard(agent)
        self._schedule_beat(agent, self.kernel.time)
        self.kernel.spawn(
            self._ask({**self._own(agent, "poll_handshakes"), "keep": True})
        )

    def _unreachable(self, agent: int) -> None:
        now = self.kernel.time
        if now < self._down_until:
            self._come_back_later(agent)
            return
        pause = self._next_pause(agent)
        self._down_until = pacing.down_until(now, pause)
        self.kernel.after(pause, self._enqueue, agent)

    def _come_back_later(self, agent: int) -> None:
        wait = pacing.return_s(self.kernel.time, self._down_until, self.kernel.rng)
        self.kernel.after(wait, self._enqueue, agent)

    def _next_pause(self, agent: int) -> float:
        pause = self._pauses.get(agent, pacing.REGISTER_PAUSE_S)
        wait, self._pauses[agent] = pacing.register_pause_s(pause, self.kernel.rng)
        return wait

    # Requests

    def _own(self, agent: int, kind: str) -> dict[str, Any]:
        return own(self.world.name(agent), kind, self.world.nodes[agent])

    def _discover(self, agent: int) -> None:
        node = self.world.nodes[agent]
        self.world.rendezvous.discover(node, (self.ip, FIRST_PORT + agent % PORTS))

    def _ask(self, message: dict[str, Any]) -> Process:
        """Ask, together with others if that is offered, as often as we are put off."""
        reply: Reply = None
        for _ in range(pacing.MAX_DEFERRALS):
            if self._offers_batch:
                reply = yield partial(self._gather, message)
            else:
                reply = yield partial(self._send, message)
            wait = pacing.deferral_s(reply) if reply is not None else 0.0
            if not wait:
                break
            pause = pacing.deferral_pause_s(wait, self.kernel.rng)
            self.world.rendezvous.account.waits[round(pause)] += 1
            yield pause
        return reply

    def _gather(self, message: dict[str, Any], resume: Resume) -> None:
        self._gathered.append((message, resume))
        if len(self._gathered) == 1:
            self.kernel.at(self.kernel.time, self._flush)

    def _flush(self) -> None:
        waiting, self._gathered = self._gathered, []
        for start in range(0, len(waiting), MAX_GATHERED):
            self._send_gathered(waiting[start : start + MAX_GATHERED])

    def _send_gathered(self, waiting: list[tuple[dict[str, Any], Resume]]) -> None:
        if len(waiting) == 1:
            self._send(*waiting[0])
            return

        def settle(reply: Reply) -> None:
            refused = reply is None or "error" in reply
            replies = [reply] * len(waiting) if refused else reply["replies"]  # type: ignore[index]
            for (_, resume), each in zip(waiting, replies, strict=True):
                resume(each)

        messages = [message for message, _ in waiting]
        self._send({"type": "batch", "requests": messages}, settle)

    def _send(self, message: dict[str, Any], resume: Callable[[Reply], None]) -> None:
        min(self.links, key=_load).send(message, resume)

    def _send_all(self, messages: list[dict[str, Any]], resume: Resume) -> None:
        """Send messages at once; resume with all replies."""
        replies: list[Reply] = [None] * len(messages)
        left = len(messages)

        def answered(at: int, reply: Reply) -> None:
            nonlocal left
            replies[at] = reply
            left -= 1
            if not left:
                resume(replies)

        for at, message in enumerate(messages):
            self._send(message, partial(answered, at))


def ip_of(host: int) -> str:
    """Return the address of a host, one that is not ours."""
    return f"10.{host >> 16 & 255}.{host >> 8 & 255}.{host & 255}"


def _load(link: SimulatedLink) -> int:
    return link.load
