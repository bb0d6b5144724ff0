"""Streams, datagrams, diagnostics: what the recorded samples do not show."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.support import frame

if TYPE_CHECKING:
    from tests.cli.support import Shell

OPEN = "--no-auto-handshake"
DIAL = [["c2s", "030000000000070bb8"], ["s2c", "0400000064"]]
ECHO = [["c2s", "030000000000070007"], ["s2c", "0400000064"]]
CLOSE = [["c2s", "0800000064"]]
SEND = ("--json", "send", "7", "3000", "--data", "yo", OPEN)


def test_answer_that_does_not_come_is_a_timeout(shell: Shell) -> None:
    frames = [*DIAL, ["c2s", "0600000064796f"], *CLOSE]
    error = shell.play(frames, *SEND, "--timeout", "10ms").error
    assert error["code"] == "timeout"
    assert error["message"] == "no response within 10ms"


def test_dial_without_answer_is_a_failed_connection(shell: Shell) -> None:
    error = shell.play(DIAL[:1], *SEND, "--timeout", "10ms").error
    assert error["code"] == "connection_failed"
    assert error["hint"].endswith("pilotctl ping 0:0000.0000.0007")


def test_peer_that_just_closes_gives_an_empty_answer(shell: Shell) -> None:
    frames = [*DIAL, ["c2s", "0600000064796f"], ["s2c", "0900000064"], *CLOSE]
    assert shell.play(frames, *SEND).data["response"] == ""


def test_text_that_is_not_utf8_is_sent_as_given(shell: Shell) -> None:
    frames = [*DIAL, ["c2s", "0600000064ff"], ["s2c", "0700000064ff"], *CLOSE]
    tokens = ["send", "7", "3000", "--data", "\udcff", OPEN]
    result = shell.play(frames, *tokens)
    assert result.stdout == "\ufffd\n"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("send", "7", "3000"), "--data is required"),
        (("publish", "7", "t"), "--data is required"),
        (("connect", "7"), "--message is required (interactive mode not supported)"),
        (("connect", "7", "zz"), 'invalid port "zz": not a number up to 65535'),
    ],
)
def test_arguments_are_checked_after_the_peer(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    tokens: tuple[str, ...],
    message: str,
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    assert shell.run("--json", *tokens).error["code"] == "not_running"
    error = shell.play([], "--json", *tokens, OPEN).error
    assert (error["code"], error["message"]) == ("invalid_argument", message)


def test_streams_are_received_in_turn_and_whole(shell: Shell) -> None:
    frames = [
        ["c2s", "010bb8"],
        ["s2c", "020bb8"],
        # The second stream is complete before the first one ends.
        ["s2c", "070000006562"],
        ["s2c", "050bb800000064000000000007c000"],
        ["s2c", "050bb800000065000000000008c000"],
        ["s2c", "0900000065"],
        ["s2c", "070000006461"],
        ["s2c", "070000006461"],
        ["s2c", "0900000064"],
        *CLOSE,
        ["c2s", "0800000065"],
    ]
    tokens = ["recv", "3000", "--count", "2"]
    messages = shell.play(frames, "--json", *tokens).data["messages"]
    assert [message["data"] for message in messages] == ["aa", "b"]
    assert shell.play(frames, *tokens).stdout == "aa\nb\n"


def test_stream_that_does_not_end_gives_what_it_had(shell: Shell) -> None:
    frames = [
        ["c2s", "010bb8"],
        ["s2c", "020bb8"],
        ["s2c", "050bb800000064000000000007c000"],
        ["s2c", "070000006461"],
        *CLOSE,
    ]
    data = shell.play(frames, "--json", "recv", "3000", "--timeout", "300ms").data
    assert [message["data"] for message in data["messages"]] == ["a"]


def test_port_that_is_bound_already(shell: Shell) -> None:
    frames = [["c2s", "010bb8"], ["s2c", frame(0x0A, b"\0\1port 3000 already bound")]]
    error = shell.play(frames, "--json", "recv", "3000").error
    assert error["message"] == "listen: bind: daemon: port 3000 already bound"


def test_datagrams_of_other_ports_are_skipped(shell: Shell) -> None:
    other = frame(0x0C, bytes.fromhex("000000000007c0000bb9") + b"no")
    mine = frame(0x0C, bytes.fromhex("000000000007c0010bb8") + b"yes")
    tokens = ["listen", "3000", "--count", "1"]
    frames = [["s2c", other], ["s2c", mine]]
    row = {"src_addr": "0:0000.0000.0007", "src_port": 49153, "data": "yes", "bytes": 3}
    assert shell.play(frames, "--json", *tokens).data == {
        "messages": [row],
        "timeout": False,
    }
    assert shell.play(frames, *tokens).stdout == "0:0000.0000.0007:49153 yes\n"


def test_endless_listener_prints_bare_lines(shell: Shell) -> None:
    mine = frame(0x0C, bytes.fromhex("000000000007c0010bb8") + b"y")
    tokens = ["--json", "listen", "3000", "--timeout", "200ms"]
    result = shell.play([["s2c", mine], ["s2c", mine]], *tokens)
    line = '{"bytes":1,"data":"y","src_addr":"0:0000.0000.0007","src_port":49153}\n'
    assert (result.code, result.stdout) == (0, line * 2)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("sendto: not allowed by network policy", "permission_denied"),
        ("sendto: marshal: payload too large: 70000 bytes", "invalid_argument"),
        ("sendto: write udp: message too long", "invalid_argument"),
        ("sendto: resolve node 7: registry: node 7: node not found", "not_found"),
        ("sendto: something else", "connection_failed"),
    ],
)
def test_datagram_error_has_the_code_of_its_text(
    shell: Shell, text: str, code: str
) -> None:
    frames = [
        ["c2s", "390000000000070bb8796f"],
        ["s2c", frame(0x0A, b"\0\1" + text.encode())],
    ]
    error = shell.play(frames, "--json", "dgram", "7", "3000", "--data=yo", OPEN).error
    assert (error["code"], error["message"]) == (code, f"daemon: {text}")


def test_too_large_datagram_is_not_sent(shell: Shell) -> None:
    data = "x" * 65536
    error = shell.play([], "--json", "dgram", "7", "1", f"--data={data}", OPEN).error
    assert error["code"] == "invalid_argument"


def test_broadcast(shell: Shell) -> None:
    shell.setenv("PILOT_ADMIN_TOKEN", "tok")
    request = frame(0x29, bytes.fromhex("000303e80003") + b"tokhi")
    tokens = ["--json", "broadcast", "3", "hi"]
    frames = [["c2s", request], ["s2c", "2a"]]
    assert shell.play(frames, *tokens).data == {
        "network_id": 3,
        "port": 1000,
        "bytes": 2,
    }
    frames[1] = ["s2c", frame(0x0A, b"\0\1broadcast: invalid admin token")]
    assert shell.play(frames, *tokens).error["code"] == "broadcast_failed"
    assert shell.run("--json", "broadcast", "x", "hi").error["code"] == "usage"
    assert shell.run("--json", "broadcast", "3").error["code"] == "usage"


def test_ping_reuses_one_stream(shell: Shell) -> None:
    frames = [
        *ECHO,
        ["c2s", "060000006470696e672d30"],
        ["s2c", "070000006470696e"],
        ["s2c", "0700000064672d30"],
        *CLOSE,
    ]
    tokens = ["ping", "7", "--count", "1", "--reuse-conn=true", OPEN]
    data = shell.play(frames, "--json", *tokens).data
    assert data["results"][0]["bytes"] == 6
    text = shell.play(frames, *tokens).stdout
    assert text.startswith("PING 0:0000.0000.0007\nseq=0 bytes=6 time=")


def test_ping_reuses_one_stream_where_the_environment_says_so(shell: Shell) -> None:
    shell.setenv("PILOT_PING_REUSE_CONN", "1")
    frames = [*ECHO]
    for seq in b"01":
        probe = b"\0\0\0dping-%c" % seq
        frames += [["c2s", frame(0x06, probe)], ["s2c", frame(0x07, probe)]]
    frames += CLOSE
    tokens = ["ping", "7", "--count", "2", OPEN]
    first, second = shell.play(frames, "--json", *tokens).data["results"]
    assert "reused" not in first
    assert second["reused"] is True
    assert "dial_ms" not in first.keys() | second.keys()
    lines = shell.play(frames, *tokens).stdout.splitlines()
    assert "  [dial=" in lines[1]
    assert lines[2].endswith("] [reused]")


def test_ping_without_time_sends_nothing(shell: Shell) -> None:
    tokens = ["--json", "ping", "7", "--timeout", "1ns", OPEN]
    result = shell.play([], *tokens)
    assert (result.code, result.data["results"]) == (0, [])
    assert result.data["timeout"] is True


def test_ping_of_a_peer_that_closes_fails(shell: Shell) -> None:
    frames = [*ECHO, ["c2s", "060000006470696e672d30"], ["s2c", "0900000064"]]
    tokens = ["--json", "ping", "7", "--count", "1", OPEN]
    result = shell.play(frames, *tokens)
    assert result.code == 1
    assert result.data["results"] == [{"seq": 0, "error": "the peer closed the stream"}]


def test_ping_stops_when_its_time_is_over(shell: Shell) -> None:
    frames = [
        *ECHO,
        ["c2s", "060000006470696e672d30"],
        ["s2c", "070000006470696e672d30"],
        *CLOSE,
    ]
    tokens = ["--json", "ping", "7", "--timeout", "10ms", OPEN]
    data = shell.play(frames, *tokens).data
    assert data["timeout"] is True
    assert len(data["results"]) == 1


def test_traceroute_reports_failure_as_a_result(shell: Shell) -> None:
    frames = [ECHO[0], ["s2c", frame(0x0A, b"\0\1connection refused")]]
    tokens = ["traceroute", "0:0000.0000.0007"]
    data = shell.play(frames, "--json", *tokens).data
    assert data["error"] == "dial: daemon: connection refused"
    assert data["setup_ms"] > 0
    assert "error: dial" in shell.play(frames, *tokens).stdout


@pytest.mark.parametrize("target", ["7", "bob", "0:0001.0000.0007"])
def test_traceroute_takes_only_an_address(shell: Shell, target: str) -> None:
    error = shell.play([], "--json", "traceroute", target).error
    assert error["code"] == "invalid_argument"
    assert error["message"].startswith("parse address: ")


def test_bench_counts_what_comes_back(shell: Shell) -> None:
    half = bytes(32768)
    head = bytes.fromhex("00000064")
    frames = [
        *ECHO,
        ["c2s", frame(6, head + half * 2)],
        ["s2c", frame(7, head + half)],
        ["s2c", frame(7, head + half)],
        *CLOSE,
    ]
    data = shell.play(frames, "--json", "bench", "7", "0.0625", OPEN).data
    assert (data["sent_bytes"], data["recv_bytes"]) == (65536, 65536)
    assert data["complete"] is True
    frames[-2:-1] = []
    tokens = ["bench", "7", "0.0625", "--timeout", "300ms", OPEN]
    data = shell.play(frames, "--json", *tokens).data
    assert (data["recv_bytes"], data["complete"]) == (32768, False)
    assert "sent 65536 bytes" in shell.play(frames, *tokens).stdout


@pytest.mark.parametrize("size", ["abc", "0", "-1", "5000", "nan", "inf"])
def test_bench_refuses_other_sizes(shell: Shell, size: str) -> None:
    assert shell.run("--json", "bench", "7", size).error["code"] == "invalid_argument"


def test_hostname_is_resolved_and_said_in_text_mode(shell: Shell) -> None:
    answer = {"node_id": 7, "address": "0:0000.0000.0007"}
    frames = [
        ["c2s", "11626f62"],
        ["s2c", frame(0x12, answer)],
        ["c2s", "0f0600000007"],
    ]
    frames.append(["s2c", frame(0x10, {"status": "revoked", "node_id": 7})])
    result = shell.play(frames, "untrust", "bob")
    assert result.stderr == 'resolved "bob" → 0:0000.0000.0007\n'
    assert result.stdout == "trust with node 7 revoked\n"


def test_hostname_that_does_not_resolve(shell: Shell) -> None:
    frames = [["c2s", "113078 37".replace(" ", "")], ["s2c", frame(0x0A, b"\0\1no")]]
    error = shell.play(frames, "--json", "approve", "0x7").error
    assert error["code"] == "not_found"
    assert error["message"].startswith('cannot resolve "0x7" — check the hostname')
