"""Key exchange: PILA and PILK in both directions (wire.md section 6).

PILK is only ever a request for our PILA: no session is installed from it, and a live
session is never dropped because somebody sent frames that do not open. What 1.18.0
repairs by dropping (7.3), we repair by asking for keys: a peer with other keys
answers and is installed, and forged frames cost nothing but the question.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pilotfleet.errors import Busy, DecodeError
from pilotfleet.protocol.tunnel.config import (
    DUPLICATE_EXCHANGE,
    EXCHANGE_INTERVAL,
    FAILURES_BEFORE_REQUEST,
    FIRST_UPGRADE,
    PUNCH_REPEAT,
    RELAY_COPY_DELAY,
)
from pilotfleet.protocol.tunnel.events import (
    KeyWanted,
    ReplayDetected,
    TunnelEstablished,
)
from pilotfleet.protocol.tunnel.frames import decode_key_exchange
from pilotfleet.protocol.tunnel.links import Links
from pilotfleet.protocol.tunnel.peer import NEVER, Exchange, Peer
from pilotfleet.protocol.tunnel.reception import Greeting
from pilotfleet.protocol.tunnel.session import Replayed

if TYPE_CHECKING:
    from pilotfleet.protocol.address import Endpoint
    from pilotfleet.protocol.tunnel.frames import KeyExchange
    from pilotfleet.protocol.tunnel.session import Session

__all__ = ["KeyExchanger"]

# From the specification.
_MIN_AGE: Final = 3.0
"""Seconds before frames that do not open say anything about the keys (7.3)."""
_UNHEARD: Final = 6.0
"""Seconds after which a repeated PILA is answered if nothing was opened (6.2)."""

# Ours.
_PREVIOUS_OPENS: Final = 4
"""Frames under the replaced session, and none under the new one, that show that the
new one was made from a recorded PILA."""


class KeyExchanger(Links):
    """The layer of `TunnelEndpoint` that makes sessions."""

    __slots__ = ()

    def set_peer_key(self, peer: int, public_key: bytes | None, now: float) -> None:
        """Take the registry's answer to `KeyWanted`; None means an unknown node."""
        # The key stays with the peer even if no greeting waits for it: the next PILA is
        # then verified without asking.
        known = self._peers.get(peer)
        if known is not None and public_key is not None:
            known.public_key = public_key
        strangers = self._strangers()
        lookup = strangers.finish_lookup(peer)
        if lookup is None:
            return
        if public_key is None:
            strangers.lookup_failed(peer, now)
            self.stats.exchanges_refused += len(lookup.greetings)
            return
        # All of them are tried: a forged PILA that came first must not keep out the
        # true one behind it.
        for greeting in lookup.greetings:
            if greeting.exchange.identity_key == public_key:
                self._accept(greeting.exchange, greeting.source, now)
            elif lookup.refreshed:
                self.stats.exchanges_refused += 1
            else:
                # The key may be from a cache, and the peer may have rotated it since:
                # the registry itself is asked once before the rejection (6.2 rule 5).
                self._hold(greeting, now, refresh=True)

    def _receive_authenticated(
        self, frame: bytes, source: Endpoint | None, now: float
    ) -> None:
        exchange = decode_key_exchange(frame)
        node = exchange.node
        # Zero is a node before its registration, and our own id would be a tunnel to
        # ourselves, which needs no frames (section 13).
        if node in (0, self.node_id):
            self.stats.dropped += 1
            return
        peer = self._peers.get(node)
        session = peer.session if peer is not None else None
        # The relayed copy, and the peer's answer to our answer, are equal to a
        # frame that was verified: they need neither a token nor a signature check.
        if peer is not None and session is not None:
            seen = session.proof == exchange.signature
            if seen and session.connects(self._ring.public, exchange.tunnel_key):
                self._refresh(peer, session, source, now)
                return
        # From here on a frame costs a lookup or a signature check, so it takes a token
        # first: anybody can send these without knowing a key.
        if not self._strangers().admits(node, source, now):
            self.stats.exchanges_refused += 1
            return
        # Whom we have greeted ourselves may answer.
        is_answer = peer is not None and peer.exchange is not None
        if not is_answer and not self._is_admitted(node):
            self.stats.exchanges_refused += 1
            return
        known_key = peer.public_key if peer is not None else None
        if known_key is not None and known_key == exchange.identity_key:
            self._accept(exchange, source, now)
        else:
            greeting = Greeting(exchange, source)
            self._hold(greeting, now, refresh=known_key is not None)

    def _receive_key_request(
        self, frame: bytes, source: Endpoint | None, now: float
    ) -> None:
        """Answer with the own PILA, to peers we know (6.3)."""
        node = decode_key_exchange(frame).node
        # It carries no proof. Our PILA is no secret, but it goes only to peers we know
        # and costs a token, so that forged requests bring little traffic.
        if node not in self._peers or not self._strangers().admits(node, source, now):
            self.stats.exchanges_refused += 1
            return
        self._reply(node, self._ring.announcement(), source)

    def _hold(self, greeting: Greeting, now: float, *, refresh: bool) -> None:
        if self._strangers().hold(greeting, now, refresh=refresh):
            self._emit(KeyWanted(greeting.exchange.node, refresh))

    def _accept(
        self, exchange: KeyExchange, source: Endpoint | None, now: float
    ) -> None:
        """Act on a PILA that names the key the registry has for its sender."""
        # The registry's key is the only one that counts; the caller compared it with
        # the frame's. The signature then binds node and tunnel key.
        identity_key = exchange.identity_key
        if identity_key is None or not exchange.is_signed_by(identity_key):
            self.stats.exchanges_refused += 1
            return
        known = self._peers.get(exchange.node)
        if known is not None and known.session is not None:
            session = known.session
            # The same pair of keys is the session that is there (6.2 rules 9 and 10).
            if session.connects(self._ring.public, exchange.tunnel_key):
                session.proof = exchange.signature
                self._refresh(known, session, source, now)
                return
        try:
            session = self._session_for(known, exchange.tunnel_key, now)
            peer = self._peer(exchange.node, now)
        # A public key of small order (an all-zero secret, 5.2), or no room for another
        # peer. Silence in both cases, as for all rejections.
        except (DecodeError, Busy):
            self.stats.exchanges_refused += 1
            return
        peer.public_key = identity_key
        session.proof = exchange.signature
        self._install(peer, session, source, now)

    def _session_for(
        self, peer: Peer | None, peer_public: bytes, now: float
    ) -> Session:
        previous = peer.previous if peer is not None else None
        if peer is None or previous is None:
            return self._ring.derive(peer_public, now)
        self._drop_previous(peer)
        # The keys of a moment ago are back, as after a recorded PILA had pushed the
        # live session aside. Its counter goes on, or its frames would be replays to a
        # 1.18.0 peer (5.4).
        if previous.connects(self._ring.public, peer_public):
            self._ring.renew(previous, now)
            return previous
        self._ring.retire(previous, peer.node)
        return self._ring.derive(peer_public, now)

    def _install(
        self, peer: Peer, session: Session, source: Endpoint | None, now: float
    ) -> None:
        if peer.session is not None:
            # Kept for a few seconds because a PILA carries no time: a recorded one
            # passes every check, and `_open_previous` is how we find out.
            peer.previous = peer.session
            peer.previous_until = now + self._config.previous_session
            peer.previous_opens = 0
            self._fall_back(peer)
            # Another process: it may be another program.
            peer.growth = None
        peer.session = session
        # Any accepted PILA ends our own retransmission (6.4).
        peer.exchange = None
        path = peer.path
        if source is not None:
            path.use_direct(source, now)
        else:
            path.received_by_relay(now)
            # The relayed copy often wins the race. A path that proved itself a moment
            # ago is not given up for that.
            if not path.is_confirmed(now):
                self._use_relay(peer, now, probe_in=FIRST_UPGRADE)
        self.stats.sessions += 1
        self.stats.changes += 1
        # The answer goes first: the peer needs it to open what was queued.
        self._reply(peer.node, self._ring.announcement(), source)
        self._flush(peer, now)
        rekeyed, peer.was_established = peer.was_established, True
        self._emit(
            TunnelEstablished(
                peer.node, authenticated=True, relayed=path.relayed, rekeyed=rekeyed
            )
        )
        self._schedule(peer, peer.next_deadline(now))

    def _flush(self, peer: Peer, now: float) -> None:
        packets = peer.queue or ()
        self._drop_queue(peer)
        for packet in packets:
            self._transmit(peer, packet, now)

    def _refresh(
        self, peer: Peer, session: Session, source: Endpoint | None, now: float
    ) -> None:
        """Take a PILA for the session that is there (6.2 rules 9 and 10)."""
        path = peer.path
        # A PILA carries no time: a recorded one must not move a path that works.
        if source is not None and not path.is_confirmed(now):
            path.use_direct(source, now)
        # The copy by the other path, or the peer's answer to our answer: two nodes that
        # answered those could go on for ever (6.2 rule 9).
        if now - session.installed_at < DUPLICATE_EXCHANGE:
            return
        path.last_receive = now
        peer.exchange = None
        # Nothing was ever opened: the peer may wait for a PILA of ours that was lost,
        # and releases that never send PILK cannot ask for it. At most once per 6 s, so
        # two of us cannot loop.
        unheard = not session.has_opened and now - session.greeted_at > _UNHEARD
        session.greeted_at = now
        if unheard:
            self._reply(peer.node, self._ring.announcement(), source)

    def _start_exchange(self, peer: Peer, now: float, *, request: bool = False) -> None:
        """Send the first PILA of a series, with a punch request (9.5 step 2)."""
        peer.exchange = exchange = Exchange()
        self._punch(peer, now)
        # A peer we met under this key may hold a session that we dropped. It is silent
        # on a PILA it knows, so only PILK makes it answer (6.4).
        request = request or self._ring.has_met(peer.node)
        path = peer.path
        if request or path.relayed or path.address is None or self.beacon is None:
            self._send_exchange(peer, now, request=request)
            return
        # First directly: whoever installs the session from a relayed copy keeps to the
        # relay (a 1.18.0 peer for minutes), though the direct one is a moment behind.
        exchange.sent(now)
        exchange.deadline = exchange.relay_at = now + RELAY_COPY_DELAY
        self._out.append((self._ring.announcement(), path.address))
        self._schedule(peer, exchange.deadline)

    def _greet_further(self, peer: Peer, exchange: Exchange, now: float) -> None:
        """Repeat the direct greeting, or send the relay copy that is due."""
        if exchange.repeat_to is not None:
            self._out.append((self._ring.announcement(), exchange.repeat_to))
            exchange.repeat_to = None
            exchange.deadline = max(now, exchange.relay_at)
            return
        exchange.relay_at = NEVER
        exchange.deadline = now + EXCHANGE_INTERVAL - RELAY_COPY_DELAY
        # The request as well. The direct greeting may have arrived and only its answer
        # been lost, and then the peer has nothing to say to the same greeting (6.2).
        self._offer(peer, self._ring.announcement())
        self._relay(peer.node, self._ring.request())
        self._schedule(peer, exchange.deadline)

    def _greet_punched(self, endpoint: Endpoint, now: float) -> None:
        """Use the hole that both sides make just now."""
        peer = self._punched(endpoint, now)
        if peer is None:
            return
        peer.path.candidate = endpoint
        # The first greeting came too early: it is the peer's own packet to us, sent on
        # the same command, that opens its NAT.
        exchange = peer.exchange
        if peer.session is not None or exchange is None:
            return
        self._out.append((self._ring.announcement(), endpoint))
        if exchange.relay_at != NEVER:
            exchange.repeat_to = endpoint
            exchange.deadline = min(exchange.deadline, now + PUNCH_REPEAT)
            self._schedule(peer, exchange.deadline)

    def _send_exchange(self, peer: Peer, now: float, *, request: bool) -> None:
        exchange = peer.exchange
        assert exchange is not None
        exchange.sent(now)
        self._offer(peer, self._ring.announcement())
        if request:
            # 1.18.0 is silent on a PILA whose key it holds: ask as well (6.4).
            self._offer(peer, self._ring.request())
        self._schedule(peer, exchange.deadline)

    def _offer(self, peer: Peer, frame: bytes) -> None:
        """Send a key exchange frame directly and by relay, as far as both exist."""
        # Both ways at once: which one works is not known yet, and waiting for one to
        # fail costs four seconds.
        path = peer.path
        if path.address is not None and not path.pinned:
            self._out.append((frame, path.address))
        if self.beacon is not None:
            self._relay(peer.node, frame)

    def _open_failed(
        self, peer: Peer, frame: bytes, source: Endpoint | None, now: float
    ) -> bytes | None:
        """Try the replaced session; else count, and ask for keys at the fifth."""
        session = peer.session
        assert session is not None
        packet = self._open_previous(peer, frame, now)
        if packet is not None:
            return packet
        # 1.18.0 drops the session at the fifth frame that does not open. Then five
        # forged datagrams, which need no key, cut off any two nodes; we only ask.
        session.failures += 1
        # More prefixes were retired than can be remembered, and a frame under a
        # forgotten one could be a replay (7.2). New keys are the only way on.
        if session.replay.is_exhausted:
            self._drop_session(peer)
            self._start_exchange(peer, now)
        elif (
            session.failures >= FAILURES_BEFORE_REQUEST
            and now - session.installed_at >= _MIN_AGE
        ):
            session.failures = 0
            self._request_key(peer.node, source, now)
        return None

    def _open_previous(self, peer: Peer, frame: bytes, now: float) -> bytes | None:
        previous = peer.previous
        if previous is None or now >= peer.previous_until:
            return None
        # Its own replay windows still hold, so a recording of its frames does not pass
        # for life under it.
        try:
            packet = previous.open(frame)
        except DecodeError:
            return None
        peer.previous_opens += 1
        current = peer.session
        assert current is not None
        if peer.previous_opens >= _PREVIOUS_OPENS and not current.has_opened:
            # The peer never saw the replacement: it came from a recording.
            peer.session, peer.previous = previous, current
            peer.previous_opens = 0
            previous.failures = 0
        return packet

    def _count_failure(self, peer: Peer, error: DecodeError) -> None:
        if isinstance(error, Replayed):
            self.stats.replayed += 1
            self._emit_if_room(ReplayDetected(peer.node, error.counter))
        else:
            self.stats.forged += 1

    def _request_key(self, node: int, source: Endpoint | None, now: float) -> None:
        """React to frames under a key we do not have: PILA and PILK (6.4)."""
        if self._strangers().may_request_key(node, source, now):
            self._reply(node, self._ring.announcement(), source)
            self._reply(node, self._ring.request(), source)
