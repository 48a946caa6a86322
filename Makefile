# Every target makes .venv first and installs what it needs; PYTHON=python3.12 picks another Python (>= 3.11).

PYTHON ?= python3
CONFIG ?= configs/tmaze.yaml
BIN := .venv/bin
INSTALLED := .venv/.installed
RESULTS := benchmarks/results
EXTRAS := .venv/.installed-extras
DOCS := .venv/.installed-docs
DEVICE ?= cuda
MINUTES ?= 9
GPU_PYTHON ?= 3.12
# what the GPU's machine has besides torch; SciPy is as large as all other wheels together
GPU_HAS ?= scipy

.DEFAULT_GOAL := help
.PHONY: help train test test-slow test-extras browser lint format docs bench gpu gpu-wheels

help:
	@echo 'make train         train the agent of CONFIG ($(CONFIG)) and compare it with the memoryless control'
	@echo 'make test          the tests, three minutes'
	@echo 'make test-slow     the learning tests, minutes'
	@echo 'make test-extras   installs EnvPool, Ray, Triton, ONNX, the RL Zoo (700 MB to download, 2 GB on disk) and runs their tests'
	@echo 'make browser       installs Chromium where it is missing and apt-get may: the tests of the HTML page take it'
	@echo 'make lint          ruff and mypy'
	@echo 'make format        ruff, rewriting files'
	@echo 'make docs          the documentation, in docs/_build/html'
	@echo 'make bench         the speed of the scan, of training and of predict, beside others; an hour on two cores'
	@echo 'make gpu           what waits for a GPU, in nine minutes; without .venv, network or more than torch and the wheels'
	@echo 'make gpu-wheels    fetches these for the Python of that machine, GPU_PYTHON=$(GPU_PYTHON), into .gpu/wheels'

# Done again only when what is to be installed changes.
$(INSTALLED): setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

$(EXTRAS): $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[envpool,onnx,ray,triton,video,wandb,zoo]'
	touch $@

$(DOCS): $(INSTALLED)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[docs]'
	touch $@

train: $(INSTALLED)
	$(BIN)/python train_agent.py --config $(CONFIG)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m 'not slow and not gpu' --numprocesses=2 tests
	# a page's blocks go on from each other: one process
	$(BIN)/python -m pytest docs README.md

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m 'slow and not gpu' --numprocesses=auto --durations=0

test-extras: $(EXTRAS)
	$(BIN)/python -m pytest -m 'not slow and not gpu' -k 'pool or test_ray or triton or onnx or mp4 or weights_and_biases or test_zoo'
	$(BIN)/python -m pytest -m slow -k 'onnx or envpool'

browser:
	command -v chromium || command -v google-chrome || (apt-get update && apt-get install --yes --no-install-recommends chromium)

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(DOCS)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build/html

bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench,onnx]'
	$(BIN)/python -m benchmarks.speed.scan --json $(RESULTS)/scan.json
	$(BIN)/python -m benchmarks.speed.threads --json $(RESULTS)/threads.json
	$(BIN)/python -m benchmarks.speed.operations --json $(RESULTS)/operations.json
	$(BIN)/python -m benchmarks.speed.throughput --json $(RESULTS)/throughput.json
	$(BIN)/python -m benchmarks.speed.latency --json $(RESULTS)/latency.json
	$(BIN)/python -m benchmarks.speed.stepping --json $(RESULTS)/stepping.json
	$(BIN)/python -m benchmarks.speed.export --json $(RESULTS)/export.json
	$(BIN)/python -m benchmarks.speed.draw $(addprefix $(RESULTS)/,scan.json throughput.json latency.json export.json)

gpu:
	$(PYTHON) -m benchmarks.speed.gpu --device $(DEVICE) --minutes $(MINUTES) --json $(RESULTS)/gpu.json $(addprefix --config=,$(GPU_CONFIG)) $(addprefix --commit=,$(COMMIT))

gpu-wheels: $(INSTALLED)
	$(BIN)/python -m benchmarks.speed.gpu_wheels --python $(GPU_PYTHON) $(addprefix --without=,$(GPU_HAS))
