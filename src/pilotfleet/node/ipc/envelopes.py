"""Signing and checking request envelopes (ipc.md section 9)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import DecodeError, NotFound, PilotError
from pilotfleet.protocol.address import BACKBONE, Address
from pilotfleet.protocol.identity import decode_key_text, verify
from pilotfleet.protocol.ipc.envelope import (
    DEFAULT_SKEW_S,
    Envelope,
    body_digest,
    decode_base64,
)
from pilotfleet.protocol.ipc.extension import decode_object

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent

__all__ = ["sign_envelope", "verify_envelope"]

ONLINE_S: Final = 180
"""A node seen within this time counts as online."""
NONCE_BYTES: Final = 8
MAX_SKEW_S: Final = 24 * 3600


def sign_envelope(agent: Agent, payload: bytes) -> dict[str, Any]:
    """Sign a request of this agent; the daemon never signs a caller's own text.

    Raises:
        DecodeError: Something in the payload is missing or wrong.
    """
    try:
        request = decode_object(payload)
    except DecodeError as error:
        raise DecodeError(f"bad payload: {error}") from None
    audience, body_hash, nonce = body_digest(request)
    envelope = Envelope(
        agent.address,
        int(agent.host.wall()),
        nonce or os.urandom(NONCE_BYTES).hex(),
        body_hash,
        audience,
    )
    return {
        "type": "sign_envelope_ok",
        "envelope": envelope.text,
        "signature": agent.identity.sign_text(envelope.text),
        "address": str(agent.address),
    }


async def verify_envelope(agent: Agent, payload: bytes) -> dict[str, Any]:
    """Tell whether an envelope is genuine; a false one is no error.

    Raises:
        DecodeError: A field of the payload is missing.
    """
    request = decode_object(payload)
    text, signature = request.get("envelope"), request.get("signature")
    if not (
        isinstance(text, str) and isinstance(signature, str) and text and signature
    ):
        raise DecodeError("envelope and signature required")
    try:
        return await _verify(agent, request, text, signature)
    except PilotError as error:
        return {
            "type": "verify_envelope_ok",
            "valid": False,
            "reason": str(error),
        }


async def _verify(
    agent: Agent, request: dict[str, Any], text: str, signature: str
) -> dict[str, Any]:
    envelope = Envelope.parse(text)
    envelope.check_time(agent.host.wall(), _skew(request))
    node = envelope.address.node
    sealed = decode_base64(signature, "reqsig: signature")
    key = agent.host.routing.known_key(node)
    # A key that does not fit may just be an old one: only the registry says no.
    is_known = key is not None and verify(key, sealed, text.encode())
    wants_standing = request.get("check_standing") is True
    record: dict[str, Any] = {}
    if key is None or not is_known or wants_standing:
        record, key = await _look_up(agent, node)
        if not verify(key, sealed, text.encode()):
            raise DecodeError("reqsig: signature verification failed")
    body = {
        "type": "verify_envelope_ok",
        "valid": True,
        "node_id": node,
        "address": str(Address(BACKBONE, node)),
        "verified_via": "cache" if is_known else "registry",
        "trusted": agent.trust.is_trusted(node, key),
    }
    if wants_standing:
        body |= _standing(record, agent.host.wall(), envelope.address.network)
    return body


async def _look_up(agent: Agent, node: int) -> tuple[dict[str, Any], bytes]:
    """Return what the registry says of a node, and its key; remember the key."""
    try:
        record = await agent.registry("lookup", node_id=node)
        key = decode_key_text(str(record.get("public_key", "")))
    except PilotError as error:
        raise NotFound(
            f"public key for node {node} unavailable: lookup node {node}:"
            f" registry: {error}"
        ) from error
    rotated = bool(record.get("key_generation"))
    agent.host.routing.keep_key(node, key, rotated=rotated)
    return record, key


def _standing(record: dict[str, Any], wall: float, network: int) -> dict[str, Any]:
    standing: dict[str, Any] = {}
    seen = record.get("last_seen_unix")
    if isinstance(seen, int) and seen > 0:
        standing["last_seen_unix"] = seen
        standing["online"] = wall - seen <= ONLINE_S
    if isinstance(record.get("key_generation"), int):
        standing["key_generation"] = record["key_generation"]
    networks = record.get("networks")
    if isinstance(networks, list):
        standing["network_member"] = network == BACKBONE or network in networks
    return standing


def _skew(request: dict[str, Any]) -> int:
    skew = request.get("max_skew_secs")
    if not isinstance(skew, int | float) or skew <= 0:
        return DEFAULT_SKEW_S
    return int(min(skew, MAX_SKEW_S))
