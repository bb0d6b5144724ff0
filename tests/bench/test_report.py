"""Tables print as text and as Markdown."""

from __future__ import annotations

import pytest

from bench.report import Cell, Figure, Table, as_markdown, as_text, cell_text, table_of

TABLE = Table("Times", ("what", "ms"), [("a|b", 1234.5), ("c", None)], "A note.")


def test_text_is_aligned() -> None:
    assert as_text(TABLE).splitlines() == [
        *("Times", "", "what  ms", "----  -----", "a|b   1,234", "c     -"),
        *("", "A note."),
    ]


def test_markdown_keeps_cells_apart() -> None:
    assert as_markdown(TABLE).splitlines() == [
        *("**Times**", "", "| what | ms |", "| --- | --- |"),
        *("| a\\|b | 1,234 |", "| c | - |", "", "A note."),
    ]


@pytest.mark.parametrize(
    ("cell", "text"),
    [(None, "-"), (12_345, "12,345"), (0.01234, "0.0123"), (99.96, "100"), ("x", "x")],
)
def test_three_digits_count(cell: Cell, text: str) -> None:
    assert cell_text(cell) == text


def test_what_is_not_offered_is_said() -> None:
    table = table_of("T", [Figure("tasks", "tasks/s", 300.0, None, "how")])
    assert table.rows == [("tasks", "tasks/s", 300.0, "not offered", "how")]
    assert table.column("pilotfleet") == [300.0]
