"""Key exchange frames against the vectors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.tunnel.frames import (
    PUNCH,
    KeyExchange,
    decode_key_exchange,
    encode_authenticated,
    encode_key_request,
)
from tests.protocol.tunnel.support import vectors

_WIRE = vectors("wire.json")
_FRAMES = _WIRE["key_exchange"]["frames"]
_REJECTS = {v["reason"]: v["bytes"] for v in _WIRE["key_exchange"]["reject"]}


@pytest.mark.parametrize("vector", _FRAMES, ids=lambda v: v["side"])
def test_authenticated_frame_matches_the_vector(vector: dict[str, Any]) -> None:
    signer = Identity(bytes.fromhex(vector["ed25519_seed"]))
    tunnel_key = bytes.fromhex(vector["x25519_public"])
    frame = encode_authenticated(vector["node"], tunnel_key, signer)
    assert frame.hex() == vector["pila"]
    exchange = decode_key_exchange(frame)
    assert exchange == KeyExchange(
        vector["node"], tunnel_key, signer.public_key, exchange.signature
    )
    assert exchange.signature.hex() == vector["signature"]
    assert exchange.is_signed_by(signer.public_key)


@pytest.mark.parametrize("vector", _FRAMES, ids=lambda v: v["side"])
def test_key_request_matches_the_vector(vector: dict[str, Any]) -> None:
    tunnel_key = bytes.fromhex(vector["x25519_public"])
    frame = encode_key_request(vector["node"], tunnel_key)
    assert frame.hex() == vector["pilk"]
    assert decode_key_exchange(frame) == KeyExchange(vector["node"], tunnel_key)


@pytest.mark.parametrize("kind", ["pila", "pilk"])
def test_bytes_after_the_frame_are_ignored(kind: str) -> None:
    frame = bytes.fromhex(_FRAMES[0][kind])
    assert decode_key_exchange(frame + b"more") == decode_key_exchange(frame)


def test_altered_key_is_not_covered_by_the_signature() -> None:
    altered = _REJECTS["signature does not cover altered X25519 key"]
    exchange = decode_key_exchange(bytes.fromhex(altered))
    assert exchange.identity_key is not None
    assert not exchange.is_signed_by(exchange.identity_key)


@pytest.mark.parametrize(
    "data",
    [
        bytes.fromhex(_REJECTS["one byte short"]),
        bytes.fromhex(_FRAMES[0]["pilk"])[:-1],
        b"",
        b"PIL",
        b"PILS" + bytes(200),
    ],
)
def test_other_bytes_are_rejected(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_key_exchange(data)


def test_punch_packet_is_the_bare_magic() -> None:
    assert _WIRE["punch_packet"] == PUNCH.hex()


@given(st.sampled_from([b"PILA", b"PILK", b""]), st.binary(max_size=160))
def test_any_bytes_are_a_frame_or_a_decode_error(magic: bytes, body: bytes) -> None:
    try:
        exchange = decode_key_exchange(magic + body)
    except DecodeError:
        return
    assert not exchange.is_signed_by(exchange.identity_key or bytes(32))
