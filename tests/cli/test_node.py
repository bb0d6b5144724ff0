"""Node, trust, agents, tasks, networks, configuration: shapes and refusals."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.support import ToyRegistry, frame

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.support import Shell


POLICY = json.dumps(
    {
        "version": 1,
        "rules": [
            {
                "name": "web",
                "on": "connect",
                "match": "port in [80, 443]",
                "actions": [{"type": "allow"}],
            }
        ],
    }
)

FIRST_PAGE = {"limit": 1000, "cursor": ""}


def called(op: str, result: Any, **request: Any) -> list[list[str]]:
    request = {**request, "id": 1, "op": op}
    reply = frame(0x81, {"id": 1, "result": result})
    return [["c2s", frame(0x80, request)], ["s2c", reply]]


def info(**fields: Any) -> list[list[str]]:
    return [["c2s", "0d"], ["s2c", frame(0x0E, fields)]]


def test_info_hides_endpoints_at_every_depth(shell: Shell) -> None:
    body = {
        "node_id": 5,
        "endpoint": "1.2.3.4:5",
        "peer_list": [{"node_id": 7, "endpoint": "1.2.3.4:6", "relay": False}],
    }
    assert shell.play(info(**body), "--json", "info").data == {
        "node_id": 5,
        "peer_list": [{"node_id": 7, "relay": False}],
    }


def test_info_for_people(shell: Shell) -> None:
    networks = [{"network_id": 3, "address": "3:0003.0000.0005"}]
    frames = info(node_id=5, version="1.18.0", uptime_secs=90, networks=networks)
    text = shell.play(frames, "info").stdout
    assert text.startswith("● pilot-daemon 1.18.0 · up 1m30s\n")
    assert "  3: 3:0003.0000.0005\n" in text


def test_peers_are_searched_by_number(shell: Shell) -> None:
    rows = [{"node_id": node, "encrypted": node == 7} for node in (7, 8, 17)]
    data = shell.play(info(peer_list=rows), "--json", "peers", "--search", "7").data
    assert [row["node_id"] for row in data["peers"]] == [7, 17]
    assert (data["total"], data["encrypted"]) == (2, 1)
    assert set(data["peers"][0]) == {"node_id", "encrypted", "authenticated", "relay"}
    text = shell.play(info(peer_list=rows), "peers", "--limit", "1").stdout
    assert "… 2 more (--all)" in text
    assert shell.play(info(peer_list=rows), "peers", "--all").stdout.count("node") == 3


def test_connections(shell: Shell) -> None:
    row = {"id": 1, "remote_addr": "0:0000.0000.0007", "remote_port": 7, "state": "X"}
    frames = info(conn_list=[row])
    assert shell.play(frames, "--json", "connections").data == {
        "connections": [row],
        "total": 1,
    }
    assert "0:0000.0000.0007:7" in shell.play(frames, "connections").stdout


@pytest.mark.parametrize("text", ["abc", "-1", "4294967296", "9" * 40, f"{9**12:024}"])
def test_connection_number_is_checked(shell: Shell, text: str) -> None:
    error = shell.run("--json", "disconnect", text).error
    assert error["message"].startswith("invalid connection ID: ")


def test_lookup_asks_the_registry(shell: Shell) -> None:
    body = {"type": "lookup_ok", "node_id": 7, "real_addr": "1.2.3.4:5"}
    with ToyRegistry(lambda request: body) as toy:
        shell.setenv("PILOT_REGISTRY", toy.address)
        assert shell.run("--json", "lookup", "7").data == {
            "type": "lookup_ok",
            "node_id": 7,
        }
    with ToyRegistry(lambda request: {"type": "error", "error": "gone"}) as toy:
        shell.setenv("PILOT_REGISTRY", toy.address)
        error = shell.run("--json", "lookup", "7").error
        assert error["message"] == "lookup: registry: gone"


@pytest.mark.parametrize("address", ["nowhere", "host:99999", "host:"])
def test_registry_address_is_checked(shell: Shell, address: str) -> None:
    shell.setenv("PILOT_REGISTRY", address)
    assert shell.run("--json", "lookup", "7").error["code"] == "invalid_argument"


def test_hostname_is_remembered_for_the_next_start(shell: Shell) -> None:
    frames = [["c2s", "13666f6f"], ["s2c", frame(0x14, {"hostname": "foo"})]]
    config = shell.home / ".pilot" / "config.json"
    shell.play(frames, "set-hostname", "foo")
    assert json.loads(config.read_text()) == {"hostname": "foo"}
    assert config.stat().st_mode & 0o777 == 0o600
    shell.play([["c2s", "13"], ["s2c", frame(0x14, {})]], "clear-hostname")
    assert json.loads(config.read_text()) == {}


def test_four_tags_are_too_many(shell: Shell) -> None:
    error = shell.run("--json", "set-tags", "a", "b", "c", "d").error
    assert error["message"] == "set-tags: maximum 3 tags allowed, got 4"


def test_what_a_daemon_kept_does_not_outlive_our_change(shell: Shell) -> None:
    kept = shell.home / ".pilot" / "webhook_url"
    kept.parent.mkdir()
    kept.write_text("http://localhost/old")
    assert shell.run("--json", "clear-webhook").data["webhook"] == ""
    assert not kept.exists()


def test_webhook_is_saved_without_a_daemon(shell: Shell) -> None:
    data = shell.run("--json", "set-webhook", "http://localhost/x").data
    assert data == {"webhook": "http://localhost/x", "applied": False}
    assert shell.run("--json", "config").data["webhook"] == "http://localhost/x"
    assert shell.run("--json", "clear-webhook").data["applied"] is False
    assert "webhook" not in shell.run("--json", "config").data


def test_prefer_direct_needs_a_newer_daemon(shell: Shell) -> None:
    reply = frame(0x0A, b"\0\1unknown command: 0x2D")
    frames = [["c2s", "2d00000007"], ["s2c", reply]]
    error = shell.play(frames, "--json", "prefer-direct", "7").error
    assert error["code"] == "not_implemented"


def test_trust_is_limited_for_people_and_on_request(shell: Shell) -> None:
    rows = [{"node_id": n, "approved_at": n, "mutual": n % 2} for n in range(30)]
    frames = [["c2s", "0f05"], ["s2c", frame(0x10, {"trusted": rows})]]
    data = shell.play(frames, "--json", "trust").data
    assert [row["node_id"] for row in data["trusted"]] == list(range(29, -1, -1))
    data = shell.play(frames, "--json", "trust", "--limit", "2").data
    assert (len(data["trusted"]), data["total"]) == (2, 30)
    assert len(shell.play(frames, "--json", "trust", "--limit", "0").data["trusted"])
    text = shell.play(frames, "trust").stdout
    assert text.startswith("Trusted peers — 30\n")
    assert "… 10 more" in text
    data = shell.play(frames, "--json", "trust", "--search", "9").data
    assert [row["node_id"] for row in data["trusted"]] == [29, 19, 9]


def test_pending_requests_for_people(shell: Shell) -> None:
    rows = [{"node_id": 9, "justification": "hi", "received_at": 1790000000}]
    frames = [["c2s", "0f04"], ["s2c", frame(0x10, {"pending": rows})]]
    assert "node 9 ·" in shell.play(frames, "pending").stdout


def test_find_agents_asks_the_registry_through_the_daemon(shell: Shell) -> None:
    row = {"node_id": 7, "address": "0:0000.0000.0007", "tags": ["a"], "online": True}
    query = {
        "tags": ["a", "b", "c"],
        "any": False,
        "hostname_prefix": "w",
        "online": True,
        "limit": 5,
        "cursor": "x",
        "cached": False,
    }
    body = {"type": "search_ok", "agents": [row], "total": 9, "next_cursor": "y"}
    frames = called("search", body, **query)
    tokens = ["find-agents", "c", "--tag", "a", "--tag", "b", "--limit", "5"]
    tokens += ["--hostname", "w", "--cursor", "x", "--online"]
    assert shell.play(frames, "--json", *tokens).data == {
        "agents": [row],
        "total": 9,
        "next_cursor": "y",
    }
    result = shell.play(frames, *tokens)
    assert result.stdout == "0:0000.0000.0007\t-\ta\t-\tyes\t-\n"
    assert result.stderr == "1 of 9 agents\nnext page: --cursor y\n"


def test_find_agents_tells_the_age_of_an_answer_from_memory(shell: Shell) -> None:
    query = {
        **{"tags": ["a"], "any": False, "hostname_prefix": "", "online": False},
        **{"limit": 50, "cursor": "", "cached": True},
    }
    body = {"type": "search_ok", "agents": [], "total": 0, "age_s": 1.25}
    frames = called("search", body, **query)
    tokens = ["find-agents", "--tag", "a", "--cached"]
    assert shell.play(frames, "--json", *tokens).data["age_s"] == 1.25
    assert "as it was 1.2 s ago" in shell.play(frames, *tokens).stderr


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("invalid cursor", "invalid_argument"),
        ("too many tags (max 8)", "invalid_argument"),
        ("registry away", "connection_failed"),
    ],
)
def test_refused_search_tells_whose_fault_it_is(
    shell: Shell, said: str, code: str
) -> None:
    frames = called(
        "search",
        {},
        **{"tags": [], "any": False, "hostname_prefix": "", "online": False},
        **{"limit": 50, "cursor": "zzz", "cached": False},
    )
    failure = {"code": "connection_failed", "message": said}
    frames[1] = ["s2c", frame(0x81, {"id": 1, "error": failure})]
    error = shell.play(frames, "--json", "find-agents", "--cursor", "zzz").error
    assert error["code"] == code


def test_agents_on_a_terminal_are_a_table(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"name": "[red]w-1", "address": "0:0000.0000.0007", "state": "online"}]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    frames = called("agents", {"agents": rows}, **FIRST_PAGE)
    text = shell.play(frames, "agents").stdout
    assert "NAME" in text
    assert "[red]w-1" in text


def test_many_agents_on_a_terminal_are_in_columns(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["w-\u4e16", *(f"worker-{number}" for number in range(600)), "w-\x1b[0m"]
    rows = [{"name": name, "state": "online"} for name in names]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    frames = called("agents", {"agents": rows}, **FIRST_PAGE)
    lines = shell.play(frames, "agents").stdout.splitlines()
    assert len(lines) == 603
    assert lines[0] == "NAME        ADDRESS  HOSTNAME  TAGS  STATE"
    # The first is two columns wide; what would steer the terminal is not printed.
    assert lines[1] == "w-\u4e16        -        -         -     online"
    assert lines[601] == "worker-599  -        -         -     online"
    assert lines[602].startswith("w-\ufffd[0m")


def test_agents_are_asked_for_page_by_page(shell: Shell) -> None:
    first = {"agents": [{"name": "w-1"}], "total": 2, "next_cursor": "w-1"}
    second = {"agents": [{"name": "w-2"}], "total": 2, "next_cursor": ""}
    follow = {"limit": 1000, "cursor": "w-1", "id": 2, "op": "agents"}
    frames = [
        *called("agents", first, **FIRST_PAGE),
        ["c2s", frame(0x80, follow)],
        ["s2c", frame(0x81, {"id": 2, "result": second})],
    ]
    assert shell.play(frames, "--json", "agents").data == {
        "agents": [{"name": "w-1"}, {"name": "w-2"}],
        "total": 2,
    }


def test_agents_of_a_process_that_is_being_restarted_are_missed(shell: Shell) -> None:
    body = {"agents": [{"name": "w-1", "state": "online"}], "missing_processes": [2]}
    frames = called("agents", body, **FIRST_PAGE)
    assert shell.play(frames, "--json", "agents").data["missing_processes"] == [2]
    result = shell.play(frames, "agents")
    assert (result.code, result.stdout) == (0, "w-1\t-\t-\t-\tonline\n")
    assert result.stderr == (
        "1 of 1 agents\nprocess 2 is being restarted: its agents are not listed\n"
    )


def test_agents_need_our_daemon(shell: Shell) -> None:
    frames = called("agents", {}, **FIRST_PAGE)
    frames[1] = ["s2c", frame(0x0A, b"\0\1unknown command: 0x80")]
    error = shell.play(frames, "--json", "agents").error
    assert error["code"] == "not_implemented"
    assert "pilotfleet" in error["hint"]


@pytest.mark.parametrize(
    ("tokens", "code"),
    [
        (["--count", "1"], "invalid_argument"),
        (["--timeout", "1s"], "invalid_argument"),
        (["--limit", "0"], "invalid_argument"),
        (["--limit", "1001"], "invalid_argument"),
    ],
)
def test_find_agents_refuses(shell: Shell, tokens: list[str], code: str) -> None:
    assert shell.run("--json", "find-agents", *tokens).error["code"] == code


def test_task_submit(shell: Shell) -> None:
    body = {"task_id": "i", "status": 200, "message": "m", "accepted": True}
    frames = called("task.submit", body, target="0:0000.0000.0007", task="do it")
    tokens = ["task", "submit", "7", "--task", "do it"]
    expected = {"target": "0:0000.0000.0007", "task": "do it", **body}
    assert shell.play(frames, "--json", *tokens).data == expected
    assert shell.play(frames, "--json", "extras", *tokens).data == expected


@pytest.mark.parametrize(
    ("tokens", "op", "request_"),
    [
        (["accept", "--id=i"], "accept", {"task_id": "i"}),
        (
            ["decline", "--id=i", "--justification=no"],
            "decline",
            {"task_id": "i", "justification": "no"},
        ),
        (["execute"], "execute", {}),
        (
            ["send-results", "--id=i", "--results=r"],
            "send-results",
            {"task_id": "i", "results": "r"},
        ),
        (["result", "i"], "result", {"task_id": "i", "offset": 0}),
        (["list"], "list", {}),
        (["list", "--type", "received"], "list", {"type": "received"}),
        (["queue"], "queue", {}),
        (["cancel", "i"], "cancel", {"task_id": "i"}),
    ],
)
def test_task_commands_call_their_operation(
    shell: Shell, tokens: list[str], op: str, request_: dict[str, str]
) -> None:
    frames = called(f"task.{op}", {"task_id": "i", "status": "S"}, **request_)
    data = shell.play(frames, "--json", "task", *tokens).data
    empty: dict[str, Any] = {"list": {"tasks": []}, "queue": {"queue": [], "count": 0}}
    assert data.items() >= empty.get(op, {"task_id": "i", "status": "S"}).items()
    assert shell.play(frames, "task", *tokens).code == 0


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["submit", "7"], "--task is required"),
        (["accept"], "--id is required"),
        (["decline", "--id=i"], "--justification is required"),
        (["send-results", "--id=i"], "either --results or --file is required"),
        (["send-results", "--id=i", "--file=x.py"], 'file type ".py" not allowed'),
        (["send-results", "--id=i", "--file=no.txt"], "file not found: no.txt"),
        (["list", "--type=x"], 'unknown type "x"'),
        (["result"], "usage: pilotctl task result"),
        (["cancel"], "usage: pilotctl task cancel"),
    ],
)
def test_task_commands_refuse(shell: Shell, tokens: list[str], message: str) -> None:
    assert shell.run("--json", "task", *tokens).error["message"].startswith(message)


def test_result_file_over_the_limit_is_refused(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(bytes(12_533_761))
    refused = shell.run("--json", "task", "send-results", "--id=i", f"--file={path}")
    assert "larger than 12533760 bytes" in refused.error["message"]


def test_result_that_cannot_be_written_is_an_error(shell: Shell) -> None:
    body = {"type": "text", "content": "é"}
    frames = called("task.result", body, task_id="i", offset=0)
    error = shell.play(frames, "--json", "task", "result", "i", "--out=/no/x").error
    assert error["code"] == "internal"


def test_network_administration_talks_to_the_registry(shell: Shell) -> None:
    shell.setenv("PILOT_ADMIN_TOKEN", "tok")
    with ToyRegistry(lambda request: {"type": "ok"}) as toy:
        shell.setenv("PILOT_REGISTRY", toy.address)
        create = ["network", "create", "--name", "n", "--join-rule", "token"]
        create += ["--token", "t", "--rules", '{"links": 1}', "--enterprise"]
        assert shell.play(info(node_id=5), *create).code == 0
        for tokens in (
            ["create", "--name=n", "--node-id=6"],
            ["delete", "3"],
            ["rename", "3", "m"],
            ["join", "3", "--node-id", "9", "--token", "t"],
            ["policy", "3", "--max-members", "7", "--allowed-ports", "1, 2"],
            ["policy", "3"],
        ):
            assert shell.run("network", *tokens).code == 0
        # A number needs no daemon.
        for second in ("promote", "demote", "kick", "role"):
            assert shell.run("network", second, "3", "7").code == 0
    token = {"admin_token": "tok"}
    member = {"network_id": 3, "target_node_id": 7}
    assert toy.requests == [
        {
            "type": "create_network",
            "name": "n",
            "join_rule": "token",
            "token": "t",
            "enterprise": True,
            "rules": '{"links": 1}',
            "node_id": 5,
            **token,
        },
        {
            "type": "create_network",
            "name": "n",
            "join_rule": "open",
            "token": "",
            "node_id": 6,
            **token,
        },
        {"type": "delete_network", "network_id": 3, **token},
        {"type": "rename_network", "network_id": 3, "name": "m", **token},
        {"type": "join_network", "network_id": 3, "node_id": 9, "token": "t", **token},
        {
            "type": "set_network_policy",
            "network_id": 3,
            "max_members": 7,
            "allowed_ports": [1, 2],
            **token,
        },
        {"type": "get_network_policy", "network_id": 3},
        {"type": "promote_member", **member, **token},
        {"type": "demote_member", **member, **token},
        {"type": "kick_member", **member, **token},
        {"type": "get_member_role", **member},
    ]


@pytest.mark.parametrize(
    ("tokens", "code"),
    [
        (["network", "create"], "invalid_argument"),
        (["network", "create", "--name=n"], "auth_required"),
        (["network", "policy", "3", "--set", "x=1"], "invalid_argument"),
        (["network", "delete", "3"], "auth_required"),
        (["network", "kick", "3", "7"], "auth_required"),
        (["network", "join", "x"], "invalid_argument"),
        (["network", "join", "70000"], "invalid_argument"),
        (["policy", "set", "--inline", "{}"], "invalid_argument"),
        (["policy", "set", "--net=3", "--inline", "{"], "invalid_argument"),
        (["policy", "set", "--net=3", "--inline", "[]"], "invalid_argument"),
        (["policy", "set", "--net=3", "--file", "/no/such"], "io_error"),
        (["policy", "set"], "invalid_argument"),
        (["policy", "validate", "--inline", '{"version": 2}'], "invalid_argument"),
        (["policy", "validate", "--inline", '{"version": 1}'], "invalid_argument"),
        (["member-tags", "get"], "invalid_argument"),
        (["sign-request", "--audience=a", "--body-hash=x"], "connection_failed"),
        (["sign-request", "--audience=a", "--body-file=/no"], "invalid_argument"),
        (["sign-request", "--audience=a"], "invalid_argument"),
        (["verify-request"], "invalid_argument"),
        (
            ["verify-request", "--envelope=e", "--signature=s", "--max-skew=99999999"],
            "invalid_argument",
        ),
    ],
)
def test_refusals_without_a_daemon(shell: Shell, tokens: list[str], code: str) -> None:
    assert shell.run("--json", *tokens).error["code"] == code


def test_policy_is_validated_locally(shell: Shell) -> None:
    data = shell.run("--json", "policy", "validate", "--inline", POLICY).data
    assert data == {
        "valid": True,
        "version": 1,
        "rules": 1,
        "events": {"connect": True},
    }


def test_policy_set_carries_the_token(shell: Shell) -> None:
    shell.setenv("PILOT_ADMIN_TOKEN", "tok")
    request = bytes.fromhex("050100030003") + b"tok" + POLICY.encode()
    frames = [["c2s", frame(0x23, request)], ["s2c", frame(0x24, {"applied": True})]]
    tokens = ["policy", "set", "--net", "3", "--inline", POLICY]
    with ToyRegistry(lambda request: {"type": "ok"}) as toy:
        shell.setenv("PILOT_REGISTRY", toy.address)
        assert shell.play(frames, "--json", *tokens).data == {"applied": True}
    stored = {"network_id": 3, "expr_policy": POLICY, "admin_token": "tok"}
    assert toy.requests == [{"type": "set_expr_policy", **stored}]


def test_policy_that_the_registry_refuses_never_reaches_the_daemon(
    shell: Shell,
) -> None:
    tokens = ["policy", "set", "--net", "3", "--inline", POLICY]
    with ToyRegistry(lambda request: {"type": "error", "error": "no"}) as toy:
        shell.setenv("PILOT_REGISTRY", toy.address)
        error = shell.run("--json", *tokens).error
    assert error["code"] == "connection_failed"
    assert error["message"] == "set policy on registry: registry: no"
    assert "admin_token" not in toy.requests[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("foo=bar", 'config: unknown key "foo"'),
        ("registry=zz", "config: registry must be a host:port address"),
        ("log_level=loud", "config: invalid log_level"),
        ("public=yes", "config: public must be true or false"),
        ("log_max_size=-1", "config: log_max_size must be a non-negative integer"),
        ("keepalive=1d", "config: keepalive must be a non-negative duration"),
        ("registry_fingerprint=ab", "config: registry_fingerprint must be a SHA-256"),
        ("novalue", "usage: pilotctl config --set key=value"),
        ("true", "usage: pilotctl config --set key=value"),
    ],
)
def test_bad_setting_is_refused(shell: Shell, setting: str, message: str) -> None:
    error = shell.run("--json", "config", "--set", setting).error
    assert error["message"].startswith(message)
    assert not (shell.home / ".pilot").exists()


def test_settings_are_kept_with_their_type(shell: Shell) -> None:
    for setting in ("log-level=warn", "public=true", "log_max_size=9", "proxy="):
        assert shell.run("config", "--set", setting).code == 0
    shell.run("config", "--set", "admin_token=secret")
    content = json.loads((shell.home / ".pilot" / "config.json").read_text())
    assert content == {
        "admin_token": "secret",
        "log_level": "warn",
        "log_max_size": 9,
        "public": True,
    }
    shown = shell.run("--json", "config")
    assert "secret" not in shown.stdout
    assert shown.data["pid_file"] == str(shell.home / ".pilot" / "pilot.pid")


def test_settings_that_cannot_be_written(shell: Shell) -> None:
    (shell.home / ".pilot").write_text("not a folder")
    result = shell.run("--json", "config", "--set", "public=true")
    warning, envelope = result.stderr.splitlines()
    assert warning.startswith("warning: cannot read")
    assert json.loads(envelope)["code"] == "internal"


def test_init_defaults_to_this_machine(shell: Shell) -> None:
    data = shell.run("--json", "init", "--hostname", "alice").data
    assert data["registry"] == "127.0.0.1:9000"
    assert data["beacon"] == "127.0.0.1:9001"
    assert data["hostname"] == "alice"
    assert json.loads((shell.home / ".pilot" / "config.json").read_text()) == {
        key: data[key] for key in ("registry", "beacon", "socket", "hostname")
    }


def test_pilot_home_moves_the_configuration(shell: Shell) -> None:
    shell.setenv("PILOT_HOME", str(shell.home / "other"))
    data = shell.run("--json", "init").data
    assert data["config_path"] == os.path.join(
        shell.home, "other", ".pilot", "config.json"
    )
