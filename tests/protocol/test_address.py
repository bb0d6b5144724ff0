"""Addresses against the vectors, and against anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.address import Address, SocketAddress
from tests.protocol.tunnel.support import vectors

_VECTORS = vectors("wire.json")["address"]
_ADDRESSES = st.builds(Address, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF_FFFF))


@pytest.mark.parametrize("vector", _VECTORS["valid"], ids=lambda v: v["name"])
def test_vectors_convert_between_text_bytes_and_fields(vector: dict[str, Any]) -> None:
    address = Address(vector["network"], vector["node"])
    assert str(address) == vector["text"]
    assert address.pack().hex() == vector["bytes"]
    assert Address.parse(vector["text"]) == address
    assert Address.unpack(bytes.fromhex(vector["bytes"])) == address


@pytest.mark.parametrize("vector", _VECTORS["accept_on_parse"], ids=lambda v: v["text"])
def test_other_spellings_are_read_and_written_canonically(
    vector: dict[str, Any],
) -> None:
    address = Address.parse(vector["text"])
    assert address == (vector["network"], vector["node"])
    assert str(address) == vector["canonical"]


@pytest.mark.parametrize(
    "text",
    [
        *_VECTORS["reject"],
        "0:0000.0000.0001\n",
        " 0:0000.0000.0001",
        "\u0660:0000.0000.0001",
        "0:0000.0000.000\u0661",
        "+0:0000.0000.0001",
        "0" * 100 + ":0000.0000.0001",
    ],
)
def test_texts_of_another_form_are_rejected(text: str) -> None:
    with pytest.raises(DecodeError):
        Address.parse(text)


@pytest.mark.parametrize("vector", _VECTORS["socket"], ids=lambda v: v["text"])
def test_socket_addresses_are_split_at_the_last_colon(vector: dict[str, Any]) -> None:
    address = SocketAddress.parse(vector["text"])
    assert address == ((vector["network"], vector["node"]), vector["port"])
    assert str(address) == vector["text"]


@pytest.mark.parametrize(
    "port", ["", "65536", "-1", "+1", "1 ", "000080", "٨", "²", "http"]
)
def test_socket_addresses_need_a_port(port: str) -> None:
    with pytest.raises(DecodeError):
        SocketAddress.parse(f"0:0000.0000.0001:{port}")


@pytest.mark.parametrize("text", ["", "80", "0:0000.0000.0001", ":80"])
def test_socket_addresses_need_an_address(text: str) -> None:
    with pytest.raises(DecodeError):
        SocketAddress.parse(text)


def test_short_bytes_are_rejected_and_longer_ones_cut() -> None:
    with pytest.raises(DecodeError):
        Address.unpack(bytes(5))
    assert Address.unpack(bytes(5) + b"\x07rest") == Address(0, 7)


@given(_ADDRESSES)
def test_decoding_undoes_encoding(address: Address) -> None:
    assert Address.parse(str(address)) == address
    assert Address.unpack(address.pack()) == address


@given(st.text(max_size=80))
def test_any_text_is_an_address_or_a_decode_error(text: str) -> None:
    for kind in (Address, SocketAddress):
        try:
            kind.parse(text)
        except DecodeError:
            continue


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("7", Address(0, 7)),
        ("4294967295", Address(0, 0xFFFF_FFFF)),
        ("2:0002.0000.0007", Address(2, 7)),
        ("4294967296", None),
        ("0" * 11, None),
        ("9" * 5000, None),
        ("\u0667", None),
        ("worker-7", None),
        ("", None),
    ],
)
def test_a_text_states_an_address_or_number_or_else_is_a_name(
    text: str, stated: Address | None
) -> None:
    assert Address.stated_by(text) == stated
