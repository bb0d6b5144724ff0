"""How long the steps of a command took, for ``--trace`` (cli.md section 6.7)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.invocation import Context

__all__ = ["Steps", "milliseconds", "variable_is_set"]


def variable_is_set(name: str) -> bool:
    """Tell whether a switch of the environment is on: any text but none is."""
    return bool(os.environ.get(name))


def milliseconds(seconds: float) -> float:
    """Return a time as results state it."""
    return round(seconds * 1000, 3)


class Steps:
    """The steps that are done, each with the time since the command began."""

    __slots__ = ("_context", "_started", "is_on", "rows")

    def __init__(self, context: Context, arguments: Arguments) -> None:
        self._context = context
        self._started = time.perf_counter()
        self.is_on = arguments.enabled("trace") or variable_is_set(
            "PILOTCTL_TRACE_TIME"
        )
        self.rows: list[dict[str, Any]] = []

    def mark(self, label: str) -> None:
        """Note that a step is done; the labels are the official program's."""
        if self.is_on:
            spent = milliseconds(time.perf_counter() - self._started)
            self.rows.append({"label": label, "ms": spent})
            self._context.output.note(f"TRACE {label:<28} {spent:>6.3f}ms")
