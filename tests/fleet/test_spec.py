from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import ConfigError
from pilotfleet.fleet.spec import EMBEDDED, Pattern, load_spec

if TYPE_CHECKING:
    from pathlib import Path


TAGS = [f"t{number}" for number in range(10)]


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_whole_specification_is_read(tmp_path: Path) -> None:
    spec = load_spec(
        write(
            tmp_path,
            """
            [fleet]
            name = "batch"
            pattern = "hub-and-spoke"
            rendezvous = "10.0.0.1:9000"
            stagger = "1m30s"
            [workers]
            count = 3
            tags = ["worker", "text"]
            exec = "sha256sum"
            concurrency = 2
            [hierarchy]
            cluster_size = 50
            """,
        )
    )
    assert spec.fleet.pattern is Pattern.HUB_AND_SPOKE
    assert spec.fleet.rendezvous == "10.0.0.1:9000"
    assert spec.stagger_s == 90
    assert spec.workers.count == 3
    assert spec.prefix == "batch-worker-"
    assert spec.workers.tags == ("worker", "text")


@pytest.mark.parametrize("pattern", list(Pattern))
def test_every_pattern_is_there(tmp_path: Path, pattern: Pattern) -> None:
    text = f'[fleet]\npattern = "{pattern}"\n[workers]\nexec = "cat"'
    assert load_spec(write(tmp_path, text)).fleet.pattern is pattern


@pytest.mark.parametrize(
    ("pattern", "size"), [("hub-and-spoke", 7), ("mesh", 7), ("hierarchical", 5)]
)
def test_groups_of_a_tree_are_its_clusters(
    tmp_path: Path, pattern: str, size: int
) -> None:
    text = f'[fleet]\npattern = "{pattern}"\n[hierarchy]\ncluster_size = 5\n'
    text += '[workers]\nexec = "cat"\nper_process = 7'
    assert load_spec(write(tmp_path, text)).group_size == size


def test_openclaw_works_without_its_table(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, "[workers]\nopenclaw = true")).openclaw is None
    text = '[workers]\nopenclaw = true\n[openclaw]\nmodel = "m"\ngateways = 2'
    table = load_spec(write(tmp_path, text)).openclaw
    assert table is not None
    assert (table.model, table.gateways, table.one_shot) == ("m", 2, False)


def test_number_of_workers_can_be_changed_within_bounds(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, '[workers]\nexec = "cat"\ncount = 2'))
    assert spec.with_count(30).workers.count == 30
    for count in (0, -1, 20_001):
        with pytest.raises(ConfigError, match="is not from 1 to 20000"):
            spec.with_count(count)


def test_only_the_command_is_required(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, '[workers]\nexec = "cat"'))
    assert spec.fleet.rendezvous == EMBEDDED
    assert spec.workers.count == 1
    assert spec.prefix == "worker-"


def test_prefix_of_the_specification_comes_first(tmp_path: Path) -> None:
    text = '[fleet]\nrendezvous = "h:1"\n[workers]\nexec = "cat"\nprefix = "w"'
    assert load_spec(write(tmp_path, text)).prefix == "w"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "workers"),
        ("[workers]", "exec"),
        ('[workers]\nexec = ""', "workers.exec"),
        ('[workers]\nexec = "\'"', "workers.exec"),
        ('[workers]\nexec = "cat"\ncuont = 3', "cuont"),
        ('[workers]\nexec = "cat"\ncount = 0', "workers.count"),
        ('[workers]\nexec = "cat"\ncount = "many"', "workers.count"),
        ('[workers]\nexec = "cat"\ntags = []', "workers.tags"),
        ('[workers]\nexec = "cat"\ntags = ["No!"]', "No!"),
        ('[workers]\nexec = "cat"\nprefix = "No-"', "hostname"),
        ('[workers]\nexec = "cat"\ntimeout = "soon"', "workers.timeout"),
        ('[workers]\nexec = "cat"\ntimeout = "0s"', "workers.timeout"),
        ('[workers]\nexec = "cat"\ntimeout = "30"', "workers.timeout"),
        ('[fleet]\npattern = "star"\n[workers]\nexec = "cat"', "fleet.pattern"),
        ('[workers]\nexec = "cat"\ncall = "a:b"', "exactly one of the three"),
        ('[workers]\ncall = "module"', "workers.call"),
        ('[workers]\nexec = "cat"\nper_process = 0', "workers.per_process"),
        ('[workers]\nexec = "cat"\n[openclaw]\nagent = "a"', "openclaw = true"),
        ('[workers]\nopenclaw = true\n[openclaw]\ngateway = "x"', "openclaw.gateway"),
        ("[workers]\nopenclaw = true\n[openclaw]\nturns = 3", "turns"),
        ('[workers]\nopenclaw = true\n[openclaw]\ntoken_file = "x"', "token_file"),
        (
            '[workers]\nopenclaw = true\n[openclaw]\none_shot=true\ngateway="http://h"',
            "one_shot",
        ),
        ('[workers]\nexec = "cat"\n[health]\ninterval = "5"', "health.interval"),
        ('[workers]\nexec = "cat"\n[hierarchy]\nfanout = 1', "hierarchy.fanout"),
        ('[workers]\nexec = "cat"\n[events]\nstandby = 4', "events.standby"),
        ('[workers]\nexec = "cat"\n[events]\nstandby = -1', "events.standby"),
        ('[workers]\nexec = "cat"\n[events]\nstandby = true', "events.standby"),
        ('[workers]\nexec = "cat"\n[events]\nbroker = "hub"', "broker"),
        ('[workers]\nexec = "cat"\n[monitor]\nhttp = "8787"', "monitor.http"),
        ('[workers]\nexec = "cat"\n[monitor]\nhttp = "[::]:1"', "a token is needed"),
        ('[workers]\nexec = "cat"\n[monitor]\nport = 8787', "port"),
        ('[fleet]\nlisten = "host"\n[workers]\nexec = "cat"', "fleet.listen"),
        ('[fleet]\nlisten = "0.0.0.0"\n[workers]\nexec = "cat"', "fleet.listen"),
        ('[fleet]\nlisten_port = 65535\n[workers]\nexec = "cat"', "listen_port"),
        (
            '[fleet]\nlisten = "10.0.0.1"\nrendezvous = "h:1"\n[workers]\nexec = "cat"',
            "embedded",
        ),
        (
            f'[fleet]\npattern = "hierarchical"\n[workers]\nexec = "c"\ntags = {TAGS}',
            "workers.tags: at most 9",
        ),
        (f'[fleet]\nname = "{"n" * 60}"\n[workers]\nexec = "cat"', "hostname"),
        ('[fleet]\nrendezvous = "here"\n[workers]\nexec = "cat"', "fleet.rendezvous"),
        ('[fleet]\nstagger = "-1s"\n[workers]\nexec = "cat"', "fleet.stagger"),
        ("[workers", "not TOML"),
    ],
)
def test_mistake_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_spec(path)
    assert str(path) in str(caught.value)
    assert named in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file"):
        load_spec(tmp_path / "nowhere.toml")
