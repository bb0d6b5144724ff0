"""Task commands between two daemons, with results that fill many frames."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import BIN, World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


@pytest.fixture(scope="module")
def pair() -> Iterator[World]:
    """Two daemons that trust each other."""
    with world() as net:
        net.start_rendezvous()
        for name in ("asker", "doer"):
            flags = ("--trust-auto-approve", "--polo-gate", "off")
            net.start_daemon(name, "--hostname", name, *flags)
        doer = str(data_of(net.ctl("doer", "info"))["node_id"])
        data_of(net.ctl("asker", "handshake", doer))
        data_of(net.ctl("asker", "ping", doer, "--count", "1"))
        yield net


def submit_and_execute(net: World) -> str:
    sent = data_of(net.ctl("asker", "task", "submit", "doer", "--task", "do it"))
    assert sent["accepted"], sent
    task_id = str(sent["task_id"])
    data_of(net.ctl("doer", "task", "accept", "--id", task_id))
    assert data_of(net.ctl("doer", "task", "execute"))["task_id"] == task_id
    return task_id


def wait_for_success(net: World, task_id: str) -> None:
    def has_succeeded() -> bool:
        tasks = data_of(net.ctl("asker", "task", "list", "--type", "submitted"))
        rows = {row["task_id"]: row["status"] for row in tasks["tasks"]}
        return bool(rows[task_id] == "SUCCEEDED")

    net.programs[1].wait_until(has_succeeded)


def test_long_text_arrives_whole(pair: World) -> None:
    task_id = submit_and_execute(pair)
    # One argument of a command line holds 128 KiB; "é" is cut by any odd piece.
    text = "é" * 60_000
    data_of(
        pair.ctl("doer", "task", "send-results", "--id", task_id, "--results", text)
    )
    wait_for_success(pair, task_id)
    result = data_of(pair.ctl("asker", "task", "result", task_id))
    assert result["content"] == text


def test_large_file_arrives_whole(pair: World) -> None:
    task_id = submit_and_execute(pair)
    data = random.Random(7).randbytes(5_000_000)
    (pair.home / "model.bin").write_bytes(data)
    sent = data_of(
        pair.ctl(
            *("doer", "task", "send-results", "--id", task_id),
            *("--file", str(pair.home / "model.bin")),
        )
    )
    assert (sent["sent_type"], sent["file_size"]) == ("file", len(data))
    wait_for_success(pair, task_id)
    copy = pair.home / "copy.bin"
    result = data_of(pair.ctl("asker", "task", "result", task_id, "--out", str(copy)))
    assert result["type"] == "file"
    assert hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(data).digest()


def test_source_code_is_no_result(pair: World) -> None:
    task_id = submit_and_execute(pair)
    refused = pair.ctl(
        "doer", "task", "send-results", "--id", task_id, "--file", "/tmp/x.py"
    )
    assert refused.returncode == 1
    assert 'file type \\".py\\" not allowed' in refused.stderr


def submit_waiting(net: World, *flags: str) -> subprocess.Popen[str]:
    """Start a command that waits for its task's end."""
    words = ("task", "submit", "doer", "--task", "wait for it", "--wait", *flags)
    return subprocess.Popen(
        [BIN / "pilotctl", "--json", *words],
        env=net.environment(PILOT_SOCKET=str(net.socket("asker"))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def new_task(net: World) -> str:
    """Return the id of a task that has just been given to the worker."""
    found: list[Any] = []

    def has_come() -> bool:
        listed = net.ctl("doer", "task", "list", "--status", "new")
        found[:] = data_of(listed)["tasks"]
        return bool(found)

    net.programs[1].wait_until(has_come)
    return str(found[0]["task_id"])


def test_submit_waits_for_the_result(pair: World) -> None:
    waiting = submit_waiting(pair, "--timeout", "50s")
    task_id = new_task(pair)
    data_of(pair.ctl("doer", "task", "accept", "--id", task_id))
    data_of(
        pair.ctl("doer", "task", "send-results", "--id", task_id, "--results", "here")
    )
    output, _ = waiting.communicate(timeout=50)
    assert waiting.returncode == 0
    body = json.loads(output)["data"]
    assert (body["task_id"], body["accepted"]) == (task_id, True)
    assert (body["outcome"], body["type"], body["content"]) == (
        "SUCCEEDED",
        "text",
        "here",
    )


def test_submit_tells_by_its_exit_code_that_there_is_no_result(pair: World) -> None:
    waiting = submit_waiting(pair)
    task_id = new_task(pair)
    words = ("--id", task_id, "--justification", "no time")
    data_of(pair.ctl("doer", "task", "decline", *words))
    output, _ = waiting.communicate(timeout=50)
    assert waiting.returncode == 1
    body = json.loads(output)["data"]
    assert (body["outcome"], body["justification"]) == ("DECLINED", "no time")


def test_submit_waits_no_longer_than_told(pair: World) -> None:
    words = ("task", "submit", "doer", "--task", "x", "--wait", "--timeout", "100ms")
    refused = pair.ctl("asker", *words)
    assert refused.returncode == 1
    error = json.loads(refused.stderr)
    assert error["code"] == "timeout"
    assert "has not ended in time, it is NEW" in error["message"]
    data_of(pair.ctl("asker", "task", "cancel", error["message"].split()[1]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--priority", "101"), "--priority: 101 is not from -100 to 100"),
        (("--priority", "high"), "invalid integer for --priority"),
        (("--deadline", "0"), "--deadline: it would be over at once"),
        (("--deadline", "soon"), "invalid duration for --deadline"),
    ],
)
def test_what_submit_cannot_use_is_refused(
    pair: World, flags: tuple[str, ...], message: str
) -> None:
    refused = pair.ctl("asker", "task", "submit", "doer", "--task", "x", *flags)
    error = json.loads(refused.stderr)
    assert (refused.returncode, error["code"]) == (1, "invalid_argument")
    assert message in error["message"]


def test_show_tells_everything_on_both_sides(pair: World) -> None:
    words = ("--task", "x", "--priority", "7", "--deadline", "1h")
    sent = data_of(pair.ctl("asker", "task", "submit", "doer", *words))
    task_id = sent["task_id"]
    data_of(pair.ctl("doer", "task", "accept", "--id", task_id))
    data_of(pair.ctl("doer", "task", "execute"))
    data_of(pair.ctl("doer", "task", "send-results", "--id", task_id, "--results", "y"))
    wait_for_success(pair, task_id)
    given = data_of(pair.ctl("asker", "task", "show", task_id))["submitted"]
    done = data_of(pair.ctl("doer", "task", "show", task_id))["received"]
    for side in (given, done):
        assert (side["status"], side["priority"], side["reward"]) == ("SUCCEEDED", 7, 1)
        assert side["deadline"] > side["created_at"]
        assert side["receipt"] in ("pending", "counted", "known")
    for name in ("time_idle_ms", "time_staged_ms", "time_cpu_ms"):
        assert given[name] == done[name]
    text = subprocess.run(
        [BIN / "pilotctl", "task", "show", task_id],
        env=pair.environment(PILOT_SOCKET=str(pair.socket("doer"))),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "  Priority:        7" in text
    assert "  Reward:          +1 for the worker, -1 for the submitter" in text
    refused = pair.ctl("doer", "task", "show", "nope")
    assert json.loads(refused.stderr)["code"] == "not_found"


def test_a_list_shows_what_was_asked_for(pair: World) -> None:
    for status in ("SUCCEEDED", "declined,succeeded"):
        tasks = data_of(pair.ctl("asker", "task", "list", "--status", status))["tasks"]
        found = {row["status"] for row in tasks}
        assert "SUCCEEDED" in found
        assert found <= set(status.upper().split(","))
    refused = pair.ctl("asker", "task", "list", "--status", "DONE")
    assert 'unknown status \\"DONE\\"' in refused.stderr
    refused = pair.ctl("asker", "task", "list", "--type", "sent")
    assert 'unknown type \\"sent\\"' in refused.stderr
