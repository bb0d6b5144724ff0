"""Every program of the how-to, and every example of the API, as a user runs it."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.programs import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "howto" / "python-api.md"
LIMIT_S: Final = 120.0
PROGRAMS: Final = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
TITLES: Final = [
    "agent",
    "watch",
    "tasks",
    "events",
    "marks",
    "fleet",
    "patterns",
    "errors",
]
SAID: Final = {
    "agent": ["found ann ['greeter']", "b'hello ann'"],
    "watch": ["added runner ['runner']", "['runner']"],
    "tasks": ["SUCCEEDED 3", "FAILED ValueError: there is nothing to count"],
    "events": ['news.weather {"sun":true}', "news.late good night"],
    "marks": ["after 2: while nobody listened"],
    "fleet": ["2 2", "poem SUCCEEDED by worker-", "6 agents"],
    "patterns": ["task-5 TEXT 5"],
    "errors": ["not_running - daemon is not running"],
}
"""What each prints, among others."""


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    """Yield a rendezvous whose beacon is one port higher, as the programs expect."""
    with world() as made:
        port = _free_pair()
        made.registry, made.beacon = f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"
        made.start_rendezvous()
        yield made


def _free_pair() -> int:
    for _ in range(100):
        with socket.socket() as one, socket.socket(type=socket.SOCK_DGRAM) as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two ports in a row are free")


def run(net: World, *arguments: object) -> str:
    """Run a Python program to its end; return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=net.environment(PILOT_BEACON=net.beacon, TMPDIR=str(net.home)),
        cwd=net.home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_page_has_a_program_for_each_part() -> None:
    assert len(PROGRAMS) == len(TITLES)


@pytest.mark.parametrize(("title", "program"), list(zip(TITLES, PROGRAMS, strict=True)))
def test_each_program_of_the_page_runs(net: World, title: str, program: str) -> None:
    path = net.home / f"{title}.py"
    path.write_text(program)
    output = run(net, path)
    for text in SAID[title]:
        assert text in output


@pytest.mark.parametrize(
    ("name", "lines", "last"),
    [("hub", 50, "worker-"), ("mesh", 51, "worker-"), ("hierarchy", 52, "under tree-")],
)
def test_each_example_runs(net: World, name: str, lines: int, last: str) -> None:
    output = run(net, ROOT / "examples" / f"{name}.py").splitlines()
    assert len(output) == lines
    assert last in output[-1]


def test_the_measured_mesh_needed_no_handshake(net: World) -> None:
    first = run(net, ROOT / "examples" / "mesh.py").splitlines()[0]
    assert first.startswith("MeshMeasure(agents=5, joins=5, handshakes=0, pairs=20,")
