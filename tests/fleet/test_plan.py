"""Which programs a fleet consists of."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pilotfleet.errors import ConfigError, InvalidArgument
from pilotfleet.fleet.plan import Member, Part, Role, plan_fleet, worker_flags
from pilotfleet.fleet.spec import FleetSpec

OPENCLAW_FLAGS = (
    "--openclaw --openclaw-agent a --openclaw-model m --openclaw-config c"
    " --max-processes 4 --gateways 1 --concurrency"
)


def spec(workers: dict[str, Any] | None = None, **tables: Any) -> FleetSpec:
    work = {"exec": "cat"} if not {"call", "openclaw"} & set(workers or {}) else {}
    return msgspec.convert({"workers": work | (workers or {}), **tables}, FleetSpec)


def names(members: tuple[Member, ...]) -> list[str]:
    return [member.name for member in members]


def by_name(members: tuple[Member, ...]) -> dict[str, Member]:
    found = {member.name: member for member in members}
    assert len(found) == len(members)
    return found


def value(member: Member, flag: str) -> str:
    return member.arguments[member.arguments.index(flag) + 1]


def test_workers_are_divided_into_groups() -> None:
    plan = plan_fleet(spec({"count": 5, "per_process": 2, "tags": ["a", "b"]}))
    groups = ["group-1", "runner-1", "group-2", "runner-2", "group-3", "runner-3"]
    assert names(plan) == ["rendezvous", "hub", *groups]
    members = by_name(plan)
    assert members["group-2"].hosts == ("worker-3", "worker-4")
    assert value(members["group-2"], "--agents") == "2"
    assert value(members["group-2"], "--agent-first") == "3"
    assert value(members["runner-2"], "--ids") == "worker-[3-4]"
    assert members["group-3"].hosts == ("worker-5",)
    assert value(members["runner-3"], "--ids") == "worker-[5-5]"
    tags = " ".join(members["group-1"].arguments)
    assert "--tag a --tag b --polo-gate off --task-files off" in tags


def test_each_member_comes_after_what_it_needs() -> None:
    tree = {"fleet": {"pattern": "hierarchical"}, "hierarchy": {"cluster_size": 2}}
    for plan in (
        plan_fleet(spec({"count": 500})),
        plan_fleet(spec({"count": 9}, **tree)),
    ):
        seen: set[str | None] = {None}
        for member in plan:
            assert member.needs in seen
            seen.add(member.name)


def test_fleet_at_a_rendezvous_that_runs_has_none_of_its_own() -> None:
    plan = plan_fleet(spec(fleet={"rendezvous": "h:9000", "name": "red"}))
    assert names(plan) == ["hub", "group-1", "runner-1"]
    assert plan[0].needs is None
    assert plan[0].hosts == ("red-hub",)
    assert plan[1].hosts == ("red-worker-1",)


@pytest.mark.parametrize(
    ("fleet", "flags"),
    [
        ({}, "--polo-gate off --task-files off"),
        ({"polo_gate": True}, "--polo-gate on --task-files off"),
        ({"polo": False}, "--polo-gate off --polo off --task-files off"),
    ],
)
def test_every_daemon_is_told_what_polo_means(
    fleet: dict[str, Any], flags: str
) -> None:
    for member in plan_fleet(spec(fleet={"pattern": "hierarchical", **fleet})):
        if member.program == "pilot-daemon":
            assert flags in " ".join(member.arguments)


def test_hierarchical_fleet_has_a_sub_orchestrator_for_each_cluster() -> None:
    plan = plan_fleet(
        spec(
            {"count": 5, "per_process": 1, "tags": ["w"]},
            fleet={"pattern": "hierarchical", "name": "red"},
            hierarchy={"cluster_size": 2},
        )
    )
    members = by_name(plan)
    groups = [member for member in plan if member.role is Role.GROUP]
    assert [len(group.hosts) for group in groups] == [2, 2, 1]
    assert "--tag w --tag c3" in " ".join(members["group-3"].arguments)
    assert members["sub-3"].hosts == ("red-sub-3",)
    assert value(members["sub-3"], "--hostname") == "red-sub-3"
    assert value(members["sub-3"], "--tag") == "fleet-sub"
    runner = members["subrunner-3"]
    assert runner.program == "openclaw-worker"
    assert runner.needs == "sub-3"
    assert value(runner, "--cluster") == "c3"
    assert value(runner, "--tree") == "red-hub"


def test_more_levels_are_made_where_an_orchestrator_would_have_too_many() -> None:
    plan = plan_fleet(
        spec(
            {"count": 6},
            fleet={"pattern": "hierarchical"},
            hierarchy={"cluster_size": 2, "fanout": 2},
        )
    )
    members = by_name(plan)
    assert [m.name for m in plan if m.role is Role.SUB] == [
        *("sub2-1", "sub2-2"),
        *("sub-1", "sub-2", "sub-3"),
    ]
    assert value(members["sub-3"], "--tag") == "c2-2"
    assert "subrunner2-2" in members


def test_parts_share_whole_groups_and_the_first_has_what_there_is_once() -> None:
    fleet = spec({"count": 10, "per_process": 2}, fleet={"listen": "10.0.0.1"})
    parts = [names(plan_fleet(fleet, Part(index, 2))) for index in (1, 2)]
    odd = [f"{kind}-{k}" for k in (1, 3, 5) for kind in ("group", "runner")]
    even = [f"{kind}-{k}" for k in (2, 4) for kind in ("group", "runner")]
    assert parts == [["rendezvous", "hub", *odd], even]
    assert sorted(parts[0] + parts[1]) == sorted(names(plan_fleet(fleet)))


def test_more_workers_leave_every_group_where_it_is() -> None:
    few = spec({"count": 7, "per_process": 2}, fleet={"listen": "10.0.0.1"})
    many = few.with_count(12)
    for part in (Part(1, 3), Part(2, 3), Part(3, 3)):
        before, after = by_name(plan_fleet(few, part)), by_name(plan_fleet(many, part))
        assert before.keys() <= after.keys()
        changed = [n for n in before if not before[n].is_same_as(after[n])]
        assert changed == (["group-4", "runner-4"] if "group-4" in before else [])


def test_parts_must_know_where_the_rendezvous_is() -> None:
    with pytest.raises(ConfigError, match=r"fleet\.listen: the parts") as caught:
        plan_fleet(spec(), Part(1, 2))
    assert "[fleet] listen" in str(caught.value.hint)
    assert plan_fleet(spec(), Part(1, 1)) == plan_fleet(spec())
    assert plan_fleet(spec(fleet={"rendezvous": "h:1"}), Part(2, 2)) == ()


def test_part_is_read() -> None:
    assert Part.parse("2/3") == Part(2, 3)
    assert str(Part(2, 3)) == "2/3"
    for text in ("", "2", "2/", "0/3", "4/3", "1/1001", "-1/2", "1/2/3", "a/b"):
        with pytest.raises(InvalidArgument, match="part"):
            Part.parse(text)


def test_stagger_is_shared_by_groups_that_start_one_after_the_other() -> None:
    one = plan_fleet(spec({"count": 4}, fleet={"stagger": "30s"}))
    assert value(by_name(one)["group-1"], "--stagger") == "30s"
    four = plan_fleet(
        spec({"count": 40, "per_process": 1}, fleet={"stagger": "30s"}), cpus=2
    )
    assert value(by_name(four)["group-1"], "--stagger") == "3s"


def test_groups_share_the_processors() -> None:
    plan = by_name(plan_fleet(spec({"count": 4, "per_process": 1}), cpus=2))
    assert value(plan["runner-1"], "--max-processes") == "4"
    plan = by_name(plan_fleet(spec({"count": 100, "per_process": 1}), cpus=2))
    assert value(plan["runner-1"], "--max-processes") == "2"


@pytest.mark.parametrize(
    ("workers", "table", "flags"),
    [
        ({"exec": "sh -c 'x'"}, None, "--exec sh -c 'x' --concurrency 1"),
        ({"call": "m:f", "concurrency": 3}, None, "--call m:f --concurrency 3"),
        ({"openclaw": True}, None, "--openclaw --concurrency"),
        (
            {"openclaw": True},
            {"agent": "a", "model": "m", "config": "c", "max_concurrent": 4},
            OPENCLAW_FLAGS,
        ),
        (
            {"openclaw": True},
            {"gateway": "http://h:1", "token_file": "t"},
            "--openclaw --gateway http://h:1 --gateway-token-file t --concurrency",
        ),
        ({"openclaw": True}, {"one_shot": True}, "--openclaw --one-shot --concur"),
    ],
)
def test_worker_programs_are_told_how_tasks_are_done(
    workers: dict[str, Any], table: dict[str, Any] | None, flags: str
) -> None:
    made = spec(workers, **({"openclaw": table} if table else {}))
    assert " ".join(worker_flags(made)).startswith(flags)
    assert " ".join(worker_flags(made)).endswith("--timeout 300s --health-interval 10s")


def test_a_fleet_with_a_monitor_has_one_beside_its_hub() -> None:
    table = {"http": "127.0.0.1:0", "alerts": "a.toml", "token_file": "t"}
    plan = plan_fleet(spec({"count": 2}, monitor=table))
    assert names(plan) == ["rendezvous", "hub", "monitor", "group-1", "runner-1"]
    monitor = plan[2]
    assert monitor.role is Role.MONITOR
    assert monitor.program == "pilot-monitor"
    assert monitor.needs == "hub"
    assert value(monitor, "--broker").split(",")[0] == "fleet-hub"
    assert value(monitor, "--alerts") == "a.toml"
    assert value(monitor, "--http-token-file") == "t"
    parts = plan_fleet(
        spec({"count": 400}, fleet={"listen": "10.0.0.1"}, monitor={}), Part(2, 2)
    )
    assert "monitor" not in names(parts)


@pytest.mark.parametrize(
    ("events", "count", "expected"),
    [
        (None, 5, "fleet-hub,worker-1"),
        ({}, 5, "fleet-hub,worker-1"),
        ({"standby": 0}, 5, "fleet-hub"),
        ({"standby": 2}, 5, "fleet-hub,worker-1,worker-3"),
        ({"standby": 3}, 5, "fleet-hub,worker-1,worker-3,worker-5"),
        # Two brokers of one program would go away together.
        ({"standby": 3}, 4, "fleet-hub,worker-1,worker-3"),
    ],
)
def test_first_workers_of_groups_stand_by_for_the_hubs_broker(
    events: dict[str, Any] | None, count: int, expected: str
) -> None:
    tables: dict[str, Any] = {"monitor": {}}
    if events is not None:
        tables["events"] = events
    made = spec({"count": count, "per_process": 2}, **tables)
    plan = plan_fleet(made)
    told = [member for member in plan if "--broker" in member.arguments]
    # All who publish or listen know the same brokers in the same order.
    assert {value(member, "--broker") for member in told} == {expected}
    assert names(tuple(told)) == [
        *("hub", "monitor"),
        *(name for name in names(plan) if name.startswith("group-")),
    ]
    assert not any("--roll-up" in member.arguments for member in plan)


def test_machines_of_a_fleet_agree_on_its_brokers() -> None:
    made = spec({"count": 900}, fleet={"listen": "10.0.0.1"}, events={"standby": 3})
    told = {
        value(member, "--broker")
        for index in (1, 2, 3)
        for member in plan_fleet(made, Part(index, 3))
        if "--broker" in member.arguments
    }
    assert told == {"fleet-hub,worker-1,worker-201,worker-401"}


def test_clusters_publish_to_their_own_broker_which_rolls_up_to_the_hub() -> None:
    made = spec(
        {"count": 4},
        fleet={"pattern": "hierarchical"},
        hierarchy={"cluster_size": 2},
        events={"standby": 3},
    )
    members = by_name(plan_fleet(made))
    assert value(members["hub"], "--broker") == "fleet-hub"
    assert "--roll-up" not in members["hub"].arguments
    for number in (1, 2):
        for name in (f"group-{number}", f"sub-{number}"):
            # The hub is what stands by, and there are no other stand-bys.
            expected = f"fleet-sub-{number},fleet-hub"
            assert value(members[name], "--broker") == expected
            assert value(members[name], "--roll-up") == "fleet-hub"
            assert value(members[name], "--roll-up-topic") == "*"
