"""Messages between the processes of a daemon."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.node.processes.messages import (
    MAX_MESSAGE,
    MAX_PENDING,
    Addresses,
    Failed,
    Message,
    Progress,
    Ready,
    Serving,
    Take,
    decode,
    encode,
)

numbers = st.integers(0, 1 << 40)
texts = st.text(max_size=80)
messages = st.one_of(
    st.builds(Progress, done=numbers, total=numbers),
    st.just(Serving()),
    st.builds(Addresses, addresses=st.dictionaries(texts, texts, max_size=5)),
    st.builds(Ready, agents=numbers),
    st.builds(Failed, code=texts, message=texts, hint=texts),
    st.builds(
        Take,
        to=numbers,
        is_leg=st.booleans(),
        agent=texts,
        request=st.integers(-(1 << 63), (1 << 63) - 1),
        pending=st.binary(max_size=200),
    ),
)


@given(messages)
def test_a_message_comes_as_it_was_sent(message: Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=300))
def test_other_bytes_are_refused(packet: bytes) -> None:
    try:
        decode(packet)
    except DecodeError:
        return


@pytest.mark.parametrize("packet", [b"", b"\x80", b"\x81\xa4type\xa3Foo", b"\xc1"])
def test_what_is_no_message_is_refused(packet: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(packet)


def test_the_largest_messages_fit_a_packet() -> None:
    take = Take(to=64, agent="w" * 63, request=1 << 62, pending=b"x" * MAX_PENDING)
    rows = {f"{'w' * 58}{n:05}": "0:0000.0000.0001" for n in range(500)}
    for message in (take, Addresses(addresses=rows)):
        assert len(encode(message)) < MAX_MESSAGE
