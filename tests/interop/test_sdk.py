"""The official Python SDK as a user meets it; its answers are rows of the matrix."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.official import sdk_environment
from tests.support.programs import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.official, pytest.mark.timeout(60)]

PROGRAM = """
import sys, threading
from pilotprotocol import Driver, PilotError

with Driver(sys.argv[1]) as here, Driver(sys.argv[2]) as there:
    listener = there.listen(5000)
    heard = []

    def serve():
        with listener.accept() as conn:
            heard.append(conn.read())
            conn.write(heard[0].upper())

    thread = threading.Thread(target=serve)
    thread.start()
    address = there.info()["address"]
    with here.dial(address + ":5000") as conn:
        conn.write(b"hello")
        print(conn.read())
    thread.join()
    try:
        here.resolve_hostname("nobody")
    except PilotError as error:
        print(error)
"""


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        made.start_rendezvous()
        yield made


def run_program(net: World, *names: str) -> list[str]:
    """Run the program on two daemons; return the lines that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(net.socket(name)) for name in names)],
        env=net.environment(**sdk_environment()),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


EXPECTED = [
    "b'HELLO'",
    'resolve_hostname: daemon: resolve_hostname: registry: hostname "nobody" not found',
]


def test_program_of_the_sdk_runs_on_our_daemons(net: World) -> None:
    net.start_daemon("a", "--public")
    net.start_daemon("b", "--public")
    before = {path.name for path in net.home.iterdir()}
    assert run_program(net, "a", "b") == EXPECTED
    # Nothing of it stays in the home folder.
    assert {path.name for path in net.home.iterdir()} == before
