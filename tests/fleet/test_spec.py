from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pilotfleet.errors import ConfigError
from pilotfleet.fleet.spec import EMBEDDED, Pattern, load_spec

if TYPE_CHECKING:
    from pathlib import Path


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
        ('[fleet]\npattern = "mesh"\n[workers]\nexec = "cat"', "a later release"),
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
