"""The same steps with an official daemon and with ours, each with a webhook."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.services.webhooksupport import Recorder
from tests.support.official import official_program
from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]

SOMETIMES: Final = {
    # The official daemon leaves it out when the key exchange came from the peer.
    "tunnel.established": {"peer_node_id"},
}
ONLY_OURS: Final = {
    # The official daemon has the names (services.md 11.3) and did not use them here.
    "tunnel.peer_added",
    "node.deregistered",
    "network.joined",
    "network.left",
}


@dataclass
class Subject:
    """A daemon under observation, and a client for it."""

    name: str
    ctl: Callable[..., subprocess.CompletedProcess[str]]
    recorder: Recorder

    def run(self, *argv: str) -> Any:
        return data_of(self.ctl(self.name, *argv))

    def wait_for(self, name: str, count: int = 1) -> None:
        self.recorder.wait_for(
            lambda events: sum(event["event"] == name for event in events) >= count
        )

    def shapes(self) -> dict[str, set[frozenset[str]]]:
        """Return each event that came with the sets of data keys it came with."""
        shapes: dict[str, set[frozenset[str]]] = {}
        for event in self.recorder.events:
            keys = set(event.get("data", ())) - SOMETIMES.get(event["event"], set())
            shapes.setdefault(event["event"], set()).add(frozenset(keys))
        return shapes


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        yield made


def test_both_daemons_tell_the_same(net: World) -> None:
    flags = ("-webhook-secret", "s3cret", "-keepalive", "3s")
    with Recorder() as first, Recorder() as second:
        theirs = Subject("theirs", net.official_ctl, first)
        ours = Subject("ours", net.ctl, second)
        net.start_official_daemon("peer", "-hostname", "peer")
        network = make_network(net)
        for subject, start in (
            (theirs, net.start_official_daemon),
            (ours, net.start_daemon),
        ):
            program = start(subject.name, "-webhook", subject.recorder.url, *flags)
            run_steps(net, subject, network)
            assert program.terminate() == 0
            subject.wait_for("daemon.shutting_down")
        expected, found = theirs.shapes(), ours.shapes()
    missing = {name: keys for name, keys in expected.items() if name not in found}
    assert not missing
    different = {
        name: (expected[name], found[name])
        for name in expected
        if not found[name] <= expected[name]
    }
    assert not different
    assert found.keys() - expected.keys() <= ONLY_OURS


def make_network(net: World) -> str:
    peer = str(data_of(net.official_ctl("peer", "info"))["node_id"])
    made = net.run_ctl_admin("network", "create", "--name", "one", "--node-id", peer)
    return str(data_of(made)["network_id"])


def run_steps(net: World, subject: Subject, network: str) -> None:
    """Let everything happen once that an event tells."""
    own = str(subject.run("info")["node_id"])
    peer = str(data_of(net.official_ctl("peer", "info"))["node_id"])
    subject.run("handshake", peer, "please")
    data_of(net.official_ctl("peer", "approve", own))
    subject.run("trust")

    subject.run("ping", peer, "--count", "1")
    data_of(net.official_ctl("peer", "ping", own, "--count", "1"))
    subject.wait_for("conn.fin", 2)
    data_of(net.official_ctl("peer", "dgram", own, "5000", "--data", "hello"))
    subject.wait_for("data.datagram")

    assert subject.ctl(
        subject.name, "connect", peer, "4000", "--message", "x"
    ).returncode
    subject.wait_for("conn.rst")

    subscriber = subprocess.Popen(
        [
            *(official_program("pilotctl"), "--json", "subscribe", own, "news"),
            *("--count", "1", "--timeout", "30s"),
        ],
        env=net.environment(PILOT_SOCKET=str(net.socket("peer"))),
        stdout=subprocess.DEVNULL,
    )
    subject.wait_for("pubsub.subscribed")
    data_of(net.official_ctl("peer", "publish", own, "news", "--data", "x"))
    assert subscriber.wait(30) == 0
    subject.wait_for("pubsub.unsubscribed", 2)

    data_of(net.official_ctl("peer", "send-message", own, "--data", "hi"))
    subject.wait_for("message.received")
    subject.run("send-message", peer, "--data", "hi")
    subject.wait_for("file.delivered")

    subject.run("network", "join", network)
    subject.run("network", "leave", network)
    subject.run("deregister")
    subject.wait_for("node.reregistered")
    subject.wait_for("agent.heartbeat")


def test_official_client_sets_our_webhook(net: World) -> None:
    net.start_daemon("ours")
    file = net.home / "ours" / "webhook_url"
    with Recorder() as recorder:
        data = data_of(net.official_ctl("ours", "set-webhook", recorder.url))
        assert data == {"applied": True, "webhook": recorder.url}
        assert file.read_text() == recorder.url
        own = str(data_of(net.ctl("ours", "info"))["node_id"])
        data_of(net.ctl("ours", "ping", own, "--count", "1"))
        recorder.wait_for(lambda events: "conn.fin" in [e["event"] for e in events])
        assert recorder.events[0]["event_id"] == 1
        data = data_of(net.official_ctl("ours", "clear-webhook"))
        assert data == {"applied": True, "webhook": ""}
    assert not file.exists()


@pytest.mark.parametrize("daemon", ["ours", "theirs"])
def test_both_daemons_refuse_the_same_urls(net: World, daemon: str) -> None:
    start = net.start_daemon if daemon == "ours" else net.start_official_daemon
    start(daemon)
    for url in ("http://169.254.169.254/", "http://metadata.google.internal/"):
        # The official client keeps the URL all the same, and says "applied": false.
        assert data_of(net.official_ctl(daemon, "set-webhook", url))["applied"] is False
        refused = net.ctl(daemon, "set-webhook", url)
        assert refused.returncode == 1
        assert "URL cannot target" in refused.stderr
