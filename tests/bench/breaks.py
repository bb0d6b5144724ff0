"""A part of a suite that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.options import Options
    from bench.report import Table


def measure(_: Options) -> list[Table]:
    """Fail.

    Raises:
        ValueError: Always.
    """
    raise ValueError("the hub gave a wrong result")
