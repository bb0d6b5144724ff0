"""The name under which other programs see ours."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """\
#!{python}
import os, sys
from pilotfleet.cli.processname import show_as
show_as("{name}")
with open("/proc/self/cmdline", "rb") as file:
    words = file.read().rstrip(b"\\0").split(b"\\0")
print(os.path.basename(words[0].decode()), *map(bytes.decode, words[1:]))
print(*sys.argv[1:], os.environ["KEPT"])
"""


@pytest.mark.parametrize(
    ("name", "first"), [("pilot-thing", "pilot-thing --flag x"), ("other", "python")]
)
def test_command_line_begins_with_the_program(
    name: str, first: str, tmp_path: Path
) -> None:
    program = tmp_path / "pilot-thing"
    program.write_text(SCRIPT.format(python=sys.executable, name=name))
    program.chmod(0o755)
    shown = subprocess.run(
        [program, "--flag", "x"],
        env={"KEPT": "environment"},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    seen, kept = shown.stdout.splitlines()
    assert seen.startswith(first)
    assert kept == "--flag x environment"
