"""Registering one agent, and having the registry know it as it wants to be known."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError, RegistryError
from pilotfleet.node.memberships import Memberships
from pilotfleet.node.parallel import for_each
from pilotfleet.node.registration.endpoints import discover
from pilotfleet.protocol.registry.endpoints import parse_endpoint

if TYPE_CHECKING:
    from pilotfleet.client.registry import Registration
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host
    from pilotfleet.node.registration.endpoints import Endpoints
    from pilotfleet.node.registration.membership import Membership

__all__ = ["OFFICIAL_VERSION", "Enrolment"]

logger = logging.getLogger(__name__)

OFFICIAL_VERSION: Final = "1.18.0"
"""The release whose behaviour we have; peers decide by it what to send us."""
PARALLEL_REPORTS: Final = 16
"""Trusted peers of one agent that are reported at a time."""


class Enrolment:
    """Registers the agents of a host. All its requests may travel in batches."""

    def __init__(self, host: Host, endpoints: Endpoints) -> None:
        self._host = host
        self._endpoints = endpoints
        self._memberships = Memberships(host)

    async def register(self, member: Membership) -> None:
        """Register an agent, then set what the registry has otherwise.

        Raises:
            RegistryError: The registry refuses.
            PilotError: It cannot be asked.
        """
        agent = member.agent
        # To the registry, an agent with the wrong key is another node.
        await self._host.rotation.settle(agent)
        reply = await agent.gathered("register", **self._fields(member))
        self._adopt(member, self._host.registry.registered(reply))
        discover(agent)
        # Of a node that is new to it the registry knows what it has just answered. Else
        # one question saves up to three writes: after a restart nearly all agents are
        # known as they want to be.
        known = reply
        if reply.get("new") is not True:
            known = await agent.gathered("lookup", node_id=agent.node_id)
        await self._announce(agent, known)
        await self._memberships.join(agent, known)

    async def report_trust(self, agent: Agent) -> None:
        """Report whom an agent trusts.

        A registry that lost the agent has lost its trust as well, and decides by it
        who may resolve the agent.

        Raises:
            PilotError: It cannot be asked.
        """

        async def report(peer: int) -> None:
            # A peer that the registry does not know is no reason to try again.
            with contextlib.suppress(RegistryError):
                await agent.gathered(
                    "report_trust", node_id=agent.node_id, peer_id=peer
                )

        peers = list(agent.trust.trusted)
        await for_each(peers, report, workers=min(PARALLEL_REPORTS, len(peers)))

    async def announce_hostname(self, agent: Agent) -> None:
        """Announce a hostname that the registry may have forgotten, or refused.

        Raises:
            PilotError: It cannot be asked.
        """
        name = agent.wanted_hostname
        try:
            await agent.gathered("set_hostname", node_id=agent.node_id, hostname=name)
        except RegistryError as error:
            logger.debug("hostname of %s: %s", agent.name, error)
            return
        agent.hostname = name

    def needs_hostname(self, agent: Agent) -> bool:
        """Tell whether to announce the hostname again can make a difference.

        1.18.0 does so every minute. Our registry keeps a name that it has given; it
        is asked again only for one that it refused, which may be free by now.
        """
        if not agent.wanted_hostname:
            return False
        return not (agent.hostname and self._host.registry.extensions)

    async def sync_networks(self, agent: Agent) -> None:
        """Take over what the registry says of the agent's networks.

        Raises:
            PilotError: It cannot be asked.
        """
        try:
            await self._memberships.sync(agent)
        except RegistryError as error:
            logger.debug("networks of %s: %s", agent.name, error)

    def _fields(self, member: Membership) -> dict[str, Any]:
        agent, config = member.agent, self._host.config
        is_default = agent is self._host.default_agent
        optional = {
            # The registry binds an owner to one key: a fleet cannot share one.
            "owner": config.owner if is_default else "",
            "lan_addrs": self._endpoints.lan_addresses(agent),
            "version": OFFICIAL_VERSION,
            "relay_only": agent.relay_only,
            "hostname": agent.hostname,
        }
        return {
            "listen_addr": self._endpoints.to_register(member),
            "public_key": agent.identity.public_key_text,
            **{name: value for name, value in optional.items() if value},
        }

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
            await agent.gathered("set_visibility", node_id=node, public=agent.is_public)
        hostname = str(known.get("hostname") or "")
        if agent.hostname and hostname != agent.hostname:
            hostname = await self._set_hostname(agent)
        agent.hostname = hostname
        tags = tuple(str(tag) for tag in known.get("tags") or ())
        # Without tags of its own, the agent keeps those that were set for it earlier.
        if agent.tags and tags != agent.tags:
            await agent.gathered("set_tags", node_id=node, tags=list(agent.tags))
        else:
            agent.tags = tags

    async def _set_hostname(self, agent: Agent) -> str:
        """Set the hostname; an agent whose name is taken goes on without, for now."""
        try:
            await agent.gathered(
                "set_hostname", node_id=agent.node_id, hostname=agent.hostname
            )
        except RegistryError as error:
            logger.warning("agent %s has no hostname: %s", agent.name, error)
            return ""
        return agent.hostname
