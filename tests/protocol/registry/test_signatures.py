"""Signed texts and the memory of good signatures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotfleet.errors import DecodeError, InvalidArgument
from pilotfleet.protocol.identity import Identity, decode_key_text
from pilotfleet.protocol.registry.signatures import (
    SIGNED_TYPES,
    VerificationCache,
    decode_signature,
    sign_request,
    signed_text,
)

VECTORS = json.loads(
    (Path(__file__).parents[2] / "vectors" / "registry.json").read_bytes()
)
COMPUTED = VECTORS["computed"]
KEY_A = Identity(bytes.fromhex(COMPUTED["key_a"]["seed"]))
SIGNED = [c for c in VECTORS["captured"] if "signed_text" in c]

# What the fields of the computed vectors stand for.
FIELDS: dict[str, Any] = {
    "listen_addr": "203.0.113.5:4000",
    "public_key": COMPUTED["key_a"]["public_key"],
    "new_public_key": COMPUTED["key_b"]["public_key"],
    "node_id": 1,
    "peer_id": 2,
    "from_node_id": 1,
    "to_node_id": 2,
    "node_a": 1,
    "node_b": 2,
    "network_id": 7,
    "inviter_id": 1,
    "target_node_id": 2,
}


@pytest.mark.parametrize("vector", COMPUTED["signatures"], ids=lambda v: v["request"])
def test_computed_signatures_are_met(vector: dict[str, str]) -> None:
    request = {**FIELDS, "type": vector["request"]}
    if vector["request"] == "resolve":
        request.update(requester_id=1, node_id=2)
    assert signed_text(request) == vector["text"]
    assert sign_request(KEY_A, request)["signature"] == vector["signature"]


@pytest.mark.parametrize("index", range(len(SIGNED)))
def test_captured_signatures_verify(index: int) -> None:
    capture = SIGNED[index]
    request = json.loads(capture["request"])
    assert signed_text(request) == capture["signed_text"]
    key = decode_key_text(capture["signer_public_key"])
    cache = VerificationCache()
    assert cache.verify_text(key, signed_text(request), request["signature"])


def test_search_signs_the_requester() -> None:
    request = {"type": "search", "requester_id": 5, "tags": ["gpu"]}
    assert signed_text(request) == "search:5"


@pytest.mark.parametrize("kind", ["authorize_task_submit", "set_task_exec"])
def test_recorded_text_of_a_request_of_release_1_9(kind: str) -> None:
    services = Path(__file__).parents[2] / "vectors" / "services.json"
    rows = json.loads(services.read_bytes())["polo"]["registry_messages_v1_9"]
    (row,) = (row for row in rows if kind in row["json"])
    assert signed_text(json.loads(row["json"])) == row["signed_text"]


def test_wrongly_typed_numbers_are_signed_as_zero() -> None:
    assert signed_text({"type": "heartbeat", "node_id": "1"}) == "heartbeat:0"


def test_requests_that_nobody_signs_are_refused() -> None:
    assert "lookup" not in SIGNED_TYPES
    with pytest.raises(InvalidArgument, match="'lookup' are not signed"):
        signed_text({"type": "lookup", "node_id": 1})


def test_a_remembered_signature_still_belongs_to_its_key_and_text() -> None:
    cache = VerificationCache()
    other = Identity(bytes(32))
    signature = KEY_A.sign_text("heartbeat:1")
    for _ in range(2):
        assert cache.verify_text(KEY_A.public_key, "heartbeat:1", signature)
    assert not cache.verify_text(other.public_key, "heartbeat:1", signature)
    assert not cache.verify_text(KEY_A.public_key, "heartbeat:2", signature)
    assert len(cache) == 1


def test_raw_signatures_are_remembered_too() -> None:
    cache = VerificationCache()
    signature = KEY_A.sign(b"heartbeat:1")
    for _ in range(2):
        assert cache.verify_raw(KEY_A.public_key, "heartbeat:1", signature)
    assert not cache.verify_raw(KEY_A.public_key, "heartbeat:1", signature[:-1])
    assert len(cache) == 1


def test_the_cache_stays_within_its_bound() -> None:
    cache = VerificationCache(8)
    for number in range(50):
        text = f"heartbeat:{number}"
        assert cache.verify_text(KEY_A.public_key, text, KEY_A.sign_text(text))
        # What is used all the time survives the change of generations.
        first = KEY_A.sign_text("heartbeat:0")
        assert cache.verify_text(KEY_A.public_key, "heartbeat:0", first)
        assert len(cache) <= 8


@pytest.mark.parametrize("signature", ["!", "AAA", "AA AA", "é"])
def test_what_is_no_base64_is_refused(signature: str) -> None:
    with pytest.raises(DecodeError):
        decode_signature(signature)
    with pytest.raises(DecodeError):
        VerificationCache().verify_text(KEY_A.public_key, "x", signature)
