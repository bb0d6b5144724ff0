"""The rings around an application that faces a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfleet.web.limits import BodyLimit
from pilotfleet.web.security import HostCheck, SecurityHeaders

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp

    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.web.access import Access

__all__ = ["guard"]


def guard(
    app: ASGIApp, *, bind: Endpoint, access: Access, allow_hosts: Iterable[str] = ()
) -> ASGIApp:
    """Return ``app`` as it may be shown to the world.

    From the outside in: security headers, the Host check, limits on the body, the
    login. ``allow_hosts`` are names that the Host header may have, besides those of
    loopback and the one that is bound to.
    """
    inner = BodyLimit(access.wrap(app))
    return SecurityHeaders(HostCheck(inner, bind=bind, allowed=allow_hosts))
