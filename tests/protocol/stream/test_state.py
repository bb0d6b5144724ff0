from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.packet import Flag, Packet
from pilotfleet.protocol.stream.state import TRANSITIONS, Input, State
from tests.protocol.stream.support import (
    PORT,
    lonely_node,
    packet_from_peer,
)

NUMBERS = st.sampled_from([0, 1, 2, 1153, 0x8000_0000, 0xFFFF_FFFF])
PACKETS = st.builds(
    packet_from_peer,
    st.integers(0, 15).map(Flag),
    seq=NUMBERS,
    ack=NUMBERS,
    window=st.sampled_from([0, 1, 512, 65535]),
    payload=st.sampled_from([b"", b"x", b"SACK\x01" + bytes(8), bytes(1152)]),
    src_port=st.sampled_from([50000, PORT]),
    dst_port=st.sampled_from([PORT, 49152, 9]),
)


def test_every_state_can_be_reached_and_left() -> None:
    reached = set(TRANSITIONS.values())
    left = {state for state, _ in TRANSITIONS}
    assert reached == left == set(State)


@pytest.mark.parametrize("state", [s for s in State if s is not State.CLOSED])
def test_every_state_ends_on_a_reset(state: State) -> None:
    assert TRANSITIONS[state, Input.RST] is State.CLOSED


def test_finished_states_only_expire() -> None:
    onward = {pair[1] for pair in TRANSITIONS if pair[0] is State.TIME_WAIT}
    assert onward == {Input.RST, Input.EXPIRE}


STEPS = st.one_of(
    PACKETS.map(lambda packet: ("packet", packet)),
    st.sampled_from([0.001, 0.05, 1.0, 20.0, 200.0]).map(lambda s: ("wait", s)),
    st.sampled_from(["close", "abort", "write", "read", "connect", "shut_down"]).map(
        lambda verb: ("verb", verb)
    ),
)


@given(st.lists(STEPS, max_size=25))
def test_any_input_in_any_state_stays_inside_the_table(
    steps: list[tuple[str, object]],
) -> None:
    network, node = lonely_node()
    node.connect()
    for kind, value in steps:
        before = {c: c.state for c in node.endpoint.connections()}
        if isinstance(value, Packet):
            node.inject(value)
        elif isinstance(value, float):
            network.run(limit_s=value)
        else:
            _use(node.endpoint.connections(), str(value), node.now)
            if value == "connect":
                node.connect()
            node.pump()
        for connection, state in before.items():
            assert connection.state is state or _is_reachable(state, connection.state)
        assert kind


def _use(connections: object, verb: str, now: float) -> None:
    assert isinstance(connections, list)
    for connection in connections:
        if verb == "write" and connection.writable:
            connection.write(b"w" * 3000, now)
        elif verb == "read":
            connection.read(100, now)
        elif verb in {"close", "abort", "shut_down"}:
            getattr(connection, verb)(now)


def _is_reachable(start: State, end: State) -> bool:
    found = {start}
    for _ in State:
        found |= {
            TRANSITIONS[s, i]
            for s, i in itertools.product(found, Input)
            if (s, i) in TRANSITIONS
        }
    return end in found
