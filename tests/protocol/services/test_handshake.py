"""The trust message, against recorded ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.services.handshake import (
    HandshakeMessage,
    Kind,
    ReplayMemory,
    decode_message,
    encode_message,
    is_fresh,
    is_signed_by,
    make_message,
    signed_text,
)

_FILE = Path(__file__).parents[2] / "vectors" / "services.json"
_SERVICES: dict[str, Any] = json.loads(_FILE.read_text())
VECTORS: dict[str, Any] = _SERVICES["handshake"]
IDENTITY = Identity(bytes.fromhex(_SERVICES["key"]["ed25519_seed_hex"]))
WALL = 1795356282


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda v: v["name"])
def test_messages_are_byte_for_byte_the_recorded_ones(vector: dict[str, str]) -> None:
    name = vector["name"]
    message = make_message(
        Kind(f"handshake_{name}"),
        IDENTITY,
        sender=1,
        receiver=2,
        wall=WALL + 0.9,
        justification='plain <hello> & "q"' if name == "request" else "",
        reason="no thanks" if name == "reject" else "",
    )
    assert encode_message(message).decode() == vector["json"]
    assert decode_message(vector["json"].encode()) == message


def test_the_captured_request_is_signed_as_specified() -> None:
    captured = VECTORS["captured_v1_18_request"]
    message = decode_message(captured["json"].encode())
    assert message.justification == 'plain <hello> & "q"'
    assert signed_text(message.node_id, 7) == captured["signed_text"]
    assert is_signed_by(message, message.public_key, 7)
    assert not is_signed_by(message, message.public_key, 8)
    assert not is_signed_by(message, IDENTITY.public_key_text, 7)


def test_a_broken_key_or_signature_is_no_signature() -> None:
    message = HandshakeMessage("handshake_request", 1, signature="%%%")
    assert not is_signed_by(message, IDENTITY.public_key_text, 2)
    assert not is_signed_by(message, "", 2)


def test_keys_may_come_in_any_order_and_number() -> None:
    message = decode_message(b'{"extra":1,"node_id":5,"type":"handshake_reject"}')
    assert message == HandshakeMessage("handshake_reject", 5)


@pytest.mark.parametrize(
    ("age", "fresh"), [(0, True), (300, True), (301, False), (-30, True), (-31, False)]
)
def test_a_timestamp_may_be_a_little_off(age: int, fresh: bool) -> None:
    message = HandshakeMessage("handshake_accept", 5, timestamp=WALL - age)
    assert is_fresh(message, WALL) is fresh


@given(st.binary(max_size=300))
def test_garbage_gives_our_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_message(data)


@pytest.mark.parametrize("node", [0, -1, 1 << 32])
def test_a_node_number_must_be_one(node: int) -> None:
    with pytest.raises(DecodeError):
        decode_message(b'{"type":"handshake_request","node_id":%d}' % node)


@given(
    st.builds(
        HandshakeMessage,
        type=st.sampled_from([kind.value for kind in Kind]),
        node_id=st.integers(1, 0xFFFF_FFFF),
        justification=st.text(st.characters(exclude_categories=["Cs"])),
        timestamp=st.integers(0, 2**40),
    )
)
def test_encoding_and_decoding_are_inverse(message: HandshakeMessage) -> None:
    assert decode_message(encode_message(message)) == message


def test_a_message_is_admitted_once_in_ten_minutes() -> None:
    memory = ReplayMemory()
    assert memory.admit(("a",), 0.0)
    assert not memory.admit(("a",), 599.0)
    assert memory.admit(("b",), 599.0)
    assert memory.admit(("a",), 601.0)


def test_a_full_memory_refuses() -> None:
    memory = ReplayMemory()
    assert all(memory.admit((number,), 0.0) for number in range(8192))
    assert not memory.admit(("new",), 1.0)
    assert memory.admit(("new",), 601.0)
