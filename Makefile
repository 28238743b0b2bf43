# `make demo` and `make test` do all the set-up; a second call starts at once.
# The virtual environment is rebuilt when its lists of dependencies change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete

.PHONY: demo test test-computed test-linked test-slow lint format bench system clean

demo: $(STAMP)
	@$(BIN)/python -m p2pfl demo $(ARGS)

# torch first and alone: pip then takes the pinned build and nothing else of its family
$(STAMP): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (some minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "p2pfl needs Python 3.11 or newer; set PYTHON=" && exit 1)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# what only computes, or runs single commands, is spread over two processes; what has peers and links runs beside it in
# one of its own, and goes first: it waits often, and the others, which are nice, take what it leaves of the processors
COMPUTED := tests/audit tests/cli tests/data tests/gossip tests/governance tests/sim tests/topology tests/train

test: lint
	@$(MAKE) --no-print-directory --jobs=2 test-computed test-linked

# while peers run the others get little of the processors, so that a test of theirs may take longer than alone
test-computed: $(STAMP)
	OMP_NUM_THREADS=1 nice -n 10 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile -o timeout=300 $(COMPUTED) $(ARGS)

# its lines are kept until its end, as two runs that print at the same time cannot be read
test-linked: $(STAMP)
	@lines=$$(mktemp) && trap 'rm -f "$$lines"' EXIT && code=0 && \
	{ $(BIN)/python -m pytest -m "not slow" $(addprefix --ignore=,$(COMPUTED)) $(ARGS) > "$$lines" 2>&1 || code=$$?; } && \
	cat "$$lines" && exit $$code

test-slow: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist load $(COMPUTED) $(ARGS)
	$(BIN)/python -m pytest -m slow $(addprefix --ignore=,$(COMPUTED)) $(ARGS)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python benchmarks/link.py
	$(BIN)/python benchmarks/rounds.py

# Debian and npm packages that some tests need (network namespaces, packet filter, openssl, programs in node)
system:
	bash scripts/system-packages.sh
	bash scripts/counterparts.sh

clean:
	rm -rf $(VENV) build dist *.egg-info
