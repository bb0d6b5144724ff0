"""Webhooks against a real HTTP server, with agents on a real rendezvous."""

from __future__ import annotations

import hashlib
import hmac
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import ConnectionRefused, InvalidArgument, PilotError
from pilotfleet.protocol.address import SocketAddress
from pilotfleet.protocol.services import webhook as policy
from pilotfleet.protocol.services.events import EVENT_PORT, Event, encode_event
from pilotfleet.services import webhook
from pilotfleet.services.events.broker import EventBroker
from pilotfleet.services.webhook import WebhookService
from tests.node.support import World, echo, eventually, open_world
from tests.services.webhooksupport import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as made:
        yield made


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as made:
        yield made


@pytest.fixture
async def hooked(
    world: World, recorder: Recorder
) -> AsyncIterator[tuple[WebhookService, Agent]]:
    """Yield an agent whose events go to the recorder, and what brings them there."""
    host = world.host("a", "alice")
    async with WebhookService(host, url=recorder.url) as service, host:
        yield service, host.default_agent


@pytest.fixture
def alice(hooked: tuple[WebhookService, Agent]) -> Agent:
    return hooked[1]


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "PAUSES_S", (0.01, 0.01))


async def came(recorder: Recorder, *names: str) -> list[dict[str, Any]]:
    """Wait until the last of ``names`` came; return these events, in order."""
    await eventually(lambda: set(names) <= set(recorder.names()), what=f"{names}")
    events = {event["event"]: event for event in recorder.events}
    return [events[name] for name in names]


async def has_nothing_to_do(service: WebhookService) -> None:
    await eventually(lambda: not len(service._tasks), what="everything is delivered")


# Delivery.


async def test_events_come_in_order_and_are_numbered(
    alice: Agent, recorder: Recorder
) -> None:
    for number in range(50):
        alice.report("test.event", number=number)
    await eventually(lambda: len(recorder.deliveries) == 52, what="all events")
    events = recorder.events
    assert [event["event_id"] for event in events] == list(range(1, 53))
    assert [event["event"] for event in events[:3]] == [
        *("node.registered", "agent.registered", "test.event")
    ]
    assert [event["data"]["number"] for event in events[2:]] == list(range(50))
    assert {event["node_id"] for event in events} == {alice.node_id}


async def test_delivery_is_signed_over_its_very_bytes(
    world: World, recorder: Recorder
) -> None:
    host = world.host("a", "alice")
    async with WebhookService(host, url=recorder.url, secret="s3cret"), host:
        await came(recorder, "agent.registered")
    for delivery in recorder.deliveries:
        digest = hmac.new(b"s3cret", delivery.body, hashlib.sha256).hexdigest()
        assert delivery.headers["x-pilot-signature-256"] == digest
        assert delivery.headers["content-type"] == "application/json"
        assert delivery.headers["host"] == f"127.0.0.1:{recorder.url.split(':')[2][:5]}"


async def test_without_a_secret_nothing_is_signed(
    alice: Agent, recorder: Recorder
) -> None:
    await came(recorder, "agent.registered")
    assert "x-pilot-signature-256" not in recorder.deliveries[0].headers


@pytest.mark.usefixtures("_impatient")
async def test_failed_delivery_is_repeated_with_the_same_body(
    alice: Agent, recorder: Recorder
) -> None:
    await came(recorder, "agent.registered")
    recorder.deliveries.clear()
    recorder.answers[:] = [500, 503, 200]
    alice.report("test.first")
    alice.report("test.second")
    await came(recorder, "test.second")
    bodies = [delivery.body for delivery in recorder.deliveries]
    assert bodies[0] == bodies[1] == bodies[2]
    assert recorder.names() == [*["test.first"] * 3, "test.second"]


@pytest.mark.usefixtures("_impatient")
async def test_refused_delivery_is_not_repeated(
    alice: Agent, recorder: Recorder
) -> None:
    await came(recorder, "agent.registered")
    recorder.deliveries.clear()
    recorder.answers[:] = [404]
    alice.report("test.first")
    alice.report("test.second")
    await came(recorder, "test.second")
    assert recorder.names() == ["test.first", "test.second"]


@pytest.mark.usefixtures("_impatient")
async def test_five_failures_open_the_circuit(world: World, recorder: Recorder) -> None:
    host, now = world.host("a", "alice"), [0.0]
    service = WebhookService(host, url=recorder.url, clock=lambda: now[0])
    async with service, host:
        agent = host.default_agent
        await came(recorder, "agent.registered")
        recorder.deliveries.clear()
        recorder.answers[:] = [500] * 15
        for _ in range(7):
            agent.report("test.lost")
        await has_nothing_to_do(service)
        assert len(recorder.deliveries) == 15
        agent.report("test.lost")
        assert agent.health()["webhook_circuit_skips"] == 3
        assert agent.info()["webhook_circuit_skips"] == 3
        now[0] = 30.0
        agent.report("test.found")
        await came(recorder, "test.found")
        assert service.counters(agent).failed == 5


async def test_full_queue_drops_and_counts(world: World, recorder: Recorder) -> None:
    recorder.hold = threading.Event()
    host = world.host("a", "alice")
    async with WebhookService(host, url=recorder.url), host:
        agent = host.default_agent
        await eventually(lambda: recorder.deliveries, what="the first event")
        # One is on its way and one waits; the last two find no room.
        for number in range(policy.QUEUE_LIMIT + 1):
            agent.report("test.event", number=number)
        assert agent.health()["webhook_queue_dropped"] == 2
        recorder.hold.set()
        await eventually(
            lambda: len(recorder.deliveries) == policy.QUEUE_LIMIT + 1, what="the rest"
        )
    assert recorder.events[-2]["data"]["number"] == policy.QUEUE_LIMIT - 2


async def test_what_waits_is_delivered_at_the_end(
    world: World, recorder: Recorder
) -> None:
    recorder.hold = threading.Event()
    host = world.host("a", "alice")
    async with WebhookService(host, url=recorder.url):
        async with host:
            await eventually(lambda: recorder.deliveries, what="the first event")
            host.default_agent.report("test.last")
        recorder.hold.set()
    assert recorder.names()[-2:] == ["test.last", "daemon.shutting_down"]
    data = recorder.events[-1]["data"]
    assert set(data) == {"uptime_seconds", "known_peers", "open_connections"}


async def test_a_receiver_that_hangs_holds_the_end_up_only_for_a_while(
    world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "DRAIN_S", 0.05)
    recorder.hold = threading.Event()
    host = world.host("a", "alice")
    async with WebhookService(host, url=recorder.url), host:
        await eventually(lambda: recorder.deliveries, what="the first event")
    assert len(recorder.deliveries) == 1


@pytest.mark.usefixtures("_impatient")
async def test_answer_that_comes_too_late_is_none(
    world: World, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhook, "REQUEST_S", 0.05)
    recorder.hold = threading.Event()
    host = world.host("a", "alice")
    async with WebhookService(host, url=recorder.url) as service, host:
        counters = service.counters(host.default_agent)
        await eventually(lambda: counters.failed, what="the first event failed")
        recorder.hold.set()


async def test_redirect_is_not_followed(world: World, recorder: Recorder) -> None:
    recorder.answers[:] = [307, 302]
    with Recorder() as elsewhere:
        recorder.location = elsewhere.url
        host = world.host("a", "alice")
        async with WebhookService(host, url=recorder.url), host:
            await came(recorder, "agent.registered")
        assert not elsewhere.deliveries
    assert recorder.names()[:2] == ["node.registered", "agent.registered"]


async def test_long_answers_are_not_read(alice: Agent, recorder: Recorder) -> None:
    await came(recorder, "agent.registered")
    recorder.trailer = bytes(20 << 20)
    alice.report("test.first")
    alice.report("test.second")
    await came(recorder, "test.first", "test.second")


@pytest.mark.usefixtures("_impatient")
async def test_nobody_there_is_a_failure_like_others(world: World) -> None:
    host = world.host("a", "alice")
    async with WebhookService(host, url="http://127.0.0.1:1/"), host:
        await echo(host.default_agent, host.default_agent)


# Setting.


async def test_agents_without_a_url_cost_nothing(
    world: World, recorder: Recorder
) -> None:
    host = world.host("a", "alice", "bob")
    service = WebhookService(host)
    async with service, host:
        alice, bob = host.agents.values()
        assert host.event_sink is None
        await service.set_url(bob, recorder.url)
        alice.report("test.alice")
        bob.report("test.bob")
        await came(recorder, "test.bob")
        assert recorder.names() == ["test.bob"]
        await has_nothing_to_do(service)
        await service.set_url(bob, "")
        assert host.event_sink is None


async def test_url_set_at_run_time_outlives_the_daemon(
    world: World, recorder: Recorder
) -> None:
    host = world.host("a", "alice")
    service = WebhookService(host)
    async with service, host:
        request = {"url": recorder.url}
        await host.extensions["webhook.set"](None, host.default_agent, request)  # type: ignore[arg-type]
        file = host.default_agent.home / "webhook_url"
        assert file.read_text() == recorder.url
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    recorder.deliveries.clear()
    host = world.host("a", "alice")
    service = WebhookService(host)
    async with service, host:
        (registered,) = await came(recorder, "node.registered")
        assert registered["event_id"] == 1
        await service.set_url(host.default_agent, "")
        assert not file.exists()


@pytest.mark.usefixtures("_impatient")
async def test_another_url_counts_from_1(
    hooked: tuple[WebhookService, Agent], recorder: Recorder
) -> None:
    service, alice = hooked
    await came(recorder, "agent.registered")
    with Recorder() as second:
        await service.set_url(alice, second.url)
        alice.report("test.event")
        (event,) = await came(second, "test.event")
        assert event["event_id"] == 1
    assert recorder.names() == ["node.registered", "agent.registered"]


async def test_what_waits_for_the_old_url_is_thrown_away(
    hooked: tuple[WebhookService, Agent], recorder: Recorder
) -> None:
    service, alice = hooked
    await came(recorder, "agent.registered")
    await has_nothing_to_do(service)
    recorder.hold = threading.Event()
    alice.report("test.first")
    alice.report("test.waits")
    await came(recorder, "test.first")
    await service.set_url(alice, "")
    recorder.hold.set()
    await has_nothing_to_do(service)
    assert recorder.names()[-1] == "test.first"


@pytest.mark.parametrize("url", ["ftp://x/", "http://169.254.169.254/", "http://"])
async def test_bad_url_leaves_the_old_one(
    hooked: tuple[WebhookService, Agent], recorder: Recorder, url: str
) -> None:
    service, alice = hooked
    with pytest.raises(PilotError):
        await service.set_url(alice, url)
    alice.report("test.event")
    await came(recorder, "test.event")


async def test_flag_with_a_bad_url_is_refused(world: World) -> None:
    with pytest.raises(InvalidArgument):
        WebhookService(world.host("a", "alice"), url="gopher://x")


async def test_damaged_file_does_not_stop_the_agent(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    host = world.host("a", "alice")
    home = host.config.agents[0].home
    home.mkdir(parents=True)
    (home / "webhook_url").write_text("http://169.254.169.254/latest")
    async with WebhookService(host), host:
        assert host.event_sink is None
    assert "link-local" in caplog.text
    assert "latest" not in caplog.text


# What is told.


async def test_streams_are_told_on_both_sides(world: World, recorder: Recorder) -> None:
    with Recorder() as other:
        a, b = world.host("a", "alice"), world.host("b", "bob")
        async with (
            WebhookService(a, url=recorder.url),
            WebhookService(b, url=other.url),
            a,
            b,
        ):
            alice, bob = a.default_agent, b.default_agent
            await echo(alice, bob)
            (fin,) = await came(recorder, "conn.fin")
            with pytest.raises(ConnectionRefused):
                await alice.dial(SocketAddress(bob.address, 4000), timeout=10)
            (rst,) = await came(recorder, "conn.rst")
            (syn, established) = await came(
                other, "conn.syn_received", "conn.established"
            )
            (tunnel, added) = await came(
                recorder, "tunnel.established", "tunnel.peer_added"
            )
        assert fin["data"] == {
            **{"conn_id": 1, "remote_addr": str(bob.address), "remote_port": 7},
            "local_port": syn["data"]["src_port"],
        }
        assert rst["data"]["remote_port"] == 4000
        assert established["data"] == syn["data"]
        assert syn["data"] == {
            **{"conn_id": 1, "src_addr": str(alice.address), "dst_port": 7},
            "src_port": fin["data"]["local_port"],
        }
        assert tunnel["data"] == {
            **{"peer_node_id": bob.node_id, "authenticated": True},
            **{"relay": False, "rekeyed": False},
        }
        assert set(added["data"]) == {"peer_node_id", "endpoint"}


async def test_datagrams_are_told(world: World, recorder: Recorder) -> None:
    a, b = world.host("a", "alice"), world.host("b", "bob")
    async with WebhookService(b, url=recorder.url), a, b:
        alice, bob = a.default_agent, b.default_agent
        await alice.send_datagram(SocketAddress(bob.address, 5000), b"hello")
        (event,) = await came(recorder, "data.datagram")
        data = event["data"]
        assert data.pop("src_port") >= 49152
        assert data == {"src_addr": str(alice.address), "dst_port": 5000, "size": 5}


async def test_who_is_kept_out_is_told(world: World, recorder: Recorder) -> None:
    a, b = world.host("a", "alice"), world.host("b", "bob")
    async with WebhookService(b, url=recorder.url), a, b:
        alice, bob = a.default_agent, b.default_agent
        await echo(alice, bob)
        bob.is_public = bob.streams.is_public = False
        await alice.send_datagram(SocketAddress(bob.address, 5000), b"hello")
        (datagram,) = await came(recorder, "datagram.rejected")
        with pytest.raises(PilotError):
            await alice.dial(SocketAddress(bob.address, 7), timeout=0.3)
        (syn,) = await came(recorder, "syn.rejected")
        assert (datagram["data"], syn["data"]) == ({"dst_port": 5000}, {"dst_port": 7})


async def test_too_many_streams_are_told(world: World, recorder: Recorder) -> None:
    a = world.host("a", "alice")
    b = world.host("b", "bob", syn_rate=2)
    async with WebhookService(b, url=recorder.url), a, b:
        alice, bob = a.default_agent, b.default_agent
        for _ in range(3):
            await echo(alice, bob)
        (event,) = await came(recorder, "security.syn_rate_limited")
        source = hashlib.sha256(str(alice.address).encode()).hexdigest()[:16]
        assert event["data"]["src_addr_hash"] == source
        assert set(event["data"]) == {"src_addr_hash", "src_port"}


async def test_listed_nodes_may_open_as_many_streams_as_they_like(
    world: World, recorder: Recorder
) -> None:
    a = world.host("a", "alice")
    async with a:
        alice = a.default_agent
        b = world.host("b", "bob", syn_rate=1, syn_whitelist={alice.node_id})
        async with WebhookService(b, url=recorder.url), b:
            for _ in range(5):
                await echo(alice, b.default_agent)
        assert "security.syn_rate_limited" not in recorder.names()


async def test_idle_stream_is_ended_and_told(world: World, recorder: Recorder) -> None:
    a, b = world.host("a", "alice"), world.host("b", "bob", idle_timeout_s=0.5)
    async with WebhookService(b, url=recorder.url), a, b:
        remote = SocketAddress(b.default_agent.address, 7)
        stream = await a.default_agent.dial(remote, timeout=10)
        assert await stream.read() == b""
        events = await came(recorder, "conn.idle_timeout", "conn.fin")
        assert events[0]["data"] == events[1]["data"]


async def test_broker_tells_of_subscribers_and_publications(
    world: World, recorder: Recorder
) -> None:
    a, b = world.host("a", "alice"), world.host("b", "bob")
    broker = EventBroker(b)
    b.services[EVENT_PORT] = broker.handle
    async with WebhookService(b, url=recorder.url), a, b:
        remote = SocketAddress(b.default_agent.address, EVENT_PORT)
        async with await a.default_agent.dial(remote, timeout=10) as stream:
            await stream.write(encode_event("news", b"") + encode_event("news", b"abc"))
            subscribed, published = await came(
                recorder, "pubsub.subscribed", "pubsub.published"
            )
        (unsubscribed,) = await came(recorder, "pubsub.unsubscribed")
        who = subscribed["data"]["remote"]
        assert who.startswith(f"{a.default_agent.address}:")
        assert subscribed["data"] == {"topic": "news", "remote": who}
        assert unsubscribed["data"] == {"topic": "news", "remote": who}
        assert published["data"] == {"topic": "news", "size": 3, "from": who}
        await broker.publish(b.default_agent, Event("own", b"1"))
        await eventually(
            lambda: recorder.events[-1]["data"].get("topic") == "own", what="own event"
        )


async def test_a_node_that_the_registry_lost_tells_its_return(
    world: World, recorder: Recorder
) -> None:
    host: Host = world.host("a", "alice", keepalive_s=0.5)
    async with WebhookService(host, url=recorder.url), host:
        await came(recorder, "agent.heartbeat")
        await host.default_agent.registry(
            "deregister", node_id=host.default_agent.node_id
        )
        await eventually(
            lambda: recorder.names().count("agent.registered") == 2, what="the return"
        )
        (again, agent) = await came(recorder, "node.reregistered", "agent.registered")
        assert again["data"] == {"address": str(host.default_agent.address)}
        assert agent["data"]["reregistered"] is True
