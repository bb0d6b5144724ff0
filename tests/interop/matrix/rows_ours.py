"""Rows: what only we have, or have kept from older releases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.interop.matrix.columns import Column, Maker
from tests.interop.matrix.rows import row

if TYPE_CHECKING:
    from tests.interop.matrix.worlds import Pair

NO_TASK_CLIENT: Final = "the official 1.18 client has no task commands"
NO_TASKS: Final = "the official 1.18 programs have no tasks"


@row(
    "task submit to a daemon without tasks",
    compared=False,
    not_applicable={Column.OUR_DAEMON: NO_TASK_CLIENT, Column.OFFICIAL: NO_TASKS},
)
def _submit(pair: Pair) -> None:
    if pair.near.seat.client is not Maker.OURS:
        return
    for form in (("task",), ("extras", "task")):
        refused = pair.near.do(*form, "submit", pair.far.id, "--task", "count words")
        pair.expect("code", refused.code, "not_implemented")


@row(
    "task accept without arguments",
    local=True,
    compared=False,
    not_applicable={Column.OUR_DAEMON: NO_TASK_CLIENT, Column.OFFICIAL: NO_TASKS},
)
def _accept(pair: Pair) -> None:
    refused = pair.near.do("task", "accept")
    pair.expect("code", refused.code, "invalid_argument")


@row(
    "find-agents by tag",
    compared=False,
    fresh=True,
    not_applicable={
        Column.OUR_DAEMON: "the official client has no find-agents",
        Column.OFFICIAL: "the official programs have no find-agents",
    },
)
def _find_agents(pair: Pair) -> None:
    pair.far.prepare("extras", "set-tags", "text")
    ours = pair.near if pair.near.seat.client is Maker.OURS else pair.far
    if ours.seat.daemon is Maker.OURS:
        found = ours.prepare("find-agents", "--tag", "text")
        hostnames = [agent["hostname"] for agent in found["agents"]]
        pair.expect("found", hostnames, ["far"])
    else:
        for flags in ((), ("--watch",)):
            refused = ours.do("find-agents", "--tag", "text", *flags)
            pair.expect("code", refused.code, "not_implemented")


@row(
    "commands of the vendor's cloud are left out",
    local=True,
    compared=False,
    not_applicable={
        Column.OUR_DAEMON: "they are commands of the client",
        Column.OFFICIAL: "the official client has them",
    },
)
def _left_out(pair: Pair) -> None:
    for command in ("appstore", "update", "updates", "skills", "review", "recovery"):
        refused = pair.near.do(command)
        pair.expect(command, refused.code, "not_supported")
