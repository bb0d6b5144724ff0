"""`pilotctl fleet` without a fleet: what is refused, and what is said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.cli.fleet import COMMANDS
from pilotfleet.cli.fleetlogs import _appended, _current, _tail
from pilotfleet.cli.fleetresults import ResultFile, Tally
from pilotfleet.cli.main import main
from pilotfleet.errors import InvalidArgument, StorageError
from pilotfleet.fleet.schedule import TaskResult

if TYPE_CHECKING:
    from pathlib import Path

SPEC = '[fleet]\nname = "f"\n[workers]\nexec = "cat"\n'


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own fleets out, and have files to name."""
    monkeypatch.setenv("PILOT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.toml").write_text(SPEC)
    (tmp_path / "bad.toml").write_text("[workers]\n")
    (tmp_path / "t.jsonl").write_text('{"id": "a", "task": "x"}\n')
    (tmp_path / "bad.jsonl").write_text("{\n")
    return tmp_path


def error_of(capsys: pytest.CaptureFixture[str], line: str) -> dict[str, Any]:
    """Return the error of a command line, which prints nothing else."""
    assert main(["--json", "fleet", *line.split()]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    [text] = output.err.splitlines()
    error: dict[str, Any] = json.loads(text)
    assert error["status"] == "error"
    return error


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("", "unknown fleet command"),
        ("dance", "unknown fleet command: dance"),
        ("run", "needs SPEC"),
        ("run f.toml --tasks t.jsonl", "needs SPEC"),
        ("run f.toml --tasks t.jsonl --results", "--results needs a value"),
        ("run f.toml --tasks t.jsonl --results t.jsonl", "is the task file"),
        ("run f.toml --tasks t.jsonl --results no/r", "cannot write result file"),
        ("run f.toml --tasks no.jsonl --results r", "no.jsonl"),
        ("run bad.toml --tasks t.jsonl --results r", "bad.toml"),
        ("run f.toml g.toml --tasks t.jsonl --results r", "too many arguments"),
        ("up", "needs SPEC"),
        ("up no.toml", "no.toml"),
        ("up f.toml --part 3/2", "there is no part 3 of 2"),
        ("up f.toml --part x", "is not like 2/3"),
        ("up f.toml --color", "unknown flag --color"),
        ("up f.toml --foreground --report x", "invalid integer for --report"),
        ("up f.toml --foreground --report 999", "--report: 999"),
        ("status bad.toml", "bad.toml"),
        ("status --home", "--home needs a value"),
        ("scale", "workers=N"),
        ("scale workers=0", "workers=N"),
        ("scale workers=x", "workers=N"),
        ("scale workers=1 workers=2", "workers=N"),
        ("scale workers=99999999", "workers=N"),
        ("submit", "--tasks FILE or --task TEXT"),
        ("submit --tasks no.jsonl", "no.jsonl"),
        ("submit --tasks bad.jsonl", "line 1"),
        ("submit --tasks t.jsonl --task x", "do not go together"),
        ("submit --tasks t.jsonl --priority 3", "--priority goes with --task"),
        ("submit --tasks t.jsonl --batch a/b", "batch name"),
        ("submit --tasks t.jsonl --results t.jsonl --home h", "is the task file"),
        ("submit --task x --priority high", "invalid integer for --priority"),
        ("submit --task x --priority 101", "priority 101"),
        ("submit --task x --deadline soon", "deadline"),
        ("top --interval 0", "--interval"),
        ("top --interval often", "--interval"),
        ("logs --lines -3", "--lines"),
        ("logs --lines 1000000", "--lines"),
        ("rollout --batch 0", "--batch"),
        ("rollout bad.toml", "bad.toml"),
        ("down a b", "too many arguments"),
        ("list all", "too many arguments"),
    ],
)
def test_bad_input_is_named(
    capsys: pytest.CaptureFixture[str], line: str, named: str
) -> None:
    error = error_of(capsys, line)
    assert error["code"] == "invalid_argument"
    assert named in error["message"]


@pytest.mark.parametrize(
    "line",
    [
        *("status", "status f.toml", "status --name f", "status --home h"),
        *("scale workers=2", "top", "rollout", "down", "down --now f.toml"),
        *("submit --task x", "submit --tasks t.jsonl --home h", "logs"),
    ],
)
def test_no_fleet_is_told(capsys: pytest.CaptureFixture[str], line: str) -> None:
    error = error_of(capsys, line)
    assert error["code"] == "not_running"
    assert "pilotctl fleet up" in error["hint"]


@pytest.mark.parametrize("command", ["status", "logs", "down", "up f.toml"])
def test_a_home_that_no_file_system_has_is_told(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    error = error_of(capsys, f"{command} --home {'a' * 300}")
    assert error["code"] in ("not_running", "storage_error", "internal")
    assert "a" * 300 in error["message"]


def test_logs_that_are_not_there_are_told(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    assert error_of(capsys, "logs --home h")["code"] == "not_found"
    (home / "h" / "logs").mkdir(parents=True)
    (home / "h" / "logs" / "hub.log").write_text("one\ntwo\nthr")
    error = error_of(capsys, "logs nobody --home h")
    assert (error["code"], error["hint"]) == ("not_found", "available: hub")
    assert main(["fleet", "logs", "hub", "--home", "h", "--lines", "1"]) == 0
    assert capsys.readouterr().out == "two\n"


def test_no_fleets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json", "fleet", "list"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data == {"fleets": [], "total": 0}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["fleet", name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: pilotctl fleet {name}")
    assert main(["fleet", "--help"]) == 0
    assert COMMANDS[name].description in capsys.readouterr().out


# Result files


def result(name: str, text: str = "r", *, attempts: int = 1) -> TaskResult:
    return TaskResult(name, "SUCCEEDED", "w", text, attempts, 2.0)


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_text().splitlines()]


def test_result_file_is_gone_on_with(home: Path) -> None:
    path = home / "r.jsonl"
    with ResultFile(path, go_on=False) as file:
        file.write(result("a"))
        file.write(result("b", "\n"))
    with path.open("ab") as torn:
        torn.write(b'{"id": "c", "sta')
    with ResultFile(path, go_on=True) as file:
        for name in "abc":
            file.write(result(name))
        file.sync()
    assert ids(path) == ["a", "b", "c"]


def test_result_file_is_begun_anew(home: Path) -> None:
    path = home / "r.jsonl"
    path.write_text("old\n")
    with ResultFile(path, go_on=False) as file:
        file.write(result("a"))
    assert ids(path) == ["a"]


def test_strange_lines_of_a_result_file_are_kept(home: Path) -> None:
    path = home / "r.jsonl"
    strange = b'no JSON\n[1]\n{"id": "\xff"}\n' + b'{"a":' * 90_000 + b"\n"
    path.write_bytes(strange + b'{"id": "a"}\n')
    with ResultFile(path, go_on=True) as file:
        file.write(result("a"))
        file.write(result("b"))
    assert path.read_bytes().startswith(strange + b'{"id": "a"}\n{"id":"b"')


def test_result_file_that_cannot_be_written_is_named(home: Path) -> None:
    from pathlib import Path

    with pytest.raises(InvalidArgument, match="Is a directory"):
        ResultFile(home, go_on=False)
    with (
        ResultFile(Path("/dev/full"), go_on=True) as file,
        pytest.raises(StorageError, match="/dev/full: No space left"),
    ):
        file.write(result("a"))


def test_tally_adds_up() -> None:
    tally = Tally()
    assert tally.summary(0)["task_p99_ms"] == 0.0
    tally.add(result("a", attempts=3))
    tally.add(TaskResult("b", "FAILED", "", "", 1, 4.0))
    assert tally.summary(2) == {
        **{"tasks": 2, "succeeded": 1, "failed": 1, "retried": 1, "attempts": 4},
        **{"task_p50_ms": 4.0, "task_p99_ms": 4.0},
    }
    assert tally.agents == {"w"}


# Logs


def test_end_of_a_log_begins_with_a_whole_line(home: Path) -> None:
    path = home / "a.log"
    path.write_text("".join(f"{n} {'x' * 300}\n" for n in range(100)) + "torn")
    texts, end = _tail(path, 3)
    assert [text.split()[0] for text in texts] == ["97", "98", "99"]
    assert end == path.stat().st_size - len("torn")
    assert _tail(path, 0)[0] == []


def test_log_that_begins_anew_is_followed(home: Path) -> None:
    path = home / "a.log"
    path.write_text("one\ntwo\nthr")
    file = _current(path, None, 4)
    assert _appended(file) == ["two"]
    with path.open("a") as log:
        log.write("ee\n")
    assert _appended(_current(path, file, 0)) == ["three"]
    path.write_text("four\n")
    assert _appended(_current(path, file, 0)) == ["four"]
    path.rename(home / "a.log.1")
    assert _appended(_current(path, file, 0)) == []
    path.write_text("five\n")
    fresh = _current(path, file, 0)
    assert _appended(fresh) == ["five"]
    fresh.close()
