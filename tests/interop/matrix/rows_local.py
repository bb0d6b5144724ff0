"""Rows: configuration, the daemon's life, errors of the command line itself."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Final

from tests.interop.matrix.rows import row

if TYPE_CHECKING:
    from tests.interop.matrix.worlds import Pair

COMMANDS: Final = (
    *("find", "lookup", "set-hostname", "handshake", "approve", "reject", "untrust"),
    *("prefer-direct", "disconnect", "ping", "traceroute", "bench", "connect", "send"),
    *("recv", "dgram", "listen", "broadcast", "send-message", "send-file", "subscribe"),
    *("publish", "set-webhook", "sign-request", "verify-request"),
)
NEEDS_DAEMON: Final = (
    *("info", "health", "peers", "connections", "pending", "trust", "set-public"),
    *(
        "set-private",
        "deregister",
        "rotate-key",
        "clear-hostname",
        "find x",
        "lookup 1",
    ),
    *("set-hostname x", "handshake 1", "approve 1", "reject 1", "untrust 1"),
    *(
        "prefer-direct 1",
        "disconnect 1",
        "ping 1",
        "bench 1",
        "connect 1 7 --message x",
    ),
    *("send 1 7 --data x", "recv 2000", "dgram 1 7 --data x", "listen 3000"),
    *("send-message 1 --data x", "send-file 1 /etc/hostname", "subscribe 1 t"),
    *("publish 1 t", "network list", "sign-request --audience a --body b"),
)


@row("no daemon", local=True)
def _not_running(pair: Pair) -> None:
    for command in NEEDS_DAEMON:
        pair.near.do(*command.split(), PILOT_SOCKET="/nowhere/pilot.sock")


@row("missing arguments", local=True)
def _missing(pair: Pair) -> None:
    for command in COMMANDS:
        pair.near.do(command, PILOT_SOCKET="/nowhere/pilot.sock")


@row("unknown command", local=True)
def _unknown(pair: Pair) -> None:
    pair.near.do("dance")
    pair.near.do("daemon", "dance")
    pair.near.do("events-of-the-day", "--help")


@row("exit status in text mode", local=True)
def _text_mode(pair: Pair) -> None:
    for argv in ([], ["dance"], ["--help"], ["ping", "--help"], ["info"], ["find"]):
        done = pair.near.in_text_mode(*argv)
        speaks = {"stdout": bool(done.stdout), "stderr": bool(done.stderr)}
        pair.record(f"text: {argv}", {"exit": done.returncode, **speaks})


@row("flags out of place", local=True)
def _flags(pair: Pair) -> None:
    pair.near.do("ping", "--count", "1", pair.near.id, "--bogus")
    pair.near.do("ping", pair.near.id, "-count=1")
    pair.near.do("ping", pair.near.id, "--count", "abc")
    pair.near.do("ping", pair.near.id, "--timeout", "abc")
    pair.near.do("trust", "--limit", "abc")


@row("context", local=True)
def _context(pair: Pair) -> None:
    catalogue = pair.near.prepare("context")
    pair.record("context version", catalogue["version"])
    pair.near.do("context", "nothing-like-that")
    entry = pair.near.prepare("context", "ping")
    pair.record("context ping", {key: type(entry[key]).__name__ for key in entry})


@row("config", local=True, fresh=True)
def _config(pair: Pair) -> None:
    pair.near.do("config")
    pair.near.do("config", "--set", "log_level=debug")
    pair.near.do("config", "--set", "public=true")
    pair.near.do("config", "--set", "max_conns_total=7")
    pair.near.do("config", "--set", "keepalive=30s")
    pair.near.do("config", label="config after changes")
    path = pair.near.home / ".pilot" / "config.json"
    pair.record("config.json", json.loads(path.read_text()))
    pair.record("mode", path.stat().st_mode & 0o777)


@row("config refused", local=True)
def _config_refused(pair: Pair) -> None:
    pair.near.do("config", "--set", "foo=1")
    pair.near.do("config", "--set", "foo")
    pair.near.do("config", "--set", "registry=nonsense")
    pair.near.do("config", "--set", "public=perhaps")
    pair.near.do("config", "--set", "max_conns_total=-1")
    pair.near.do("config", "--set", "keepalive=soon")
    pair.near.do("config", "--set", "log_level=loud")


@row("init", local=True, fresh=True)
def _init(pair: Pair) -> None:
    pair.near.do(
        *("init", "--registry", "127.0.0.1:9000", "--beacon", "127.0.0.1:9001"),
        *("--hostname", "alice", "--socket", "/tmp/alice.sock"),
    )
    pair.near.do("config", label="config after init")


@row("daemon start, status, stop", local=True, fresh=True)
def _daemon(pair: Pair) -> None:
    near = pair.near
    assert near.program is not None
    near.do("daemon", "status")
    near.do("daemon", "status", "--check")
    near.do("daemon", "start", label="daemon start while one runs")
    near.program.terminate()
    near.do("daemon", "status", label="daemon status without one")
    near.do("daemon", "status", "--check", label="--check without one")
    near.do("daemon", "stop", label="daemon stop without one")
    quiet = {"telemetry_url": "", "motd_feed_url": "", "no_skillinject": True}
    (near.home / ".pilot" / "config.json").write_text(json.dumps(quiet))
    try:
        near.do(
            *("daemon", "start", "--registry", pair.world.registry),
            *("--beacon", pair.world.beacon, "--listen", "127.0.0.1:0"),
            *("--email", "near@example.test", "--motd-feed-url="),
            label="daemon start",
        )
        near.do("daemon", "status", label="daemon status of a started one")
        near.do("daemon", "start", label="daemon start again")
        near.do("info")
        near.do("daemon", "stop")
        near.do("daemon", "status", label="daemon status after stop")
    finally:
        _end(pair)


def _end(pair: Pair) -> None:
    """End a background daemon that a broken row left."""
    try:
        pid = int((pair.near.home / ".pilot" / "pilot.pid").read_text())
    except (OSError, ValueError):
        return
    if pid > 0 and str(pair.near.home).encode() in _environment_of(pid):
        os.kill(pid, signal.SIGKILL)


def _environment_of(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


@row("gateway list", local=True)
def _gateway(pair: Pair) -> None:
    pair.near.do("extras", "gateway", "list")
    pair.near.do("extras", "gateway", "map")
