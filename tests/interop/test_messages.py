"""Our pilotctl sends and reads messages and files, on daemons of both kinds.

The same command line runs with the official pilotctl; exit codes and the shape of the
JSON must be the same, field by field.
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
LIMIT_S = 60.0


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


def shape(value: Any) -> Any:
    """Return keys and kinds of a JSON value; numbers are of one kind."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in sorted(value.items())}
    if isinstance(value, list):
        return [shape(item) for item in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "number"
    return type(value).__name__


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


# Shapes.

SENDS: list[tuple[str, ...]] = [
    ("--data", "grüße <&>"),
    ("--data", '{"a": 1}', "--type", "json"),
    ("--data-file", "PATH", "--type", "binary"),
    ("--data", "-"),
    ("--data", "x", "--count", "3"),
    ("--data", "x", "--count", "2", "--reuse-conn"),
    ("--data", "x", "--reply-to", "abc-1"),
    ("--data", "x", "--trace"),
    ("--data", "x", "--trace", "--count", "2"),
    # Failures.
    (),
    ("--data", "x", "--wait", "50ms", "--no-resend"),
    ("--data", "x", "--timeout", "1us"),
    ("--data", "x", "--type", "odd"),
    ("--data", "x", "--reply-to", "TEXT-20260101-010203.004-000001"),
    ("--data", "x", "--unknown"),
]


@pytest.mark.parametrize("name", DAEMONS)
@pytest.mark.parametrize("flags", SENDS, ids=" ".join)
def test_send_message_answers_like_the_official_one(
    net: World, name: str, flags: tuple[str, ...]
) -> None:
    path = net.home / "data.bin"
    path.write_bytes(b"\0\xff")
    argv = [str(path) if flag == "PATH" else flag for flag in flags]
    # A first contact has a field of its own; afterwards there is a session.
    run(net, "their", name, "ping", other(name), "--count", "1")
    answers = [
        finish(
            start(net, client, name, "send-message", other(name), *argv, stdin=b"in")
        )
        for client in CLIENTS
    ]
    (our_code, ours), (their_code, theirs) = answers
    assert our_code == their_code
    for answer in (ours, theirs):
        answer.pop("hint", None)
        if answer["status"] == "ok":
            answer["data"]["bytes_and_target"] = (
                f"{answer['data'].get('bytes')} {answer['data']['target']}"
            )
    assert shape(ours) == shape(theirs)
    for key in ("code", "message"):
        assert ours.get(key) == theirs.get(key)
    if our_code == 0:
        key = "bytes_and_target"
        assert ours["data"][key] == theirs["data"][key]


@pytest.mark.parametrize("name", DAEMONS)
@pytest.mark.parametrize("flags", [(), ("--no-stream",)], ids=["streamed", "whole"])
@pytest.mark.parametrize("size", [0, 1_500_000])
def test_send_file_answers_like_the_official_one(
    net: World, name: str, flags: tuple[str, ...], size: int
) -> None:
    path = net.home / "report.tar.gz"
    path.write_bytes(os.urandom(size))
    ours, theirs = (
        run(net, client, name, "send-file", other(name), str(path), *flags)
        for client in CLIENTS
    )
    assert shape(ours) == shape(theirs)
    for varying in ("elapsed_ms", "throughput_mbps"):
        del ours[varying], theirs[varying]
    assert ours == theirs
    folder = net.home / other(name) / ".pilot" / "received"
    received = [p for p in folder.iterdir() if p.is_file()]
    assert [p.read_bytes() for p in received] == [path.read_bytes()] * 2
    assert all(p.name.endswith(".gz") for p in received)


FAILING = [
    ("send-file",),
    ("send-file", "1", "/nowhere"),
    ("send-file", "1", "/"),
    ("send-file", "nobody", "/nowhere"),
    ("send-message", "nobody", "--data", "x"),
    ("send-message", "99", "--data", "x"),
    ("inbox", "read", "zz"),
    ("inbox", "read", "../x"),
    ("inbox", "read"),
    ("inbox", "--from", "nobody"),
    ("inbox", "--since", "1d"),
    ("inbox", "--clear", "--before", "3"),
    ("received", "--since", "zz"),
    ("received", "--clear", "--before", "3"),
]


@pytest.mark.parametrize("argv", FAILING, ids=" ".join)
def test_failures_are_the_official_ones(net: World, argv: tuple[str, ...]) -> None:
    # Where there are folders: without them, nothing of the inbox is looked at.
    for name in DAEMONS:
        run(net, "our", other(name), "send-message", name, "--data", "x")
    answers = [finish(start(net, client, "theirs", *argv)) for client in CLIENTS]
    for _, answer in answers:
        answer.pop("hint", None)
    assert answers[0] == answers[1]


# Folders.


@pytest.mark.parametrize("name", DAEMONS)
def test_both_clients_read_the_folders_of_both_daemons(net: World, name: str) -> None:
    path = net.home / "a.txt"
    path.write_text("contents")
    binary = net.home / "b.bin"
    binary.write_bytes(b"\0\xff")
    sender = other(name)
    for flags in (
        ("--data", "one   two\n"),
        ("--data", "answer", "--reply-to", "abc"),
        ("--data-file", str(binary), "--type", "binary"),
    ):
        run(net, "our", sender, "send-message", name, *flags)
    run(net, "their", sender, "send-file", name, str(path))

    for argv in [
        ("inbox",),
        ("inbox", "--limit", "2"),
        ("inbox", "--full"),
        ("inbox", "--latest"),
        ("inbox", "--since", "1h"),
        ("inbox", "--since", "2020-01-01T00:00:00Z"),
        ("inbox", "--from", sender),
        ("inbox", "--from", "9"),
        ("received",),
        ("received", "--limit", "1"),
        ("received", "--since", "1h"),
    ]:
        ours, theirs = (run(net, client, name, *argv) for client in CLIENTS)
        for row in ours.get("messages", ()):
            # What ours says in addition.
            data = row.pop("data")
            row.pop("data_b64", None)
            if "preview" not in row:
                row["data"] = data
        assert ours == theirs, argv

    for message in messages(net, name):
        argv = ("inbox", "read", message["id"])
        ours, theirs = (run(net, client, name, *argv) for client in CLIENTS)
        assert ours == theirs

    assert run(net, "our", name, "inbox", "--clear") == {"cleared": 3, "remaining": 0}
    cleared = run(net, "our", name, "received", "--clear")
    assert cleared == {"cleared": 1, "cleared_partial": 0, "remaining": 0}
    for argv in (("inbox",), ("inbox", "--clear"), ("received",)):
        ours, theirs = (run(net, client, name, *argv) for client in CLIENTS)
        assert ours == theirs


# Replies.


@pytest.mark.parametrize("name", DAEMONS)
@pytest.mark.parametrize("replier", CLIENTS)
def test_reply_finds_the_one_who_waits(net: World, name: str, replier: str) -> None:
    peer = other(name)
    waiting = start(
        net, "our", name, "send-message", peer, "--data", "question", "--wait", "20s"
    )
    question = wait_for_message(net, peer, 0)
    assert question["data"] == "question"
    run(net, "our", peer, "send-message", name, "--data", "no", "--reply-to", "other")
    # The name of the message in the inbox stands for the ID in it.
    named = question["id"] if replier == "our" else question["message_id"]
    answer = run(
        *(net, replier, peer, "send-message", name),
        *("--data", "answer", "--reply-to", named),
    )
    code, result = finish(waiting)
    assert code == 0, result
    data = result["data"]
    assert answer["reply_to"] == data["message_id"] == question["message_id"]
    assert data["reply"]["data"] == "answer"
    assert data["reply"]["reply_to"] == data["message_id"]
    assert data["reply"]["message_id"] == answer["message_id"]
    assert 0 <= data["reply_after_ms"] < 20_000


def test_reply_without_a_name_is_taken_too(net: World) -> None:
    waiting = start(
        net, "our", "ours", "send-message", "theirs", "--data", "q", "--wait", "20s"
    )
    wait_for_message(net, "theirs", 0)
    run(net, "their", "theirs", "send-message", "ours", "--data", "unnamed")
    code, result = finish(waiting)
    assert (code, result["data"]["reply"]["data"]) == (0, "unnamed")


# Transfers.


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
