"""Results of tasks as the command line reads, fetches and writes them."""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import InvalidArgument, NotFound, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

__all__ = ["fetch_result", "parts_of", "read_result_file", "result_text", "write_out"]

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
OUT_HINT: Final = "add --out <path> to copy the file locally"
SUBMITTED_HINT: Final = "check pilotctl task list --type submitted"


def read_result_file(path: str) -> bytes:
    """Return the contents of a file that may be a result (section 2.4).

    Raises:
        InvalidArgument: Its type is not allowed, or it is too large.
        NotFound: There is no such file.
    """
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


def parts_of(data: bytes) -> Iterator[str]:
    """Divide a file into what one call takes."""
    for start in range(0, len(data), PART_BYTES):
        yield base64.b64encode(data[start : start + PART_BYTES]).decode()


def fetch_result(context: Context, task_id: str) -> tuple[dict[str, Any], bytes]:
    """Get a result, piece by piece; return what to show and the whole of it.

    Raises:
        NotFound: The task has none.
    """
    daemon = context.daemon()
    pieces: list[bytes] = []
    offset: int | None = 0
    while offset is not None:
        try:
            body = daemon.call("task.result", task_id=task_id, offset=offset)
        except NotFound as error:
            raise NotFound(str(error), hint=SUBMITTED_HINT) from error
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
    return {**body, "size": len(content)}, content


def result_text(body: dict[str, Any]) -> str:
    """Return how people are shown a result: a text itself, a file by its name."""
    if body.get("type") != "file":
        return str(body["content"])
    where = body.get("path") or body.get("hint")
    return f"{body['filename']} ({body['size']} bytes): {where}"


def write_out(arguments: Arguments, body: dict[str, Any], content: bytes) -> None:
    """Write a result where --out says, and note it in what is shown."""
    if not arguments.has("out"):
        if body.get("type") == "file":
            body["hint"] = OUT_HINT
        return
    path = arguments.text("out")
    body["path"] = body["written"] = path
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
