"""``daemon start``, ``stop`` and ``status`` with a small stand-in program."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.support import ReplayDaemon, frame

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.support import Shell

DAEMON = f"""#!{sys.executable}
import json, os, socket, struct, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
mode = os.environ.get("MODE", "")
if mode == "fail":
    print("no registry today")
    sys.exit(3)
if mode != "silent":
    server = socket.socket(socket.AF_UNIX)
    server.bind(arguments["--socket"])
    server.listen()
    while True:
        client, _ = server.accept()
        with client:
            if len(client.recv(5)) == 5:
                info = {{"node_id": 5, "address": "0:0000.0000.0005",
                        "token": os.environ.get("PILOT_ADMIN_TOKEN"),
                        "hostname": json.dumps(sys.argv[1:]), "transport": "udp"}}
                body = b"\\x0e" + json.dumps(info).encode()
                client.sendall(struct.pack("!I", len(body)) + body)
import time
time.sleep(60)
"""


@pytest.fixture
def program(shell: Shell) -> Path:
    """Install the stand-in as pilot-daemon."""
    path = shell.home / "bin" / "pilot-daemon"
    path.parent.mkdir()
    path.write_text(DAEMON)
    path.chmod(0o755)
    shell.setenv("PILOT_DAEMON_BIN", str(path))
    return path


def test_daemon_is_started_and_stopped(shell: Shell, program: Path) -> None:
    shell.run("config", "--set", "admin_token=secret")
    shell.run("config", "--set", "hostname=alice")
    tokens = ["--registry", "127.0.0.1:5", "--public", "--tag=a", "--tag=b"]
    data = shell.run("--json", "daemon", "start", *tokens).data
    pid = data["pid"]
    assert data["node_id"] == 5
    assert data["transport"] == "udp"
    folder = shell.home / ".pilot"
    given = json.loads(data["hostname"])
    assert given == [
        *("--registry", "127.0.0.1:5", "--beacon", "127.0.0.1:9001"),
        *("--listen", ":0", "--socket", str(shell.socket)),
        *("--identity", str(folder / "identity.json")),
        *("--log-level", "info", "--log-format", "text", "--hostname", "alice"),
        *("--tag", "a", "--tag", "b", "--public"),
    ]
    assert (folder / "pilot.pid").read_text() == str(pid)
    assert stat.S_IMODE((folder / "pilot.pid").stat().st_mode) == 0o600
    assert data["log_file"] == str(folder / f"pilot-{pid}.log")
    assert os.readlink(folder / "pilot.log") == f"pilot-{pid}.log"

    error = shell.run("--json", "daemon", "start").error
    assert (error["code"], error["message"]) == (
        "already_exists",
        f"daemon is already running (pid {pid})",
    )
    status = shell.run("--json", "daemon", "status").data
    assert status["running"] is status["responsive"] is True
    assert status["pid"] == pid
    assert status["address"] == "0:0000.0000.0005"
    check = shell.run("daemon", "status", "--check")
    assert (check.code, check.stdout, check.stderr) == (0, "", "")

    assert shell.run("--json", "daemon", "stop").data == {"pid": pid}
    os.waitpid(pid, 0)
    assert not (folder / "pilot.pid").exists()
    assert shell.run("daemon", "status", "--check").code == 1
    assert shell.run("daemon", "status").stdout.startswith("○ pilot-daemon stopped")


def test_a_daemon_in_several_processes_is_started(shell: Shell, program: Path) -> None:
    tokens = ["--agents", "4", "--processes", "2", "--agent-prefix", "w-"]
    data = shell.run("--json", "daemon", "start", *tokens).data
    given = json.loads(data["hostname"])
    assert given[-6:] == ["--agents", "4", "--agent-prefix", "w-", "--processes", "2"]
    # Numbered agents have their own.
    assert "--identity" not in given
    shell.run("daemon", "stop")
    os.waitpid(data["pid"], 0)


def test_daemon_that_ends_at_once_is_reported_with_its_words(
    shell: Shell, program: Path
) -> None:
    shell.setenv("MODE", "fail")
    error = shell.run("--json", "daemon", "start").error
    assert error["code"] == "internal"
    assert "exit code 3" in error["message"]
    assert error["message"].endswith("no registry today")
    assert not (shell.home / ".pilot" / "pilot.pid").exists()


def test_daemon_that_is_not_ready_in_time_keeps_running(
    shell: Shell, program: Path
) -> None:
    shell.setenv("MODE", "silent")
    error = shell.run("--json", "daemon", "start", "--wait", "300ms").error
    assert error["code"] == "timeout"
    assert error["message"].endswith("but did not become ready within 300ms")
    assert error["hint"].startswith("check logs: tail -f ")
    pid = int((shell.home / ".pilot" / "pilot.pid").read_text())
    status = shell.run("--json", "daemon", "status").data
    assert (status["running"], status["responsive"]) == (True, False)
    assert shell.run("daemon", "stop").stdout == f"daemon stopped (pid {pid})\n"
    os.waitpid(pid, 0)


def test_daemon_that_cannot_be_recorded_is_ended(
    shell: Shell, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pid file names it, so nobody could stop it later."""

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", target)

    monkeypatch.setattr("pilotfleet.cli.lifecycle.os.replace", refuse)
    shell.setenv("MODE", "silent")
    error = shell.run("--json", "daemon", "start").error
    assert error["code"] == "internal"
    pid = int(re.findall(r"pilot-(\d+)\.log: No space left", error["message"])[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (shell.home / ".pilot" / "pilot.pid").exists()


def test_missing_program_leaves_no_claim_behind(shell: Shell) -> None:
    shell.setenv("PILOT_DAEMON_BIN", "/no/such/pilot-daemon")
    for _ in range(2):
        error = shell.run("--json", "daemon", "start").error
        assert error["code"] == "not_found"
        assert "/no/such/pilot-daemon" in error["message"]


def test_socket_that_answers_is_a_running_daemon(shell: Shell, program: Path) -> None:
    with ReplayDaemon(shell.socket, []):
        error = shell.run("--json", "daemon", "start").error
    assert error["code"] == "already_exists"
    assert "is active" in error["message"]
    assert not (shell.home / ".pilot" / "pilot.pid").exists()


def test_start_in_progress_is_not_disturbed(shell: Shell, program: Path) -> None:
    folder = shell.home / ".pilot"
    folder.mkdir()
    (folder / "pilot.pid").write_text("0")
    error = shell.run("--json", "daemon", "start").error
    assert error["message"] == "another daemon start is in progress (PID file locked)"


@pytest.mark.parametrize("command", ["stop", "status"])
def test_pid_of_another_program_is_left_alone(shell: Shell, command: str) -> None:
    folder = shell.home / ".pilot"
    folder.mkdir()
    (folder / "pilot.pid").write_text(str(os.getpid()))
    result = shell.run("--json", "daemon", command)
    if command == "stop":
        assert result.error["message"].endswith("(cleaned up stale state)")
    else:
        assert result.data["running"] is False
        assert result.data["pid"] == os.getpid()
    assert not (folder / "pilot.pid").exists()


def test_status_of_a_daemon_that_was_started_by_hand(shell: Shell) -> None:
    info = {"node_id": 5, "address": "0:0000.0000.0005", "hostname": "x"}
    frames = [["c2s", "0d"], ["s2c", frame(0x0E, info)]]
    data = shell.play(frames, "--json", "daemon", "status").data
    assert (data["running"], data["pid"], data["node_id"]) == (True, 0, 5)
    assert "● pilot-daemon running" in shell.play(frames, "daemon", "status").stdout
