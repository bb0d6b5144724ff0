"""The ports that a network allows, between ours and the official daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.programs import BIN, World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]

ALLOWED = "1002"


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        made.start_daemon("ours", "--public")
        made.start_official_daemon("theirs", "-public")
        owner = str(data_of(made.ctl("ours", "info"))["node_id"])
        create = ("network", "create", "--name", "n", "--enterprise")
        data_of(made.run_ctl_admin(*create, "--node-id", owner))
        data_of(made.official_ctl("theirs", "network", "join", "1"))
        # The official daemon reads the policy when it joins. Ours is to be tested, so
        # that one is not to know of it.
        data_of(
            made.run_ctl_admin("network", "policy", "1", "--allowed-ports", ALLOWED)
        )
        yield made


def address(net: World, name: str) -> str:
    node = data_of(net.ctl(name, "info"))["node_id"]
    return f"1:0001.0000.{node:04X}"


def test_official_peer_gets_no_answer_from_a_forbidden_port(net: World) -> None:
    ours = address(net, "ours")
    ping = net.official_ctl("theirs", "ping", ours, "--count", "1", "--timeout", "1s")
    assert ping.returncode == 1
    assert "dial timeout" in ping.stdout
    data_of(net.official_ctl("theirs", "publish", ours, "t", "--data", "x"))


def test_datagrams_to_a_forbidden_port_are_dropped(net: World) -> None:
    ours = address(net, "ours")
    listening = net.start(
        "listen",
        *(BIN / "pilotctl", "--json"),
        *("listen", "1002", "--count", "1", "--timeout", "30s"),
        PILOT_SOCKET=str(net.socket("ours")),
    )
    refused = net.start(
        "refused",
        *(BIN / "pilotctl", "--json"),
        *("listen", "5000", "--count", "1", "--timeout", "3s"),
        PILOT_SOCKET=str(net.socket("ours")),
    )

    def send_until_received() -> bool:
        for port in ("5000", ALLOWED):
            net.official_ctl("theirs", "dgram", ours, port, "--data", "hello")
        return bool(listening.log.read_text())

    listening.wait_until(send_until_received)
    assert "hello" in listening.log.read_text()
    refused.process.wait(30)
    assert '"messages":[]' in refused.log.read_text()


def test_own_requests_to_a_forbidden_port_are_refused_at_once(net: World) -> None:
    theirs = address(net, "theirs")
    ping = net.ctl("ours", "ping", theirs, "--count", "1")
    assert "port 7 not allowed by network 1 policy" in ping.stdout
    dgram = net.ctl("ours", "dgram", theirs, "5000", "--data", "x")
    assert "permission_denied" in dgram.stderr
    assert "sendto: port 5000 not allowed by network 1 policy" in dgram.stderr
    data_of(net.ctl("ours", "publish", theirs, "t", "--data", "x"))


def test_backbone_is_not_restricted(net: World) -> None:
    for ctl, name, peer in (
        (net.official_ctl, "theirs", "ours"),
        (net.ctl, "ours", "theirs"),
    ):
        node = str(data_of(net.ctl(peer, "info"))["node_id"])
        results = data_of(ctl(name, "ping", node, "--count", "1"))["results"]
        assert [probe.get("error") for probe in results] == [None]
