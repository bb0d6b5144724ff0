"""Extension frames: pilotfleet's own requests on the daemon's socket.

They use command bytes that the official daemon answers with ``unknown command``,
so a client learns by asking. Unlike the official commands they carry an id, and any
number may be outstanding::

    0x80  {"id": 1, "op": "search", "tags": ["text"]}      client to daemon
    0x81  {"id": 1, "result": {...}}                       or
    0x81  {"id": 1, "error": {"code", "message", "hint"?}}
    0x82  {"push": "task.offer", ...}                      at any time
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import (
    DecodeError,
    InvalidArgument,
    PilotError,
    error_for_code,
    error_to_fields,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_OUTSTANDING",
    "ExtensionReply",
    "ExtensionRequest",
    "decode_object",
    "decode_reply",
    "decode_request",
    "encode_failure",
    "encode_request",
    "encode_result",
    "error_from_reply",
]

MAX_OUTSTANDING: Final = 1024
"""Requests that one connection may have in flight."""


class ExtensionRequest(msgspec.Struct, frozen=True):
    """A decoded request; ``params`` holds everything but id and op."""

    id: int
    op: str
    params: dict[str, Any]


class _Failure(msgspec.Struct, frozen=True):
    code: str = "internal"
    message: str = ""
    hint: str | None = None


class ExtensionReply(msgspec.Struct, frozen=True):
    """A decoded reply: ``result``, or ``error`` when that is not None."""

    id: int
    result: dict[str, Any] | None = None
    error: _Failure | None = None


_object_decoder: Final = msgspec.json.Decoder(dict[str, Any])
_reply_decoder: Final = msgspec.json.Decoder(ExtensionReply)
_encode: Final = msgspec.json.Encoder().encode


def decode_object(payload: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DecodeError: Not JSON, or not an object.
    """
    try:
        return _object_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"not a JSON object: {error}") from None


def encode_request(number: int, op: str, params: Mapping[str, Any]) -> bytes:
    """Return the payload of a request.

    Raises:
        InvalidArgument: A text in it has no UTF-8 form.
    """
    try:
        return _encode({**params, "id": number, "op": op})
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{op}: {error.object[:40]!r} is not valid text"
        ) from None


def decode_request(payload: bytes) -> ExtensionRequest:
    """Read a request.

    Raises:
        DecodeError: Not such a request.
    """
    params = decode_object(payload)
    number, op = params.pop("id", None), params.pop("op", None)
    if not isinstance(number, int) or isinstance(number, bool):
        raise DecodeError("extension: id must be a number")
    if not isinstance(op, str):
        raise DecodeError("extension: op must be a text")
    return ExtensionRequest(number, op, params)


def encode_result(number: int, result: Mapping[str, Any]) -> bytes:
    """Return the payload of a reply that answers the request."""
    return _encode({"id": number, "result": result})


def encode_failure(number: int, error: PilotError) -> bytes:
    """Return the payload of a reply that refuses the request."""
    return _encode({"id": number, "error": error_to_fields(error)})


def decode_reply(payload: bytes) -> ExtensionReply:
    """Read a reply.

    Raises:
        DecodeError: Not such a reply.
    """
    try:
        return _reply_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"extension reply: {error}") from None


def error_from_reply(error: _Failure) -> PilotError:
    """Return the exception that a refused request raises in the client."""
    return error_for_code(error.code, error.message, hint=error.hint)
