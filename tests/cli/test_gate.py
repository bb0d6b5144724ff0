"""Whether a peer may be reached (cli.md section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.support import ToyRegistry, frame

if TYPE_CHECKING:
    from tests.cli.support import Shell

WAIT = "0f070000000700000000"
UNTRUSTED = [["c2s", WAIT], ["s2c", frame(0x10, {"node_id": 7, "trusted": False})]]
SEND = [
    ["c2s", "390000000000070bb8796f"],
    ["s2c", "3a"],
]
DGRAM = ("--json", "dgram", "7", "3000", "--data", "yo")


def info(**fields: Any) -> list[list[str]]:
    return [["c2s", "0d"], ["s2c", frame(0x0E, fields)]]


def registry(shell: Shell, **node: Any) -> ToyRegistry:
    toy = ToyRegistry(lambda request: {"type": "lookup_ok", "node_id": 7, **node})
    shell.setenv("PILOT_REGISTRY", toy.address)
    return toy


def test_public_peer_is_reached(shell: Shell) -> None:
    with registry(shell, public=True) as toy:
        frames = UNTRUSTED + info(features=["reply_window"]) + SEND
        assert shell.play(frames, *DGRAM).code == 0
    assert toy.requests == [{"type": "lookup", "node_id": 7}]


def test_member_of_a_shared_network_is_reached(shell: Shell) -> None:
    row = {"network_id": 5, "address": "5:0005.0000.0001"}
    with registry(shell, public=False, networks=[0, 5]):
        features = {"features": ["reply_window"], "networks": [row]}
        assert shell.play(UNTRUSTED + info(**features) + SEND, *DGRAM).code == 0


@pytest.mark.parametrize("networks", [None, [{"network_id": 0}], [{"network_id": 6}]])
def test_private_peer_is_refused(shell: Shell, networks: Any) -> None:
    with registry(shell, public=False, networks=[0, 5]):
        frames = UNTRUSTED + info(features=["reply_window"], networks=networks)
        error = shell.play(frames, *DGRAM).error
    assert error["code"] == "trust_required"
    assert error["message"] == (
        "refusing tunnel to private node 0:0000.0000.0007 without trust"
    )
    assert error["hint"] == "run: pilotctl handshake 0:0000.0000.0007"


def test_unknown_peer_is_refused(shell: Shell) -> None:
    with ToyRegistry(lambda request: {"type": "error", "error": "no such"}) as toy:
        shell.setenv("PILOT_REGISTRY", toy.address)
        error = shell.play(UNTRUSTED, *DGRAM).error
    assert error["code"] == "trust_required"
    assert error["message"].startswith(
        "cannot look up peer 0:0000.0000.0007 (registry: no such)"
    )


def test_nothing_is_opened_when_the_registry_cannot_be_asked(shell: Shell) -> None:
    error = shell.play(UNTRUSTED, *DGRAM).error
    assert error["code"] == "trust_required"
    assert error["message"].startswith(
        "cannot verify peer visibility (registry unreachable: registry: cannot reach"
    )


def test_gate_can_be_skipped(shell: Shell) -> None:
    assert shell.play(SEND, *DGRAM, "--no-auto-handshake").code == 0


@pytest.mark.parametrize(
    "answer",
    [
        [
            ["s2c", frame(0x10, {"status": "sent", "node_id": 7})],
            ["c2s", "0f070000000700005208"],
            ["s2c", frame(0x10, {"node_id": 7, "trusted": False})],
        ],
        [["s2c", frame(0x0A, b"\0\1handshake request: no way")]],
    ],
)
def test_daemon_without_reply_window_is_given_time_for_trust(
    shell: Shell, answer: list[list[str]]
) -> None:
    request = frame(0x0F, b"\x01\0\0\0\x07auto-handshake: public peer")
    with registry(shell, public=True):
        frames = UNTRUSTED + info() + [["c2s", request]] + answer + SEND
        assert shell.play(frames, *DGRAM).code == 0


def test_daemon_that_knows_no_wait_counts_as_untrusting(shell: Shell) -> None:
    wait = [
        ["c2s", WAIT],
        ["s2c", frame(0x0A, b"\0\1handshake: unknown sub-command 0x07")],
    ]
    with registry(shell, public=False):
        error = shell.play(wait + info(features=["reply_window"]), *DGRAM).error
    assert error["code"] == "trust_required"


def test_other_error_of_the_daemon_is_reported(shell: Shell) -> None:
    wait = [["c2s", WAIT], ["s2c", frame(0x0A, b"\0\1handshake: broken")]]
    assert shell.play(wait, *DGRAM).error["message"] == "handshake: broken"
