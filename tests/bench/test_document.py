"""The page of benchmarks has its figures from the file of results."""

from __future__ import annotations

import re

import pytest

from bench import document, saved
from bench.goals import outcomes
from bench.options import Options
from bench.parts import PARTS
from bench.saved import Latest
from tests.bench.samples import idle_hosts, run

PAGE = """# Benchmarks

<!-- table: goals -->
<!-- end -->

Words that stay.

<!-- table: hosts -->

old figures

<!-- end -->

<!-- table: mesh -->

figures of before

<!-- end -->
"""


def latest() -> Latest:
    hosts = run("hosts", idle_hosts())
    return Latest([hosts, run("mesh", error="it broke")], outcomes(hosts.targets))


def test_the_page_shows_the_figures_of_the_file() -> None:
    page = document.PAGE.read_text()
    assert document.filled(page, saved.load_latest(Options().folder)) == page, (
        "docs/benchmarks.md has other figures than bench/results/latest.json:"
        " run `python -m bench docs`"
    )


def test_the_page_has_a_place_for_every_part() -> None:
    places = [name for name, _ in document.BLOCK.findall(document.PAGE.read_text())]
    names = [*document.BLOCKS, *(part.name for part in PARTS)]
    assert sorted(places) == sorted(names)


def test_every_picture_of_the_page_is_there() -> None:
    links = re.findall(r"]\((\S+\.png)\)", document.PAGE.read_text())
    assert all((document.PAGE.parent / link).exists() for link in links)


def test_generated_parts_are_replaced_and_nothing_else() -> None:
    page = document.filled(PAGE, latest())
    assert "old figures" not in page
    assert "| 1,000 | 1 | 50 | 40 | 30 | 0.5 | 1 |" in page
    assert (
        "| ~8 MB | ≤ 16 KiB | 10.2 KiB | yes | made up | `python -m bench hosts` |"
        in page
    )
    assert "Words that stay." in page
    # It failed the last time, so the figures of before are the last.
    assert "figures of before" in page
    assert document.filled(page, latest()) == page


def test_pictures_have_their_words_beside_them() -> None:
    page = document.filled("<!-- table: plots -->\n<!-- end -->", latest())
    assert "](../bench/results/memory.png)" in page
    assert "slope 10.2 KiB for 1 agent more" in page


def test_the_machine_and_the_parts_are_told() -> None:
    marks = "<!-- table: machine -->\n<!-- end --><!-- table: parts -->\n<!-- end -->"
    page = document.filled(marks, latest())
    assert "virtual machine, 2 cores of Sample CPU, 7.8 GiB" in page
    assert "| `python -m bench hosts` |" in page
    assert "| 12 s |" in page


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("<!-- table: speed -->\n<!-- end -->", "no table speed; have goals, "),
        ("<!-- table: hosts -->\n", "has no <!-- end -->"),
    ],
)
def test_marks_that_say_nothing_are_refused(page: str, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        document.filled(page, latest())
