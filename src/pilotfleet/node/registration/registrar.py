"""Who talks to the registry when: at the start, with each keepalive, after a failure.

One failure stands for all agents of a host. When the registry cannot be reached, the
agent that found out tries again soon, and the others follow over some seconds. When it
has forgotten one agent, the others ask within seconds whether they are known, and do
not wait for their heartbeat; so a host is complete again soon after a registry that
lost its data, and no moment sees all of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from pilotfleet.client import pacing
from pilotfleet.errors import PilotError, RegistryError
from pilotfleet.node import reports
from pilotfleet.node.memberships import SYNC_INTERVAL_S
from pilotfleet.node.parallel import for_each
from pilotfleet.node.presence import keep_mappings, watch_addresses
from pilotfleet.node.registration.beats import MAX_BEATS, Outcome, send_heartbeats
from pilotfleet.node.registration.endpoints import Endpoints, discover
from pilotfleet.node.registration.enrolment import Enrolment
from pilotfleet.node.registration.membership import Membership
from pilotfleet.node.registration.start import start_each, wait_for_registry
from pilotfleet.protocol.registry.batches import BATCH_EXTENSION

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host
    from pilotfleet.protocol.address import Endpoint

__all__ = ["Registrar"]

logger = logging.getLogger(__name__)

# From the specification.
UNKNOWN_TEXTS: Final = ("node not found", "signature verification failed")
"""Heartbeat errors after which a node registers again at once (section 2.6)."""
FAILURES_BEFORE_REGISTER: Final = 3

# Of our choosing.
AGENT_ATTEMPTS: Final = 8
"""Tries to register a further agent before the start goes on without it."""
REGISTER_GUARD_S: Final = 2.0
"""A registration younger than this is not repeated."""
ASK_PER_S: Final = 1000
"""Agents that ask in a second whether the registry has forgotten them, too."""
PARALLEL_REFRESHES: Final = 64


class Registrar:
    """Registers the agents of a host and keeps them registered."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._members: dict[Agent, Membership] = {}
        self._due: deque[Membership] = deque()
        self._is_working = False
        self._unregistered: deque[Membership] = deque()
        self._enrollers = 0
        self._stale: dict[Membership, None] = {}
        self._is_refreshing = False
        self.endpoints = Endpoints(host)
        self.enrolment = Enrolment(host, self.endpoints)
        self._down_until = 0.0
        self._suspected_until = 0.0
        self.registrations = 0
        self.heartbeats = 0

    # Start

    async def start_first(self, agent: Agent) -> None:
        """Register the first agent, waiting for a registry that is not there yet.

        Raises:
            Unavailable: The registry could not be reached in all attempts.
            RegistryError: It refuses the agent.
        """
        # The first agent goes alone: what it learns (what the registry offers, and
        # that there is a NAT) saves all others the question.
        await wait_for_registry(self._host)
        member = self._member(agent)
        await self.endpoints.learn(member)
        await self._register(member)
        self._host.spawn(keep_mappings(self._host), name="nat mappings")
        self._host.spawn(watch_addresses(self._host), name="address watch")

    async def start_others(
        self,
        agents: AsyncIterator[Agent],
        *,
        total: int,
        on_progress: Callable[[int], None],
    ) -> None:
        """Register many agents, a bounded number at a time.

        An agent that the registry refuses is logged, and tried again later.
        """
        done = 0

        async def start(agent: Agent) -> None:
            nonlocal done
            await self._start_one(agent)
            done += 1
            on_progress(done)

        await start_each(self._host, agents, start, total=total)

    def enqueue(self, member: Membership) -> None:
        """Have the registry asked for ``member`` with all others that are due."""
        self._due.append(member)
        # Ten thousand agents are no ten thousand tasks; there is one, and only while
        # something is due.
        if not self._is_working:
            self._is_working = True
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
        self._schedule(member, pacing.REGISTER_PAUSE_S)

    def reflected(self, agent: Agent, endpoint: Endpoint) -> None:
        """Take note of where the beacon saw ``agent``."""
        if self.endpoints.reflected(self._member(agent), endpoint):
            logger.info("agent %s: public endpoint changed", agent.name)
            self.register_again(agent)

    async def _start_one(self, agent: Agent) -> None:
        member = self._member(agent)
        if self.endpoints.is_behind_nat:
            await self.endpoints.learn(member)
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
        self._schedule(member, pacing.MAX_PAUSE_S)

    # Registering

    async def _register(self, member: Membership) -> None:
        await self.enrolment.register(member)
        self._confirm(member)

    def _confirm(self, member: Membership) -> None:
        agent = member.agent
        is_first = not agent.registered_at
        agent.registered_at = self._host.now()
        self.registrations += 1
        member.must_register = member.is_confirmed = False
        member.succeeded()
        reports.registered(agent, member.advertised, is_first=is_first)
        # Agents that started together need not ask together.
        early = self._random(SYNC_INTERVAL_S / 2)
        member.sync_at = self._host.now() + SYNC_INTERVAL_S - early
        self._schedule(member, pacing.SECOND_DISCOVER_S)
        logger.log(
            logging.INFO if agent is self._host.default_agent else logging.DEBUG,
            "agent %s is %s at %s%s",
            agent.name,
            "registered" if is_first else "registered again",
            agent.address,
            f" as {agent.hostname}" if agent.hostname else "",
        )

    async def _enroll(self) -> None:
        """Register agents again as long as there are some."""
        try:
            while self._unregistered:
                member = self._unregistered.popleft()
                try:
                    await self._register_again(member)
                except Exception:  # Nobody else would ever wake this agent again.
                    logger.exception("heartbeat of %s failed", member.agent.name)
                    self._schedule(member, self._next_pause(member))
        finally:
            self._enrollers -= 1

    async def _register_again(self, member: Membership) -> None:
        agent, now = member.agent, self._host.now()
        if agent.closed:
            return
        if now < self._down_until:
            self._come_back_later(member, now)
            return
        # A registry that refuses heartbeats of a node that it has just registered (two
        # replicas, one behind) would otherwise have us register in a loop.
        age = now - agent.registered_at
        if agent.registered_at and age < REGISTER_GUARD_S:
            self._schedule(member, REGISTER_GUARD_S - age)
            return
        try:
            await self._register(member)
            await self.enrolment.report_trust(agent)
        except RegistryError as error:
            logger.warning("agent %s is not registered: %s", agent.name, error)
            self._schedule(member, self._next_pause(member))
        except PilotError as error:
            self._unreachable(member, error)

    # Steady state

    async def _work(self) -> None:
        try:
            while self._due:
                beats = self._take_due()
                try:
                    await self._beat(beats)
                except Exception:  # Nobody else would ever wake these agents again.
                    logger.exception("heartbeats of %d agents failed", len(beats))
                    for member in beats:
                        self._schedule(member, self._next_pause(member))
        finally:
            self._is_working = False

    def _take_due(self) -> list[Membership]:
        """Return who shall send a heartbeat; see to the others that are due."""
        beats: list[Membership] = []
        now = self._host.now()
        while self._due and len(beats) < MAX_BEATS:
            member = self._due.popleft()
            if member.agent.closed:
                continue
            if now < self._down_until:
                self._come_back_later(member, now)
            elif member.must_register:
                self._enqueue_unregistered(member)
            elif not member.is_confirmed:
                self._confirm_endpoint(member)
            else:
                beats.append(member)
        return beats

    def _enqueue_unregistered(self, member: Membership) -> None:
        self._unregistered.append(member)
        if self._enrollers < self._host.config.parallel_starts:
            self._enrollers += 1
            self._host.spawn(self._enroll(), name="registrations")

    def _confirm_endpoint(self, member: Membership) -> None:
        """Send the discover that section 5 repeats, in case one was lost."""
        member.is_confirmed = True
        discover(member.agent)
        keepalive_s = self._host.config.keepalive_s
        self._schedule(member, pacing.first_beat_s(keepalive_s, self._host.rng))

    async def _beat(self, members: list[Membership]) -> None:
        if not members:
            return
        for member in members:
            # It keeps the NAT's mapping for the beacon open, without which no relayed
            # frame arrives. First, because the registry can be down while the beacon
            # is not.
            discover(member.agent)
        agents = [member.agent for member in members]
        outcomes = await send_heartbeats(self._host, agents)
        refreshes = [
            member
            for member, outcome in zip(members, outcomes, strict=True)
            if self._settle_beat(member, outcome) and self._needs_refresh(member)
        ]
        # Not waited for: a registry may have one of them come back much later, and the
        # heartbeats of all others would wait with it.
        self._stale |= dict.fromkeys(refreshes)
        if self._stale and not self._is_refreshing:
            self._is_refreshing = True
            self._host.spawn(self._refresh_all(), name="refreshes")

    def _settle_beat(self, member: Membership, outcome: Outcome) -> bool:
        """Act on what came of a heartbeat; tell whether the registry took it."""
        if outcome is None:
            self._alive(member)
            return True
        if isinstance(outcome, RegistryError):
            self._refused(member, str(outcome))
        else:
            self._unreachable(member, outcome)
        return False

    def _alive(self, member: Membership) -> None:
        agent = member.agent
        self.heartbeats += 1
        member.succeeded()
        reports.heartbeat(agent)
        if self._host.trust_service is not None:
            self._host.trust_service.keepalive(agent)
        # Its key or endpoint may have changed meanwhile; then it is due before.
        if not member.must_register:
            self._schedule_beat(member)

    def _needs_refresh(self, member: Membership) -> bool:
        is_due = self._host.now() >= member.sync_at
        return is_due or self.enrolment.needs_hostname(member.agent)

    async def _refresh_all(self) -> None:
        try:
            while self._stale:
                stale, self._stale = self._stale, {}
                workers = min(PARALLEL_REFRESHES, len(stale))
                await for_each(stale, self._refresh, workers=workers)
        finally:
            self._is_refreshing = False

    async def _refresh(self, member: Membership) -> None:
        """Ask what others may have changed: the hostname that is free, the networks."""
        agent, now = member.agent, self._host.now()
        if agent.closed:
            return
        try:
            if self.enrolment.needs_hostname(agent):
                await self.enrolment.announce_hostname(agent)
            if now >= member.sync_at:
                member.sync_at = now + SYNC_INTERVAL_S
                await self.enrolment.sync_networks(agent)
        except PilotError as error:
            # The heartbeat has just succeeded; the next one will tell.
            logger.debug("refresh of %s: %s", agent.name, error)

    # Failures

    def _refused(self, member: Membership, text: str) -> None:
        """React to the error text of a heartbeat (registry.md section 2.6)."""
        member.failures += 1
        is_unknown = any(known in text for known in UNKNOWN_TEXTS)
        # Of ten thousand agents that are forgotten together, one is told of.
        is_news = not is_unknown or self._suspect_all()
        level = logging.INFO if is_news else logging.DEBUG
        logger.log(level, "heartbeat of %s: %s", member.agent.name, text)
        if is_unknown or member.failures >= FAILURES_BEFORE_REGISTER:
            member.must_register = True
            self._schedule(member, self._next_pause(member))
        else:
            self._schedule_beat(member)

    def _suspect_all(self) -> bool:
        """Have every agent ask soon: who forgot one has perhaps forgotten all.

        Returns:
            Whether this is the first one lately that was forgotten.
        """
        now = self._host.now()
        if now < self._suspected_until:
            return False
        self._suspected_until = now + self._host.config.keepalive_s
        if self._host.registry.offers(BATCH_EXTENSION):
            self._ask_soon(now)
        return True

    def _ask_soon(self, now: float) -> None:
        spread = len(self._members) / ASK_PER_S
        for member in self._members.values():
            deadline = self._host.wheel.deadline(member)
            soon = now + self._random(spread)
            if deadline is not None and soon < deadline and member.is_confirmed:
                self._host.wheel.schedule(member, soon)

    def _unreachable(self, member: Membership, error: PilotError) -> None:
        now = self._host.now()
        if now < self._down_until:
            # Somebody just found the registry down.
            self._come_back_later(member, now)
            return
        member.failures += 1
        logger.warning("registry: %s", error)
        pause = self._next_pause(member)
        self._down_until = pacing.down_until(now, pause)
        self._schedule(member, pause)

    def _come_back_later(self, member: Membership, now: float) -> None:
        later = pacing.return_s(now, self._down_until, self._host.rng)
        self._schedule(member, later)

    # Times

    def _member(self, agent: Agent) -> Membership:
        member = self._members.get(agent)
        if member is None:
            member = self._members[agent] = Membership(self, agent)
        return member

    def _next_pause(self, member: Membership) -> float:
        return member.next_pause(self._host.rng)

    def _schedule(self, member: Membership, delay: float) -> None:
        self._host.wheel.schedule(member, self._host.now() + delay)

    def _schedule_beat(self, member: Membership) -> None:
        due = pacing.beat_due(self._host.now(), self._host.config.keepalive_s)
        self._host.wheel.schedule(member, due)

    def _random(self, limit: float) -> float:
        return self._host.rng.uniform(0, limit)
