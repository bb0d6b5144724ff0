"""Rows of the command table: the own node, its daemon and its trust."""

from __future__ import annotations

from typing import Final

__all__ = ["ROWS"]

_NODE: Final = "<node_id|address|hostname>"
_PEER: Final = "<address|hostname>"
_BODY: Final = "registry reply"

ROWS: Final[dict[str, tuple[str, str, str, str, str]]] = {
    "quickstart": (
        "start",
        "reference:quickstart",
        "",
        "Print the first steps",
        "plain text",
    ),
    "init": (
        "start",
        "config:init",
        "[--registry <addr>] [--beacon <addr>] [--hostname <name>] [--socket <path>]",
        "Write config.json; without addresses, for a rendezvous on this machine",
        "config_path, registry, beacon, socket, hostname",
    ),
    "config": (
        "start",
        "config:config",
        "[--set key=value]",
        "Show or set configuration values",
        "current configuration; with --set: key, value",
    ),
    "context": (
        "start",
        "reference:context",
        "[command]",
        "Describe all commands, or one, for programs",
        "version, commands, extras, error_codes, environment",
    ),
    "version": ("start", "reference:version", "", "Print the version", "plain text"),
    "daemon start": (
        "daemon",
        "lifecycle:start",
        (
            "[--registry <addr>] [--beacon <addr>] [--listen <addr>]"
            " [--identity <path>] [--email <addr>] [--hostname <name>] [--agents <n>]"
            " [--agent-prefix <p>] [--tag <t>] [--fleet <file>]"
            " [--registry-tls] [--registry-trust pinned|system]"
            " [--registry-fingerprint <hex>]"
            " [--log-level <level>] [--public]"
            " [--trust-auto-approve] [--webhook <url>] [--networks <ids>]"
            " [--foreground] [--socket <path>] [--wait <dur>]"
        ),
        "Start the daemon in the background and wait until it is registered",
        "pid, node_id, address, hostname, socket, log_file",
    ),
    "daemon stop": (
        "daemon",
        "lifecycle:stop",
        "",
        "Stop the running daemon",
        "pid, forced (bool)",
    ),
    "daemon status": (
        "daemon",
        "lifecycle:status",
        "[--check]",
        "Tell whether the daemon runs; --check: silent, exit code 0 or 1",
        (
            "running, responsive, pid, pid_file, socket, node_id, address, hostname,"
            " uptime_secs, peers, connections"
        ),
    ),
    "agents": (
        "fleet",
        "agents:agents",
        "",
        "List the agents that this daemon hosts; choose one with --agent <name>",
        "agents [{name, node_id, address, hostname, tags, state}], total",
    ),
    "fleet": (
        "fleet",
        "",
        "run|up|status|top|submit|scale|rollout|logs|down|list|systemd ...",
        "Run and watch a fleet",
        "see: pilotctl fleet --help",
    ),
    "skill install": (
        "fleet",
        "skill:install",
        "[--dir <path>] [--force]",
        "Teach the OpenClaw agents of this user to use pilotctl",
        "name, path, replaced (bool)",
    ),
    "skill uninstall": (
        "fleet",
        "skill:uninstall",
        "[--dir <path>] [--force]",
        "Remove the skill again",
        "name, path",
    ),
    "skill path": (
        "fleet",
        "skill:path",
        "[--dir <path>]",
        "Say where the skill is, or would be",
        "name, path, installed (bool), current (bool)",
    ),
    "skill show": ("fleet", "skill:show", "", "Print the skill", "name, text"),
    "find-agents": (
        "find",
        "agents:find_agents",
        (
            "--tag <t> [--tag <u>] [--any] [--hostname <prefix>] [--online]"
            " [--limit <n>] [--cursor <c>] [--cached]"
            " | --watch [--count <n>] [--timeout <dur>]"
        ),
        (
            "Find agents that have all tags, or any of them; with --watch also see"
            " them come, change and go, one object per line"
        ),
        (
            "agents [{node_id, address, hostname, tags, polo, online, last_seen}],"
            " total, next_cursor; with --cached maybe age_s; with --watch lines of"
            " change (added, changed, removed), agent"
        ),
    ),
    "find": (
        "find",
        "node:find",
        "<hostname>",
        "Find a node by its hostname",
        "hostname, node_id, address, public",
    ),
    "lookup": ("find", "node:lookup", _NODE, "Show a node's registry record", _BODY),
    "set-hostname": (
        "find",
        "node:set_hostname",
        "<hostname>",
        "Name this node",
        "hostname, node_id",
    ),
    "clear-hostname": (
        "find",
        "node:clear_hostname",
        "",
        "Take this node's name away",
        "hostname",
    ),
    "set-tags": (
        "find",
        "node:set_tags",
        "<tag1> [tag2] ...",
        "Set the tags under which this node is found (at most 3)",
        "node_id, tags",
    ),
    "clear-tags": ("find", "node:clear_tags", "", "Remove this node's tags", "tags"),
    "register": (
        "identity",
        "node:register",
        "[listen_addr]",
        "Register with the registry; the daemon does so by itself",
        _BODY,
    ),
    "deregister": (
        "identity",
        "node:deregister",
        "",
        "Remove this node from the registry",
        _BODY,
    ),
    "rotate-key": (
        "identity",
        "node:rotate_key",
        "",
        "Give this node a new identity key",
        "node_id, address, public_key",
    ),
    "set-public": (
        "identity",
        "node:set_public",
        "",
        "Let everybody find and reach this node",
        _BODY,
    ),
    "set-private": (
        "identity",
        "node:set_private",
        "",
        "Let only trusted peers find and reach this node",
        _BODY,
    ),
    "enable-tasks": (
        "identity",
        "node:enable_tasks",
        "",
        "Advertise that this node takes tasks",
        "node_id, task_exec",
    ),
    "disable-tasks": (
        "identity",
        "node:disable_tasks",
        "",
        "Advertise that this node takes no tasks",
        "node_id, task_exec",
    ),
    "my-polo": (
        "identity",
        "node:my_polo",
        "",
        "Show this node's reputation",
        "polo_score",
    ),
    "handshake": (
        "trust",
        "trust:handshake",
        f"{_NODE} [justification]",
        "Ask a node for trust",
        "status, node_id",
    ),
    "approve": (
        "trust",
        "trust:approve",
        _NODE,
        "Accept a request for trust",
        "status, node_id",
    ),
    "reject": (
        "trust",
        "trust:reject",
        f"{_NODE} [reason]",
        "Refuse a request for trust",
        "status, node_id",
    ),
    "untrust": ("trust", "trust:untrust", _NODE, "Take trust back", "node_id"),
    "pending": (
        "trust",
        "trust:pending",
        "",
        "List requests for trust that wait for an answer",
        "pending [{node_id, public_key, justification, received_at}]",
    ),
    "trust": (
        "trust",
        "trust:trust",
        "[--limit <n>] [--search <substr>]",
        "List the trusted nodes, newest first",
        "trusted [{node_id, public_key, approved_at, mutual, network}], total",
    ),
    "trusted list": (
        "trust",
        "trust:trusted_list",
        "",
        "List agents that are trusted without being asked (none)",
        "trusted, count",
    ),
    "prefer-direct": (
        "trust",
        "node:prefer_direct",
        _NODE,
        "Let the next connection to a peer try a direct tunnel again",
        "node_id, had_tunnel, was_relay_active, was_relay_pinned, pila_pushed",
    ),
    "info": (
        "info",
        "node:info",
        "",
        "Show the daemon's state",
        "node_id, address, hostname, uptime_secs, peers, connections, ...",
    ),
    "health": (
        "info",
        "node:health",
        "",
        "Show the daemon's health",
        "status, uptime_seconds, connections, peers, bytes_sent, bytes_recv",
    ),
    "peers": (
        "info",
        "node:peers",
        "[--search <query>] [--all] [--limit <n>]",
        "List the nodes that the daemon has tunnels to",
        "peers [{node_id, encrypted, authenticated, relay}], total, encrypted",
    ),
    "connections": (
        "info",
        "node:connections",
        "",
        "List the daemon's streams",
        "connections, total",
    ),
    "disconnect": (
        "info",
        "node:disconnect",
        "<conn_id>",
        "Close one of the daemon's streams",
        "conn_id",
    ),
    "ping": (
        "info",
        "diagnostics:ping",
        f"{_PEER} [--count <n>] [--timeout <dur>] [--trace]",
        "Measure the round trip to a node",
        "target, to, results [{seq, bytes, rtt_ms, error}], timeout (bool)",
    ),
    "traceroute": (
        "info",
        "diagnostics:traceroute",
        "<address> [--timeout <dur>]",
        "Measure setting up a stream, then three round trips",
        "target, setup_ms, rtt_samples [{rtt_ms, bytes}]",
    ),
    "bench": (
        "info",
        "diagnostics:bench",
        f"{_PEER} [size_mb] [--timeout <dur>]",
        "Measure the throughput to a node's echo port and back",
        (
            "target, sent_bytes, recv_bytes, send_duration_ms, total_duration_ms,"
            " send_mbps, total_mbps, complete (bool)"
        ),
    ),
    "sign-request": (
        "sign",
        "signing:sign_request",
        "--audience <a> (--body-file <f> | --body-hash <64hex> | --body '<string>')",
        "Prove that a request comes from this node",
        "envelope, signature, address",
    ),
    "verify-request": (
        "sign",
        "signing:verify_request",
        "--envelope '<canonical>' --signature '<b64>' [--standing] [--max-skew <secs>]",
        "Check another node's proof; exit code 1 when it is not valid",
        "valid, node_id, address, verified_via, trusted",
    ),
}
"""By the command's words: the fields of ``catalogue.Spec``."""
