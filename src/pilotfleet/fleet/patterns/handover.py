"""What an orchestrator and a sub-orchestrator of ours tell each other with a task.

A sub-orchestrator has to know which tags a task needs and how urgent it is, and the
one above who did the task in the end. Neither is in the frames of a task, so a text
may begin with a header: a record separator, a JSON object, a line feed. Only between
orchestrators of ours: what reaches a worker is the bare text.

* Down, the header ``{"tags":[…],"priority":n}`` is left out when it says nothing, so
  only a task with tags or a priority has less than 16,384 bytes for its text. One that
  does not fit is handed down as ``{"error":…}``, with which it fails.
* Up, ``{"agent":…,"attempts":n}`` is left out when the result would get too long; the
  sub-orchestrator then counts as the one that did it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.fleet.taskfile import MAX_TASK_BYTES, TaskLine
from pilotfleet.fleet.worker.job import MAX_RESULT_BYTES, Outcome

if TYPE_CHECKING:
    from pilotfleet.fleet.schedule import TaskResult

__all__ = ["unwrap_result", "unwrap_task", "wrap_result", "wrap_task"]

MARK: Final = "\x1e"
MAX_NAME: Final = 255
MAX_ATTEMPTS: Final = 1_000_000


class _Needs(msgspec.Struct, omit_defaults=True):
    tags: tuple[str, ...] = ()
    priority: int = 0
    error: str = ""


class _Report(msgspec.Struct, omit_defaults=True):
    agent: Annotated[str, msgspec.Meta(max_length=MAX_NAME)] = ""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=MAX_ATTEMPTS)] = 1


_Header = TypeVar("_Header", _Needs, _Report)


def wrap_task(line: TaskLine) -> TaskLine:
    """Return a task as a sub-orchestrator gets it: any one of them may have it."""
    text = line.task
    if line.tags or line.priority or text.startswith(MARK):
        text = _join(_Needs(line.tags, line.priority), text)
        if len(text.encode(errors="replace")) > MAX_TASK_BYTES:
            error = f"with its tags the task is longer than {MAX_TASK_BYTES} bytes"
            text = _join(_Needs(error=error), "")
    return msgspec.structs.replace(line, task=text, tags=())


def unwrap_task(task_id: str, text: str) -> TaskLine:
    """Return the task that a sub-orchestrator was given.

    Raises:
        DecodeError: The header is none, or says that the task must fail.
    """
    needs, text = _split(text, _Needs)
    if needs.error:
        raise DecodeError(needs.error)
    line = TaskLine(id=task_id, task=text, tags=needs.tags, priority=needs.priority)
    try:
        line.check()
    except InvalidArgument as error:
        raise DecodeError(f"header of a task: {error}") from None
    return line


def wrap_result(result: TaskResult) -> Outcome:
    """Return what a sub-orchestrator says became of a task."""
    if result.retryable:
        return Outcome(ok=False, error=result.error, retryable=True)
    report = _Report(result.agent, result.attempts)
    if result.status != "SUCCEEDED":
        return Outcome(ok=False, error=_join(report, result.error))
    text = _join(report, result.result)
    if len(text.encode(errors="replace")) > MAX_RESULT_BYTES:
        text = result.result
        if text.startswith(MARK):
            return Outcome(ok=False, error="the result has no room for its header")
    return Outcome(ok=True, result=text)


def unwrap_result(result: TaskResult) -> TaskResult:
    """Return what became of a task that went through a sub-orchestrator.

    Attempts below count: they are what was tried again. A header that is none is
    left in the text.
    """
    is_ok = result.status == "SUCCEEDED"
    try:
        report, text = _split(result.result if is_ok else result.error, _Report)
    except DecodeError:
        return result
    return replace(
        result,
        agent=report.agent or result.agent,
        attempts=result.attempts + report.attempts - 1,
        result=text if is_ok else "",
        error="" if is_ok else text,
    )


def _join(header: _Needs | _Report, text: str) -> str:
    return f"{MARK}{msgspec.json.encode(header).decode()}\n{text}"


def _split(text: str, kind: type[_Header]) -> tuple[_Header, str]:
    if not text.startswith(MARK):
        return kind(), text
    header, _, rest = text[1:].partition("\n")
    try:
        return msgspec.json.decode(header, type=kind), rest
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise DecodeError(f"header of a task: {error}") from None
