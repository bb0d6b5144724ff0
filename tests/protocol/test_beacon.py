"""Beacon messages against both vector files, and against anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.beacon import (
    BeaconMessage,
    Delivery,
    Discover,
    Grant,
    Notify,
    PunchCommand,
    PunchRequest,
    Reflection,
    Relay,
    Sync,
    decode_message,
    is_beacon_message,
)
from pilotfleet.protocol.identity import Identity, verify
from tests.protocol.tunnel.support import vectors

_WIRE = {vector["name"]: vector for vector in vectors("wire.json")["beacon"]}
_COMPUTED = vectors("beacon.json")["computed"]
_CAPTURED = vectors("beacon.json")["captured"]

_KEY_A = Identity(bytes(range(32)))
_KEY_B = Identity(bytes(range(32, 64)))
_V4 = ("203.0.113.5", 4000)
_V6 = ("2001:db8::5", 4000)
_FRAME = bytes.fromhex(_WIRE["relay (client to beacon)"]["inner"])

_FROM_WIRE: list[tuple[str, BeaconMessage]] = [
    ("discover", Discover(1001)),
    ("discover, no id yet", Discover(0)),
    ("discover reply v4", Reflection(("203.0.113.7", 40001))),
    ("discover reply v6", Reflection(("2001:db8::7", 40001))),
    ("punch request", PunchRequest(1001, 3002)),
    ("punch command v4", PunchCommand(("203.0.113.7", 40001))),
    ("relay (client to beacon)", Relay(1001, 3002, _FRAME)),
    ("relay deliver (beacon to client)", Delivery(1001, _FRAME)),
    ("discover-ex", Discover(1001, extended=True)),
    ("relay deliver with destination", Delivery(1001, _FRAME, 3002)),
    ("notify, handshake waiting", Notify()),
]
_FROM_BEACON: list[tuple[str, BeaconMessage]] = [
    ("discover", Discover(1)),
    ("discover_with_key", Discover(1, _KEY_A.public_key)),
    ("discover_ex", Discover(1, extended=True)),
    ("discover_reply_v4", Reflection(_V4)),
    ("discover_reply_v6", Reflection(_V6)),
    ("punch_request", PunchRequest(1, 2)),
    ("punch_command", PunchCommand(_V4)),
    ("relay", Relay(1, 2, bytes.fromhex("deadbeef"))),
    ("relay_deliver", Delivery(1, bytes.fromhex("deadbeef"))),
    ("relay_deliver_dest", Delivery(1, bytes.fromhex("deadbeef"), 2)),
    ("sync", Sync(3, (1, 2))),
    ("notify", Notify(1)),
]


@pytest.mark.parametrize(("name", "message"), _FROM_WIRE)
def test_wire_vectors_encode_and_decode(name: str, message: BeaconMessage) -> None:
    data = bytes.fromhex(_WIRE[name]["bytes"])
    assert message.encode() == data
    assert decode_message(data) == message


@pytest.mark.parametrize(("name", "message"), _FROM_BEACON)
def test_beacon_vectors_encode_and_decode(name: str, message: BeaconMessage) -> None:
    data = bytes.fromhex(_COMPUTED[name]["hex"])
    assert message.encode() == data
    assert decode_message(data) == message


@pytest.mark.parametrize("vector", _CAPTURED, ids=lambda v: v["kind"])
def test_captured_messages_are_reproduced(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    assert decode_message(data).encode() == data


def test_every_vector_is_used() -> None:
    used = {name for name, _ in _FROM_WIRE}
    assert set(_WIRE) - used == {"punch command, v4-mapped in 16 bytes"}
    used = {name for name, _ in _FROM_BEACON}
    assert set(_COMPUTED) - used == {"punch_request_with_grant", "punch_packet"}


def test_mapped_address_is_read_and_written_as_ipv4() -> None:
    vector = _WIRE["punch command, v4-mapped in 16 bytes"]
    message = decode_message(bytes.fromhex(vector["bytes"]))
    assert message == PunchCommand((vector["ip"], vector["port"]))
    mapped = PunchCommand(("::ffff:203.0.113.7", 40001))
    assert mapped.encode().hex() == _WIRE["punch command v4"]["bytes"]


def test_punch_grant_is_signed_by_the_target() -> None:
    vector = _COMPUTED["punch_request_with_grant"]
    data = bytes.fromhex(vector["hex"])
    message = decode_message(data)
    assert isinstance(message, PunchRequest)
    assert message.grant is not None
    text = Grant.signed_text(1, 2, message.grant.expiry)
    assert text.decode() == vector["text"]
    assert verify(_KEY_B.public_key, message.grant.signature, text)
    assert message.encode() == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("0100000001ff", Discover(1)),
        ("0100000001" + "ab" * 31, Discover(1)),
        ("0100000001" + "ab" * 33, Discover(1, b"\xab" * 32)),
        ("030000000100000002" + "00" * 71, PunchRequest(1, 2)),
        ("0204cb0071050fa0ffff", Reflection(_V4)),
        ("0a01ff", Notify(1)),
        ("0a07", Notify(7)),
        ("070000000300010000000100000002", Sync(3, (1,))),
        ("050000000100000002", Relay(1, 2, b"")),
    ],
)
def test_extra_bytes_are_ignored(data: str, message: BeaconMessage) -> None:
    assert decode_message(bytes.fromhex(data)) == message


@pytest.mark.parametrize(
    "data",
    [
        "",
        "00",
        "0b00000001",
        "ff",
        "01000000",
        "02",
        "0204cb007105",
        "0203cb0071050fa0",
        "0210" + "00" * 17,
        "0300000001000000",
        "0500000001000000",
        "06000000",
        "070000000300",
        "0700000003000200000001",
        "0900000001000000",
        "0a",
    ],
)
def test_short_and_unknown_messages_are_rejected(data: str) -> None:
    with pytest.raises(DecodeError):
        decode_message(bytes.fromhex(data))


def test_tunnel_frames_are_not_beacon_messages() -> None:
    assert is_beacon_message(b"\x0f")
    assert not is_beacon_message(b"\x10")
    assert not is_beacon_message(b"PILS")
    assert not is_beacon_message(b"")


_U32 = st.integers(0, 0xFFFF_FFFF)
_ENDPOINTS = st.tuples(
    st.ip_addresses().map(lambda ip: str(getattr(ip, "ipv4_mapped", None) or ip)),
    st.integers(0, 0xFFFF),
)
_GRANTS = st.builds(
    Grant, st.integers(0, (1 << 64) - 1), st.binary(min_size=64, max_size=64)
)
_KEYS = st.none() | st.binary(min_size=32, max_size=32)
_MESSAGES: st.SearchStrategy[BeaconMessage] = st.one_of(
    st.builds(Discover, _U32, _KEYS, st.booleans()),
    st.builds(Reflection, _ENDPOINTS),
    st.builds(PunchRequest, _U32, _U32, st.none() | _GRANTS),
    st.builds(PunchCommand, _ENDPOINTS),
    st.builds(Relay, _U32, _U32, st.binary(max_size=40)),
    st.builds(Delivery, _U32, st.binary(max_size=40), st.none() | _U32),
    st.builds(Sync, _U32, st.lists(_U32, max_size=8).map(tuple)),
    st.builds(Notify, st.integers(0, 255)),
)


@given(_MESSAGES)
def test_decoding_undoes_encoding(message: BeaconMessage) -> None:
    assert is_beacon_message(message.encode())
    assert decode_message(message.encode()) == message


@given(st.integers(0, 11), st.binary(max_size=120))
def test_any_bytes_are_a_message_or_a_decode_error(kind: int, body: bytes) -> None:
    try:
        message = decode_message(bytes((kind,)) + body)
    except DecodeError:
        return
    assert decode_message(message.encode()) == message
