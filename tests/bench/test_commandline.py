"""``python -m bench`` says what it can do, and refuses the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench import options
from bench.__main__ import main
from bench.options import PATTERNS, QUICK_WORKERS, Options
from bench.parts import BY_NAME
from bench.saved import PARTIAL, RESULTS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@pytest.mark.parametrize("argv", [("speed",), ("table", "speed"), ("hosts", "speed")])
def test_unknown_names_are_refused_with_the_list(
    argv: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("unknown benchmark speed; have hosts, ")
    assert all(name in error for name in (*BY_NAME, "table", "goals", "latest", "docs"))


def test_the_goals_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["goals", "--quick"]) == 0
    assert "| article's claim |" in capsys.readouterr().out


def test_what_is_no_full_run_is_kept_apart() -> None:
    assert Options().folder == RESULTS
    assert Options(quick=True).folder == PARTIAL
    assert Options(workers=(50,)).folder == PARTIAL


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        (Options(), ()),
        (
            Options(quick=True, workers=QUICK_WORKERS, patterns=("mesh",)),
            ("--quick", "--pattern", "mesh", "--workers", "6,20"),
        ),
    ],
)
def test_options_have_a_command_line(given: Options, flags: Sequence[str]) -> None:
    assert given.flags == flags
    assert set(given.patterns) <= set(PATTERNS)


@pytest.mark.parametrize("sizes", ["-5", "0", "50,", "many", "5.5", ""])
def test_sizes_that_are_none_are_refused(
    sizes: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["patterns", f"--workers={sizes}"])
    assert "is not a list of numbers from 1" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [("latest",), ("docs",), ("table", "hosts")])
def test_without_a_measurement_nothing_is_written(
    argv: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(options, "RESULTS", tmp_path)
    assert main(argv) == 1
    assert "measured here yet: run " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
