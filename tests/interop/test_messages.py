"""Our pilotctl waits for replies and resumes transfers, on daemons of both kinds.

What single commands answer are rows of the matrix.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.official import official_program
from tests.support.programs import BIN, World, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]

DAEMONS = ("ours", "theirs")
CLIENTS = {"our": BIN / "pilotctl", "their": official_program("pilotctl")}
LIMIT_S = 90.0


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    """Yield public daemons of both kinds, each with the folders in its home."""
    with world() as made:
        made.start_rendezvous()
        made.start_official_daemon("theirs", "-public", "-hostname", "theirs")
        pilot = made.home / "ours" / ".pilot"
        made.start_daemon(
            "ours", "--public", "--hostname", "ours", "--home", str(pilot)
        )
        yield made


@pytest.fixture(autouse=True)
def _empty_folders(net: World) -> None:
    for name in DAEMONS:
        for folder in ("inbox", "received"):
            for path in (net.home / name / ".pilot" / folder).glob("*.*"):
                if path.is_file():
                    path.unlink()


def start(
    net: World, client: str, name: str, *argv: str, stdin: bytes | None = None
) -> subprocess.Popen[bytes]:
    """Start a client against the daemon ``name``, in that daemon's home."""
    process = subprocess.Popen(
        [CLIENTS[client], "--json", *argv],
        env={
            **net.environment(PILOT_SOCKET=str(net.socket(name))),
            "HOME": str(net.home / name),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    if stdin is not None:
        process.stdin.write(stdin)
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
    """Return exit code and printed object; a failure prints it on stderr."""
    stdout, stderr = process.communicate(timeout=LIMIT_S)
    if process.returncode:
        assert stdout == b"", stderr
        return process.returncode, json.loads(stderr.splitlines()[-1])
    return 0, json.loads(stdout)


def run(net: World, client: str, name: str, *argv: str, **options: Any) -> Any:
    """Run a client that must succeed and return its data."""
    code, answer = finish(start(net, client, name, *argv, **options))
    assert code == 0, answer
    return answer["data"]


def other(name: str) -> str:
    return "theirs" if name == "ours" else "ours"


def messages(net: World, name: str) -> list[dict[str, Any]]:
    """Return the newest messages of a node, as our client reads them."""
    data = run(net, "our", name, "inbox", "--full", "--limit", "0")
    found: list[dict[str, Any]] = data["messages"]
    return found


def wait_for_message(net: World, name: str, known: int) -> dict[str, Any]:
    """Return the newest message once there are more than ``known``."""
    while len(found := messages(net, name)) <= known:
        continue  # The test has a timeout, and a client takes its time.
    return found[0]


def test_message_is_read_from_standard_input(net: World) -> None:
    for client in CLIENTS:
        sent = run(
            *(net, client, "ours", "send-message", "theirs"),
            *("--data", "-"),
            stdin=b"in",
        )
        assert sent["bytes"] == 2
    assert [message["data"] for message in messages(net, "theirs")] == ["in", "in"]


@pytest.mark.parametrize("name", DAEMONS)
def test_reply_finds_the_one_who_waits(net: World, name: str) -> None:
    peer = other(name)
    waiting = start(
        net, "our", name, "send-message", peer, "--data", "question", "--wait", "60s"
    )
    question = wait_for_message(net, peer, 0)
    assert question["data"] == "question"
    run(net, "our", peer, "send-message", name, "--data", "no", "--reply-to", "other")
    # The name of the message in the inbox stands for the ID in it.
    answer = run(
        *(net, "our", peer, "send-message", name),
        *("--data", "answer", "--reply-to", question["id"]),
    )
    code, result = finish(waiting)
    assert code == 0, result
    data = result["data"]
    assert answer["reply_to"] == data["message_id"] == question["message_id"]
    assert data["reply"]["data"] == "answer"
    assert data["reply"]["reply_to"] == data["message_id"]
    assert data["reply"]["message_id"] == answer["message_id"]
    assert 0 <= data["reply_after_ms"] < 60_000


def test_reply_without_a_name_is_taken_too(net: World) -> None:
    waiting = start(
        net, "our", "ours", "send-message", "theirs", "--data", "q", "--wait", "60s"
    )
    wait_for_message(net, "theirs", 0)
    run(net, "their", "theirs", "send-message", "ours", "--data", "unnamed")
    code, result = finish(waiting)
    assert (code, result["data"]["reply"]["data"]) == (0, "unnamed")


@pytest.mark.parametrize("name", DAEMONS)
def test_killed_transfer_resumes(net: World, tmp_path: Path, name: str) -> None:
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(30_000_000))
    peer = other(name)
    partial = net.home / peer / ".pilot" / "received" / ".partial"
    sending = start(net, "our", name, "send-file", peer, str(path))
    while not any(p.stat().st_size > 1_000_000 for p in partial.glob("*")):
        assert sending.poll() is None, "sent before it could be killed"
    sending.kill()
    sending.communicate()
    data = run(net, "our", name, "send-file", peer, str(path))
    assert data["bytes_resumed"] > 0
    assert data["bytes_resumed"] + data["bytes_sent"] == data["bytes"]
    (received,) = (p for p in partial.parent.iterdir() if p.is_file())
    assert received.read_bytes() == path.read_bytes()
    received.unlink()
