"""Where peers are and which keys they have, asked of the registry.

Tunnels ask for a path or a key and go on with other things. One question per
peer is under way at a time, answers are kept for a while, and a peer that
cannot be resolved is left alone for longer and longer: a peer that is down and
wanted by many must not become a storm at the registry.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.errors import (
    ConnectionFailed,
    DecodeError,
    NotFound,
    PilotError,
    RegistryError,
    TrustRequired,
)
from pilotfleet.node.cache import ExpiringCache
from pilotfleet.node.hostnamefile import HostnameFile
from pilotfleet.node.local import choose_endpoint, parse_ip_endpoint
from pilotfleet.protocol.identity import decode_key_text

if TYPE_CHECKING:
    from pilotfleet.node.agent import Agent
    from pilotfleet.node.host import Host
    from pilotfleet.protocol.address import Endpoint

__all__ = ["Path", "Routing", "registry_failure"]

logger = logging.getLogger(__name__)

# From the specification.
RESOLVE_TTL_S: Final = 60.0

# Of our choosing.
KEY_TTL_S: Final = 60.0
"""A tunnel that meets another key asks again past the cache."""
BACKOFF_FIRST_S: Final = 1.0
BACKOFF_MAX_S: Final = 30.0
MAX_CACHED: Final = 65_536
MAX_NAMES: Final = 4096
NAME_FILE: Final = "hostname_cache.json"
MAX_LAN_ADDRESSES: Final = 16


@dataclass(frozen=True, slots=True)
class Path:
    """How to reach a peer."""

    address: Endpoint | None
    """None when only the relay is left."""
    is_relay_only: bool


@dataclass(frozen=True, slots=True)
class _Failure:
    error: PilotError
    retry_at: float
    pause: float


class Routing:
    """The paths and keys that all agents of a host know of."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # All of these are bounded: a peer can make an agent ask for node numbers that
        # do not exist.
        # Paths belong to the asking agent: who may resolve whom differs.
        self._paths: ExpiringCache[tuple[int, int], Path] = ExpiringCache(MAX_CACHED)
        self._failures: ExpiringCache[tuple[int, int], _Failure] = ExpiringCache(
            MAX_CACHED
        )
        self._asking: dict[tuple[int, int], asyncio.Task[Path | PilotError]] = {}
        self._names: ExpiringCache[tuple[int, str], dict[str, Any]] = ExpiringCache(
            MAX_NAMES
        )
        self._names_on_disk: HostnameFile | None = None
        # Keys are public and the same for everybody, so all agents of the host share
        # them.
        self._keys: ExpiringCache[int, tuple[bytes, bool]] = ExpiringCache(MAX_CACHED)
        self._key_questions: dict[int, list[Agent]] = {}

    async def find_path(self, agent: Agent, peer: int) -> Path:
        """Return how ``agent`` reaches ``peer``. May be cancelled.

        Raises:
            NotFound: No such node.
            TrustRequired: It is private and does not trust the agent.
            ConnectionFailed: The registry refuses, or cannot be asked.
        """
        now = self._host.now()
        key = (agent.node_id, peer)
        path = self._paths.get(key, now)
        if path is not None:
            return path
        failure = self._failures.get(key, now)
        if failure is not None and now < failure.retry_at:
            # The same object each time: it must not collect a traceback of them all.
            raise failure.error.with_traceback(None)
        # A tunnel, a dial and a ping often want the same path in the same moment.
        task = self._asking.get(key)
        if task is None:
            task = self._host.spawn(
                self._resolve(agent, peer, failure), name=f"resolve {peer}"
            )
            self._asking[key] = task
            task.add_done_callback(lambda _: self._asking.pop(key, None))
        # Others may wait for the same answer, so it outlives a cancelled one.
        answer = await asyncio.shield(task)
        if isinstance(answer, PilotError):
            raise answer.with_traceback(None)
        return answer

    def forget_path(self, agent: Agent, peer: int) -> None:
        """Ask the registry again the next time the path is wanted."""
        self._paths.discard((agent.node_id, peer))
        self._failures.discard((agent.node_id, peer))

    def known_key(self, node: int) -> bytes | None:
        """Return the key that the registry told of ``node`` not long ago."""
        known = self._keys.get(node, self._host.now())
        return None if known is None else known[0]

    def keep_key(self, node: int, key: bytes, *, rotated: bool) -> None:
        """Remember what the registry told of ``node``."""
        self._keys.put(node, (key, rotated), self._host.now() + KEY_TTL_S)

    def forget_key(self, node: int) -> None:
        """Ask the registry again for the key of ``node``, which has a new one."""
        self._keys.discard(node)

    async def resolve_hostname(self, agent: Agent, name: str) -> dict[str, Any]:
        """Return the registry's answer for ``name``, at most 60 s old.

        Raises:
            RegistryError: No such name, or ``agent`` may not know.
            ConnectionFailed: The registry cannot be reached.
        """
        key = (agent.node_id, name)
        answer = self._names.get(key, self._host.now())
        if answer is None:
            answer = await self._recall(agent, name)
        if answer is None:
            answer = await agent.registry(
                "resolve_hostname", hostname=name, requester_id=agent.node_id
            )
            if name != agent.hostname:
                expires = self._host.now() + RESOLVE_TTL_S
                self._names.put(key, answer, expires)
                if agent is self._host.default_agent:
                    self._name_file(agent).note(name, answer)
        return answer

    def path_wanted(self, agent: Agent, peer: int) -> None:
        """Answer a tunnel that needs a path."""
        # The registry would name our public endpoint, and few NATs send a packet back
        # to its sender (section 13).
        if peer == agent.node_id:
            agent.set_peer_path(peer, Path(agent.own_endpoint(), is_relay_only=False))
            return
        known = self._paths.get((agent.node_id, peer), self._host.now())
        if known is not None:
            agent.set_peer_path(peer, known)
            return
        self._host.spawn(self._answer_path(agent, peer), name=f"path to {peer}")

    def key_wanted(self, agent: Agent, peer: int, *, refresh: bool) -> None:
        """Answer a tunnel that needs a peer's identity key.

        Args:
            agent: Whose tunnel it is.
            peer: Whose key is wanted.
            refresh: The key it knows does not fit; only the registry will do.
        """
        if peer == agent.node_id:
            agent.set_peer_key(peer, agent.identity.public_key)
            return
        # A fresh look must not be answered from the cache that gave the wrong key.
        known = None if refresh else self._keys.get(peer, self._host.now())
        # Neither must an old answer end the trust in a peer that has rotated its key.
        if known is not None and not agent.trust.contradicts(peer, known[0]):
            agent.set_peer_key(peer, known[0], rotated=known[1])
            return
        asking = self._key_questions.get(peer)
        if asking is not None:
            if agent not in asking:
                asking.append(agent)
            return
        self._key_questions[peer] = [agent]
        self._host.spawn(self._look_up_key(peer), name=f"key of {peer}")

    async def _recall(self, agent: Agent, name: str) -> dict[str, Any] | None:
        """Return what an earlier run of the daemon was told of ``name``."""
        if agent is not self._host.default_agent or name == agent.hostname:
            return None
        recalled = await self._name_file(agent).recall(name)
        if recalled is None:
            return None
        answer, age = recalled
        expires = self._host.now() + RESOLVE_TTL_S - age
        self._names.put((agent.node_id, name), answer, expires)
        return answer

    def _name_file(self, agent: Agent) -> HostnameFile:
        if self._names_on_disk is None:
            path = agent.spec.identity_path.with_name(NAME_FILE)
            self._names_on_disk = HostnameFile(self._host, path)
        return self._names_on_disk

    async def _answer_path(self, agent: Agent, peer: int) -> None:
        try:
            path = await self.find_path(agent, peer)
        except PilotError as error:
            agent.path_failed(peer, error)
        else:
            agent.set_peer_path(peer, path)

    async def _resolve(
        self, agent: Agent, peer: int, before: _Failure | None
    ) -> Path | PilotError:
        """Ask the registry. Failures are returned: several tasks share them."""
        key = (agent.node_id, peer)
        try:
            answer = await agent.registry(
                "resolve", node_id=peer, requester_id=agent.node_id
            )
            path = self._read_path(agent, answer)
        except PilotError as error:
            failure = registry_failure(f"resolve node {peer}", error)
            # The failure is kept longer than its pause: the next one must know how long
            # this one waited in order to double it.
            pause = min(BACKOFF_MAX_S, before.pause * 2 if before else BACKOFF_FIRST_S)
            now = self._host.now()
            self._failures.put(
                key, _Failure(failure, now + pause, pause), now + 2 * BACKOFF_MAX_S
            )
            return failure
        self._failures.discard(key)
        self._paths.put(key, path, self._host.now() + RESOLVE_TTL_S)
        return path

    def _read_path(self, agent: Agent, answer: dict[str, Any]) -> Path:
        # Whoever hides its endpoint is not to be sent to directly, even if the registry
        # tells an address (section 9.2).
        if answer.get("relay_only") is True:
            return Path(None, is_relay_only=True)
        real = parse_ip_endpoint(str(answer.get("real_addr", "")))
        lan: list[Endpoint] = []
        listed = answer.get("lan_addrs")
        # What peers registered is theirs to invent: the number is bounded and a broken
        # entry costs nothing but itself.
        for text in listed[:MAX_LAN_ADDRESSES] if isinstance(listed, list) else ():
            try:
                lan.append(parse_ip_endpoint(str(text)))
            except DecodeError:
                continue
        chosen = choose_endpoint(
            real, lan, own_host=agent.observed_host, local=self._host.local_addresses
        )
        return Path(chosen, is_relay_only=False)

    async def _look_up_key(self, peer: int) -> None:
        key: bytes | None = None
        rotated = False
        try:
            answer = await self._host.registry.request(
                {"type": "lookup", "node_id": peer}
            )
            key = decode_key_text(str(answer.get("public_key", "")))
            rotated = bool(answer.get("key_generation"))
            self.keep_key(peer, key, rotated=rotated)
        except PilotError as error:
            logger.debug("key of node %d: %s", peer, error)
        finally:
            agents = self._key_questions.pop(peer, [])
        # Also when it failed: tunnels keep greetings until they have an answer, and no
        # answer is one.
        for agent in agents:
            agent.set_peer_key(peer, key, rotated=rotated)


def registry_failure(what: str, error: PilotError) -> PilotError:
    """Return ``error`` of a registry request as what the caller can do about it.

    The words are those that official clients match (ipc.md section 3).
    """
    if not isinstance(error, RegistryError):
        return ConnectionFailed(f"{what}: {error}", hint=error.hint)
    text = f"{what}: registry: {error}"
    if "not found" in str(error):
        return NotFound(text)
    if "is private" in str(error):
        return TrustRequired(text)
    return ConnectionFailed(text)
