"""Receipts: their text, what they must fulfil, their signatures."""

from __future__ import annotations

import contextlib
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.errors import DecodeError
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.services.receipts import (
    MAX_TIME_MS,
    Receipt,
    SignedReceipt,
    decode_receipt,
    decode_receipt_json,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "services.json"
POLO: dict[str, list[dict[str, Any]]] = json.loads(VECTORS.read_text())["polo"]

SUBMITTER = Identity(b"s" * 32)
WORKER = Identity(b"w" * 32)
GOOD = Receipt(
    task_id="8f14e45f-ceea-467f-a8f5-6c1d1d5a1b02",
    submitter=7,
    worker=12,
    digest=sha256(b"42 words").hexdigest(),
    reward=3,
    idle_ms=30_000,
    staged_ms=300_000,
    cpu_ms=600_000,
    completed_at=1_795_355_487,
)
# Our own vector: the text and the signatures of the keys above (Ed25519 is
# deterministic), for whoever writes another implementation.
TEXT = (
    "receipt:v1:8f14e45f-ceea-467f-a8f5-6c1d1d5a1b02:7:12:"
    "af6ba1de4302f6b19e36303fdbfe7c6e3b81a6750bd2d2ad98b347da4661c8c0"
    ":3:30000:300000:600000:1795355487"
)
SUBMITTER_SIGNATURE = (
    "8U4mIY5ZXOK4Bid9FzLaM/PQVKsMJO49EImj7/QWBtfciSxi5M5NHt"
    "+p2/0HMZvZK4TTmCIIFEFoyXoqzH+xBQ=="
)
WORKER_SIGNATURE = (
    "tp3y6rlLqMM9sh9dZZmBotMWn7ycd/sxf6Keu4PX7CUgGWfpScf5Mi"
    "MDGf5q0XrUuH0L7ah15LMX5gbLJJa0DA=="
)


def signed(receipt: Receipt = GOOD) -> SignedReceipt:
    return receipt.with_signatures(
        submitter=receipt.sign(SUBMITTER), worker=receipt.sign(WORKER)
    )


def test_the_signed_text_and_both_signatures_are_those_of_the_vector() -> None:
    assert GOOD.text == TEXT
    assert signed().submitter_signature == SUBMITTER_SIGNATURE
    assert signed().worker_signature == WORKER_SIGNATURE
    assert signed().is_signed_by_both(SUBMITTER.public_key, WORKER.public_key)


@pytest.mark.parametrize("row", POLO["table"])
def test_every_recorded_reward_makes_a_good_receipt(row: dict[str, Any]) -> None:
    # The formula takes a negative time for 0; a receipt has 0 there.
    receipt = msgspec.structs.replace(
        GOOD,
        reward=row["reward"],
        idle_ms=max(row["time_idle_ms"], 0),
        staged_ms=max(row["time_staged_ms"], 0),
        cpu_ms=max(row["time_cpu_ms"], 0),
    )
    receipt.check()
    with pytest.raises(DecodeError, match="reward"):
        msgspec.structs.replace(receipt, reward=row["reward"] + 1).check()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"task_id": ""}, "task id"),
        ({"task_id": "../../evil"}, "task id"),
        ({"task_id": "a:b"}, "task id"),
        ({"task_id": "x" * 65}, "task id"),
        ({"submitter": 0}, "node id"),
        ({"worker": 1 << 32}, "node id"),
        ({"worker": -12}, "node id"),
        ({"worker": 7}, "one node"),
        ({"digest": GOOD.digest.upper()}, "digest"),
        ({"digest": GOOD.digest + "\n"}, "digest"),
        ({"idle_ms": -1}, "time"),
        ({"cpu_ms": MAX_TIME_MS + 1}, "time"),
        ({"completed_at": 0}, "completed_at"),
        ({"completed_at": 1 << 63}, "completed_at"),
        ({"reward": 4}, "reward 4 is not 3"),
        ({"reward": 0}, "reward"),
    ],
)
def test_what_is_malformed_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        decode_receipt(msgspec.to_builtins(signed()) | change)


@pytest.mark.parametrize("field", SignedReceipt.__struct_fields__)
def test_every_field_is_needed_and_of_its_type(field: str) -> None:
    row = msgspec.to_builtins(signed())
    with pytest.raises(DecodeError):
        decode_receipt(row | {field: None})
    del row[field]
    with pytest.raises(DecodeError):
        decode_receipt(row)


@pytest.mark.parametrize("field", Receipt.__struct_fields__)
def test_both_signatures_cover_every_field(field: str) -> None:
    value = getattr(GOOD, field)
    other = value + 1 if isinstance(value, int) else value + "0"
    changed = msgspec.structs.replace(signed(), **{field: other})
    assert not changed.is_signed_by(SUBMITTER.public_key, changed.submitter_signature)
    assert not changed.is_signed_by(WORKER.public_key, changed.worker_signature)


@pytest.mark.parametrize("signature", ["", "!", "é", "AAAA", GOOD.sign(WORKER) + "\n"])
def test_a_malformed_signature_is_no_signature(signature: str) -> None:
    assert not GOOD.is_signed_by(WORKER.public_key, signature)
    assert not GOOD.is_signed_by(b"short", GOOD.sign(WORKER))


def test_a_receipt_signed_twice_by_one_side_is_not_signed_by_both() -> None:
    one = GOOD.with_signatures(submitter=GOOD.sign(WORKER), worker=GOOD.sign(WORKER))
    assert not one.is_signed_by_both(SUBMITTER.public_key, WORKER.public_key)


def test_the_json_form_is_flat_and_tolerates_what_is_new() -> None:
    row = msgspec.to_builtins(signed())
    assert set(row) == {
        *Receipt.__struct_fields__,
        "submitter_signature",
        "worker_signature",
    }
    data = msgspec.json.encode(row | {"later": 1})
    assert decode_receipt_json(data) == decode_receipt(row) == signed()


@given(st.binary())
def test_arbitrary_bytes_give_a_receipt_or_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_receipt_json(data)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.one_of(
                st.integers(), st.text(max_size=70), st.floats(), st.none(), st.just(1)
            )
            for name in SignedReceipt.__struct_fields__
        },
    )
)
def test_arbitrary_fields_give_a_receipt_or_a_decode_error(row: dict[str, Any]) -> None:
    with contextlib.suppress(DecodeError):
        decode_receipt(msgspec.to_builtins(signed()) | row).check()
