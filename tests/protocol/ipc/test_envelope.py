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
        ({"audience": "SVC!", "body_b64": ""}, "audience must be"),
        ({"audience": "svc", "body_hash": "00"}, "64 lower-case"),
        ({"audience": "svc", "body_hash": HASH, "nonce": "x"}, "16 lower-case"),
        ({"audience": "svc", "body_b64": "?"}, "not base64"),
        ({"audience": 5}, "must be a text"),
    ],
)
def test_incomplete_requests_are_refused(
    request_: dict[str, object], words: str
) -> None:
    with pytest.raises(DecodeError, match=words):
        body_digest(request_)


@pytest.mark.parametrize(
    "text",
    [
        "",
        TEXT + "|",
        TEXT[:-4],
        TEXT.replace("v1", "v2"),
        TEXT.replace("1795355870", "01795355870"),
        TEXT.replace("|svc", "|"),
        TEXT.replace("|svc", "|" + "a" * 65),
        TEXT.replace("|svc", "|svc\n"),
        "a" * 10_000,
    ],
)
def test_other_texts_are_no_envelopes(text: str) -> None:
    with pytest.raises(DecodeError):
        Envelope.parse(text)


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
