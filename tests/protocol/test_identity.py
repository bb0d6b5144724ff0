"""Identities: file form, signatures, and what they do not reveal."""

from __future__ import annotations

import base64
import json

import pytest
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
