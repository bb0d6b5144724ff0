"""``pilotctl gateway`` and ``pilot-gateway``, as processes that users start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.official import official_program
from tests.support.programs import BIN, World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(120)

PORTS = "0:80,0:81"
SUBNET = "127.5.0.0/16"


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        made.start_daemon("d", "--hostname", "alice", "--public")
        yield made
        # It runs in a session of its own; nothing else ends it.
        made.ctl("d", "gateway", "stop")


def start(net: World, *words: str) -> subprocess.CompletedProcess[str]:
    flags = ("--subnet", SUBNET, "--ports", PORTS)
    return net.ctl("d", "gateway", "start", *words, *flags)


def error_of(result: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert result.returncode == 1, result.stdout
    error: dict[str, str] = json.loads(result.stderr)
    return error


def test_life_of_a_gateway(net: World) -> None:
    assert data_of(net.ctl("d", "gateway", "list"))["mappings"] == []
    assert error_of(net.ctl("d", "gateway", "map", "7"))["code"] == "not_running"
    assert error_of(net.ctl("d", "gateway", "stop"))["code"] == "not_running"

    started = data_of(start(net, "alice", "127.5.1.1", "9"))
    assert started["subnet"] == SUBNET
    shown = [(row["local_ip"], row["pilot_addr"]) for row in started["mappings"]]
    alice = data_of(net.ctl("d", "info"))["address"]
    assert shown == [("127.5.1.1", alice), ("127.5.0.1", "0:0000.0000.0009")]
    assert error_of(start(net))["code"] == "already_exists"
    control = net.home / "d-gateway.sock"
    assert control.stat().st_mode & 0o777 == 0o600

    mapped = data_of(net.ctl("d", "extras", "gateway", "map", "7"))
    assert mapped == {"local_ip": "127.5.0.2", "pilot_addr": "0:0000.0000.0007"}
    assert error_of(net.ctl("d", "gateway", "map", "nobody"))["code"] == "not_found"
    taken = error_of(net.ctl("d", "gateway", "map", "8", "127.5.0.2"))
    assert taken["code"] == "already_exists"
    outside = error_of(net.ctl("d", "gateway", "map", "8", "10.4.0.1"))
    assert outside["message"] == f"IP 10.4.0.1 not in subnet {SUBNET}"

    listed = data_of(net.ctl("d", "gateway", "list"))
    assert listed["total"] == 3
    port = listed["mappings"][2]["ports"]["80"]
    with socket.create_connection(("127.5.0.2", port)):
        pass
    unmapped = data_of(net.ctl("d", "gateway", "unmap", "127.5.0.2"))
    assert unmapped["unmapped"] == "127.5.0.2"
    again = error_of(net.ctl("d", "gateway", "unmap", "127.5.0.2"))
    assert again["code"] == "not_found"

    assert data_of(net.ctl("d", "gateway", "stop")) == {"pid": started["pid"]}
    assert not control.exists()
    assert not (net.home / ".pilot" / "gateway.pid").exists()


def test_start_that_fails_says_why(net: World) -> None:
    failed = error_of(net.ctl("d", "gateway", "start", "--subnet", "here"))
    assert "invalid subnet" in failed["message"]
    failed = error_of(start(net, "nobody"))
    assert 'cannot resolve "nobody"' in failed["message"]
    assert "gateway.log" in failed["hint"]


def test_gateway_whose_socket_is_lost_is_stopped_by_its_number(net: World) -> None:
    pid = data_of(start(net))["pid"]
    (net.home / "d-gateway.sock").unlink()
    assert data_of(net.ctl("d", "gateway", "stop")) == {"pid": pid}


def test_program_alone(net: World) -> None:
    ready = net.home / "gateway.ready"
    program = net.start(
        "gateway",
        *(BIN / "pilot-gateway", "-socket", net.socket("d"), "-subnet", SUBNET),
        *("-ports", PORTS, "-ready-file", ready, "run", "7", "8", "127.5.0.9"),
    )
    program.wait_until(ready.exists)
    rows = data_of(net.ctl("d", "gateway", "list"))["mappings"]
    assert [row["local_ip"] for row in rows] == ["127.5.0.1", "127.5.0.9"]

    # A second one of the form that the official pilotctl uses tells the first.
    told = subprocess.run(
        [BIN / "pilot-gateway", "--socket", net.socket("d"), "map", "6"],
        env=net.environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert data_of(net.ctl("d", "gateway", "list"))["total"] == 3
    assert program.terminate() == 0
    assert not (net.home / "d-gateway.sock").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["run", "127.5.0.1"], "IP 127.5.0.1 follows no Pilot address"),
        (["run", "7", "127.5.0.1", "127.5.0.2"], "IP 127.5.0.2 follows no"),
        (["map"], "usage: pilot-gateway map"),
        (["-ports", "x", "run"], 'invalid port "x"'),
        (["fly"], "invalid choice"),
    ],
)
def test_bad_command_line(words: list[str], text: str) -> None:
    result = subprocess.run(
        [BIN / "pilot-gateway", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 1
    assert text in result.stderr


@pytest.mark.official
def test_official_pilotctl_starts_our_gateway(net: World) -> None:
    """It becomes the program that PILOT_GATEWAY_BIN names."""
    flags = ("--subnet", SUBNET, "--ports", PORTS)
    program = net.start(
        "theirs",
        *(official_program("pilotctl"), "extras", "gateway", "start", *flags, "7"),
        PILOT_SOCKET=str(net.socket("d")),
        PILOT_GATEWAY_BIN=str(BIN / "pilot-gateway"),
    )

    def is_ready() -> bool:
        return bool(data_of(net.ctl("d", "gateway", "list"))["total"])

    program.wait_until(is_ready)
    (row,) = data_of(net.ctl("d", "gateway", "list"))["mappings"]
    assert row["pilot_addr"] == "0:0000.0000.0007"
    os.kill(program.process.pid, signal.SIGINT)
    assert program.process.wait(30) == 0
