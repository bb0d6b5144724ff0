"""The official 1.18.0 programs as peers: they join our network, we talk to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    Ctl = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        yield made


def make_trust(a: tuple[Ctl, str], b: tuple[Ctl, str]) -> None:
    """Let ``a`` ask ``b`` for trust and ``b`` approve."""
    (ctl_a, name_a), (ctl_b, name_b) = a, b
    node_a = str(data_of(ctl_a(name_a, "info"))["node_id"])
    node_b = str(data_of(ctl_b(name_b, "info"))["node_id"])
    data_of(ctl_a(name_a, "handshake", node_b, "please"))
    pending = data_of(ctl_b(name_b, "pending"))["pending"]
    assert [str(entry["node_id"]) for entry in pending] == [node_a]
    data_of(ctl_b(name_b, "approve", node_a))
    trusted = data_of(ctl_a(name_a, "trust"))["trusted"]
    assert [str(entry["node_id"]) for entry in trusted] == [node_b]


def assert_ping(ctl: Ctl, name: str, target: str) -> None:
    results = data_of(ctl(name, "ping", target, "--count", "2"))["results"]
    assert [probe.get("error") for probe in results] == [None, None]


def assert_encrypted(ctl: Ctl, name: str) -> None:
    peers = data_of(ctl(name, "peers"))["peers"]
    assert peers
    assert all(peer["encrypted"] and peer["authenticated"] for peer in peers)


def test_two_official_daemons_meet_through_our_rendezvous(net: World) -> None:
    for name in ("alice", "bob"):
        net.start_official_daemon(name)
        assert data_of(net.official_ctl(name, "set-hostname", name))["hostname"] == name
        tags = data_of(net.official_ctl(name, "extras", "set-tags", "text", name))
        assert tags["tags"] == ["text", name]
    make_trust((net.official_ctl, "alice"), (net.official_ctl, "bob"))
    bob = str(data_of(net.official_ctl("bob", "info"))["node_id"])
    assert_ping(net.official_ctl, "alice", bob)
    assert_encrypted(net.official_ctl, "alice")
    looked_up = data_of(net.official_ctl("alice", "lookup", bob))
    assert looked_up["hostname"] == "bob"
    assert looked_up["tags"] == ["text", "bob"]


def test_official_and_our_daemon_ping_each_other(net: World) -> None:
    net.start_official_daemon("theirs")
    net.start_daemon("ours")
    make_trust((net.ctl, "ours"), (net.official_ctl, "theirs"))
    theirs = str(data_of(net.official_ctl("theirs", "info"))["node_id"])
    ours = str(data_of(net.ctl("ours", "info"))["node_id"])
    assert_ping(net.ctl, "ours", theirs)
    assert_ping(net.official_ctl, "theirs", ours)
    assert_encrypted(net.ctl, "ours")
    assert_encrypted(net.official_ctl, "theirs")


def test_official_client_drives_our_daemon(net: World) -> None:
    net.start_daemon("ours", "--hostname", "ours")
    assert data_of(net.official_ctl("ours", "info"))["hostname"] == "ours"
    assert data_of(net.official_ctl("ours", "health"))["status"] == "ok"
    assert data_of(net.official_ctl("ours", "trust"))["trusted"] == []


def test_our_client_drives_official_daemon(net: World) -> None:
    net.start_official_daemon("theirs", "-hostname", "theirs")
    assert data_of(net.ctl("theirs", "info"))["hostname"] == "theirs"
    refused = net.ctl("theirs", "find-agents", "--tag", "text")
    assert refused.returncode == 1
    assert "not_implemented" in refused.stderr


def test_killed_rendezvous_remembers_everything(net: World) -> None:
    net.programs[0].kill()
    rendezvous = net.start_rendezvous()
    net.start_official_daemon("theirs", "-hostname", "theirs")
    net.start_daemon("ours", "--hostname", "ours", "--tag", "text")
    data_of(net.official_ctl("theirs", "extras", "set-tags", "text"))
    make_trust((net.ctl, "ours"), (net.official_ctl, "theirs"))
    ours, theirs = (
        str(data_of(ctl(name, "info"))["node_id"])
        for ctl, name in ((net.ctl, "ours"), (net.official_ctl, "theirs"))
    )
    made = net.run_ctl_admin("network", "create", "--name", "fleet", "--node-id", ours)
    data_of(made)
    before = net.directory_of(ours, theirs)

    rendezvous.kill()
    net.start_rendezvous()

    assert net.directory_of(ours, theirs) == before
    # The trust pair is what lets one private node resolve the other.
    assert_ping(net.ctl, "ours", theirs)
    assert_ping(net.official_ctl, "theirs", ours)
