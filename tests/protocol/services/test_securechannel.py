"""The secure channel, against computed records and against all that may go wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.services import securechannel
from pilotfleet.protocol.services.securechannel import (
    AuthFrame,
    NonceMemory,
    RecordOpener,
    RecordSealer,
    Role,
    SecureExchange,
    check_auth,
    decode_auth_frame,
    encode_auth_frame,
    make_auth_frame,
)

_FILE = Path(__file__).parents[2] / "vectors" / "services.json"
_SERVICES: dict[str, Any] = json.loads(_FILE.read_text())
VECTORS: dict[str, Any] = _SERVICES["secure_channel"]
AUTH: dict[str, Any] = VECTORS["server_auth_frame"]
IDENTITY = Identity(bytes.fromhex(_SERVICES["key"]["ed25519_seed_hex"]))
SERVER_KEY = bytes.fromhex(VECTORS["server_public"])
WALL = float(AUTH["timestamp"])


def vector(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name])


def exchange(role: Role, *, is_legacy: bool = False) -> SecureExchange:
    private = vector(f"{role.name.lower()}_x25519_private")
    return SecureExchange(role, random_bytes=lambda _: private, is_legacy=is_legacy)


def ends(
    role: Role = Role.CLIENT, *, is_legacy: bool = False
) -> tuple[RecordSealer, RecordOpener]:
    """Return what seals for ``role`` and what opens on the other side."""
    here, there = (exchange(side, is_legacy=is_legacy) for side in (role, role.peer))
    sealer, _ = here.complete(there.public_key)
    _, opener = there.complete(here.public_key)
    return sealer, opener


def feed_to_the_end(opener: RecordOpener, data: bytes) -> None:
    assert opener.feed(data) == []
    opener.finish()


@pytest.mark.parametrize("role", Role)
def test_public_keys_are_those_of_the_vectors(role: Role) -> None:
    assert exchange(role).public_key == vector(f"{role.name.lower()}_public")


@pytest.mark.parametrize(
    ("role", "is_legacy", "record"),
    [
        (Role.CLIENT, False, "client_first_record_hello"),
        (Role.SERVER, False, "server_first_record_hello"),
        (Role.CLIENT, True, "client_first_record_hello_v1_2"),
    ],
)
def test_first_records_are_those_of_the_vectors(
    role: Role, is_legacy: bool, record: str
) -> None:
    sealer, opener = ends(role, is_legacy=is_legacy)
    assert sealer.seal(b"hello") == vector(record)
    assert opener.feed(vector(record)) == [b"hello"]
    opener.finish()


def test_channel_of_another_age_is_not_understood() -> None:
    _, opener = ends()
    with pytest.raises(DecodeError, match="altered"):
        opener.feed(vector("client_first_record_hello_v1_2"))


@given(
    st.lists(st.binary(max_size=300), max_size=6),
    st.lists(st.integers(1, 200), max_size=20),
)
def test_stream_arrives_however_it_is_cut(parts: list[bytes], cuts: list[int]) -> None:
    sealer, opener = ends()
    stream = b"".join(sealer.seal(part) for part in parts)
    opened: list[bytes] = []
    for size in cuts:
        opened += opener.feed(stream[:size])
        stream = stream[size:]
    opened += opener.feed(stream)
    opener.finish()
    assert opened == parts


@given(st.binary(max_size=200))
def test_arbitrary_bytes_give_no_plaintext(data: bytes) -> None:
    _, opener = ends()
    try:
        assert opener.feed(data) == []
    except DecodeError:
        with pytest.raises(DecodeError):
            opener.feed(b"")


@given(st.integers(0, 36), st.integers(1, 255))
def test_every_altered_byte_is_noticed(position: int, change: int) -> None:
    record = bytearray(vector("client_first_record_hello"))
    record[position] ^= change
    _, opener = ends()
    with pytest.raises(DecodeError):
        feed_to_the_end(opener, bytes(record))


def test_repeated_exchanged_or_missing_records_are_refused() -> None:
    sealer, _ = ends()
    first, second, third = (sealer.seal(b"%d" % number) for number in range(3))
    for order, match in (
        ([first, first], "record 1 instead of 2"),
        ([second, first], "record 2 instead of 1"),
        ([first, third], "record 3 instead of 2"),
    ):
        _, opener = ends()
        with pytest.raises(DecodeError, match=match):
            opener.feed(b"".join(order))
        # What is broken stays so, even if the right record comes.
        with pytest.raises(DecodeError, match=match):
            opener.feed(first)


def test_own_record_sent_back_is_refused() -> None:
    _, opener = ends(Role.SERVER)
    with pytest.raises(DecodeError, match="wrong role"):
        opener.feed(vector("client_first_record_hello"))


def test_record_cut_off_is_noticed_at_the_end() -> None:
    _, opener = ends()
    assert opener.feed(vector("client_first_record_hello")[:-1]) == []
    with pytest.raises(DecodeError, match="36 bytes into a record"):
        opener.finish()


@pytest.mark.parametrize("size", [0, 11, 16_777_217, 0xFFFF_FFFF])
def test_length_out_of_bounds_is_refused_before_it_arrives(size: int) -> None:
    _, opener = ends()
    with pytest.raises(DecodeError, match=f"record of {size} bytes"):
        opener.feed(size.to_bytes(4))
    assert opener.buffered_bytes == 0


@pytest.mark.parametrize("size", [12, 27])
def test_record_without_a_whole_tag_is_refused(size: int) -> None:
    _, opener = ends()
    nonce = b"\0\0\0\x02" + (1).to_bytes(8)
    with pytest.raises(DecodeError, match="altered"):
        opener.feed(size.to_bytes(4) + nonce + bytes(size - 12))


def test_largest_record_goes_through_and_no_larger() -> None:
    sealer, opener = ends()
    data = bytes(securechannel.MAX_PLAINTEXT)
    assert opener.feed(sealer.seal(data)) == [data]
    with pytest.raises(InvalidArgument, match="for one record"):
        sealer.seal(data + b"1")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_key_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match="public key"):
        exchange(Role.CLIENT).complete(bytes(size))


def test_keys_that_give_no_secret_are_refused() -> None:
    client = exchange(Role.CLIENT)
    with pytest.raises(DecodeError, match="public key"):
        client.complete(bytes(32))
    with pytest.raises(DecodeError, match="our own"):
        client.complete(client.public_key)


def test_secrets_are_not_shown() -> None:
    client = exchange(Role.CLIENT)
    sealer, opener = client.complete(SERVER_KEY)
    for thing in (client, sealer, opener):
        assert VECTORS["key_v1_9_and_later"] not in repr(thing)
        assert VECTORS["client_x25519_private"] not in repr(thing)


def server_frame() -> AuthFrame:
    return make_auth_frame(
        IDENTITY,
        AUTH["node_id"],
        channel_key=SERVER_KEY,
        wall=WALL,
        nonce=bytes.fromhex(AUTH["nonce"]),
    )


def check(
    frame: AuthFrame,
    memory: NonceMemory | None = None,
    *,
    channel_key: bytes = SERVER_KEY,
    identity_key: bytes = IDENTITY.public_key,
    wall: float = WALL,
) -> None:
    check_auth(
        frame,
        channel_key=channel_key,
        identity_key=identity_key,
        memory=memory or NonceMemory(),
        wall=wall,
    )


def test_authentication_is_that_of_the_vectors() -> None:
    frame = server_frame()
    assert frame.signed(SERVER_KEY).hex() == AUTH["signed_message_hex"]
    assert encode_auth_frame(frame).hex() == AUTH["frame_hex"]
    assert decode_auth_frame(encode_auth_frame(frame)) == frame
    sealer, _ = ends(Role.SERVER)
    record = sealer.seal(encode_auth_frame(frame))
    assert record.hex() == AUTH["first_record_hex"]
    check(frame)


@pytest.mark.parametrize("seconds", [-5.5, 6.0])
def test_authentication_of_another_time_is_refused(seconds: float) -> None:
    check(server_frame(), wall=WALL + seconds / 2)
    with pytest.raises(DecodeError, match="is off by"):
        check(server_frame(), wall=WALL + seconds)


def test_authentication_is_bound_to_node_and_channel() -> None:
    frame = server_frame()
    other = Identity(bytes(32)).public_key
    renamed = AuthFrame(frame.node_id + 1, frame.time, frame.nonce, frame.signature)
    with pytest.raises(DecodeError, match="is not by node"):
        check(frame, channel_key=vector("client_public"))
    with pytest.raises(DecodeError, match="is not by node"):
        check(frame, identity_key=other)
    with pytest.raises(DecodeError, match="is not by node"):
        check(renamed)


def test_authentication_counts_once_and_forged_ones_are_not_remembered() -> None:
    memory = NonceMemory()
    frame = server_frame()
    with pytest.raises(DecodeError, match="is not by"):
        check(frame, memory, identity_key=bytes(32))
    check(frame, memory)
    with pytest.raises(DecodeError, match="seen before"):
        check(frame, memory)


def test_full_memory_refuses_until_the_hour_is_over() -> None:
    memory = NonceMemory(limit=2)
    assert memory.admit(b"1", 0.0)
    assert memory.admit(b"2", 10.0)
    assert not memory.admit(b"3", 3599.0)
    assert memory.admit(b"3", 3600.0)
    assert not memory.admit(b"2", 3601.0)


@pytest.mark.parametrize("size", [0, 91, 93])
def test_authentication_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(DecodeError, match="authentication frame"):
        decode_auth_frame(bytes(size))
