"""Signed request envelopes, against a recorded one."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.address import Address
from pilotfleet.protocol.identity import decode_key_text, verify
from pilotfleet.protocol.ipc.envelope import Envelope, body_digest
from tests.protocol.ipc.vectors import REQUEST_SIGNATURE

TEXT = REQUEST_SIGNATURE["envelope"]
HASH = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4"


def test_the_recorded_envelope_is_read_and_built() -> None:
    envelope = Envelope.parse(TEXT)
    assert envelope.address == Address(0, 1)
    assert envelope.audience == "svc"
    assert envelope.body_hash == HASH
    assert envelope.text == TEXT


def test_the_recorded_signature_is_over_the_text() -> None:
    key = decode_key_text(REQUEST_SIGNATURE["public_key_b64"])
    signature = base64.b64decode(REQUEST_SIGNATURE["signature_b64"])
    assert verify(key, signature, TEXT.encode())


def test_a_body_and_its_digest_give_the_same_hash() -> None:
    assert body_digest({"audience": "svc", "body_b64": "aGk="}) == ("svc", HASH, None)
    request = {"audience": "svc", "body_hash": HASH, "nonce": "5a4cc8988eea604f"}
    assert body_digest(request) == ("svc", HASH, "5a4cc8988eea604f")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"body_b64": "aGk="}, "audience required"),
        ({"audience": "svc"}, "body_hash or body_b64 required"),
        (
            {"audience": "svc", "body_hash": HASH, "body_b64": "aGk="},
            "mutually exclusive",
        ),
        ({"audience": "svc", "body_b64": ""}, "body_hash or body_b64 required"),
        ({"audience": "SVC!", "body_b64": "aGk="}, "audience must match"),
        ({"audience": "a" * 65, "body_b64": "aGk="}, "audience must be 1-64 chars"),
        ({"audience": "svc", "body_hash": "00"}, "64 lowercase"),
        ({"audience": "svc", "body_hash": HASH, "nonce": "x"}, "16 lowercase"),
        ({"audience": "svc", "body_b64": "?"}, "not base64: .* byte 0"),
        ({"audience": "svc", "body_b64": "AAAAAAAAAA"}, "not base64: .* byte 8"),
        ({"audience": 5}, "must be a text"),
    ],
)
def test_incomplete_requests_are_refused(
    request_: dict[str, object], words: str
) -> None:
    with pytest.raises(DecodeError, match=words):
        body_digest(request_)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (TEXT, "", "want 6 fields, got 1"),
        (TEXT, "a|" * 10_000, "want 6 fields"),
        ("|svc", "|svc|", "want 6 fields, got 7"),
        ("v1", "v2", 'bad domain "pilot-req-v2"'),
        ("|000000000001|", "|00000000000A|", "address must be 12 lowercase hex chars"),
        ("|1795355870", "|01795355870", "timestamp: leading zero"),
        ("|1795355870", "|-1795355870", "timestamp: non-digit"),
        ("|1795355870", "|", "timestamp: empty"),
        ("|1795355870", "|" + "9" * 25, "timestamp: value out of range"),
        ("5a4cc8988eea604f", "5A4CC8988EEA604F", "nonce must be 16 lowercase"),
        (HASH, HASH.upper(), "body hash must be 64 lowercase"),
        ("|svc", "|", "audience must be 1-64 chars"),
        ("|svc", "|" + "a" * 65, "audience must be 1-64 chars"),
        ("|svc", "|svc\n", "audience must match"),
    ],
)
def test_other_texts_are_no_envelopes(old: str, new: str, words: str) -> None:
    assert old in TEXT
    with pytest.raises(DecodeError, match=words):
        Envelope.parse(TEXT.replace(old, new))


@pytest.mark.parametrize(
    ("skew", "window"),
    [(10, "±10s"), (90, "±1m30s"), (300, "±5m0s"), (86400, "±24h0m0s")],
)
def test_envelope_of_another_time_is_refused(skew: int, window: str) -> None:
    envelope = Envelope.parse(TEXT)
    for side in (-1, 1):
        envelope.check_time(envelope.timestamp + side * skew, skew)
        with pytest.raises(DecodeError, match=window):
            envelope.check_time(envelope.timestamp + side * (skew + 1), skew)


@given(
    node=st.integers(0, 0xFFFF_FFFF),
    timestamp=st.integers(0, 10**12),
    nonce=st.from_regex(r"\A[0-9a-f]{16}\Z"),
    audience=st.from_regex(r"\A[a-z0-9.-]{1,64}\Z"),
)
def test_building_and_reading_are_inverse(
    node: int, timestamp: int, nonce: str, audience: str
) -> None:
    envelope = Envelope(Address(0, node), timestamp, nonce, HASH, audience)
    assert Envelope.parse(envelope.text) == envelope
