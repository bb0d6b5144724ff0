"""A host's connections to the registry, as ``pilotfleet.client.links`` keeps them.

What is sent in one instant on one connection arrives together, up to the depth of the
pipeline. A connection that was lost is dialled when it is needed again, with the real
client's pauses; a request that was out is sent once more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from bench.simulation.rendezvous import LATENCY_S, LONG, Job
from pilotfleet.client.links import LinkConfig
from pilotfleet.client.pacing import dial_pause_s
from pilotfleet.protocol.registry.framing import encode_json_frame
from pilotfleet.protocol.registry.messages import encode_message

if TYPE_CHECKING:
    from bench.simulation.kernel import Kernel, Process
    from bench.simulation.rendezvous import SimulatedRendezvous
    from pilotfleet.registry.context import PeerContext

Reply: TypeAlias = "dict[str, Any] | None"
"""None: the registry could not be reached."""
_Sent: TypeAlias = tuple[bytes, bool, Callable[[Reply], None], bool]
"""A frame, whether it is long work, whom to give the reply, and whether it was sent
before."""

CONFIG = LinkConfig()


class SimulatedLink:
    """One connection of a host."""

    __slots__ = (
        "_attempts",
        "_host",
        "_is_dialling",
        "_is_flushing",
        "_is_open",
        "_kernel",
        "_outbox",
        "_peer",
        "_rendezvous",
        "load",
    )

    def __init__(
        self,
        kernel: Kernel,
        rendezvous: SimulatedRendezvous,
        host: int,
        peer: PeerContext,
        *,
        attempts: int = CONFIG.attempts,
    ) -> None:
        self._kernel = kernel
        self._rendezvous = rendezvous
        self._host = host
        self._peer = peer
        self._attempts = attempts
        self._outbox: deque[_Sent] = deque()
        self._is_open = self._is_dialling = self._is_flushing = False
        self.load = 0
        """Requests that are out or wait."""

    def open(self) -> None:
        """Be connected from the start."""
        self._is_open = True

    def send(self, message: dict[str, Any], resume: Callable[[Reply], None]) -> None:
        """Send a message; ``resume`` gets the reply."""
        self.load += 1
        frame = encode_json_frame(encode_message(message))
        self._put((frame, message["type"] in LONG, resume, False))

    def _put(self, sent: _Sent) -> None:
        self._outbox.append(sent)
        if not self._is_flushing and not self._is_dialling:
            self._is_flushing = True
            self._kernel.at(self._kernel.time, self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        if not self._is_open and self._outbox:
            self._is_dialling = True
            self._kernel.spawn(self._dial())
            return
        while self._outbox:
            count = min(len(self._outbox), CONFIG.pipeline)
            sent = [self._outbox.popleft() for _ in range(count)]
            frames = b"".join(frame for frame, *_ in sent)
            is_long = any(is_long for _, is_long, *_ in sent)
            done = partial(self._answered, sent)
            job = Job(self._host, self._peer, frames, done, is_long=is_long)
            self._rendezvous.submit(job)

    def _answered(self, sent: list[_Sent], replies: list[dict[str, Any]]) -> None:
        if replies:
            self.load -= len(sent)
            for (*_, resume, _), reply in zip(sent, replies, strict=True):
                resume(reply)
            return
        self._is_open = False
        for frame, is_long, resume, again in sent:
            if again:
                self.load -= 1
                resume(None)
            else:
                self._put((frame, is_long, resume, True))

    def _dial(self) -> Process:
        for attempt in range(1, self._attempts + 1):
            self._rendezvous.account.dials[int(self._kernel.time)] += 1
            yield 2 * LATENCY_S
            if not self._rendezvous.is_down:
                self._is_open = True
                break
            if attempt < self._attempts:
                yield dial_pause_s(
                    attempt,
                    first_s=CONFIG.first_wait_s,
                    longest_s=CONFIG.max_wait_s,
                    rng=self._kernel.rng,
                )
        self._is_dialling = False
        if self._is_open:
            self._flush()
            return
        failed, self._outbox = self._outbox, deque()
        self.load -= len(failed)
        for *_, resume, _ in failed:
            resume(None)
