from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.protocol.stream.sequence import HALF, MASK, distance, is_after

NUMBERS = st.integers(0, MASK)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (1, 0, True),
        (0, 1, False),
        (5, 5, False),
        (0, MASK, True),
        (MASK, 0, False),
        (10, MASK - 10, True),
        (HALF - 1, 0, True),
        (HALF, 0, False),
        (HALF + 1, 0, False),
        (0, HALF + 1, True),
    ],
)
def test_comparison_follows_the_signed_difference(
    a: int, b: int, expected: bool
) -> None:
    assert is_after(a, b) is expected


@given(NUMBERS, st.integers(1, HALF - 1))
def test_what_is_a_little_further_is_after_across_the_wrap(a: int, step: int) -> None:
    b = (a + step) & MASK
    assert is_after(b, a)
    assert not is_after(a, b)
    assert distance(b, a) == step
