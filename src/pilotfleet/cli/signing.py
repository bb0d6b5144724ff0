"""Commands that sign and check request envelopes (ipc.md section 9)."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.streams import encode
from pilotfleet.errors import ConnectionFailed, InvalidArgument
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

MAX_SKEW_S = 24 * 3600
MAX_AUDIENCE = 64
MAX_ENVELOPE = 512
_BODIES = ("body-file", "body-hash", "body")


def sign_request(context: Context, arguments: Arguments) -> None:
    """Prove that a request comes from this node."""
    audience = arguments.text("audience")
    if not audience:
        raise context.usage_error()
    body_hash = _body_hash(arguments)
    if len(audience) > MAX_AUDIENCE:
        raise ConnectionFailed(
            "sign-request: sign_envelope: audience must be 1-64 chars"
        )
    payload = _encode({"audience": audience, "body_hash": body_hash})
    body = context.ask(Command.SIGN_ENVELOPE, payload, "sign_envelope")
    data = {key: body.get(key) for key in ("address", "envelope", "signature")}
    context.output.result(data)


def verify_request(context: Context, arguments: Arguments) -> int:
    """Check another node's proof; exit code 1 when it is not valid."""
    envelope, signature = arguments.text("envelope"), arguments.text("signature")
    if not envelope or not signature:
        raise context.usage_error()
    skew = arguments.integer("max-skew", 0)
    if not 0 <= skew <= MAX_SKEW_S:
        raise InvalidArgument("verify-request: --max-skew must be 0-86400 seconds")
    if len(envelope) > MAX_ENVELOPE:
        raise ConnectionFailed(
            "verify-request: verify_envelope: envelope must be 1-512 bytes"
        )
    request = {
        "envelope": envelope,
        "signature": signature,
        "check_standing": arguments.enabled("standing"),
        "max_skew_secs": skew,
    }
    body = context.ask(Command.VERIFY_ENVELOPE, _encode(request), "verify_envelope")
    context.output.result(body)
    return 0 if body.get("valid") is True else 1


def _body_hash(arguments: Arguments) -> str:
    if sum(map(arguments.has, _BODIES)) != 1:
        raise InvalidArgument(
            "sign-request: exactly one of --body-file, --body-hash, --body is required"
        )
    if arguments.has("body-hash"):
        text = arguments.text("body-hash")
        if not re.fullmatch("[0-9a-fA-F]{64}", text):
            raise ConnectionFailed(
                "sign-request: sign_envelope: body hash must be 64 hex chars (sha256)"
            )
        return text
    if arguments.has("body-file"):
        path = arguments.text("body-file")
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            reason = (error.strerror or "").lower()
            step = "read" if isinstance(error, IsADirectoryError) else "open"
            raise InvalidArgument(
                f"sign-request: read {path}: {step} {path}: {reason}"
            ) from error
    return hashlib.sha256(encode(arguments.text("body"))).hexdigest()


def _encode(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return text.encode()
