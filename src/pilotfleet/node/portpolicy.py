"""Which ports the policy of a network allows (services.md section 10).

A policy counts for what is addressed within its network: SYNs and datagrams, in and
out. Streams that are open stay open. Policies belong to networks, so all agents of a
host share what is known of them; an agent that is only on the backbone never asks.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from pilotfleet.errors import PermissionDenied, PilotError
from pilotfleet.node.cache import ExpiringCache
from pilotfleet.protocol.limits import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from pilotfleet.node.host import Host

__all__ = ["PortPolicies"]

logger = logging.getLogger(__name__)

# Of our choosing. The reference reads a policy when it starts and every 5 minutes.
KNOWN_S: Final = 60.0
UNKNOWN_S: Final = 5.0
"""How long nothing is allowed after the registry could not be asked."""
MAX_NETWORKS: Final = 4096
MAX_WAITING: Final = 256
"""Packets that wait for a policy, in all; further ones are dropped."""
UNREAD_BURST: Final = 64
UNREAD_RATE: Final = 10.0
"""Questions per second about networks never heard of: a peer can name 65,535, and a
registry closes the connection of a host that asks too often."""

_NO_PORT: Final = frozenset({0})
"""Nothing can be addressed to port 0."""


class PortPolicies:
    """Answers for all agents of a host whether a network allows a port."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._ports: ExpiringCache[int, frozenset[int]] = ExpiringCache(MAX_NETWORKS)
        self._last: dict[int, frozenset[int]] = {}
        """What was known last, for as long as the registry cannot be asked. No port
        listed means every port."""
        self._asking: dict[int, list[Callable[[], None]]] = {}
        self._waiting = 0
        self._unread = TokenBucket(UNREAD_BURST, UNREAD_RATE, host.now())
        self.refused = 0
        """Packets of peers that a policy did not allow."""

    def forget(self, network: int) -> None:
        """Ask again the next time; for changes that this host makes itself."""
        self._ports.discard(network)

    def answer(self, network: int, port: int) -> bool | None:
        """Tell whether ``port`` is allowed; None if the registry must be asked."""
        ports = self._ports.get(network, self._host.now())
        return None if ports is None else not ports or port in ports

    async def require(self, network: int, port: int) -> None:
        """Return if something may be sent to ``port`` of a member.

        Raises:
            PermissionDenied: The policy forbids it, or cannot be read.
        """
        if self.answer(network, port) is None:
            await self._fetch(network)
        if not self.answer(network, port):
            raise PermissionDenied(
                f"port {port} not allowed by network {network} policy"
            )

    def admit(self, network: int, port: int, deliver: Callable[[], None]) -> None:
        """Call ``deliver`` if a packet to ``port`` may come in, now or soon."""
        known = self.answer(network, port)
        if known:
            deliver()
        elif known is not None or not self._may_wait(network):
            self.refused += 1
        else:
            self._waiting += 1
            waiting = self._asking.get(network)
            if waiting is None:
                waiting = self._asking[network] = []
                self._host.spawn(
                    self._fetch_for_waiting(network), name=f"policy of {network}"
                )
            waiting.append(lambda: self._decide(network, port, deliver))

    def _may_wait(self, network: int) -> bool:
        if self._waiting >= MAX_WAITING:
            return False
        is_asked = network in self._last or network in self._asking
        return is_asked or self._unread.take(self._host.now())

    def _decide(self, network: int, port: int, deliver: Callable[[], None]) -> None:
        if self.answer(network, port):
            deliver()
        else:
            self.refused += 1

    async def _fetch_for_waiting(self, network: int) -> None:
        try:
            await self._fetch(network)
        finally:
            waiting = self._asking.pop(network, [])
            self._waiting -= len(waiting)
            for decide in waiting:
                decide()

    async def _fetch(self, network: int) -> None:
        try:
            answer = await self._host.registry.request(
                {"type": "get_network_policy", "network_id": network}
            )
        except PilotError as error:
            # A network that the registry does not know, or no registry: nobody is let
            # in by a policy that cannot be read, unless it was read before.
            logger.debug("policy of network %d: %s", network, error)
            ports = self._last.get(network, _NO_PORT)
            self._ports.put(network, ports, self._host.now() + UNKNOWN_S)
            return
        listed = answer.get("allowed_ports")
        ports = frozenset(listed if isinstance(listed, list) else ())
        self._last.pop(network, None)
        self._last[network] = ports
        if len(self._last) > MAX_NETWORKS:
            del self._last[next(iter(self._last))]
        self._ports.put(network, ports, self._host.now() + KNOWN_S)
