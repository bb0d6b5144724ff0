"""Identities: file form, signatures, and what they do not reveal."""

from __future__ import annotations

import base64
import hashlib
import json
from itertools import count

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import (
    Identity,
    decode_key_text,
    encode_key_text,
    verify,
)
from tests.protocol.tunnel.support import vectors
from tests.support.edwards import (
    BASE,
    IDENTITY,
    ORDER,
    PRIME,
    SMALL_ORDER,
    Point,
    add,
    challenge,
    encode,
    multiply,
)

_FRAMES = vectors("wire.json")["key_exchange"]["frames"]
_SEED = bytes(range(32))


@pytest.mark.parametrize("frame", _FRAMES, ids=lambda f: f["side"])
def test_vectors_give_public_key_and_signature(frame: dict[str, str]) -> None:
    identity = Identity(bytes.fromhex(frame["ed25519_seed"]))
    message = bytes.fromhex(frame["signed_message"])
    assert identity.public_key.hex() == frame["ed25519_public"]
    assert identity.sign(message).hex() == frame["signature"]
    assert verify(identity.public_key, identity.sign(message), message)


def test_the_file_form_is_read_back() -> None:
    identity = Identity(_SEED)
    copy = Identity.from_json(identity.to_json())
    assert copy.public_key == identity.public_key
    assert copy.sign(b"x") == identity.sign(b"x")


def test_the_file_holds_seed_and_public_key_in_base64() -> None:
    identity = Identity(_SEED)
    file = json.loads(identity.to_json())
    assert base64.b64decode(file["private_key"]) == _SEED + identity.public_key
    assert base64.b64decode(file["public_key"]) == identity.public_key


def test_signed_text_is_base64_of_the_signature() -> None:
    identity = Identity(_SEED)
    signature = base64.b64decode(identity.sign_text("heartbeat:1"))
    assert verify(identity.public_key, signature, b"heartbeat:1")


def _file(private: str, public: str) -> bytes:
    return json.dumps({"private_key": private, "public_key": public}).encode()


_PUBLIC = Identity(_SEED).public_key
_OTHER = Identity(bytes(32)).public_key


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"private_key": "\xff"}',
        b'{"a": ' * 90_000,
        b'{"private_key": 1, "public_key": 2}',
        _file("%", encode_key_text(_PUBLIC)),
        _file("é", encode_key_text(_PUBLIC)),
        _file(encode_key_text(_SEED), encode_key_text(_PUBLIC)),
        _file(encode_key_text(_SEED + _PUBLIC), encode_key_text(_OTHER)),
        _file(encode_key_text(_SEED + _OTHER), encode_key_text(_OTHER)),
        _file(encode_key_text(_SEED + _OTHER), encode_key_text(_PUBLIC)),
    ],
)
def test_broken_files_are_rejected(file: bytes) -> None:
    with pytest.raises(DecodeError):
        Identity.from_json(file)


def test_seeds_of_another_size_are_rejected() -> None:
    with pytest.raises(DecodeError):
        Identity(bytes(31))


def test_repr_does_not_show_the_seed() -> None:
    shown = repr(Identity(_SEED))
    assert encode_key_text(_SEED)[:8] not in shown
    assert _SEED.hex()[:8] not in shown


def test_public_keys_travel_as_base64() -> None:
    identity = Identity(_SEED)
    assert decode_key_text(identity.public_key_text) == identity.public_key


@pytest.mark.parametrize("text", ["", "A", "é", encode_key_text(bytes(31))])
def test_other_texts_are_no_public_key(text: str) -> None:
    with pytest.raises(DecodeError):
        decode_key_text(text)


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), b"\xff" * 32])
def test_bad_keys_verify_nothing(key: bytes) -> None:
    assert not verify(key, bytes(64), b"message")


@given(st.binary(max_size=70), st.binary(max_size=20))
def test_made_up_signatures_verify_nothing(signature: bytes, message: bytes) -> None:
    assert not verify(_PUBLIC, signature, message)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_file_or_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Identity.from_json(data)


# Against OpenSSL, which verifies as RFC 8032 has it, and as Go's crypto/ed25519 does:
# without the cofactor, and with S below the order of the group.


def _openssl(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except InvalidSignature:
        return False
    return True


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_signatures_are_those_of_openssl(seed: bytes, message: bytes) -> None:
    identity, other = Identity(seed), Ed25519PrivateKey.from_private_bytes(seed)
    signature = identity.sign(message)
    assert identity.public_key == other.public_key().public_bytes_raw()
    assert signature == other.sign(message)
    assert verify(identity.public_key, signature, message)
    assert not verify(identity.public_key, signature, message + b"!")


@given(st.binary(max_size=20), st.integers(min_value=1, max_value=64))
def test_bytes_between_signature_and_message_do_not_move(
    message: bytes, moved: int
) -> None:
    signature = Identity(_SEED).sign(message)
    assert not verify(_PUBLIC, signature + message[:moved], message[moved:] + b"x")
    assert not verify(_PUBLIC, signature[:-moved], signature[-moved:] + message)


def _secret() -> int:
    digest = hashlib.sha512(_SEED).digest()
    return int.from_bytes(digest[:32], "little") & (1 << 254) - 8 | 1 << 254


_SECRET = _secret()
_NONCE = 12_345
_R = multiply(_NONCE, BASE)
_KEY = multiply(_SECRET, BASE)
_TORSION = SMALL_ORDER[1]


def _signed(
    message: bytes, *, key: bytes = _PUBLIC, r: bytes | None = None, nonce: int = _NONCE
) -> bytes:
    """Sign with our secret number, for whatever key and point are claimed."""
    r = r or encode(_R)
    s = (nonce + challenge(r, key, message) * _SECRET) % ORDER
    return r + s.to_bytes(32, "little")


def _message_for(key: bytes, r: bytes, *, rest: int) -> bytes:
    """Return a message whose challenge leaves this rest of eight."""
    messages = (b"%d" % number for number in count())
    return next(m for m in messages if challenge(r, key, m) % 8 == rest)


def test_points_made_by_hand_are_those_of_the_library() -> None:
    assert encode(_KEY) == _PUBLIC
    assert multiply(ORDER, BASE) == IDENTITY
    assert verify(_PUBLIC, _signed(b"m"), b"m")
    assert _openssl(_PUBLIC, _signed(b"m"), b"m")


@pytest.mark.parametrize("times", range(1, 8))
def test_the_number_of_a_signature_has_one_form(times: int) -> None:
    good = _signed(b"m")
    s = int.from_bytes(good[32:], "little") + times * ORDER
    bad = good[:32] + s.to_bytes(32, "little")
    assert not _openssl(_PUBLIC, bad, b"m")
    assert not verify(_PUBLIC, bad, b"m")


def test_the_cofactor_is_not_multiplied_in() -> None:
    r = encode(add(_R, _TORSION))
    signature = _signed(b"m", r=r)
    assert not _openssl(_PUBLIC, signature, b"m")
    assert not verify(_PUBLIC, signature, b"m")


@pytest.mark.parametrize("rest", [0, 1])
def test_a_key_with_a_part_of_small_order_is_judged_as_by_openssl(rest: int) -> None:
    key = encode(add(_KEY, _TORSION))
    message = _message_for(key, encode(_R), rest=rest)
    signature = _signed(message, key=key)
    assert _openssl(key, signature, message) is (rest == 0)
    assert verify(key, signature, message) is (rest == 0)


def test_parts_of_small_order_may_cancel_out() -> None:
    key, r = encode(add(_KEY, _TORSION)), encode(add(_R, _TORSION))
    message = _message_for(key, r, rest=7)
    signature = _signed(message, key=key, r=r)
    assert _openssl(key, signature, message)
    assert verify(key, signature, message)


# What OpenSSL and Go accept and we do not: no honest program makes such a key or point.

_ENCODINGS = [
    *(encode(point) for point in SMALL_ORDER),
    encode(IDENTITY, y_added=PRIME),
    encode(IDENTITY, sign=1),
    *(encode(point, y_added=PRIME) for point in SMALL_ORDER if point[1] == 0),
]


@pytest.mark.parametrize("key", _ENCODINGS, ids=bytes.hex)
def test_a_key_of_small_order_signs_nothing(key: bytes) -> None:
    r = encode(_R)
    message = _message_for(key, r, rest=0)
    # Made without any secret: whoever has seen the key could sign.
    signature = r + _NONCE.to_bytes(32, "little")
    assert _openssl(key, signature, message)
    assert not verify(key, signature, message)


@pytest.mark.parametrize("point", SMALL_ORDER, ids=str)
def test_a_point_of_small_order_is_no_signature(point: Point) -> None:
    r = encode(point)
    signature = _signed(b"m", r=r, nonce=0)
    assert _openssl(_PUBLIC, signature, b"m") is (point == IDENTITY)
    assert not verify(_PUBLIC, signature, b"m")


def test_a_point_written_in_another_way_is_no_signature() -> None:
    r = encode(IDENTITY, y_added=PRIME)
    signature = _signed(b"m", r=r, nonce=0)
    assert not _openssl(_PUBLIC, signature, b"m")
    assert not verify(_PUBLIC, signature, b"m")
