"""Commands that show what other nodes sent: inbox and received (cli.md section 7).

They read folders, so they work without a daemon.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pilotfleet.cli.failures import UsageError
from pilotfleet.cli.invocation import read_target
from pilotfleet.cli.mailfolder import (
    age_text,
    file_times,
    list_folder,
    mail_folders,
    message_ids,
    read_message,
    received_at,
    remove_files,
    sender_of,
    size_text,
    try_message,
)
from pilotfleet.cli.terminal import printable
from pilotfleet.errors import InvalidArgument, NotFound
from pilotfleet.protocol.durations import parse_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

DEFAULT_ROWS: Final = 10
PREVIEW_LENGTH: Final = 120
PARTIAL: Final = ".partial"
"""Below the received files: transfers that are not complete (services.md 4.6)."""

Record = dict[str, Any]


class Filters(NamedTuple):
    """Which messages or files a command is about; none means all."""

    peer: int | None = None
    after: float | None = None
    """Seconds since 1970."""
    before: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether everything matches."""
        return self == Filters()

    def match_time(self, moment: float | None) -> bool:
        """Tell whether a time lies between the limits."""
        if self.after is not None and (moment is None or moment < self.after):
            return False
        return self.before is None or moment is None or moment < self.before

    def match(self, record: Record) -> bool:
        """Tell whether a message matches."""
        if self.peer is not None and sender_of(record) != self.peer:
            return False
        if self.after is None and self.before is None:
            return True
        return self.match_time(received_at(record))


def inbox(context: Context, arguments: Arguments) -> None:
    """List, read or delete received messages."""
    if arguments.positional(0) == "read":
        _read(context, arguments)
        return
    filters = _filters(arguments)
    limit = (
        1 if arguments.enabled("latest") else arguments.integer("limit", DEFAULT_ROWS)
    )
    if arguments.has("from"):
        filters = filters._replace(peer=_peer(context, arguments.text("from")))
    folder = mail_folders(context).inbox
    names = list_folder(folder)
    if names is None:
        result = {"messages": [], "total": 0, "shown": 0}
        context.output.result(result, _EMPTY_INBOX)
    elif arguments.enabled("clear"):
        _clear_inbox(context, folder, filters)
    else:
        _list_inbox(context, arguments, folder, filters, limit)


def received(context: Context, arguments: Arguments) -> None:
    """List or delete received files."""
    filters = _filters(arguments)
    # Programs get everything unless they ask for less.
    limit = arguments.integer("limit", 0 if context.json else DEFAULT_ROWS)
    folder = mail_folders(context).received
    names = list_folder(folder)
    if arguments.enabled("clear"):
        if names is None:
            raise NotFound("no received files")
        _clear_received(context, folder, filters)
        return
    matched = [
        row for row in file_times(folder, names or ()) if filters.match_time(row[0])
    ]
    shown = matched[:limit] if limit > 0 else matched
    files = [_file_row(folder, *row) for row in shown]
    result: Record = {"files": files, "total": len(matched), "shown": len(files)}
    if names is not None:
        result["dir"] = folder
    context.output.result(result, _received_text(folder, shown, len(matched)))


# Arguments.


def _filters(arguments: Arguments) -> Filters:
    now = time.time()
    after = before = None
    if arguments.has("since"):
        after = _since(arguments.text("since"), now)
    # Only deleting asks for an age: a list is cut by --since and --limit.
    if arguments.enabled("clear") and arguments.has("before"):
        age = _duration(arguments.text("before"))
        if age is None:
            raise InvalidArgument("--before must be a duration (24h, 30m)")
        before = now - age
    return Filters(after=after, before=before)


def _since(text: str, now: float) -> float:
    from datetime import datetime

    age = _duration(text)
    if age is not None:
        return now - age
    try:
        if "T" in text:
            return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        pass
    raise InvalidArgument("--since must be a duration (5m, 1h) or an RFC3339 timestamp")


def _duration(text: str) -> float | None:
    """Return the seconds of a duration with a unit, none for any other text."""
    try:
        return parse_duration(text, "", needs_unit=True)
    except InvalidArgument:
        return None


def _peer(context: Context, target: str) -> int:
    address = read_target(target)
    if address is None:
        try:
            address = context.resolve(target)
        except NotFound as error:
            raise NotFound(f'cannot resolve --from "{target}": {error}') from error
    return address.node


# The inbox.

_EMPTY_INBOX: Final = (
    "inbox is empty\n  messages appear here when someone sends:"
    ' pilotctl send-message <your-hostname> --data "hello"'
)


def _list_inbox(
    context: Context, arguments: Arguments, folder: str, filters: Filters, limit: int
) -> None:
    is_full = arguments.enabled("full") or arguments.enabled("latest")
    shown: list[tuple[str, Record]] = []
    total = 0
    for message_id, record in _matching(folder, filters, limit):
        total += 1
        if record is not None and (limit <= 0 or len(shown) < limit):
            shown.append((message_id, record))
    rows = [_message_row(each, record, is_full=is_full) for each, record in shown]
    result = {"messages": rows, "total": total, "shown": len(rows), "dir": folder}
    context.output.result(result, _inbox_text(shown, total, is_full=is_full))


def _matching(
    folder: str, filters: Filters, limit: int = 0
) -> Iterator[tuple[str, Record | None]]:
    """Yield the matching messages, newest first.

    Without a filter every message matches, so those beyond the limit are only
    counted: theirs is no record. An inbox may hold 256 MiB.
    """
    found = 0
    for message_id in message_ids(list_folder(folder) or ()):
        if filters.is_open and 0 < limit <= found:
            yield message_id, None
            continue
        record = try_message(folder, message_id)
        if record is not None and filters.match(record):
            found += 1
            yield message_id, record


def _read(context: Context, arguments: Arguments) -> None:
    message_id = arguments.positional(1).removesuffix(".json")
    if not message_id:
        raise UsageError("usage: pilotctl inbox read <id>")
    record = read_message(mail_folders(context).inbox, message_id)
    context.output.result(
        {**record, "id": message_id}, _record_text(message_id, record)
    )


def _clear_inbox(context: Context, folder: str, filters: Filters) -> None:
    names = message_ids(list_folder(folder) or ())
    if not filters.is_open:
        names = [name for name, _ in _matching(folder, filters)]
    cleared = remove_files(folder, [f"{name}.json" for name in names])
    remaining = len(message_ids(list_folder(folder) or ()))
    context.output.result(
        {"cleared": cleared, "remaining": remaining},
        f"cleared {cleared} message(s), {remaining} remaining",
    )


def _message_row(message_id: str, record: Record, *, is_full: bool) -> Record:
    """Return a message's row of the list.

    ``data`` stands there in any case, for readers of the 1.2 and 1.9 shape.
    """
    row: Record = {"id": message_id, "data": _data(record)}
    for key in ("from", "received_at", "type", "bytes"):
        row[key] = record.get(key)
    for key in ("message_id", "reply_to"):
        if record.get(key):
            row[key] = record[key]
    if not is_full:
        row["preview"] = _preview(row["data"])
    elif "data_b64" in record:
        row["data_b64"] = record["data_b64"]
    return row


def _data(record: Record) -> str:
    data = record.get("data")
    return data if isinstance(data, str) else ""


def _preview(data: str) -> str:
    # Four bytes may make one character, and whitespace goes: enough is enough.
    text = " ".join(data[: PREVIEW_LENGTH * 64].split())
    return text if len(text) <= PREVIEW_LENGTH else text[:PREVIEW_LENGTH] + "…"


def _inbox_text(rows: list[tuple[str, Record]], total: int, *, is_full: bool) -> str:
    if not rows:
        return "inbox is empty (no messages match the filters)"
    lines = [f"Inbox — {total} message(s) · showing {len(rows)} newest", ""]
    for message_id, record in rows:
        data = _data(record)
        body = data if is_full else _preview(data)
        if "data_b64" in record:
            body = f"(not text: pilotctl inbox read {message_id})"
        lines.append(f"  {printable(message_id)}")
        lines.append(f"  {_origin(record)}")
        lines += [f"  {line}" for line in _ids(record)]
        lines += [f"  {line}" for line in printable(body).splitlines()]
        lines.append("")
    lines.append(
        "full body: pilotctl inbox read <id> · --latest · filters: --from --since"
        " --limit · clear: --clear [--before 24h]"
    )
    return "\n".join(lines)


def _origin(record: Record) -> str:
    sender, kind = str(record.get("from")), str(record.get("type"))
    age, size = age_text(received_at(record)), size_text(record.get("bytes"))
    return printable(f"{sender} · {kind} · {age} · {size}")


def _ids(record: Record) -> list[str]:
    named = [
        f"{key} {record[key]}" for key in ("message_id", "reply_to") if record.get(key)
    ]
    return [printable(" · ".join(named))] if named else []


def _record_text(message_id: str, record: Record) -> str:
    encoded = record.get("data_b64")
    head = {
        "ID": message_id,
        "From": record.get("from"),
        "When": record.get("received_at"),
        "Type": record.get("type"),
        "Bytes": record.get("bytes"),
        "Message ID": record.get("message_id"),
        "Reply to": record.get("reply_to"),
        "Encoding": "base64" if encoded else None,
    }
    lines = [
        printable(f"{key + ':':<12}{value}")
        for key, value in head.items()
        if value is not None
    ]
    body = str(encoded) if encoded else _data(record)
    if sys.stdout.isatty():
        body = printable(body)
    return "\n".join([*lines, "", body.removesuffix("\n")])


# Received files.


def _clear_received(context: Context, folder: str, filters: Filters) -> None:
    partial = os.path.join(folder, PARTIAL)
    cleared = _clear_files(folder, filters)
    cleared_partial = _clear_files(partial, filters)
    remaining = len(file_times(folder, list_folder(folder) or ()))
    result = {
        "cleared": cleared,
        "cleared_partial": cleared_partial,
        "remaining": remaining,
    }
    text = f"cleared {cleared} received file(s), {remaining} remaining"
    if cleared_partial:
        text += f"; and {cleared_partial} unfinished transfer(s)"
    context.output.result(result, text)


def _clear_files(folder: str, filters: Filters) -> int:
    rows = file_times(folder, list_folder(folder) or ())
    return remove_files(folder, [row[1] for row in rows if filters.match_time(row[0])])


def _file_row(folder: str, modified: float, name: str, size: int) -> Record:
    return {
        "name": name,
        "bytes": size,
        "modified": _rfc3339(modified),
        "path": os.path.join(folder, name),
    }


def _rfc3339(seconds: float) -> str:
    from datetime import UTC, datetime

    moment = datetime.fromtimestamp(int(seconds), UTC).astimezone()
    return moment.isoformat().replace("+00:00", "Z")


def _received_text(folder: str, rows: list[tuple[float, str, int]], total: int) -> str:
    if not total:
        return (
            "no received files\n  files appear here when someone sends:"
            " pilotctl send-file <your-hostname> <file>"
        )
    lines = [f"Received files — {total} · {folder}", ""]
    for modified, name, size in rows:
        lines += [f"  {printable(name)}", f"  {age_text(modified)} · {size_text(size)}"]
        lines.append("")
    lines.append(
        "filters: --since <dur> --limit <n> (0 = all) · clear: --clear [--before 24h]"
    )
    return "\n".join(lines)
