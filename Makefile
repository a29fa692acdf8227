# make demo   set up .venv from requirements.lock and run the main job on synthetic data
# make test   set up and run every test;  make test-fast leaves out the slow ones
# make lint   ruff and pyright;  make bench   measure, rewrite docs/benchmarks.md;  make lock  pin the current dependencies;  make clean
# make benchmark ROOT=<folder of the data sets>   every task and method: docs/results.md, docs/benchmark.html
# make wandb-sync   send what logger=wandb kept offline

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
UV     := $(shell command -v uv 2>/dev/null || echo $(VENV)/bin/uv)

# one file at a time in each of two processes: fixtures of a file are made once
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

.PHONY: demo test test-fast setup lint bench benchmark lock wandb-sync clean

# one thread: on pictures this small a second one gains little, and costs much when the other core is busy
demo: setup
	OMP_NUM_THREADS=1 $(PY) run.py

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow"

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	command -v $(UV) >/dev/null 2>&1 || { { $(PY) -m pip --version || $(PY) -m ensurepip; } >/dev/null && $(PY) -m pip install --quiet uv; }
	$(UV) pip install --compile-bytecode --python $(PY) --requirement requirements.lock
	$(UV) pip install --python $(PY) --no-deps --editable .
	$(PY) .ci/verify.py requirements.lock
	touch $@

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright

bench: setup
	$(PY) benchmarks/run.py

ROOT ?= data
benchmark: setup
	$(PY) -m benchmarks.everything --root $(ROOT)

lock: setup
	( echo "# Every package of the tested environment, exactly. Made by 'make lock'; pyproject.toml says why each one is needed."; \
	  $(UV) pip compile --quiet --python-version 3.11 --no-header --no-annotate \
	  --extra wandb --extra search --extra export --extra slurm --extra dev pyproject.toml ) > requirements.lock.new
	mv requirements.lock.new requirements.lock

wandb-sync: setup
	find logs -type d -name 'offline-run-*' -exec $(VENV)/bin/wandb sync {} +

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis .coverage build src/*.egg-info
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
