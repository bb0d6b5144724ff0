"""Worlds for rows: a rendezvous of ours and two daemons, made as the column says.

Each direction has a world of its own, so that node numbers, names and networks are
the same in all of them and answers can be compared without translation.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import socket
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.interop.matrix.columns import DIRECTIONS, Maker
from tests.support.official import official_program
from tests.support.programs import BIN, World, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.interop.matrix.columns import Direction, Seat
    from tests.support.programs import Program

__all__ = [
    "PRIVATE",
    "PUBLIC",
    "TRUSTED",
    "Background",
    "Node",
    "Outcome",
    "Pair",
    "Stage",
    "Stages",
]

COMMAND_LIMIT_S: Final = 90.0
WAIT_LIMIT_S: Final = 60.0
"""Official daemons stall for tens of seconds now and then when the machine is busy."""
ADMIN_TOKEN: Final = "the-admin-token"
NEVER: Final = threading.Event()
UNREPEATABLE: Final = (
    (re.compile(r"pilot-\d+\.log"), "pilot-<pid>.log"),
    (re.compile(r"\(pid \d+\)"), "(pid <pid>)"),
    # The part of a stored name that is drawn from the clock and a counter.
    (re.compile(r"-\d{8}-\d{6}\.\d{3}-\d{6}"), "-<time>"),
    # Times in the JSON text that acknowledges a traced message.
    (re.compile(r'(_ns\\":)\d+'), r"\g<1>0"),
)
"""What is different in each run within longer texts."""
INFO_REQUEST: Final = bytes.fromhex("000000010d")


@dataclass(frozen=True, slots=True)
class Stage:
    """How the two daemons of a world are started."""

    name: str
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    trusted: bool = False
    """Whether both trust each other from the start."""


PUBLIC: Final = Stage("public", ("-public",), ("-public",))
PRIVATE: Final = Stage("private")
TRUSTED: Final = Stage("trusted", trusted=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step of a row gave, ready to be compared."""

    label: str
    value: Any

    @property
    def data(self) -> Any:
        """Return the ``data`` of a command that succeeded."""
        answer = self.value.get("stdout")
        if not isinstance(answer, dict) or "data" not in answer:
            raise AssertionError(f"{self.label}: {json.dumps(self.value)[:400]}")
        return answer["data"]

    @property
    def code(self) -> str:
        """Return the error code of a command that failed."""
        answer = self.value.get("stderr")
        if not isinstance(answer, dict) or "code" not in answer:
            raise AssertionError(f"{self.label}: {json.dumps(self.value)[:400]}")
        return str(answer["code"])


@dataclass(slots=True)
class Background:
    """A command that runs beside others."""

    node: Node
    label: str
    process: subprocess.Popen[str]

    def once(self, what: str, is_so: Callable[[], bool]) -> Background:
        """Return the command when ``is_so``; fail if it ends before."""

        def is_so_or_ended() -> bool:
            return is_so() or self.process.poll() is not None

        self.node.pair.wait(what, is_so_or_ended)
        if self.process.poll() is not None:
            raise AssertionError(f"ended before {what}: {self.finish()}")
        return self

    def finish(self) -> Outcome:
        """Wait for its end; record and return the outcome."""
        try:
            stdout, stderr = self.process.communicate(timeout=COMMAND_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            stdout, stderr = self.process.communicate()
        return self.node.note(self.label, self.process.returncode, stdout, stderr)


class Node:
    """One daemon with the client that drives it, and the home of both."""

    def __init__(self, pair: Pair, name: str, seat: Seat) -> None:
        self.pair, self.name, self.seat = pair, name, seat
        self.home = pair.world.home / name
        self.socket = pair.world.socket(name)
        self.program: Program | None = None

    @property
    def number(self) -> int:
        """Return the node number."""
        return int(self.info()["node_id"])

    @property
    def id(self) -> str:
        """Return the node number as commands take it."""
        return str(self.number)

    @property
    def address(self) -> str:
        """Return the address on the backbone."""
        return str(self.info()["address"])

    def start_daemon(self, *flags: str) -> None:
        """Start the daemon with the command line that both makers understand."""
        folder = self.home / ".pilot"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        world = self.pair.world
        self.program = world.start(
            self.name,
            daemon_program(self.seat.daemon),
            *("-registry", world.registry, "-beacon", world.beacon),
            *("-listen", "127.0.0.1:0", "-socket", self.socket),
            *("-identity", folder / "identity.json"),
            *("-email", f"{self.name}@example.test"),
            *("-motd-feed-url", "", "-telemetry-url", "", "-no-skillinject"),
            *flags,
            HOME=str(self.home),
        )
        self.program.wait_until(self.answers)

    def do(self, *argv: str, label: str | None = None, **env: str) -> Outcome:
        """Run a command of the client; record and return its outcome."""
        started = self.begin(*argv, label=label, **env)
        return started.finish()

    def begin(self, *argv: str, label: str | None = None, **env: str) -> Background:
        """Start a command that runs until ``finish``."""
        process = subprocess.Popen(
            [client_program(self.seat.client), "--json", *argv],
            env=self.environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self.pair.running.append(process)
        return Background(self, label or " ".join(argv)[:60], process)

    def in_text_mode(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command without ``--json``; nothing is recorded."""
        return subprocess.run(
            [client_program(self.seat.client), *argv],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )

    def prepare(self, *argv: str, **env: str) -> Any:
        """Run a command that only prepares; return its data."""
        with self.pair.unrecorded():
            return self.do(*argv, **env).data

    def environment(self, **extra: str) -> dict[str, str]:
        """Return the client's environment."""
        given = {
            "HOME": str(self.home),
            "PILOT_SOCKET": str(self.socket),
            "PILOT_DAEMON_BIN": str(daemon_program(self.seat.daemon)),
            "TZ": "UTC",
        }
        return self.pair.world.environment(**(given | extra))

    def note(self, label: str, status: int, stdout: str, stderr: str) -> Outcome:
        """Record how a command ended."""
        value = {
            "exit": status,
            "stdout": self.pair.plain(_parsed(stdout)),
            "stderr": self.pair.plain(_parsed(stderr)) if status else None,
        }
        failure = value["stderr"]
        if isinstance(failure, dict) and "message" in failure:
            # The same text twice: one difference is enough.
            same = failure.get("error") == failure["message"]
            failure["error"] = "<message>" if same else failure.get("error")
        return self.pair.record(f"{self.name}: {label}", value)

    def info(self) -> dict[str, Any]:
        """Ask the daemon itself, without a client."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as link:
            link.settimeout(WAIT_LIMIT_S)
            link.connect(str(self.socket))
            link.sendall(INFO_REQUEST)
            reply = link.makefile("rb")
            length = int.from_bytes(reply.read(4), "big")
            answer: dict[str, Any] = json.loads(reply.read(length)[1:])
            return answer

    def answers(self) -> bool:
        """Tell whether the daemon answers on its socket."""
        try:
            return "node_id" in self.info()
        except (OSError, ValueError):
            return False

    def has_stream(self, port: int) -> bool:
        """Tell whether a peer's stream to ``port`` has carried bytes here."""
        return any(
            row["local_port"] == port
            and row["state"] == "ESTABLISHED"
            and row["bytes_recv"]
            for row in self.info()["conn_list"]
        )

    def clients(self) -> set[str]:
        """Return the sockets of the clients that are connected to the daemon."""
        assert self.program is not None
        connected = set()
        for line in Path("/proc/net/unix").read_text(encoding="ascii").splitlines():
            fields = line.split()
            # The sixth field is the state, 03 for connected; the seventh the inode.
            if fields[5] == "03":
                connected.add(f"socket:[{fields[6]}]")
        found = set()
        for entry in Path(f"/proc/{self.program.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(entry.readlink()))
        return found & connected

    def mail(self) -> list[dict[str, Any]]:
        """Return the stored messages, oldest first."""
        found = (self.home / ".pilot" / "inbox").glob("*.json")
        return [json.loads(path.read_bytes()) for path in sorted(found, key=_sequence)]

    def files(self) -> list[bytes]:
        """Return the contents of the received files, oldest first."""
        found = (self.home / ".pilot" / "received").glob("*")
        return [
            path.read_bytes() for path in sorted(found, key=_sequence) if path.is_file()
        ]

    def empty_mail(self) -> None:
        """Delete all messages and files that earlier rows left."""
        for folder in ("inbox", "received"):
            for path in (self.home / ".pilot" / folder).glob("*"):
                if path.is_file():
                    path.unlink()


class Pair:
    """The two nodes of a world and what the running row did with them."""

    def __init__(self, direction: Direction, stage: Stage, world: World) -> None:
        self.direction, self.stage, self.world = direction, stage, world
        self.near = Node(self, "near", direction.near)
        self.far = Node(self, "far", direction.far)
        self.outcomes: list[Outcome] = []
        self.problems: list[str] = []
        self.running: list[subprocess.Popen[str]] = []
        self.hidden: dict[str, str] = {}
        self.broken: str | None = None
        self._records = True

    def open(self) -> None:
        """Start the programs, or remember why that failed."""
        try:
            self._start()
        except Exception as error:  # All rows of this world report it.
            self.broken = f"cannot start: {type(error).__name__}: {error}"[:600]

    def _start(self) -> None:
        """Start the programs; the near node is number 1, the far one number 2."""
        self.world.start_rendezvous(store="memory:")
        self.near.start_daemon("-hostname", "near", *self.stage.near)
        self.far.start_daemon("-hostname", "far", *self.stage.far)
        if self.stage.trusted:
            self.make_trust()

    def make_trust(self) -> None:
        """Let the near node ask for trust and the far one approve."""
        self.near.prepare("handshake", self.far.id, "please")
        self.wait(
            "a pending request", lambda: self.far.prepare("pending")["pending"] != []
        )
        self.far.prepare("approve", self.near.id)
        for node in (self.near, self.far):
            self.wait("trust", lambda n=node: n.prepare("trust")["trusted"] != [])  # type: ignore[misc]

    def record(self, label: str, value: Any) -> Outcome:
        """Note a result that must equal the reference's."""
        outcome = Outcome(self.plain(label), value)
        if self._records:
            self.outcomes.append(outcome)
        return outcome

    def expect(self, what: str, found: Any, expected: Any) -> None:
        """Note a problem if ``found`` is not ``expected``, in every column."""
        if found != expected:
            self.problems.append(f"{what}: {found!r}, not {expected!r}"[:400])

    def wait(self, what: str, is_so: Callable[[], bool]) -> None:
        """Return when ``is_so``.

        Raises:
            AssertionError: It was not so in time.
        """
        for _ in range(int(WAIT_LIMIT_S / 0.02)):
            if is_so():
                return
            NEVER.wait(0.02)
        raise AssertionError(f"waited in vain for {what}")

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Do something that is not part of the comparison."""
        before, self._records = self._records, False
        try:
            yield
        finally:
            self._records = before

    def plain(self, value: Any) -> Any:
        """Replace what is different in each world by a placeholder."""
        text = json.dumps(value)
        text = text.replace(str(self.world.home), "<home>")
        text = text.replace(self.world.registry, "<registry>")
        text = text.replace(self.world.beacon, "<beacon>")
        for shown, placeholder in self.hidden.items():
            text = text.replace(shown, placeholder)
        for pattern, placeholder in UNREPEATABLE:
            text = pattern.sub(placeholder, text)
        return json.loads(text)

    def take(self) -> tuple[list[Outcome], list[str]]:
        """Return and forget what the row noted; end what it left running."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()
        taken = self.outcomes, self.problems
        self.outcomes, self.problems, self.running = [], [], []
        return taken


@dataclass
class Stages:
    """The worlds that rows share, opened when first needed.

    Rows that share worlds must not run at the same time; a row with worlds of its own
    may run beside them.
    """

    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    shared: dict[Stage, dict[str, Pair]] = field(default_factory=dict)
    workers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2 * len(DIRECTIONS))
    )

    def __enter__(self) -> Stages:
        self.stack.enter_context(self.workers)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    @contextlib.contextmanager
    def pairs(
        self, stage: Stage, directions: Iterable[Direction], *, fresh: bool
    ) -> Iterator[dict[str, Pair]]:
        """Yield one pair for each direction, by the direction's name."""
        if not fresh:
            if stage not in self.shared:
                self.shared[stage] = self._open(stage, directions, self.stack)
            yield self.shared[stage]
            return
        with contextlib.ExitStack() as stack:
            yield self._open(stage, directions, stack)

    def _open(
        self,
        stage: Stage,
        directions: Iterable[Direction],
        stack: contextlib.ExitStack,
    ) -> dict[str, Pair]:
        pairs = {
            direction.name: Pair(direction, stage, stack.enter_context(world()))
            for direction in directions
        }
        list(self.workers.map(Pair.open, pairs.values()))
        return pairs


def client_program(maker: Maker) -> Path:
    """Return the ``pilotctl`` of a maker."""
    ours = maker is Maker.OURS
    return BIN / "pilotctl" if ours else official_program("pilotctl")


def daemon_program(maker: Maker) -> Path:
    """Return the ``pilot-daemon`` of a maker."""
    ours = maker is Maker.OURS
    return BIN / "pilot-daemon" if ours else official_program("pilot-daemon")


def payload_of(message: dict[str, Any]) -> bytes:
    """Return the bytes of a stored message, however it keeps them."""
    if "data_b64" in message:
        return base64.b64decode(message["data_b64"])
    return str(message["data"]).encode()


def _parsed(text: str) -> Any:
    """Return one JSON value, a list of lines of JSON, or the text itself."""
    lines = text.splitlines()
    try:
        values = [json.loads(line) for line in lines]
    except ValueError:
        return text
    if not values:
        return None
    return values[0] if len(values) == 1 else values


def _sequence(path: Path) -> str:
    """Return the part of a stored name that grows: time and counter."""
    return "-".join(path.stem.split("-")[-3:])
