"""``find-agents --watch``: what it asks, prints and refuses, and real programs."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.support import frame
from tests.support import programs
from tests.support.programs import BIN, data_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.support import Shell
    from tests.support.programs import World

LIMIT_S = 60.0


def row(node: int, *tags: str) -> dict[str, Any]:
    return {
        "node_id": node,
        "address": f"0:0000.0000.000{node}",
        "hostname": f"w-{node}",
        "tags": list(tags),
        "polo": 0,
        "online": True,
        "last_seen": "2026-11-23T12:00:00Z",
    }


def watched(*pushes: dict[str, Any], **query: Any) -> list[list[str]]:
    request = {
        **{"tags": [], "any": False, "hostname_prefix": "", "online": False},
        **query,
        **{"id": 1, "op": "watch"},
    }
    answer = frame(0x81, {"id": 1, "result": {"watch": "", "live": True}})
    told = [["s2c", frame(0x82, {"push": "watch", "watch": "", **p})] for p in pushes]
    return [["c2s", frame(0x80, request)], ["s2c", answer], *told]


def test_each_change_is_a_line(shell: Shell) -> None:
    frames = watched(
        {"added": [row(1, "a", "b")], "complete": True},
        {"removed": [row(1)], "added": [row(2)], "changed": [row(3)]},
        {"added": [row(4)]},
        tags=["a", "b"],
        any=True,
        online=True,
        hostname_prefix="w",
    )
    tokens = ["find-agents", "--watch", "--tag", "a", "--tag", "b", "--any"]
    tokens += ["--hostname", "w", "--online", "--count", "4"]
    result = shell.play(frames, "--json", *tokens)
    assert result.code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"change": "added", "agent": row(1, "a", "b")},
        {"change": "removed", "agent": row(1)},
        {"change": "added", "agent": row(2)},
        {"change": "changed", "agent": row(3)},
    ]
    lines = shell.play(frames, *tokens).stdout.splitlines()
    assert lines[0] == (
        "added\t0:0000.0000.0001\tw-1\ta,b\t0\tyes\t2026-11-23T12:00:00Z"
    )
    assert [line.split("\t")[0] for line in lines] == [
        *("added", "removed", "added", "changed")
    ]


def test_push_before_the_answer_is_not_lost(shell: Shell) -> None:
    first, answer, push = watched({"added": [row(1)]})
    tokens = ["find-agents", "--watch", "--count", "1"]
    assert "w-1" in shell.play([first, push, answer], *tokens).stdout


def test_time_limit_is_a_good_end(shell: Shell) -> None:
    frames = watched({"added": [row(1)], "complete": True})
    result = shell.play(frames, "find-agents", "--watch", "--timeout", "200ms")
    assert result.code == 0
    assert len(result.stdout.splitlines()) == 1


def test_end_of_the_watch_is_an_error(shell: Shell) -> None:
    failure = {
        "code": "connection_failed",
        "message": "more than 3 agents",
        "hint": "x",
    }
    result = shell.play(watched({"error": failure}), "--json", "find-agents", "--watch")
    assert result.code == 1
    assert result.error["error"] == "more than 3 agents"
    assert result.error["hint"] == "x"


def test_end_of_the_daemon_is_an_error(shell: Shell) -> None:
    frames = [*watched({"added": []}), ["hangup", ""]]
    result = shell.play(frames, "--json", "find-agents", "--watch")
    assert result.error["code"] == "connection_failed"


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (["--cursor", "x"], "--watch does not go together with --cursor"),
        (["--limit", "5"], "--watch does not go together with --limit"),
        (["--cached"], "--watch does not go together with --cached"),
        (["--count", "x"], "invalid integer for --count"),
        (["--count", "-1"], "invalid integer for --count"),
        (["--timeout", "soon"], "--timeout"),
    ],
)
def test_what_does_not_go_together_is_refused(
    shell: Shell, tokens: list[str], said: str
) -> None:
    error = shell.run("--json", "find-agents", "--watch", *tokens).error
    assert error["code"] == "invalid_argument"
    assert said in error["error"]


def test_tag_that_was_taken_for_a_value_is_refused(shell: Shell) -> None:
    error = shell.run("--json", "find-agents", "--watch", "gpu").error
    assert error["code"] == "invalid_argument"
    assert "gpu" in error["error"]
    assert "--tag" in error["hint"]


def test_official_daemon_is_refused(shell: Shell) -> None:
    frames = watched()
    frames[1] = ["s2c", frame(0x0A, b"\0\1unknown command: 0x80")]
    error = shell.play(frames, "--json", "find-agents", "--watch").error
    assert error["code"] == "not_implemented"
    assert "pilot-daemon" in error["hint"]


# Real programs


@pytest.fixture
def net() -> Iterator[World]:
    """Yield a rendezvous with a daemon that watches."""
    with programs.world() as made:
        made.start_rendezvous()
        made.start_daemon("hub", "--hostname", "hub", "--public")
        yield made


class Watcher:
    """A ``find-agents --watch`` that runs."""

    def __init__(self, net: World, *flags: str) -> None:
        self.process = subprocess.Popen(
            [
                *(BIN / "pilotctl", "--json", "find-agents", "--watch"),
                *("--timeout", "10m", *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=net.environment(PILOT_SOCKET=str(net.socket("hub"))),
        )

    def next(self) -> tuple[str, str, list[str]]:
        """Return kind, hostname and tags of the next change."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        change = json.loads(line)
        agent = change["agent"]
        return change["change"], agent["hostname"], agent["tags"]

    def interrupt(self) -> tuple[int, str, str]:
        """Press Ctrl-C; return status and what else was printed."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, out, err


def test_life_of_an_agent_is_seen(net: World) -> None:
    watcher = Watcher(net, "--tag", "x", "--online")
    worker = net.start_daemon("worker", "--hostname", "w", "--public", "--tag", "x")
    assert watcher.next() == ("added", "w", ["x"])
    data_of(net.ctl("worker", "set-tags", "x", "y"))
    assert watcher.next() == ("changed", "w", ["x", "y"])
    data_of(net.ctl("worker", "set-private"))
    assert watcher.next()[:2] == ("removed", "w")
    data_of(net.ctl("worker", "set-public"))
    assert watcher.next() == ("added", "w", ["x", "y"])
    data_of(net.ctl("worker", "set-tags", "y"))
    assert watcher.next()[:2] == ("removed", "w")
    data_of(net.ctl("worker", "set-tags", "x"))
    assert watcher.next()[:2] == ("added", "w")
    data_of(net.ctl("worker", "deregister"))
    assert watcher.next()[:2] == ("removed", "w")
    worker.terminate()
    assert watcher.interrupt() == (130, "", "")


def test_rendezvous_that_is_killed_causes_no_noise(net: World) -> None:
    """What changed meanwhile is told, and nothing else."""
    for name in ("one", "two"):
        net.start_daemon(name, "--hostname", name, "--public", "--tag", "x")
    watcher = Watcher(net, "--tag", "x", "--online")
    assert {watcher.next()[1], watcher.next()[1]} == {"one", "two"}
    net.programs[0].kill()
    net.start_rendezvous()
    net.start_daemon("three", "--hostname", "three", "--public", "--tag", "x")
    assert watcher.next() == ("added", "three", ["x"])
    data_of(net.ctl("two", "set-tags", "z"))
    assert watcher.next()[:2] == ("removed", "two")
    assert watcher.interrupt() == (130, "", "")


def test_reader_that_goes_away_is_no_fault(net: World) -> None:
    watcher = Watcher(net)
    assert watcher.next()[1] == "hub"
    assert watcher.process.stdout is not None
    watcher.process.stdout.close()
    data_of(net.ctl("hub", "set-tags", "x"))
    assert watcher.process.wait(LIMIT_S) == 141
    assert watcher.process.stderr is not None
    assert watcher.process.stderr.read() == ""
    watcher.process.stderr.close()


def test_official_program_in_the_daemons_place_is_named(net: World) -> None:
    net.start_official_daemon("official")
    refused = net.ctl("official", "find-agents", "--watch")
    assert refused.returncode == 1
    error = json.loads(refused.stderr)
    assert error["code"] == "not_implemented"
    assert error["error"] == "the daemon does not offer 'watch'"
    assert error["hint"] == "it needs pilotfleet's pilot-daemon"
    # It is watched as any other agent is.
    watcher = Watcher(net, "--tag", "x")
    data_of(net.official_ctl("official", "set-public"))
    data_of(net.official_ctl("official", "extras", "set-tags", "x"))
    assert watcher.next()[2] == ["x"]
    assert watcher.interrupt() == (130, "", "")
