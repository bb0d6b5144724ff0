"""Keeps the world's knowledge of where this host is up to date.

Two things make it old. A NAT forgets a mapping that nothing uses, sometimes after
half a minute, and then no punch command and no relayed frame arrives any more; so
agents behind one tell the beacon more often than once per heartbeat. And the machine
may get another address, of which the kernel tells us at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from typing import TYPE_CHECKING, Final

from pilotfleet.node.local import local_addresses, local_ipv4_addresses

if TYPE_CHECKING:
    from pilotfleet.node.host import Host

__all__ = ["keep_mappings", "watch_addresses"]

logger = logging.getLogger(__name__)

# From linux/rtnetlink.h: changes of IPv4 and of IPv6 addresses.
_RTMGRP_IPV4_IFADDR: Final = 0x10
_RTMGRP_IPV6_IFADDR: Final = 0x100

# Of our choosing.
MAPPING_INTERVAL_S: Final = 20.0
"""Below the 30 s after which the most forgetful NATs drop a mapping."""
SETTLE_S: Final = 0.5
"""An address goes and the next one comes: both are one change."""
SLICE: Final = 64
"""Agents that tell the beacon at a time."""
POLL_S: Final = 10.0
"""Between two looks where the kernel does not tell."""


async def keep_mappings(host: Host) -> None:
    """Have the beacon hear every agent often enough for its NAT, for ever."""
    while True:
        is_behind_nat = host.registrar.endpoints.is_behind_nat
        agents = list(host.agents.values()) if is_behind_nat else []
        starts = range(0, len(agents) or 1, SLICE)
        for start in starts:
            # Spread over the interval: ten thousand datagrams at once overflow the
            # beacon's socket, and it would be the same agents' each time.
            await asyncio.sleep(MAPPING_INTERVAL_S / len(starts))
            for agent in agents[start : start + SLICE]:
                if not agent.closed:
                    agent.tunnels.discover(host.now())
                    agent.mark_dirty()


async def watch_addresses(host: Host) -> None:
    """Find every path again when the machine's addresses change, for ever."""
    with contextlib.ExitStack() as stack:
        monitor = _open_monitor()
        if monitor is not None:
            stack.enter_context(monitor)
        known = local_addresses()
        while True:
            await _change(monitor)
            await asyncio.sleep(SETTLE_S)
            # The kernel also tells of addresses that nobody else can use, such as those
            # of every container that starts.
            found = local_addresses()
            if found != known:
                known = found
                host.local_addresses = local_ipv4_addresses()
                _moved(host)


def _moved(host: Host) -> None:
    logger.info("the addresses of this machine have changed; finding all paths again")
    host.registry.reconnect()
    host.watches.reconnect()
    now = host.now()
    for agent in host.agents.values():
        if agent.closed:
            continue
        agent.tunnels.moved(now)
        agent.tunnels.discover(now)
        agent.mark_dirty()
        host.registrar.register_again(agent)


def _open_monitor() -> socket.socket | None:
    """Return a socket on which the kernel announces changes, if it does so."""
    if sys.platform != "linux":
        return None
    try:
        monitor = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0
        )
        monitor.setblocking(False)
        monitor.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    except OSError:
        return None
    return monitor


async def _change(monitor: socket.socket | None) -> None:
    """Return when addresses changed, or may have."""
    if monitor is None:
        await asyncio.sleep(POLL_S)
        return
    loop = asyncio.get_running_loop()
    # More than the kernel had room for is an error (ENOBUFS), and a change, too.
    with contextlib.suppress(OSError):
        await loop.sock_recv(monitor, 65536)
        # The rest of the same burst; the settling time collects what is to come.
        while True:
            monitor.recv(65536)
