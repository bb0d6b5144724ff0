"""Rows about ended tasks: what they say, and how many are kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pilotfleet.fleet.worker import ends
from pilotfleet.fleet.worker.ends import EndedTasks
from pilotfleet.fleet.worker.job import Outcome
from pilotfleet.protocol.services.fleetevents import MAX_EVENT_BYTES, MAX_EVENT_ROWS

DONE = Outcome(ok=True, result="done", wall_ms=12)


def taken(rows: EndedTasks) -> list[dict[str, Any]]:
    """Take out one batch, decoded."""
    return [json.loads(row) for row in rows.take()]


def test_a_row_says_who_did_what_when_and_how_it_begins() -> None:
    rows = EndedTasks()
    rows.note("a", "t1", DONE, wall=1_795_355_487.1234)
    failed = Outcome(ok=False, result="half", error="exit status 3", wall_ms=7)
    rows.note("b", "t2", failed, wall=1_795_355_487.5)
    rows.note("c", "t3", Outcome(ok=True), wall=1.0)
    assert taken(rows) == [
        {
            "agent": "a",
            "task_id": "t1",
            "status": "SUCCEEDED",
            "ms": 12,
            "at": 1_795_355_487.123,
            "text": "done",
        },
        {
            "agent": "b",
            "task_id": "t2",
            "status": "FAILED",
            "ms": 7,
            "at": 1_795_355_487.5,
            "text": "exit status 3",
        },
        {"agent": "c", "task_id": "t3", "status": "SUCCEEDED", "ms": 0, "at": 1.0},
    ]
    assert not len(rows)


def test_times_of_an_agent_are_all_different() -> None:
    rows = EndedTasks()
    for wall in (5.0, 5.0, 5.0004, 4.0, 9.0):
        rows.note("a", "t", DONE, wall=wall)
    rows.note("b", "t", DONE, wall=5.0)
    times = [row["at"] for row in taken(rows)]
    assert times == [5.0, 5.001, 5.002, 5.003, 9.0, 5.0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("é" * 300, "é" * 200),
        ("🙂" * 201, "🙂" * 200),
        ("a\x00b\x1b[31m\n\x7f\u2028", "a\x00b\x1b[31m\n\x7f\u2028"),
        ("\udcff broken", "? broken"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
    ],
)
def test_text_is_cut_and_valid(text: str, told: str) -> None:
    rows = EndedTasks()
    rows.note("a", "t", Outcome(ok=True, result=text), wall=1.0)
    [row] = rows.take()
    assert json.loads(row.decode("utf-8", errors="strict"))["text"] == told
    # Control characters stay as they are in JSON, escaped.
    assert all(byte >= 0x20 for byte in row)


def test_an_event_is_bounded_whatever_the_texts_are() -> None:
    rows = EndedTasks()
    worst = Outcome(ok=True, result="\x01" * 5_000)
    for number in range(1_000):
        rows.note("a" * 63, f"{number:064}", worst, wall=number)
    seen = 0
    while batch := rows.take():
        assert len(b",".join(batch)) <= MAX_EVENT_BYTES - 100
        assert len(batch) <= MAX_EVENT_ROWS
        seen += len(batch)
    assert seen == 1_000


def test_the_oldest_give_way_and_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "MAX_ROWS", 300)
    rows = EndedTasks()
    for number in range(310):
        rows.note("a", str(number), DONE, wall=number)
    assert (len(rows), rows.dropped) == (300, 10)
    batch = rows.take()
    assert json.loads(batch[0])["task_id"] == "10"
    for number in range(50):
        rows.note("a", f"new{number}", DONE, wall=1_000 + number)
    # 150 have come to be 350 with those that were not heard.
    rows.restore(batch)
    assert (len(rows), rows.dropped) == (300, 60)
    assert taken(rows)[0]["task_id"] == "60"
