"""One simulated run: hosts, agents and searchers against one rendezvous."""

from __future__ import annotations

import math
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.simulation.account import Account
from bench.simulation.hosts import SimulatedHost
from bench.simulation.identities import GROUPS, TEAM
from bench.simulation.kernel import Kernel
from bench.simulation.memory import fill, settle_memory
from bench.simulation.rendezvous import Job, SimulatedRendezvous
from bench.simulation.watchers import Watcher
from pilotfleet.node.memberships import SYNC_INTERVAL_S
from pilotfleet.protocol.registry.framing import encode_json_frame
from pilotfleet.protocol.registry.messages import encode_message
from pilotfleet.registry.context import PeerContext
from pilotfleet.registry.service import ServiceConfig

if TYPE_CHECKING:
    from bench.simulation.costs import SampledSignatures, ServiceTimes
    from bench.simulation.kernel import Process
    from bench.simulation.memory import Loaded
    from bench.simulation.options import RunOptions

REPLACED = 0.5
"""Of the agents that go, so many come back as new ones; the others restart."""
RESTART_S = 5.0
"""How long an agent that restarts is away."""
SETTLE_S = 5.125
"""Before a fleet that is not cold is measured: its watchers are told their teams. An
eighth of a second behind the grid, so no heartbeat is cut in two."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has shown."""

    options: RunOptions
    account: Account
    virtual_s: float
    """How long the measured stretch was."""
    real_s: float
    """How long it took here."""
    events: int
    trace: str
    loaded: Loaded | None
    signatures: SampledSignatures
    all_up_s: float | None
    """Cold start: when the last agent was registered."""
    recovered_s: float | None
    """Restart: from the kill until every agent was heard again."""
    refused: int
    """Agents whose start was given up and left to a later attempt."""
    heard: int
    """Agents that were heard in the measured stretch, or since the restart."""
    changes_seen: int
    """Changes that watchers have told to their users."""


class SimulatedWorld:
    """Everything that is simulated, and what the hosts tell of themselves."""

    def __init__(
        self,
        options: RunOptions,
        times: ServiceTimes,
        config: ServiceConfig | None = None,
    ) -> None:
        self.options = options
        self.kernel = Kernel(options.seed)
        # So much churn that new agents find no room is not what is looked at.
        config = config or ServiceConfig(max_nodes=2 * options.agents)
        self.rendezvous = SimulatedRendezvous(self.kernel, config, times)
        self.nodes = array("I", bytes(4 * options.agents))
        self.sync_at = array("d", bytes(8 * options.agents))
        self.absent: set[int] = set()
        """Agents that are away for a moment."""
        self.cancelled: set[int] = set()
        """Agents that went: the heartbeat that they had before them is not sent."""
        self.refused = 0
        self._names: dict[int, str] = {}
        """Of agents that took the place of others."""
        self._up = bytearray(options.agents)
        self._up_count = 0
        self._heard = bytearray(options.agents)
        self._heard_count = 0
        size = options.per_host
        self.hosts = [
            SimulatedHost(self, n, range(n * size, min((n + 1) * size, options.agents)))
            for n in range(options.hosts)
        ]
        teams = -(-options.agents // TEAM) if options.watchers else 0
        self.watchers = [
            Watcher(self.kernel, self.rendezvous, n, host=options.hosts + 1 + n)
            for n in range(teams)
        ]
        self._prober = PeerContext("10.255.255.254", 0, port=50_000)

    # What hosts say

    def name(self, agent: int) -> str:
        """Return the name of an agent, from which its key is made."""
        return self._names.get(agent) or f"agent-{agent}"

    def registered(self, agent: int) -> None:
        """Note that an agent is registered and findable."""
        if not self._up[agent]:
            self._up[agent] = 1
            self._up_count += 1
        self.absent.discard(agent)
        self.heard(agent)

    def heard(self, agent: int) -> None:
        """Note that the registry took an agent's heartbeat."""
        if not self._heard[agent]:
            self._heard[agent] = 1
            self._heard_count += 1

    # Running

    async def run(self) -> Outcome:
        """Simulate everything that the options ask for."""
        options = self.options
        begin = time.monotonic()
        loaded = None if options.cold else self._fill()
        if not options.cold:
            await self._warm_up()
        start = self.kernel.time
        self.rendezvous.account = Account()
        self._heard, self._heard_count = bytearray(options.agents), 0
        self.kernel.spawn(self._search())
        if options.churn_per_h:
            self.kernel.spawn(self._churn())
        if options.cold:
            self._start_watchers(1.0)
        up_s = await self._start_all() if options.cold else None
        recovered_s = await self._restart(start) if options.restart_at_s >= 0 else None
        await self.kernel.run(start + options.duration_s)
        return Outcome(
            options=options,
            account=self.rendezvous.account,
            virtual_s=self.kernel.time - start,
            real_s=time.monotonic() - begin,
            events=self.kernel.events,
            trace=self.kernel.trace,
            loaded=loaded,
            signatures=self.rendezvous.signatures,
            all_up_s=up_s,
            recovered_s=recovered_s,
            refused=self.refused,
            heard=self._heard_count,
            changes_seen=sum(watcher.changes for watcher in self.watchers),
        )

    def _fill(self) -> Loaded:
        """Have all agents registered, as a directory that was loaded has them."""
        options, rng = self.options, self.kernel.rng
        loaded = fill(self.rendezvous, options, self.kernel.wall())
        for agent in range(options.agents):
            self.nodes[agent] = agent + 1
            first = rng.uniform(0, SYNC_INTERVAL_S)
            self.sync_at[agent] = first if options.refreshes else math.inf
            self._up[agent] = 1
        self._up_count = options.agents
        return loaded

    async def _warm_up(self) -> None:
        """Have all agents in the middle of their lives, and the watchers told."""
        for host in self.hosts:
            host.go_on()
        settle_memory()
        self._start_watchers(SETTLE_S / 2)
        await self.kernel.run(SETTLE_S)

    def _start_watchers(self, spread_s: float) -> None:
        for watcher in self.watchers:
            at = self.kernel.time + spread_s * self.kernel.rng.random()
            self.kernel.at(at, self.kernel.spawn, watcher.follow())

    async def _start_all(self) -> float | None:
        options, start = self.options, self.kernel.time
        settle_memory()
        for host in self.hosts:
            at = start + options.spread_s * self.kernel.rng.random()
            self.kernel.at(at, self.kernel.spawn, host.start())
        await self.kernel.run(
            start + options.limit_s, lambda: self._up_count == options.agents
        )
        is_up = self._up_count == options.agents
        return self.kernel.time - start if is_up else None

    async def _restart(self, start: float) -> float | None:
        options = self.options
        await self.kernel.run(start + options.restart_at_s)
        killed = self.kernel.time
        self.rendezvous.kill()
        self._heard, self._heard_count = bytearray(options.agents), 0
        self.kernel.after(options.down_s, self.rendezvous.restart)
        await self.kernel.run(
            killed + options.limit_s, lambda: self._heard_count == options.agents
        )
        is_whole = self._heard_count == options.agents
        return self.kernel.time - killed if is_whole else None

    # Load

    def _search(self) -> Process:
        """Search at random moments, as fast as was asked for, whatever comes back."""
        rng, rate = self.kernel.rng, self.options.searches_per_s
        while rate:
            yield rng.expovariate(rate)
            message = {
                "type": "search",
                "tags": [f"group-{rng.randrange(GROUPS)}"],
                "limit": 50,
            }
            self._send_search(encode_json_frame(encode_message(message)))

    def _send_search(self, frame: bytes) -> None:
        account, sent = self.rendezvous.account, self.kernel.time

        def done(replies: list[dict[str, Any]]) -> None:
            if replies:
                account.search_s.append(self.kernel.time - sent)
            else:
                account.failed_searches += 1

        self.rendezvous.submit(Job(len(self.hosts), self._prober, frame, done))

    def _churn(self) -> Process:
        """Have agents go and come back, at random."""
        options, rng = self.options, self.kernel.rng
        rate = options.churn_per_h * options.agents / 3600
        while True:
            yield rng.expovariate(rate)
            agent = rng.randrange(options.agents)
            if agent in self.absent:
                continue
            self.absent.add(agent)
            self.cancelled.add(agent)
            if rng.random() < REPLACED:
                self._names[agent] = f"agent-{agent}-{self.kernel.events}"
            host = self.hosts[agent // options.per_host]
            self.kernel.after(RESTART_S, host.restart_agent, agent)
