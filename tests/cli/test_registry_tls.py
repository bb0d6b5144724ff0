"""How a user asks for TLS to the registry, and what our programs then do."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.cli.settings import SYSTEM_TRUST, choose_registry_trust
from pilotfleet.errors import InvalidArgument
from tests.support.certificates import make_authority, make_certificate
from tests.support.programs import BIN, READY_S, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.programs import World

PIN = "ab" * 32


@pytest.mark.parametrize(
    ("tls", "trust", "fingerprint", "choice"),
    [
        (None, "", "", None),
        (None, "pinned", "", None),
        (False, "system", PIN, None),
        (True, "", PIN, PIN),
        (True, "pinned", PIN, PIN),
        (True, "system", "", SYSTEM_TRUST),
        (True, "system", PIN, SYSTEM_TRUST),
        # One setting alone asks for TLS: nothing is sent in the clear by mistake.
        (None, "", PIN, PIN),
        (None, "system", "", SYSTEM_TRUST),
        # As other tools show it.
        (True, "", "AB" * 32, PIN),
        (True, "", ":".join(["AB"] * 32), PIN),
    ],
)
def test_choice(
    tls: bool | None, trust: str, fingerprint: str, choice: str | None
) -> None:
    assert (
        choose_registry_trust(tls=tls, trust=trust, fingerprint=fingerprint) == choice
    )


@pytest.mark.parametrize(
    ("trust", "fingerprint", "message"),
    [
        ("", "", "64 hex digits"),
        ("pinned", "", "64 hex digits"),
        ("", "zz", "64 hex digits"),
        ("", PIN + "00", "64 hex digits"),
        ("everybody", PIN, "must be 'pinned' or 'system'"),
    ],
)
def test_mistakes_are_named(trust: str, fingerprint: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        choose_registry_trust(tls=True, trust=trust, fingerprint=fingerprint)


@pytest.fixture
def net() -> Iterator[World]:
    """Yield a rendezvous with a certificate of its own authority."""
    with world() as made:
        authority = make_authority(made.home)
        server = make_certificate(made.home, "server", authority)
        flags = ("--tls", "--tls-cert", server.cert_path, "--tls-key", server.key_path)
        made.start_rendezvous(None, *flags)
        yield made


def fingerprint_of(net: World) -> str:
    ready = json.loads((net.home / "rendezvous.ready.json").read_text())
    return str(ready["tls_fingerprint"])


def lookup(
    net: World, config: dict[str, Any], **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command that asks the registry itself."""
    folder = net.home / ".pilot"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return subprocess.run(
        [BIN / "pilotctl", "--json", "lookup", "1"],
        env=net.environment(**env),
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )


def error_of(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert result.returncode == 1, result.stdout
    error = json.loads(result.stderr)
    assert isinstance(error, dict)
    return error


def test_daemon_and_client_pin_the_registry(net: World) -> None:
    pin = fingerprint_of(net)
    net.start_daemon("ours", "--registry-tls", "--registry-fingerprint", pin.upper())
    ways: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"registry_tls": True, "registry_fingerprint": pin}, {}),
        ({"registry_fingerprint": pin}, {}),
        ({}, {"PILOT_REGISTRY_FINGERPRINT": pin}),
        ({"registry_fingerprint": "0" * 64}, {"PILOT_REGISTRY_FINGERPRINT": pin}),
    ]
    for config, env in ways:
        assert data_of(lookup(net, config, **env))["node_id"] == 1
    # What needs the registry works through the daemon as well.
    assert data_of(net.ctl("ours", "set-hostname", "ours"))["hostname"] == "ours"
    # Also on the connection that a watch has for itself.
    watched = net.ctl("ours", "find-agents", "--watch", "--count", "1")
    assert json.loads(watched.stdout)["agent"]["hostname"] == "ours"


def test_daemon_and_client_trust_the_systems_authorities(net: World) -> None:
    env = {"SSL_CERT_FILE": str(net.home / "authority.cert.pem")}
    flags = ("--registry-tls", "--registry-trust", "system")
    net.start_daemon("ours", *flags, **env)
    config = {"registry_tls": True, "registry_trust": "system"}
    assert data_of(lookup(net, config, **env))["node_id"] == 1
    assert (
        data_of(lookup(net, {}, PILOT_REGISTRY_TRUST="system", **env))["node_id"] == 1
    )


def test_client_is_refused_with_reason_and_remedy(net: World) -> None:
    wrong = error_of(lookup(net, {}, PILOT_REGISTRY_FINGERPRINT="0" * 64))
    assert wrong["code"] == "connection_failed"
    assert f"its fingerprint is {fingerprint_of(net)}" in wrong["message"]
    assert "--tls-fingerprint" in wrong["hint"]

    unknown = error_of(lookup(net, {}, PILOT_REGISTRY_TRUST="system"))
    assert "authority that the system does not know" in unknown["message"]
    assert "SSL_CERT_FILE" in unknown["hint"]

    plain = error_of(lookup(net, {}))
    assert "this registry requires TLS: use -registry-tls" in plain["message"]

    unpinned = error_of(lookup(net, {"registry_tls": True}))
    assert unpinned["code"] == "invalid_argument"
    assert "64 hex digits are needed" in unpinned["message"]


def test_tls_client_of_a_plain_registry_is_told_so() -> None:
    with world() as made:
        made.start_rendezvous()
        error = error_of(lookup(made, {}, PILOT_REGISTRY_FINGERPRINT=PIN))
        assert error["message"].startswith(f"no TLS with {made.registry}")
        assert "without TLS" in error["hint"]


def test_daemon_says_why_it_does_not_trust_the_registry(net: World) -> None:
    program = net.start(
        "wrong",
        BIN / "pilot-daemon",
        *("--registry", net.registry, "--beacon", net.beacon),
        *("--listen", "127.0.0.1:0", "--socket", net.socket("wrong")),
        *("--home", net.home / "wrong", "--registry-fingerprint", "0" * 64),
    )
    program.wait_until(lambda: "--tls-fingerprint" in program.log.read_text())
    assert "not the pinned one" in program.log.read_text()


def test_started_daemon_is_given_the_flags(net: World) -> None:
    flags = ("--registry", net.registry, "--beacon", net.beacon, "--listen=127.0.0.1:0")
    pin = ("--registry-tls", "--registry-fingerprint", fingerprint_of(net))
    started = net.ctl("started", "daemon", "start", *flags, *pin)
    try:
        assert data_of(started)["node_id"] == 1
    finally:
        data_of(net.ctl("started", "daemon", "stop"))
