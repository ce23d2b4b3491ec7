# Every target makes the environment it needs: `make demo` and `make test` work on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := $(VENV)/.demo
FIXTURES := $(VENV)/.fixtures
RTX := $(VENV)/.rtx
RTX_TESTS := tests/backends/test_tensorrt_rtx.py tests/backends/test_device_rtx.py tests/quant/tensorrt tests/lint/test_lint_against_builder.py \
	tests/pipeline/test_tensorrt_engines.py tests/runtime/test_trt_real_module.py

.PHONY: setup demo demo-rtx docs recipes test test-slow test-rtx test-gpu test-aarch64 check format bench bench-runtime soak clean help

help:            ## list the targets
	@grep -E '^[a-z0-9-]+: .*##|^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: $(STAMP)  ## make .venv with everything that development needs

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,openvino,convert,dev]'
	touch $@

$(DEMO): $(STAMP) requirements-demo.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-demo.txt
	touch $@

$(FIXTURES): $(DEMO) requirements-fixtures.txt requirements-fixtures-nodeps.txt
	$(BIN)/pip install --quiet -c constraints.txt -r requirements-fixtures.txt
	$(BIN)/pip install --quiet --no-deps -r requirements-fixtures-nodeps.txt
	touch $@

demo: $(DEMO)  ## train a fusion model on real data, convert, run, profile
	$(BIN)/python -m recipes.demo

demo-rtx: $(DEMO) $(RTX)  ## engines of that model for GPUs that are not here, by the real TensorRT for RTX
	$(BIN)/python -m recipes.demo_rtx

recipes: $(FIXTURES)  ## train, convert and score every recipe; what is done is not done again (half an hour)
	$(BIN)/python -m recipes.make; made=$$?; $(BIN)/python -m recipes.catalogue && exit $$made

test: $(STAMP)   ## the fast tests
	$(BIN)/pytest -n 2

test-slow: $(FIXTURES)  ## convert, run and score every fixture (long)
	HYPOTHESIS_PROFILE=fresh $(BIN)/pytest -n 2 -m hypothesis
	$(BIN)/pytest -m slow

$(RTX): $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[rtx]'
	touch $@

test-rtx: $(RTX)  ## build engines with the real TensorRT-RTX, which needs no GPU for that
	$(BIN)/pytest $(RTX_TESTS)

docs: $(STAMP)   ## the guides as a site in build/site
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict
	@echo build/site/index.html

test-gpu: $(STAMP)  ## on a machine with an NVIDIA GPU: the runtime, and every variant against the CPU, with times
	$(BIN)/pytest -m gpu -rs -s tests/gpu

test-aarch64: $(DEMO)  ## run the device side on arm64 Python, emulated: as on Raspberry Pi, Orin and Thor
	$(BIN)/pytest -m aarch64 tests/aarch64

check: $(STAMP)  ## ruff, mypy strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(FIXTURES)  ## per fixture: accuracy, latency ratio, size ratio, seconds, memory
	$(BIN)/python -m benchmarks.foundation

bench-runtime: $(FIXTURES)  ## sessions beside one ONNX Runtime session of the same model: full runs, reuse, busy cores
	$(BIN)/python -m benchmarks.runtime

SOAK_MINUTES ?= 2

soak: $(DEMO)    ## SOAK_MINUTES of sensors, callers and swaps on one session; the record is build/soak/soak.json
	$(BIN)/python -m benchmarks.soak --minutes $(SOAK_MINUTES) --json build/soak/soak.json

clean:           ## remove the environment and the caches
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
