"""Task commands between two daemons, with results that fill many frames."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import pytest

from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def pair() -> Iterator[World]:
    """Two daemons that trust each other."""
    with world() as net:
        net.start_rendezvous()
        for name in ("asker", "doer"):
            net.start_daemon(name, "--hostname", name, "--trust-auto-approve")
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
