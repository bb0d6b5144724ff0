"""Reading JSON messages by the rules of the wire."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry import messages


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (7.0, 7),
        (7.9, 7),
        (0xFFFF_FFFF, 0xFFFF_FFFF),
        (0x1_0000_0000, 0),
        (-1, 0),
        (-0.5, 0),
        (True, 0),
        ("7", 0),
        (None, 0),
        ([7], 0),
        (math.inf, 0),
        (math.nan, 0),
        (10**400, 0),
    ],
)
def test_a_number_out_of_its_range_counts_as_zero(value: Any, expected: int) -> None:
    assert messages.node_number({"node_id": value}) == expected


def test_missing_fields_read_as_empty() -> None:
    assert messages.node_number({}) == 0
    assert messages.network_number({"network_id": 65_536}) == 0
    assert messages.text({"x": 5}, "x") == ""
    assert messages.flag({"x": 1}, "x") is False
    assert messages.texts({"x": "abc"}, "x") == []
    assert messages.texts({"x": ["a", 1, None, "b"]}, "x") == ["a", "b"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b"null", b"{", b'{"a":1}x', b"\xff", b'{"\xff":1}']
)
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        messages.decode_request(body)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(DecodeError):
        messages.decode_request(b'{"a":' + b"[" * 100_000)


def test_error_reply_carries_its_facts() -> None:
    reply = messages.error_reply("rate limited", retry_after=2)
    assert reply == {"type": "error", "error": "rate limited", "retry_after": 2}


@given(st.binary(max_size=200))
def test_random_bytes_give_a_message_or_a_decode_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        messages.decode_request(data)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.text()))
def test_encoding_is_undone_by_decoding(message: dict[str, Any]) -> None:
    assert messages.decode_request(messages.encode_message(message)) == message
