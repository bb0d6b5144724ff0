"""Agents of one private network, in real programs."""

from __future__ import annotations

from typing import Any

from tests.support.programs import World, data_of

__all__ = ["start_crew", "start_hub"]


def start_hub(net: World, *flags: str) -> str:
    """Start a rendezvous and an agent ``hub``; return the id of its network."""
    net.start_rendezvous()
    net.start_daemon(
        "hub", "--hostname", "hub", "--broker", "hub", *PRIVATE_FLEET, *flags
    )
    node: Any = data_of(net.ctl("hub", "info"))["node_id"]
    made = net.run_ctl_admin(
        *("network", "create", "--name", "crew", "--node-id", str(node))
    )
    return str(data_of(made)["network_id"])


def start_crew(net: World, network: str, count: int, *flags: str) -> None:
    """Start a daemon ``crew`` with the agents ``a-1``, ``a-2`` and so on."""
    net.start_daemon(
        "crew",
        *("--agents", str(count), "--agent-prefix", "a-", "--join", network),
        *("--tag", "text", "--broker", "hub", *PRIVATE_FLEET, *flags),
    )


PRIVATE_FLEET = ("--polo-gate", "off")
