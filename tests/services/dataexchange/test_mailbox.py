"""The inbox and the received files: names, contents, bounds, refusals of the disk."""

from __future__ import annotations

import itertools
import json
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.errors import StorageError
from pilotfleet.protocol.services.dataexchange import FrameType, Tags
from pilotfleet.services.dataexchange import storedfiles
from pilotfleet.services.dataexchange.mailbox import (
    InboxMessage,
    Mailbox,
    MailboxConfig,
    inbox_content,
    saved_name,
    time_stamp,
)
from pilotfleet.services.dataexchange.storedfiles import FolderFull

if TYPE_CHECKING:
    from collections.abc import Iterator

VECTORS = Path(__file__).parents[2] / "vectors" / "services.json"
RECORDED: dict[str, Any] = json.loads(VECTORS.read_text())["data_exchange"]
SENDER = "0:0000.0000.0001"
RECORDED_NS = 1_795_355_709_008_738_826
"""2026-11-22T13:55:09.008738826Z"""


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def open_mailbox(home: Path, **limits: Any) -> Mailbox:
    numbers = itertools.count(1)
    config = MailboxConfig(**limits)
    return Mailbox(
        home, config, next_number=numbers.__next__, clock=lambda: RECORDED_NS
    )


def text(payload: bytes = b"hi", **tags: str) -> InboxMessage:
    return InboxMessage(FrameType.TEXT, SENDER, payload, Tags(**tags))


def size_of(message: InboxMessage) -> int:
    return len(inbox_content(message, RECORDED_NS))


# Contents


@pytest.mark.parametrize("content", RECORDED["inbox_json_v1_18"])
def test_recorded_inbox_content(content: str) -> None:
    fields = json.loads(content)
    payload = fields.get("data", "").encode() or bytes.fromhex("00ff0162696e")
    tags = Tags(fields.get("message_id"), fields.get("reply_to"))
    message = InboxMessage(FrameType[fields["type"]], fields["from"], payload, tags)
    second, _, fraction = fields["received_at"].removesuffix("Z").partition(".")
    moment = time.strptime(second, "%Y-%m-%dT%H:%M:%S")
    now = int(time.mktime(moment)) * 10**9 + int(fraction)
    assert inbox_content(message, now).decode() == content


def test_characters_that_the_official_daemon_escapes() -> None:
    payload = b'\0\1\x08\x0c\x1f\x7f<>&\xe2\x80\xa8"\\/\xc2\x85'
    content = inbox_content(text(payload), RECORDED_NS)
    assert (
        b'"data":"\\u0000\\u0001\\b\\f\\u001f\x7f\\u003c\\u003e\\u0026\\u2028\\"\\\\/'
        b'\xc2\x85"' in content
    )
    assert json.loads(content)["data"].encode() == payload


@pytest.mark.parametrize(
    ("message", "always"),
    [
        (text(b"\xff<"), False),
        (text(b"plain"), True),
        (InboxMessage(FrameType.BINARY, SENDER, b"plain", Tags()), False),
    ],
    ids=["not UTF-8", "option", "binary"],
)
def test_message_kept_as_base64(message: InboxMessage, always: bool) -> None:
    content = json.loads(inbox_content(message, RECORDED_NS, always_base64=always))
    assert content["data_encoding"] == "base64"
    assert "data" not in content
    assert content["bytes"] == len(message.payload)


def test_empty_message_has_empty_data() -> None:
    assert json.loads(inbox_content(text(b""), RECORDED_NS))["data"] == ""


@pytest.mark.parametrize(
    ("nanoseconds", "zone", "wanted"),
    [
        (RECORDED_NS, "UTC", "2026-11-22T13:55:09.008738826Z"),
        (1_795_355_709_050_000_000, "UTC", "2026-11-22T13:55:09.05Z"),
        (1_795_355_709_000_000_000, "UTC", "2026-11-22T13:55:09Z"),
        (RECORDED_NS, "IST-5:30", "2026-11-22T19:25:09.008738826+05:30"),
    ],
)
def test_time_of_arrival(
    nanoseconds: int, zone: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    assert json.loads(inbox_content(text(), nanoseconds))["received_at"] == wanted


# Names


@pytest.mark.parametrize(
    "case",
    [case for case in RECORDED["saved_names"] if "file stream" not in case["sent"]],
    ids=lambda case: case["sent"],
)
def test_recorded_name(case: dict[str, str]) -> None:
    dot = case["sent"].rfind(".")
    cut = len(case["sent"]) if dot < 0 else dot
    stamp = case["saved"][cut + 1 :].removesuffix(case["sent"][cut:])
    assert saved_name(case["sent"], stamp) == case["saved"]


@pytest.mark.parametrize(
    "name", ["ü" * 127, "a" * 251 + ".txt", "." + "e" * 254, "n" * 65_535]
)
def test_long_name_is_shortened_to_what_a_disk_takes(name: str) -> None:
    saved = saved_name(name, "20261122-135551.001-000013")
    assert len(saved.encode()) <= 255
    assert "-20261122-135551.001-000013" in saved


def test_stored_files_have_official_names_and_modes(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path)
    message = mailbox.save_message(text())
    file = mailbox.save_file("report.txt", b"data")
    assert message == tmp_path / "inbox" / "TEXT-20261122-135509.008-000001.json"
    assert file == tmp_path / "received" / "report-20261122-135509.008-000002.txt"
    assert file.read_bytes() == b"data"
    for path in (message, file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_time_stamp_has_milliseconds() -> None:
    assert time_stamp(RECORDED_NS) == "20261122-135509.008"


def test_name_that_is_taken_is_not_overwritten(tmp_path: Path) -> None:
    first = open_mailbox(tmp_path).save_file("a.txt", b"first")
    # The counter of a new process begins again, and the clock stands still.
    second = open_mailbox(tmp_path).save_file("a.txt", b"second")
    assert first.read_bytes() == b"first"
    assert second.name == "a-20261122-135509.008-000002.txt"


# Bounds


def test_oldest_messages_make_room(tmp_path: Path) -> None:
    size = size_of(text())
    mailbox = open_mailbox(tmp_path, max_inbox_bytes=size * 10)
    paths = [mailbox.save_message(text()) for _ in range(10)]
    for age, path in enumerate(reversed(paths)):
        os.utime(path, (1000 - age, 1000 - age))
    last = mailbox.save_message(text())
    # The new one and as many others as make 90 percent.
    left = sorted(mailbox.inbox.iterdir())
    assert left == sorted([*paths[2:], last])


def test_message_over_nine_tenths_of_the_bound_is_taken(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path, max_inbox_bytes=1000)
    mailbox.save_message(text())
    large = text(b"x" * (1000 - size_of(text()) - 1))
    assert [mailbox.save_message(large)] == list(mailbox.inbox.iterdir())


def test_message_over_the_bound_is_refused_and_nothing_removed(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path, max_inbox_bytes=1000)
    kept = mailbox.save_message(text())
    with pytest.raises(FolderFull, match=r"^inbox byte budget exceeded: ") as caught:
        mailbox.save_message(text(bytes(1000)))
    assert caught.value.max_bytes == 1000
    assert list(mailbox.inbox.iterdir()) == [kept]


def test_inbox_has_at_most_its_number_of_files(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path, max_messages=5)
    for number in range(12):
        path = mailbox.save_message(text(str(number).encode()))
        os.utime(path, (number, number))
    kept = sorted(json.loads(p.read_text())["data"] for p in mailbox.inbox.iterdir())
    assert kept == sorted(["7", "8", "9", "10", "11"])


def test_room_that_others_made_is_used(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path, max_received_bytes=10)
    mailbox.save_file("a", b"12345678").unlink()
    assert mailbox.save_file("b", b"12345678").exists()


def test_received_files_are_never_removed_for_new_ones(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path, max_received_bytes=10)
    kept = mailbox.save_file("a", b"12345678")
    with pytest.raises(
        FolderFull, match=r"^received-files quota exceeded: 8 \+ 3 > 10$"
    ):
        mailbox.save_file("b", b"123")
    assert [p for p in mailbox.received.path.iterdir() if p.is_file()] == [kept]


def test_unfinished_files_count_until_they_are_stale(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path, max_received_bytes=10)
    partial = mailbox.received.unfinished
    assert partial is not None
    partial.mkdir(parents=True)
    (partial / "abc").write_bytes(b"12345678")
    with pytest.raises(FolderFull):
        mailbox.save_file("b", b"123")
    old = time.time() - storedfiles.STALE_S - 60
    os.utime(partial / "abc", (old, old))
    mailbox.save_file("b", b"123")
    assert list(partial.iterdir()) == []


def test_reserved_room_is_not_given_twice(tmp_path: Path) -> None:
    folder = open_mailbox(tmp_path, max_received_bytes=10).received
    with folder.reserve(6), pytest.raises(FolderFull):
        folder.reserve(5)
    folder.reserve(10).close()
    reservation = folder.reserve(10)
    reservation.fill(4)
    reservation.close()
    reservation.close()
    # The disk has none of these four, but nothing was refused yet.
    with folder.reserve(6):
        pass
    with folder.reserve(10):
        pass


def test_many_threads_keep_the_bound(tmp_path: Path) -> None:
    size = size_of(text())
    mailbox = open_mailbox(tmp_path, max_inbox_bytes=size * 10)
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda _: mailbox.save_message(text()), range(60)))
    assert len(set(saved)) == 60
    assert sum(path.stat().st_size for path in mailbox.inbox.iterdir()) <= size * 10


# The disk


def test_what_a_killed_process_had_not_finished_is_removed(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path)
    partial = mailbox.received.unfinished
    assert partial is not None
    for folder in (mailbox.inbox, partial):
        folder.mkdir(parents=True)
        (folder / ".incoming-0").write_bytes(b"half a mess")
    message, file = mailbox.save_message(text()), mailbox.save_file("a", b"")
    assert list(mailbox.inbox.iterdir()) == [message]
    assert sorted(mailbox.received.path.iterdir()) == [partial, file]
    assert list(partial.iterdir()) == []


def test_file_that_is_being_written_lies_where_no_client_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = open_mailbox(tmp_path)
    # The folders are made and synced with the first.
    mailbox.save_file("b", b"").unlink()
    seen = []
    real = os.fsync

    def look(descriptor: int) -> None:
        files = mailbox.received.path.iterdir()
        seen.append([path.name for path in files if path.is_file()])
        real(descriptor)

    monkeypatch.setattr("os.fsync", look)
    path = mailbox.save_file("a", b"data")
    # The file is synced, then its name.
    assert seen == [[], [path.name]]


def test_contents_reach_the_disk_before_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr("os.fsync", note)
    mailbox = open_mailbox(tmp_path)
    mailbox.save_message(text())
    assert synced == [tmp_path.name, ".incoming-0", "inbox"]
    mailbox.save_file("a", b"")
    assert synced[3:] == [tmp_path.name, "received", ".incoming-0", "received"]
    finished = mailbox.received.path / ".partial" / "abc"
    finished.write_bytes(b"data")
    mailbox.received.adopt(finished, lambda: "b")
    assert synced[7:] == ["abc", "received"]


def test_full_disk_is_told_without_our_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailbox = open_mailbox(tmp_path)
    kept = mailbox.save_message(text())

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device", str(tmp_path))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(StorageError, match=r"^write: no space left on device$"):
        mailbox.save_message(text())
    assert list(mailbox.inbox.iterdir()) == [kept]


def test_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path)
    mailbox.inbox.write_bytes(b"")
    with pytest.raises(StorageError, match=r"^open folder: file exists$"):
        mailbox.save_message(text())


def test_folder_is_made_again_when_somebody_removed_it(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path)
    mailbox.save_message(text()).unlink()
    mailbox.inbox.rmdir()
    assert mailbox.save_message(text()).exists()


def test_name_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    mailbox = open_mailbox(tmp_path)
    with pytest.raises(StorageError, match="zero byte"):
        mailbox.save_file("a\0b", b"")
    assert list((tmp_path / "received" / ".partial").iterdir()) == []
