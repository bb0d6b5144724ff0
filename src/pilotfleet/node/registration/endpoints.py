"""Where the registry is told that an agent is.

Behind a NAT it is where the beacon sees the agent's socket; elsewhere the socket's own
address. An operator's word (``advertise``, ``relay_only``) goes before both.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from pilotfleet.node.local import has_address, is_routable_ip
from pilotfleet.protocol.registry.endpoints import format_endpoint

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host
    from pilotfleet.node.registration.membership import Membership
    from pilotfleet.protocol.address import Endpoint

__all__ = ["Endpoints"]

logger = logging.getLogger(__name__)

NAT_DISCOVER_S: Final = 2.0
"""How long the others wait for the beacon once the first has seen a NAT."""
MAX_LAN_ADDRESSES: Final = 4


class Endpoints:
    """What the agents of a host say of their whereabouts."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.is_behind_nat = False
        """The beacon sees the host at an address that is not its own."""
        self._seen_at = ""

    async def learn(self, member: Membership) -> None:
        """Ask the beacon for the agent's public address; do without an answer."""
        host, agent = self._host, member.agent
        if agent.spec.advertise is not None or agent.relay_only:
            return
        is_first = not self.is_behind_nat
        limit = host.config.discover_timeout_s if is_first else NAT_DISCOVER_S
        member.reflection = host.loop.create_future()
        # From the tunnel socket itself: another socket would have another mapping at
        # the NAT.
        discover(agent)
        try:
            async with asyncio.timeout(limit):
                await member.reflection
        except TimeoutError:
            logger.warning("the beacon does not answer; going on without")
        member.reflection = None

    def reflected(self, member: Membership, endpoint: Endpoint) -> bool:
        """Take note of where the beacon saw an agent.

        Returns:
            Whether the agent is to be registered again, for its endpoint changed.
        """
        agent = member.agent
        member.reflected = endpoint
        if member.reflection is not None and not member.reflection.done():
            member.reflection.set_result(None)
        self._note_nat(endpoint[0])
        # A fixed endpoint, or none, is what the operator wants.
        is_fixed = agent.spec.advertise is not None or agent.relay_only
        if is_fixed or not agent.registered_at or not is_routable_ip(endpoint[0]):
            return False
        return endpoint not in (member.advertised, member.observed)

    def to_register(self, member: Membership) -> str:
        """Return the endpoint to register an agent with."""
        agent = member.agent
        if agent.spec.advertise is not None:
            return format_endpoint(agent.spec.advertise)
        member.advertised = None
        if member.reflected is not None and is_routable_ip(member.reflected[0]):
            member.advertised = member.reflected
            return format_endpoint(member.reflected)
        return format_endpoint(agent.socket.address)

    def lan_addresses(self, agent: Agent) -> list[str]:
        """Return where neighbours of an agent reach it."""
        bound, port = agent.socket.address
        is_bound_to_all = bound in ("0.0.0.0", "::")
        if agent.relay_only or self._host.is_local_registry or not is_bound_to_all:
            return []
        addresses = self._host.local_addresses[:MAX_LAN_ADDRESSES]
        return [f"{address}:{port}" for address in addresses]

    def _note_nat(self, seen_at: str) -> None:
        if seen_at != self._seen_at and is_routable_ip(seen_at):
            self._seen_at = seen_at
            self.is_behind_nat = not has_address(seen_at)


def discover(agent: Agent) -> None:
    """Tell the beacon where an agent is."""
    agent.tunnels.discover(agent.host.now())
    agent.mark_dirty()
