"""Lines of JSON, and what takes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.fleet.monitor.outputs.health import OutputCounters
from pilotfleet.fleet.monitor.outputs.lines import MAX_LINES, LineOutput
from pilotfleet.fleet.monitor.outputs.ndjson import event_line, write_figures
from tests.fleet.monitor.filledview import filled_source

if TYPE_CHECKING:
    from collections.abc import Iterator

LINE = b'{"a":1}\n'


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)
        # One that was stuck ends now, and must not be heard in the next test, nor
        # write to whatever has its number then.
        for thread in threading.enumerate():
            if thread.name == "lines":
                thread.join(10)


def read_event(payload: bytes) -> dict[str, Any]:
    line = event_line("fleet.health", payload, at=1_700_000_000.25, broker="hub")
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    value: dict[str, Any] = json.loads(line)
    return value


def test_a_line_says_when_what_and_from_where() -> None:
    assert read_event(b'{"agent": "worker-1"}') == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "topic": "fleet.health",
        "data": {"agent": "worker-1"},
        "broker": "hub",
    }


@pytest.mark.parametrize(
    "payload",
    [b"plain", b"\xff\xfe", b"[" * 100_000, b"NaN", b'{"a": 1e999}', b"1" * 5_000, b""],
)
def test_what_is_no_json_is_a_text(payload: bytes) -> None:
    assert read_event(payload)["data"] == payload.decode(errors="replace")


def test_nothing_in_an_event_reaches_the_terminal_as_a_command() -> None:
    line = event_line("\x1b]0;x\x07", '"\x9b31m\u202e"'.encode(), at=0.0, broker="b")
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])


async def test_lines_arrive_in_order(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    counters = OutputCounters()
    output = LineOutput(writer, counters)
    for number in range(500):
        output.write(b"%d\n" % number)
    await output.close()
    assert os.read(reader, 1 << 16).split() == [b"%d" % n for n in range(500)]
    assert counters == OutputCounters()


async def test_a_reader_that_does_not_read_costs_only_the_oldest_lines(
    pipe: tuple[int, int],
) -> None:
    counters = OutputCounters()
    output = LineOutput(pipe[1], counters)
    line = b"x" * 999 + b"\n"
    # More than the pipe, the batch under way and the queue hold.
    for _ in range(3 * MAX_LINES):
        output.write(line)
    assert counters.dropped > MAX_LINES
    # The end does not wait for a reader who never comes.
    await output.close()
    assert not output.is_open
    assert counters.errors == 0


async def test_a_reader_that_went_away_ends_the_lines_and_nothing_else(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = pipe
    os.close(reader)
    counters = OutputCounters()
    output = LineOutput(writer, counters)
    output.write(LINE)
    for thread in threading.enumerate():
        if thread.name == "lines":
            await asyncio.to_thread(thread.join, 10)
    assert not output.is_open
    output.write(LINE)
    assert (counters.errors, counters.dropped) == (1, 1)
    assert caplog.text.count("no more lines are written") == 1
    await output.close()


async def test_figures_are_one_object_for_each_fleet(pipe: tuple[int, int]) -> None:
    source = filled_source(agents=3, failed=1, completed=4)
    output = LineOutput(pipe[1], OutputCounters())
    writing = asyncio.create_task(write_figures(source, output))
    line = await asyncio.to_thread(os.read, pipe[0], 1 << 16)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await output.close()
    figures = json.loads(line)
    assert figures["fleet"] == "words"
    assert figures["agents"]["alive"] == 3
    assert figures["tasks"]["completed"] == 4
    assert figures["tasks"]["failed"] == 1
