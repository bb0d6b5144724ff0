"""Rows: messages and files over port 1001, and the mailbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.interop.matrix.rows import row
from tests.interop.matrix.worlds import payload_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.interop.matrix.worlds import Node, Pair

BINARY = bytes(range(256)) * 4


def written(node: Node, name: str, data: bytes) -> str:
    """Write a file into the node's home; return its path."""
    path: Path = node.home / name
    path.write_bytes(data)
    return str(path)


def expect_mail(node: Node, *payloads: bytes) -> None:
    """Expect these messages in the node's inbox, and record how they are stored."""
    mail = node.mail()
    node.pair.expect("inbox", [payload_of(m) for m in mail], list(payloads))
    node.pair.record(f"{node.name}: stored messages", mail)


@row("send-message text")
def _text(pair: Pair) -> None:
    pair.near.do("send-message", pair.far.id, "--data", "grüße <&>")
    expect_mail(pair.far, "grüße <&>".encode())


@row("send-message by hostname")
def _hostname(pair: Pair) -> None:
    pair.near.do("send-message", "far", "--data", "hi")
    expect_mail(pair.far, b"hi")


@row("send-message json")
def _json(pair: Pair) -> None:
    pair.near.do("send-message", "far", "--data", '{"a": [1]}', "--type", "json")
    pair.near.do("send-message", "far", "--data", "{no json", "--type", "json")
    expect_mail(pair.far, b'{"a": [1]}', b"{no json")


@row("send-message binary from a file")
def _binary(pair: Pair) -> None:
    path = written(pair.near, "data.bin", BINARY)
    pair.near.do(
        *("send-message", "far", "--data-file", path, "--type", "binary"),
        label="send-message --data-file",
    )
    expect_mail(pair.far, BINARY)


@row("send-message of 1 MiB")
def _large(pair: Pair) -> None:
    path = written(pair.near, "large.txt", b"0123456789abcdef" * 65536)
    pair.near.do("send-message", "far", "--data-file", path, label="send-message 1 MiB")
    pair.expect("sizes", [m["bytes"] for m in pair.far.mail()], [1 << 20])


@row("send-message --count and --reuse-conn")
def _count(pair: Pair) -> None:
    pair.near.do("send-message", "far", "--data", "x", "--count", "3")
    expect_mail(pair.far, b"x", b"x", b"x")
    pair.near.do("send-message", "far", "--data", "y", "--count", "2", "--reuse-conn")
    pair.expect("messages", len(pair.far.mail()), 5)


@row("send-message --wait with a reply")
def _wait(pair: Pair) -> None:
    near, far = pair.near, pair.far
    asked = near.begin("send-message", "far", "--data", "q", "--wait", "60s")
    pair.wait("the question", lambda: far.mail() != [])
    identity = far.mail()[0]["message_id"]
    far.do(
        *("send-message", "near", "--data", "answer", "--reply-to", identity),
        label="send-message --reply-to",
    )
    reply = asked.finish().data["reply"]
    pair.expect("reply to", reply.get("reply_to"), identity)
    pair.expect("reply", payload_of(reply), b"answer")
    expect_mail(near, b"answer")


@row("send-message --wait without a reply")
def _wait_timeout(pair: Pair) -> None:
    pair.near.do("send-message", "far", "--data", "q", "--wait", "1s", "--no-resend")


@row("send-message --trace")
def _trace(pair: Pair) -> None:
    pair.near.do("send-message", "far", "--data", "traced", "--trace")
    expect_mail(pair.far, b"traced")
    pair.near.do("send-message", "far", "--data", "x", "--trace", "--count", "2")


@row("send-message refused", local=True)
def _refused(pair: Pair) -> None:
    send = ("send-message", "1")
    pair.near.do("send-message")
    pair.near.do(*send)
    pair.near.do(*send, "--data", "")
    pair.near.do(*send, "--data", "x", "--data-file", "y")
    pair.near.do(*send, "--data-file", "/nowhere")
    pair.near.do(*send, "--data", "x", "--type", "foo")
    pair.near.do(*send, "--data", "x", "--wait", "0s")
    pair.near.do(*send, "--data", "x", "--reply-to", "a b")
    file_id = "TEXT-20260101-010203.004-000001"
    pair.near.do(*send, "--data", "x", "--reply-to", file_id, label="reply to a file")
    pair.near.do(*send, "--data", "x", "--unknown")
    pair.near.do("send-message", "99", "--data", "x")
    pair.near.do("send-message", "nobody", "--data", "x")


@row("send-file streamed")
def _file(pair: Pair) -> None:
    path = written(pair.near, "report.tar.gz", BINARY * 512)
    pair.near.do("send-file", "far", path)
    pair.expect("received", pair.far.files() == [BINARY * 512], True)
    pair.far.do("received")


@row("send-file --no-stream")
def _file_frame(pair: Pair) -> None:
    path = written(pair.near, "notes.txt", b"some notes")
    pair.near.do("send-file", "far", path, "--no-stream")
    pair.expect("received", pair.far.files(), [b"some notes"])


@row("send-file of an empty file")
def _file_empty(pair: Pair) -> None:
    path = written(pair.near, "empty", b"")
    pair.near.do("send-file", "far", path)
    pair.near.do("send-file", "far", path, "--no-stream")
    pair.expect("received", pair.far.files(), [b"", b""])
    pair.far.do("received")


@row("send-file refused", local=True)
def _file_refused(pair: Pair) -> None:
    pair.near.do("send-file")
    pair.near.do("send-file", "1")
    pair.near.do("send-file", "1", "/nowhere")
    pair.near.do("send-file", "1", str(pair.near.home))
    path = written(pair.near, "small.txt", b"x")
    pair.near.do("send-file", "99", path)
    pair.near.do("send-file", "nobody", path)


@row("inbox list")
def _inbox(pair: Pair) -> None:
    for text in ("one", "two   with\nspace", "x" * 300):
        pair.near.prepare("send-message", "far", "--data", text)
    pair.far.do("inbox")
    pair.far.do("inbox", "--limit", "2")
    pair.far.do("inbox", "--latest")
    pair.far.do("inbox", "--full")
    pair.far.do("inbox", "--from", pair.near.address)
    pair.far.do("inbox", "--from", "near")
    pair.far.do("inbox", "--since", "1h")
    pair.far.do("inbox", "--from", "9")
    pair.far.do("inbox", "--from", "nobody")
    pair.far.do("inbox", "--since", "2020-01-01T00:00:00Z")
    pair.far.do("inbox", "--since", "yesterday")
    pair.far.do("inbox", "--since", "1d")


@row("inbox read")
def _inbox_read(pair: Pair) -> None:
    pair.near.prepare("send-message", "far", "--data", "one")
    identity = pair.far.prepare("inbox")["messages"][0]["id"]
    pair.far.do("inbox", "read", identity, label="inbox read")
    pair.far.do("inbox", "read", "zz")
    pair.far.do("inbox", "read", "../identity")
    pair.far.do("inbox", "read")


@row("inbox --clear")
def _inbox_clear(pair: Pair) -> None:
    for text in ("one", "two"):
        pair.near.prepare("send-message", "far", "--data", text)
    pair.far.do("inbox", "--clear", "--before", "1h")
    pair.far.do("inbox", "--clear", "--before", "3")
    pair.far.do("inbox", "--clear")
    pair.expect("messages", pair.far.mail(), [])
    pair.far.do("inbox")


@row("inbox before any message", fresh=True, local=True)
def _inbox_absent(pair: Pair) -> None:
    pair.near.do("inbox")
    pair.near.do("inbox", "--clear")
    pair.near.do("received")
    pair.near.do("received", "--clear")


@row("received --clear")
def _received_clear(pair: Pair) -> None:
    path = written(pair.near, "notes.txt", b"some notes")
    pair.near.prepare("send-file", "far", path)
    pair.far.do("received", "--limit", "1")
    pair.far.do("received", "--since", "1h")
    pair.far.do("received", "--since", "zz")
    pair.far.do("received", "--clear", "--before", "3")
    pair.far.do("received", "--clear")
    pair.expect("files", pair.far.files(), [])
    pair.far.do("received", label="received after --clear")
