"""Echo round trip and goodput between two daemon processes on one host.

The round trip is measured by one client that drives both kinds of daemon. Goodput
is measured by each side's own client: the official sender and receiver can stall
for ever when the receiving program is slower than the link (wire.md 11.9), so only
their own fast client gives them a fair figure.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from typing import TYPE_CHECKING

import uvloop

from bench.report import Figure, Target, table_of
from pilotfleet.client.daemon import DaemonClient
from pilotfleet.protocol.address import Address
from tests.support.programs import data_of, world

if TYPE_CHECKING:
    from bench.options import Options
    from bench.report import Table
    from pilotfleet.client.streams import ClientStream
    from tests.support.programs import World

ECHO_PORT = 7
SINK_PORT = 5000
ROUND_TRIPS = 1_000
WARM_UP = 100
GOODPUT_BYTES = 60_000_000
MIB = 1024 * 1024
CHUNK = bytes(256 * 1024)
TIME_LIMIT_S = 120.0
KEYS = ("rtt_ms", "goodput_mb_s", "goodput_echo_mb_s", "goodput_official_peer_mb_s")
"""Of the goals, in the order of the figures."""


def measure(_: Options) -> list[Table]:
    """Return round trip and goodput, ours beside the official pair."""
    figures = _figures()
    targets = (
        Target(key, f.what, f.unit, f.pilotfleet, f.official, f.method)
        for key, f in zip(KEYS, figures, strict=True)
    )
    return [table_of("One stream between two daemons", figures, targets=tuple(targets))]


def _figures() -> list[Figure]:
    with world() as net:
        net.start_rendezvous()
        for name in ("a", "b"):
            net.start_daemon(name, "--public")
            net.start_official_daemon(f"official-{name}", "-public")
        ours = uvloop.run(_round_trip(net, "a", "b"))
        official = uvloop.run(_round_trip(net, "official-a", "official-b"))
        one_way = uvloop.run(_one_way(net, "a", "b"))
        official_one_way = _official_one_way(net)
        echoed = _echoed(net, "a", "b", official=False)
        official_echoed = _echoed(net, "official-a", "official-b", official=True)
        to_official = _echoed(net, "a", "official-b", official=False)
    size = f"{GOODPUT_BYTES / 1e6:g} MB"
    return [
        Figure(
            "echo round trip, 32 bytes, median",
            "ms",
            ours,
            official,
            f"{ROUND_TRIPS} round trips on one open stream, one client for both",
        ),
        Figure(
            "goodput, one stream, one way",
            "MB/s",
            one_way,
            official_one_way,
            f"{size}: a client's stream to a bound port; official: send-file",
        ),
        Figure(
            "goodput, one stream, echoed",
            "MB/s",
            echoed,
            official_echoed,
            f"{size}: pilotctl bench, each side its own",
        ),
        Figure(
            "goodput, one stream, echoed by an official daemon",
            "MB/s",
            to_official,
            official_echoed,
            f"{size}: our pilotctl bench from our daemon; official: the official pair",
        ),
    ]


async def _round_trip(net: World, near: str, far: str) -> float:
    async with (
        asyncio.timeout(TIME_LIMIT_S),
        await DaemonClient.connect(net.socket(near)) as client,
    ):
        stream = await client.dial(_address(net, far), ECHO_PORT, timeout=30)
        times = []
        for _ in range(WARM_UP + ROUND_TRIPS):
            start = time.perf_counter()
            await stream.write(bytes(32))
            await stream.read_exactly(32)
            times.append((time.perf_counter() - start) * 1000)
        await stream.close()
    return statistics.median(times[WARM_UP:])


async def _one_way(net: World, near: str, far: str) -> float:
    """Return megabytes per second from a local program to one at the far end."""
    async with (
        asyncio.timeout(TIME_LIMIT_S),
        await DaemonClient.connect(net.socket(near)) as client,
        await DaemonClient.connect(net.socket(far)) as server,
    ):
        listener = await server.bind(SINK_PORT)
        source = await client.dial(_address(net, far), SINK_PORT, timeout=30)
        sink = await listener.accept()
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(_write(source))
            group.create_task(_read(sink))
        elapsed = time.perf_counter() - start
        await source.close()
    return GOODPUT_BYTES / elapsed / 1e6


def _official_one_way(net: World) -> float:
    path = net.home / "sixty-megabytes"
    path.write_bytes(bytes(GOODPUT_BYTES))
    target = str(_address(net, "official-b"))
    sent = data_of(net.official_ctl("official-a", "send-file", target, str(path)))
    return GOODPUT_BYTES / (float(sent["elapsed_ms"]) / 1e3) / 1e6


def _echoed(net: World, near: str, far: str, *, official: bool) -> float:
    ctl = net.official_ctl if official else net.ctl
    size = f"{GOODPUT_BYTES / MIB:.2f}"
    result = data_of(ctl(near, "bench", str(_address(net, far)), size))
    return (
        float(result["recv_bytes"]) / (float(result["total_duration_ms"]) / 1e3) / 1e6
    )


def _address(net: World, name: str) -> Address:
    return Address.parse(json.loads(net.ctl(name, "info").stdout)["data"]["address"])


async def _write(stream: ClientStream) -> None:
    left = GOODPUT_BYTES
    while left:
        piece = CHUNK[:left]
        await stream.write(piece)
        left -= len(piece)


async def _read(stream: ClientStream) -> None:
    size = GOODPUT_BYTES
    while size > 0:
        data = await stream.read()
        if not data:
            raise EOFError(f"stream ended with {size} bytes missing")
        size -= len(data)
