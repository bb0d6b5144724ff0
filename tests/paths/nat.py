"""An internet in network namespaces: a public segment, and hosts behind real NATs.

Everything lives below one private network and mount namespace of the test process.
Nothing that runs in it can leave it, its names cannot meet those of another test
run, and the kernel takes all of it away when the processes in it are gone.

::

    203.0.113.0/24 and 2001:db8::/64 ── bridge ─┬─ rendezvous (.1)
                                                ├─ public host (.10, .11, ...)
                                                └─ router (.10, ...) ── LAN ── hosts

All addresses are made up: they belong to the ranges for documentation and for
private networks, and exist inside the namespace only.
"""

from __future__ import annotations

import ctypes
import enum
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["PORT", "Host", "Internet", "Nat", "Router", "isolate"]

PUBLIC: Final = "203.0.113.0/24"
PORT: Final = 40000
"""UDP port that daemons behind cone NATs listen on."""
NEEDED: Final = ("ip", "nft", "conntrack")
_CLONE_NEWNS: Final = 0x0002_0000
_CLONE_NEWNET: Final = 0x4000_0000
_MS_REC_PRIVATE: Final = 0x4000 | (1 << 18)
_FIRST_HOST: Final = 10


class Nat(enum.Enum):
    """How a router maps and filters UDP (RFC 4787)."""

    FULL_CONE = "full cone"
    """One mapping for all destinations; anybody may send to it."""
    RESTRICTED = "address-restricted"
    """One mapping; whoever was sent to may send back from any port."""
    PORT_RESTRICTED = "port-restricted"
    """One mapping; only what was sent to may send back. What Linux does."""
    SYMMETRIC = "symmetric"
    """Another mapping, with a random port, for each destination."""


def isolate() -> None:
    """Move this process into a network and mount namespace of its own.

    Fails, and does not skip, without root or the programs: who asked for these
    tests wants to know.
    """
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        raise RuntimeError(
            f"path tests need root and {', '.join(NEEDED)}; missing: {missing}. "
            "Run: apt-get install -y iproute2 nftables conntrack"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    # ``ip netns`` keeps names as mounts: in a tmpfs nobody else sees they vanish
    # together with this process.
    libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None)
    Path("/run/netns").mkdir(exist_ok=True)
    if libc.mount(b"netns", b"/run/netns", b"tmpfs", 0, None) != 0:
        raise OSError(ctypes.get_errno(), "cannot mount a private /run/netns")
    run("ip", "link", "set", "lo", "up")


def run(*argv: str, stdin: str | None = None) -> str:
    """Run a command that must succeed; return what it printed."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}\n{stdin or ''}")
    return done.stdout


@dataclass
class Space:
    """One network namespace."""

    name: str

    def __post_init__(self) -> None:
        run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *argv: str, stdin: str | None = None) -> str:
        """Run a command inside."""
        return run("ip", "netns", "exec", self.name, *argv, stdin=stdin)

    def sysctl(self, key: str, value: int) -> None:
        """Set a kernel parameter of this namespace."""
        self.run("sysctl", "-qw", f"{key}={value}")

    def rules(self, text: str) -> None:
        """Load nftables rules."""
        self.run("nft", "-f", "-", stdin=text)


@dataclass
class Host(Space):
    """A machine that daemons run on."""

    ip: str = ""
    device: str = "eth0"

    def move(self, ip: str, *, gateway: str | None = None) -> None:
        """Take another IPv4 address, as after a change of the Wi-Fi."""
        self.run("ip", "-4", "addr", "flush", "dev", self.device)
        self.run("ip", "addr", "add", f"{ip}/24", "dev", self.device)
        if gateway is not None:
            self.run("ip", "route", "replace", PUBLIC, "via", gateway)
        self.ip = ip


@dataclass
class Router(Space):
    """A router with a NAT. Its LAN is a /24."""

    wan: str = ""
    lan: str = ""
    kind: Nat = Nat.PORT_RESTRICTED
    hosts: list[Host] = field(default_factory=list)

    def host(self, name: str) -> Host:
        """Connect a machine to the LAN."""
        number = _FIRST_HOST + len(self.hosts)
        host = Host(name, ip=f"{self.lan}.{number}")
        port = f"lan{number}"
        _connect(host, "eth0", self, port)
        self.run("ip", "link", "set", port, "master", "lan", "up")
        host.run("ip", "addr", "add", f"{host.ip}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        # No default route: what is not of this internet fails at once, and no program
        # waits for a name server.
        host.run("ip", "route", "add", PUBLIC, "via", f"{self.lan}.1")
        self.hosts.append(host)
        if self.kind in (Nat.FULL_CONE, Nat.RESTRICTED) and len(self.hosts) == 1:
            self.rules(_cone_rules(host.ip, self.kind))
        return host

    def block(self, *addresses: str) -> None:
        """Drop all UDP from and to these public addresses."""
        listed = ", ".join(addresses)
        self.rules(
            f"add rule ip path gate ip saddr {{ {listed} }} meta l4proto udp drop\n"
            f"add rule ip path gate ip daddr {{ {listed} }} meta l4proto udp drop\n"
        )

    def unblock(self) -> None:
        """End all blocks."""
        self.rules("flush chain ip path gate\n")

    def forget_mappings(self) -> None:
        """Lose the UDP mappings, and give other ports to the next ones.

        What a NAT does that was restarted, or whose mapping timed out. TCP goes on.
        """
        self.rules(
            "flush chain ip path source\n"
            'add rule ip path source oifname "wan" meta l4proto udp'
            " masquerade to :50000-50999 random\n"
            'add rule ip path source oifname "wan" masquerade\n'
        )
        # It reports an error if there is nothing to delete.
        self.run("sh", "-c", "conntrack -D -p udp >/dev/null 2>&1 || true")

    def mapping_lifetime(self, seconds: int) -> None:
        """Let UDP mappings die after so much silence."""
        self.sysctl("net.netfilter.nf_conntrack_udp_timeout", seconds)
        self.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", seconds)


class Internet:
    """The public segment, and what is connected to it."""

    def __init__(self) -> None:
        self._numbers = 0
        self._spaces: list[Space] = []
        run("ip", "link", "add", "pub", "type", "bridge")
        run("ip", "link", "set", "pub", "up")

    def close(self) -> None:
        """Take everything away."""
        # Cables first: the kernel removes a namespace at its leisure, and the names of
        # its devices' other ends would be taken until then.
        for number in range(_FIRST_HOST, _FIRST_HOST + self._numbers):
            run("ip", "link", "del", f"pub{number}")
        for space in self._spaces:
            if isinstance(space, Router):
                for host in space.hosts:
                    run("ip", "netns", "del", host.name)
            run("ip", "netns", "del", space.name)
        run("ip", "link", "del", "pub")

    def public_host(self, name: str, ip: str = "", *, ipv4: bool = True) -> Host:
        """Connect a machine with a public IPv4 address, and an IPv6 one."""
        number = self._number()
        host = Host(name, ip=ip or f"203.0.113.{number}")
        self._attach(host, "eth0", number)
        if ipv4:
            host.run("ip", "addr", "add", f"{host.ip}/24", "dev", "eth0")
        address = f"2001:db8::{host.ip.rpartition('.')[2]}"
        host.run("ip", "addr", "add", f"{address}/64", "dev", "eth0", "nodad")
        if not ipv4:
            host.ip = address
        return host

    def router(self, name: str, kind: Nat, *, lan: str = "") -> Router:
        """Connect a router; ``lan`` is the first three numbers of its network."""
        number = self._number()
        wan = f"203.0.113.{number}"
        lan = lan or f"192.168.{number}"
        router = Router(f"nat-{name}", wan=wan, lan=lan, kind=kind)
        self._attach(router, "wan", number)
        router.run("ip", "addr", "add", f"{wan}/24", "dev", "wan")
        router.run("ip", "link", "add", "lan", "type", "bridge")
        router.run("ip", "addr", "add", f"{lan}.1/24", "dev", "lan")
        router.run("ip", "link", "set", "lan", "up")
        router.sysctl("net.ipv4.ip_forward", 1)
        router.rules(_nat_rules(kind))
        return router

    def _number(self) -> int:
        self._numbers += 1
        return _FIRST_HOST + self._numbers - 1

    def _attach(self, space: Space, device: str, number: int) -> None:
        peer = f"pub{number}"
        self._spaces.append(space)
        run(
            *("ip", "link", "add", peer, "type", "veth"),
            *("peer", device, "netns", space.name),
        )
        run("ip", "link", "set", peer, "master", "pub", "up")
        space.run("ip", "link", "set", device, "up")


def _connect(left: Space, device: str, right: Space, other: str) -> None:
    left.run(
        *("ip", "link", "add", device, "type", "veth"),
        *("peer", other, "netns", right.name),
    )


def _nat_rules(kind: Nat) -> str:
    # "random" chooses a port for each tuple anew: that is what makes it symmetric.
    # Without it Linux keeps the host's port for every destination that allows it.
    manner = "masquerade fully-random" if kind is Nat.SYMMETRIC else "masquerade"
    # Unasked packets are dropped before they make an entry of their own. They would
    # occupy the port that the host's own first packet to that peer wants.
    return f"""
table ip path {{
    chain gate {{ type filter hook prerouting priority raw; }}
    chain arrival {{ type nat hook prerouting priority dstnat; }}
    chain source {{
        type nat hook postrouting priority srcnat;
        oifname "wan" {manner}
    }}
    chain unasked {{
        type filter hook input priority filter;
        iifname "wan" ct state new drop
    }}
    chain through {{
        type filter hook forward priority filter;
        iifname "wan" ct state new ct status ! dnat drop
    }}
}}
"""


def _cone_rules(ip: str, kind: Nat) -> str:
    """Let unasked datagrams in to the host's port: all, or those of known peers."""
    if kind is Nat.FULL_CONE:
        return f'add rule ip path arrival iifname "wan" udp dport {PORT} dnat to {ip}\n'
    return f"""
add set ip path met {{ type ipv4_addr; flags dynamic, timeout; timeout 2m; }}
add rule ip path through oifname "wan" meta l4proto udp add @met {{ ip daddr }}
add rule ip path arrival iifname "wan" ip saddr @met udp dport {PORT} dnat to {ip}
"""


if __name__ == "__main__":
    # For a look around: python -m tests.paths.nat COMMAND...
    isolate()
    os.execvp(sys.argv[1], sys.argv[1:])
