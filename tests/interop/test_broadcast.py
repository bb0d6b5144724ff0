"""``broadcast``: either client, either daemon; delivered to members, or refused."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.official import official_program
from tests.support.programs import BIN, World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]

CLIENTS = {"ours": BIN / "pilotctl", "official": None}


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        token = made.admin_token
        made.start_daemon("ours", "--public", "--admin-token", token)
        made.start_official_daemon("theirs", "-public", "-admin-token", token)
        made.start_daemon("member", "--public")
        owner = str(data_of(made.ctl("member", "info"))["node_id"])
        create = ("network", "create", "--name", "n", "--node-id", owner)
        data_of(made.run_ctl_admin(*create))
        for name in ("ours", "theirs"):
            data_of(made.ctl(name, "network", "join", "1"))
        yield made


def broadcast(
    net: World, client: str, daemon: str, *words: str, token: str = ""
) -> subprocess.CompletedProcess[str]:
    program = CLIENTS[client] or official_program("pilotctl")
    return subprocess.run(
        [program, "--json", "broadcast", *words],
        env=net.environment(
            PILOT_SOCKET=str(net.socket(daemon)),
            PILOT_ADMIN_TOKEN=token or net.admin_token,
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("daemon", ["ours", "theirs"])
def test_members_get_it(net: World, client: str, daemon: str) -> None:
    text = f"{client} by {daemon}"
    listening = net.start(
        f"listen-{client}-{daemon}",
        *(BIN / "pilotctl", "--json", "listen", "1234", "--count", "1"),
        *("--timeout", "30s"),
        PILOT_SOCKET=str(net.socket("member")),
    )

    def send_until_received() -> bool:
        sent = broadcast(net, client, daemon, "1", text, "--port", "1234")
        expected = {"network_id": 1, "port": 1234, "bytes": len(text)}
        assert data_of(sent) == expected
        return bool(listening.log.read_text())

    listening.wait_until(send_until_received)
    (message,) = json.loads(listening.log.read_text())["data"]["messages"]
    assert message["data"] == text


@pytest.mark.parametrize(
    ("words", "token", "code"),
    [
        (("1",), "", "usage"),
        (("x", "hi"), "", "usage"),
        (("1", "hi", "--port", "99999"), "", "usage"),
        (("0", "hi"), "", "broadcast_failed"),
        (("99", "hi"), "", "broadcast_failed"),
        (("1", "hi"), "wrong", "broadcast_failed"),
    ],
)
@pytest.mark.parametrize("daemon", ["ours", "theirs"])
def test_refusal(
    net: World, daemon: str, words: tuple[str, ...], token: str, code: str
) -> None:
    for client in CLIENTS:
        refused = broadcast(net, client, daemon, *words, token=token)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert json.loads(refused.stderr)["code"] == code
