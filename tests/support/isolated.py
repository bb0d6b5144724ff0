"""Run a command in a network namespace of its own, where the system allows it.

The tests run programs that are not ours. In a namespace with nothing but a loopback
interface, nothing that they do can leave the machine. Making one takes root; without
it the command runs as it is, and the programs' own flags keep them on loopback.

Usage: python -m tests.support.isolated COMMAND [ARGUMENT]...
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from typing import Final

from tests.support.official import RELEASES, official_program, sdk_environment

CLONE_NEWNET: Final = 0x4000_0000
SIOCSIFFLAGS: Final = 0x8914
IFF_UP: Final = 0x1


def main() -> None:
    """Fetch what is needed from outside, then become the command."""
    for release in RELEASES:
        for name in ("pilot-daemon", "pilotctl"):
            official_program(name, release)
    sdk_environment()
    if sys.platform == "linux" and os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET) == 0:
            _bring_loopback_up()
    os.execvp(sys.argv[1], sys.argv[1:])


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))


if __name__ == "__main__":
    main()
