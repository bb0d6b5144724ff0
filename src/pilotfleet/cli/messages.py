"""send-message: to a node's inbox, and perhaps back (cli.md section 6.5)."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pilotfleet.cli.connection import Deadline
from pilotfleet.cli.exchange import max_frame
from pilotfleet.cli.failures import NotAcknowledged, NotDelivered
from pilotfleet.cli.gate import check_trust
from pilotfleet.cli.mailfolder import (
    is_inbox_id,
    mail_folders,
    try_message,
)
from pilotfleet.cli.replies import ReplyWatch
from pilotfleet.cli.sending import Message, Sender
from pilotfleet.cli.steps import Steps, variable_is_set
from pilotfleet.cli.streams import encode
from pilotfleet.cli.terminal import printable
from pilotfleet.errors import ConnectionFailed, InvalidArgument, TimedOut
from pilotfleet.protocol.durations import format_duration, parse_duration
from pilotfleet.protocol.ipc.commands import Command
from pilotfleet.protocol.services.dataexchange import (
    MESSAGE_ID_SIZE,
    FrameType,
    Tags,
    is_message_id,
    new_message_id,
)

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

DEFAULT_WAIT_S: Final = 30.0
_TYPES: Final = {
    "text": FrameType.TEXT,
    "json": FrameType.JSON,
    "binary": FrameType.BINARY,
}
_FLAGS: Final = frozenset(
    [
        *("data", "data-file", "type", "count", "reuse-conn", "wait", "no-resend"),
        *("timeout", "trace", "no-auto-handshake", "reply-to"),
    ]
)
_REJECTED_HINT: Final = (
    "the receiver did not store the message; send it again once the receiver can"
    " store it"
)
_SILENT_HINT: Final = (
    "the receiver did not confirm it stored the message; check `pilotctl peers` and"
    " the daemon log, then send again"
)
_MANY_HINT: Final = (
    "the results list which messages were delivered; check `pilotctl peers` and the"
    " daemon log before sending the others again"
)
_HEAD_KEYS: Final = frozenset(["target", "to", "type", "first_contact", "trace"])


class _Order(NamedTuple):
    """What the command line asks for."""

    data: bytes
    type_name: str
    copies: int
    wait_s: float | None
    timeout_s: float | None
    reply_to: str | None
    reuses: bool
    resends: bool


def send_message(context: Context, arguments: Arguments) -> None:
    """Send a message to a node's inbox and, if asked to, wait for the answer."""
    steps = Steps(context, arguments)
    order = _read_order(context, arguments)
    total = Deadline(order.timeout_s)
    try:
        context.daemon().limit = total
        _send(context, arguments, order, steps)
    except TimedOut as error:
        if order.timeout_s is None or not total.has_passed:
            raise
        raise TimedOut(
            f"send-message exceeded total timeout {format_duration(order.timeout_s)}",
            hint="delivery may already have occurred; check the inbox before retrying",
        ) from error


def _send(context: Context, arguments: Arguments, order: _Order, steps: Steps) -> None:
    steps.mark("connectDriver")
    peer = context.resolve(arguments.positional(0))
    steps.mark("parseAddrOrHostname")
    check_trust(context, arguments, peer)
    steps.mark("maybeAutoHandshake")
    if order.type_name not in _TYPES:
        raise InvalidArgument(
            f'unknown type "{order.type_name[:40]}" (use text, json, or binary)'
        )
    tags = Tags(reply_to=_reply_to(context, order.reply_to))
    is_first = not _has_session(context, peer.node)
    sender = Sender(
        context,
        peer,
        target=arguments.positional(0),
        steps=steps,
        reuses=order.reuses,
        resends=order.resends,
    )
    head = {"target": str(peer), "to": str(peer), "type": order.type_name}
    if order.copies > 1:
        _send_many(context, sender, order, tags, head)
        return
    message = _new_message(order, tags)
    watch = None
    if order.wait_s is not None:
        watch = ReplyWatch(
            mail_folders(context).inbox, node=peer.node, message_id=message.id
        )
    result = {**head, **sender.send(message, 0)}
    sender.close()
    if is_first:
        result["first_contact"] = True
    if steps.rows and context.json:
        result["trace"] = steps.rows
    _check_delivered(result)
    if watch is None or order.wait_s is None:
        context.output.result(result, _sent_text(result))
    else:
        _await_reply(context, sender, message, result, watch, order.wait_s)
    steps.mark("outputOK")


def _send_many(
    context: Context, sender: Sender, order: _Order, tags: Tags, head: dict[str, Any]
) -> None:
    """Send several messages; report every one of them, then fail if one failed."""
    results: list[dict[str, Any]] = []
    for seq in range(order.copies):
        try:
            row = sender.send(_new_message(order, tags), seq)
        except ConnectionFailed as error:
            row = {"seq": seq, "bytes": len(order.data), "error": str(error)}
        results.append(row)
    sender.close()
    problems = [(row, _problem(row)) for row in results if _problem(row)]
    if problems:
        first, reason = problems[0]
        raise _failure(first)(
            f"{len(problems)} of {order.copies} messages to {head['to']} were not"
            f" delivered (first, message {first['seq']}: {reason})",
            hint=_MANY_HINT,
            details={"results": results},
        )
    result = {**head, "reuse_conn": order.reuses, "results": results}
    context.output.result(result, "\n".join(_row_text(head, row) for row in results))


def _await_reply(
    context: Context,
    sender: Sender,
    message: Message,
    result: dict[str, Any],
    watch: ReplyWatch,
    wait_s: float,
) -> None:
    peer, target = result["to"], sender.target
    limit = format_duration(wait_s)
    if not context.json:
        context.output.text(_sent_text(result))
        context.output.note(f"waiting for reply from {target} (up to {limit})...")
    acknowledged = time.monotonic()
    deadline = context.daemon().limit.within(wait_s)
    reply = None
    if result.get("first_contact") and sender.resends:
        # The answer to a first message may be lost while trust and tunnels are new
        # on the other side. The receiver knows the copy by its ID.
        reply = watch.wait(deadline.within(wait_s / 2))
        if reply is None and not deadline.has_passed:
            sender.repeat(message)
    if reply is None:
        reply = watch.wait(deadline)
    if reply is None:
        raise TimedOut(
            f'no reply from "{peer}" within {limit}',
            hint=f"{target} acknowledged the request but no reply arrived; retry in a"
            " minute, or use a longer --wait",
        )
    after_ms = round((time.monotonic() - acknowledged) * 1000)
    if context.json:
        context.output.result({**result, "reply": reply, "reply_after_ms": after_ms})
    else:
        context.output.note(f"reply after {after_ms} ms:")
        context.output.text(_reply_text(reply))


# Arguments.


def _read_order(context: Context, arguments: Arguments) -> _Order:
    if len(arguments.positionals) != 1:
        raise context.usage_error()
    for flag in arguments.flags:
        if flag not in _FLAGS:
            raise InvalidArgument(f"send-message: unknown flag --{flag}")
    return _Order(
        type_name=arguments.text("type", "text"),
        copies=max(1, arguments.integer("count", 1)),
        wait_s=_wait(arguments),
        timeout_s=_positive(arguments, "timeout"),
        reply_to=_message_id(arguments),
        reuses=arguments.enabled("reuse-conn")
        or variable_is_set("PILOT_SENDMSG_REUSE_CONN"),
        resends=not arguments.enabled("no-resend"),
        data=_data(arguments),
    )


def _data(arguments: Arguments) -> bytes:
    if arguments.has("data-file"):
        if arguments.has("data"):
            raise InvalidArgument("give --data or --data-file, not both")
        return _file_data(arguments.text("data-file"))
    data = encode(arguments.text("data"))
    if data == b"-":
        data = sys.stdin.buffer.read(max_frame() + 1)
    if not data:
        raise InvalidArgument("--data is required")
    return _checked(data)


def _file_data(path: str) -> bytes:
    if not path:
        raise InvalidArgument("--data-file needs a path")
    try:
        with open(path, "rb") as file:
            data = file.read(max_frame() + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidArgument(
            f"read --data-file: open {path}: {reason.lower()}"
        ) from error
    if not data:
        raise InvalidArgument(f"--data-file {path} is empty")
    return _checked(data)


def _checked(data: bytes) -> bytes:
    if len(data) > max_frame():
        raise InvalidArgument(
            f"message is longer than {max_frame()} bytes",
            hint="send it as a file: pilotctl send-file",
        )
    return data


def _wait(arguments: Arguments) -> float | None:
    if arguments.has("wait") and arguments.text("wait") == "true":
        return DEFAULT_WAIT_S
    return _positive(arguments, "wait")


def _positive(arguments: Arguments, name: str) -> float | None:
    if not arguments.has(name):
        return None
    try:
        seconds = parse_duration(arguments.text(name), f"--{name}")
    except InvalidArgument:
        seconds = 0.0
    if seconds <= 0:
        raise InvalidArgument(f"--{name} must be a positive duration")
    return seconds


def _message_id(arguments: Arguments) -> str | None:
    if not arguments.has("reply-to"):
        return None
    text = arguments.text("reply-to")
    if not is_message_id(text):
        raise InvalidArgument(
            "--reply-to must be a message ID: 1-128 characters of A-Z a-z 0-9 . _ : -"
        )
    return text


def _reply_to(context: Context, given: str | None) -> str | None:
    """Return the ID to answer; a file name of the inbox stands for the ID inside."""
    if given is None or not is_inbox_id(given):
        return given
    record = try_message(mail_folders(context).inbox, given)
    if record is None:
        raise InvalidArgument(
            f"--reply-to {given} is an inbox file id, not a message_id, and no such"
            " message is in the inbox; pass the message_id that pilotctl inbox shows"
        )
    found = record.get("message_id")
    if not isinstance(found, str) or not is_message_id(found):
        raise InvalidArgument(
            f"--reply-to {given}: that message came without a message_id, so no"
            " answer can name it; leave --reply-to out"
        )
    return found


# Messages and results.


def _new_message(order: _Order, tags: Tags) -> Message:
    message_id = new_message_id(os.urandom(MESSAGE_ID_SIZE))
    return Message(
        type=_TYPES[order.type_name],
        data=order.data,
        tags=Tags(message_id=message_id, reply_to=tags.reply_to),
    )


def _has_session(context: Context, node: int) -> bool:
    peers = context.daemon().request_json(Command.INFO).get("peer_list") or ()
    return any(
        isinstance(row, dict) and row.get("node_id") == node and row.get("encrypted")
        for row in peers
    )


def _problem(row: dict[str, Any]) -> str | None:
    """Return why a message was not delivered, none when it was."""
    for key in ("error", "ack_error"):
        if key in row:
            return str(row[key])
    answer = str(row.get("inner_ack") or row["ack"])
    return None if answer.startswith("ACK ") else f"receiver refused it: {answer}"


def _failure(row: dict[str, Any]) -> type[NotDelivered]:
    return NotDelivered if "ack" in row else NotAcknowledged


def _check_delivered(result: dict[str, Any]) -> None:
    problem = _problem(result)
    if problem is None:
        return
    row = {key: value for key, value in result.items() if key not in _HEAD_KEYS}
    text = f"receiver rejected message: {problem.partition(': ')[2]}"
    hint = _REJECTED_HINT
    if "ack" not in result:
        size = result["bytes"]
        text = (
            f"{result['to']} did not acknowledge the message ({size} bytes): {problem}"
        )
        hint = _SILENT_HINT
    raise _failure(result)(printable(text), hint=hint, details={"results": [row]})


def _sent_text(result: dict[str, Any]) -> str:
    return _row_text(result, result)


def _row_text(head: dict[str, Any], row: dict[str, Any]) -> str:
    answer = printable(str(row.get("inner_ack") or row["ack"]))
    text = f"sent {row['bytes']} bytes to {head['to']} · {answer}"
    return f"{text}\nmessage_id {row['message_id']}"


def _reply_text(reply: dict[str, Any]) -> str:
    body = str(reply.get("data_b64") or reply.get("data") or "")
    return printable(body) if sys.stdout.isatty() else body
