"""Settings shared by all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# The build server is slow and shared: time per example says nothing there.
settings.register_profile("default", deadline=None, max_examples=100)
settings.load_profile("default")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Use one process more than there are cores: many tests wait for programs."""
    return (os.cpu_count() or 1) + 1
