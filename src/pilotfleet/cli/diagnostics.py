"""Commands that measure the way to a peer, over its echo port (cli.md 6.7)."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, Any, Final

from pilotfleet.cli.connection import Deadline
from pilotfleet.cli.gate import check_trust
from pilotfleet.cli.steps import Steps, milliseconds, variable_is_set
from pilotfleet.errors import (
    ConnectionFailed,
    DaemonError,
    DecodeError,
    InvalidArgument,
    PilotError,
    TimedOut,
)
from pilotfleet.protocol.address import Address, SocketAddress
from pilotfleet.protocol.durations import format_duration

if TYPE_CHECKING:
    from pilotfleet.cli.arguments import Arguments
    from pilotfleet.cli.connection import Stream
    from pilotfleet.cli.invocation import Context

# From the specification.
ECHO_PORT: Final = 7
PROBE_PAUSE_S: Final = 1.0
PROBE_LEAST_S: Final = 10.0
TRACE_MAGIC: Final = b"TRCE"
"""An echo server answers a probe that begins so with its own clock appended."""
TRACE_SAMPLES: Final = 3
MAX_BENCH_MB: Final = 4096

# Of our choosing.
BENCH_CHUNK: Final = 256 << 10
MAX_PROBES: Final = 100_000

_NANOSECONDS: Final = struct.Struct("!Q")


def ping(context: Context, arguments: Arguments) -> int:
    """Measure the round trip to a node, each time over a new stream."""
    context.require(arguments, 1)
    timeout = arguments.duration("timeout", 5.0)
    count = arguments.integer("count", 4, least=1)
    if count > MAX_PROBES:
        raise InvalidArgument(f"invalid integer for --count: more than {MAX_PROBES}")
    steps = Steps(context, arguments)
    context.daemon()
    steps.mark("connectDriver")
    peer = context.resolve(arguments.positional(0))
    steps.mark("parseAddrOrHostname")
    check_trust(context, arguments, peer)
    steps.mark("maybeAutoHandshake")
    if not context.json:
        context.output.text(f"PING {peer}")
    prober = _Prober(context, peer, arguments, is_traced=steps.is_on)
    budget = max(PROBE_LEAST_S, timeout / count)
    whole = Deadline(timeout)
    results: list[dict[str, Any]] = []
    is_late = False
    for seq in range(count):
        if whole.has_passed or (seq and not _pause(whole)):
            is_late = True
            break
        results.append(prober.probe(seq, budget))
        if not context.json:
            context.output.text(_probe_text(results[-1]))
    prober.close()
    if context.json:
        data: dict[str, Any] = {"target": str(peer), "to": str(peer)}
        if steps.is_on:
            data["trace"] = steps.rows
        context.output.result({**data, "results": results, "timeout": is_late})
    return 1 if results and all("error" in result for result in results) else 0


def traceroute(context: Context, arguments: Arguments) -> None:
    """Measure setting up a stream, then three round trips on it."""
    context.require(arguments, 1)
    deadline = Deadline(arguments.duration("timeout", 30.0))
    daemon = context.daemon()
    try:
        peer = Address.parse(arguments.positional(0))
    except DecodeError as error:
        given = arguments.positional(0)
        raise InvalidArgument(
            f'parse address: invalid address: "{given[:40]}"'
            " (expected N:XXXX.YYYY.YYYY)"
        ) from error
    result: dict[str, Any] = {"target": str(peer)}
    started = time.perf_counter()
    try:
        with daemon.dial(SocketAddress(peer, ECHO_PORT), deadline=deadline) as stream:
            result["setup_ms"] = _since(started)
            result["rtt_samples"] = [
                _sample(stream, index, deadline) for index in range(TRACE_SAMPLES)
            ]
    except PilotError as error:
        result.setdefault("setup_ms", _since(started))
        result["error"] = _reason(error)
    context.output.result(result, _trace_text(result))


def bench(context: Context, arguments: Arguments) -> None:
    """Send data to a node's echo port and measure how fast it comes back."""
    context.require(arguments, 1)
    size = _bench_size(arguments.positional(1, "1"))
    timeout = arguments.duration("timeout", 120.0)
    peer = context.resolve(arguments.positional(0))
    check_trust(context, arguments, peer)
    deadline = Deadline(timeout)
    with context.dial(peer, ECHO_PORT, deadline=deadline) as stream:
        data = _measure(stream, size, deadline)
    result = {"target": str(peer), **data}
    text = (
        f"sent {data['sent_bytes']} bytes in {data['send_duration_ms']} ms"
        f" ({data['send_mbps']:.1f} MiB/s), echoed {data['recv_bytes']} bytes in"
        f" {data['total_duration_ms']} ms ({data['total_mbps']:.1f} MiB/s)"
    )
    context.output.result(result, text)


class _Prober:
    """Sends probes, over one stream with ``--reuse-conn``, else one for each."""

    def __init__(
        self,
        context: Context,
        peer: Address,
        arguments: Arguments,
        *,
        is_traced: bool,
    ) -> None:
        self._context = context
        self._remote = SocketAddress(peer, ECHO_PORT)
        self._is_traced = is_traced
        self._reuses = arguments.enabled("reuse-conn") or variable_is_set(
            "PILOT_PING_REUSE_CONN"
        )
        self._stream: Stream | None = None

    def probe(self, seq: int, budget: float) -> dict[str, Any]:
        """Send one probe and return its row of the result."""
        deadline = Deadline(budget)
        payload = b"ping-%d" % seq
        reused = self._stream is not None
        started = time.perf_counter()
        try:
            if self._stream is None:
                daemon = self._context.daemon()
                self._stream = daemon.dial(self._remote, deadline=deadline)
            dialed = time.perf_counter()
            if self._is_traced:
                times = _traced_echo(self._stream, deadline)
            else:
                times = {"bytes": _echo(self._stream, payload, deadline)}
        except PilotError as error:
            # A request without reply spoils the connection, so take a new one.
            self._stream = None
            self._context.close()
            return {"seq": seq, "error": _reason(error)}
        row: dict[str, Any] = {"seq": seq, **times, "rtt_ms": _since(started)}
        if self._is_traced or not self._context.json:
            if not reused:
                row["dial_ms"] = milliseconds(dialed - started)
            row["echo_ms"] = _since(dialed)
        if reused:
            row["reused"] = True
        if not self._reuses:
            self.close()
        return row

    def close(self) -> None:
        """End the stream, if there is one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _echo(stream: Stream, payload: bytes, deadline: Deadline) -> int:
    """Send a payload, wait for as many bytes, return how many came."""
    stream.write(payload, deadline=deadline)
    received = 0
    while received < len(payload):
        data = stream.read(deadline=deadline)
        if not data:
            raise ConnectionFailed("the peer closed the stream")
        received += len(data)
    return received


def _traced_echo(stream: Stream, deadline: Deadline) -> dict[str, Any]:
    """Send a probe that asks for the peer's clock; return size and one-way times."""
    sent = time.time_ns()
    probe = TRACE_MAGIC + _NANOSECONDS.pack(sent)
    stream.write(probe, deadline=deadline)
    answer = b""
    while len(answer) < len(probe):
        data = stream.read(deadline=deadline)
        if not data:
            raise ConnectionFailed("the peer closed the stream")
        answer += data
    times: dict[str, Any] = {"bytes": len(answer)}
    if len(answer) == len(probe) + _NANOSECONDS.size:
        (there,) = _NANOSECONDS.unpack_from(answer, len(probe))
        # Meaningful as far as the two clocks agree.
        times["to_server_ms"] = milliseconds((there - sent) / 1e9)
        times["from_server_ms"] = milliseconds((time.time_ns() - there) / 1e9)
    return times


def _sample(stream: Stream, index: int, deadline: Deadline) -> dict[str, Any]:
    started = time.perf_counter()
    received = _echo(stream, b"trace-%d" % index, deadline)
    return {"rtt_ms": _since(started), "bytes": received}


def _measure(stream: Stream, size: int, deadline: Deadline) -> dict[str, Any]:
    chunk = bytes(BENCH_CHUNK)
    sent = received = 0
    started = time.perf_counter()
    send_s = 0.0
    try:
        while sent < size:
            piece = chunk[: size - sent]
            stream.write(piece, deadline=deadline)
            sent += len(piece)
            received += len(stream.read_arrived())
        send_s = time.perf_counter() - started
        while received < sent and (data := stream.read(deadline=deadline)):
            received += len(data)
    except TimedOut:
        received += len(stream.read_arrived())
    total_s = time.perf_counter() - started
    send_s = send_s or total_s
    return {
        "sent_bytes": sent,
        "recv_bytes": received,
        "send_duration_ms": round(send_s * 1000),
        "total_duration_ms": round(total_s * 1000),
        "send_mbps": sent / send_s / (1 << 20),
        "total_mbps": received / total_s / (1 << 20),
        "complete": received >= size,
    }


def _bench_size(text: str) -> int:
    try:
        megabytes = float(text)
    except ValueError:
        message = f'invalid size: "{text[:40]}" is not a number'
        raise InvalidArgument(message) from None
    if not megabytes > 0:
        raise InvalidArgument(f'size must be a positive number of MB, got "{text}"')
    if megabytes > MAX_BENCH_MB:
        raise InvalidArgument(
            f"size {text} MB exceeds maximum of {MAX_BENCH_MB} MB",
        )
    return max(1, int(megabytes * (1 << 20)))


def _pause(whole: Deadline) -> bool:
    """Wait between probes; tell whether there is time for another."""
    remaining = whole.remaining
    if remaining is not None and remaining <= PROBE_PAUSE_S:
        time.sleep(remaining)
        return False
    time.sleep(PROBE_PAUSE_S)
    return True


def _reason(error: PilotError) -> str:
    return f"dial: daemon: {error}" if isinstance(error, DaemonError) else str(error)


def _since(started: float) -> float:
    return milliseconds(time.perf_counter() - started)


def _probe_text(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"seq={row['seq']} error: {row['error']}"
    text = f"seq={row['seq']} bytes={row['bytes']}"
    text += f" time={format_duration(row['rtt_ms'] / 1000)}"
    spans = {"dial": "dial_ms", "echo": "echo_ms"}
    if "to_server_ms" in row:
        spans = {"dial": "dial_ms", "→srv": "to_server_ms", "←srv": "from_server_ms"}
    parts = [
        f"{name}={format_duration(row[key] / 1000)}"
        for name, key in spans.items()
        if key in row
    ]
    text += f"  [{' '.join(parts)}]"
    return f"{text} [reused]" if row.get("reused") else text


def _trace_text(result: dict[str, Any]) -> str:
    lines = [f"TRACEROUTE {result['target']}", f"setup: {result['setup_ms']} ms"]
    lines += [f"rtt: {row['rtt_ms']} ms" for row in result.get("rtt_samples", ())]
    if "error" in result:
        lines.append(f"error: {result['error']}")
    return "\n".join(lines)
