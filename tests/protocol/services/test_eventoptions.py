"""Options, marks and confirmations: round trips, and what is not understood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.services.eventoptions import (
    CONFIRM_REQUEST,
    MarkFrame,
    SubscribeOptions,
    asks_for_confirmation,
    decode_confirm,
    decode_mark,
    decode_options,
    decode_roll_up,
    encode_confirm,
    encode_mark,
    encode_options,
    encode_roll_up,
)
from pilotfleet.protocol.services.events import (
    CONFIRM_TOPIC,
    MARK_TOPIC,
    EventDecoder,
)

NOTHING = SubscribeOptions()
LOG = "6f0e2c1e-7e0b-4a53-9d0f-2b7b1f0a9a11"


@pytest.mark.parametrize(
    "options",
    [
        NOTHING,
        SubscribeOptions(since=600.5),
        SubscribeOptions(marks=True),
        SubscribeOptions(since=1.0, after=0, log=LOG, marks=True),
        SubscribeOptions(after=2**63 - 1, log=LOG),
    ],
)
def test_options_survive_the_way(options: SubscribeOptions) -> None:
    assert decode_options(encode_options(options)) == options


def test_no_options_are_no_payload() -> None:
    assert encode_options(NOTHING) == b""


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"{",
        b"[1]",
        b'{"since": "10m"}',
        b'{"since": true}',
        b'{"since": 0}',
        b'{"since": -1}',
        b'{"since": NaN}',
        b'{"since": Infinity}',
        b'{"since": 1e99}',
        b'{"since": ' + b"9" * 400 + b"}",
        b"{" + b" " * 5000 + b'"since": 1}',
        b'{"since":' + b"[" * 4000,
        b"{\xff}",
        b'{"after": 5}',
        b'{"after": 5, "log": ""}',
        b'{"after": 5, "log": 7}',
        b'{"after": -1, "log": "x"}',
        b'{"after": 1.5, "log": "x"}',
        b'{"after": 9223372036854775808, "log": "x"}',
        b'{"after": 5, "log": "' + b"x" * 65 + b'"}',
        b'{"marks": 1}',
        b'{"other": [1, 2]}',
    ],
)
def test_other_payloads_ask_for_nothing(payload: bytes) -> None:
    assert decode_options(payload) == NOTHING


def test_one_bad_field_leaves_the_others() -> None:
    payload = b'{"since": "x", "marks": true, "after": 1}'
    assert decode_options(payload) == SubscribeOptions(marks=True)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"{" + data))
def test_any_bytes_are_decoded_without_an_error(payload: bytes) -> None:
    decode_options(payload)
    decode_mark(payload)
    decode_confirm(payload)
    asks_for_confirmation(payload)
    assert decode_roll_up(payload) >= 0


@given(
    st.builds(
        MarkFrame,
        st.sampled_from(["", LOG]),
        st.integers(0, 2**63 - 1),
        st.floats(0, 1e11),
        st.integers(0, 2**63 - 1),
    )
)
def test_mark_survives_the_way(mark: MarkFrame) -> None:
    (event,) = EventDecoder().feed(encode_mark(mark))
    assert event.topic == MARK_TOPIC
    assert decode_mark(event.payload) == mark


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b'{"log":"","id":1,"time":1}',
        b'{"log":1,"id":1,"time":1,"lost":0}',
        b'{"log":"","id":-1,"time":1,"lost":0}',
        b'{"log":"","id":1,"time":"now","lost":0}',
        b'{"log":"","id":1,"time":1,"lost":null}',
    ],
)
def test_what_is_no_mark_is_none(payload: bytes) -> None:
    assert decode_mark(payload) is None


def test_confirmation_survives_the_way() -> None:
    (event,) = EventDecoder().feed(encode_confirm(1234))
    assert event.topic == CONFIRM_TOPIC
    assert decode_confirm(event.payload) == 1234
    assert decode_confirm(b'{"count": "many"}') is None


@pytest.mark.parametrize(
    ("payload", "expected"),
    [(CONFIRM_REQUEST, True), (b'{"confirm": 1}', False), (b"", False)],
)
def test_publisher_asks_for_confirmation(payload: bytes, *, expected: bool) -> None:
    assert asks_for_confirmation(payload) is expected


@pytest.mark.parametrize(
    ("payload", "levels"),
    [
        (encode_roll_up(3), 3),
        (b"", 0),
        (CONFIRM_REQUEST, 0),
        (b'{"roll_up": -1}', 0),
        (b'{"roll_up": true}', 0),
    ],
)
def test_broker_below_says_what_its_events_have_passed(
    payload: bytes, levels: int
) -> None:
    assert decode_roll_up(payload) == levels
