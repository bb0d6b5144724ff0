"""What orchestrators tell each other with a task."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.fleet.patterns.handover import (
    unwrap_result,
    unwrap_task,
    wrap_result,
    wrap_task,
)
from pilotfleet.fleet.schedule import TaskResult
from pilotfleet.fleet.taskfile import MAX_TASK_BYTES, TaskLine
from pilotfleet.fleet.worker.job import MAX_RESULT_BYTES, Outcome

texts = st.text(max_size=50) | st.builds("\x1e{}".format, st.text(max_size=20))


def result(status: str = "SUCCEEDED", **fields: object) -> TaskResult:
    values = {"id": "1", "agent": "sub", "result": "", "attempts": 1, "wall_ms": 1.0}
    return TaskResult(status=status, **(values | fields))  # type: ignore[arg-type]


def come_up(outcome: Outcome, attempts: int = 1) -> TaskResult:
    """Return a result as the one above sees it."""
    return unwrap_result(
        result(
            "SUCCEEDED" if outcome.ok else "FAILED",
            result=outcome.result,
            error=outcome.error,
            attempts=attempts,
            retryable=outcome.retryable,
        )
    )


@given(
    text=texts,
    tags=st.lists(st.text(min_size=1, max_size=9), max_size=3).map(tuple),
    priority=st.integers(-100, 100),
)
def test_a_task_arrives_as_it_was(
    text: str, tags: tuple[str, ...], priority: int
) -> None:
    wrapped = wrap_task(TaskLine("above", text, tags, priority))
    assert wrapped.tags == ()
    assert wrapped.priority == priority
    assert unwrap_task("1", wrapped.task) == TaskLine("1", text, tags, priority)


@pytest.mark.parametrize(
    "header",
    [
        '{"agent":"a","attempts":0}',
        '{"agent":"a","attempts":-5}',
        '{"agent":"a","attempts":99999999999999999999999}',
        '{"agent":"%s"}' % ("a" * 9_000),
        '{"agent":["a"]}',
        '{"agent":"\\ud800"}',
        '{"agent":"\ud800"}',
        '{"agent":' * 90_000,
        "",
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\nrest"])
def test_a_header_that_is_none_is_text(header: str, end: str) -> None:
    text = f"\x1e{header}{end}"
    above = unwrap_result(result(result=text, agent="sub", attempts=2))
    assert (above.result, above.agent, above.attempts) == (text, "sub", 2)


@given(text=st.text(max_size=60))
def test_a_header_breaks_nothing(text: str) -> None:
    assert unwrap_result(result(result=f"\x1e{text}")).attempts >= 1
    with contextlib.suppress(DecodeError):
        unwrap_task("1", f"\x1e{text}").check()


@given(text=texts, attempts=st.integers(1, 9))
def test_a_result_arrives_as_it_was(text: str, attempts: int) -> None:
    below = result(agent="worker-7", result=text, attempts=attempts)
    above = come_up(wrap_result(below), attempts=2)
    assert (above.result, above.agent) == (text, "worker-7")
    assert above.attempts == attempts + 1
    below = result("FAILED", agent="worker-7", error=text)
    above = come_up(wrap_result(below))
    assert (above.error, above.agent, above.result) == (text, "worker-7", "")


def test_a_plain_task_goes_down_as_it_is() -> None:
    line = TaskLine("1", "x" * MAX_TASK_BYTES)
    assert wrap_task(line) == line


def test_a_task_without_room_for_its_tags_fails_below() -> None:
    wrapped = wrap_task(TaskLine("1", "x" * MAX_TASK_BYTES, ("gpu",)))
    wrapped.check()
    with pytest.raises(DecodeError, match="longer than 16384 bytes"):
        unwrap_task("1", wrapped.task)


@pytest.mark.parametrize(
    "text", ["\x1e", "\x1e{}", "\x1e[1]\nx", '\x1e{"tags":1}\nx', "\x1e\ud800\nx"]
)
def test_other_headers_are_refused(text: str) -> None:
    if text == "\x1e{}":
        assert unwrap_task("1", text).task == ""
        return
    with pytest.raises(DecodeError):
        unwrap_task("1", text)


def test_a_result_without_room_for_its_header_comes_up_without() -> None:
    text = "x" * MAX_RESULT_BYTES
    assert wrap_result(result(result=text)).result == text
    assert come_up(wrap_result(result(result=text))).agent == "sub"
    refused = wrap_result(result(result="\x1e" + text[1:]))
    assert refused.ok is False


def test_who_is_not_to_blame_is_not_blamed() -> None:
    outcome = wrap_result(result("FAILED", error="nobody", retryable=True))
    assert (outcome.retryable, outcome.error) == (True, "nobody")


def test_a_header_that_is_none_stays_in_the_result() -> None:
    odd = result(result="\x1enot ours")
    assert unwrap_result(odd) is odd
