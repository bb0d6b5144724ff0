"""The form of messages that stand for many requests."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.registry.batches import (
    MANY,
    MAX_BATCH,
    MAX_BATCH_BYTES,
    batched_requests,
    heartbeat_rows,
    is_batched,
    size_problem,
    weight,
)
from pilotfleet.protocol.registry.messages import MAX_NODE
from pilotfleet.protocol.registry.signatures import SIGNED_TYPES, signed_text, signer

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    message=st.fixed_dictionaries(
        {"type": st.sampled_from(sorted(MANY))},
        optional={"requests": anything, "nodes": anything},
    )
)
def test_anything_is_read_or_refused_as_one_kind_of_error(
    message: dict[str, Any],
) -> None:
    assert weight(message) >= 1
    assert size_problem(message, 100) == ""
    for read in (batched_requests, heartbeat_rows):
        try:
            rows = read(message)
        except DecodeError:
            continue
        assert 1 <= len(rows) <= MAX_BATCH


@given(
    rows=st.lists(
        st.tuples(st.integers(1, MAX_NODE), st.text()).map(list), min_size=1, max_size=9
    )
)
def test_rows_of_heartbeats_are_read_as_they_are(rows: list[Any]) -> None:
    assert heartbeat_rows({"type": "heartbeats", "nodes": rows}) == rows
    assert weight({"type": "heartbeats", "nodes": rows}) == len(rows)


@pytest.mark.parametrize("requests", [None, [], 5, {"a": 1}])
def test_a_message_of_none_counts_as_one(requests: Any) -> None:
    assert weight({"type": "batch", "requests": requests}) == 1


def test_the_size_is_that_of_the_whole_message() -> None:
    message = {"type": "batch", "requests": [{}]}
    assert size_problem(message, MAX_BATCH_BYTES) == ""
    problem = size_problem(message, MAX_BATCH_BYTES + 1)
    assert problem == "batch of 4194305 bytes, limit 4194304"


@pytest.mark.parametrize(
    ("kind", "may"),
    [
        ("register", True),
        ("watch_something", True),
        ("", True),
        ("batch", False),
        ("heartbeats", False),
        ("watch", False),
        ("subscribe_replication", False),
    ],
)
def test_only_what_has_one_reply_may_be_in_a_batch(kind: str, may: bool) -> None:
    assert is_batched(kind) is may


@pytest.mark.parametrize("kind", sorted(SIGNED_TYPES - {"register"}))
def test_the_signer_of_a_request_is_in_the_text_that_it_signs(kind: str) -> None:
    names = (
        *("node_id", "requester_id", "from_node_id", "caller_node_id", "inviter_id"),
        *("peer_id", "to_node_id", "target_node_id", "node_a", "node_b"),
        *("submitter_node_id", "receiver_node_id", "network_id"),
    )
    request = {"type": kind, **{name: 100 + at for at, name in enumerate(names)}}
    found = signer(request)
    # A punch is signed by its requester, who is one of the two in the text.
    request |= {"node_a": found}
    assert str(found) in signed_text(request).split(":")


@pytest.mark.parametrize("kind", ["register", "lookup", "", 5])
def test_what_no_node_signs_has_no_signer(kind: Any) -> None:
    assert signer({"type": kind, "node_id": 7}) == 0
