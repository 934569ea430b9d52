# Every target does its own set-up in .venv from a fresh clone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= configs/recipes/quickstart.yaml
# More flags for pretrain.py, for example ARGS="--set training.max_steps=40"
ARGS ?=

# Where `make bench` writes its figures and plots.
OUT ?= docs/performance

.PHONY: help install node quickstart test test-slow soak check release bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.quickstart: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[quickstart,eval]'
	@touch $@

$(VENV)/.dev: $(VENV)/.quickstart
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# transformers.js, for tests that are left out without it. The script of onnxruntime-node would fetch CUDA.
tests/node/node_modules/.package-lock.json: tests/node/package-lock.json
	@if ! command -v npm > /dev/null; then echo "No npm here: tests of transformers.js are left out"; \
	else npm ci --prefix tests/node --ignore-scripts --no-audit --no-fund \
		|| echo "transformers.js was not installed: its tests are left out"; fi

node: tests/node/node_modules/.package-lock.json ## Install transformers.js for its tests, if npm is there

install: $(VENV)/.quickstart ## Everything in .venv but what tests and exports need

# The last transformers 4, over the same torch: what we save must load there too.
$(VENV)-transformers4/.installed: $(VENV)/.dev
	$(BIN)/python -m venv $(VENV)-transformers4
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $(VENV)-transformers4/site
	cp $(VENV)-transformers4/site "$$($(VENV)-transformers4/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth"
	$(VENV)-transformers4/bin/python -m pip install --quiet --ignore-installed --no-deps \
		transformers==4.57.6 huggingface_hub==0.36.2 tokenizers==0.22.2 \
		requests==2.34.2 urllib3==2.7.0 charset-normalizer==3.4.7 idna==3.20 certifi==2026.5.20
	@touch $@

quickstart: $(VENV)/.quickstart ## Train, check and sample the real Ant-10M on this machine, under 10 minutes on 2 cores
	$(BIN)/accelerate launch --quiet --num_processes 1 --num_machines 1 --mixed_precision no \
		--dynamo_backend no pretrain.py --config $(RECIPE) $(ARGS)

test: $(VENV)/.dev node ## Run the tests (no network, no GPU)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/.dev node $(VENV)-transformers4/.installed ## Run the slow tests: old transformers, long runs
	ANT_HF_TRANSFORMERS4=$(VENV)-transformers4/bin/python $(BIN)/python -m pytest -n 2 -m slow

soak: $(VENV)/.dev ## Kill runs 400 times, try every other fault, fill the tables of docs/reliability-tables.md (an hour or less)
	$(BIN)/python tests/faults/soak.py --kills 200 --work runs/soak

check: $(VENV)/.dev ## Lint, format, spelling and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell -D - -D tools/words.txt $$(git ls-files)
	$(BIN)/mypy

release: $(VENV)/.quickstart ## Make release/Ant-10M again from runs/ant10m-questions, once that is evaluated
	$(BIN)/ant-hf card runs/ant10m-questions/final --repo GODELEV/Ant-10M --onnx
	rm -rf release/Ant-10M
	mkdir -p release
	cp -r runs/ant10m-questions/release release/Ant-10M

bench: $(VENV)/.dev ## Measure all of docs/performance.md on this machine, on a GPU if there is one (45 minutes on 2 cores)
	mkdir -p $(OUT)
	$(BIN)/python benchmarks/throughput.py --json $(OUT)/throughput.json
	$(BIN)/python benchmarks/throughput.py --candidates --json $(OUT)/candidates.json
	$(BIN)/python benchmarks/drift.py --output $(OUT)
	$(BIN)/python benchmarks/scale_out.py --json $(OUT)/scale_out.json
	$(BIN)/python benchmarks/scaling.py --output $(OUT)
	$(BIN)/python benchmarks/generation.py runs/quickstart/final --json $(OUT)/generation.json

clean: ## Remove environments and caches, never runs/ or data/
	rm -rf $(VENV) $(VENV)-transformers4 .pytest_cache .mypy_cache .ruff_cache .hypothesis
