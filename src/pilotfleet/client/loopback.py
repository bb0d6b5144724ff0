"""Give the loopback interface further addresses, where it does not have them.

All of 127.0.0.0/8 leads to a Linux machine itself; addresses outside have to be
added to the interface ``lo``, which takes root. Other systems want every address but
127.0.0.1 added.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from pilotfleet.errors import PermissionDenied, StorageError

__all__ = ["add_alias", "needs_alias", "remove_alias"]

COMMAND_TIMEOUT_S: Final = 10.0
_LOOPBACK: Final = "127."


def needs_alias(ip: str) -> bool:
    """Tell whether ``ip`` has to be added before a program can listen on it."""
    return not ip.startswith(_LOOPBACK) if sys.platform == "linux" else True


async def add_alias(ip: str) -> bool:
    """Add ``ip`` to the loopback interface; tell whether it was not there yet.

    Raises:
        PermissionDenied: The system refuses, most often for want of root.
        StorageError: The program that does it is missing or hangs.
    """
    if not needs_alias(ip):
        return False
    if sys.platform == "linux":
        code, text = await _run("ip", "addr", "add", f"{ip}/32", "dev", "lo")
    else:
        code, text = await _run("ifconfig", "lo0", "alias", ip)
    if code == 0:
        return True
    if "exists" in text or "already assigned" in text:
        return False
    raise PermissionDenied(
        f"cannot add {ip} to the loopback interface: {text or f'exit code {code}'}",
        hint="it takes root (CAP_NET_ADMIN); a subnet like 127.4.0.0/16 needs none",
    )


async def remove_alias(ip: str) -> None:
    """Take an address that :func:`add_alias` added away; failures do not matter."""
    if sys.platform == "linux":
        await _run("ip", "addr", "del", f"{ip}/32", "dev", "lo")
    else:
        await _run("ifconfig", "lo0", "-alias", ip)


async def _run(*command: str) -> tuple[int, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise StorageError(
            f"cannot run {command[0]}: {error.strerror}",
            hint="a subnet like 127.4.0.0/16 needs no aliases",
        ) from error
    try:
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            _, text = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise StorageError(f"{command[0]} did not end in time") from None
    return process.returncode or 0, text.decode("utf-8", "replace").strip()[:200]
