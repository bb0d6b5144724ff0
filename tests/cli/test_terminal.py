"""What other people say on its way to a terminal."""

from __future__ import annotations

import io
import json
import logging
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfleet.cli import fleettop
from pilotfleet.cli.logs import TEXT_FORMAT, TextFormatter
from pilotfleet.cli.output import Output
from pilotfleet.cli.terminal import escaped, printable
from pilotfleet.errors import NotFound
from pilotfleet.fleet.monitor.view.fleetview import FleetView

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = "a\x1b]0;title\x07\x1b[2J\x9b31m\x08\x7f\u202eb\rc"
STEERING = set("\x1b\x07\x08\x7f\x9b\u202e\r")


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@contextmanager
def on_terminal() -> Iterator[Terminal]:
    # Not in a fixture: pytest puts its own streams back between setup and call.
    stream = Terminal()
    with redirect_stdout(stream), redirect_stderr(stream):
        yield stream


@pytest.mark.parametrize("is_json", [False, True])
def test_nothing_steers_the_terminal(is_json: bool) -> None:
    output = Output(json=is_json)
    with on_terminal() as terminal:
        output.result({"task": HOSTILE}, f"task {HOSTILE}")
        output.result({"task": HOSTILE})
        output.line({"task": HOSTILE})
        output.text(HOSTILE)
        output.note(HOSTILE)
        output.warn(HOSTILE)
        output.error(NotFound(HOSTILE, hint=HOSTILE))
    assert terminal.getvalue().count("31m") >= 6
    assert not STEERING & set(terminal.getvalue())


def test_json_for_a_terminal_means_the_same() -> None:
    with on_terminal() as terminal:
        Output(json=True).result({"task": HOSTILE})
    assert json.loads(terminal.getvalue())["data"] == {"task": HOSTILE}


def test_lines_and_columns_stay() -> None:
    with on_terminal() as terminal:
        Output(json=False).text("one\ttwo\r\nthree é 💡\n")
    assert terminal.getvalue() == "one\ttwo\nthree é 💡\n\n"


def test_a_file_gets_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=False).text("a\x1b[1m")
    assert capsys.readouterr().out == "a\x1b[1m\n"


@given(st.text())
def test_what_is_escaped_decodes_to_the_same(text: str) -> None:
    line = escaped(json.dumps(text, ensure_ascii=False))
    assert json.loads(line) == text
    assert printable(line) == line
    assert printable(printable(text)) == printable(text)


def test_a_record_of_a_log_is_one_line() -> None:
    record = logging.LogRecord(
        "x", logging.WARNING, "f", 1, "said %s", (f"{HOSTILE}\n2026 forged",), None
    )
    line = TextFormatter(TEXT_FORMAT).format(record)
    assert "\\n2026 forged" in line
    assert not (STEERING | {"\n"}) & set(line)


def state(text: str) -> dict[str, Any]:
    """Return the state of a fleet in which other people's words are ``text``."""
    tasks = dict.fromkeys(("tasks", "open", "succeeded", "failed", "retried"), 1)
    member = {"name": text, "state": text, "agents": 1, "restarts": 1}
    return {
        "name": text,
        "pattern": "hub-and-spoke",
        "state": text,
        "trouble": text,
        "agents": 1,
        "tasks": tasks,
        "workers": {},
        "health": {"agents": {text: 1}},
        "figures": msgspec.to_builtins(FleetView(text).figures()),
        "tasks_per_second": 1.0,
        "error_rate": 0.0,
        "members": [{**member, "last_exit": text}],
        "batches": [{**tasks, "name": text}],
        "clusters": [{"name": text, "parent": text}],
        "slowest": [{"id": text, "agent": text, "ms": 1.0}],
    }


@pytest.mark.parametrize("text", [HOSTILE, "[/b]", "[red]", "[link=x]y", "[@click=a]"])
def test_the_live_view_survives_every_word(text: str) -> None:
    # No terminal, or the library's own bold letters would be found.
    with redirect_stdout(io.StringIO()) as stream:
        fleettop._print_plain(fleettop._frame(state(text)))
    shown = stream.getvalue()
    assert not STEERING & set(shown)
    assert text is HOSTILE or shown.count(text) >= 8
