"""How many files the process may open."""

from __future__ import annotations

import resource

from pilotfleet.errors import Unavailable

__all__ = ["require_open_files"]


def require_open_files(needed: int) -> None:
    """Raise the limit of open files as far as allowed; check that it suffices.

    Raises:
        Unavailable: The system allows fewer than ``needed``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited:
        return
    if hard == unlimited:
        hard = max(soft, needed)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if needed > hard:
        raise Unavailable(
            f"this host needs {needed} open files, the system allows {hard}: "
            f"{needed - hard} too few",
            hint="raise the limit (ulimit -Hn, LimitNOFILE= in systemd), "
            "or spread the agents over several daemons",
        )
