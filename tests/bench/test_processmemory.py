"""Figures of processes are those of the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench.processmemory import Memory, cpu_seconds, memory_of, open_files, tree_of

MIB = 1024 * 1024


def test_memory_grows_by_what_is_written() -> None:
    before = memory_of(os.getpid())
    block = bytearray(os.urandom(16 * MIB))
    grown = memory_of(os.getpid()) - before
    assert len(block) == 16 * MIB
    for share in (grown.rss, grown.pss, grown.uss):
        assert share == pytest.approx(16 * MIB, rel=0.2)


def test_private_memory_is_the_least_and_resident_the_most() -> None:
    memory = memory_of(os.getpid())
    assert 0 < memory.uss <= memory.pss <= memory.rss


def test_memory_is_shared_out() -> None:
    memory = Memory(rss=4096, pss=2048, uss=1024)
    assert memory.kib_per(2) == (2, 1, 0.5)
    assert (memory + memory - memory) == memory
    assert memory.mib == (4 / 1024, 2 / 1024, 1 / 1024)


def test_children_belong_to_the_tree_until_they_end() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE
    ) as child:
        assert child.pid in tree_of(os.getpid())
        both = memory_of(os.getpid(), child.pid)
        child.communicate(b"\n")
    assert both.rss > 0
    assert child.pid not in tree_of(os.getpid())
    with pytest.raises(ProcessLookupError, match=str(child.pid)):
        memory_of(child.pid)
    assert cpu_seconds(child.pid) == 0


def test_processor_time_and_files_are_counted() -> None:
    used, files = cpu_seconds(os.getpid()), open_files(os.getpid())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    with open(os.devnull):
        assert open_files(os.getpid()) == files + 1
    assert cpu_seconds(os.getpid()) >= used + 0.03
