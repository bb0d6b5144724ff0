"""Durations as people write them."""

from __future__ import annotations

import pytest

from pilotfleet.errors import InvalidArgument
from pilotfleet.protocol.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("30", 30),
        ("2.5", 2.5),
        (".5s", 0.5),
        ("5.", 5),
        ("0", 0),
        ("100us", 1e-4),
        ("100µs", 1e-4),
        ("100μs", 1e-4),
        ("7ns", 7e-9),
        ("1h2m3s4ms", 3723.004),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text, "--timeout") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "zz", "1d", "s", "1 s", "1s1", "--1", "1e3", ".", "9" * 100, "٣s"]
)
def test_other_text_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid duration for --timeout: "):
        parse_duration(text, "--timeout")


@pytest.mark.parametrize("text", ["-3s", "-1", "-1m30s"])
def test_negative_duration_is_allowed_only_where_it_means_forever(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is negative"):
        parse_duration(text, "--timeout")
    assert parse_duration(text, "--timeout", allow_negative=True) < 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.000696807, "696.8µs"),
        (0.0125, "12.5ms"),
        (3.0, "3s"),
        (2.5, "2.5s"),
        (90, "1m30s"),
        (7384, "2h3m"),
    ],
)
def test_duration_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("0s", 0), ("1.5h", 5400)])
def test_duration_in_a_file(text: str, seconds: float) -> None:
    assert parse_duration(text, "stagger", needs_unit=True) == seconds


@pytest.mark.parametrize("text", ["", "30", "2.5", "5.", "+3"])
def test_number_in_a_file_needs_its_unit(text: str) -> None:
    with pytest.raises(InvalidArgument, match="invalid duration for stagger: "):
        parse_duration(text, "stagger", needs_unit=True)
