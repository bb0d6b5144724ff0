"""Rows: events on port 1002 and webhooks."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from tests.interop.matrix.columns import Column, Maker
from tests.interop.matrix.rows import row
from tests.interop.matrix.worlds import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.interop.matrix.worlds import Background, Node, Pair

SECRET = "s3cret"
WEBHOOK = Stage("webhook", ("-public", "-webhook-secret", SECRET), ("-public",))
EVENT_NAMES = ("conn.syn_received", "conn.established", "message.received")


def subscribed(client: Node, broker: Node, *argv: str) -> Background:
    """Start a subscription; return when the broker has it."""
    started = client.begin(*argv)
    return started.once("a subscription", lambda: broker.has_stream(1002))


def no_subscriber(pair: Pair) -> None:
    """Return when no stream of an earlier row is left at the far broker."""
    pair.wait("idle broker", lambda: not pair.far.has_stream(1002))


@row("subscribe and publish")
def _publish(pair: Pair) -> None:
    no_subscriber(pair)
    near, far = pair.near, pair.far
    taking = ("subscribe", "far", "news", "--count", "2", "--timeout", "60s")
    heard = subscribed(near, far, *taking)
    near.do("publish", "far", "other", "--data", "not for this one")
    near.do("publish", "far", "news", "--data", "é <&>")
    near.do("publish", "far", "news", "--data", '{"n":2}')
    events = heard.finish().data["events"]
    pair.expect("events", [event["data"] for event in events], ["é <&>", '{"n":2}'])


@row("subscribe to *")
def _star(pair: Pair) -> None:
    no_subscriber(pair)
    taking = ("subscribe", "far", "*", "--count", "2", "--timeout", "60s")
    heard = subscribed(pair.near, pair.far, *taking)
    pair.near.do("publish", "far", "a.b", "--data", "1")
    pair.near.do("publish", "far", "c", "--data", "2")
    events = heard.finish().data["events"]
    pair.expect("topics", [event["topic"] for event in events], ["a.b", "c"])


@row("subscribe without limit")
def _lines(pair: Pair) -> None:
    no_subscriber(pair)
    heard = subscribed(
        pair.near, pair.far, "subscribe", "far", "news", "--timeout", "2s"
    )
    pair.near.do("publish", "far", "news", "--data", "1")
    heard.finish()


@row("subscribe that hears nothing")
def _silent(pair: Pair) -> None:
    pair.near.do("subscribe", "far", "news", "--count", "1", "--timeout", "300ms")


@row("publish and subscribe refused", local=True)
def _refused(pair: Pair) -> None:
    pair.near.do("publish")
    pair.near.do("publish", "1", "news")
    pair.near.do("subscribe")
    pair.near.do("subscribe", "1")
    pair.near.do("publish", "99", "news", "--data", "x")
    pair.near.do("subscribe", "nobody", "news", "--count", "1")


@row(
    'events subscribe --topic "fleet.*"',
    compared=False,
    not_applicable={
        Column.OUR_DAEMON: "the official client has no events command",
        Column.OFFICIAL: "the official programs have no events command",
    },
)
def _pattern(pair: Pair) -> None:
    no_subscriber(pair)
    # Our client subscribes, from whichever end it drives, at the far broker.
    client = pair.near if pair.near.seat.client is Maker.OURS else pair.far
    taking = ("events", "subscribe", "--topic", "fleet.*", "--target", "far")
    heard = subscribed(client, pair.far, *taking, "--count", "2", "--timeout", "60s")
    for topic in ("fleet.health", "other", "fleet.a.b"):
        pair.near.prepare("publish", "far", topic, "--data", topic)
    events = heard.finish().data["events"]
    topics = [event["topic"] for event in events]
    pair.expect("topics", topics, ["fleet.health", "fleet.a.b"])


@row("set-webhook and an event", stage=WEBHOOK, fresh=True)
def _webhook(pair: Pair) -> None:
    with receiving() as (url, posts):
        pair.hidden[url] = "<url>"
        pair.near.do("set-webhook", url)
        pair.far.prepare("send-message", "near", "--data", "hello")
        pair.wait("events", lambda: set(EVENT_NAMES) <= {e["event"] for e, _ in posts})
        for event, is_signed in list(posts):
            pair.expect(f"{event['event']} signed", is_signed, True)
        for name in EVENT_NAMES:
            event = next(event for event, _ in posts if event["event"] == name)
            pair.record(f"event {name}", event)
        pair.near.do("clear-webhook")
        pair.near.do("config")


@row("set-webhook refused", local=True)
def _webhook_refused(pair: Pair) -> None:
    pair.near.do("set-webhook", "ftp://127.0.0.1/")
    pair.near.do("set-webhook")


@contextlib.contextmanager
def receiving() -> Iterator[tuple[str, list[tuple[dict[str, Any], bool]]]]:
    """Yield the URL of a web server and the events it gets, each with its check."""
    posts: list[tuple[dict[str, Any], bool]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            expected = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
            given = self.headers.get("X-Pilot-Signature-256", "")
            posts.append((json.loads(body), given == expected))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Keep the matrix free of access lines."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook", posts
        finally:
            server.shutdown()
            thread.join()
