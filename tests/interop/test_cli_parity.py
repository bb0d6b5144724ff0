"""The same command lines with both programs, without a daemon: the same answers.

Compared are exit code, stream, the keys of JSON objects and the error code; the
message where the specification fixes it. Where an answer differs on purpose, the table
says why. Commands that only miss arguments or a daemon are rows of the matrix.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.support.official import official_program
from tests.support.programs import BIN, World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.official, pytest.mark.timeout(120)]

SAME: Final = """
--json
--json nosuch
--json extras nosuch
--json context nosuch
--json config
--json config --set
--json config --set novalue
--json config --set nosuch=1
--json config --set registry=here
--json config --set registry=:9000
--json config --set beacon=host:99999
--json config --set listen=here
--json config --set listen=:0
--json config --set endpoint=here
--json config --set hostname=
--json config --set hostname=Bad_Name
--json config --set hostname=good
--json config --set log_level=loud
--json config --set log_level=debug
--json config --set log_format=x
--json config --set public=maybe
--json config --set public=true
--json config --set no-echo=false
--json config --set syn_rate_limit=-1
--json config --set syn_rate_limit=x
--json config --set syn_rate_limit=05
--json config --set keepalive=x
--json config --set keepalive=30
--json config --set keepalive=1d
--json config --set keepalive=1m30s
--json config --set registry_fingerprint=ab
--json config --set registry_trust=x
--json config --set tls_trust=x
--json config --set security_profile=x
--json config --set transport=x
--json config --set transport=
--json config --set transport=UDP
--json config --set proxy=abc
--json config --set proxy=socks5://x:1
--json config --set proxy=http://u:p@h:1
--json config --set webhook=abc
--json config --set webhook=ftp://x
--json config --set webhook=
--json config --set compat_beacon=abc
--json config --set telemetry_url=abc
--json config --set admin-token=x
--json config --set email=a@b
--json init --registry 127.0.0.1:1 --beacon 127.0.0.1:2
--json init --registry 127.0.0.1:1 --beacon 127.0.0.1:2 --hostname h --socket /s
--json daemon
--json daemon nosuch
--json daemon stop
--json daemon status
--json daemon status --check
daemon status --check
--json trusted
--json trusted nosuch
--json network
--json network nosuch
--json extras policy
--json extras policy nosuch
--json extras gateway
--json extras gateway nosuch
--json extras gateway map
--json extras gateway list
--json -v find
--json find x --json
--json lookup 5
--json register
--json extras set-tags
--json extras set-tags a
--json extras set-tags a b c d
--json extras clear-tags
--json handshake 5
--json disconnect x
--json ping 5
--json send 5
--json send 5 80
--json dgram 5
--json publish 5
--json broadcast 1
--json broadcast 1 hi
--json set-webhook nosuch
--json set-webhook http://127.0.0.1:1/x
--json clear-webhook
--json network create
--json network create --name x
--json network delete
--json network delete 1
--json network rename 1
--json network role 1
--json network role 1 5
--json network policy
--json network policy 1
--json network policy 1 --max-members x
--json network promote 1
--json network kick 1 5
--json network join
--json network join x
--json network join 70000
--json network leave
--json network members
--json network invite 1
--json network accept
--json extras audit
--json extras provision
--json extras provision x
--json extras deprovision
--json extras deprovision x
--json extras idp
--json extras idp get
--json extras audit-export
--json extras audit-export get
--json extras provision-status
--json extras directory-sync
--json extras directory-sync x
--json extras directory-status
--json extras directory-status 1
--json extras policy get
--json extras policy get --net x
--json extras policy set --net 1
--json extras policy set --net 1 --inline {}
--json extras policy test
--json extras policy validate
--json extras policy validate --file /nosuch
--json extras policy validate --inline {}
--json extras policy validate --inline {"version":1,"rules":[]}
--json extras managed status
--json extras managed status --net x
--json extras managed cycle
--json extras managed cycle --force
--json extras managed reconcile
--json extras member-tags get
--json extras member-tags get --net 1
--json extras member-tags set
find --help
nosuch --help
daemon start --help
-h
--help
--json dgram 2 x --data y
--json dgram 2 7
--json subscribe 2 t --count x
--json trust --limit -1
--json peers --limit -1
--json broadcast abc x
--json broadcast 1 x --port 99999
--json broadcast 1 x
nosuch
version --json
--version
quickstart
extras
info
find
""".strip().splitlines()
"""Answered alike by both."""
OTHERWISE: Final = {
    "--json set-tags a": "'extras' is optional here",
    "--json clear-tags": "'extras' is optional here",
    "--json gateway list": "'extras' is optional here",
    "--json init --registry here": "an address is checked before it is written",
    "--json context extras set-tags": "'extras' is optional here",
    "--json inbox --since -1h": "an age cannot be negative",
    "--json inbox --clear --before -1h": "it would delete every message",
    "--json events": "the event bus is ours",
    "--json task list": "tasks are of older releases, and ours",
    "--json appstore list": "left out",
    "--json review": "left out",
    "--json verify": "left out",
    "--json recovery": "left out",
    "--json extras gateway stop": "ours has a control socket: a running one is stopped",
    "--json extras gateway unmap 10.4.0.1": "ours has a control socket",
}
"""Answered otherwise by ours, and why."""
FIXED: Final = frozenset(
    ["auth_required", "not_running", "already_exists", "invalid_argument"]
)
"""Codes whose messages the specification gives word by word, mostly."""
OWN_WORDS: Final = (
    "strconv.",
    "invalid duration",
    "no such file",
    "json:",
    "parse address",
)
"""Parts of official messages that come from its language's libraries."""


def run(
    program: Path, home: Path, line: str, **env: str
) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [program, *line.split()],
        env={
            "HOME": str(home),
            "PATH": "/usr/bin:/bin",
            "PILOT_REGISTRY": "127.0.0.1:1",
            "PILOT_SOCKET": str(home / "none.sock"),
            **env,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def answer(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return what is to be the same: exit code, streams, keys, code, message."""
    seen: dict[str, Any] = {
        "exit": result.returncode,
        "stdout": bool(result.stdout),
        "stderr": bool(result.stderr),
    }
    text = result.stdout or result.stderr
    if text.startswith("{"):
        body = json.loads(text)
        seen["keys"] = sorted(body)
        seen["code"] = body.get("code")
        data = body.get("data")
        if isinstance(data, dict):
            seen["data"] = {key: type(value).__name__ for key, value in data.items()}
            seen["value"] = data.get("value")
    return seen


def both(home: Path, line: str) -> tuple[Any, Any, str, str]:
    # The same home one after the other: paths in messages must not differ.
    results = []
    for program in (BIN / "pilotctl", official_program("pilotctl")):
        stand_in = home / "home"
        results.append(run(program, stand_in, line))
        shutil.rmtree(stand_in)
    ours, theirs = results
    messages = [
        json.loads(result.stderr).get("message", "")
        if result.stderr.startswith("{")
        else ""
        for result in results
    ]
    return answer(ours), answer(theirs), messages[0], messages[1]


@pytest.mark.parametrize("line", SAME)
def test_same_answer(line: str, tmp_path: Path) -> None:
    ours, theirs, message, official = both(tmp_path, line)
    assert ours == theirs, (message, official)
    is_usage = official.startswith("usage:")
    is_fixed = theirs.get("code") in FIXED and not is_usage
    if is_fixed and not any(words in official for words in OWN_WORDS):
        assert message == official
    if is_usage:
        # Ours may take more flags; the command and its first argument are the same.
        assert message.split()[:4] == official.split()[:4]


@pytest.mark.parametrize("line", OTHERWISE)
def test_different_answer_has_a_reason(line: str, tmp_path: Path) -> None:
    ours, theirs, message, official = both(tmp_path, line)
    assert (ours, message) != (theirs, official)


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        yield made


@pytest.mark.parametrize("client", ["ours", "official"])
@pytest.mark.parametrize("daemon", ["ours", "official"])
def test_either_client_runs_either_daemon(net: World, client: str, daemon: str) -> None:
    own = {"pilotctl": BIN / "pilotctl", "pilot-daemon": BIN / "pilot-daemon"}
    program = own["pilotctl"] if client == "ours" else official_program("pilotctl")
    server = (
        own["pilot-daemon"] if daemon == "ours" else official_program("pilot-daemon")
    )
    # The official daemon phones its vendor unless its configuration says otherwise.
    folder = net.home / ".pilot"
    folder.mkdir(mode=0o700)
    quiet = {"email": "a@example.test", "no_skillinject": True}
    (folder / "config.json").write_text(json.dumps(quiet))
    (folder / "config.json").chmod(0o600)

    def ctl(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, "--json", *words],
            env=net.environment(
                PILOT_DAEMON_BIN=str(server),
                PILOT_SOCKET=str(net.socket("d")),
                PILOT_BEACON=net.beacon,
                PILOT_NO_SKILLINJECT="1",
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    stopped = data_of(ctl("daemon", "status"))
    assert (stopped["running"], stopped["responsive"]) == (False, False)
    flags = ["--transport", "udp", "--motd-feed-url", ""]
    started = data_of(
        ctl("daemon", "start", "--hostname", "alice", "--listen", "127.0.0.1:0", *flags)
    )
    try:
        assert {"pid", "node_id", "address", "hostname", "socket", "log_file"} <= set(
            started
        )
        assert started["hostname"] == "alice"
        assert os.path.exists(started["log_file"])
        again = ctl("daemon", "start")
        assert json.loads(again.stderr)["code"] == "already_exists"
        status = data_of(ctl("daemon", "status"))
        assert (status["pid"], status["running"]) == (started["pid"], True)
        assert status["node_id"] == started["node_id"]
        assert ctl("daemon", "status", "--check").returncode == 0
    finally:
        ended = ctl("daemon", "stop")
    assert data_of(ended)["pid"] == started["pid"]
    assert ctl("daemon", "status", "--check").returncode == 1
    assert json.loads(ctl("daemon", "stop").stderr)["code"] == "not_running"
