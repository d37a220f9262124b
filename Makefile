# Everything a developer or a newcomer runs. `make` alone says what there is.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
JOBS ?= auto

.PHONY: help demo demo-live test test-live lint golden bench bench-live docs judges clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## Set up, then read a bundled capture of a real kernel: packets, connections, what is wrong
	@tests/demo.sh $(VENV)/bin/vsockdump

demo-live: $(VENV)/.developing ## Boot a VM with a real kernel and watch its vsock traffic
	@$(RUN) -m tests.vm.demo

test: $(VENV)/.developing judges ## Set up, then run all tests that need no VM
	$(RUN) -m pytest -n $(JOBS)

test-live: $(VENV)/.developing ## Run the tests on real kernels in VMs (installs QEMU and kernels when missing)
	$(RUN) -m tests.vm.setup
	$(RUN) -m pytest tests/vm

lint: $(VENV)/.developing ## Check style, types and the direction of imports
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m mypy dissectors
	$(VENV)/bin/lint-imports

golden: $(VENV)/.developing ## Write the expected outputs anew (look at the difference!)
	$(RUN) tests/golden/regenerate.py
	$(RUN) tests/readme.py

bench: $(VENV)/.developing judges ## Measure beside the peers and write the table into docs/performance.md
	$(RUN) -m bench --write
	$(RUN) -m bench.stages --write

bench-live: $(VENV)/.developing ## Measure capturing, on a veth pair and in a VM, into docs/performance.md (as root)
	$(RUN) -m bench.live_ring --write
	$(RUN) -m bench.live_vm --write

docs: $(VENV)/.developing ## Write the pages that are made from the program
	$(RUN) tests/golden/pages.py

clean: ## Remove what make and the tools left
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/data

# tshark, tcpdump and the kernel's own headers judge our bytes independently. Without them their tests
# are skipped, never in CI.
judges:
	@missing=; \
	for tool in tshark capinfos tcpdump; do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	[ -e /usr/include/linux/vsockmon.h ] || missing="$$missing linux-libc-dev"; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing tshark, tcpdump and linux-libc-dev"; \
		apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends tshark tcpdump linux-libc-dev >/dev/null; \
	elif [ -n "$$CI" ]; then \
		echo "not installed:$$missing" >&2; exit 1; \
	else \
		echo "not installed:$$missing; the tests that ask them are skipped" >&2; \
	fi

# A bare Debian has neither python3 nor its venv module; both are installed when that is allowed.
$(VENV)/bin/python:
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing python3 and python3-venv"; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null 2>&1; \
		else \
			echo "needed: python3 with its venv module, as with: apt-get install python3 python3-venv" >&2; \
			exit 1; \
		fi; \
	fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vsockdump needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	@echo "setting up $(VENV)"
	@$(RUN) -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.developing: $(VENV)/bin/python pyproject.toml
	@echo "setting up $(VENV) for development"
	@$(RUN) -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed
