"""Commands of the task service (cli.md section 11)."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import InvalidArgument, NotFound, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

MAX_RESULT_FILE: Final = 12_533_760
"""What one frame holds as base64; the specification's 15 MiB would not fit."""

PART_BYTES: Final = 512 * 1024
"""Of a file, in one frame of the socket: it holds 1 MiB, and base64 adds a third."""

# From the specification (tasks-and-polo.md section 2.4).
RESULT_TYPES: Final = frozenset(
    [
        ".md",
        ".txt",
        ".rtf",
        ".docx",
        ".pdf",
        ".pptx",
        ".pth",
        ".pt",
        ".onnx",
        ".h5",
        ".pb",
        ".ckpt",
        ".safetensors",
        ".bin",
        ".csv",
        ".parquet",
        ".xlsx",
        ".xls",
        ".jpg",
        ".jpeg",
        ".png",
        ".svg",
        ".gif",
        ".webp",
    ]
)


def submit(context: Context, arguments: Arguments) -> None:
    """Give a node a task."""
    context.require(arguments, 1)
    task = _required(arguments, "task")
    peer = context.resolve(arguments.positional(0))
    body = context.daemon().call("task.submit", target=str(peer), task=task)
    result = {
        "target": str(peer),
        "task": task,
        "task_id": body.get("task_id"),
        "status": body.get("status"),
        "message": body.get("message"),
        "accepted": bool(body.get("accepted")),
    }
    context.output.result(result, f"{result['task_id']}: {result['message']}")


def accept(context: Context, arguments: Arguments) -> None:
    """Take a task that was submitted to this node."""
    task_id = _required(arguments, "id")
    body = context.daemon().call("task.accept", task_id=task_id)
    _show_change(context, body, task_id)


def decline(context: Context, arguments: Arguments) -> None:
    """Refuse a task that was submitted to this node."""
    task_id = _required(arguments, "id")
    reason = _required(arguments, "justification")
    body = context.daemon().call("task.decline", task_id=task_id, justification=reason)
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
        parts = _parts(_read_result_file(path))
        request = {"filename": os.path.basename(path), "uploaded": True}
    daemon = context.daemon()
    for part in parts:
        daemon.call("task.part", task_id=task_id, data=part)
    body = daemon.call("task.send-results", task_id=task_id, **request)
    _show_change(context, body, task_id)


def result(context: Context, arguments: Arguments) -> None:
    """Show a task's result, or write it to a file."""
    task_id = arguments.text("id") or arguments.positional(0)
    if not task_id:
        raise context.usage_error()
    body, content = _fetch_result(context, task_id)
    if arguments.has("out"):
        body["path"] = arguments.text("out")
        _write_result(body["path"], content)
    context.output.result(body, body["content"])


def list_tasks(context: Context, arguments: Arguments) -> None:
    """List the tasks that this node submitted and received."""
    kind = arguments.text("type")
    if kind not in ("", "received", "submitted"):
        raise InvalidArgument(f'unknown type "{kind}" (use received or submitted)')
    request = {"type": kind} if kind else {}
    body = context.daemon().call("task.list", **request)
    rows = body.get("tasks") or []
    lines = [_task_line(row) for row in rows] or ["no tasks"]
    context.output.result({**body, "tasks": rows}, "\n".join(lines))


def queue(context: Context, arguments: Arguments) -> None:
    """List the accepted tasks in the order of their execution."""
    body = context.daemon().call("task.queue")
    rows = body.get("queue") or []
    lines = [_task_line(row) for row in rows] or ["the queue is empty"]
    context.output.result({"queue": rows, "count": len(rows)}, "\n".join(lines))


def cancel(context: Context, arguments: Arguments) -> None:
    """Take a submitted task back."""
    task_id = arguments.text("id") or arguments.positional(0)
    if not task_id:
        raise context.usage_error()
    _show_change(
        context, context.daemon().call("task.cancel", task_id=task_id), task_id
    )


def _required(arguments: Arguments, name: str) -> str:
    value = arguments.text(name)
    if not value:
        raise InvalidArgument(f"--{name} is required")
    return value


def _show_change(context: Context, body: dict[str, Any], task_id: str) -> None:
    data = {"task_id": task_id, **body}
    message = data.get("message") or data.get("status") or "done"
    context.output.result(data, f"{task_id}: {message}")


def _read_result_file(path: str) -> bytes:
    extension = os.path.splitext(path)[1].lower()
    if extension not in RESULT_TYPES:
        raise InvalidArgument(f'file type "{extension}" not allowed for results')
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_RESULT_FILE + 1)
    except FileNotFoundError as error:
        raise NotFound(f"file not found: {path}") from error
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error
    if len(data) > MAX_RESULT_FILE:
        raise InvalidArgument(f"file {path} is larger than {MAX_RESULT_FILE} bytes")
    return data


def _parts(data: bytes) -> Iterator[str]:
    """Divide a file into what one call takes."""
    for start in range(0, len(data), PART_BYTES):
        yield base64.b64encode(data[start : start + PART_BYTES]).decode()


def _fetch_result(context: Context, task_id: str) -> tuple[dict[str, Any], bytes]:
    """Get a result, piece by piece; return what to show and the whole of it."""
    daemon = context.daemon()
    pieces: list[bytes] = []
    offset: int | None = 0
    while offset is not None:
        body = daemon.call("task.result", task_id=task_id, offset=offset)
        is_file = body.get("type") == "file"
        pieces.append(
            base64.b64decode(body.pop("file_data"))
            if is_file
            else str(body.get("content") or "").encode()
        )
        offset = body.pop("next_offset", None)
    content = b"".join(pieces)
    if not is_file:
        body["content"] = content.decode()
    return body, content


def _write_result(path: str, content: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _task_line(row: dict[str, Any]) -> str:
    parts = (row.get("task_id"), row.get("status"), row.get("description"))
    return "  ".join(str(part) for part in parts if part)
