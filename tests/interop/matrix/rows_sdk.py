"""Rows: the official Python SDK drives either daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.interop.matrix.columns import Column
from tests.interop.matrix.rows import NO_TUNNEL, row
from tests.interop.matrix.rows_events import no_subscriber
from tests.interop.matrix.rows_trust import wait_for_pending, wait_for_trusted
from tests.interop.matrix.sdk import bytes_of, opened
from tests.interop.matrix.worlds import ADMIN_TOKEN, PRIVATE, payload_of

if TYPE_CHECKING:
    from tests.interop.matrix.worlds import Pair

NO_SDK: Final = {Column.OUR_CLIENT: "the SDK is an official client"}
LOCAL: Final = NO_SDK | {Column.TUNNEL: NO_TUNNEL}


@row("sdk: info, health", not_applicable=LOCAL)
def _info(pair: Pair) -> None:
    with opened(pair.near) as sdk:
        sdk.do("info")
        sdk.do("health")


@row("sdk: hostname, tags, visibility", not_applicable=NO_SDK, fresh=True)
def _naming(pair: Pair) -> None:
    with opened(pair.near) as sdk:
        sdk.do("set_hostname", "alice")
        sdk.do("set_hostname", "Not A Name")
        sdk.do("resolve_hostname", "far")
        sdk.do("resolve_hostname", "nobody")
        sdk.do("set_tags", ["text", "gpu"])
        sdk.do("set_tags", ["a", "b", "c", "d"])
        sdk.do("set_visibility", False)
        pair.far.do("find", "alice")
        sdk.do("set_visibility", True)
        pair.far.do("find", "alice", label="find when public")
        sdk.do("set_hostname", "")
        sdk.do("deregister")


@row(
    "sdk: handshake, approve, revoke", stage=PRIVATE, not_applicable=NO_SDK, fresh=True
)
def _trust(pair: Pair) -> None:
    near, far = pair.near, pair.far
    with opened(near) as sdk, opened(far) as other:
        sdk.do("handshake", far.number, "please")
        wait_for_pending(far)
        other.do("pending_handshakes")
        other.do("approve_handshake", near.number)
        sdk.do("wait_for_trust", far.number, 1000)
        wait_for_trusted(near)
        sdk.do("trusted_peers")
        other.do("trusted_peers")
        sdk.do("revoke_trust", far.number)
        sdk.do("revoke_trust", far.number)
        sdk.do("reject_handshake", 77, "no")


@row("sdk: dial, listen, accept, read, write", not_applicable=NO_SDK)
def _streams(pair: Pair) -> None:
    near, far = pair.near, pair.far
    with opened(near) as sdk, opened(far) as other:
        other.do("listen", 5000, keep="listener")
        other.begin("accept", on="listener", keep="conn")
        sdk.do("dial", f"{far.address}:5000", keep="conn")
        other.finish("accept")
        sdk.do("write", b"hello", on="conn")
        pair.expect("read", bytes_of(other.do("read", 100, on="conn")), b"hello")
        other.do("write", b"\x00\xff" * 500, on="conn")
        answer = sdk.do("read_full", 1000, on="conn")
        pair.expect("answer", bytes_of(answer), b"\x00\xff" * 500)
        other.do("close", on="conn")
        sdk.do("read", 100, on="conn")
        sdk.do("close", on="conn")
        other.do("close", on="listener")


@row("sdk: dial refused", not_applicable=NO_SDK)
def _dial_refused(pair: Pair) -> None:
    with opened(pair.near) as sdk:
        sdk.do("dial", f"{pair.far.address}:4444")
        sdk.do("dial", "0:0000.0000.0063:7")
        sdk.do("dial", "rubbish")
        sdk.do("listen", 7)
        sdk.do("disconnect", 99999)


@row("sdk: send_to, recv_from", not_applicable=NO_SDK)
def _datagrams(pair: Pair) -> None:
    with opened(pair.near) as sdk, opened(pair.far) as other:
        other.do("health")
        other.begin("recv_from")
        sdk.do("send_to", f"{pair.far.address}:6000", b"\x01\x02 hi")
        other.finish("recv_from")


@row("sdk: networks", not_applicable=NO_SDK, fresh=True)
def _networks(pair: Pair) -> None:
    with pair.unrecorded():
        pair.near.do(
            *("network", "create", "--name", "crew", "--join-rule", "open"),
            *("--node-id", pair.near.id),
            PILOT_ADMIN_TOKEN=ADMIN_TOKEN,
        )
    with opened(pair.far) as sdk:
        sdk.do("network_list")
        sdk.do("network_join", 1)
        sdk.do("network_members", 1)
        sdk.do("network_poll_invites")
        sdk.do("network_leave", 1)
        sdk.do("network_join", 99)
        sdk.do("network_respond_invite", 99, True)
        sdk.do("managed_status", 1)
        sdk.do("policy_get", 1)
        sdk.do("member_tags_get", 1, pair.near.number)


@row("sdk: send_message", not_applicable=NO_SDK)
def _message(pair: Pair) -> None:
    with opened(pair.near) as sdk:
        sdk.do("send_message", pair.far.address, b"hello")
        sdk.do("send_message", "far", b'{"a":1}', "json")
        sdk.do("send_message", "far", b"\x00\xff", "binary")
        sdk.do("send_message", "nobody", b"x")
        sdk.do("send_message", "far", b"x", "odd")  # It goes as text.
    mail = [payload_of(message) for message in pair.far.mail()]
    pair.expect("inbox", mail, [b"hello", b'{"a":1}', b"\x00\xff", b"x"])


@row("sdk: send_file", not_applicable=NO_SDK)
def _file(pair: Pair) -> None:
    path = pair.near.home / "data.bin"
    path.write_bytes(bytes(range(256)) * 64)
    with opened(pair.near) as sdk:
        sdk.do("send_file", pair.far.address, str(path))
        sdk.do("send_file", pair.far.address, "/nowhere")
    pair.expect("received", pair.far.files(), [bytes(range(256)) * 64])


@row("sdk: publish_event, subscribe_event", not_applicable=NO_SDK)
def _events(pair: Pair) -> None:
    no_subscriber(pair)
    with opened(pair.near) as sdk, opened(pair.near) as publisher:
        sdk.begin("subscribe_event", pair.far.address, "news", take=1)
        pair.wait("a subscription", lambda: pair.far.has_stream(1002))
        publisher.do("publish_event", pair.far.address, "news", b"hi")
        sdk.finish("subscribe_event")


@row("sdk: set_webhook, rotate_key", not_applicable=LOCAL, fresh=True)
def _webhook(pair: Pair) -> None:
    with opened(pair.near) as sdk:
        sdk.do("set_webhook", "http://127.0.0.1:9/hook")
        sdk.do("set_webhook", "ftp://127.0.0.1/")
        sdk.do("set_webhook", "")
        sdk.do("rotate_key")
        sdk.do("broadcast", 1, 1000, b"x", "wrong")
