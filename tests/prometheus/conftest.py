"""Tests with a real Prometheus, so they are asked for.

``make prometheus`` installs Debian's and sets the variable; without that nothing here
is collected.
"""

from __future__ import annotations

import os

if os.environ.get("PILOTFLEET_PROMETHEUS") != "1":
    collect_ignore_glob = ["test_*.py"]
