"""What a person sees of a batch: a bar on a terminal, lines in a pipe."""

from __future__ import annotations

import io

import pytest

from pilotfleet.cli import fleetprogress
from pilotfleet.cli.fleetprogress import RunProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_in_a_pipe_come_at_most_so_often(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with RunProgress(100, quiet=False) as progress:
        progress.say("working")
        for number in range(100):
            progress.advance(succeeded=number != 0)
    assert capsys.readouterr().err == "working\n1/100 tasks, 1 failed\n"


def test_each_line_counts_all_that_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleetprogress, "LINE_EVERY_S", 0.0)
    with RunProgress(2, quiet=False) as progress:
        progress.advance(succeeded=True)
        progress.advance(succeeded=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["1/2 tasks, 0 failed", "2/2 tasks, 1 failed"]


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    with RunProgress(2, quiet=True) as progress:
        progress.say("working")
        progress.advance(succeeded=True)
    assert stderr.getvalue() == ""


def test_bar_on_a_terminal_is_taken_off_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with RunProgress(2, quiet=False) as progress:
        progress.say("working")
        progress.advance(succeeded=False)
        progress.close()
        written = stderr.getvalue()
        assert "working" in written
        assert "1/2" in written
        assert "1 failed" in written
        progress.advance(succeeded=True)
    assert "\x1b[2K" in written, "the line is erased"
