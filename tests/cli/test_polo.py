"""Scores on the command line, and their audit."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.cli.poloaudit import Audit
from pilotfleet.protocol.identity import Identity
from pilotfleet.protocol.services.polo import MAX_SCORE, reward
from pilotfleet.protocol.services.receipts import Receipt
from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

BOSS, WORKER = Identity(b"b" * 32), Identity(b"w" * 32)
DIGEST = "ab" * 32


def key(identity: Identity) -> str:
    return base64.b64encode(identity.public_key).decode()


def row(task_id: str = "a", *, minutes: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a receipt that node 1 paid and node 2 earned, as a registry lists it."""
    cpu_ms = minutes * 60_000
    receipt = Receipt(
        task_id=task_id,
        submitter=1,
        worker=2,
        digest=DIGEST,
        reward=reward(time_cpu_ms=cpu_ms),
        idle_ms=0,
        staged_ms=0,
        cpu_ms=cpu_ms,
        completed_at=1_795_000_000,
    )
    return {
        **{name: getattr(receipt, name) for name in Receipt.__struct_fields__},
        "submitter_signature": receipt.sign(BOSS),
        "worker_signature": receipt.sign(WORKER),
        "submitter_key": key(BOSS),
        "worker_key": key(WORKER),
        **changes,
    }


def page(score: int, base: int = 0, folded: int = 0) -> dict[str, Any]:
    return {"score": score, "base": base, "folded": {"count": 3, "sum": folded}}


def test_receipts_that_make_the_score_are_fine() -> None:
    audit = Audit(2, page(10 + 5 + 2 + 4, base=10, folded=5))
    audit.add([row("a"), row("b", minutes=7)])
    assert audit.is_ok
    assert (audit.sum, audit.earned, audit.as_worker) == (6, 6, 2)
    shown = audit.as_dict()
    assert (shown["computed"], shown["ok"], shown["receipts"]) == (21, True, 2)
    assert "in all: the score" in audit.as_text()


def test_each_receipt_costs_the_submitter_one() -> None:
    audit = Audit(1, page(-2))
    audit.add([row("a"), row("b", minutes=7)])
    assert audit.is_ok
    assert (audit.paid, audit.as_submitter) == (-2, 2)


def test_a_score_stays_within_its_range() -> None:
    audit = Audit(2, page(MAX_SCORE, base=MAX_SCORE))
    audit.add([row()])
    assert audit.is_ok


def test_a_score_that_does_not_follow_is_told() -> None:
    audit = Audit(2, page(3))
    audit.add([row()])
    assert not audit.is_ok
    assert (audit.computed, audit.wrong) == (2, [])
    assert "NOT the score" in audit.as_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reward": 3}, "reward 3 is not 2"),
        ({"cpu_ms": 59_999}, "a signature is not valid"),
        ({"worker_signature": row("b")["worker_signature"]}, "signature is not valid"),
        ({"submitter_key": key(WORKER)}, "a signature is not valid"),
        ({"worker_key": "AAAA"}, "worker_key is not a public key"),
        ({"worker_key": "é"}, "worker_key is not a public key"),
        ({"worker_key": None}, "worker_key is not a public key"),
        ({"worker": 3}, "it is not a receipt of node 2"),
        ({"worker": "2"}, "receipt: "),
        ({"task_id": "../x"}, "task id"),
    ],
)
def test_a_bad_receipt_is_named_and_not_added(
    changes: dict[str, Any], reason: str
) -> None:
    audit = Audit(2, page(2))
    audit.add([row("good"), row(**changes)])
    assert audit.sum == 2
    assert not audit.is_ok
    (wrong,) = audit.wrong
    assert reason in wrong["reason"]
    assert "NOT every receipt is good" in audit.as_text()


def test_a_receipt_counts_once() -> None:
    audit = Audit(2, page(4))
    audit.add([row("a"), row("a")])
    assert [wrong["reason"] for wrong in audit.wrong] == ["it is counted twice"]
    assert audit.computed == 2


@pytest.mark.parametrize("rows", [["x"], [None], [{}], [[1]]])
def test_what_is_no_receipt_is_wrong(rows: list[Any]) -> None:
    audit = Audit(2, {"score": "x", "folded": []})
    audit.add(rows)
    assert len(audit.wrong) == 1
    assert audit.score == 0


# The commands


@pytest.fixture(scope="module")
def pair() -> Iterator[World]:
    """Two daemons; ``boss`` gave ``hand`` two tasks, which are counted."""
    with world() as net:
        net.start_rendezvous()
        for name in ("boss", "hand"):
            net.start_daemon(name, "--hostname", name, "--trust-auto-approve")
        hand = str(data_of(net.ctl("hand", "info"))["node_id"])
        data_of(net.ctl("boss", "handshake", hand))
        data_of(net.ctl("boss", "ping", hand, "--count", "1"))
        # The second would be refused once the first is counted.
        for _ in range(2):
            data_of(net.ctl("boss", "task", "submit", "hand", "--task", "x"))
        for task in data_of(net.ctl("hand", "task", "list"))["tasks"]:
            words = ("--id", task["task_id"])
            data_of(net.ctl("hand", "task", "accept", *words))
            data_of(net.ctl("hand", "task", "send-results", *words, "--results", "y"))

        def is_counted() -> bool:
            return bool(data_of(net.ctl("hand", "my-polo"))["polo_score"] == 2)

        net.programs[0].wait_until(is_counted)
        yield net


def test_a_score_is_shown_to_everybody(pair: World) -> None:
    own = data_of(pair.ctl("hand", "polo", "show"))
    other = data_of(pair.ctl("boss", "polo", "show", "hand"))
    assert own == other
    assert (own["polo_score"], own["address"]) == (2, "0:0000.0000.0002")


def test_receipts_are_listed_in_pages(pair: World) -> None:
    body = data_of(pair.ctl("boss", "polo", "receipts"))
    assert [one["state"] for one in body["receipts"]] == ["counted", "counted"]
    assert (body["sums"]["paid"], body["next_cursor"]) == (2, "")
    first = data_of(pair.ctl("boss", "polo", "receipts", "--limit", "1"))
    rest = ("polo", "receipts", "--limit", "1", "--cursor", first["next_cursor"])
    second = data_of(pair.ctl("boss", *rest))
    assert first["receipts"] + second["receipts"] == body["receipts"]
    refused = pair.ctl("boss", "polo", "receipts", "--limit", "0")
    assert json.loads(refused.stderr)["code"] == "invalid_argument"


def test_the_own_score_is_audited(pair: World) -> None:
    for name, score in (("hand", 2), ("boss", -2)):
        body = data_of(pair.ctl(name, "polo", "audit"))
        assert (body["ok"], body["receipts"], body["sum"]) == (True, 2, score)
        assert (body["polo_score"], body["computed"]) == (score, score)


def test_the_score_of_another_is_audited_with_the_admin_token(pair: World) -> None:
    refused = pair.ctl("boss", "polo", "audit", "hand")
    assert json.loads(refused.stderr)["code"] == "auth_required"
    pilotctl = pair.ctl("boss", "version").args[0]
    env = {"PILOT_ADMIN_TOKEN": pair.admin_token}
    body = data_of(pair.run_ctl(pilotctl, "boss", "polo", "audit", "2", **env))
    assert (body["node_id"], body["ok"], body["sum"]) == (2, True, 2)


def test_what_was_earned_can_be_claimed(pair: World) -> None:
    body = data_of(pair.ctl("hand", "polo", "claim"))
    assert (body["presented"], body["known"], body["refused"]) == (2, 2, 0)
    again = data_of(pair.ctl("hand", "polo", "claim"))
    assert again["presented"] == 0
    assert data_of(pair.ctl("hand", "my-polo"))["polo_score"] == 2
