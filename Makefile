# Everything a newcomer or the build server runs. Needs Python 3.11+, make and git.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo interop test test-all bench check-format lint layers types unit \
	paths fleets systemd prometheus pages openclaw clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: venv
	PATH="$(CURDIR)/$(BIN):$$PATH" pilotctl fleet run examples/wordcount.toml \
		--tasks examples/wordcount-tasks.jsonl --results demo-results.jsonl

test: check-format lint layers types unit

test-all: test demo paths fleets systemd prometheus pages openclaw

interop: venv
	$(BIN)/python -m tests.support.isolated $(BIN)/python -m tests.interop.matrix

# A tenth of it with QUICK=1, to see that all of it works.
bench: venv
	$(BIN)/python -m bench $(if $(QUICK),--quick)

check-format: venv
	$(BIN)/ruff format --check .

lint: venv
	$(BIN)/ruff check .

layers: venv
	$(BIN)/lint-imports

types: venv
	$(BIN)/mypy

unit: venv
	$(BIN)/python -m tests.support.isolated $(BIN)/pytest --numprocesses auto --dist worksteal

# Real NATs in network namespaces: needs root and Linux.
paths: venv
	tests/support/install.sh ip:iproute2 nft:nftables conntrack:conntrack sysctl:procps
	PILOTFLEET_PATHS=1 $(BIN)/pytest --numprocesses 6 tests/paths

# Fleets of a thousand workers, with programs killed on the way.
fleets: venv
	PILOTFLEET_FLEETS=1 $(BIN)/python -m tests.support.isolated \
		$(BIN)/pytest --numprocesses 0 tests/fleets

# Units on a real systemd, in namespaces: needs root and Linux.
systemd: venv
	tests/support/install.sh /lib/systemd/systemd:systemd /usr/bin/systemd-analyze:systemd \
		/usr/bin/dbus-daemon:dbus /sbin/ip:iproute2 /usr/bin/nsenter:util-linux
	PILOTFLEET_SYSTEMD=1 $(BIN)/pytest --numprocesses 0 tests/systemd

# A real Prometheus scrapes a real monitor: Debian's, so it needs root to install.
prometheus: venv
	tests/support/install.sh prometheus:prometheus promtool:prometheus
	PILOTFLEET_PROMETHEUS=1 $(BIN)/python -m tests.support.isolated \
		$(BIN)/pytest --numprocesses 0 tests/prometheus

# The web pages in Debian's Chromium. Pictures of them are in tests/pages/artefacts.
pages: venv
	tests/support/install.sh chromium:chromium /usr/share/fonts/truetype/dejavu:fonts-dejavu-core
	PILOTFLEET_PAGES=1 $(BIN)/python -m tests.support.isolated \
		$(BIN)/pytest --numprocesses 0 tests/pages

# The real OpenClaw, with a local stub for its model.
openclaw: venv
	tests/openclaw/install.sh
	PILOTFLEET_OPENCLAW=1 $(BIN)/python -m tests.support.isolated \
		$(BIN)/pytest --numprocesses 0 tests/openclaw

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
