"""How agents become and stay known to the registry (registry.md section 5).

All agents of a host share one queue. Each has one deadline at the timer wheel;
when it comes, the agent is queued, and a few tasks that exist only while the
queue is not empty talk to the registry. What an agent wants to be known as is
compared with what the registry says of it, so that a restart of ten thousand
agents sends no more than two requests for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError, PilotError, RegistryError, Unavailable
from pilotfleet.node import reports
from pilotfleet.node.local import has_address, is_routable_ip
from pilotfleet.node.memberships import SYNC_INTERVAL_S, Memberships
from pilotfleet.node.presence import keep_mappings, watch_addresses
from pilotfleet.protocol.registry.endpoints import format_endpoint, parse_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pilotfleet.client.registry import Registration
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host
    from pilotfleet.protocol.address import Endpoint

__all__ = ["OFFICIAL_VERSION", "Membership", "Registrar"]

logger = logging.getLogger(__name__)

# From the specification.
OFFICIAL_VERSION: Final = "1.18.0"
"""The release whose behaviour we have; peers decide by it what to send us."""
UNKNOWN_TEXTS: Final = ("node not found", "signature verification failed")
"""Heartbeat errors after which a node registers again at once (section 2.6)."""
FAILURES_BEFORE_REGISTER: Final = 3
REGISTER_PAUSE_S: Final = 0.1
MAX_PAUSE_S: Final = 30.0
SECOND_DISCOVER_S: Final = 1.0
DIAL_S: Final = 5.0
START_PAUSES_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses while the registry cannot be reached at the start; the last repeats."""

# Of our choosing.
BEAT_GRID_S: Final = 0.25
"""Heartbeats are due at multiples of this. Ten thousand agents then send 42 at a
time: coarser would save little more and hold the event loop longer."""
MAX_WORKERS: Final = 64
"""Heartbeats under way at a time."""
AGENT_ATTEMPTS: Final = 8
"""Tries to register a further agent before the start goes on without it."""
NAT_DISCOVER_S: Final = 2.0
"""How long the others wait for the beacon once the first has seen a NAT."""
REGISTER_GUARD_S: Final = 2.0
"""A registration younger than this is not repeated."""
MAX_LAN_ADDRESSES: Final = 4


class Membership:
    """One agent's standing with the registry. Due once per keepalive."""

    __slots__ = (
        "advertised",
        "agent",
        "failures",
        "is_confirmed",
        "must_register",
        "observed",
        "pause",
        "reflected",
        "reflection",
        "registrar",
        "sync_at",
    )

    def __init__(self, registrar: Registrar, agent: Agent) -> None:
        self.registrar = registrar
        self.agent = agent
        self.failures = 0
        self.pause = REGISTER_PAUSE_S
        self.must_register = True
        self.is_confirmed = False
        """Whether the second discover was sent."""
        self.sync_at = 0.0
        """When the registry is asked again for the agent's networks."""
        self.reflected: Endpoint | None = None
        """Where the beacon last saw the agent."""
        self.advertised: Endpoint | None = None
        """The reflected endpoint that the registry was told, if it was."""
        self.observed: Endpoint | None = None
        """What the registry tells those who look for the agent."""
        self.reflection: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Membership of {self.agent.name}>"

    def handle_timer(self, now: float) -> None:
        """Have a worker talk to the registry."""
        self.registrar.enqueue(self)


class Registrar:
    """Registers the agents of a host and keeps them registered."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._members: dict[Agent, Membership] = {}
        self._due: deque[Membership] = deque()
        self._workers = 0
        self.is_behind_nat = False
        """The beacon sees the host at an address that is not its own."""
        self._seen_at = ""
        self._memberships = Memberships(host)
        self._down_until = 0.0
        self.registrations = 0
        self.heartbeats = 0

    # Start

    async def start_first(self, agent: Agent) -> None:
        """Register the first agent, waiting for a registry that is not there yet.

        Raises:
            Unavailable: The registry could not be reached in all attempts.
            RegistryError: It refuses the agent.
        """
        # The first agent goes alone: what it learns (that there is a registry, and a
        # NAT) saves all others the question.
        await self._wait_for_registry()
        member = self._member(agent)
        await self._learn_endpoint(member)
        await self._register(member)
        self._host.spawn(keep_mappings(self._host), name="nat mappings")
        self._host.spawn(watch_addresses(self._host), name="address watch")

    async def start_others(
        self, agents: Iterable[Agent], *, on_progress: Callable[[int], None]
    ) -> None:
        """Register many agents, a bounded number at a time.

        An agent that the registry refuses is logged, and tried again later.
        """
        # One shared iterator is the queue: each worker takes the next agent when it is
        # free, and nothing is kept for those that have not begun.
        listed = list(agents)
        waiting = iter(enumerate(listed, start=1))
        started, spread = self._host.now(), self._host.config.stagger_s
        done = 0

        async def work() -> None:
            nonlocal done
            for number, agent in waiting:
                at = started + spread * number / len(listed)
                await asyncio.sleep(max(0.0, at - self._host.now()))
                await self._start_one(agent)
                done += 1
                on_progress(done)

        async with asyncio.TaskGroup() as tasks:
            for number in range(self._host.config.parallel_starts):
                tasks.create_task(work(), name=f"start of agents, worker {number}")

    def enqueue(self, member: Membership) -> None:
        """Have the registry asked for ``member`` as soon as a worker is free."""
        self._due.append(member)
        # Ten thousand agents are no ten thousand tasks; workers exist only while
        # something is due.
        if self._workers < MAX_WORKERS:
            self._workers += 1
            self._host.spawn(self._work(), name="heartbeats")

    def forget(self, agent: Agent) -> None:
        """Stop keeping ``agent`` registered."""
        member = self._members.pop(agent, None)
        if member is not None:
            self._host.wheel.cancel(member)

    def register_again(self, agent: Agent) -> None:
        """Register ``agent`` now, for a changed key or endpoint."""
        member = self._member(agent)
        member.must_register = True
        # After a pause, because several reasons to register often come together.
        self._host.wheel.schedule(member, self._host.now() + REGISTER_PAUSE_S)

    def reflected(self, agent: Agent, endpoint: Endpoint) -> None:
        """Take note of where the beacon saw ``agent``."""
        member = self._member(agent)
        member.reflected = endpoint
        if member.reflection is not None and not member.reflection.done():
            member.reflection.set_result(None)
        self._note_nat(endpoint[0])
        # A fixed endpoint, or none, is what the operator wants.
        is_fixed = agent.spec.advertise is not None or agent.relay_only
        known = (member.advertised, member.observed)
        if is_fixed or not agent.registered_at or not is_routable_ip(endpoint[0]):
            return
        if endpoint not in known:
            logger.info("agent %s: public endpoint changed", agent.name)
            self.register_again(agent)

    def _note_nat(self, seen_at: str) -> None:
        if seen_at != self._seen_at and is_routable_ip(seen_at):
            self._seen_at = seen_at
            self.is_behind_nat = not has_address(seen_at)

    # One agent

    async def _wait_for_registry(self) -> None:
        """Return once something accepts connections where the registry should be."""
        config, endpoint = self._host.config, self._host.registry.endpoint
        for attempt in range(1, config.registry_attempts + 1):
            try:
                async with asyncio.timeout(DIAL_S):
                    _, writer = await asyncio.open_connection(*endpoint)
                writer.close()
                return
            except OSError as error:  # A timeout is one, too.
                failure = error
            if attempt < config.registry_attempts:
                pause = START_PAUSES_S[min(attempt, len(START_PAUSES_S)) - 1]
                logger.warning("registry: %s; trying again in %g s", failure, pause)
                await asyncio.sleep(pause)
        raise Unavailable(
            f"registry {format_endpoint(config.registry)} cannot be reached: {failure}",
            hint="start pilot-rendezvous, or name the right one with --registry",
        ) from failure

    async def _start_one(self, agent: Agent) -> None:
        member = self._member(agent)
        if self.is_behind_nat:
            await self._learn_endpoint(member)
        for _ in range(AGENT_ATTEMPTS):
            try:
                await self._register(member)
                return
            except RegistryError as error:
                failure: PilotError = error
                # Any other refusal is for a reason that waiting does not change.
                if "rate limited" not in str(error):
                    break
            except PilotError as error:
                failure = error
            await asyncio.sleep(self._next_pause(member))
        logger.error("agent %s is not registered: %s", agent.name, failure)
        self._schedule(member, MAX_PAUSE_S)

    async def _learn_endpoint(self, member: Membership) -> None:
        """Ask the beacon for the agent's public address; do without an answer."""
        host, agent = self._host, member.agent
        if agent.spec.advertise is not None or agent.relay_only:
            return
        is_first = not self.is_behind_nat
        limit = host.config.discover_timeout_s if is_first else NAT_DISCOVER_S
        member.reflection = host.loop.create_future()
        # From the tunnel socket itself: another socket would have another mapping at
        # the NAT.
        agent.tunnels.discover(host.now())
        agent.mark_dirty()
        try:
            async with asyncio.timeout(limit):
                await member.reflection
        except TimeoutError:
            logger.warning("the beacon does not answer; going on without")
        member.reflection = None

    async def _register(self, member: Membership) -> None:
        """Register, then set what the registry has otherwise."""
        agent = member.agent
        config = self._host.config
        # To the registry, an agent with the wrong key is another node.
        await self._host.rotation.settle(agent)
        answer = await self._host.registry.register(
            agent.identity,
            self._listen_address(member),
            # The registry binds an owner to one key: a fleet cannot share one.
            owner=config.owner if agent is self._host.default_agent else "",
            lan_addrs=self._lan_addresses(agent),
            version=OFFICIAL_VERSION,
            relay_only=agent.relay_only,
            hostname=agent.hostname,
        )
        self._adopt(member, answer)
        agent.tunnels.discover(self._host.now())
        agent.mark_dirty()
        # One question saves up to three writes: after a restart nearly all agents are
        # known as they want to be.
        known = await agent.registry("lookup", node_id=agent.node_id)
        await self._announce(agent, known)
        await self._memberships.join(agent, known)
        self._confirm(member)

    def _listen_address(self, member: Membership) -> str:
        agent = member.agent
        if agent.spec.advertise is not None:
            return format_endpoint(agent.spec.advertise)
        member.advertised = None
        if member.reflected is not None and is_routable_ip(member.reflected[0]):
            member.advertised = member.reflected
            return format_endpoint(member.reflected)
        return format_endpoint(agent.socket.address)

    def _lan_addresses(self, agent: Agent) -> list[str]:
        bound, port = agent.socket.address
        is_bound_to_all = bound in ("0.0.0.0", "::")
        if agent.relay_only or self._host.is_local_registry or not is_bound_to_all:
            return []
        addresses = self._host.local_addresses[:MAX_LAN_ADDRESSES]
        return [f"{address}:{port}" for address in addresses]

    def _adopt(self, member: Membership, answer: Registration) -> None:
        agent, node = member.agent, answer.node_id
        if node != agent.node_id:
            # The registry may give another number, for example after its data was lost.
            # The old one can already be a neighbour's.
            if self._host.by_node.get(agent.node_id) is agent:
                del self._host.by_node[agent.node_id]
            agent.adopt(node)
        self._host.by_node[node] = agent
        try:
            member.observed = parse_endpoint(answer.observed_addr)
        except DecodeError:
            member.observed = None
        agent.observed_host = member.observed[0] if member.observed else ""
        if answer.hostname_error:
            logger.info("agent %s: %s", agent.name, answer.hostname_error)

    async def _announce(self, agent: Agent, known: dict[str, Any]) -> None:
        """Set visibility, hostname and tags where the registry has others."""
        node = agent.node_id
        if bool(known.get("public")) != agent.is_public:
            await agent.registry("set_visibility", node_id=node, public=agent.is_public)
        hostname = str(known.get("hostname") or "")
        if agent.hostname and hostname != agent.hostname:
            hostname = await self._set_hostname(agent)
        agent.hostname = hostname
        tags = tuple(str(tag) for tag in known.get("tags") or ())
        # Without tags of its own, the agent keeps those that were set for it earlier.
        if agent.tags and tags != agent.tags:
            await agent.registry("set_tags", node_id=node, tags=list(agent.tags))
        else:
            agent.tags = tags

    async def _set_hostname(self, agent: Agent) -> str:
        """Set the hostname; an agent whose name is taken goes on without, for now."""
        try:
            await agent.registry(
                "set_hostname", node_id=agent.node_id, hostname=agent.hostname
            )
        except RegistryError as error:
            logger.warning("agent %s has no hostname: %s", agent.name, error)
            return ""
        return agent.hostname

    async def _announce_hostname(self, agent: Agent) -> None:
        """Announce the hostname again, where that can make a difference.

        1.18.0 does so every minute. Our registry keeps a name that it has given; it
        is asked again only for one that it refused, which may be free by now.
        """
        name = agent.wanted_hostname
        if not name or (agent.hostname and self._host.registry.extensions):
            return
        try:
            await agent.registry("set_hostname", node_id=agent.node_id, hostname=name)
        except RegistryError as error:
            logger.debug("hostname of %s: %s", agent.name, error)
            return
        agent.hostname = name

    async def _sync_networks(self, member: Membership) -> None:
        now = self._host.now()
        if now < member.sync_at:
            return
        member.sync_at = now + SYNC_INTERVAL_S
        try:
            await self._memberships.sync(member.agent)
        except RegistryError as error:
            logger.debug("networks of %s: %s", member.agent.name, error)

    def _confirm(self, member: Membership) -> None:
        agent = member.agent
        is_first = not agent.registered_at
        agent.registered_at = self._host.now()
        self.registrations += 1
        member.must_register = member.is_confirmed = False
        member.failures = 0
        member.pause = REGISTER_PAUSE_S
        reports.registered(agent, member.advertised, is_first=is_first)
        # Agents that started together need not ask together.
        early = self._random(SYNC_INTERVAL_S / 2)
        member.sync_at = self._host.now() + SYNC_INTERVAL_S - early
        self._schedule(member, SECOND_DISCOVER_S)
        logger.log(
            logging.INFO if agent is self._host.default_agent else logging.DEBUG,
            "agent %s is %s at %s%s",
            agent.name,
            "registered" if is_first else "registered again",
            agent.address,
            f" as {agent.hostname}" if agent.hostname else "",
        )

    # Steady state

    async def _work(self) -> None:
        try:
            while self._due:
                member = self._due.popleft()
                try:
                    await self._serve(member)
                except Exception:  # Nobody else would ever wake this agent again.
                    logger.exception("heartbeat of %s failed", member.agent.name)
                    self._schedule(member, self._next_pause(member))
        finally:
            self._workers -= 1

    async def _serve(self, member: Membership) -> None:
        agent, now = member.agent, self._host.now()
        if agent.closed:
            return
        # One agent's failure stands for all of this host: each of them dialling on its
        # own would be a storm when the registry returns.
        if now < self._down_until:
            # Somebody just found the registry down; spread the rest.
            self._schedule(member, self._down_until - now + self._random(5.0))
            return
        if not member.is_confirmed and not member.must_register:
            self._confirm_endpoint(member)
            return
        try:
            if member.must_register:
                await self._register_again(member)
            else:
                await self._heartbeat(member)
        except RegistryError as error:
            self._refused(member, str(error))
        except PilotError as error:
            self._unreachable(member, error)

    def _confirm_endpoint(self, member: Membership) -> None:
        """Send the discover that section 5 repeats, in case one was lost."""
        member.is_confirmed = True
        member.agent.tunnels.discover(self._host.now())
        member.agent.mark_dirty()
        # Agents that started together must not beat together.
        self._schedule(member, self._random(self._host.config.keepalive_s))

    async def _heartbeat(self, member: Membership) -> None:
        host, agent = self._host, member.agent
        # It keeps the NAT's mapping for the beacon open, without which no relayed frame
        # arrives. First, because the registry can be down while the beacon is not.
        agent.tunnels.discover(host.now())
        agent.mark_dirty()
        await agent.registry("heartbeat", node_id=agent.node_id)
        self.heartbeats += 1
        member.failures = 0
        member.pause = REGISTER_PAUSE_S
        reports.heartbeat(agent)
        if host.trust_service is not None:
            host.trust_service.keepalive(agent)
        self._schedule_beat(member)
        await self._announce_hostname(agent)
        await self._sync_networks(member)

    async def _register_again(self, member: Membership) -> None:
        agent = member.agent
        age = self._host.now() - agent.registered_at
        # A registry that refuses heartbeats of a node that it has just registered (two
        # replicas, one behind) would otherwise have us register in a loop.
        if agent.registered_at and age < REGISTER_GUARD_S:
            self._schedule(member, REGISTER_GUARD_S - age)
            return
        await self._register(member)
        # A registry that lost us has lost our trust as well, and decides by it who may
        # resolve us.
        for peer in list(agent.trust.trusted):
            # A peer that the registry does not know is no reason to try again.
            with contextlib.suppress(RegistryError):
                await agent.registry(
                    "report_trust", node_id=agent.node_id, peer_id=peer
                )

    def _refused(self, member: Membership, text: str) -> None:
        """React to an error text of the registry (registry.md section 2.6)."""
        member.failures += 1
        if member.must_register:
            logger.warning("agent %s is not registered: %s", member.agent.name, text)
            self._schedule(member, self._next_pause(member))
            return
        logger.info("heartbeat of %s: %s", member.agent.name, text)
        is_unknown = any(known in text for known in UNKNOWN_TEXTS)
        if is_unknown or member.failures >= FAILURES_BEFORE_REGISTER:
            member.must_register = True
            self._schedule(member, self._next_pause(member))
        else:
            self._schedule_beat(member)

    def _unreachable(self, member: Membership, error: PilotError) -> None:
        member.failures += 1
        now = self._host.now()
        if now >= self._down_until:
            logger.warning("registry: %s", error)
        pause = self._next_pause(member)
        # Short, whatever this agent's own pause: soon after the registry is back, the
        # others shall find out.
        self._down_until = now + min(pause, 2.0)
        self._schedule(member, pause)

    def _member(self, agent: Agent) -> Membership:
        member = self._members.get(agent)
        if member is None:
            member = self._members[agent] = Membership(self, agent)
        return member

    def _next_pause(self, member: Membership) -> float:
        pause = member.pause
        member.pause = min(MAX_PAUSE_S, pause * 2)
        return pause + self._random(pause / 2)

    def _schedule(self, member: Membership, delay: float) -> None:
        self._host.wheel.schedule(member, self._host.now() + delay)

    def _schedule_beat(self, member: Membership) -> None:
        # On a grid, so that the requests of many agents leave together.
        due = self._host.now() + self._host.config.keepalive_s
        self._host.wheel.schedule(member, math.ceil(due / BEAT_GRID_S) * BEAT_GRID_S)

    def _random(self, limit: float) -> float:
        return self._host.rng.uniform(0, limit)
