"""Lists of agent names on the worker's command line."""

from __future__ import annotations

import pytest

from pilotfleet.errors import InvalidArgument
from pilotfleet.fleet.worker.identities import MAX_IDENTITIES, expand_names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("scout", ["scout"]),
        ("worker-[1-3]", ["worker-1", "worker-2", "worker-3"]),
        ("w-[9-10]-eu, scout", ["w-9-eu", "w-10-eu", "scout"]),
        ("[5-5]", ["5"]),
    ],
)
def test_ranges_are_expanded_in_order(text: str, names: list[str]) -> None:
    assert expand_names(text) == names


@pytest.mark.parametrize(
    "text",
    ["", "a,", "w-[3-1]", "w-[1-", "w-[a-b]", "w-[1-2][3-4]", "a,a", "w-[1-3],w-2"],
)
def test_what_is_no_list_of_names_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        expand_names(text)


def test_a_list_is_bounded_before_it_is_made() -> None:
    assert len(expand_names(f"w[1-{MAX_IDENTITIES}]")) == MAX_IDENTITIES
    for text in (f"w[0-{MAX_IDENTITIES}]", "w[0-999999999]", "a[1-15000],b[1-15000]"):
        with pytest.raises(InvalidArgument):
            expand_names(text)
