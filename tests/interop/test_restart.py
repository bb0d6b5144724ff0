"""A rendezvous is killed; the official daemon and ours go on with the next one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.programs import data_of, world

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    Ctl = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]


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


def test_killed_rendezvous_remembers_everything() -> None:
    with world() as net:
        rendezvous = net.start_rendezvous()
        net.start_official_daemon("theirs", "-hostname", "theirs")
        net.start_daemon("ours", "--hostname", "ours", "--tag", "text")
        data_of(net.official_ctl("theirs", "extras", "set-tags", "text"))
        make_trust((net.ctl, "ours"), (net.official_ctl, "theirs"))
        ours, theirs = (
            str(data_of(ctl(name, "info"))["node_id"])
            for ctl, name in ((net.ctl, "ours"), (net.official_ctl, "theirs"))
        )
        create = ("network", "create", "--name", "fleet", "--node-id", ours)
        data_of(net.run_ctl_admin(*create))
        before = net.directory_of(ours, theirs)

        rendezvous.kill()
        net.start_rendezvous()

        assert net.directory_of(ours, theirs) == before
        # The trust pair is what lets one private node resolve the other.
        assert_ping(net.ctl, "ours", theirs)
        assert_ping(net.official_ctl, "theirs", ours)
