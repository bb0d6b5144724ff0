"""What ``import pilotfleet`` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pilotfleet


@pytest.mark.parametrize("name", pilotfleet.__all__)
def test_each_name_is_there(name: str) -> None:
    assert getattr(pilotfleet, name).__name__ == name
    assert name in dir(pilotfleet)


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        _ = pilotfleet.Nobody  # type: ignore[attr-defined]


def test_the_import_loads_nothing_else() -> None:
    program = (
        "import sys, pilotfleet; "
        "print(sorted(n for n in sys.modules if n.startswith('pilotfleet.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
