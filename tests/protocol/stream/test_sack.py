from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.stream.sack import (
    Block,
    decode_sack,
    encode_sack,
    is_sack,
    looks_like_sack,
)

NUMBERS = st.integers(0, 0xFFFF_FFFF)
BLOCKS = st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4)

# vectors/wire.json, key "sack".
VALID: list[tuple[list[Block], str]] = [
    ([(1153, 2305)], "5341434b010000048100000901"),
    (
        [(1153, 2305), (3457, 4609)],
        "5341434b02000004810000090100000d8100001201",
    ),
    (
        [(10, 20), (30, 40), (50, 60), (70, 80)],
        "5341434b040000000a000000140000001e00000028000000320000003c0000004600000050",
    ),
    ([(4294967280, 16)], "5341434b01fffffff000000010"),
]
TRAILING = "5341434b010000000a000000147a7a"
INVALID = {
    "count 0": "5341434b00",
    "truncated": "5341434b010000000a000000",
    "lower case magic": "7361636b010000000a00000014",
    "count 5": "5341434b05" + "00" * 40,
    "no count": "5341434b",
    "empty": "",
}


@pytest.mark.parametrize(("blocks", "encoded"), VALID)
def test_vectors_encode_and_decode(blocks: list[Block], encoded: str) -> None:
    assert encode_sack(blocks).hex() == encoded
    assert decode_sack(bytes.fromhex(encoded)) == blocks
    assert is_sack(bytes.fromhex(encoded))


def test_bytes_after_the_blocks_are_ignored_by_the_decoder() -> None:
    assert decode_sack(bytes.fromhex(TRAILING)) == [(10, 20)]


def test_bytes_after_the_blocks_make_a_received_payload_data() -> None:
    # A sender must avoid it; a receiver may take it for data (section 11.7).
    assert looks_like_sack(bytes.fromhex(TRAILING))
    assert not is_sack(bytes.fromhex(TRAILING))


@pytest.mark.parametrize("encoded", INVALID.values(), ids=INVALID.keys())
def test_other_payloads_are_rejected(encoded: str) -> None:
    payload = bytes.fromhex(encoded)
    assert not looks_like_sack(payload)
    assert not is_sack(payload)
    with pytest.raises(DecodeError, match="not SACK"):
        decode_sack(payload)


@given(BLOCKS)
def test_decoding_undoes_encoding(blocks: list[Block]) -> None:
    assert decode_sack(encode_sack(blocks)) == blocks


@given(st.binary(max_size=60) | st.binary(max_size=50).map(lambda tail: b"SACK" + tail))
def test_arbitrary_bytes_give_blocks_or_a_decode_error(payload: bytes) -> None:
    try:
        blocks = decode_sack(payload)
    except DecodeError:
        assert not looks_like_sack(payload)
    else:
        assert 1 <= len(blocks) <= 4
        assert is_sack(payload[: 5 + 8 * len(blocks)])
