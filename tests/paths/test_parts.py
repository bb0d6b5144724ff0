"""One fleet on several machines: each runs a part, against one rendezvous."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tests.paths.machines import Machines, agents_of, ended, machines

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.paths.machines import Machine

pytestmark = [pytest.mark.namespaces, pytest.mark.timeout(240)]

TOKEN = "the-token-of-all-parts"
WORKERS = 30
PER_GROUP = 10
CLUSTER = 5


@pytest.fixture
def net() -> Iterator[Machines]:
    with machines() as made:
        yield made


def write_fleet(net: Machines, pattern: str) -> None:
    """Write the specification of 30 workers, on each machine a third of them."""
    work = net.folder / "work.sh"
    work.write_text('read -r text\nsleep 0.2\necho "done: $text"\n')
    net.write_spec(
        pattern,
        f'[workers]\nexec = "sh {work}"\ncount = {WORKERS}\n'
        f"per_process = {PER_GROUP}\n[hierarchy]\ncluster_size = {CLUSTER}\n",
    )


def give_token(net: Machines) -> None:
    for machine in net:
        machine.env["PILOT_JOIN_TOKEN"] = TOKEN


def members_of(machine: Machine) -> set[str]:
    return {row["name"] for row in machine.status()["members"]}


def machine_of(agent: str, *, group: int) -> int:
    """Return the number of the machine that a worker is on."""
    return (int(agent.removeprefix("worker-")) - 1) // group % 3 + 1


def begin(
    net: Machines, name: str, count: int, *, done: int
) -> tuple[subprocess.Popen[str], Path]:
    """Submit a batch and return as soon as so many of its tasks are done."""
    before = net.first.status()["tasks"]["succeeded"]
    tasks, results = net.write_tasks(name, count)
    submit = net.first.start("submit", "--tasks", tasks, "--results", results, "--json")
    status = net.first.wait_until(lambda s: s["tasks"]["succeeded"] >= before + done)
    assert status["tasks"]["open"] > 0
    return submit, results


def finish(submit: subprocess.Popen[str], results: Path, count: int) -> Counter[str]:
    """Return who did how many tasks of a batch, all of which must have succeeded."""
    done = ended(submit)
    assert done.returncode == 0, done.stderr + done.stdout
    agents = agents_of(results)
    assert agents.total() == count
    return agents


def run_batch(net: Machines, name: str, *, group: int) -> None:
    """Run a batch as soon as all are known; all machines must have a share of it."""
    net.first.wait_until(lambda s: s["workers"].get("workers") == WORKERS)
    tasks, results = net.write_tasks(name, 2 * WORKERS)
    summary = net.first.data("submit", "--tasks", tasks, "--results", results, "--wait")
    assert summary["succeeded"] == 2 * WORKERS
    agents = agents_of(results)
    assert {machine_of(agent, group=group) for agent in agents} == {1, 2, 3}
    assert len(agents) > WORKERS - PER_GROUP, agents


def parents(status: dict[str, Any]) -> dict[str, str]:
    return {row["cluster"]: row["parent"] for row in status["clusters"]}


def note(text: str, began: float) -> None:
    print(f"measured: {text}: {time.monotonic() - began:.1f} s")  # noqa: T201


def test_hub_and_spoke_outlives_a_machine(net: Machines) -> None:
    one, two, three = net
    write_fleet(net, "hub-and-spoke")
    give_token(net)
    began = time.monotonic()
    net.up()
    note("three parts up", began)
    assert members_of(one) == {"rendezvous", "hub", "group-1", "runner-1"}
    assert members_of(two) == {"group-2", "runner-2"}
    assert members_of(three) == {"group-3", "runner-3"}
    for machine in net:
        shown = machine.fleet("status").stdout
        assert re.search(rf"^crowd  hub-and-spoke  up .*part {machine.part}", shown)
    run_batch(net, "all", group=PER_GROUP)

    submit, results = begin(net, "lost", 600, done=60)
    began = time.monotonic()
    three.kill()
    agents = finish(submit, results, 600)
    note("batch without one machine", began)
    shares = Counter[int]()
    for agent, done in agents.items():
        shares[machine_of(agent, group=PER_GROUP)] += done
    assert min(shares[1], shares[2]) > shares[3], shares
    assert one.status()["tasks"]["retried"] > 0

    up = ended(three.start_up())
    assert up.returncode == 0, up.stderr
    began = time.monotonic()
    run_until_all_work(net, group=PER_GROUP)
    note("the machine is used again", began)

    # The one that knows the tasks is lost. The others wait; nothing is done twice.
    submit, _ = begin(net, "first", 300, done=60)
    one.kill()
    assert ended(submit).returncode != 0
    assert {row["state"] for row in two.status()["members"]} == {"running"}
    up = ended(one.start_up())
    assert up.returncode == 0, up.stderr
    tasks, results = net.write_tasks("first", 300)
    summary = one.data("submit", "--tasks", tasks, "--results", results)
    assert (summary["succeeded"], agents_of(results).total()) == (300, 300)
    for machine in reversed(net.all):
        assert machine.fleet("down").returncode == 0


def run_until(net: Machines, name: str, has_all: Callable[[set[str]], bool]) -> None:
    """Run batches until those work who shall: who was lost rests for some seconds."""
    for attempt in range(20):
        tasks, results = net.write_tasks(f"{name}-{attempt}", 2 * WORKERS)
        net.first.data("submit", "--tasks", tasks, "--results", results)
        agents = set(agents_of(results))
        if has_all(agents):
            return
    raise AssertionError(f"{name}: only these work: {agents}")


def run_until_all_work(net: Machines, *, group: int) -> None:
    """Run batches until all machines work."""

    def is_all(agents: set[str]) -> bool:
        return {machine_of(agent, group=group) for agent in agents} == {1, 2, 3}

    run_until(net, "again", is_all)


def test_clusters_get_parents_on_other_machines(net: Machines) -> None:
    one, two, three = net
    write_fleet(net, "hierarchical")
    # Without a common token: part 1 makes one, and its file is carried to the others.
    up = ended(one.start_up())
    assert up.returncode == 0, up.stderr
    for machine in (two, three):
        copy = machine.fleet_home / "network.json"
        copy.parent.mkdir(parents=True)
        copy.write_bytes((one.fleet_home / "network.json").read_bytes())
    for start in [machine.start_up() for machine in (two, three)]:
        done = ended(start)
        assert done.returncode == 0, done.stderr
    home = {f"c{nr}": f"crowd-sub-{nr}" for nr in range(1, 7)}
    assert {"sub-2", "subrunner-2", "group-5", "runner-5"} < members_of(two)
    run_batch(net, "all", group=CLUSTER)

    # A sub-orchestrator hangs: its cluster works on under one of another machine.
    pids = two.member_pids("sub-2", "subrunner-2")
    submit, results = begin(net, "hung", 300, done=30)
    began = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    status = one.wait_until(lambda s: parents(s) != home)
    note("sub-orchestrator's cluster has another parent", began)
    assert parents(status)["c2"] not in ("crowd-sub-2", "crowd-sub-5")
    finish(submit, results, 300)
    adopted = {f"worker-{nr}" for nr in range(6, 11)}
    run_until(net, "adopted", adopted.issubset)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    one.wait_until(lambda s: parents(s) == home)

    # It is killed: its machine brings it back, and it goes on with what it had.
    submit, results = begin(net, "killed", 300, done=60)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    finish(submit, results, 300)
    two.wait_until(lambda s: {row["state"] for row in s["members"]} == {"running"})
    restarts = {row["name"]: row["restarts"] for row in two.status()["members"]}
    assert restarts["sub-2"] == 1

    # The cable of a machine is pulled, which nobody is told of: two sub-orchestrators
    # and their workers are lost, and found again without anybody's doing.
    submit, results = begin(net, "lost", 600, done=60)
    began = time.monotonic()
    three.cut()
    finish(submit, results, 600)
    note("batch without one machine", began)
    clusters = one.status()["clusters"]
    down = {row["cluster"] for row in clusters if row["state"] == "down"}
    assert down == {"c3", "c6"}
    began = time.monotonic()
    three.plug()
    one.wait_until(lambda s: parents(s) == home)
    run_until_all_work(net, group=CLUSTER)
    note("the machine is used again", began)


def test_wrong_parts_are_refused_and_early_ones_wait(net: Machines) -> None:
    one, two, three = net
    write_fleet(net, "hub-and-spoke")
    no_listen = net.folder / "no-listen.toml"
    no_listen.write_text(net.spec.read_text().replace("listen =", "# listen ="))
    for argv, env, said in (
        ((net.spec, "--part", "4/3"), {}, "there is no part 4 of 3"),
        ((net.spec, "--part", "two"), {}, "part 'two' is not like 2/3"),
        ((no_listen, "--part", "1/3"), {}, r"fleet\.listen: the parts"),
        ((no_listen, "--part", "2/3"), {}, r"hint: .*\[fleet\] listen = \"ADDRESS\""),
        ((net.spec, "--part", "2/3"), {}, "hint: +set PILOT_JOIN_TOKEN .* or copy"),
        # The address of part 1's machine is none of this one's.
        (
            (net.spec, "--part", "1/3"),
            {"PILOT_JOIN_TOKEN": TOKEN},
            "cannot bind .*:900",
        ),
    ):
        refused = two.fleet("up", *argv, **env)
        assert refused.returncode == 1
        assert re.search(said, refused.stderr), refused.stderr

    give_token(net)
    early = two.start_up()
    stranger = three.start("up", net.spec, "--part", "3/3", PILOT_JOIN_TOKEN="other")
    for command in (early, stranger):
        assert command.stderr is not None
        assert command.stderr.readline() == "waiting for part 1\n"
    up = ended(one.start_up())
    assert up.returncode == 0, up.stderr
    refused = ended(stranger)
    assert refused.returncode == 1
    assert re.search("invalid token for network .*\nhint: .*JOIN_TOKEN", refused.stderr)
    done = ended(early)
    assert done.returncode == 0, done.stderr

    # The same part a second time: elsewhere, and another one where it runs.
    refused = three.fleet("up", net.spec, "--part", "2/3")
    assert refused.returncode == 1
    assert "worker-11 is the name of another agent" in refused.stderr
    refused = two.fleet("up", net.spec, "--part", "3/3")
    assert refused.returncode == 1
    assert "part 2/3 of fleet crowd runs in" in refused.stderr
    assert "crowd is up already" in two.fleet("up", net.spec, "--part", "2/3").stdout
    refused = two.fleet("submit", "--task", "here", "--wait")
    assert "submit on the machine of part 1" in refused.stderr

    up = ended(three.start_up())
    assert up.returncode == 0, up.stderr
    run_batch(net, "all", group=PER_GROUP)
