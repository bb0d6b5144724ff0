"""Two official 1.9.1 daemons on our rendezvous: their scores, and their gate."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.registry import RegistryClient
from pilotfleet.protocol.registry.endpoints import parse_endpoint
from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.official, pytest.mark.timeout(120)]

FLAGS = ("-public", "-trust-auto-approve")


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    """Nodes 1, "a", and 2, "b", which trust each other."""
    with world() as net:
        net.start_rendezvous()
        for name in ("a", "b"):
            net.start_daemon_191(name, *FLAGS)
        data_of(net.ctl_191("a", "handshake", "2"))
        data_of(net.ctl_191("b", "handshake", "1"))
        net.programs[0].wait_until(
            lambda: net.ctl_191("a", "ping", "2", "--count", "1").returncode == 0
        )
        yield net


def admin(net: World, kind: str, **fields: Any) -> dict[str, Any]:
    """Ask the registry with the admin token."""

    async def ask() -> dict[str, Any]:
        async with RegistryClient(parse_endpoint(net.registry)) as client:
            message = {"type": kind, "admin_token": net.admin_token, **fields}
            return await client.request(message)

    return asyncio.run(ask())


def submit(net: World, name: str, target: int) -> Any:
    address = f"0:0000.0000.{target:04d}"
    return net.ctl_191(name, "extras", "task", "submit", address, "--task", "work")


def test_a_daemon_shows_its_own_score(net: World) -> None:
    admin(net, "set_polo_score", node_id=1, polo_score=-7)
    shown = data_of(net.ctl_191("a", "extras", "my-polo"))
    assert shown == {"polo_score": -7}
    enabled = data_of(net.ctl_191("b", "extras", "enable-tasks"))
    assert enabled["type"] == "set_task_exec_ok"
    assert admin(net, "lookup", node_id=2)["task_exec"] is True


def test_the_gate_lets_in_who_has_no_less(net: World) -> None:
    admin(net, "set_polo_score", node_id=1, polo_score=5)
    admin(net, "set_polo_score", node_id=2, polo_score=6)
    refused = submit(net, "a", 2)
    assert "lower than the receiver's" in refused.stdout + refused.stderr
    assert data_of(submit(net, "b", 1))["accepted"] is True
    admin(net, "set_polo_score", node_id=1, polo_score=6)
    assert data_of(submit(net, "a", 2))["accepted"] is True
