"""``--secure``: the channel of port 443 from the command line."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from pilotfleet.protocol.services.securechannel import Role, SecureExchange
from tests.support.programs import BIN, READY_S, world

if TYPE_CHECKING:
    from tests.cli.support import Shell

OPEN = "--no-auto-handshake"
DIAL = [["c2s", "0300000000000701bb"], ["s2c", "0400000064"]]
CLOSE = [["c2s", "0800000064"]]
PRIVATE = bytes(range(32))


@pytest.fixture
def public_key(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Make the client's key known, and return it."""
    monkeypatch.setattr(os, "urandom", lambda size: PRIVATE[:size])
    exchange = SecureExchange(Role.CLIENT, random_bytes=os.urandom)
    return exchange.public_key


def test_send_seals_and_opens(shell: Shell, public_key: bytes) -> None:
    there = SecureExchange(Role.SERVER, random_bytes=lambda size: b"s" * size)
    here = SecureExchange(Role.CLIENT, random_bytes=lambda _: PRIVATE)
    seal_there, _ = there.complete(public_key)
    seal_here, _ = here.complete(there.public_key)
    answer = there.public_key + seal_there.seal(b"first")
    frames = [
        *DIAL,
        ["c2s", "0600000064" + public_key.hex()],
        # The first record comes together with the key.
        ["s2c", "0700000064" + answer.hex()],
        ["c2s", "0600000064" + seal_here.seal(b"yo").hex()],
        *CLOSE,
    ]
    result = shell.play(frames, "--json", "send", "7", "--data=yo", OPEN, "--secure")
    assert result.data["response"] == "first"
    assert result.data["port"] == 443


def test_peer_that_is_no_channel_is_an_error(shell: Shell, public_key: bytes) -> None:
    begin = [*DIAL, ["c2s", "0600000064" + public_key.hex()]]
    tokens = ("--json", "send", "7", "--data=yo", OPEN, "--secure")
    ended = shell.play([*begin, ["s2c", "0900000064"], *CLOSE], *tokens).error
    assert ended["code"] == "connection_failed"
    assert "before the secure channel was open" in ended["message"]
    late = shell.play([*begin, *CLOSE], *tokens, "--timeout=10ms").error
    assert late["code"] == "timeout"
    assert "take secure channels" in late["hint"]


def test_altered_answer_is_an_error(shell: Shell, public_key: bytes) -> None:
    there = SecureExchange(Role.SERVER, random_bytes=lambda size: b"s" * size)
    there.complete(public_key)
    frames = [
        *DIAL,
        ["c2s", "0600000064" + public_key.hex()],
        ["s2c", "0700000064" + (there.public_key + b"\0\0\0\x0cgarbage12345").hex()],
        *CLOSE,
    ]
    tokens = ("--json", "send", "7", "--data=yo", OPEN, "--secure")
    error = shell.play(frames, *tokens).error
    assert "secure channel: a record with the wrong role" in error["message"]


@pytest.mark.parametrize("command", ["connect", "send", "recv"])
def test_flag_that_swallowed_a_word_is_never_ignored(
    shell: Shell, command: str
) -> None:
    error = shell.run("--json", command, "--secure", "7", "3000", "--data=yo").error
    assert error["code"] == "invalid_argument"
    assert "--secure takes no value, but '7' follows it" in error["message"]


def test_two_daemons_talk_secretly() -> None:
    with world() as net:
        net.start_rendezvous()
        for name in ("alice", "bob"):
            net.start_daemon(name, "--hostname", name, "--public")
        receiving = subprocess.Popen(
            [
                BIN / "pilotctl",
                "--json",
                "recv",
                "--count=1",
                "--timeout=20s",
                "--secure",
            ],
            env=net.environment(PILOT_SOCKET=str(net.socket("bob"))),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # Somebody without a channel does not end the wait. It also shows when
            # the port is open.
            in_the_clear = ("send", "bob", "443", "--data=open", "--timeout=100ms")
            refused = True
            while refused:
                plain = net.ctl("alice", *in_the_clear)
                refused = "cannot connect" in plain.stderr
            tokens = ("send", "bob", "--data", "a secret", "--timeout=1s", "--secure")
            # recv prints what came and does not answer.
            assert net.ctl("alice", *tokens).returncode in (0, 1)
            output, errors = receiving.communicate(timeout=READY_S)
        finally:
            receiving.kill()
            receiving.wait()
        assert receiving.returncode == 0, errors
        [message] = json.loads(output)["data"]["messages"]
        assert message == {"seq": 0, "port": 443, "data": "a secret", "bytes": 8}
