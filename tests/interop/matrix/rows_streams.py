"""Rows: streams, datagrams and the diagnostics that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.interop.matrix.rows import row
from tests.interop.matrix.worlds import TRUSTED

if TYPE_CHECKING:
    from tests.interop.matrix.worlds import Background, Node, Pair


def bound(node: Node, *argv: str) -> Background:
    """Start a command that binds a port; return when the port is bound."""
    before = node.info()["ports"]
    started = node.begin(*argv)
    return started.once("a bound port", lambda: node.info()["ports"] > before)


def connected(node: Node, *argv: str) -> Background:
    """Start a command that only listens; return when it is connected."""
    # Not their number: the daemon may yet be closing an earlier command's socket.
    before = node.clients()
    started = node.begin(*argv)
    return started.once("a client", lambda: bool(node.clients() - before))


@row("ping by number")
def _ping(pair: Pair) -> None:
    done = pair.near.do("ping", pair.far.id, "--count", "2")
    pair.expect("answers", [probe["bytes"] for probe in done.data["results"]], [6, 6])


@row("ping by hostname")
def _ping_hostname(pair: Pair) -> None:
    pair.near.do("ping", "far", "--count", "1")


@row("ping a trusted private node", stage=TRUSTED)
def _ping_trusted(pair: Pair) -> None:
    pair.near.do("ping", pair.far.id, "--count", "1")
    pair.far.do("ping", pair.near.id, "--count", "1")


@row("ping unknown", local=True)
def _ping_unknown(pair: Pair) -> None:
    pair.near.do("ping", "99", "--count", "1")
    pair.near.do("ping", "nobody")
    pair.near.do("ping")


@row("ping --trace and --reuse-conn")
def _ping_trace(pair: Pair) -> None:
    pair.near.do("ping", pair.far.id, "--count", "1", "--trace")
    pair.near.do("ping", pair.far.id, "--count", "2", "--reuse-conn")


@row("traceroute")
def _traceroute(pair: Pair) -> None:
    pair.near.do("traceroute", pair.far.address)


@row("traceroute refused", local=True)
def _traceroute_refused(pair: Pair) -> None:
    pair.near.do("traceroute", "2")
    pair.near.do("traceroute")
    pair.near.do("traceroute", "0:0000.0000.0063", "--timeout", "2s")


@row("bench")
def _bench(pair: Pair) -> None:
    done = pair.near.do("bench", pair.far.id, "1")
    pair.expect("received", done.data["recv_bytes"], 1 << 20)


@row("bench refused", local=True)
def _bench_refused(pair: Pair) -> None:
    pair.near.do("bench")
    pair.near.do("bench", "1", "0")
    pair.near.do("bench", "1", "5000")
    pair.near.do("bench", "99", "1")


@row("send to the echo port")
def _send_echo(pair: Pair) -> None:
    pair.near.do("send", pair.far.id, "7", "--data", 'é <"&> \\')


@row("connect")
def _connect(pair: Pair) -> None:
    pair.near.do("connect", pair.far.id, "7", "--message", "hello")
    pair.near.do("connect", "far", "7", "--message", "hello")


@row("send and recv")
def _recv(pair: Pair) -> None:
    taken = bound(pair.far, "recv", "2000", "--count", "2", "--timeout", "60s")
    for text in ("first", "second"):
        # Nobody answers: recv only reads.
        pair.near.do("send", pair.far.id, "2000", "--data", text, "--timeout", "500ms")
    messages = taken.finish().data["messages"]
    pair.expect("data", [m["data"] for m in messages], ["first", "second"])


@row("recv that nobody uses", local=True)
def _recv_timeout(pair: Pair) -> None:
    pair.near.do("recv", "2001", "--timeout", "300ms")
    pair.near.do("recv", "7", "--timeout", "300ms")
    pair.near.do("recv", "abc")
    pair.near.do("recv")


@row("connect to a closed port")
def _closed(pair: Pair) -> None:
    pair.near.do("connect", pair.far.id, "4444", "--message", "x")
    pair.near.do("send", pair.far.id, "4444", "--data", "x")


@row("send refused", local=True)
def _send_refused(pair: Pair) -> None:
    pair.near.do("send", "1")
    pair.near.do("send", "1", "abc", "--data", "x")
    pair.near.do("send", "1", "70000", "--data", "x")
    pair.near.do("send", "99", "7", "--data", "x")
    pair.near.do("send", "nobody", "7", "--data", "x")
    pair.near.do("connect")
    pair.near.do("send", "1", "7", "--data", "x", "--timeout", "soon")


@row("dgram and listen")
def _dgram(pair: Pair) -> None:
    heard = connected(pair.far, "listen", "3000", "--count", "1", "--timeout", "60s")
    pair.near.do("dgram", pair.far.id, "3000", "--data", "é <&> hi")
    messages = heard.finish().data["messages"]
    pair.expect("data", [m["data"] for m in messages], ["é <&> hi"])


@row("dgram over a trusted tunnel", stage=TRUSTED)
def _dgram_trusted(pair: Pair) -> None:
    heard = connected(pair.far, "listen", "3001", "--count", "1", "--timeout", "60s")
    pair.near.do("dgram", "far", "3001", "--data", "hi")
    heard.finish()


@row("dgram refused", local=True)
def _dgram_refused(pair: Pair) -> None:
    pair.near.do("dgram", "99", "3000", "--data", "x")
    pair.near.do("dgram", "1", "3000", "--data", "x" * 70000, label="dgram too large")
    pair.near.do("dgram", "1")
    pair.near.do("dgram", "1", "3000")
    pair.near.do("dgram", "1", "abc", "--data", "x")


@row("listen that hears nothing", local=True)
def _listen_timeout(pair: Pair) -> None:
    pair.near.do("listen", "3002", "--count", "1", "--timeout", "300ms")
    pair.near.do("listen", "abc")
    pair.near.do("listen")
