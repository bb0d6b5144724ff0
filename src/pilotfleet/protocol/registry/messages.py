"""JSON messages of the registry (registry.md sections 2.3 and 2.6).

Requests stay plain dictionaries: the wire rule is that a field of the wrong
type, a negative number or one above its range counts as absent, which no
schema expresses. The getters here are the one place that applies the rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from pilotfleet.errors import DecodeError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_NETWORK",
    "MAX_NODE",
    "TRUST_LINKS_EXTENSION",
    "Reply",
    "Request",
    "decode_request",
    "encode_message",
    "encode_reply",
    "error_reply",
    "flag",
    "network_number",
    "node_number",
    "number",
    "text",
    "texts",
]

Request: TypeAlias = "Mapping[str, Any]"
"""A decoded request; read it with the getters of this module."""
Reply: TypeAlias = dict[str, Any]

MAX_NODE: Final = 0xFFFF_FFFF
MAX_NETWORK: Final = 0xFFFF
TRUST_LINKS_EXTENSION: Final = "trust-links"
"""What a registry that answers ``list_trust`` tells at registration."""

_ENCODER: Final = msgspec.json.Encoder()


def decode_request(body: bytes) -> dict[str, Any]:
    """Read one message.

    Raises:
        DecodeError: Not a JSON object.
    """
    try:
        message = msgspec.json.decode(body)
    # Deep nesting and keys that are not UTF-8 leave msgspec's own error tree.
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError(f"message is not JSON: {error}") from None
    if not isinstance(message, dict):
        raise DecodeError("message is not a JSON object")
    return message


def encode_message(message: Mapping[str, Any]) -> bytes:
    """Return the JSON text of a request or reply."""
    return _ENCODER.encode(message)


encode_reply: Final = encode_message


def error_reply(error: str, **facts: Any) -> Reply:
    """Return the message that refuses a request."""
    return {"type": "error", "error": error, **facts}


def number(request: Request, name: str, maximum: int) -> int:
    """Return a number; 0 when absent, negative, above ``maximum`` or no number."""
    value = request.get(name)
    # Booleans are integers in Python, but not on the wire.
    if type(value) is int:
        return value if 0 < value <= maximum else 0
    if type(value) is float and 0 < value <= maximum:
        return int(value)
    return 0


def node_number(request: Request, name: str = "node_id") -> int:
    """Return a node ID; 0 means none."""
    return number(request, name, MAX_NODE)


def network_number(request: Request, name: str = "network_id") -> int:
    """Return a network ID; 0 means the backbone or none."""
    return number(request, name, MAX_NETWORK)


def text(request: Request, name: str) -> str:
    """Return a text; empty when absent or no text."""
    value = request.get(name)
    return value if type(value) is str else ""


def flag(request: Request, name: str) -> bool:
    """Return a boolean; false when absent or no boolean."""
    return request.get(name) is True


def texts(request: Request, name: str) -> list[str]:
    """Return the texts of a list; other members are left out."""
    value = request.get(name)
    if not isinstance(value, list):
        return []
    return [item for item in value if type(item) is str]
