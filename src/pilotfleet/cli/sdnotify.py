"""Tell systemd how a service is doing (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket

__all__ = ["notify_systemd"]


def notify_systemd(state: str) -> None:
    """Send a state such as ``READY=1``; does nothing outside of systemd.

    A message that cannot be delivered is lost: the service works without it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    # A name that begins with @ lives in the abstract namespace.
    target = f"\0{address[1:]}" if address[0] == "@" else address
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel,
    ):
        channel.sendto(state.encode(), target)
