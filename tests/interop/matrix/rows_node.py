"""Rows: what a node says of itself and of others, names, tags, visibility."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.interop.matrix.rows import row

if TYPE_CHECKING:
    from tests.interop.matrix.worlds import Pair


@row("info", local=True)
def _info(pair: Pair) -> None:
    pair.near.do("info")


@row("health", local=True)
def _health(pair: Pair) -> None:
    pair.near.do("health")


@row("version", local=True)
def _version(pair: Pair) -> None:
    pair.near.do("version")
    pair.near.do("--version")


@row("peers")
def _peers(pair: Pair) -> None:
    pair.near.prepare("ping", pair.far.id, "--count", "1")
    # The official daemon gives the same Info for 200 ms.
    pair.wait("a peer", lambda: pair.near.info()["peer_list"] != [])
    pair.near.do("peers")
    pair.near.do("peers", "--search", pair.far.id)
    pair.near.do("peers", "--search", "999999")
    peers = pair.near.info()["peer_list"]
    pair.expect("sealed", [p["authenticated"] for p in peers], [True])


@row("connections and disconnect")
def _connections(pair: Pair) -> None:
    held = pair.near.begin("send", pair.far.id, "7", "--data", "x", "--timeout", "1s")
    held.finish()
    pair.near.do("connections")
    pair.near.do("disconnect", "99999")
    pair.near.do("disconnect", "abc")
    pair.near.do("disconnect")


@row("lookup by number")
def _lookup_number(pair: Pair) -> None:
    pair.near.do("lookup", pair.far.id)


@row("lookup by address")
def _lookup_address(pair: Pair) -> None:
    pair.near.do("lookup", pair.far.address)


@row("lookup by hostname")
def _lookup_hostname(pair: Pair) -> None:
    pair.near.do("lookup", "far")


@row("lookup unknown", local=True)
def _lookup_unknown(pair: Pair) -> None:
    pair.near.do("lookup", "99")
    pair.near.do("lookup", "nobody")
    pair.near.do("lookup", "0:0001.0000.0002")
    pair.near.do("lookup")


@row("find by hostname")
def _find(pair: Pair) -> None:
    pair.near.do("find", "far")
    pair.near.do("find", "near")


@row("find unknown", local=True)
def _find_unknown(pair: Pair) -> None:
    pair.near.do("find", "nobody")
    pair.near.do("find")


@row("set-hostname", fresh=True)
def _set_hostname(pair: Pair) -> None:
    pair.near.do("set-hostname", "alice")
    pair.far.do("find", "alice")
    pair.near.do("config")
    pair.near.do("set-hostname", "far", label="set-hostname that is taken")


@row("set-hostname refused", local=True)
def _set_hostname_refused(pair: Pair) -> None:
    pair.near.do("set-hostname", "Not A Name")
    pair.near.do("set-hostname", "-alice")
    pair.near.do("set-hostname", "a" * 64)
    pair.near.do("set-hostname")


@row("clear-hostname", fresh=True)
def _clear_hostname(pair: Pair) -> None:
    pair.near.do("clear-hostname")
    pair.near.do("config")
    pair.far.do("find", "near")


@row("set-tags and clear-tags")
def _tags(pair: Pair) -> None:
    pair.near.do("extras", "set-tags", "text", "de-en", "gpu")
    pair.far.do("lookup", pair.near.id)
    pair.near.do("extras", "clear-tags")
    pair.far.do("lookup", pair.near.id, label="lookup after clear-tags")


@row("set-tags refused", local=True)
def _tags_refused(pair: Pair) -> None:
    pair.near.do("extras", "set-tags", "a", "b", "c", "d")
    pair.near.do("extras", "set-tags", "Not A Tag")
    pair.near.do("extras", "set-tags")


@row("set-private and set-public", fresh=True)
def _visibility(pair: Pair) -> None:
    pair.near.do("set-private")
    pair.far.do("find", "near", label="find of a private node")
    pair.near.do("set-public")
    pair.far.do("find", "near", label="find of a public node")


@row("register", fresh=True, local=True)
def _register(pair: Pair) -> None:
    pair.near.do("register")
    pair.near.do("register", "127.0.0.1:4567")


@row("deregister", fresh=True)
def _deregister(pair: Pair) -> None:
    pair.near.do("deregister")
    pair.far.do("find", "near")


@row("rotate-key", fresh=True)
def _rotate_key(pair: Pair) -> None:
    before = pair.near.info()["public_key"]
    pair.near.do("ping", pair.far.id, "--count", "1", label="ping before")
    after = pair.near.do("rotate-key").data["public_key"]
    pair.expect("same key", before == after, False)
    pair.wait("the new key", lambda: pair.near.info()["public_key"] == after)
    looked_up = pair.far.do("lookup", pair.near.id).data
    pair.expect("registered key", looked_up["public_key"], after)
    pair.near.do("ping", pair.far.id, "--count", "1")
    pair.far.do("ping", pair.near.id, "--count", "1")


@row("sign-request and verify-request")
def _sign(pair: Pair) -> None:
    # A key that is known from a tunnel need not be asked for.
    pair.far.prepare("ping", pair.near.id, "--count", "1")
    signed = pair.near.do("sign-request", "--audience", "svc", "--body", "hello").data
    envelope, signature = signed["envelope"], signed["signature"]
    given = ("--envelope", envelope, "--signature", signature)
    pair.far.do("verify-request", *given, label="verify-request")
    tampered = envelope.replace("|svc", "|svd")
    pair.far.do(
        "verify-request",
        *("--envelope", tampered, "--signature", signature),
        label="verify-request tampered",
    )
    pair.far.do("verify-request", *given, "--standing", label="verify-request standing")


@row("sign-request refused", local=True)
def _sign_refused(pair: Pair) -> None:
    pair.near.do("sign-request")
    pair.near.do("sign-request", "--audience", "svc")
    pair.near.do("sign-request", "--audience", "svc", "--body-hash", "12")
    pair.near.do("verify-request")
    pair.near.do("verify-request", "--envelope", "rubbish", "--signature", "AAAA")
