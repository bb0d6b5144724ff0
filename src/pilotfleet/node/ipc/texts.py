"""Reply bodies and error words for clients (ipc.md sections 3 and 12)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import PilotError, RegistryError
from pilotfleet.protocol.ipc.framing import MAX_JSON

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["describe", "encode_json", "encode_list", "operation"]

# Sorted keys, as the reference emits them.
encode_json: Final = msgspec.json.Encoder(order="sorted").encode


def describe(error: PilotError, operation: str = "") -> str:
    """Return the text of ``error``, with the operation's name before it.

    Clients recognise errors of the registry by the word before their text.
    """
    text = str(error)
    if isinstance(error, RegistryError) and not text.startswith("registry: "):
        text = f"registry: {text}"
    if operation and not text.startswith(f"{operation}: "):
        text = f"{operation}: {text}"
    return text


@contextmanager
def operation(name: str) -> Iterator[None]:
    """Put ``name`` before the text of every error raised inside.

    The class is lost: on this wire an error is its text.
    """
    try:
        yield
    except PilotError as error:
        raise PilotError(describe(error, name), hint=error.hint) from error


def encode_list(body: Mapping[str, Any], *lists: str, newest_last: bool) -> bytes:
    """Encode ``body``, cutting the named lists until the reply fits a frame.

    For each list that was cut, ``<name>_truncated`` is added.
    """
    data = encode_json(body)
    for name in lists:
        if len(data) <= MAX_JSON:
            break
        body, data = _cut(dict(body), name, newest_last=newest_last)
    return data


def _cut(
    body: dict[str, Any], name: str, *, newest_last: bool
) -> tuple[dict[str, Any], bytes]:
    rows = body[name]
    body[f"{name}_truncated"] = True
    while True:
        # Rows are about equal in size, so few rounds are needed.
        keep = len(rows) * 3 // 4
        rows = rows[len(rows) - keep :] if newest_last else rows[:keep]
        body[name] = rows
        data = encode_json(body)
        if len(data) <= MAX_JSON or not rows:
            return body, data
