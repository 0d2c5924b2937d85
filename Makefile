# `make bench` and `make test` set up everything they need in .venv, then run.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: bench test lint clean

bench: .venv/ready
	asv machine --yes
	# Without the sharded ones, whose two ranks are started for each cell: as long again as all this.
	# asv's 2: a benchmark failed, as one of a loss that is wrong here does. The others have times.
	asv run --launch-method spawn --record-samples --show-stderr --bench '^(?!sharded)' 'HEAD^!' || test $$? -eq 2
	python -m reports

test: .venv/ready
	# Two workers, and the ranks that they start, share the cores: a thread that waits leaves its own.
	OMP_WAIT_POLICY=passive pytest --benchmark-skip --numprocesses 2 --dist loadfile

lint: .venv/ready
	ruff check .
	ruff format --check .
	mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .asv .benchmarks build *.egg-info reports/out
