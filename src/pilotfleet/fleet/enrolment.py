"""Bring the agents of a running daemon into their fleet's private network.

The launcher of a fleet starts daemons that join by themselves. A daemon that is a
service of the system runs before the network exists; here it is told afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.client.hosted import hosted_agents
from pilotfleet.errors import DaemonError, NotFound
from pilotfleet.fleet.network import find_network, open_network
from pilotfleet.fleet.plan import hub_name
from pilotfleet.protocol.ipc.commands import Command, NetworkSub, pack_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from pilotfleet.client.daemon import DaemonClient
    from pilotfleet.client.registry import RegistryClient
    from pilotfleet.fleet.network import FleetNetwork
    from pilotfleet.fleet.spec import FleetSpec

__all__ = ["enrol_agents"]


async def enrol_agents(
    spec: FleetSpec,
    client: DaemonClient,
    registry: RegistryClient,
    *,
    path: Path,
    admin_token: Callable[[], str],
    token: str = "",
) -> tuple[int, int]:
    """Let every agent of the daemon join; return how many are new, and how many are in.

    Args:
        spec: The fleet. Its hub, where this daemon hosts it, makes the network.
        client: The daemon; it acts as another agent afterwards.
        registry: Where the network is, or will be.
        path: Where ``network.json`` is, or will be.
        admin_token: Asked for the rendezvous' token when the network is made.
        token: What joins the network; by default that of ``path``, or a random one.

    Raises:
        AuthRequired: There is no token to make or to join the network with.
        NotFound: The hub is elsewhere, and has not made the network yet.
        PilotError: The daemon or the registry refuses.
    """
    rows = [row async for row in hosted_agents(client)]
    hub = next((row for row in rows if row["hostname"] == hub_name(spec)), None)
    if hub is not None:
        network: FleetNetwork | None = await open_network(
            path,
            spec.fleet.name,
            registry=registry,
            owner=hub["node_id"],
            admin_token=admin_token,
            token=token,
        )
    else:
        network = await find_network(
            path, spec.fleet.name, registry=registry, token=token
        )
    if network is None:
        raise NotFound(
            f"the rendezvous has no network {spec.fleet.name!r}",
            hint=f"start the machine of {hub_name(spec)} first: it makes the network",
        )
    joined = sum([await _join(client, row, network) for row in rows])
    return joined, len(rows)


async def _join(
    client: DaemonClient, row: dict[str, Any], network: FleetNetwork
) -> bool:
    await client.call("select-agent", name=row["name"])
    payload = bytes([NetworkSub.JOIN]) + pack_port(network.network_id)
    try:
        await client.request_json(Command.NETWORK, payload + network.token.encode())
    except DaemonError as error:
        # Its owner, or from an earlier start: memberships belong to identities.
        if "already in network" not in str(error):
            raise
        return False
    return True
