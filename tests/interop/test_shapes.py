"""The comparison that decides the cells of the matrix."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.matrix.allowed import is_allowed, varies
from tests.interop.matrix.columns import DIRECTIONS
from tests.interop.matrix.shapes import Difference, differences


def names(reference: Any, found: Any) -> list[str]:
    """Name the differences; the field ``t`` varies."""
    return [
        str(difference)
        for difference in differences(
            reference, found, varies=lambda path: path.endswith("t")
        )
    ]


@pytest.mark.parametrize(
    ("reference", "found", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1}, {"a": 2}, ["a: 2, not 1"]),
        ({"a": 1}, {"a": True}, ["a: True, not 1"]),
        ({"a": 0}, {"a": None}, ["a: None, not 0"]),
        ({"a": 1}, {}, ["a: missing"]),
        ({}, {"a": 1}, ["a: not in the official answer"]),
        ({"a": {"b": ["x"]}}, {"a": {"b": ["y"]}}, ["a.b[]: 'y', not 'x'"]),
        ([1], [1, 2], ["answer: 2 entries, not 1"]),
        (None, {"a": 1}, ["answer: {'a': 1}, not None"]),
        ({"t": 1}, {"t": 2.5}, []),
        ({"t": 1}, {"t": "x"}, ["t: string, not number"]),
        ({"t": []}, {"t": None}, ["t: null, not list"]),
        ({"t": [{"a": 1}]}, {"t": []}, []),
        ({"t": [{"a": 1}]}, {"t": [{"a": 2}, {"a": 3}]}, []),
        ({"t": [{"a": 1}]}, {"t": [{"a": "x"}]}, ["t[].a: string, not number"]),
        ({"t": [{"a": 1}]}, {"t": [{}]}, ["t[].a: missing"]),
    ],
)
def test_differences_are_named(reference: Any, found: Any, expected: list[str]) -> None:
    assert names(reference, found) == expected


def test_only_what_differs_on_each_run_varies() -> None:
    assert varies("near: ping 2", "stdout.data.results[].rtt_ms")
    assert varies("near: info", "stdout.data.bytes_sent")
    assert not varies("near: send-file far x", "stdout.data.bytes_sent")
    assert not varies("near: find far", "stdout.data.node_id")


def test_deliberate_differences_need_a_program_of_ours() -> None:
    extra = Difference("stdout.data.broker", "not in the official answer")
    by_name = {direction.name: direction for direction in DIRECTIONS}
    assert is_allowed("near: info", extra, by_name["our daemon"])
    assert not is_allowed("near: info", extra, by_name["our client"])
    assert not is_allowed("near: health", extra, by_name["our daemon"])
