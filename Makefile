# Each target sets itself up: a virtual environment in .venv, made on first use and brought up to date when
# pyproject.toml changes. All that is needed is make and a Python of 3.11 or newer (PYTHON=… picks one). MLX's back end on
# Linux is that for CPUs; BACKEND=cuda13 (or cuda, for CUDA 12) takes the other. On macOS the extra adds nothing.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
PEERS := .venv-bench
PEERS_READY := $(PEERS)/.ready
BACKEND := cpu
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: demo test fuzz lint bench bench-peers check-macos docs clean

demo: $(READY)
	$(BIN)/parm-mlx demo

test: $(DEV)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

fuzz: $(DEV)
	$(BIN)/python tests/fuzz_cli.py

# convert/ is parm_mlx.convert once installed; the links show the type checker that one package.
lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@rm -rf build/typed && mkdir -p build/typed/parm_mlx
	@cd build/typed/parm_mlx && ln -s ../../../parm_mlx/* ../../../convert .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p parm_mlx

bench: $(DEV) $(PEERS_READY)
	$(BIN)/parm-mlx bench
	$(BIN)/python examples/bench/train.py
	$(BIN)/python examples/bench/sweep.py
	$(BIN)/python examples/bench/serve.py
	$(BIN)/python examples/bench/auto.py
	$(PEERS)/bin/python examples/bench/peers.py

bench-peers: $(PEERS_READY)
	$(PEERS)/bin/python examples/bench/peers.py
	$(PEERS)/bin/python examples/bench/train_peers.py

# Asks the package index whether a Mac with Apple silicon can install all that is declared; nothing is installed.
check-macos: $(DEV)
	MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile pyproject.toml --all-extras --no-header --no-annotate \
		--python-platform aarch64-apple-darwin --python-version 3.12 --no-python-downloads --only-binary :all:

docs: $(DEV)
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_performance.py
	$(BIN)/python docs/make_large.py
	$(BIN)/python docs/make_paper.py
	$(BIN)/python docs/make_results.py

clean:
	rm -rf $(VENV) $(PEERS) build dist *.egg-info

$(READY): pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		for python in $(CANDIDATES); do \
			if "$$python" -c '$(USABLE)' 2>/dev/null; then exec "$$python" -m venv --clear $(VENV); fi; \
		done; \
		echo "error: no Python 3.11 or newer with venv was found among: $(CANDIDATES)" >&2; \
		echo "hint: install one (on Debian or Ubuntu also python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	}
	@echo "installing parm-mlx and what it needs into $(VENV): a minute or two, without output"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(BACKEND),blas,scorers,serve]'
	@touch $@

$(DEV): $(READY)
	@echo "installing what tests and checks need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(BACKEND),blas,scorers,serve,dev]'
	@touch $@

# What we are compared with is installed in an environment of its own.
$(PEERS_READY): pyproject.toml | $(READY)
	$(BIN)/python -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$(BACKEND),blas]' mlx-lm-lora torch==2.13.0 transformers
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps mlx-tune==0.6.0
	@touch $@
