"""Pools of gateways that tests can see into."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilotfleet.fleet.worker.job import Job
from pilotfleet.fleet.worker.openclaw.config import OpenClawConfig
from pilotfleet.fleet.worker.openclaw.gateway import OwnGateway, RemoteGateway
from pilotfleet.fleet.worker.openclaw.http import parse_url
from pilotfleet.fleet.worker.openclaw.pool import GatewayPool

if TYPE_CHECKING:
    from tests.fleet.worker.openclaw.gatewayserver import GatewayServer

__all__ = ["job", "own_pool", "program", "remote_pool"]

ROOT = Path(__file__).parents[4]


def job(text: str = "hello", *, agent: str = "worker-1", task: str = "t-1") -> Job:
    """Return a task."""
    return Job(agent, task, text)


def program(folder: Path) -> str:
    """Write a program that is a gateway of ours."""
    path = folder / "openclaw"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.fleet.worker.openclaw.gatewayserver import main\nmain()\n"
    )
    path.chmod(0o755)
    return str(path)


def own_pool(folder: Path, *, gateways: int = 1, **settings: Any) -> GatewayPool:
    """Return a pool of gateways that are started."""
    config = OpenClawConfig(**({"program": program(folder)} | settings))
    starting = asyncio.Semaphore(2)
    return GatewayPool(
        config,
        [
            OwnGateway(f"gateway {number}", config, starting=starting)
            for number in range(1, gateways + 1)
        ],
    )


def remote_pool(*servers: GatewayServer, **settings: Any) -> GatewayPool:
    """Return a pool of gateways that run already."""
    config = OpenClawConfig(**settings)
    return GatewayPool(
        config,
        [
            RemoteGateway(
                server.url, parse_url(server.url, token=server.token), agent="main"
            )
            for server in servers
        ],
    )
