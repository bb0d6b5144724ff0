"""Commands that sign and check request envelopes (ipc.md section 9)."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

from pilotfleet.cli.failures import UsageError
from pilotfleet.cli.streams import encode
from pilotfleet.errors import InvalidArgument, NotFound
from pilotfleet.protocol.ipc.commands import Command

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

MAX_SKEW_S = 24 * 3600


def sign_request(context: Context, arguments: Arguments) -> None:
    """Prove that a request comes from this node."""
    audience = arguments.text("audience")
    body_hash = _body_hash(arguments)
    if not audience or body_hash is None:
        raise UsageError(f"usage: pilotctl {context.command} {context.usage}")
    payload = _encode({"audience": audience, "body_hash": body_hash})
    body = context.ask(Command.SIGN_ENVELOPE, payload, "sign_envelope")
    data = {key: body.get(key) for key in ("envelope", "signature", "address")}
    context.output.result(data)


def verify_request(context: Context, arguments: Arguments) -> int:
    """Check another node's proof; exit code 1 when it is not valid."""
    envelope, signature = arguments.text("envelope"), arguments.text("signature")
    if not envelope or not signature:
        raise UsageError(f"usage: pilotctl {context.command} {context.usage}")
    skew = arguments.integer("max-skew", 0, least=0)
    if skew > MAX_SKEW_S:
        raise InvalidArgument(f"--max-skew {skew} is more than {MAX_SKEW_S} seconds")
    request = {
        "envelope": envelope,
        "signature": signature,
        "check_standing": arguments.enabled("standing"),
        "max_skew_secs": skew,
    }
    body = context.ask(Command.VERIFY_ENVELOPE, _encode(request), "verify_envelope")
    context.output.result(body)
    return 0 if body.get("valid") is True else 1


def _body_hash(arguments: Arguments) -> str | None:
    if arguments.has("body-hash"):
        text = arguments.text("body-hash")
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise InvalidArgument("--body-hash must be 64 lower-case hex digits")
        return text
    if arguments.has("body-file"):
        path = arguments.text("body-file")
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise NotFound(f"file not found: {path}") from error
        except OSError as error:
            raise InvalidArgument(f"cannot read {path}: {error.strerror}") from error
    if arguments.has("body"):
        return hashlib.sha256(encode(arguments.text("body"))).hexdigest()
    return None


def _encode(value: dict[str, Any]) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return text.encode()
