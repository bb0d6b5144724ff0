"""Dispatch, help, errors, exit codes, the catalogue (cli.md sections 1 and 2)."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import pilotfleet
from pilotfleet.cli import catalogue_admin
from pilotfleet.cli.catalogue import COMMANDS, GROUPS, SECTIONS
from pilotfleet.cli.catalogue_errors import ERRORS
from pilotfleet.cli.output import compact_json
from tests.cli.support import ReplayDaemon, frame

if TYPE_CHECKING:
    from tests.cli.support import Shell

PILOTCTL = Path(sys.executable).parent / "pilotctl"
NODE_FREE = frozenset(
    [
        "init",
        "config",
        "context",
        "quickstart",
        "version",
        "register",
        "lookup",
        "daemon",
        "trusted",
        "network",
        "policy",
        "fleet",
        "skill",
        "set-webhook",
        "clear-webhook",
        "gateway",
        *("inbox", "received"),
        *catalogue_admin.LEFT_OUT,
        *("audit", "audit-export", "deprovision", "directory-status"),
        *("directory-sync", "idp", "managed", "member-tags", "provision"),
        "provision-status",
    ]
)
"""First words of commands that do their work, or part of it, without a daemon."""


def test_no_arguments_print_the_help_on_stderr(shell: Shell) -> None:
    for tokens in ([], ["--json"]):
        result = shell.run(*tokens)
        assert result.code == 2
        assert result.stdout == ""
        assert "usage: pilotctl" in result.stderr


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_alone_is_on_stdout(shell: Shell, flag: str) -> None:
    result = shell.run(flag)
    assert result.code == 0
    for name, spec in COMMANDS.items():
        assert f"pilotctl {name}" in result.stdout
        assert spec.section in SECTIONS


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["ping", "--help"], "Usage: pilotctl ping <address|hostname>"),
        (["ping", "7", "-h", "--count", "x"], "Usage: pilotctl ping"),
        (["daemon", "start", "--help"], "Usage: pilotctl daemon start"),
        (["network", "--help"], "create"),
        (["nosuch", "--help"], 'No specific help for "nosuch"'),
    ],
)
def test_help_for_one_command_is_on_stderr(
    shell: Shell, tokens: list[str], text: str
) -> None:
    result = shell.run(*tokens)
    assert result.code == 0
    assert result.stdout == ""
    assert text in result.stderr


def test_unknown_command(shell: Shell) -> None:
    result = shell.run("nosuch")
    assert result.code == 2
    assert result.stderr.startswith("unknown command: nosuch\n")
    result = shell.run("--json", "extras", "nosuch")
    assert result.code == 1
    assert result.error["code"] == "invalid_argument"
    assert "pilotctl context" in result.error["hint"]


@pytest.mark.parametrize("tokens", [["version"], ["--version"], ["--json", "version"]])
def test_version_is_bare(shell: Shell, tokens: list[str]) -> None:
    result = shell.run(*tokens)
    assert (result.code, result.stdout) == (0, f"{pilotfleet.__version__}\n")


@pytest.mark.parametrize(
    ("tokens", "message", "hint"),
    [
        (["network"], "usage: pilotctl network <subcommand>", "available: list, join"),
        (["network", "x"], "unknown network subcommand: x", "available: list, join"),
        (["daemon"], "missing subcommand", "available: pilotctl daemon start | stop"),
        (["daemon", "x"], "unknown daemon subcommand: x", "available: start, stop"),
        (["task"], "missing subcommand", "available: submit, accept"),
        (["polo"], "usage: pilotctl polo <subcommand>", "available: show"),
        (["extras", "task", "x"], "unknown task subcommand: x", "available: submit"),
        (["gateway"], "missing subcommand", "available: start, stop"),
        (["trusted"], "usage: pilotctl trusted list", "available: pilotctl trusted"),
        (["trusted", "x"], "usage: pilotctl trusted list", "available: pilotctl"),
        (["events"], "usage: pilotctl events <subcommand>", "available: subscribe"),
    ],
)
def test_group_without_its_second_word(
    shell: Shell, tokens: list[str], message: str, hint: str
) -> None:
    error = shell.run("--json", *tokens).error
    assert error["code"] == "invalid_argument"
    assert error["message"] == message
    assert error["hint"].startswith(hint)


def test_trust_is_a_command_and_trusted_a_group(shell: Shell) -> None:
    assert shell.run("--json", "trusted", "list").data == {"trusted": [], "count": 0}
    assert shell.run("--json", "trust").error["code"] == "not_running"


@pytest.mark.parametrize("name", [n for n, s in COMMANDS.items() if s.handler])
def test_every_command_exists_and_reports_a_missing_daemon(
    shell: Shell, name: str
) -> None:
    spec = COMMANDS[name]
    module, function = spec.handler.split(":")
    assert getattr(importlib.import_module(f"pilotfleet.cli.{module}"), function)
    if name.split()[0] in NODE_FREE:
        return
    tokens = [*name.split(), "7", "8", "--data=x", "--id=x", "--justification=x"]
    tokens += ["--task=x", "--results=x", "--topic=x", "--net=1", "--node=7"]
    tokens += ["--tags=a", "--envelope=e", "--signature=s", "--audience=a", "--body=b"]
    shell.setenv("PILOT_ADMIN_TOKEN", "t")
    if name == "traceroute":
        tokens[1] = "0:0000.0000.0007"
    if name == "send-message":
        # The one command that refuses flags it does not know.
        tokens = [name, "7", "--data=x"]
    error = shell.run("--json", *tokens).error
    assert error["code"] == "not_running"
    assert error["hint"].endswith(f"(tried {shell.socket})")


def test_context_lists_every_command(shell: Shell) -> None:
    catalogue = shell.run("--json", "context").data
    listed = catalogue["commands"]
    assert set(listed) == set(COMMANDS)
    for entry in listed.values():
        assert set(entry) == {"args", "description", "returns", "errors"}
        assert set(entry["errors"]) <= set(catalogue["error_codes"])
    # The official program files operators' commands elsewhere; ours are in both.
    extras = catalogue["extras"]["commands"]
    assert {"audit", "network kick", "set-tags"} < set(extras) < set(listed)
    assert all(extras[name] == listed[name] for name in extras)
    assert set(catalogue["pilot_gateway"]["commands"]) == set(GROUPS["gateway"])
    assert catalogue["version"] == "1.4"
    for key in ("note", "error_codes", "global_flags", "environment", "config_file"):
        assert catalogue[key]


def test_errors_are_listed_for_every_command() -> None:
    assert set(ERRORS) == set(COMMANDS)


@pytest.mark.parametrize("name", sorted(catalogue_admin.LEFT_OUT))
def test_left_out_command_says_why(shell: Shell, name: str) -> None:
    result = shell.run("--json", "extras", name, "something", "--flag")
    assert result.code == 1
    assert result.error["code"] == "not_supported"
    assert catalogue_admin.LEFT_OUT[name] in result.error["message"]


def test_context_of_one_command(shell: Shell) -> None:
    assert shell.run("--json", "context", "bench").data["args"] == [
        "<address|hostname>",
        "[size_mb]",
        "[--timeout <dur>]",
    ]
    assert shell.run("--json", "context", "network", "join").code == 0
    assert shell.run("--json", "context", "extras", "set-tags").code == 0
    error = shell.run("--json", "context", "nosuch").error
    assert error["code"] == "not_found"
    assert "network join" in error["message"]


def test_groups_do_not_hide_commands() -> None:
    for first, seconds in GROUPS.items():
        assert len(seconds) == len(set(seconds))
        assert first not in COMMANDS or first in ("trust", "policy")


@pytest.mark.parametrize("first", [("fleet",), ("extras", "fleet")])
def test_fleet_is_handed_its_own_tokens(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, first: tuple[str, ...]
) -> None:
    seen: list[object] = []

    class Fleet:
        @staticmethod
        def main(arguments: list[str], json: bool) -> int:
            seen.extend([arguments, json])
            return 3

    monkeypatch.setitem(sys.modules, "pilotfleet.cli.fleet", Fleet)
    tokens = ["--agent", "a", "--json", *first, "run", "x.toml", "--tasks", "t"]
    assert shell.run(*tokens).code == 3
    assert seen == [["run", "x.toml", "--tasks", "t"], True]


def test_json_is_escaped_like_the_official_encoder_does() -> None:
    value = {"b": "<a&b>\u2028\u2029é\n", "a": 1}
    text = compact_json(value)
    assert text == '{"a":1,"b":"\\u003ca\\u0026b\\u003e\\u2028\\u2029é\\n"}'
    assert json.loads(text) == value


def test_text_errors_have_a_hint_line(shell: Shell) -> None:
    result = shell.run("info")
    assert result.code == 1
    assert result.stderr.splitlines()[0] == "error: daemon is not running"
    assert result.stderr.splitlines()[1].startswith("hint:  start the daemon")


def test_broken_configuration_is_a_warning(shell: Shell) -> None:
    directory = shell.home / ".pilot"
    directory.mkdir()
    for content in ("{", "[]"):
        (directory / "config.json").write_text(content)
        result = shell.run("info")
        assert result.stderr.startswith("warning: ")


def test_verbose_names_the_socket(shell: Shell) -> None:
    assert str(shell.socket) in shell.run("-v", "info").stderr.splitlines()[0]


def test_agent_is_selected_before_anything_is_asked(shell: Shell) -> None:
    select = {"name": "w-1", "id": 1, "op": "select-agent"}
    frames = [
        ["c2s", frame(0x80, select)],
        ["s2c", frame(0x81, {"id": 1, "result": {}})],
        ["c2s", "21"],
        ["s2c", frame(0x22, {"status": "ok"})],
    ]
    assert shell.play(frames, "--json", "--agent", "w-1", "health").code == 0
    shell.setenv("PILOT_AGENT", "w-1")
    assert shell.play(frames, "--json", "health").data == {"status": "ok"}


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (frame(0x0A, b"\0\1unknown command: 0x80"), "not_implemented"),
        (
            frame(0x81, {"id": 1, "error": {"code": "not_found", "message": "no"}}),
            "not_found",
        ),
        (frame(0x81, {"id": 1, "error": {}}), "internal"),
    ],
)
def test_refused_selection(shell: Shell, reply: str, code: str) -> None:
    select = frame(0x80, {"name": "x", "id": 1, "op": "select-agent"})
    frames = [["c2s", select], ["s2c", reply]]
    result = shell.play(frames, "--json", "--agent", "x", "health")
    assert result.error["code"] == code


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("0effff", "the daemon's reply is not JSON"),
        ("0e5b5d", "the daemon's reply is not an object"),
        (frame(0x0A, b"\0\1boom"), "info: info: daemon: boom"),
        ("", "the daemon closed the connection"),
    ],
)
def test_bad_reply_is_an_error_object(shell: Shell, reply: str, message: str) -> None:
    frames = [["c2s", "0d"]]
    if reply:
        frames.append(["s2c", reply])
        result = shell.play(frames, "--json", "info")
    else:
        with ReplayDaemon(shell.socket, [["c2s", "0d"], ["hangup", ""]]):
            result = shell.run("--json", "info")
    assert result.error["message"] == message


def test_replies_that_nobody_waits_for_are_dropped(shell: Shell) -> None:
    frames = [
        ["c2s", "0d"],
        ["s2c", "0700000009"],
        ["s2c", "0900000009"],
        ["s2c", frame(0x22, {"status": "late"})],
        ["s2c", frame(0x0E, {"node_id": 5, "endpoint": "1.2.3.4:5"})],
    ]
    assert shell.play(frames, "--json", "info").data == {"node_id": 5}


def _process(home: str, *tokens: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PILOTCTL, *tokens],
        env={"HOME": home, "PATH": os.defpath},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    process = _process(str(tmp_path), "--json", "context")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 128 + signal.SIGPIPE
    assert errors == b""


def test_interrupt_is_no_traceback(shell: Shell) -> None:
    frames = [["c2s", "0d"], ["interrupt", ""]]
    with ReplayDaemon(shell.socket, frames) as daemon:
        process = subprocess.Popen(
            [PILOTCTL, "info"],
            env={
                "HOME": str(shell.home),
                "PILOT_SOCKET": str(shell.socket),
                "PATH": os.defpath,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        daemon.process = process
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, output, errors) == (130, b"", b"")


def test_start_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pilotfleet.cli.main import main; main(['info'])\n"
        "heavy = ['asyncio', 'rich', 'cryptography', 'nacl', 'msgspec', 'click',"
        " 'subprocess', 'dataclasses', 'importlib.metadata']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": str(tmp_path), "PATH": os.defpath},
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert answer.stdout == b"[]\n"
