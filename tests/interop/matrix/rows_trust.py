"""Rows: trust between nodes, the gate before a private node, restarts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.interop.matrix.rows import row
from tests.interop.matrix.worlds import PRIVATE, TRUSTED, Stage

if TYPE_CHECKING:
    from tests.interop.matrix.worlds import Node, Pair

AUTO_APPROVE = Stage("auto-approve", far=("-trust-auto-approve",))
PRIVATE_NEAR = Stage("private near", far=("-public",))


def wait_for_pending(node: Node, *, count: int = 1) -> None:
    """Return when ``node`` knows of ``count`` requests for trust."""
    node.pair.wait(
        "pending requests", lambda: len(node.prepare("pending")["pending"]) == count
    )


def wait_for_trusted(node: Node, *, count: int = 1) -> None:
    """Return when ``node`` trusts ``count`` others."""
    node.pair.wait(
        "trusted nodes", lambda: len(node.prepare("trust")["trusted"]) == count
    )


def record_trust_file(node: Node) -> None:
    """Record the trusted nodes as the daemon keeps them."""
    path = node.home / ".pilot" / "trust.json"
    node.pair.wait("a trust file", path.exists)
    rows = json.loads(path.read_text()).get("trusted")
    node.pair.record(f"{node.name}: trust file", {"trusted": rows})


@row("handshake, pending, approve", stage=PRIVATE, fresh=True)
def _handshake(pair: Pair) -> None:
    near, far = pair.near, pair.far
    near.do("handshake", far.id, 'may I? <"&>')
    wait_for_pending(far)
    far.do("pending")
    far.do("approve", near.id)
    wait_for_trusted(near)
    near.do("trust")
    far.do("trust")
    record_trust_file(far)
    far.do("pending", label="pending after approve")
    near.do("ping", far.id, "--count", "1")
    far.do("ping", near.id, "--count", "1")


@row("handshake between public nodes", fresh=True)
def _handshake_public(pair: Pair) -> None:
    near, far = pair.near, pair.far
    near.do("handshake", "far", "hello")
    wait_for_pending(far)
    far.do("pending")
    far.do("approve", "near")
    wait_for_trusted(near)
    near.do("trust")
    near.do("trust", "--search", "nothing")
    far.do("trust")


@row("handshake again when trusted", stage=TRUSTED)
def _handshake_again(pair: Pair) -> None:
    pair.near.do("handshake", pair.far.id)


@row("handshake refused", local=True)
def _handshake_refused(pair: Pair) -> None:
    pair.near.do("handshake")
    pair.near.do("handshake", "99", "nobody is there")
    pair.near.do("handshake", "0:0000.0000.0063", "why")
    pair.near.do("handshake", "nobody")


@row("reject with a reason", stage=PRIVATE, fresh=True)
def _reject(pair: Pair) -> None:
    near, far = pair.near, pair.far
    near.do("handshake", far.id, "please")
    wait_for_pending(far)
    far.do("reject", near.id, "not today")
    far.do("pending")
    near.do("trust")
    far.do("trust")
    near.do("ping", far.id, "--count", "1")


@row("approve and reject nobody", local=True)
def _approve_nobody(pair: Pair) -> None:
    pair.near.do("approve", "77")
    pair.near.do("reject", "77", "no")
    pair.near.do("untrust", "77")
    pair.near.do("approve")
    pair.near.do("reject")
    pair.near.do("pending")
    pair.near.do("trust")


@row("untrust", stage=TRUSTED, fresh=True)
def _untrust(pair: Pair) -> None:
    near, far = pair.near, pair.far
    near.prepare("ping", far.id, "--count", "1")
    near.do("untrust", far.id)
    near.do("trust")
    wait_for_trusted(far, count=0)
    far.do("trust")
    far.do("ping", near.id, "--count", "1")
    near.do("untrust", far.id, label="untrust again")


@row("both ask each other", stage=PRIVATE, fresh=True)
def _mutual(pair: Pair) -> None:
    near, far = pair.near, pair.far
    near.do("handshake", far.id, "one")
    far.do("handshake", near.id, "two")
    wait_for_trusted(near)
    wait_for_trusted(far)
    near.do("trust")
    far.do("trust")
    near.do("ping", far.id, "--count", "1")


@row("trust-auto-approve", stage=AUTO_APPROVE, fresh=True)
def _auto_approve(pair: Pair) -> None:
    near, far = pair.near, pair.far
    near.do("handshake", far.id, "please")
    wait_for_trusted(near)
    near.do("trust")
    far.do("trust")
    far.do("pending")
    near.do("ping", far.id, "--count", "1")


@row("trust after restarts", stage=TRUSTED, fresh=True)
def _trust_kept(pair: Pair) -> None:
    for node in (pair.near, pair.far):
        assert node.program is not None
        pair.expect(f"{node.name}'s end", node.program.terminate(), 0)
        node.start_daemon("-hostname", node.name)
    pair.near.do("trust")
    pair.far.do("trust")
    pair.near.do("ping", pair.far.id, "--count", "1")
    pair.far.do("ping", pair.near.id, "--count", "1")


@row("tunnel after the far end was killed", stage=TRUSTED, fresh=True)
def _killed(pair: Pair) -> None:
    near, far = pair.near, pair.far
    near.do("ping", far.id, "--count", "1")
    assert far.program is not None
    far.program.kill()
    far.start_daemon("-hostname", far.name)
    near.do("ping", far.id, "--count", "1", "--timeout", "60s", label="ping after")


@row("private node is not told to strangers", stage=PRIVATE)
def _private_find(pair: Pair) -> None:
    pair.near.do("find", "far")
    pair.near.do("lookup", pair.far.id)
    pair.near.do("ping", "far", "--count", "1")


@row("gate before a private node", stage=PRIVATE)
def _gate(pair: Pair) -> None:
    far = pair.far.id
    pair.near.do("ping", far, "--count", "1")
    pair.near.do("send", far, "7", "--data", "x")
    pair.near.do("connect", far, "7", "--message", "x")
    pair.near.do("dgram", far, "3000", "--data", "x")
    pair.near.do("send-message", far, "--data", "x")
    pair.near.do("send-file", far, "/etc/hostname")
    pair.near.do("publish", far, "news", "--data", "x")
    pair.near.do("subscribe", far, "news", "--count", "1")
    pair.near.do("bench", far, "0.1")


@row("no way round the gate", stage=PRIVATE)
def _gate_skipped(pair: Pair) -> None:
    flag = "--no-auto-handshake"
    pair.near.do("ping", pair.far.id, "--count", "1", flag)
    pair.near.do("dgram", pair.far.id, "3000", "--data", "x", flag)
    pair.near.do("traceroute", pair.far.address)


@row("reply window of a private node", stage=PRIVATE_NEAR, fresh=True)
def _reply_window(pair: Pair) -> None:
    near, far = pair.near, pair.far
    near.do("send-message", far.id, "--data", "question")
    flag = "--no-auto-handshake"
    # The official daemon gives the same Info for 200 ms.
    pair.wait("a peer", lambda: far.info()["peer_list"] != [])
    far.do("send-message", near.id, "--data", "answer", flag)
    pair.expect("answer", [m["data"] for m in near.mail()], ["answer"])
    far.do("send", near.id, "7", "--data", "x", "--timeout", "1s", flag)


@row("trusted list", local=True)
def _trusted_list(pair: Pair) -> None:
    pair.near.do("trusted", "list")


@row("prefer-direct", fresh=True)
def _prefer_direct(pair: Pair) -> None:
    pair.near.prepare("ping", pair.far.id, "--count", "1")
    pair.near.do("prefer-direct", pair.far.id)
    pair.near.do("prefer-direct", "99")
