"""``task show``: both sides of a task, with all that is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pilotfleet.protocol.durations import format_duration

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

DETAILS: Final = {
    "status": "Status",
    "status_justification": "Reason",
    "error": "Error",
    "description": "Task",
    "from": "From",
    "to": "To",
    "priority": "Priority",
    "deadline": "Deadline",
    "created_at": "Created",
    "delivered_at": "Delivered",
    "accepted_at": "Accepted",
    "staged_at": "Head of queue",
    "execute_started_at": "Started",
    "completed_at": "Completed",
    "time_idle_ms": "Idle",
    "time_staged_ms": "Staged",
    "time_cpu_ms": "Executing",
    "result_type": "Result",
    "result_name": "File",
    "reward": "Reward",
    "receipt": "Receipt",
    "receipt_reason": "Refused because",
}
"""Fields of a task and what they are called; those that say nothing are left out."""


def show(context: Context, arguments: Arguments) -> None:
    """Show all that this node knows of a task."""
    task_id = arguments.text("id") or arguments.positional(0)
    if not task_id:
        raise context.usage_error()
    body = context.daemon().call("task.show", task_id=task_id)
    lines = [f"Task {task_id}"]
    for kind in ("submitted", "received"):
        if kind in body:
            lines += ["", *_detail_lines(kind, body[kind])]
    context.output.result(body, "\n".join(lines))


def _detail_lines(kind: str, record: dict[str, Any]) -> list[str]:
    """Return one side of a task for people."""
    lines = [kind]
    for key, label in DETAILS.items():
        value = record.get(key)
        if not value:
            continue
        if key.endswith("_ms"):
            value = format_duration(value / 1000)
        elif key == "result_type":
            value = f"{value}, {record.get('result_size')} bytes"
        elif key == "reward":
            value = f"{value:+d} for the worker, -1 for the submitter"
        lines.append(f"  {label + ':':<16} {value}")
    return lines
