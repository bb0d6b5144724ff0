"""send-message against a scripted peer (cli.md section 6.5, services.md section 4)."""

from __future__ import annotations

import io
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.cli import sending
from pilotfleet.protocol.services.dataexchange import (
    Frame,
    FrameType,
    Tagged,
    TraceAnswer,
    decode_tagged,
    decode_trace,
    encode_trace_answer,
)
from tests.cli.mailsupport import PEER, Peer, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.cli.support import Result, Shell

SEND = ("--json", "send-message", "7")
HELLO = (*SEND, "--data", "hello")


def modern(peer: Peer, frame: Frame) -> Sequence[Frame]:
    """Answer as a receiver from 1.13.10 on does."""
    if frame.type != FrameType.TAGGED:
        return text(f"ACK {FrameType(frame.type).name} {len(frame.payload)} bytes")
    _, kind, payload = decode_tagged(frame.payload)
    if kind != FrameType.TRACE:
        return text(f"ACK {FrameType(kind).name} {len(payload)} bytes")
    trace = decode_trace(payload)
    start = trace.sent_at_ns
    answer = TraceAnswer(
        start + 3_000_000, 0, "ACK TEXT 5 bytes", start + 1_000_000, start
    )
    return [Frame(FrameType.JSON, encode_trace_answer(answer))]


def old(peer: Peer, frame: Frame) -> Sequence[Frame]:
    """Answer as 1.9.1 does."""
    known = {1: "TEXT", 2: "BINARY", 3: "JSON"}
    name = known.get(frame.type, f"UNKNOWN({frame.type})")
    return text(f"ACK {name} {len(frame.payload)} bytes")


def tagged(frame: Frame) -> Tagged:
    assert frame.type == FrameType.TAGGED
    return decode_tagged(frame.payload)


# Sending.


def test_message_travels_with_its_id(shell: Shell) -> None:
    with Peer(shell.socket, modern) as peer:
        data = shell.run(*HELLO).data
    message_id = data.pop("message_id")
    assert data == {
        "target": PEER,
        "to": PEER,
        "type": "text",
        "seq": 0,
        "bytes": 5,
        "reused": False,
        "ack": "ACK TEXT 5 bytes",
        "tagged": True,
    }
    tags, kind, payload = tagged(peer.frames[0])
    assert (kind, payload) == (FrameType.TEXT, b"hello")
    assert (tags.message_id, tags.reply_to) == (message_id, None)
    assert len(bytes.fromhex(message_id)) == 16
    assert peer.closed == 1


@pytest.mark.parametrize("prefix", ["ACK", "ERR"])
def test_old_receiver_gets_it_again_without_its_id(shell: Shell, prefix: str) -> None:
    def answer(peer: Peer, frame: Frame) -> Sequence[Frame]:
        if frame.type == FrameType.TAGGED:
            return text(f"{prefix} UNKNOWN(10) 70 bytes")
        return old(peer, frame)

    with Peer(shell.socket, answer) as peer:
        data = shell.run(*HELLO).data
    assert (data["tagged"], data["ack"]) == (False, "ACK TEXT 5 bytes")
    assert [frame.type for frame in peer.frames] == [10, 1]
    assert peer.frames[1].payload == b"hello"
    assert peer.dials == 1


def test_old_receiver_is_not_asked_for_its_clock(shell: Shell) -> None:
    with Peer(shell.socket, old) as peer:
        data = shell.run(*HELLO, "--trace").data
    assert [frame.type for frame in peer.frames] == [10, 5, 1]
    assert (data["tagged"], data["ack"]) == (False, "ACK TEXT 5 bytes")
    assert "inner_ack" not in data


def test_trace_tells_the_times_of_the_way(shell: Shell) -> None:
    with Peer(shell.socket, modern):
        data = shell.run(*HELLO, "--trace").data
    assert data["inner_ack"] == "ACK TEXT 5 bytes"
    assert json.loads(data["ack"])["inner_ack"] == "ACK TEXT 5 bytes"
    assert (data["to_receiver_ms"], data["receiver_process_ms"]) == (1.0, 2.0)
    assert data["total_ms"] > 0
    assert isinstance(data["return_trip_ms"], float)
    assert [row["label"] for row in data["trace"]] == [
        *("connectDriver", "parseAddrOrHostname", "maybeAutoHandshake"),
        *("dial+send", "dataexchange.Dial"),
    ]


def test_trace_for_people_goes_to_stderr(shell: Shell) -> None:
    shell.setenv("PILOTCTL_TRACE_TIME", "1")
    with Peer(shell.socket, modern):
        result = shell.run("send-message", "7", "--data", "hello")
    assert "TRACE dataexchange.Dial  " in result.stderr
    assert result.stdout.startswith(f"sent 5 bytes to {PEER} · ACK TEXT 5 bytes\n")


@pytest.mark.parametrize(("kind", "number"), [("text", 1), ("binary", 2), ("json", 3)])
def test_type_is_the_frames(shell: Shell, kind: str, number: int) -> None:
    with Peer(shell.socket, modern) as peer:
        data = shell.run(*HELLO, "--type", kind).data
    assert (data["type"], tagged(peer.frames[0]).inner_type) == (kind, number)


def test_data_comes_from_a_file(shell: Shell) -> None:
    path = shell.home / "data"
    path.write_bytes(b"\x00\xff-")
    with Peer(shell.socket, modern) as peer:
        assert shell.run(*SEND, "--data-file", str(path)).data["bytes"] == 3
    assert tagged(peer.frames[0]).payload == b"\x00\xff-"


def test_data_comes_from_standard_input(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"line\n\xff"))
    monkeypatch.setattr(sys, "stdin", stream)
    with Peer(shell.socket, modern) as peer:
        assert shell.run(*SEND, "--data", "-").data["bytes"] == 6
    assert tagged(peer.frames[0]).payload == b"line\n\xff"


def test_first_contact_is_said(shell: Shell) -> None:
    with Peer(shell.socket, modern, is_known=False):
        assert shell.run(*HELLO).data["first_contact"] is True


def test_several_messages_have_several_ids(shell: Shell) -> None:
    with Peer(shell.socket, modern) as peer:
        data = shell.run(*HELLO, "--count", "3").data
    rows = data.pop("results")
    assert data == {"target": PEER, "to": PEER, "type": "text", "reuse_conn": False}
    assert [row["seq"] for row in rows] == [0, 1, 2]
    assert len({row["message_id"] for row in rows}) == 3
    assert [row["reused"] for row in rows] == [False] * 3
    assert (peer.dials, peer.closed) == (3, 3)


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_several_messages_over_one_stream(shell: Shell, how: str) -> None:
    flags = ("--reuse-conn",) if how == "flag" else ()
    if how == "variable":
        shell.setenv("PILOT_SENDMSG_REUSE_CONN", "1")
    with Peer(shell.socket, modern) as peer:
        data = shell.run(*HELLO, "--count", "3", *flags).data
    assert data["reuse_conn"] is True
    assert [row["reused"] for row in data["results"]] == [False, True, True]
    assert (peer.dials, peer.closed) == (1, 1)


def test_tagged_frame_that_would_be_too_long_goes_untagged(shell: Shell) -> None:
    shell.setenv("PILOT_DATAEXCHANGE_MAX_FRAME", "65536")
    path = shell.home / "data"
    path.write_bytes(b"x" * 65_500)
    with Peer(shell.socket, modern) as peer:
        data = shell.run(*SEND, "--data-file", str(path)).data
    assert data["tagged"] is False
    assert [frame.type for frame in peer.frames] == [1]
    path.write_bytes(b"x" * 65_537)
    error = shell.run(*SEND, "--data-file", str(path)).error
    assert error["code"] == "invalid_argument"


# Refusals.


def test_refused_message_is_an_error(shell: Shell) -> None:
    refusal = "ERR TEXT save failed: no space left on device"
    with Peer(shell.socket, lambda peer, frame: text(refusal)):
        error: dict[str, Any] = shell.run(*HELLO).error
    assert error["code"] == "internal"
    assert error["message"] == f"receiver rejected message: {refusal}"
    (row,) = error["results"]
    assert row.keys() == {"seq", "bytes", "reused", "ack", "message_id", "tagged"}
    assert row["ack"] == refusal


def test_some_refused_messages_are_an_error(shell: Shell) -> None:
    def answer(peer: Peer, frame: Frame) -> Sequence[Frame]:
        return text("ERR TEXT full") if peer.dials == 2 else modern(peer, frame)

    with Peer(shell.socket, answer):
        error: dict[str, Any] = shell.run(*HELLO, "--count", "3").error
    assert error["message"] == (
        f"1 of 3 messages to {PEER} were not delivered"
        " (first, message 1: receiver refused it: ERR TEXT full)"
    )
    assert len(error["results"]) == 3


def test_lost_answer_is_asked_for_once_more(shell: Shell) -> None:
    def answer(peer: Peer, frame: Frame) -> Sequence[Frame] | None:
        return None if peer.dials == 1 else modern(peer, frame)

    with Peer(shell.socket, answer) as peer:
        data = shell.run(*HELLO).data
    assert data["retried"] is True
    first, second = map(tagged, peer.frames)
    assert first == second


@pytest.mark.parametrize("flags", [(), ("--no-resend",)])
def test_message_without_answer_may_have_arrived(
    shell: Shell, flags: tuple[str, ...]
) -> None:
    with Peer(shell.socket, lambda peer, frame: None) as peer:
        error: dict[str, Any] = shell.run(*HELLO, *flags).error
    assert peer.dials == (1 if flags else 2)
    assert error["code"] == "connection_failed"
    assert error["message"].startswith(
        f"{PEER} did not acknowledge the message (5 bytes): "
    )
    (row,) = error["results"]
    assert "ack" not in row
    assert row["ack_error"]


def test_silent_receiver_is_not_waited_for_endlessly(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "ANSWER_S", 0.05)
    with Peer(shell.socket, lambda peer, frame: []):
        error = shell.run(*HELLO).error
    assert error["message"].endswith("no answer within 50ms")


def test_garbage_is_no_answer(shell: Shell) -> None:
    frame = Frame(99, b"?")
    with Peer(shell.socket, lambda peer, _: [frame]):
        error = shell.run(*HELLO, "--no-resend").error
    assert error["message"].endswith("the peer answered with a frame of type 99")


def test_peer_that_cannot_be_reached(shell: Shell) -> None:
    with Peer(shell.socket, modern) as peer:
        peer.refused_dials = 3
        error = shell.run(*HELLO).error
        rows: Any = shell.run(*HELLO, "--count", "2").error["results"]
    assert error["code"] == "connection_failed"
    assert error["message"] == f"cannot connect to {PEER} (data exchange port 1001)"
    assert error["hint"] == "check that 7 is reachable: pilotctl ping 7"
    assert [row["seq"] for row in rows] == [0, 1]


def test_timeout_bounds_everything(shell: Shell) -> None:
    with Peer(shell.socket, lambda peer, frame: []):
        error = shell.run(*HELLO, "--timeout", "50ms").error
    assert error["code"] == "timeout"
    assert error["message"] == "send-message exceeded total timeout 50ms"
    assert error["hint"].startswith("delivery may already have occurred")


# Replies.


class Inbox:
    """The folder that the daemon, here the test, writes messages to."""

    def __init__(self, shell: Shell) -> None:
        self.path = shell.home / ".pilot" / "inbox"
        self.path.mkdir(parents=True)
        self._seq = 0

    def put(self, data: str, *, sender: str = PEER, **fields: Any) -> dict[str, Any]:
        self._seq += 1
        record = {"type": "TEXT", "from": sender, "data": data, **fields}
        name = f"TEXT-20261123-010203.004-{self._seq:06}.json"
        part = self.path / "part"
        part.write_text(json.dumps(record))
        part.rename(self.path / name)
        return record


@pytest.fixture
def inbox(shell: Shell) -> Inbox:
    return Inbox(shell)


def run_with_reply(shell: Shell, reply: Any, *flags: str) -> Result:
    """Send with --wait to a peer that does ``reply`` before it acknowledges."""

    def answer(peer: Peer, frame: Frame) -> Sequence[Frame]:
        reply(decode_tagged(frame.payload).tags.message_id)
        return modern(peer, frame)

    with Peer(shell.socket, answer):
        return shell.run(*HELLO, "--wait", "10s", *flags)


def test_reply_that_names_the_message_is_returned(shell: Shell, inbox: Inbox) -> None:
    inbox.put("old", reply_to="other")
    expected: list[Any] = []

    def reply(message_id: str) -> None:
        inbox.put("to another", reply_to="other")
        inbox.put("from another", sender="0:0000.0000.0008", reply_to=message_id)
        inbox.put("unnamed")
        expected.append(inbox.put("right", reply_to=message_id, message_id="r-1"))

    data = run_with_reply(shell, reply).data
    assert data["reply"] == expected[0]
    assert isinstance(data["reply_after_ms"], int)
    assert data["ack"] == "ACK TEXT 5 bytes"


def test_reply_without_a_name_will_do(shell: Shell, inbox: Inbox) -> None:
    inbox.put("before")
    started = time.monotonic()
    data = run_with_reply(shell, lambda _: inbox.put("after")).data
    assert data["reply"]["data"] == "after"
    assert time.monotonic() - started < 0.7


def test_reply_without_a_name_waits_where_names_are_used(
    shell: Shell, inbox: Inbox
) -> None:
    inbox.put("before", reply_to="something")
    started = time.monotonic()
    data = run_with_reply(shell, lambda _: inbox.put("after")).data
    assert data["reply"]["data"] == "after"
    assert time.monotonic() - started >= 0.75


def test_no_reply_is_a_timeout(shell: Shell, inbox: Inbox) -> None:
    inbox.put("before")
    with Peer(shell.socket, modern):
        error = shell.run(*HELLO, "--wait", "50ms").error
    assert error["code"] == "timeout"
    assert error["message"] == f'no reply from "{PEER}" within 50ms'


def test_people_see_the_message_go_and_the_reply_come(
    shell: Shell, inbox: Inbox
) -> None:
    def answer(peer: Peer, frame: Frame) -> Sequence[Frame]:
        inbox.put("the reply", reply_to=decode_tagged(frame.payload).tags.message_id)
        return modern(peer, frame)

    with Peer(shell.socket, answer):
        result = shell.run("send-message", "7", "--data", "hello", "--wait")
    lines = result.stdout.splitlines()
    assert lines[0] == f"sent 5 bytes to {PEER} · ACK TEXT 5 bytes"
    assert lines[-1] == "the reply"
    assert "waiting for reply from 7 (up to 30s)..." in result.stderr


@pytest.mark.parametrize("flags", [(), ("--no-resend",)])
def test_first_message_is_repeated_half_way_through_the_wait(
    shell: Shell, inbox: Inbox, flags: tuple[str, ...]
) -> None:
    with Peer(shell.socket, modern, is_known=False) as peer:
        assert shell.run(*HELLO, "--wait", "100ms", *flags).code == 1
    ids = [tagged(frame).tags.message_id for frame in peer.frames]
    assert len(ids) == (1 if flags else 2)
    assert len(set(ids)) == 1


def test_reply_to_is_sent_and_returned(shell: Shell) -> None:
    with Peer(shell.socket, modern) as peer:
        assert shell.run(*HELLO, "--reply-to", "m:1").data["reply_to"] == "m:1"
    assert tagged(peer.frames[0]).tags.reply_to == "m:1"


def test_name_in_the_inbox_stands_for_the_id_inside(shell: Shell, inbox: Inbox) -> None:
    inbox.put("question", message_id="m-1")
    inbox.put("no id")
    name = "TEXT-20261123-010203.004-000001"
    with Peer(shell.socket, modern) as peer:
        assert shell.run(*HELLO, "--reply-to", name).data["reply_to"] == "m-1"
        for other in (name.replace("1", "2"), "TEXT-20261123-010203.004-000002"):
            error = shell.run(*HELLO, "--reply-to", other).error
            assert error["code"] == "invalid_argument"
    assert len(peer.frames) == 1


# Arguments.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--data is required"),
        (("--data", ""), "--data is required"),
        (("--data", "a", "--data-file", "b"), "give --data or --data-file, not both"),
        (("--data-file", ""), "--data-file needs a path"),
        (("--data-file", "/nope"), "read --data-file: open /nope: no such file"),
        (("--data-file", "/dev/null"), "--data-file /dev/null is empty"),
        (("--data", "x", "--foo"), "send-message: unknown flag --foo"),
        (("--data", "-x"), "send-message: unknown flag --x"),
        (("--data", "x", "--wait=-1s"), "--wait must be a positive duration"),
        (("--data", "x", "--wait", "0"), "--wait must be a positive duration"),
        (("--data", "x", "--wait=xx"), "--wait must be a positive duration"),
        (("--data", "x", "--timeout", "0"), "--timeout must be a positive duration"),
        (("--data", "x", "--timeout", "xx"), "--timeout must be a positive duration"),
        (("--data", "x", "--count", "x"), "invalid integer for --count: "),
        (
            ("--data", "x", "--reply-to", "a b"),
            "--reply-to must be a message ID: 1-128 characters of A-Z a-z 0-9 . _ : -",
        ),
        (("extra", "--data", "x"), "usage: pilotctl send-message <address|hostname>"),
    ],
)
def test_bad_arguments_are_refused_before_connecting(
    shell: Shell, flags: tuple[str, ...], message: str
) -> None:
    error = shell.run(*SEND, *flags).error
    assert error["code"] == "invalid_argument"
    assert error["message"].startswith(message)


def test_unknown_type_is_refused(shell: Shell) -> None:
    with Peer(shell.socket, modern):
        error = shell.run(*HELLO, "--type", "foo").error
    assert error["message"] == 'unknown type "foo" (use text, json, or binary)'


@pytest.mark.parametrize(("flag", "data"), [("--data=-x", b"-x"), ("--data", b"-5")])
def test_data_may_begin_with_a_dash(shell: Shell, flag: str, data: bytes) -> None:
    value = () if "=" in flag else (data.decode(),)
    with Peer(shell.socket, modern) as peer:
        shell.run(*SEND, flag, *value)
    assert tagged(peer.frames[0]).payload == data
