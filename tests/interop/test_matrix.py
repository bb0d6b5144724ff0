"""The rows of ``make interop`` as tests: one test for each, with all four cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.interop.matrix.allowed import DELIBERATE
from tests.interop.matrix.catalogue import ROWS
from tests.interop.matrix.columns import Column
from tests.interop.matrix.rows import Verdict, evaluate
from tests.interop.matrix.worlds import Stages

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.official, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def stages() -> Iterator[Stages]:
    with Stages() as made:
        yield made


@pytest.mark.parametrize("name", ROWS)
def test_row_has_no_failing_cell(name: str, stages: Stages) -> None:
    cells = evaluate(ROWS[name], stages)
    failures = [
        f"{column.value}: {reason}"
        for column, cell in cells.items()
        if cell.verdict is Verdict.FAIL
        for reason in cell.reasons
    ]
    assert not failures, "\n".join(failures)


def test_matrix_has_at_least_forty_rows_that_apply() -> None:
    applying = [row for row in ROWS.values() if len(row.not_applicable) < len(Column)]
    assert len(applying) >= 40


def test_every_deliberate_difference_has_a_reason() -> None:
    assert all(entry.reason for entry in DELIBERATE)
