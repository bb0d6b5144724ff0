"""inbox and received, on folders as daemons leave them (cli.md section 7)."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.support import frame

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.support import Shell

ALICE = "0:0000.0000.0001"
BOB = "0:0000.0000.0002"
MINUTE = 60.0
DAY = 86_400.0


@pytest.fixture
def inbox(shell: Shell) -> Path:
    folder = shell.home / ".pilot" / "inbox"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def received(shell: Shell) -> Path:
    folder = shell.home / ".pilot" / "received"
    folder.mkdir(parents=True)
    return folder


def store(
    inbox: Path,
    seq: int,
    data: str | None = "hi",
    *,
    age: float = 0.0,
    sender: str = ALICE,
    **fields: Any,
) -> str:
    """Store a message as a daemon does and return its ID; the higher, the newer."""
    moment = time.time() - age
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + ".123456789Z"
    record = {
        "type": "TEXT",
        "from": sender,
        "data": data,
        "bytes": len((data or "").encode()),
        "received_at": text,
        "data_encoding": "utf8",
        **fields,
    }
    message_id = f"{record['type']}-20261123-010203.{seq:03}-{seq:06}"
    content = {key: value for key, value in record.items() if value is not None}
    (inbox / f"{message_id}.json").write_text(json.dumps(content))
    return message_id


def ids(data: dict[str, Any]) -> list[str]:
    return [message["id"] for message in data["messages"]]


# The list.


def test_without_a_folder_there_is_nothing(shell: Shell) -> None:
    empty = {"messages": [], "total": 0, "shown": 0}
    assert shell.run("--json", "inbox").data == empty
    assert shell.run("--json", "inbox", "--clear").data == empty
    assert shell.run("inbox").stdout.startswith("inbox is empty\n")


def test_row_has_a_preview_and_for_old_readers_the_data(
    shell: Shell, inbox: Path
) -> None:
    message_id = store(inbox, 1, "a  b\n\tc", message_id="m-1", reply_to="m-0")
    data = shell.run("--json", "inbox").data
    (row,) = data["messages"]
    assert row.pop("received_at").endswith("Z")
    assert row == {
        "id": message_id,
        "from": ALICE,
        "type": "TEXT",
        "bytes": 7,
        "message_id": "m-1",
        "reply_to": "m-0",
        "preview": "a b c",
        "data": "a  b\n\tc",
    }
    assert (data["total"], data["shown"], data["dir"]) == (1, 1, str(inbox))


def test_newest_come_first_whatever_their_type(shell: Shell, inbox: Path) -> None:
    expected = [
        store(inbox, 3, type="JSON"),
        store(inbox, 2, type="TEXT"),
        store(inbox, 1, type="BINARY"),
    ]
    assert ids(shell.run("--json", "inbox").data) == expected


def test_list_shows_ten_unless_told_otherwise(shell: Shell, inbox: Path) -> None:
    stored = [store(inbox, seq) for seq in range(12)]
    for flags, shown in [((), 10), (("--limit", "3"), 3), (("--limit", "0"), 12)]:
        data = shell.run("--json", "inbox", *flags).data
        assert (data["total"], data["shown"]) == (12, shown)
        assert ids(data) == stored[::-1][:shown]
    data = shell.run("--json", "inbox", "--latest").data
    assert (data["total"], ids(data)) == (12, stored[-1:])


def test_preview_is_120_characters(shell: Shell, inbox: Path) -> None:
    store(inbox, 1, "é" * 120)
    store(inbox, 2, "é" * 121)
    longer, exact = shell.run("--json", "inbox").data["messages"]
    assert exact["preview"] == "é" * 120
    assert longer["preview"] == "é" * 120 + "…"


@pytest.mark.parametrize("flag", ["--full", "--latest"])
def test_full_list_has_no_preview(shell: Shell, inbox: Path, flag: str) -> None:
    store(inbox, 1, "x" * 500)
    (row,) = shell.run("--json", "inbox", flag).data["messages"]
    assert row["data"] == "x" * 500
    assert "preview" not in row


def test_full_list_has_what_is_not_text(shell: Shell, inbox: Path) -> None:
    store(inbox, 1, None, data_b64="AP/+", type="BINARY")
    (row,) = shell.run("--json", "inbox", "--full").data["messages"]
    assert (row["data"], row["data_b64"]) == ("", "AP/+")
    (row,) = shell.run("--json", "inbox").data["messages"]
    assert "data_b64" not in row


def test_files_that_are_no_messages_are_passed_over(shell: Shell, inbox: Path) -> None:
    good = store(inbox, 1)
    (inbox / "TEXT-20261123-010203.009-000009.json").write_text("{torn")
    (inbox / "JSON-20261123-010203.008-000008.json").write_text("[1]")
    (inbox / "JSON-20261123-010203.007-000007.json").write_text("[" * 100_000)
    (inbox / "notes.txt").write_text("mine")
    assert ids(shell.run("--json", "inbox").data) == [good]


def test_times_select_messages(shell: Shell, inbox: Path) -> None:
    store(inbox, 1, age=3 * DAY)
    new = store(inbox, 2, age=MINUTE)
    store(inbox, 3, received_at="garbage")
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - DAY))
    for since in ("1h", "24h", moment):
        data = shell.run("--json", "inbox", "--since", since).data
        assert (data["total"], ids(data)) == (1, [new])


@pytest.mark.parametrize("text", ["10", "1d", "-1h", "zz", "", "2026-01-01", "true"])
def test_bad_since_is_refused(shell: Shell, inbox: Path, text: str) -> None:
    for command in ("inbox", "received"):
        error = shell.run("--json", command, f"--since={text}").error
        assert error["code"] == "invalid_argument"
        assert error["message"] == (
            "--since must be a duration (5m, 1h) or an RFC3339 timestamp"
        )


@pytest.mark.parametrize("peer", [BOB, "2"])
def test_sender_selects_messages(shell: Shell, inbox: Path, peer: str) -> None:
    store(inbox, 1)
    expected = store(inbox, 2, sender=BOB)
    store(inbox, 3, sender="garbage")
    assert ids(shell.run("--json", "inbox", "--from", peer).data) == [expected]


def test_hostname_of_a_sender_needs_a_daemon(shell: Shell, inbox: Path) -> None:
    store(inbox, 1)
    error = shell.run("--json", "inbox", "--from", "bob").error
    assert error["code"] == "not_running"
    frames = [["c2s", frame(0x11, b"bob")], ["s2c", frame(0x0A, b"\0\1no")]]
    error = shell.play(frames, "--json", "inbox", "--from", "bob").error
    assert error["code"] == "not_found"
    assert error["message"].startswith('cannot resolve --from "bob": cannot resolve')


def test_list_for_people_steers_no_terminal(shell: Shell, inbox: Path) -> None:
    store(inbox, 1, "\x1b[31mred\u202e", sender="\x1b]0;title\x07")
    store(inbox, 2, message_id="m-2", reply_to="m-1")
    text = shell.run("inbox").stdout
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert text.startswith("Inbox — 2 message(s) · showing 2 newest\n")
    assert "  message_id m-2 · reply_to m-1\n" in text
    assert shell.run("inbox", "--from", "9").stdout.startswith("inbox is empty (no")


# One message.


def test_message_is_read_as_it_was_stored(shell: Shell, inbox: Path) -> None:
    message_id = store(inbox, 1, "whole\n  text", message_id="m-1", extra=[1])
    stored = json.loads((inbox / f"{message_id}.json").read_text())
    for given in (message_id, f"{message_id}.json"):
        data = shell.run("--json", "inbox", "read", given).data
        assert data == {**stored, "id": message_id}
    text = shell.run("inbox", "read", message_id).stdout
    assert text.startswith(f"ID:         {message_id}\nFrom:       {ALICE}\n")
    assert "Message ID: m-1\n" in text
    assert text.endswith("\n\nwhole\n  text\n")


def test_what_is_not_text_is_read_in_base64(shell: Shell, inbox: Path) -> None:
    message_id = store(inbox, 1, None, data_b64="AP/+", type="BINARY")
    text = shell.run("inbox", "read", message_id).stdout
    assert text.endswith("Encoding:   base64\n\nAP/+\n")


@pytest.mark.parametrize("message_id", ["zz", ".", "a\\b", "x" * 300, "\udc80"])
def test_message_that_is_not_there(shell: Shell, inbox: Path, message_id: str) -> None:
    error = shell.run("--json", "inbox", "read", message_id).error
    assert error["code"] in ("not_found", "internal")
    if len(message_id) < 10:
        assert error["message"].endswith("list ids with: pilotctl inbox")


@pytest.mark.parametrize(
    "message_id", ["../identity", "..", "/etc/passwd", "a/b", "\0"]
)
def test_id_is_no_way_out_of_the_folder(
    shell: Shell, inbox: Path, message_id: str
) -> None:
    (inbox.parent / "identity.json").write_text('{"private_key":"secret"}')
    error = shell.run("--json", "inbox", "read", message_id).error
    assert error["code"] == "invalid_argument"
    assert error["message"].startswith("invalid message id ")


def test_reading_needs_an_id(shell: Shell) -> None:
    error = shell.run("--json", "inbox", "read").error
    assert error["message"] == "usage: pilotctl inbox read <id>"


def test_torn_message_is_reported(shell: Shell, inbox: Path) -> None:
    (inbox / "TEXT-1.json").write_text("{torn")
    error = shell.run("--json", "inbox", "read", "TEXT-1").error
    assert error["code"] == "internal"
    assert error["message"].startswith("parse message: ")


# Deleting messages.


def test_clear_deletes_all_messages_and_nothing_else(shell: Shell, inbox: Path) -> None:
    store(inbox, 1)
    store(inbox, 2)
    (inbox / "TEXT-torn.json").write_text("{")
    (inbox / "notes.txt").write_text("mine")
    data = shell.run("--json", "inbox", "--clear").data
    assert data == {"cleared": 3, "remaining": 0}
    assert os.listdir(inbox) == ["notes.txt"]
    text = shell.run("inbox", "--clear").stdout
    assert text == "cleared 0 message(s), 0 remaining\n"


def test_clear_takes_the_filters(shell: Shell, inbox: Path) -> None:
    store(inbox, 1, age=3 * DAY)
    store(inbox, 2, age=2 * DAY, sender=BOB)
    kept = store(inbox, 3, age=MINUTE, sender=BOB)
    flags = ("--clear", "--before", "24h", "--from", BOB)
    data = shell.run("--json", "inbox", *flags).data
    assert data == {"cleared": 1, "remaining": 2}
    data = shell.run("--json", "inbox", "--clear", "--before", "1h").data
    assert data == {"cleared": 1, "remaining": 1}
    assert ids(shell.run("--json", "inbox").data) == [kept]


@pytest.mark.parametrize("text", ["3", "-1h", "2026-01-01T00:00:00Z", "true", "1d"])
def test_bad_age_deletes_nothing(shell: Shell, inbox: Path, text: str) -> None:
    store(inbox, 1)
    for command in ("inbox", "received"):
        error = shell.run("--json", command, "--clear", f"--before={text}").error
        assert error["message"] == "--before must be a duration (24h, 30m)"
    assert len(os.listdir(inbox)) == 1


# Received files.


def put(folder: Path, name: str, data: bytes = b"data", *, age: float = 0.0) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age, time.time() - age))


def names(data: dict[str, Any]) -> list[str]:
    return [file["name"] for file in data["files"]]


def test_without_a_folder_there_are_no_files(shell: Shell) -> None:
    data = shell.run("--json", "received").data
    assert data == {"files": [], "total": 0, "shown": 0}
    assert shell.run("received").stdout.startswith("no received files\n")
    error = shell.run("--json", "received", "--clear").error
    assert (error["code"], error["message"]) == ("not_found", "no received files")


def test_files_are_listed_newest_first(shell: Shell, received: Path) -> None:
    put(received, "old.bin", b"x" * 3000, age=2 * DAY)
    put(received, ".hidden", age=MINUTE)
    put(received, ".partial/00ff", age=MINUTE)
    (received / "folder").mkdir()
    (received / "link").symlink_to("/etc/passwd")
    data = shell.run("--json", "received").data
    assert names(data) == [".hidden", "old.bin"]
    assert (data["total"], data["shown"], data["dir"]) == (2, 2, str(received))
    row = data["files"][1]
    assert row["bytes"] == 3000
    assert row["path"] == str(received / "old.bin")
    written = time.strptime(row["modified"][:19], "%Y-%m-%dT%H:%M:%S")
    assert abs(time.mktime(written) - (time.time() - 2 * DAY)) < 100
    text = shell.run("received").stdout
    assert text.startswith(f"Received files — 2 · {received}\n")
    assert "  old.bin\n  2d ago · 2.9 KB\n" in text


def test_programs_get_all_files_and_people_ten(shell: Shell, received: Path) -> None:
    for index in range(12):
        put(received, f"{index:02}.txt", age=index)
    assert shell.run("--json", "received").data["shown"] == 12
    assert shell.run("received").stdout.count(".txt") == 10
    assert shell.run("received", "--limit", "0").stdout.count(".txt") == 12
    data = shell.run("--json", "received", "--limit", "2").data
    assert (names(data), data["total"]) == (["00.txt", "01.txt"], 12)
    data = shell.run("--json", "received", "--since", "5500ms").data
    assert names(data)[-1] == "05.txt"


def test_clear_deletes_files_and_unfinished_transfers(
    shell: Shell, received: Path
) -> None:
    put(received, "old", age=2 * DAY)
    put(received, "new")
    put(received, ".partial/00ff", age=2 * DAY)
    (received / "folder").mkdir()
    data = shell.run("--json", "received", "--clear", "--before", "24h").data
    assert data == {"cleared": 1, "cleared_partial": 1, "remaining": 1}
    text = shell.run("received", "--clear").stdout
    assert text == "cleared 1 received file(s), 0 remaining\n"
    assert sorted(os.listdir(received)) == [".partial", "folder"]


def test_folder_that_is_none_is_reported(shell: Shell) -> None:
    (shell.home / ".pilot").mkdir()
    (shell.home / ".pilot" / "inbox").write_text("")
    error = shell.run("--json", "inbox").error
    assert error["code"] == "internal"
    assert error["message"].startswith("read directory: open ")


# Where the folders are.


def test_our_daemon_says_where_the_folders_are(shell: Shell) -> None:
    elsewhere = shell.home / "agents" / "w1"
    (elsewhere / "in").mkdir(parents=True)
    message_id = store(elsewhere / "in", 1)
    places = {"inbox": str(elsewhere / "in"), "received": str(elsewhere / "files")}
    frames = [
        ["c2s", frame(0x80, b'{"id": 1, "op": "mailbox"}')],
        ["s2c", frame(0x81, {"id": 1, "result": places})],
    ]
    data = shell.play(frames, "--json", "inbox").data
    assert (ids(data), data["dir"]) == ([message_id], str(elsewhere / "in"))


def test_official_daemon_has_them_in_the_home(shell: Shell, inbox: Path) -> None:
    message_id = store(inbox, 1)
    frames = [
        ["c2s", frame(0x80, b'{"id": 1, "op": "mailbox"}')],
        ["s2c", frame(0x0A, b"\0\1unknown command: 0x80")],
    ]
    assert ids(shell.play(frames, "--json", "inbox").data) == [message_id]


def test_selected_agent_has_no_folders_without_a_daemon(
    shell: Shell, inbox: Path
) -> None:
    store(inbox, 1)
    error = shell.run("--json", "--agent", "w1", "inbox").error
    assert error["code"] == "not_running"
