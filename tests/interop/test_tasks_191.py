"""Tasks between a daemon of ours and the official 1.9.1 programs, both ways.

1.9.1 is the last release with tasks. Its client keeps the task files and dials the
other side itself; its daemon answers on port 1003, and asks our rendezvous whether
the submitter's score suffices.
"""

from __future__ import annotations

import asyncio
import json
import stat
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.client.registry import RegistryClient
from tests.support.programs import World, data_of, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [pytest.mark.official, pytest.mark.timeout(120)]


class Side:
    """One of the two nodes, whichever program it is."""

    def __init__(self, net: World, name: str) -> None:
        self._net = net
        self.name = name
        self.node = str(data_of(self.ctl("info"))["node_id"])

    @property
    def files(self) -> Path:
        """The folder of its task files."""
        return self._net.home / self.name / ".pilot" / "tasks"

    def ctl(self, *argv: str) -> Any:
        run = self._net.ctl_191 if self.name == "theirs" else self._net.ctl
        return run(self.name, *argv)

    def task(self, *argv: str) -> Any:
        """Run a task command as 1.9.1 wants it; ours takes the same words."""
        return data_of(self.ctl("extras", "task", *argv))

    def submit(self, other: Side, text: str = "do it") -> str:
        """Give the other side a task that it takes."""
        answer = self.task("submit", other.name, "--task", text)
        assert (answer["accepted"], answer["status"]) == (True, 200), answer
        assert answer["message"] == "Task received with status NEW"
        return str(answer["task_id"])

    def row(self, task_id: str, kind: str) -> dict[str, Any]:
        """Return the task as ``task list`` shows it; empty if it does not."""
        tasks = self.task("list", "--type", kind)["tasks"]
        rows = [row for row in tasks if row["task_id"] == task_id]
        return dict(rows[0]) if rows else {}

    def until(self, task_id: str, status: str) -> dict[str, Any]:
        """Wait for the status of a submitted task; return its row then."""
        rows: list[dict[str, Any]] = []

        def has_status() -> bool:
            # The 1.9.1 client shows no file that its daemon is writing.
            rows.append(self.row(task_id, "submitted"))
            return rows[-1].get("status") == status

        self.wait_until(has_status)
        return rows[-1]

    def wait_until(self, is_done: Callable[[], bool]) -> None:
        """Return when ``is_done``."""
        self._net.programs[0].wait_until(is_done)

    def file(self, kind: str, task_id: str) -> Any:
        """Return the contents of a task file."""
        path = self.files / kind / f"{task_id}.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        return json.loads(path.read_bytes())


class Pair:
    """Both sides, and the registry's administrator."""

    def __init__(self, net: World) -> None:
        self.net = net
        self.ours, self.theirs = Side(net, "ours"), Side(net, "theirs")

    def directions(self) -> list[tuple[Side, Side]]:
        """Return submitter and worker, for both directions."""
        return [(self.theirs, self.ours), (self.ours, self.theirs)]

    def set_polo(self, side: Side, score: int) -> None:
        """Set a score with the admin token."""
        host, _, port = self.net.registry.rpartition(":")
        request = {
            "type": "set_polo_score",
            "node_id": int(side.node),
            "polo_score": score,
            "admin_token": self.net.admin_token,
        }

        async def ask() -> None:
            async with RegistryClient((host, int(port))) as registry:
                await registry.request(request)

        asyncio.run(ask())


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two nodes that trust each other."""
    with world() as net:
        net.start_rendezvous()
        net.start_daemon(
            *("ours", "--hostname", "ours", "--trust-auto-approve"),
            *("--home", str(net.home / "ours" / ".pilot")),
        )
        net.start_daemon_191("theirs", "-hostname", "theirs", "-trust-auto-approve")
        made = Pair(net)
        data_of(made.ours.ctl("handshake", made.theirs.node))
        data_of(made.theirs.ctl("handshake", made.ours.node))
        # A relayed handshake takes a heartbeat to arrive.
        net.programs[0].wait_until(
            lambda: made.theirs.ctl("ping", "ours", "--count", "1").returncode == 0
        )
        yield made


@pytest.fixture(params=["theirs to ours", "ours to theirs"])
def direction(request: pytest.FixtureRequest, pair: Pair) -> tuple[Side, Side]:
    """Submitter and worker."""
    theirs_to_ours, ours_to_theirs = pair.directions()
    return ours_to_theirs if request.param == "ours to theirs" else theirs_to_ours


def test_a_text_comes_back(direction: tuple[Side, Side]) -> None:
    boss, worker = direction
    task_id = boss.submit(worker, 'Summarize "x" <b>&</b> é')
    row = worker.row(task_id, "received")
    assert (row["status"], row["status_justification"]) == (
        "NEW",
        "A new task was created",
    )
    assert row["description"] == 'Summarize "x" <b>&</b> é'
    assert worker.task("accept", "--id", task_id)["status"] == "ACCEPTED"
    row = boss.until(task_id, "ACCEPTED")
    assert row["status_justification"] == "Task accepted"
    assert worker.task("queue")["queue"][0]["task_id"] == task_id
    started = worker.task("execute")
    assert started["task_id"] == task_id
    assert started["from"] == row["from"]
    boss.until(task_id, "EXECUTING")
    sent = worker.task("send-results", "--id", task_id, "--results", "done <ok> é")
    assert (sent["status"], sent["sent_type"], sent["sent_to"]) == (
        "SUCCEEDED",
        "text",
        row["from"],
    )
    boss.until(task_id, "SUCCEEDED")
    result = boss.task("result", task_id)
    assert (result["type"], result["content"]) == ("text", "done <ok> é")
    path = boss.files / "results" / f"{task_id}_result.txt"
    assert path.read_text() == "done <ok> é"
    assert result["path"] == str(path)


def test_a_file_comes_back(direction: tuple[Side, Side], tmp_path: Path) -> None:
    boss, worker = direction
    task_id = boss.submit(worker)
    worker.task("accept", "--id", task_id)
    worker.task("execute")
    source = tmp_path / "out put.csv"
    # The 1.9.1 client leaves before its daemon has sent much more than this, and then
    # the rest is lost, to another 1.9.1 node as well.
    lines = 2_000 if worker.name == "theirs" else 100_000
    source.write_bytes(b"hello,csv\n1,2\n" * lines)
    sent = worker.task("send-results", "--id", task_id, "--file", str(source))
    assert (sent["filename"], sent["file_size"]) == ("out put.csv", 14 * lines)
    row = boss.until(task_id, "SUCCEEDED")
    assert (row["result_type"], row["results"]) == ("file", "out put.csv")
    copy = tmp_path / "copy.csv"
    result = boss.task("result", task_id, "--out", str(copy))
    assert copy.read_bytes() == source.read_bytes()
    assert (result["type"], result["filename"]) == ("file", "out put.csv")
    assert (result["written"], result["size"]) == (str(copy), 14 * lines)
    kept = boss.files / "results" / f"{task_id}_out put.csv"
    assert kept.read_bytes() == source.read_bytes()


def test_results_may_skip_the_execution(direction: tuple[Side, Side]) -> None:
    boss, worker = direction
    task_id = boss.submit(worker)
    worker.task("accept", "--id", task_id)
    worker.task("send-results", "--id", task_id, "--results", "done")
    boss.until(task_id, "SUCCEEDED")
    assert boss.task("result", task_id)["content"] == "done"


def test_a_task_is_declined(direction: tuple[Side, Side]) -> None:
    boss, worker = direction
    task_id = boss.submit(worker)
    answer = worker.task("decline", "--id", task_id, "--justification", "no time")
    assert (answer["status"], answer["justification"]) == ("DECLINED", "no time")
    row = boss.until(task_id, "DECLINED")
    assert row["status_justification"] == "no time"
    refused = worker.ctl("extras", "task", "accept", "--id", task_id)
    assert refused.returncode == 1
    error = json.loads(refused.stderr)
    assert error["code"] == "invalid_state"
    assert error["message"] == f"task {task_id} is already DECLINED"


def test_both_programs_keep_the_same_files(pair: Pair) -> None:
    records = []
    for boss, worker in pair.directions():
        task_id = boss.submit(worker)
        worker.task("accept", "--id", task_id)
        boss.until(task_id, "ACCEPTED")
        worker.task("execute")
        worker.task("send-results", "--id", task_id, "--results", "done")
        boss.until(task_id, "SUCCEEDED")
        records.append(
            (boss.file("submitted", task_id), worker.file("received", task_id))
        )
    (submitted, our_received), (our_submitted, received) = records
    assert list(our_submitted) == list(submitted)
    # Theirs times nothing but the wait for the acceptance.
    extra = {
        *("staged_at", "execute_started_at", "completed_at"),
        *("time_staged_ms", "time_cpu_ms"),
    }
    common = [name for name in our_received if name not in extra]
    assert [name for name in received if name not in extra] == common


def test_what_cannot_be_done_is_refused_in_the_same_words(pair: Pair) -> None:
    commands = [
        ("task", "accept"),
        ("task", "accept", "--id", "nope"),
        ("task", "decline", "--id", "nope"),
        ("task", "decline", "--id", "nope", "--justification", "x"),
        ("task", "execute"),
        ("task", "send-results", "--id", "nope"),
        ("task", "send-results", "--id", "nope", "--results", "x"),
        ("task", "result", "nope"),
        ("task", "submit", "ours"),
        ("task", "nonsense"),
        ("task",),
    ]
    for words in commands:
        ours, theirs = (side.ctl("extras", *words) for side in (pair.ours, pair.theirs))
        assert ours.returncode == theirs.returncode == 1, words
        mine, official = json.loads(ours.stderr), json.loads(theirs.stderr)
        if words == ("task", "nonsense") or words == ("task",):
            # Ours has a few more.
            mine["hint"], official["hint"] = "", ""
        assert mine == official, words


def test_a_long_task_is_refused_in_the_same_words(pair: Pair) -> None:
    text = "y" * 16_385
    wanted = "submit: task_description 16385 > 16384 bytes"
    answer = pair.theirs.task("submit", "ours", "--task", text)
    assert (answer["accepted"], answer["message"]) == (False, wanted)
    refused = pair.ours.ctl("task", "submit", "theirs", "--task", text)
    assert json.loads(refused.stderr)["message"] == wanted


def test_source_code_is_no_result(direction: tuple[Side, Side], tmp_path: Path) -> None:
    boss, worker = direction
    task_id = boss.submit(worker)
    worker.task("accept", "--id", task_id)
    source = tmp_path / "x.PY"
    source.write_text("print()")
    refused = worker.ctl(
        *("extras", "task", "send-results", "--id", task_id, "--file", str(source))
    )
    assert refused.returncode == 1
    error = json.loads(refused.stderr)
    assert error["message"] == 'file type ".py" not allowed for results'
    assert error["code"] == "invalid_argument"
    worker.task("send-results", "--id", task_id, "--results", "done")


@pytest.fixture
def scores(pair: Pair) -> Iterator[Callable[[int, int], None]]:
    """Set the scores of submitter and worker; afterwards both are 0 again."""

    def both(ours: int, theirs: int) -> None:
        pair.set_polo(pair.ours, ours)
        pair.set_polo(pair.theirs, theirs)

    yield both
    both(0, 0)


def test_both_sides_see_their_score(
    pair: Pair, scores: Callable[[int, int], None]
) -> None:
    scores(7, -3)
    for side, score in ((pair.ours, 7), (pair.theirs, -3)):
        for words in (("my-polo",), ("extras", "my-polo")):
            assert data_of(side.ctl(*words))["polo_score"] == score


def submit_until_refused(boss: Side, worker: Side) -> Any:
    """Submit until what the gate remembers of earlier scores is forgotten."""
    answers: list[Any] = []

    def is_refused() -> bool:
        answers.append(boss.task("submit", worker.name, "--task", "x"))
        return not answers[-1]["accepted"]

    worker.wait_until(is_refused)
    return answers[-1]


def test_the_gate_refuses_a_low_score_on_both_sides(
    pair: Pair, scores: Callable[[int, int], None]
) -> None:
    for (boss, worker), both in zip(pair.directions(), ((7, 4), (4, 7)), strict=True):
        scores(*both)
        answer = submit_until_refused(boss, worker)
        assert answer["status"] == 400
        assert answer["message"].startswith("Task rejected by polo gate: submitter")
        tasks = boss.task("list", "--type", "submitted").get("tasks") or []
        assert answer["task_id"] not in [row["task_id"] for row in tasks]


def test_both_programs_advertise_that_they_take_tasks(pair: Pair) -> None:
    for side in (pair.ours, pair.theirs):
        for command, is_on in (("enable-tasks", True), ("disable-tasks", False)):
            answer = data_of(side.ctl("extras", command))
            assert (answer["node_id"], answer["task_exec"]) == (int(side.node), is_on)
