"""``pilot-daemon``: flags in process, the program as a subprocess."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pilotfleet.cli.daemonflags import DaemonOptions, read_options
from pilotfleet.cli.logs import JsonFormatter, RotatingStderr, configure_logging
from pilotfleet.errors import ConfigError, InvalidArgument
from pilotfleet.node.config import NetworkToJoin

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PILOT_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def options(*argv: str) -> DaemonOptions:
    return read_options(argv)


# Flags


def test_the_defaults_are_one_private_agent_and_a_rendezvous_on_this_machine(
    tmp_path: Path,
) -> None:
    host = options().host
    assert host.registry == ("127.0.0.1", 9000)
    assert host.beacon == ("127.0.0.1", 9001)
    assert host.socket == Path("/tmp/pilot.sock")
    (agent,) = host.agents
    assert agent.identity_path == tmp_path / ".pilot" / "identity.json"
    assert agent.hostname == ""
    assert not agent.is_public


@pytest.mark.parametrize("dash", ["-", "--"])
@pytest.mark.parametrize("joiner", [" ", "="])
def test_flags_take_one_dash_or_two_and_a_space_or_an_equals_sign(
    dash: str, joiner: str
) -> None:
    flags = {"registry": "10.0.0.1:19000", "hostname": "alice", "listen": ":4000"}
    argv = " ".join(f"{dash}{name}{joiner}{value}" for name, value in flags.items())
    host = options(*argv.split()).host
    assert host.registry == ("10.0.0.1", 19000)
    assert host.agents[0].hostname == host.agents[0].name == "alice"
    assert host.agents[0].listen == ("", 4000)


def test_the_beacon_is_beside_the_registry_unless_told() -> None:
    assert options("-registry", "10.0.0.1:9000").host.beacon is None
    given = options("-registry", "10.0.0.1:9000", "-beacon", "10.0.0.2:9001").host
    assert given.beacon == ("10.0.0.2", 9001)


@pytest.mark.parametrize(
    ("flag", "is_public"),
    [("-public", True), ("--public=true", True), ("-public=false", False)],
)
def test_switches_may_have_a_value(flag: str, is_public: bool) -> None:
    assert options(flag, "-relay-only").host.agents[0].is_public is is_public


def test_every_official_flag_is_accepted() -> None:
    texts = (
        "admin-token advertise-endpoint=1.2.3.4:5 beacon=127.0.0.1:1 compat-beacon"
        " email endpoint=1.2.3.4:5 hostname=h identity idle-timeout=120s"
        " keepalive=60s listen=:0 log-format=json log-level=debug log-max-backups=3"
        " log-max-size=50 max-conns-per-port=10 max-conns-total=100 motd-feed-url="
        " motd-interval=15m networks=1,2 owner pprof proxy proxy-cmd"
        " registry=127.0.0.1:1 registry-fingerprint= registry-trust=pinned"
        " rekey-whitelist reply-whitelist sandbox-dir security-profile=compatible"
        " socket=/tmp/x.sock syn-rate-limit=100 syn-whitelist=7,8 telemetry-url=http://x"
        " time-wait=10s tls-trust=system transport=udp webhook webhook-secret"
    )
    switches = (
        "beacon-rtt-probe dataexchange-b64 encrypt no-addr-watch no-dataexchange"
        " no-echo no-eventstream no-path-watch no-rx-watchdog no-skillinject public"
        " relay-only sandbox strict-dataplane-trust trust-auto-approve"
    )
    argv = [f"-{flag}" if "=" in flag else f"-{flag}=" for flag in texts.split()]
    read = options(*argv, *(f"-{flag}" for flag in switches.split()))
    assert [joined.network for joined in read.host.networks] == ["1", "2"]
    assert read.host.services_off == {7, 1001, 1002}
    # An empty address and the default transport ask for what is done anyway.
    assert set(read.ignored) == {
        *("beacon-rtt-probe", "motd-interval", "no-addr-watch", "no-path-watch"),
        *("no-rx-watchdog", "no-skillinject", "sandbox", "telemetry-url", "tls-trust"),
    }
    assert read.host.syn_whitelist == {7, 8}
    assert read.host.idle_timeout_s == 120.0
    assert read.host.strict_dataplane_trust
    assert read.log_format == "json"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", (True, True, None)),
        ("--polo off --polo-gate off", (False, False, None)),
        ("-polo=on -polo-gate=on", (True, True, None)),
        ("--polo-gate 5", (True, True, 5)),
        ("--polo-gate=-1000000", (True, True, -1_000_000)),
        ("--polo-gate 0", (True, True, 0)),
    ],
)
def test_polo_and_its_gate_are_on_unless_turned_off(
    argv: str, expected: tuple[bool, bool, int | None]
) -> None:
    host = options(*argv.split()).host
    assert (host.polo, host.polo_gate, host.min_polo) == expected


@pytest.mark.parametrize(
    "argv", ["--polo 1", "--polo-gate maybe", "--polo-gate 1000001", "--polo-gate=--1"]
)
def test_a_polo_setting_that_is_none_is_refused(argv: str) -> None:
    with pytest.raises(InvalidArgument, match="--polo"):
        options(*argv.split())


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("", True),
        ("--agents 1", True),
        ("--agents 2", False),
        ("--agents 2 --task-files on", True),
        ("-task-files=off", False),
    ],
)
def test_tasks_of_a_single_agent_are_mirrored_into_files(
    argv: str, expected: bool
) -> None:
    assert options(*argv.split()).host.task_files is expected


def test_numbered_agents(tmp_path: Path) -> None:
    host = options(
        *("--agents", "3", "--agent-prefix", "w-", "--tag", "a", "--tag", "#b"),
        *("--home", str(tmp_path / "fleet"), "--listen", "127.0.0.1:0"),
    ).host
    assert [agent.name for agent in host.agents] == ["w-1", "w-2", "w-3"]
    last = host.agents[2]
    assert last.identity_path == tmp_path / "fleet" / "agents" / "w-3" / "identity.json"
    assert last.hostname == "w-3"
    assert last.tags == ("a", "b")
    assert last.listen == ("127.0.0.1", 0)


def test_numbered_agents_may_begin_later() -> None:
    host = options("--agents", "2", "--agent-prefix", "w-", "--agent-first", "41").host
    assert [agent.hostname for agent in host.agents] == ["w-41", "w-42"]


def test_agents_may_be_divided_among_processes(tmp_path: Path) -> None:
    assert options("--agents", "8").processes == 1
    assert options("--agents", "8", "--processes", "8").processes == 8
    config = tmp_path / "config.json"
    config.write_text('{"agents": 8, "processes": 2}')
    assert options("--config", str(config)).processes == 2


def test_numbered_agents_beside_a_named_one() -> None:
    host = options("--agents", "2", "--hostname", "hub", "--listen", ":4000").host
    assert [agent.name for agent in host.agents] == ["hub", "worker-1", "worker-2"]
    assert [agent.listen[1] for agent in host.agents] == [4000, 0, 0]


def test_agents_of_a_fleet_file(tmp_path: Path) -> None:
    spec = tmp_path / "fleet.toml"
    spec.write_text('[workers]\ncount = 4\ntags = ["text"]\nexec = "cat"\n')
    host = options("--fleet", str(spec)).host
    assert len(host.agents) == 4
    assert host.agents[0].tags == ("text",)
    with pytest.raises(ConfigError, match=r"none\.toml"):
        options("--fleet", str(tmp_path / "none.toml"))
    spec.write_text("[workers\n")
    with pytest.raises(ConfigError, match="is not TOML"):
        options("--fleet", str(spec))


def test_networks_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_JOIN_TOKEN", "secret")
    networks = options("--join", "3", "--join", "blue:own").host.networks
    assert networks == (NetworkToJoin("3", "secret"), NetworkToJoin("blue", "own"))
    assert "secret" not in repr(networks)


def test_flag_beats_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".pilot"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "registry": "10.0.0.1:1",
                "hostname": "filed",
                "max-conns-total": 7,
                "public": True,
            }
        )
    )
    host = options().host
    assert host.registry == ("10.0.0.1", 1)
    assert host.agents[0].hostname == "filed"
    assert host.agents[0].is_public
    assert host.max_connections == 7
    monkeypatch.setenv("PILOT_REGISTRY", "10.0.0.2:2")
    assert options().host.registry == ("10.0.0.2", 2)
    assert options("-registry", "10.0.0.3:3").host.registry == ("10.0.0.3", 3)


@pytest.mark.parametrize("text", ["{broken", "[]"])
def test_a_broken_file_gives_a_warning_and_defaults(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert options("-config", str(path)).host.registry == ("127.0.0.1", 9000)
    assert str(path) in caplog.text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--registry", "nonsense"], "--registry: 'nonsense' is not host:port"),
        (["--agents", "many"], "--agents: 'many' is not a whole number from 0 to"),
        (["--agents", "9" * 5000], "is not a whole number"),
        (["--agents", "100001"], "--agents: 100001 agents"),
        (["--agents", "9", "--processes", "0"], "--processes: 0 is not 1 to 64"),
        (["--agents", "99", "--processes", "65"], "--processes: 65 is not 1 to 64"),
        (["--agents", "9", "--processes", "two"], "--processes: 'two' is not a whole"),
        (
            ["--agents", "3", "--processes", "4"],
            "--processes: 4 processes for 3 agents",
        ),
        (["--processes", "2"], "--processes: 2 processes for 1 agent"),
        (["--agents", "2", "--agent-prefix", "UPPER"], "hostname must be lowercase"),
        (["--hostname", "-bad-"], "expected one argument"),
        (["--hostname=Bad"], "hostname must be lowercase"),
        (["--tag", "NO"], "tag"),
        (["--keepalive", "soon"], "keepalive"),
        (["--public=perhaps"], "--public: 'perhaps' is not true or false"),
        (["--encrypt=false"], "encryption cannot be turned off"),
        (["--no-such-flag"], "unrecognized arguments"),
        (["--registry-tls"], "64 hex digits"),
        (["--join", ":token"], "names no network"),
        (["--config", "/nowhere/config.json"], "does not exist"),
        (["--node-report", "soon"], "node-report"),
        (["--node-report", "0.5s"], "--node-report: 0.5s is not 0s, or 1s to 1h"),
        (["--node-report", "2h"], "--node-report: 7200s is not 0s, or 1s to 1h"),
    ],
)
def test_mistakes_are_named(argv: list[str], message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        options(*argv)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "seconds"),
    [
        ([], 0.0),
        (["--broker", "hub"], 10.0),
        (["--broker", "hub", "--node-report", "0s"], 0.0),
        (["--node-report", "1m"], 60.0),
    ],
)
def test_daemons_of_a_fleet_report_on_themselves(
    argv: list[str], seconds: float
) -> None:
    assert options(*argv).host.node_report_s == seconds


def test_tls() -> None:
    fingerprint = "ab" * 32
    pinned = options("--registry-tls", "--registry-fingerprint", fingerprint).host.tls
    assert pinned is not None
    assert pinned.fingerprint == fingerprint
    system = options("--registry-tls", "--registry-trust", "system").host.tls
    assert system is not None
    assert system.fingerprint is None


def test_limits_and_lists() -> None:
    host = options(
        *("-idle-timeout", "30s", "-syn-rate-limit", "7", "-syn-whitelist", "1, 2"),
        *("-reply-whitelist", "3", "-rekey-whitelist", "4,", "-no-tasksubmit"),
    ).host
    assert (host.idle_timeout_s, host.syn_rate) == (30.0, 7)
    assert host.syn_whitelist == {1, 2}
    assert host.reply_whitelist == {3}
    assert host.rekey_whitelist == {4}
    assert host.services_off == {1003}
    assert not host.strict_dataplane_trust


def test_nothing_given_limits_as_the_official_daemon_does() -> None:
    host = options().host
    assert (host.idle_timeout_s, host.syn_rate) == (math.inf, 100)
    assert (host.syn_whitelist, host.webhook) == (frozenset(), "")


def test_variables_of_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PILOT_STRICT_DATAPLANE_TRUST", "1")
    monkeypatch.setenv("PILOT_SYN_WHITELIST", "9")
    monkeypatch.setenv("PILOT_WEBHOOK_SECRET", "s3cret")
    host = options("-webhook", "http://127.0.0.1:9/x").host
    assert host.strict_dataplane_trust
    assert host.syn_whitelist == {9}
    assert (host.webhook, host.webhook_secret) == ("http://127.0.0.1:9/x", "s3cret")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("-syn-whitelist", "1,x"), "--syn-whitelist: 'x' is not a node number"),
        (("-syn-whitelist", "9" * 5000), "--syn-whitelist: '999"),
        (("-webhook", "ftp://x"), "--webhook: URL must use http or https"),
        (("-webhook", "http://169.254.169.254/"), "--webhook: URL cannot target link-"),
    ],
)
def test_bad_options_are_named(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        options(*argv)
    assert str(raised.value).startswith(message)


def test_ignored_settings_of_the_file_are_named_as_well(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"sandbox": true, "transport": "compat", "telemetry_url": ""}')
    ignored = options("-config", str(config)).ignored
    assert set(ignored) == {"sandbox", "transport"}
    assert ignored["transport"] == "packets go over UDP"


def test_secrets_are_not_shown() -> None:
    read = options("--admin-token", "hidden", "--webhook-secret", "hidden")
    assert "hidden" not in repr(read)


# Logs


def test_log_lines_are_json() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, "hi %s", ("you",), None)
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "hi you"
    assert line["level"] == "info"
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("argv", [("loud", "text"), ("info", "xml")])
def test_logging_refuses_what_it_does_not_know(argv: tuple[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        configure_logging(*argv)


def test_a_log_that_is_a_file_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    program = (
        "import logging\n"
        "from pilotfleet.cli.logs import configure_logging\n"
        "configure_logging(max_bytes=20_000, backups=2)\n"
        "for n in range(3000): logging.info('line %d', n)\n"
    )
    with log.open("ab") as output:
        subprocess.run([sys.executable, "-c", program], stderr=output, check=True)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["daemon.log", "daemon.log.1", "daemon.log.2"]
    assert all(path.stat().st_size < 40_000 for path in tmp_path.iterdir())
    newest = (tmp_path / "daemon.log").read_text() or (
        tmp_path / "daemon.log.1"
    ).read_text()
    assert "line 2999" in newest


@pytest.mark.parametrize(
    ("sizes", "files"),
    [
        ("max_bytes=20_000, backups=0", ["daemon.log"]),
        ("max_bytes=0, backups=2", ["daemon.log"]),
    ],
)
def test_a_log_may_have_no_backups_or_no_bound(
    tmp_path: Path, sizes: str, files: list[str]
) -> None:
    log = tmp_path / "daemon.log"
    program = (
        "import logging\n"
        "from pilotfleet.cli.logs import configure_logging\n"
        f"configure_logging({sizes})\n"
        "for n in range(1000): logging.info('line %d', n)\n"
    )
    with log.open("ab") as output:
        subprocess.run([sys.executable, "-c", program], stderr=output, check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    assert ("line 0\n" in log.read_text()) is ("max_bytes=0" in sizes)


def test_lines_of_other_processes_go_to_the_same_log_and_count(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    program = (
        "import logging\n"
        "from pilotfleet.cli.logs import configure_logging, pass_on\n"
        "configure_logging(max_bytes=20_000, backups=1)\n"
        "for n in range(500): pass_on(b'theirs %d\\n' % n * 5)\n"
        "logging.info('ours')\n"
    )
    with log.open("ab") as output:
        subprocess.run([sys.executable, "-c", program], stderr=output, check=True)
    old = (tmp_path / "daemon.log.1").read_text()
    assert 20_000 < len(old) < 30_000
    newest = log.read_text()
    assert newest.splitlines()[-2] == "theirs 499"
    assert newest.endswith("root: ours\n")


def test_a_log_that_is_no_file_is_left_alone() -> None:
    handler = RotatingStderr(max_bytes=1, backups=1)
    handler._rotate_if_large()


# The program


class Daemon:
    """A running ``pilot-daemon``."""

    def __init__(self, folder: Path, *argv: str) -> None:
        self.folder = folder
        self.socket = folder / "d.sock"
        self.ready = folder / "ready.json"
        self.log = folder / "log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pilotfleet.cli.daemon"),
                    *("--socket", str(self.socket), "--home", str(folder / "home")),
                    *("--ready-file", str(self.ready), "--listen", "127.0.0.1:0"),
                    *argv,
                ],
                env={"PATH": os.environ["PATH"], "HOME": str(folder)},
                stdout=output,
                stderr=output,
            )

    def wait_ready(self) -> dict[str, Any]:
        for _ in range(1500):
            with contextlib.suppress(FileNotFoundError):
                state: dict[str, Any] = json.loads(self.ready.read_text())
                return state
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
                break
        raise AssertionError(f"not ready:\n{self.log.read_text()}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    ready = tmp_path / "rendezvous.json"
    argv = ["--registry-addr", "127.0.0.1:0", "--beacon-addr", "127.0.0.1:0"]
    argv += ["--http", "127.0.0.1:0", "--store", "memory:", "--ready-file", str(ready)]
    bin_folder = Path(sys.executable).parent
    with subprocess.Popen([bin_folder / "pilot-rendezvous", *argv]) as process:
        try:
            for _ in range(1000):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
                    pytest.fail("the rendezvous ended")
                if ready.exists():
                    break
            addresses = json.loads(ready.read_text())
            yield f"{addresses['registry']} {addresses['beacon']}"
        finally:
            process.terminate()


@pytest.fixture
def flags(registry: str) -> list[str]:
    address, beacon = registry.split()
    return ["--registry", address, "--beacon", beacon]


def test_a_daemon_from_start_to_stop(tmp_path: Path, flags: list[str]) -> None:
    daemon = Daemon(tmp_path, *flags, "--hostname", "alice")
    state = daemon.wait_ready()
    assert state["agents"] == 1
    assert state["addresses"] == {"alice": "0:0000.0000.0001"}
    assert state["socket"] == str(daemon.socket)
    mode = (tmp_path / "home" / "identity.json").stat().st_mode
    assert mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.socket))
        client.sendall(b"\0\0\0\1\x21")
        length = int.from_bytes(client.recv(4))
        assert length > 10
    assert daemon.stop() == 0
    assert not daemon.socket.exists()
    assert "Traceback" not in daemon.log.read_text()


def test_many_agents_and_a_socket_for_each(tmp_path: Path, flags: list[str]) -> None:
    sockets = tmp_path / "sockets"
    daemon = Daemon(tmp_path, *flags, "--agents", "20", "--agent-sockets", str(sockets))
    state = daemon.wait_ready()
    assert state["agents"] == len(state["addresses"]) == 20
    assert len(list(sockets.iterdir())) == 20
    assert daemon.stop(signal.SIGINT) == 0
    assert list(sockets.iterdir()) == []


def test_a_second_daemon_on_the_same_socket_is_refused(
    tmp_path: Path, flags: list[str]
) -> None:
    daemon = Daemon(tmp_path, *flags)
    daemon.wait_ready()
    second = Daemon(tmp_path, *flags)
    assert second.process.wait(20) == 1
    text = second.log.read_text()
    assert "daemon is already running" in text
    assert "hint:" in text
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        ("damaged", "is damaged"),
        ("open", "chmod 600"),
        ("file", "cannot make folder"),
    ],
)
def test_bad_homes_give_an_error_and_no_traceback(
    tmp_path: Path, prepare: str, message: str
) -> None:
    home = tmp_path / "home"
    if prepare == "file":
        home.write_text("")
    else:
        home.mkdir()
        identity = home / "identity.json"
        identity.write_text("{}")
        identity.chmod(0o600 if prepare == "damaged" else 0o644)
    daemon = Daemon(tmp_path, "--registry", "127.0.0.1:1")
    assert daemon.process.wait(20) == 1
    text = daemon.log.read_text()
    assert message in text
    assert "Traceback" not in text


def test_a_signal_while_the_registry_is_awaited(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--registry", "127.0.0.1:1")
    for _ in range(1000):
        if "trying again" in daemon.log.read_text():
            break
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.process.wait(0.02)
    assert daemon.stop() == 130
    assert "Traceback" not in daemon.log.read_text()
