"""Settings shared by all tests."""

from __future__ import annotations

from hypothesis import settings

# The build server is slow and shared: time per example says nothing there.
settings.register_profile("default", deadline=None, max_examples=100)
settings.load_profile("default")
