"""Rows of the command table: peers, events, tasks, networks."""

from __future__ import annotations

from typing import Final

__all__ = ["ROWS"]

_NODE: Final = "<node_id|address|hostname>"
_PEER: Final = "<address|hostname>"
_BODY: Final = "registry reply"
_PAGE: Final = "[--count <n>] [--timeout <dur>]"

ROWS: Final[dict[str, tuple[str, str, str, str, str]]] = {
    "connect": (
        "talk",
        "streams:connect",
        f"{_PEER} [port] [--message <msg>] [--timeout <dur>] [--secure]",
        "Send a message or standard input and print the first answer",
        "target, port, sent, response",
    ),
    "send": (
        "talk",
        "streams:send",
        f"{_PEER} <port> --data <msg> [--timeout <dur>] [--secure]",
        "Send data to a port and print the first answer",
        "target, port, sent, response",
    ),
    "recv": (
        "talk",
        "streams:recv",
        f"<port> {_PAGE} [--secure]",
        "Take streams on a port and print what each one carried",
        "messages [{seq, port, data, bytes}], timeout (bool)",
    ),
    "dgram": (
        "talk",
        "streams:dgram",
        f"{_PEER} <port> --data <msg>",
        "Send one datagram",
        "target, port, bytes, confirmed (bool)",
    ),
    "listen": (
        "talk",
        "streams:listen",
        f"<port> {_PAGE}",
        (
            "Print the datagrams that arrive for a port; one object per line without"
            " --count"
        ),
        "messages [{src_addr, src_port, data, bytes}], timeout (bool)",
    ),
    "broadcast": (
        "talk",
        "streams:broadcast",
        "<network_id> <message> [--port <port>]",
        "Send a datagram to all members of a network (admin token)",
        "network_id, port, bytes",
    ),
    "subscribe": (
        "events",
        "events:subscribe",
        f"{_PEER} <topic> {_PAGE}",
        "Print the events of a topic at a node; one object per line without --count",
        "events [{topic, data, bytes}], timeout (bool), with a pattern lost",
    ),
    "publish": (
        "events",
        "events:publish",
        f"{_PEER} <topic> --data <message>",
        "Publish an event at a node",
        "target, topic, bytes",
    ),
    "events subscribe": (
        "events",
        "events:events_subscribe",
        (
            "--topic <pattern> [--broker <name>[,<name>…]] [--since <dur>]"
            f" [--name <fleet>] {_PAGE}"
        ),
        "Print the events of a topic pattern at the fleet's brokers",
        "events [{topic, data, bytes}], timeout (bool), lost",
    ),
    "events publish": (
        "events",
        "events:events_publish",
        "--topic <topic> --data <message> [--broker <name>] [--confirm]",
        "Publish an event at the fleet's broker",
        "target, topic, bytes; with --confirm: confirmed",
    ),
    "events status": (
        "events",
        "events:events_status",
        "[--name <fleet>]",
        "Print what the broker of the daemon's agent counted",
        (
            "subscribers, publishers, published, delivered, dropped, rate_limited,"
            " malformed, refused, logged, log_lost, forwarded"
        ),
    ),
    "task submit": (
        "tasks",
        "tasks:submit",
        (
            f"{_PEER} --task <description> [--priority <n>] [--deadline <dur>]"
            " [--wait [--timeout <dur>] [--out <path>]]"
        ),
        "Give a node a task; with --wait also wait for its result",
        (
            "target, task_id, task, status (200 or 400), message, accepted (bool);"
            " with --wait: outcome, justification, type, content, filename, size,"
            " path, written"
        ),
    ),
    "task accept": (
        "tasks",
        "tasks:accept",
        "--id <task_id>",
        "Take a task that was submitted to this node",
        "task_id, status, message",
    ),
    "task decline": (
        "tasks",
        "tasks:decline",
        "--id <task_id> --justification <reason>",
        "Refuse a task that was submitted to this node",
        "task_id, status, justification, message",
    ),
    "task execute": (
        "tasks",
        "tasks:execute",
        "",
        "Begin the oldest accepted task",
        "task_id, task_description, status, from",
    ),
    "task send-results": (
        "tasks",
        "tasks:send_results",
        "--id <task_id> (--results <text> | --file <path>)",
        "Return a task's result",
        "task_id, status, sent_to, sent_type, filename, file_size",
    ),
    "task list": (
        "tasks",
        "tasks:list_tasks",
        "[--type received|submitted] [--status <status>[,<status>]...]",
        "List submitted and received tasks",
        (
            "tasks [{task_id, description, status, status_justification, from, to,"
            " created_at, category, result_type, results, error}]"
        ),
    ),
    "task queue": (
        "tasks",
        "tasks:queue",
        "",
        "List the accepted tasks in the order of their execution",
        "queue [{task_id, description, from, created_at}], count",
    ),
    "task result": (
        "tasks",
        "tasks:result",
        "<task_id> [--out <path>]",
        "Show a task's result",
        "task_id, type, content, path, size, filename, written, hint",
    ),
    "task show": (
        "tasks",
        "taskdetails:show",
        "<task_id>",
        "Show all that this node knows of a task: times, reward, receipt",
        "task_id, submitted, received",
    ),
    "task cancel": (
        "tasks",
        "tasks:cancel",
        "<task_id>",
        "Take a submitted task back",
        "task_id, status, message",
    ),
    "polo show": (
        "tasks",
        "polo:show",
        "[<node_id|address|hostname>]",
        "Show a node's reputation, or one's own",
        "node_id, address, polo_score",
    ),
    "polo receipts": (
        "tasks",
        "polo:receipts",
        "[--limit <n>] [--cursor <c>]",
        "List the signed receipts that this node keeps, newest first",
        "receipts, sums, next_cursor",
    ),
    "polo audit": (
        "tasks",
        "polo:audit",
        "[<node_id|address|hostname>]",
        (
            "Check every receipt behind a score and add them up; of other nodes with"
            " the admin token. Exit code 1 if anything is wrong"
        ),
        (
            "node_id, polo_score, base, folded {count, sum}, receipts, sum,"
            " computed, ok (bool), wrong [{task_id, reason}]"
        ),
    ),
    "polo claim": (
        "tasks",
        "polo:claim",
        "",
        "Give the registry the receipts that this node earned and it may not know",
        "presented, counted, known, refused",
    ),
    "network list": ("network", "network:list_networks", "", "List networks", _BODY),
    "network join": (
        "network",
        "network:join",
        "<network_id> [--token TOKEN] [--node-id N]",
        "Join a network; with --node-id any node (admin token)",
        _BODY,
    ),
    "network leave": (
        "network",
        "network:leave",
        "<network_id>",
        "Leave a network",
        _BODY,
    ),
    "network members": (
        "network",
        "network:members",
        "<network_id>",
        "List the members of a network",
        _BODY,
    ),
    "network invite": (
        "network",
        "network:invite",
        f"<network_id> {_NODE}",
        "Invite a node to a network",
        _BODY,
    ),
    "network invites": (
        "network",
        "network:invites",
        "",
        "List invitations to this node",
        _BODY,
    ),
    "network accept": (
        "network",
        "network:accept",
        "<network_id>",
        "Accept an invitation",
        _BODY,
    ),
    "network reject": (
        "network",
        "network:reject",
        "<network_id>",
        "Refuse an invitation",
        _BODY,
    ),
    "network create": (
        "network",
        "network:create",
        (
            "--name <name> [--join-rule open|token|invite] [--token T] [--enterprise]"
            " [--node-id N] [--rules '<json>'] [--rules-file path]"
        ),
        "Create a network (admin token)",
        _BODY,
    ),
    "network delete": (
        "network",
        "network:delete",
        "<network_id>",
        "Delete a network (admin token)",
        _BODY,
    ),
    "network rename": (
        "network",
        "network:rename",
        "<network_id> <new_name>",
        "Rename a network (admin token)",
        _BODY,
    ),
    "network promote": (
        "network",
        "network:promote",
        f"<network_id> {_NODE}",
        "Make a member an admin (admin token)",
        _BODY,
    ),
    "network demote": (
        "network",
        "network:demote",
        f"<network_id> {_NODE}",
        "Make an admin a member (admin token)",
        _BODY,
    ),
    "network kick": (
        "network",
        "network:kick",
        f"<network_id> {_NODE}",
        "Remove a member (admin token)",
        _BODY,
    ),
    "network role": (
        "network",
        "network:role",
        f"<network_id> {_NODE}",
        "Show a member's role",
        _BODY,
    ),
    "network policy": (
        "network",
        "network:network_policy",
        (
            "<network_id> [--set key=value ...] [--max-members N] [--description S]"
            " [--allowed-ports 1,2]"
        ),
        "Show a network's policy, or change it (admin token)",
        _BODY,
    ),
    "set-webhook": (
        "admin",
        "node:set_webhook",
        "<url>",
        "Let the daemon post its events to a URL",
        "webhook, applied (bool)",
    ),
    "clear-webhook": (
        "admin",
        "node:clear_webhook",
        "",
        "Stop posting events",
        "webhook, applied (bool)",
    ),
    "managed status": (
        "admin",
        "network:managed_status",
        "[--net <id>]",
        "Show the engine of a managed network",
        "engine state",
    ),
    "managed cycle": (
        "admin",
        "network:managed_cycle",
        "--force [--net <id>]",
        "Run a cycle of a managed network now",
        "cycle result",
    ),
    "managed reconcile": (
        "admin",
        "network:managed_reconcile",
        "--net <id>",
        "Compare a managed network with the registry now",
        "network_id, peers",
    ),
    "managed score": (
        "admin",
        "network:managed_score",
        f"{_NODE} [--net <id>] [--delta <n>] [--topic <t>]",
        "Change a node's score in a network (daemons up to 1.9.1)",
        "daemon reply",
    ),
    "managed rankings": (
        "admin",
        "network:managed_rankings",
        "[--net <id>]",
        "List a network's scores (daemons up to 1.9.1)",
        "daemon reply",
    ),
    "policy get": (
        "admin",
        "policies:get",
        "--net <id>",
        "Show the policy that the daemon applies in a network",
        "network_id, engine, expr_policy",
    ),
    "policy set": (
        "admin",
        "policies:set_policy",
        "--net <id> (--file <f> | --inline <json>)",
        "Give a network a policy (admin token)",
        "network_id, applied",
    ),
    "policy validate": (
        "admin",
        "policies:validate",
        "(--file <f> | --inline <json>)",
        "Check a policy without a daemon",
        "valid, version, rules, events",
    ),
    "policy test": (
        "admin",
        "policies:test",
        "--file <path> --event '<json>'",
        "Tell what a policy says of one event",
        "directives [{type, rule, params}]",
    ),
    "member-tags get": (
        "admin",
        "policies:member_tags_get",
        "--net <id> [--node <id>]",
        "Show the tags of a network's member, or of all",
        _BODY,
    ),
    "member-tags set": (
        "admin",
        "policies:member_tags_set",
        "--net <id> --node <id> --tags tag1,tag2",
        "Set the tags of a network's member, as its admin or with the admin token",
        _BODY,
    ),
    "send-message": (
        "talk",
        "messages:send_message",
        (
            "<address|hostname> --data <text> | --data - | --data-file <path>"
            " [--type text|json|binary] [--trace] [--count <n>] [--reuse-conn]"
            " [--wait <dur>] [--timeout <dur>] [--no-resend] [--reply-to <message-id>]"
        ),
        "Send a message to a node's inbox and, with --wait, print the answer",
        (
            "target, to, type, seq, bytes, reused (bool), ack, message_id,"
            " tagged (bool), reply_to, first_contact, reply, reply_after_ms; with"
            " --count: reuse_conn (bool), results [{seq, bytes, reused, ack,"
            " message_id, tagged}]"
        ),
    ),
    "send-file": (
        "talk",
        "files:send_file",
        "<address|hostname> <filepath> [--timeout <dur>]",
        (
            "Send a file; an interrupted transfer resumes (--no-stream: in one piece,"
            " --prefer-direct: try a direct path first)"
        ),
        (
            "filename, bytes, destination, elapsed_ms, throughput_mbps, bytes_sent,"
            " bytes_resumed, sha256, transport, verified (bool); in one piece: ack"
        ),
    ),
    "inbox": (
        "talk",
        "mailbox:inbox",
        (
            "[read <id>] [--latest] [--limit <n>] [--from <peer>] [--since <dur|ts>]"
            " [--full] [--clear [--before <dur>]]"
        ),
        "List received messages, newest first; read one, or delete them",
        (
            "messages [{id, from, received_at, type, bytes, message_id, reply_to,"
            " preview, data}], total, shown, dir; with --clear: cleared, remaining;"
            " read: one message"
        ),
    ),
    "received": (
        "talk",
        "mailbox:received",
        "[--limit <n>] [--since <dur|ts>] [--clear [--before <dur>]]",
        "List received files, newest first, or delete them",
        (
            "files [{name, bytes, modified, path}], total, shown, dir; with --clear:"
            " cleared, cleared_partial, remaining"
        ),
    ),
}
"""By the command's words: the fields of ``catalogue.Spec``."""
