"""What time brings: retransmission, keepalive, probes, resets, forgetting.

All of it is decided in `Upkeep._wake`, once per due peer; `Peer.next_deadline` is
its mirror and says when the next of these rules can apply.
"""

from __future__ import annotations

from heapq import heappop
from typing import TYPE_CHECKING, Final

from pilotfleet.protocol.tunnel import control
from pilotfleet.protocol.tunnel.config import (
    FIRST_UPGRADE,
    KEEPALIVE_INTERVAL,
    PATH_PROBE_INTERVAL,
    PATH_PROBES,
    PATH_SILENCE,
    RELAY_OPENS,
    RESET_INTERVAL_AFTER_GIVING_UP,
    UPGRADE_INTERVAL,
)
from pilotfleet.protocol.tunnel.events import PayloadGrew
from pilotfleet.protocol.tunnel.exchanger import KeyExchanger
from pilotfleet.protocol.tunnel.growth import Growth
from pilotfleet.protocol.tunnel.peer import NEVER

if TYPE_CHECKING:
    from pilotfleet.protocol.packet import Packet
    from pilotfleet.protocol.tunnel.peer import Exchange, Peer

__all__ = ["Upkeep"]

_RESOLUTION: Final = 0.001
"""A peer is not woken twice within this time, whatever its deadlines say."""


class Upkeep(KeyExchanger):
    """The layer of `TunnelEndpoint` that keeps tunnels alive."""

    __slots__ = ()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            deadline, node = heappop(heap)
            peer = self._peers.get(node)
            if peer is None or peer.wake_at != deadline:
                continue
            # No entry is valid while the rules run, so whatever they schedule enters
            # the heap and this loop cannot lose a deadline.
            peer.wake_at = NEVER
            self._wake(peer, now)
            # The floor is a guard: a rule that finds nothing to do and a deadline that
            # says otherwise would together spin for ever.
            if node in self._peers:
                next_deadline = peer.next_deadline(now)
                self._schedule(peer, max(next_deadline, now + _RESOLUTION))

    def _wake(self, peer: Peer, now: float) -> None:
        if now >= peer.previous_until and peer.previous is not None:
            self._ring.retire(peer.previous, peer.node)
            self._drop_previous(peer)
        # Before the other rules, so that nothing more is sent for a peer that leaves.
        if now >= peer.forget_at:
            self._forget(peer)
            return
        if now >= peer.resolve_by:
            self.path_failed(peer.node, now)
        if peer.exchange is not None and now >= peer.exchange.deadline:
            self._continue_exchange(peer, peer.exchange, now)
        if peer.session is not None:
            self._tend(peer, now)

    def path_failed(self, peer: int, now: float) -> None:
        """Take a refusal to resolve the peer: drop its packets and emit a failure.

        Not while keys are exchanged on the path known so far: during a path reset
        the registry may be down, and the peer alive.
        """
        entry = self._peers.get(peer)
        if entry is None or not entry.is_resolving:
            return
        entry.resolve_by = NEVER
        if entry.session is None and entry.exchange is None:
            self._fail(entry, "the peer could not be resolved")
            self._forget(entry)

    def _continue_exchange(self, peer: Peer, exchange: Exchange, now: float) -> None:
        if exchange.given_up:
            self._recover(peer, now)
        # The peer stays through a pause, without a session: forgetting it at once would
        # let the next packet begin the whole series again (6.4).
        elif exchange.relay_at != NEVER:
            self._greet_further(peer, exchange, now)
        elif exchange.is_spent:
            exchange.give_up(now)
            self._fail(peer, "the peer does not answer")
        else:
            # The second attempt goes by relay as well (9.3), unpinned: three direct
            # frames bring it back.
            if exchange.sends == 1:
                self._use_relay(peer, now, probe_in=UPGRADE_INTERVAL)
            self._send_exchange(peer, now, request=True)

    def _recover(self, peer: Peer, now: float) -> None:
        """Begin anew after giving up, if the peer is still wanted (6.4)."""
        peer.exchange = None
        rested = now - peer.last_reset >= RESET_INTERVAL_AFTER_GIVING_UP
        if peer.is_in_use(now) and rested:
            self._reset_path(peer, now)
        elif peer.queue:
            self._start_exchange(peer, now, request=True)

    def _reset_path(self, peer: Peer, now: float) -> None:
        """Forget keys and path, and find both again (9.4)."""
        peer.last_reset = now
        peer.path_probes = 0
        # Such a silence may mean a new address, a new process or a dead NAT entry, and
        # we cannot tell which. So path and keys are both found again, with the relay to
        # bridge the time.
        self._drop_session(peer)
        self._fall_back(peer)
        peer.path.pin(self.relay_only)
        self._use_relay(peer, now, probe_in=UPGRADE_INTERVAL)
        self._resolve(peer, now)
        self._start_exchange(peer, now, request=True)

    def _tend(self, peer: Peer, now: float) -> None:
        """Keep a tunnel with a session usable."""
        if peer.growth is not None and now >= peer.growth.deadline:
            self._growth_timed_out(peer, peer.growth, now)
        if now >= peer.path.blackhole_at:
            self._doubt(peer, now)
        # Keepalives and probes for peers that nobody talks to would be the larger part
        # of a big host's traffic.
        if not peer.is_in_use(now):
            return
        path = peer.path
        if path.relayed and not path.pinned and now >= path.next_upgrade:
            self._probe_upgrade(peer, now)
        if now - path.last_receive < PATH_SILENCE:
            peer.path_probes = 0
        elif now >= peer.path_probe_at:
            self._probe_path(peer, now)
        # Asked again: the path probe above may have ended in a reset.
        if peer.session is not None and now - path.last_send >= KEEPALIVE_INTERVAL:
            self._transmit(peer, control.keepalive(self.node_id), now)

    def moved(self, now: float) -> None:
        """Take note that this machine has another address.

        Peers cannot reach the old one, and NATs let nothing in from the new one yet:
        tunnels in use go through the beacon until their paths are punched again.
        """
        for peer in self._peers.values():
            if peer.session is not None and not peer.path.pinned:
                self._use_relay(peer, now, probe_in=FIRST_UPGRADE)

    def _doubt(self, peer: Peer, now: float) -> None:
        """Ask a peer that reacts to nothing; then take the relay."""
        path = peer.path
        if path.asked_at:
            if self.beacon is None:
                path.absolve()
            else:
                self._leave_direct(peer, now)
            return
        # It may have nothing to say, like whoever takes datagrams. A living 1.18.0 peer
        # without anything to say is moved to the relay; one that was asked is not.
        path.asked_at = now
        self._ask(peer, now)

    def _leave_direct(self, peer: Peer, now: float) -> None:
        """Take the relay because the direct path fell silent."""
        peer.path.died(now)
        self._use_relay(peer, now, probe_in=FIRST_UPGRADE)
        # What killed the path, a NAT that forgot us or a new address of ours, made the
        # beacon's knowledge of us old, too.
        self.discover(now)
        # The peer shall answer by relay from now on, and so many frames tell it to.
        for _ in range(RELAY_OPENS):
            self._ask(peer, now)

    def _probe_path(self, peer: Peer, now: float) -> None:
        path = peer.path
        if peer.path_probes >= PATH_PROBES:
            if path.relayed or self.beacon is None:
                self._reset_path(peer, now)
                return
            # Before the keys are given up the relay has its chance.
            self._leave_direct(peer, now)
            peer.path_probes = 0
        peer.path_probes += 1
        peer.next_path_probe = now + PATH_PROBE_INTERVAL
        if path.relayed:
            # Perhaps it is the beacon that does not find us any more.
            self.discover(now)
        self._ask(peer, now)

    def _ask(self, peer: Peer, now: float) -> None:
        probe = control.ping(self.node_id, peer.node, control.PATH_PROBE)
        self._transmit(peer, probe, now)

    def _probe_upgrade(self, peer: Peer, now: float) -> None:
        """Show a relayed peer that the direct path works (9.3)."""
        path = peer.path
        # One punch per series opens our peer's NAT; the five probes then count there as
        # direct opens, three of which end the relaying (9.3).
        if path.next_probe(now):
            self._punch(peer, now)
            # A peer that was restarted has a new port, which only the registry knows.
            self._resolve(peer, now)
        if peer.session is None:
            return
        probe = control.upgrade_probe(self.node_id, peer.node)
        for endpoint in {path.address, path.candidate}:
            if endpoint is not None:
                self._transmit(peer, probe, now, to=endpoint)

    def want_large_payload(self, peer: int, now: float) -> None:
        """Find out whether the path carries more than 1152 bytes of payload."""
        entry = self._peers.get(peer)
        if entry is None or entry.session is None:
            return
        growth = entry.growth = entry.growth or Growth()
        growth.wanted = True
        self._grow(entry, growth, now)

    def _grow(self, peer: Peer, growth: Growth, now: float) -> None:
        """Take the next step: greet, or probe a size."""
        # An official peer answers the greeting like any ping and never sends one, so it
        # stays at 1152 without knowing of any of this.
        if not growth.has_greeted:
            self._greet(peer, growth, now)
        # A datagram of this size must not meet the relay, whose path is unknown.
        size = 0 if peer.path.relayed else growth.next_probe(now)
        if size:
            probe = control.ping(self.node_id, peer.node, bytes(size))
            self._transmit(peer, probe, now)
        self._schedule(peer, growth.deadline)

    def _greet(self, peer: Peer, growth: Growth, now: float) -> None:
        if growth.next_hello(now):
            hello = control.ping(self.node_id, peer.node, control.HELLO)
            self._transmit(peer, hello, now)
            self._schedule(peer, growth.deadline)

    def _growth_timed_out(self, peer: Peer, growth: Growth, now: float) -> None:
        # One lost probe ends the growth: it cannot be told from a path that drops this
        # size, and trying again costs the peer 60 KB each time.
        if growth.probing:
            growth.probe_lost()
        else:
            self._greet(peer, growth, now)

    def _hello_received(self, peer: Peer, now: float) -> None:
        growth = peer.growth = peer.growth or Growth()
        growth.is_pilotfleet = True
        self._grow(peer, growth, now)

    def _hello_or_probe_answered(self, peer: Peer, packet: Packet, now: float) -> bool:
        """Take a pong; True if it answered a greeting or a probe of ours."""
        growth = peer.growth
        # Our own pings go from port 0; those of programs have a port and must reach the
        # program, whatever their payload.
        if growth is None or packet.dst_port:
            return False
        if packet.payload == control.HELLO:
            growth.hello_answered()
            return True
        if not growth.probe_answered(len(packet.payload)):
            return False
        self._emit(PayloadGrew(peer.node, growth.size))
        self._grow(peer, growth, now)
        return True
