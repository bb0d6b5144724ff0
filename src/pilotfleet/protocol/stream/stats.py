"""What ``pilotctl connections`` shows of a stream (ipc.md section 10.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.stream.sender import Recovery

if TYPE_CHECKING:
    from pilotfleet.protocol.stream.connection import StreamConnection

__all__ = ["conn_list_row"]


def conn_list_row(connection: StreamConnection) -> dict[str, Any]:
    """Return one row of ``conn_list``."""
    sender, receiver = connection.sender, connection.receiver
    outlet = connection.outlet
    return {
        "id": connection.id,
        "local_port": connection.local_port,
        "remote_addr": str(connection.remote.address),
        "remote_port": connection.remote.port,
        "state": connection.state.value,
        "cong_win": sender.congestion.window,
        "ssthresh": sender.congestion.threshold,
        "in_flight": sender.in_flight,
        "srtt_ms": round(sender.rtt.srtt * 1000, 3),
        "rttvar_ms": round(sender.rtt.rttvar * 1000, 3),
        "unacked": len(sender.segments),
        "ooo_buf": receiver.held_count,
        "peer_recv_win": sender.peer_window,
        "recv_win": receiver.window(),
        "in_recovery": sender.recovery is not Recovery.NONE,
        "bytes_sent": outlet.bytes_sent,
        "bytes_recv": connection.bytes_received,
        "segs_sent": outlet.segments_sent,
        "segs_recv": connection.segments_received,
        "retransmits": sender.retransmits,
        "fast_retx": sender.fast_retransmits,
        "sack_recv": connection.sack_received,
        "sack_sent": outlet.sack_sent,
        "dup_acks": sender.duplicates,
    }
