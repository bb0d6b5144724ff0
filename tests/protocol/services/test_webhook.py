from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import InvalidArgument, PermissionDenied, PilotError
from pilotfleet.protocol.services.webhook import (
    FAILURES_TO_OPEN,
    OPEN_S,
    PAUSES_S,
    QUEUE_LIMIT,
    DeliveryQueue,
    Target,
    check_address,
    encode_event,
    parse_url,
    sign_body,
)

TIME_NS = 1_795_355_648_714_933_279


def offer(queue: DeliveryQueue, now: float = 0.0, event: str = "conn.fin") -> bool:
    return queue.offer(event, {"n": 1}, node_id=7, timestamp_ns=TIME_NS, now=now)


def next_id(queue: DeliveryQueue) -> int | None:
    body = queue.begin()
    return None if body is None else int(json.loads(body)["event_id"])


def fail_one(queue: DeliveryQueue, now: float) -> None:
    """Offer an event and fail all its tries."""
    assert offer(queue, now)
    assert queue.begin() is not None
    pauses = [queue.finish(500, now) for _ in range(3)]
    assert pauses == [*PAUSES_S, None]


# The body.


def test_body_is_the_one_of_the_reference() -> None:
    # Recorded from the official daemon (services.md section 11.2).
    body = encode_event(1, "node.registered", 1, TIME_NS, {"address": "0:0000.0000.1"})
    assert body == (
        b'{"event_id":1,"event":"node.registered","node_id":1,'
        b'"timestamp":"2026-11-22T13:54:08.714933279Z",'
        b'"data":{"address":"0:0000.0000.1"}}'
    )


def test_empty_data_is_left_out() -> None:
    assert "data" not in json.loads(encode_event(1, "node.deregistered", 1, 0, {}))


def test_nanoseconds_are_kept() -> None:
    body = json.loads(encode_event(1, "x", 1, TIME_NS - 714_933_278, {}))
    assert body["timestamp"] == "2026-11-22T13:54:08.000000001Z"


def test_text_that_is_no_unicode_still_makes_a_body() -> None:
    body = encode_event(1, "pubsub.published", 1, 0, {"topic": "\ud800<>&"})
    assert json.loads(body)["data"]["topic"] == "\ud800<>&"


def test_signature_is_plain_hex_over_the_body() -> None:
    # RFC 4231, test case 2.
    signature = sign_body("Jefe", b"what do ya want for nothing?")
    assert signature == (
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


# The policy.


def test_events_leave_in_order_and_are_counted_from_1() -> None:
    queue = DeliveryQueue()
    for _ in range(3):
        assert offer(queue)
    ids = []
    while (number := next_id(queue)) is not None:
        ids.append(number)
        assert queue.finish(200, 0.0) is None
    assert ids == [1, 2, 3]
    assert queue.counters.delivered == 3


@pytest.mark.parametrize("status", [200, 204, 301, 399])
def test_anything_below_400_is_a_delivery(status: int) -> None:
    queue = DeliveryQueue()
    offer(queue)
    queue.begin()
    assert queue.finish(status, 0.0) is None
    assert queue.counters.delivered == 1


@pytest.mark.parametrize("status", [400, 404, 429, 499])
def test_a_refusal_is_not_repeated(status: int) -> None:
    queue = DeliveryQueue()
    offer(queue)
    queue.begin()
    assert queue.finish(status, 0.0) is None
    assert (queue.counters.refused, queue.counters.failed) == (1, 0)


@pytest.mark.parametrize("status", [500, 503, 599, None])
def test_a_failure_is_tried_three_times(status: int | None) -> None:
    queue = DeliveryQueue()
    offer(queue)
    queue.begin()
    assert queue.finish(status, 0.0) == 1.0
    assert queue.finish(status, 1.0) == 2.0
    assert queue.finish(status, 3.0) is None
    assert queue.counters.failed == 1


def test_tries_are_counted_for_each_event() -> None:
    queue = DeliveryQueue()
    offer(queue)
    offer(queue)
    queue.begin()
    assert queue.finish(None, 0.0) == 1.0
    assert queue.finish(200, 0.0) is None
    queue.begin()
    assert queue.finish(None, 0.0) == 1.0


def test_a_full_queue_drops_the_new_event() -> None:
    queue = DeliveryQueue()
    for _ in range(QUEUE_LIMIT):
        assert offer(queue)
    assert not offer(queue)
    assert (queue.counters.dropped, len(queue)) == (1, QUEUE_LIMIT)
    assert next_id(queue) == 1
    # The receiver sees by the gap that something is missing.
    assert offer(queue)
    ids = [next_id(queue) for _ in range(QUEUE_LIMIT)]
    assert ids[-2:] == [QUEUE_LIMIT, QUEUE_LIMIT + 2]


def test_five_failed_events_open_the_circuit_for_30_s() -> None:
    queue = DeliveryQueue()
    for _ in range(FAILURES_TO_OPEN - 1):
        fail_one(queue, 100.0)
    offer(queue, 100.0)
    offer(queue, 100.0)
    queue.begin()
    for _ in range(3):
        queue.finish(None, 100.0)
    assert queue.is_open
    # What waits behind the fifth is thrown away, and so is what comes.
    assert queue.begin() is None
    assert not offer(queue, 100.0 + OPEN_S - 0.1)
    assert (queue.counters.failed, queue.counters.skipped) == (5, 2)


def test_a_success_between_failures_keeps_the_circuit_closed() -> None:
    queue = DeliveryQueue()
    for _ in range(FAILURES_TO_OPEN - 1):
        fail_one(queue, 0.0)
    offer(queue)
    queue.begin()
    queue.finish(404, 0.0)
    fail_one(queue, 0.0)
    assert not queue.is_open


@pytest.fixture
def open_queue() -> DeliveryQueue:
    queue = DeliveryQueue()
    for _ in range(FAILURES_TO_OPEN):
        fail_one(queue, 0.0)
    assert queue.is_open
    return queue


def test_after_30_s_one_success_closes_the_circuit(open_queue: DeliveryQueue) -> None:
    assert offer(open_queue, OPEN_S)
    assert offer(open_queue, OPEN_S)
    assert next_id(open_queue) == 6
    assert open_queue.finish(200, OPEN_S) is None
    assert next_id(open_queue) == 7
    for _ in range(3):
        open_queue.finish(500, OPEN_S)
    assert not open_queue.is_open


def test_after_30_s_one_failure_opens_it_again(open_queue: DeliveryQueue) -> None:
    fail_one(open_queue, OPEN_S)
    assert open_queue.is_open
    assert not offer(open_queue, 2 * OPEN_S - 0.1)
    assert offer(open_queue, 2 * OPEN_S)


@given(
    st.lists(
        st.tuples(st.sampled_from(["offer", "begin", "finish"]), st.integers(0, 40)),
        max_size=200,
    )
)
def test_every_event_is_accounted_for(steps: list[tuple[str, int]]) -> None:
    queue = DeliveryQueue()
    now, offered, is_busy = 0.0, 0, False
    for step, number in steps:
        now += number / 4
        if step == "offer":
            offer(queue, now)
            offered += 1
        elif step == "begin" and not is_busy:
            is_busy = queue.begin() is not None
        elif step == "finish" and is_busy:
            status = (200, 404, 500, None)[number % 4]
            is_busy = queue.finish(status, now) is not None
    counters = queue.counters
    ended = counters.delivered + counters.refused + counters.failed
    thrown_away = counters.dropped + counters.skipped
    assert ended + thrown_away + len(queue) + is_busy == offered


# Where events may go.


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://127.0.0.1:9/x", Target("127.0.0.1", 9, False, "/x", "")),
        ("HTTPS://Example.com", Target("example.com", 443, True, "/", "")),
        ("http://[::1]:80/a?b=c#d", Target("::1", 80, False, "/a?b=c", "")),
        ("http://u:p%40@h/", Target("h", 80, False, "/", "Basic dTpwQA==")),
        ("http://bücher./ü", Target("xn--bcher-kva", 80, False, "/%C3%BC", "")),
        ("http://192.168.1.1/", Target("192.168.1.1", 80, False, "/", "")),
    ],
)  # fmt: skip
def test_good_urls(url: str, target: Target) -> None:
    assert parse_url(url) == target


def test_host_header_names_other_ports_only() -> None:
    assert parse_url("https://a:443/").authority == "a"
    assert parse_url("http://a:443/").authority == "a:443"
    assert parse_url("http://[::1]:8/").authority == "[::1]:8"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        # The first seven are the words of the official daemon.
        ("ftp://x/", 'URL must use http or https scheme, got "ftp"'),
        ("foo", 'URL must use http or https scheme, got ""'),
        ("//x/y", 'URL must use http or https scheme, got ""'),
        ("http://", "URL must have a host"),
        ("http:/x", "URL must have a host"),
        ("http://[fe80::1]/", "URL cannot target link-local address fe80::1"),
        (
            "http://metadata.azure.com",
            "URL cannot target cloud metadata endpoint metadata.azure.com",
        ),
        (
            "http://METADATA.google.internal./x",
            "URL cannot target cloud metadata endpoint metadata.google.internal",
        ),
        ("http://a b/", "invalid URL: it has a space or a control character"),
        ("http://a/\r\nX: y", "invalid URL: it has a space or a control character"),
        ("http://x:99999/", "invalid URL: Port out of range 0-65535"),
        ("http://x/" + "a" * 9000, "URL is too long: 9009 characters (max 8192)"),
    ],
)
def test_refused_urls(url: str, message: str) -> None:
    with pytest.raises(InvalidArgument if "cannot" not in message else PilotError) as e:
        parse_url(url)
    assert str(e.value) == message


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "::ffff:169.254.169.254", "fe80::1"),
        *("fe80::1%2", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "100.100.100.200"),
    ],
)
def test_refused_addresses(address: str) -> None:
    with pytest.raises(PermissionDenied):
        check_address(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.1", "8.8.8.8"])
def test_allowed_addresses(address: str) -> None:
    check_address(address)


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    for url in (text, f"http://{text}", f"http://h/{text}"):
        try:
            target = parse_url(url)
        except PilotError:
            continue
        assert target.path.isascii()
        assert target.host.isascii()
        assert not set(target.path + target.host) & set(" \r\n\t\0")
