"""A part of a suite that has figures at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.bench.samples import idle_hosts

if TYPE_CHECKING:
    from bench.options import Options
    from bench.report import Table


def measure(_: Options) -> list[Table]:
    """Return made-up figures."""
    return [idle_hosts()]
