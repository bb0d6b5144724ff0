"""The pages of a daemon's agents, as a program asks for them."""

from __future__ import annotations

from typing import Any

import pytest

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.ipc.listing import MAX_PAGE, AgentListing


def test_pages_follow_each_other_to_the_end() -> None:
    listing = AgentListing()
    assert listing.params() == {"limit": MAX_PAGE, "cursor": ""}
    rows = listing.take({"agents": [{"name": "a"}], "next_cursor": "a"})
    assert rows == [{"name": "a"}]
    assert not listing.is_complete
    assert listing.params() == {"limit": MAX_PAGE, "cursor": "a"}
    assert listing.take({"agents": [], "next_cursor": ""}) == []
    assert listing.is_complete


def test_the_answer_of_a_daemon_without_pages_is_all() -> None:
    listing = AgentListing()
    assert listing.take({"agents": [{"name": "a"}]}) == [{"name": "a"}]
    assert listing.is_complete


def test_missing_processes_of_all_pages_are_named_once() -> None:
    listing = AgentListing()
    listing.take({"agents": [], "next_cursor": "a", "missing_processes": [2]})
    listing.take({"agents": None, "missing_processes": [2, 3]})
    assert listing.missing_processes == [2, 3]


@pytest.mark.parametrize(
    "answer",
    [
        {"agents": "w-1"},
        {"agents": ["w-1"]},
        {"agents": {"name": "w-1"}},
        {"agents": [], "next_cursor": 5},
        {"agents": [], "next_cursor": "a"},
        {"agents": [], "missing_processes": 2},
    ],
)
def test_what_is_no_page_is_refused(answer: dict[str, Any]) -> None:
    listing = AgentListing()
    listing.take({"agents": [], "next_cursor": "a"})
    with pytest.raises(DecodeError):
        listing.take(answer)
