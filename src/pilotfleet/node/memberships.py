"""Which networks agents are in: joined at the start, followed afterwards.

Others change memberships too: an administrator adds and removes members. So each
agent asks from time to time what the registry says. It does so beside a heartbeat,
and has no timer for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import RegistryError
from pilotfleet.protocol.address import BACKBONE

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.config import NetworkToJoin
    from pilotfleet.node.host import Host

__all__ = ["SYNC_INTERVAL_S", "Memberships", "networks_of"]

logger = logging.getLogger(__name__)

# From the specification.
SYNC_INTERVAL_S: Final = 300.0
# Of our choosing.
JOIN_HINT: Final = "check its token: PILOT_JOIN_TOKEN, or --join NETWORK:TOKEN"


class Memberships:
    """The memberships of the agents of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ids: dict[str, int] = {}

    async def join(self, agent: Agent, known: dict[str, Any]) -> None:
        """Join the networks that every agent of the host shall be in.

        Args:
            agent: Who joins.
            known: What the registry says of it.

        Raises:
            RegistryError: It may not join one of those that it must.
        """
        networks = networks_of(known)
        for wanted in self._host.config.networks:
            try:
                number = await self._number(wanted)
                if number not in networks:
                    await self._join(agent, number, wanted.token)
                    networks.add(number)
            except RegistryError as error:
                if wanted.is_required:
                    error.hint = error.hint or JOIN_HINT
                    raise
                logger.warning(
                    "agent %s does not join network %s: %s",
                    *(agent.name, wanted.network, error),
                )
        agent.networks = tuple(sorted(networks))

    async def sync(self, agent: Agent) -> None:
        """Take over what the registry says of the agent's networks.

        Raises:
            PilotError: The registry does not say.
        """
        listed = agent.networks
        known = await agent.gathered("lookup", node_id=agent.node_id)
        if agent.networks is not listed:
            return  # Joined or left meanwhile, of which the answer may not know.
        before, now = set(listed), networks_of(known)
        agent.networks = tuple(sorted(now))
        for network in sorted(now - before):
            logger.info("agent %s is in network %d now", agent.name, network)
            agent.report("network.joined", network_id=network)
        for network in sorted(before - now):
            logger.info("agent %s is no more in network %d", agent.name, network)
            agent.report("network.left", network_id=network)

    async def _join(self, agent: Agent, network: int, token: str) -> None:
        try:
            await agent.join_network(network, token)
            agent.report("network.auto_joined", network_id=network)
        except RegistryError as error:
            # The list of networks may be older than the membership.
            if "already" not in str(error):
                raise

    async def _number(self, wanted: NetworkToJoin) -> int:
        """Return the number of a network that is given by number or name."""
        if wanted.network.isascii() and wanted.network.isdigit():
            return int(wanted.network)
        if wanted.network not in self._ids:
            for row in await self._host.registry.list_networks():
                if isinstance(row.get("id"), int):
                    self._ids[str(row.get("name"))] = row["id"]
        try:
            return self._ids[wanted.network]
        except KeyError:
            raise RegistryError(f"network {wanted.network!r} not found") from None


def networks_of(known: dict[str, Any]) -> set[int]:
    """Return the networks of a registry record, the backbone left out."""
    listed = known.get("networks")
    numbers = listed if isinstance(listed, list) else ()
    return {n for n in numbers if isinstance(n, int) and n != BACKBONE}
