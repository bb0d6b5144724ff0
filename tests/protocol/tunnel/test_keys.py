"""Key derivation against the vectors."""

from __future__ import annotations

import pytest

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.tunnel.keys import KeyPair, derive_session_key
from tests.protocol.tunnel.support import seeded_random, vectors

_VECTOR = vectors("wire.json")["key_derivation"]
_A = KeyPair(bytes.fromhex(_VECTOR["a_x25519_private"]))
_B = KeyPair(bytes.fromhex(_VECTOR["b_x25519_private"]))


def test_public_keys_match_the_vector() -> None:
    assert _A.public.hex() == _VECTOR["a_x25519_public"]
    assert _B.public.hex() == _VECTOR["b_x25519_public"]


def test_both_sides_derive_the_key_of_the_vector() -> None:
    assert _A.session_key(_B.public).hex() == _VECTOR["key"]
    assert _B.session_key(_A.public).hex() == _VECTOR["key"]


def test_derivation_from_the_shared_secret_matches_the_vector() -> None:
    shared = bytes.fromhex(_VECTOR["shared_secret"])
    assert derive_session_key(shared).hex() == _VECTOR["key"]


@pytest.mark.parametrize("public", _VECTOR["reject_peer_public"])
def test_points_of_low_order_are_rejected(public: str) -> None:
    with pytest.raises(DecodeError):
        _A.session_key(bytes.fromhex(public))


def test_keys_of_another_size_are_rejected() -> None:
    with pytest.raises(DecodeError):
        _A.session_key(bytes(31))


def test_generated_keys_come_from_the_given_randomness() -> None:
    first = KeyPair.generate(seeded_random("x"))
    assert first.public == KeyPair.generate(seeded_random("x")).public
    assert first.public != KeyPair.generate(seeded_random("y")).public


def test_repr_does_not_show_the_private_key() -> None:
    assert _VECTOR["a_x25519_private"][:8] not in repr(_A)
