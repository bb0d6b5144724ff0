"""Pilot packets against the vectors, and against anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.packet import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    Packet,
    decode_packet,
    encode_packet,
)
from tests.protocol.tunnel.support import vectors

_VECTORS = vectors("wire.json")["packet"]

_U16 = st.integers(0, 0xFFFF)
_U32 = st.integers(0, 0xFFFF_FFFF)
_PACKETS = st.builds(
    Packet,
    st.integers(0, 0xFF),
    st.integers(0, 0x0F),
    _U16,
    _U32,
    _U16,
    _U32,
    _U16,
    _U16,
    _U32,
    _U32,
    _U16,
    st.binary(max_size=64),
)


def _packet(fields: dict[str, Any]) -> Packet:
    return Packet(
        fields["protocol"],
        fields["flags"],
        fields["src"]["network"],
        fields["src"]["node"],
        fields["dst"]["network"],
        fields["dst"]["node"],
        fields["src_port"],
        fields["dst_port"],
        fields["seq"],
        fields["ack"],
        fields["window"],
        bytes.fromhex(fields["payload"]),
    )


@pytest.mark.parametrize("vector", _VECTORS["valid"], ids=lambda v: v["name"])
def test_vectors_encode_and_decode(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    packet = _packet(vector["fields"])
    assert encode_packet(packet) == data
    assert decode_packet(data) == packet
    assert data[30:34].hex() == vector["checksum"]


def test_header_size_is_that_of_the_vectors() -> None:
    assert _VECTORS["header_size"] == HEADER_SIZE


def test_bytes_after_the_payload_are_ignored() -> None:
    vector = _VECTORS["decode_ok_trailing"]
    packet = decode_packet(bytes.fromhex(vector["bytes"]))
    assert packet.payload.hex() == vector["payload"]


@pytest.mark.parametrize("vector", _VECTORS["reject"], ids=lambda v: v["reason"])
def test_broken_packets_are_rejected(vector: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode_packet(bytes.fromhex(vector["bytes"]))


def test_the_largest_payload_fits() -> None:
    packet = Packet(1, 0, 0, 1, 0, 2, 3, 4, payload=bytes(MAX_PAYLOAD))
    assert decode_packet(encode_packet(packet)) == packet


@given(_PACKETS)
def test_decoding_undoes_encoding(packet: Packet) -> None:
    assert decode_packet(encode_packet(packet)) == packet


@given(st.binary(max_size=100))
def test_any_bytes_are_a_packet_or_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_packet(data)


@given(_PACKETS, st.data())
def test_one_changed_bit_is_noticed(packet: Packet, data: st.DataObject) -> None:
    encoded = bytearray(encode_packet(packet))
    # A longer stated payload is cut off before the checksum is reached.
    position = data.draw(st.integers(0, len(encoded) * 8 - 1))
    encoded[position // 8] ^= 1 << position % 8
    with pytest.raises(DecodeError):
        decode_packet(bytes(encoded))
