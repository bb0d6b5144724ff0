"""Commands of the task service (cli.md section 11)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.streams import open_deadline
from pilotfleet.cli.taskresults import (
    fetch_result,
    parts_of,
    read_result_file,
    result_text,
    write_out,
)
from pilotfleet.errors import InvalidArgument, NotFound, TimedOut

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.connection import Deadline
    from pilotfleet.cli.invocation import Context

RECEIVED_HINT: Final = "check pilotctl task list --type received"
STATUSES: Final = (
    *("NEW", "ACCEPTED", "EXECUTING"),
    *("SUCCEEDED", "FAILED", "DECLINED", "CANCELLED", "EXPIRED"),
)

MAX_PRIORITY: Final = 100
FIRST_LOOK_S: Final = 0.05
LAST_LOOK_S: Final = 1.0
"""Between looks at a task that is waited for; they grow apart."""


def submit(context: Context, arguments: Arguments) -> int:
    """Give a node a task; with --wait also wait for its result."""
    context.require(arguments, 1)
    task = _required(arguments, "task")
    options = _submit_options(arguments)
    deadline = open_deadline(arguments)
    peer = context.resolve(arguments.positional(0))
    body = context.daemon().call("task.submit", target=str(peer), task=task, **options)
    result = {
        "target": str(peer),
        "task": task,
        "task_id": body.get("task_id"),
        "status": body.get("status"),
        "message": body.get("message"),
        "accepted": bool(body.get("accepted")),
    }
    if not arguments.enabled("wait"):
        context.output.result(result, f"{result['task_id']}: {result['message']}")
        return 0
    context.output.note(f"{result['task_id']}: {result['message']}")
    if not result["accepted"]:
        context.output.result(result, "not accepted")
        return 1
    return _wait_and_show(context, arguments, result, deadline)


def accept(context: Context, arguments: Arguments) -> None:
    """Take a task that was submitted to this node."""
    task_id = _required(arguments, "id")
    body = _call_received(context, "task.accept", task_id=task_id)
    _show_change(context, body, task_id)


def decline(context: Context, arguments: Arguments) -> None:
    """Refuse a task that was submitted to this node."""
    task_id = _required(arguments, "id")
    reason = _required(arguments, "justification")
    body = _call_received(
        context, "task.decline", task_id=task_id, justification=reason
    )
    _show_change(context, {"justification": reason, **body}, task_id)


def execute(context: Context, arguments: Arguments) -> None:
    """Begin the oldest accepted task."""
    body = context.daemon().call("task.execute")
    text = f"{body.get('task_id')}: {body.get('task_description')}"
    context.output.result(body, text)


def send_results(context: Context, arguments: Arguments) -> None:
    """Return a task's result to whoever submitted it."""
    task_id = _required(arguments, "id")
    if not arguments.has("results") and not arguments.has("file"):
        raise InvalidArgument("either --results or --file is required")
    request: dict[str, Any] = {"results": arguments.text("results")}
    parts: Iterable[str] = ()
    if arguments.has("file"):
        path = arguments.text("file")
        parts = parts_of(read_result_file(path))
        request = {"filename": os.path.basename(path), "uploaded": True}
    daemon = context.daemon()
    for part in parts:
        daemon.call("task.part", task_id=task_id, data=part)
    body = _call_received(context, "task.send-results", task_id=task_id, **request)
    _show_change(context, body, task_id)


def result(context: Context, arguments: Arguments) -> None:
    """Show a task's result, or write it to a file."""
    task_id = arguments.text("id") or arguments.positional(0)
    if not task_id:
        raise context.usage_error()
    body, content = fetch_result(context, task_id)
    write_out(arguments, body, content)
    context.output.result(body, result_text(body))


def list_tasks(context: Context, arguments: Arguments) -> None:
    """List the tasks that this node submitted and received."""
    kind = arguments.text("type")
    if kind not in ("", "received", "submitted"):
        raise InvalidArgument(f'unknown type "{kind}" (use received or submitted)')
    wanted = _statuses(arguments)
    request = {"type": kind} if kind else {}
    body = context.daemon().call("task.list", **request)
    rows = [
        row
        for row in body.get("tasks") or ()
        if not wanted or row.get("status") in wanted
    ]
    lines = [_task_lines(row) for row in rows] or ["No tasks found"]
    context.output.result({**body, "tasks": rows}, "\n".join(lines))


def queue(context: Context, arguments: Arguments) -> None:
    """List the accepted tasks in the order of their execution."""
    body = context.daemon().call("task.queue")
    rows = body.get("queue") or []
    lines = [
        f"  {place}. {row.get('task_id')}: {row.get('description')}\n"
        f"     From: {row.get('from')}"
        for place, row in enumerate(rows, 1)
    ]
    lines.insert(0, f"Queued tasks ({len(rows)}):" if rows else "Queue is empty")
    context.output.result({"queue": rows, "count": len(rows)}, "\n".join(lines))


def cancel(context: Context, arguments: Arguments) -> None:
    """Take a submitted task back."""
    task_id = arguments.text("id") or arguments.positional(0)
    if not task_id:
        raise context.usage_error()
    _show_change(
        context, context.daemon().call("task.cancel", task_id=task_id), task_id
    )


def _submit_options(arguments: Arguments) -> dict[str, Any]:
    options: dict[str, Any] = {}
    priority = arguments.integer("priority", 0)
    if abs(priority) > MAX_PRIORITY:
        raise InvalidArgument(
            f"--priority: {priority} is not from -{MAX_PRIORITY} to {MAX_PRIORITY}"
        )
    if priority:
        options["priority"] = priority
    if arguments.has("deadline"):
        options["deadline_s"] = arguments.duration("deadline", 0.0)
        if not options["deadline_s"]:
            raise InvalidArgument("--deadline: it would be over at once")
    return options


def _wait_and_show(
    context: Context,
    arguments: Arguments,
    submitted: dict[str, Any],
    deadline: Deadline,
) -> int:
    """Wait for a task's end and print it with the result; exit code 1 if it failed."""
    task_id = str(submitted["task_id"])
    record = _wait_for_end(context, task_id, deadline)
    outcome = {
        "outcome": record["status"],
        "justification": record["status_justification"],
    }
    text = f"{record['status']}: {record['status_justification']}"
    if record.get("result_type"):
        body, content = fetch_result(context, task_id)
        write_out(arguments, body, content)
        outcome |= body
        if record["status"] == "SUCCEEDED":
            text = result_text(body)
    context.output.result({**submitted, **outcome}, text)
    return 0 if record["status"] == "SUCCEEDED" else 1


def _wait_for_end(context: Context, task_id: str, deadline: Deadline) -> dict[str, Any]:
    """Return the submitted task's record once it has ended; tell about progress."""
    pause, seen = FIRST_LOOK_S, "NEW"
    while True:
        record = context.daemon().call("task.show", task_id=task_id)["submitted"]
        if record["status"] != seen:
            seen = record["status"]
            context.output.note(f"{task_id}: {seen} - {record['status_justification']}")
        if record["status"] not in STATUSES[:3]:
            return dict(record)
        if deadline.has_passed:
            raise TimedOut(
                f"task {task_id} has not ended in time, it is {seen}",
                hint=f"it goes on; see: pilotctl task show {task_id}",
            )
        remaining = deadline.remaining
        time.sleep(pause if remaining is None else min(pause, remaining))
        pause = min(pause * 1.5, LAST_LOOK_S)


def _statuses(arguments: Arguments) -> frozenset[str]:
    """Return the statuses that a list shall show; none for all."""
    texts = ",".join(arguments.texts("status")).upper().split(",")
    wanted = frozenset(filter(None, map(str.strip, texts)))
    unknown = sorted(wanted.difference(STATUSES))
    if unknown:
        raise InvalidArgument(
            f'unknown status "{unknown[0]}" (use {", ".join(STATUSES)})'
        )
    return wanted


def _call_received(context: Context, op: str, **parameters: Any) -> dict[str, Any]:
    try:
        return context.daemon().call(op, **parameters)
    except NotFound as error:
        raise NotFound(str(error), hint=RECEIVED_HINT) from error


def _required(arguments: Arguments, name: str) -> str:
    value = arguments.text(name)
    if not value:
        raise InvalidArgument(f"--{name} is required")
    return value


def _show_change(context: Context, body: dict[str, Any], task_id: str) -> None:
    data = {"task_id": task_id, **body}
    message = data.get("message") or data.get("status") or "done"
    context.output.result(data, f"{task_id}: {message}")


def _task_lines(row: dict[str, Any]) -> str:
    """Return how a list shows a task, as the official program does."""
    return (
        f"[{row.get('category')}] {row.get('task_id')} ({row.get('status')})"
        f" - {row.get('description')}\n"
        f"  From: {row.get('from')} → To: {row.get('to')}"
    )
