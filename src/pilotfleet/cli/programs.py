"""The programs, and the only place where their parts are put together.

Everything below is imported when it is needed: ``pilotctl info`` must not wait for
the daemon's libraries.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import NoReturn

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.config import HostConfig
    from pilotfleet.node.host import Host
    from pilotfleet.services.events.log import EventLog
    from pilotfleet.services.tasks.service import TaskConfig

__all__ = [
    "open_host",
    "openclaw_worker",
    "own_home",
    "pilot_daemon",
    "pilot_gateway",
    "pilot_monitor",
    "pilot_rendezvous",
    "pilotctl",
]

EVENT_LOG: Final = "events.db"
TASK_STORE: Final = "tasks.db"
TASK_FILES: Final = "tasks"


def pilotctl() -> NoReturn:
    """Run ``pilotctl``."""
    from pilotfleet.cli.main import main

    sys.exit(main())


def pilot_daemon() -> NoReturn:
    """Run ``pilot-daemon``."""
    from pilotfleet.cli.daemon import main
    from pilotfleet.cli.processname import show_as

    show_as("pilot-daemon")
    sys.exit(main())


def pilot_rendezvous() -> NoReturn:
    """Run ``pilot-rendezvous``."""
    from pilotfleet.cli.rendezvous import main

    sys.exit(main())


def openclaw_worker() -> NoReturn:
    """Run ``openclaw-worker``."""
    from pilotfleet.cli.worker import main

    sys.exit(main())


def pilot_gateway() -> NoReturn:
    """Run ``pilot-gateway``."""
    from pilotfleet.cli.gatewayprogram import main
    from pilotfleet.cli.processname import show_as

    show_as("pilot-gateway")
    sys.exit(main())


def pilot_monitor() -> NoReturn:
    """Run ``pilot-monitor``."""
    from pilotfleet.cli.monitor import main

    sys.exit(main())


@contextlib.asynccontextmanager
async def open_host(
    config: HostConfig, *, prepare: Callable[[Host], None] | None = None
) -> AsyncIterator[Host]:
    """Open a host with the built-in services on it.

    Services are ready before the first agent is registered, and outlive the last
    stream: the host drains and closes first, then they close their files.

    Args:
        config: What to host.
        prepare: Called with the host before it starts.
    """
    from pilotfleet.node.host import Host
    from pilotfleet.protocol.services.dataexchange import DATA_EXCHANGE_PORT
    from pilotfleet.protocol.services.events import EVENT_PORT
    from pilotfleet.services.dataexchange.mailbox import MailboxConfig
    from pilotfleet.services.dataexchange.service import (
        DataExchange,
        DataExchangeConfig,
    )
    from pilotfleet.services.echo import ECHO_PORT, serve_echo
    from pilotfleet.services.events.broker import EventBroker
    from pilotfleet.services.events.config import BrokerConfig
    from pilotfleet.services.handshake.service import HandshakeService
    from pilotfleet.services.nodestatus import NodeStatus
    from pilotfleet.services.tasks.service import TaskService
    from pilotfleet.services.webhook import WebhookService

    host = Host(config)
    handshake = HandshakeService(host)
    handshake.attach()
    events = EventBroker(
        host,
        BrokerConfig(
            brokers=config.brokers,
            roll_up=config.roll_up,
            roll_up_topics=config.roll_up_topics,
        ),
        is_member=lambda agent, node: _is_member(host, agent, node),
        open_log=lambda agent: _open_log(host, agent),
    )
    data_exchange = DataExchange(
        DataExchangeConfig(
            max_frame=config.data_exchange_max_frame,
            mailbox=MailboxConfig(always_base64=config.data_exchange_base64),
        )
    )
    async with contextlib.AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(
            TaskService(host, config.home / TASK_STORE, config=_task_config(config))
        )
        handlers = {
            ECHO_PORT: serve_echo,
            DATA_EXCHANGE_PORT: data_exchange.handle,
            EVENT_PORT: events.handle,
            **tasks.handlers(),
        }
        for port, handler in handlers.items():
            if port not in config.services_off:
                host.services[port] = handler
        host.extensions.update(data_exchange.extensions())
        host.extensions.update(events.extensions())
        host.extensions.update(tasks.extensions())
        await stack.enter_async_context(
            WebhookService(host, url=config.webhook, secret=config.webhook_secret)
        )
        stack.push_async_callback(events.aclose)
        stack.push_async_callback(handshake.aclose)
        if prepare is not None:
            prepare(host)
        await stack.enter_async_context(host)
        await stack.enter_async_context(
            NodeStatus(
                host,
                events.publish,
                interval_s=config.node_report_s,
                brokers=config.brokers,
            )
        )
        await tasks.resume()
        yield host


def own_home(home: Path, processes: int) -> AbstractContextManager[None]:
    """Hold a daemon's home; what is kept there is divided among its processes.

    Raises:
        PilotError: It cannot be.
    """
    from pilotfleet.node.processes import home as homes
    from pilotfleet.node.processes.division import process_of
    from pilotfleet.services.tasks.redivide import redivide, remove

    def stores(folders: Mapping[int, Path]) -> dict[int, Path]:
        return {number: folder / TASK_STORE for number, folder in folders.items()}

    return homes.own_home(
        home,
        processes,
        redivide=lambda old, new: redivide(
            stores(old).values(), stores(new), lambda name: process_of(name, len(new))
        ),
        clear=lambda old: remove(stores(old).values()),
    )


def _is_member(host: Host, agent: Agent, node: int) -> bool:
    """Tell whether a peer is trusted, or of a network that a private agent is in."""
    is_known = agent.trust.is_trusted(node)
    return is_known or (not agent.is_public and bool(host.gate.answer(agent, node)))


def _task_config(config: HostConfig) -> TaskConfig:
    from pilotfleet.services.polo.gate import PoloGateConfig
    from pilotfleet.services.tasks.files import TaskFiles
    from pilotfleet.services.tasks.service import TaskConfig

    folders = {agent.name: agent.home / TASK_FILES for agent in config.agents}
    return TaskConfig(
        polo=config.polo,
        polo_gate=PoloGateConfig(is_on=config.polo_gate, min_polo=config.min_polo),
        files=TaskFiles(folders) if config.task_files else None,
    )


async def _open_log(host: Host, agent: Agent) -> EventLog | None:
    """Open the log of a broker of the fleet, or of the host's own agent.

    Of ten thousand agents in one process, all but one are no broker; a database
    for each of them that once published to itself would be a flood of files.
    """
    from pilotfleet.errors import StorageError
    from pilotfleet.services.events.log import EventLog

    names = {*host.config.brokers, host.default_agent.hostname}
    if agent is not host.default_agent and names.isdisjoint(
        (agent.hostname, agent.name)
    ):
        return None
    log = EventLog(agent.home / EVENT_LOG)
    try:
        return await log.__aenter__()
    except StorageError as error:
        import logging

        # A broker without memory is better than none.
        logging.getLogger(__name__).warning("%s", error)
        return None
