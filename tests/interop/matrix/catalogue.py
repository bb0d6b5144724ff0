"""All rows, in the order of the matrix: importing a subject registers its rows."""

from __future__ import annotations

from typing import Final

from tests.interop.matrix import (
    rows_events,
    rows_local,
    rows_messages,
    rows_networks,
    rows_node,
    rows_ours,
    rows_sdk,
    rows_streams,
    rows_trust,
)
from tests.interop.matrix.rows import REGISTERED

__all__ = ["ROWS", "SUBJECTS"]

SUBJECTS = (
    rows_node,
    rows_trust,
    rows_streams,
    rows_messages,
    rows_events,
    rows_networks,
    rows_local,
    rows_sdk,
    rows_ours,
)
"""The modules with rows; each of their functions is one."""

ROWS: Final = {
    name: row
    for subject in SUBJECTS
    for name, row in REGISTERED.items()
    if row.run.__module__ == subject.__name__
}
"""All rows by name."""
