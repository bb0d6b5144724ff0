from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import ConfigError
from pilotfleet.fleet.taskfile import MAX_TASK_BYTES, TaskLine, load_tasks

if TYPE_CHECKING:
    from pathlib import Path

GOOD = b'{"id": "a", "task": "text", "tags": ["worker"]}\n'


def write(folder: Path, content: bytes) -> Path:
    path = folder / "tasks.jsonl"
    path.write_bytes(content)
    return path


def test_lines_are_read_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + b'\n{"id": "b", "task": ""}')
    assert load_tasks(path) == [
        TaskLine("a", "text", ("worker",)),
        TaskLine("b", ""),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "truncated"),
        (b"[]", "Expected `object`"),
        (b'{"id": "x"}', "missing required field `task`"),
        (b'{"id": "x", "task": 7}', r"\$.task"),
        (b'{"id": "x", "task": "", "tag": []}', "unknown field `tag`"),
        (b'{"id": "", "task": ""}', "id is empty"),
        (b'{"id": "a", "task": ""}', "earlier line"),
        (b'{"id": "x", "task": "\xff"}', "utf-8"),
        (b'{"id": "x", "task": "%s"}' % (b"." * (MAX_TASK_BYTES + 1)), "longer than"),
        (b'{"id": "x", "task": "", "priority": 101}', "priority 101 is not -100 to"),
        (b'{"id": "x", "task": "", "priority": -101}', "priority -101 is not"),
        (b'{"id": "x", "task": "", "priority": 1.5}', r"\$.priority"),
        (b'{"id": "x", "task": "", "deadline": "90"}', 'invalid duration "90"'),
        (b'{"id": "x", "task": "", "deadline": "soon"}', 'invalid duration "soon"'),
        (b'{"id": "x", "task": "", "deadline": "-5s"}', '"-5s" is negative'),
        (b'{"id": "x", "task": "", "deadline": "0s"}', '"0s" is not above zero'),
        (b'{"id": "x", "task": "", "deadline": 90}', r"\$.deadline"),
    ],
)
def test_mistake_is_named_with_its_line(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = write(tmp_path, GOOD + line + b"\n")
    with pytest.raises(ConfigError, match=rf"line 2: .*{reason}") as caught:
        load_tasks(path)
    assert caught.value.hint


def test_priority_and_deadline_are_read(tmp_path: Path) -> None:
    line = b'{"id": "a", "task": "", "priority": -100, "deadline": "1m30s"}'
    [task] = load_tasks(write(tmp_path, line))
    assert (task.priority, task.deadline_s) == (-100, 90.0)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_file_without_tasks_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError, match="holds no task"):
        load_tasks(write(tmp_path, content))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_tasks(tmp_path / "nowhere.jsonl")
