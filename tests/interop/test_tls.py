"""Official 1.18.0 programs at our registry with TLS."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.support.certificates import Certificate, make_authority, make_certificate
from tests.support.official import official_program
from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.programs import Program

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


def start_rendezvous(net: World, *flags: str) -> Certificate:
    """Start it with a certificate of the authority in the folder."""
    authority = make_authority(net.home)
    server = make_certificate(net.home, "server", authority)
    files = ("--tls-cert", server.cert_path, "--tls-key", server.key_path)
    net.start_rendezvous(None, "--tls", *files, *flags)
    return server


def start_refused(net: World, *flags: str) -> Program:
    """Start an official daemon that will not get through."""
    home = net.home / "refused"
    home.mkdir()
    return net.start(
        "refused",
        official_program("pilot-daemon"),
        *("-registry", net.registry, "-beacon", net.beacon),
        *("-listen", "127.0.0.1:0", "-socket", net.socket("refused")),
        *("-identity", home / "identity.json", "-email", "refused@example.test"),
        *("-motd-feed-url", "", "-telemetry-url", "", "-no-skillinject", *flags),
        HOME=str(home),
    )


def authority_of(net: World) -> Path:
    return net.home / "authority.cert.pem"


def make_trust(net: World) -> tuple[str, str]:
    """Let the official node and ours trust each other; return their ids."""
    theirs = str(data_of(net.official_ctl("theirs", "info"))["node_id"])
    ours = str(data_of(net.ctl("ours", "info"))["node_id"])
    data_of(net.official_ctl("theirs", "handshake", ours, "please"))
    data_of(net.ctl("ours", "approve", theirs))
    return theirs, ours


@pytest.mark.parametrize("trust", ["pinned", "own", "system"])
def test_official_daemon_joins_over_tls(
    net: World, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    if trust == "own":
        net.start_rendezvous(None, "--tls")
        ready = json.loads((net.home / "rendezvous.ready.json").read_text())
        pin = ready["tls_fingerprint"]
    else:
        pin = start_rendezvous(net).fingerprint
    flags = ["-registry-tls", "-registry-trust"]
    if trust == "system":
        flags += ["system"]
        extra = {"SSL_CERT_FILE": str(authority_of(net))}
        plain = World.environment
        monkeypatch.setattr(
            World, "environment", lambda self, **env: plain(self, **extra, **env)
        )
    else:
        flags += ["pinned", "-registry-fingerprint", pin]
    net.start_official_daemon("theirs", *flags)
    net.start_daemon("ours", *flags)
    theirs, ours = make_trust(net)
    for ctl, name, peer in (
        (net.ctl, "ours", theirs),
        (net.official_ctl, "theirs", ours),
    ):
        results = data_of(ctl(name, "ping", peer, "--count", "2"))["results"]
        assert [probe.get("error") for probe in results] == [None, None]


def test_official_daemon_refuses_another_certificate(net: World) -> None:
    start_rendezvous(net)
    program = start_refused(net, "-registry-tls", "-registry-fingerprint", "0" * 64)
    program.wait_until(lambda: "fingerprint mismatch" in program.log.read_text())


def test_official_daemon_without_tls_is_told_to_use_it(net: World) -> None:
    start_rendezvous(net)
    program = start_refused(net)
    assert program.process.wait(60) == 1
    assert "this registry requires TLS: use -registry-tls" in program.log.read_text()


def test_official_client_needs_the_registry_to_take_plain_clients(net: World) -> None:
    # Release 1.18.0 has no TLS for what pilotctl asks the registry itself, whatever
    # PILOT_REGISTRY_TRUST, PILOT_REGISTRY_FINGERPRINT and config.json say.
    pin = start_rendezvous(net).fingerprint
    net.start_official_daemon("theirs", "-registry-tls", "-registry-fingerprint", pin)
    refused = net.official_ctl("theirs", "lookup", "1")
    assert "this registry requires TLS" in refused.stderr
    net.programs[0].kill()
    files = ("--tls-cert", net.home / "server.cert.pem")
    keys = ("--tls-key", net.home / "server.key.pem")
    net.start_rendezvous(None, "--tls", *files, *keys, "--plain-clients", "loopback")
    assert data_of(net.official_ctl("theirs", "lookup", "1"))["node_id"] == 1
