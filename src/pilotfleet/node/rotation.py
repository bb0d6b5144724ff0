"""Giving an agent a new identity key while it runs (registry.md section 6.13).

The registry and the disk cannot change in one step, and an agent whose key the
registry does not know is a new node to it, without trust or name. So the new key is
on disk, in a file beside the identity, before the registry hears of it::

    identity.next.json written ─▶ registry: rotate_key ─▶ identity.json replaced
                                                        ─▶ identity.next.json removed

Whoever finds that file, after a crash or a lost answer, does not know which key
counts: it asks the registry before it registers with either.

Tunnels go on: their keys are not the identity's. Peers learn the new one from the
registry at the next key exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pilotfleet.errors import (
    Busy,
    ConfigError,
    DecodeError,
    PilotError,
    RegistryError,
    StorageError,
)
from pilotfleet.node.home import save_identity
from pilotfleet.protocol.identity import SEED_SIZE, Identity
from pilotfleet.transport.files import replace_file
from pilotfleet.transport.threads import run_blocking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host

__all__ = ["KeyRotation"]

logger = logging.getLogger(__name__)

CANDIDATE: Final = "identity.next.json"


class _Candidate(msgspec.Struct):
    """The file of a rotation under way."""

    node_id: int
    private_key: str
    public_key: str


class KeyRotation:
    """Rotates the keys of a host's agents, one at a time for each."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._running: dict[Agent, asyncio.Event] = {}
        """Set when the agent's rotation, or its settling, has ended."""

    async def rotate(self, agent: Agent) -> dict[str, Any]:
        """Give ``agent`` a new key; return the registry's answer.

        A cancelled call may have rotated all the same; the agent then finds out
        before it registers again.

        Raises:
            Busy: A rotation of this agent is under way.
            StorageError: The disk refuses. If the registry has rotated by then, the
                rest follows before the agent registers again.
            RegistryError: The registry refuses.
            ConnectionFailed: It cannot be reached. Whether it has rotated is asked
                when it can.
        """
        if agent in self._running:
            raise Busy(f"the key of agent {agent.name} is being rotated already")
        async with self._alone(agent):
            # What an earlier one left is to be settled first: it holds the file.
            await self._settle(agent)
            return await self._rotate(agent)

    async def settle(self, agent: Agent) -> None:
        """Return when it is certain which key ``agent`` has.

        Raises:
            PilotError: It is not, and the registry cannot be asked.
        """
        while (ended := self._running.get(agent)) is not None:
            await ended.wait()
        if _path(agent).exists():
            async with self._alone(agent):
                await self._settle(agent)

    @contextlib.asynccontextmanager
    async def _alone(self, agent: Agent) -> AsyncIterator[None]:
        ended = self._running[agent] = asyncio.Event()
        try:
            yield
        finally:
            del self._running[agent]
            ended.set()

    async def _rotate(self, agent: Agent) -> dict[str, Any]:
        new = Identity(os.urandom(SEED_SIZE))
        await run_blocking(_write, _path(agent), new, agent.node_id)
        try:
            answer = await agent.registry(
                "rotate_key",
                node_id=agent.node_id,
                new_public_key=new.public_key_text,
            )
        except PilotError:
            # A refusal proves nothing: a request is repeated when its connection
            # breaks, and the second is signed by what is then the old key.
            await self._settle(agent)
            if agent.identity.public_key != new.public_key:
                raise
            return {
                "type": "rotate_key_ok",
                "node_id": agent.node_id,
                "address": str(agent.address),
                "public_key": new.public_key_text,
            }
        await self._adopt(agent, new)
        return answer

    async def _settle(self, agent: Agent) -> None:
        """Finish or undo what the file says was begun; without it do nothing."""
        path = _path(agent)
        candidate = await run_blocking(_read, path)
        if candidate is None:
            return
        new, node = candidate
        if await self._is_in_force(new, node):
            await self._adopt(agent, new)
        else:
            logger.info("agent %s: a new key came to nothing", agent.name)
            await run_blocking(_remove, path)

    async def _is_in_force(self, new: Identity, node: int) -> bool:
        """Ask the registry whether the key of ``node`` is the new one."""
        try:
            record = await self._host.registry.lookup(node)
        except RegistryError as error:
            if "not found" not in str(error):
                raise
            # Not live, so it cannot be looked up; but the registry knows whose a key
            # is when it registers.
            return await self._belongs_to(new, node)
        return record.get("public_key") == new.public_key_text

    async def _belongs_to(self, new: Identity, node: int) -> bool:
        registry = self._host.registry
        try:
            found = await registry.register(new, "0.0.0.0:0")
        except RegistryError:
            return False
        if found.node_id == node:
            return True
        await registry.deregister(new, found.node_id)
        return False

    async def _adopt(self, agent: Agent, new: Identity) -> None:
        await run_blocking(save_identity, agent.spec.identity_path, new)
        await run_blocking(_remove, _path(agent))
        agent.identity = new
        agent.tunnels.set_identity(new)
        self._host.routing.forget_key(agent.node_id)
        logger.info("agent %s has a new key", agent.name)


def _path(agent: Agent) -> Path:
    return agent.spec.identity_path.with_name(CANDIDATE)


def _write(path: Path, new: Identity, node: int) -> None:
    keys = msgspec.json.decode(new.to_json(), type=dict[str, str])
    data = msgspec.json.encode(_Candidate(node_id=node, **keys))
    try:
        # Must outlive a power failure: without the file, the key that the registry
        # has by then would be gone.
        replace_file(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def _read(path: Path) -> tuple[Identity, int] | None:
    try:
        data = path.read_bytes()
        node = msgspec.json.decode(data, type=_Candidate).node_id
        return Identity.from_json(data), node
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, DecodeError) as error:
        raise ConfigError(
            f"{path} is damaged: {error}",
            hint=f"move {path} away to go on with the key in identity.json",
        ) from None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {path}: {error.strerror}") from error
