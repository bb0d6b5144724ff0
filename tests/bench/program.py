"""What a suite starts in tests: ``python -m tests.bench.program PART FOLDER``."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from bench.options import Options
from bench.parts import Part
from bench.suite import run_here


def part(name: str) -> Part:
    """Return a part whose module is here, if there is any."""
    return Part(name, "nothing", 0, package="tests.bench")


def main(name: str, folder: Path) -> int:
    """Measure, die or hang, as the name says."""
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hangs":
        threading.Event().wait()
    return int(bool(run_here(part(name), Options(), folder).error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
