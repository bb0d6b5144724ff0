"""Fields that vary from run to run, and the deliberate differences with reasons.

Everything that is not listed here must be equal to the official answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.interop.matrix.columns import Maker

if TYPE_CHECKING:
    from tests.interop.matrix.columns import Direction
    from tests.interop.matrix.shapes import Difference

__all__ = ["DELIBERATE", "Deliberate", "is_allowed", "varies"]

_VARYING: Final = re.compile(
    r"(^|\.)(public_key|signature|envelope|message_id|reply_to|event_id|timestamp"
    r"|received_at|approved_at|modified|created|created_at|joined_at|last_seen|last_seen_unix"
    r"|uptime_secs|uptime_seconds|[a-z_]*_?ms|throughput_mbps|send_mbps|total_mbps"
    r"|endpoint|real_addr|pid|src_port|remote_port|local_port|conn_id)(\[\])?$"
)
"""Fields with times, rates, keys and numbers drawn at random."""

_TRAFFIC: Final = re.compile(
    r"\.(bytes_sent|bytes_recv|pkts_sent|pkts_recv|tunnel_encryption_success"
    r"|tunnel_encryption_failure|peer_list|conn_list|connections|peers"
    r"|encrypted_peers|authenticated_peers|encrypted|total)$"
)
"""Counters that depend on what else the daemon did; only in reports about it."""

_REPORTS: Final = ("info", "health", "peers", "connections", "daemon status")


def varies(label: str, path: str) -> bool:
    """Tell whether the value at ``path`` is different on every run."""
    if _VARYING.search(path):
        return True
    command = label.partition(": ")[2].removeprefix("sdk ")
    return command.startswith(_REPORTS) and bool(_TRAFFIC.search(path))


@dataclass(frozen=True, slots=True)
class Deliberate:
    """A difference that we want, where it may occur, and why."""

    command: str
    """Pattern of the step's label without the node's name."""
    path: str
    """Pattern of the field."""
    problem: str
    """Pattern of the difference."""
    maker_of: str
    """Whose maker must be ours: ``daemon``, ``client`` or ``any`` of the direction."""
    reason: str


DELIBERATE: Final = (
    Deliberate(
        "(sdk )?info",
        r"(stdout\.data|result)"
        r"\.(broker|implementation|public|tags|agent|agents|host_tasks)",
        "not in the official answer",
        "daemon",
        "additional Info keys of ours; readers ignore what they do not know",
    ),
    Deliberate(
        "(sdk )?info",
        r"(stdout\.data|result)\.ports",
        r"\d+, not 4",
        "daemon",
        "our daemon serves one port more, 1003 for tasks",
    ),
    Deliberate(
        "daemon start",
        r"stdout\.data\.(transport|transport_auto)",
        "missing",
        "any",
        "there is no choice of transport: ours has UDP only",
    ),
    Deliberate(
        "daemon start|daemon status of a started one|info",
        r"stdout\.data\.hostname",
        "'near', not ''",
        "daemon",
        "started without a name, our daemon tells the one that the registry has kept",
    ),
    Deliberate(
        "(--)?version",
        "stdout",
        r"'\d+\.\d+\.\d+\\n', not '1\.18\.0\\n'",
        "client",
        "each program tells its own version",
    ),
    Deliberate(
        "trusted list",
        r"stdout\.data\.(count|trusted)",
        r"0( entries)?, not \d+",
        "client",
        "the built-in list of the vendor's service agents is empty here (trust.md 7)",
    ),
    Deliberate(
        "(listen|recv|subscribe|peers) .*",
        r"stdout\.data\.(messages|events|peers)",
        r"(\[\], not None|list, not null)",
        "client",
        "a list that stayed empty is [], not null (cli.md 2)",
    ),
    Deliberate(
        ".*",
        r"stderr\.message",
        r".*, not .*(strconv\.|: time: ).*",
        "client",
        "behind a bad number or duration the official text shows Go's own words",
    ),
    Deliberate(
        "connect|send|send 1|recv",
        r"stderr\.message",
        r"'usage: (.*) \[--secure\]', not 'usage: \1'",
        "client",
        "ours also speaks the secure channel: the usage names its flag",
    ),
    Deliberate(
        "context nothing-like-that",
        r"stderr\.message",
        r"'unknown command .* valid: .*",
        "client",
        "the text lists all commands, and ours has more",
    ),
    Deliberate(
        "send-message .*--wait .*",
        r"stderr\.hint",
        r".*acknowledged the request but no reply arrived.*",
        "client",
        "the official hint guesses the cause from the number of connections it saw",
    ),
    Deliberate(
        "ping 1:0001.0000.0002 .*",
        r"(exit|stdout\.data\.(timeout|results\[\]\.(error|bytes|rtt_ms)))",
        ".*",
        "any",
        "our echo answers members of a shared network, the official one hangs up on"
        " them; of a hung-up stream our client says so instead of `i/o timeout`",
    ),
    Deliberate(
        ".* --timeout (abc|soon).*",
        r"stderr\.hint",
        "not in the official answer",
        "client",
        "our hint tells the form of a duration",
    ),
    Deliberate(
        "inbox.*",
        r"stdout\.data\.messages\[\]\.data",
        "not in the official answer",
        "client",
        "`data` beside `preview`, for readers of releases before 1.18 (cli.md 7.1)",
    ),
    Deliberate(
        "extras gateway list",
        r"stdout\.data\.note",
        ".*, not 'mappings live inside the pilot-gateway process.*",
        "client",
        "our gateway can be asked for its mappings, so the advice is another",
    ),
    Deliberate(
        "context ping",
        "errors",
        "not in the official answer",
        "client",
        "our catalogue also names each command's errors",
    ),
)


def is_allowed(label: str, difference: Difference, direction: Direction) -> bool:
    """Tell whether a difference is one that we want."""
    command = label.partition(": ")[2] or label
    return any(
        re.fullmatch(entry.command, command)
        and re.fullmatch(entry.path, difference.path)
        and re.fullmatch(entry.problem, difference.problem)
        and _concerns(entry.maker_of, direction)
        for entry in DELIBERATE
    )


def _concerns(maker_of: str, direction: Direction) -> bool:
    seats = (direction.near, direction.far)
    makers = {
        "daemon": {seat.daemon for seat in seats},
        "client": {seat.client for seat in seats},
    }
    makers["any"] = makers["daemon"] | makers["client"]
    return Maker.OURS in makers[maker_of]
